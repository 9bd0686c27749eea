"""Find out whether the processor computes fast in bfloat16.

A processor with matrix units (AMX) or with bfloat16 dot products (AVX512-BF16, Arm's BF16) multiplies matrices two to
ten times as fast in bfloat16 as in float32; one without them is slower. Two things are checked: the processor must have
the units, and oneDNN, which multiplies matrices for torch, must be able to use them.
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
"""Maps flags of /proc/cpuinfo to the common name of the unit that multiplies bfloat16, fastest first. `bf16` is Arm's
flag.
"""
LOAD = Path("/proc/loadavg")
BRIEFLY, LONGER = "1000", "20000"
"""Rounds that an idle thread of OpenMP spins before it sleeps: a few microseconds, or about a hundred."""


class Processor(NamedTuple):
    """The processor and its support for bfloat16. `name` is the name that the system reports. `units` is the unit that
    multiplies bfloat16, or "". `bf16_used` says whether torch uses it.
    """

    name: str
    units: str
    bf16_used: bool

    @property
    def fast_bf16(self) -> bool:
        """Whether bfloat16 is faster than float32."""
        return bool(self.units) and self.bf16_used

    @property
    def reason(self) -> str:
        """Why bfloat16 is used or not, as a clause."""
        if not self.units:
            return "the processor has neither AMX nor AVX512-BF16"
        return f"the processor has {self.units}" + ("" if self.bf16_used else ", but this torch does not use it")

    def __str__(self) -> str:
        return f"{self.name}: bfloat16 by {self.units}" if self.fast_bf16 else f"{self.name}: no fast bfloat16"


def flags_in(text: str) -> tuple[str, frozenset[str]]:
    """Return (name, flags) of the first processor in the text of /proc/cpuinfo. Arm calls its flags Features and has no
    name.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip(), value.strip())
    return found.get("model name", ""), frozenset((found.get("flags") or found.get("Features") or "").split())


@cache
def processor() -> Processor:
    """Return the processor of this machine."""
    import torch

    if CPUINFO.is_file():
        name, flags = flags_in(CPUINFO.read_text(encoding="utf-8"))
    else:  # macOS, Windows: torch detects the units
        found = {"amx_bf16": torch.cpu._is_amx_tile_supported(), "avx512_bf16": torch.cpu._is_avx512_bf16_supported()}
        name, flags = "", frozenset(flag for flag, there in found.items() if there)
    units = next((said for flag, said in UNITS.items() if flag in flags), "")
    used = bool(torch._C._has_mkldnn) and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return Processor(name or platform.processor() or platform.machine(), units, used)


def wait_politely() -> None:
    """Set how idle threads of OpenMP wait, unless the environment does. Call it before torch is imported.

    By default idle threads spin: next to another busy program the steps of a small model became 30 times slower. Here
    they sleep after spinning for a moment. That moment is longer on a quiet machine (an exam in 3.6 s instead of 4.8
    s). Next to two busy programs, the longer spinning would take 16 s instead of 7 s, so the number of running threads
    is checked first.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", LONGER if _quiet() else BRIEFLY)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _quiet() -> bool:
    """Return whether no other thread of this machine runs now. The number is read three times, 5 ms apart. Return False
    if it is not known."""
    for look in range(3):
        if look:
            time.sleep(0.005)
        try:
            running = LOAD.read_text(encoding="ascii").split()[3].partition("/")[0]
        except (OSError, IndexError):
            return False
        if running != "1":  # 1 is this thread
            return False
    return True
