"""What a processor can do in bfloat16, from what it says of itself."""

from __future__ import annotations

import pytest

from posttrain.models import processor as module
from posttrain.models.processor import Processor, flags_in, processor

INTEL = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) Platinum 8481C\nflags\t\t: fpu avx512_bf16 amx_bf16 amx_tile\n"
AMD = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 avx512_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n"
OLD = "processor\t: 0\nmodel name\t: 舊的處理器\nflags\t\t: fpu avx2 avx512f\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n"


@pytest.mark.parametrize(
    ("text", "name", "units"),
    [
        (INTEL, "Intel(R) Xeon(R) Platinum 8481C", "AMX"),
        (AMD, "AMD EPYC", "AVX512-BF16"),
        (OLD, "舊的處理器", ""),
        (ARM, "", "Arm BF16"),
    ],
)
def test_what_multiplies_is_read_from_the_flags(
    text: str, name: str, units: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pathlib import Path

    path = Path(str(tmp_path)) / "cpuinfo"
    path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(module, "CPUINFO", path)
    found = processor.__wrapped__()
    assert flags_in(text)[0] == name
    assert found.units == units
    assert found.fast_bf16 == (bool(units) and found.bf16_used)


def test_the_reason_names_what_is_there_and_what_is_not() -> None:
    assert Processor("x", "AMX", True).reason == "the processor has AMX"
    assert str(Processor("x", "AMX", True)) == "x: bfloat16 by AMX"
    assert "does not use it" in Processor("x", "AMX", False).reason
    assert not Processor("x", "AMX", False).fast_bf16
    assert Processor("x", "", True).reason == "the processor has neither AMX nor AVX512-BF16"
    assert str(Processor("x", "", True)) == "x: no fast bfloat16"
