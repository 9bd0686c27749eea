"""What the processor can do in bfloat16: asked, not guessed.

A processor with matrix units (AMX) or with bfloat16 dot products (AVX512-BF16, Arm's BF16) multiplies matrices two to
ten times as fast in bfloat16 as in float32. One without them emulates bfloat16 and is slower. What counts is what the
processor has and oneDNN, which does torch's multiplications, knows how to use: both are asked.
"""

from __future__ import annotations

import os
import platform
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

__all__ = ["Processor", "flags_in", "processor", "wait_politely"]

CPUINFO = Path("/proc/cpuinfo")
UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "bf16": "Arm BF16"}
"""Flags of /proc/cpuinfo that say how bfloat16 is multiplied, the fastest first, and what people call them. (Arm's
kernel writes `bf16`; on x86 no flag is called so.)"""


LOAD = Path("/proc/loadavg")
BRIEFLY, LONGER = "1000", "20000"
"""Rounds that an idle thread of OpenMP looks for work before it sleeps: a few microseconds, about a hundred."""


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


def wait_politely() -> None:
    """How idle threads of OpenMP wait, unless the environment says otherwise. Call it before torch is imported.

    By default they spin: beside any other busy program a small model's steps became 30 times slower (2 cores, 5 M
    parameters: 0.6 s and 18 s a cell). Here they sleep, after a moment of looking for work. On a quiet machine
    the moment is longer, which answers an exam in 3.6 s where it took 4.8; beside two busy programs that would take
    16 s and not 7, so it is asked whether anything else runs.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", LONGER if _quiet() else BRIEFLY)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _quiet() -> bool:
    """Whether no other thread of this machine runs now: looked at three times, 5 ms apart; False where Linux does not
    say it."""
    for look in range(3):
        if look:
            time.sleep(0.005)
        try:
            running = LOAD.read_text(encoding="ascii").split()[3].partition("/")[0]
        except (OSError, IndexError):
            return False
        if running != "1":  # this one
            return False
    return True
