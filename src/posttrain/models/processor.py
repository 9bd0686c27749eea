"""What the processor can do in bfloat16: asked, not guessed.

A processor with matrix units (AMX) or with bfloat16 dot products (AVX512-BF16, Arm's BF16) multiplies matrices two to
ten times as fast in bfloat16 as in float32. One without them emulates bfloat16 and is slower. What counts is what the
processor has and oneDNN, which does torch's multiplications, knows how to use: both are asked.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import NamedTuple

__all__ = ["Processor", "flags_in", "processor"]

CPUINFO = Path("/proc/cpuinfo")
UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "bf16": "Arm BF16"}
"""Flags of /proc/cpuinfo that say how bfloat16 is multiplied, the fastest first, and what people call them. (Arm's
kernel writes `bf16`; on x86 no flag is called so.)"""


class Processor(NamedTuple):
    """name: as the machine calls it; units: what multiplies bfloat16 ("" when nothing does); bf16_used: whether torch's
    oneDNN says that it can use it.
    """

    name: str
    units: str
    bf16_used: bool

    @property
    def fast_bf16(self) -> bool:
        """Whether bfloat16 is worth having."""
        return bool(self.units) and self.bf16_used

    @property
    def reason(self) -> str:
        """Half a sentence: why bfloat16 is taken or not."""
        if not self.units:
            return "the processor has neither AMX nor AVX512-BF16"
        return f"the processor has {self.units}" + ("" if self.bf16_used else ", but this torch does not use it")

    def __str__(self) -> str:
        return f"{self.name}: bfloat16 by {self.units}" if self.fast_bf16 else f"{self.name}: no fast bfloat16"


def flags_in(text: str) -> tuple[str, frozenset[str]]:
    """(name, flags) of the first processor of a /proc/cpuinfo; Arm calls its flags Features and has no name."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip(), value.strip())
    return found.get("model name", ""), frozenset((found.get("flags") or found.get("Features") or "").split())


def _asked_of_torch() -> frozenset[str]:
    """The same flags where there is no /proc/cpuinfo (macOS, Windows), as torch finds them out."""
    import torch

    found = {
        "amx_bf16": torch.cpu._is_amx_tile_supported(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
    }
    return frozenset(name for name, there in found.items() if there)


@cache
def processor() -> Processor:
    """This machine's."""
    import torch

    name, flags = flags_in(CPUINFO.read_text(encoding="utf-8")) if CPUINFO.is_file() else ("", _asked_of_torch())
    units = next((said for flag, said in UNITS.items() if flag in flags), "")
    used = bool(torch._C._has_mkldnn) and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return Processor(name or platform.processor() or platform.machine(), units, used)
