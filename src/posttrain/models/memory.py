"""Measure the peak memory of a block of work, and return memory to the system after it.

On a GPU this is the allocator's peak; on a CPU it is the resident set of the process. Linux keeps the peak (`VmHWM`)
and resets it on request (`echo 5 > /proc/self/clear_refs`, proc(5)). On other systems, and where that is forbidden, a
thread reads the resident set twenty times a second.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
import re
import sys
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "Peak",
    "activation_bytes",
    "few_kernels",
    "give_back",
    "is_large",
    "large_blocks_go_back",
    "mapped",
    "peak_gib",
    "peak_memory",
    "set_aside",
    "trim",
]

STATUS = Path("/proc/self/status")
MAPPINGS = Path("/proc/self/smaps")
CLEAR = Path("/proc/self/clear_refs")
MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+)")
EVERY_S = 0.05
"""Seconds between two readings by the thread."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, MADV_DONTNEED = -1, -3, 4
"""Parameters of mallopt, from malloc.h, and of madvise, from mman.h."""
LARGE_BLOCK = 8 * 2**20
"""Size in bytes from which the system gets a freed block back at once. Smaller blocks stay in the heap: getting fresh
pages can take as long as the product that fills them.
"""
KERNELS = 128
"""How many compiled products oneDNN keeps; each takes about 1 MB, and every shape needs some. With oneDNN's default of
1,024 the process grew by 50 MB a step (SmolLM2-135M, 25 new shapes in a micro batch).
"""
LARGE_MODEL = 50_000_000
"""Number of parameters from which saving memory is worth the time that it takes."""


@dataclass(eq=False)
class Peak:
    """Peak memory of a block in GiB, including blocks inside it. `kept` is True if the system keeps the peak, and False
    if a thread measures it.
    """

    kept: bool
    high: float = 0.0

    @property
    def gib(self) -> float:
        """The peak in GiB so far, or of the whole block after its end."""
        return max(self.high, _kept() if self.kept else _resident()) if self in _open else self.high


_open: list[Peak] = []
"""Blocks that are measured now, the innermost last."""


@contextlib.contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure the peak memory of the block."""
    for outer in _open:
        outer.high = outer.gib
    own = Peak(_reset())
    with contextlib.nullcontext() if own.kept else _looking(own):
        _open.append(own)
        try:
            yield own
        finally:
            own.high = own.gib
            _open.remove(own)
            for outer in _open:
                outer.high = max(outer.high, own.high)


def peak_gib() -> float:
    """Return the peak in GiB of the innermost block that is measured now, or of the process if there is none."""
    return _open[-1].gib if _open else _kept()


def give_back() -> None:
    """Collect garbage, and return the allocator's free memory to the system: glibc keeps freed blocks for later."""
    gc.collect()
    if "torch" in sys.modules and (cuda := sys.modules["torch"].cuda).is_available():
        cuda.empty_cache()
    trim()


def activation_bytes(model: Any) -> int:
    """Return an estimate of how many bytes training keeps for each token until the backward pass, in float32.

    It counts inputs and outputs of every matrix of the blocks, and half as much again for norms, attention and
    activation functions (1.6 MB for SmolLM2-135M, as measured).
    """
    from torch import nn

    ends = [*(m for m in model.modules() if isinstance(m, nn.Embedding)), model.get_output_embeddings()]
    left_out = {id(m.weight) for m in ends if m is not None}
    sizes = [sum(p.shape) for p in model.parameters() if p.dim() == 2 and id(p) not in left_out]
    return int(sum(sizes) * 1.5 * 4)


def is_large(model: Any) -> bool:
    """Return whether saving memory is worth the time with this model."""
    return sum(p.numel() for p in model.parameters()) >= LARGE_MODEL


def large_blocks_go_back() -> None:
    """Make glibc return each freed block of `LARGE_BLOCK` bytes or more to the system at once, from now on.

    Memory that is free now is returned too.

    By default glibc keeps blocks of up to 32 MiB in its heap, and tensors of slightly different sizes fragment it:
    training SmolLM2-135M grew from 1.6 to 2.7 GiB within three steps. Fresh pages cost time in the kernel (mallopt(3),
    M_MMAP_THRESHOLD): a step took 1.05 s with blocks of 1 MiB, and 0.78 s with 8 MiB (docs/notes.md).
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # musl has no mallopt, and keeps no large blocks
            libc = ctypes.CDLL(None)
            libc.mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)
            libc.mallopt(M_TRIM_THRESHOLD, 8 * LARGE_BLOCK)
    trim()


def few_kernels() -> None:
    """Let oneDNN keep `KERNELS` compiled products, unless the environment says otherwise. Call it before computing."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS))


def trim() -> None:
    """Return the allocator's free pages to the system."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # musl has no malloc_trim, and does not keep blocks so long
            ctypes.CDLL(None).malloc_trim(0)


def mapped() -> list[tuple[int, int]]:
    """Return (start, end) addresses, in order, of files that are mapped into memory and have no page written to. The
    condition is `Anonymous: 0 kB` (proc(5)). The list is empty on systems other than Linux.
    """
    found: list[tuple[int, int]] = []
    start = end = 0
    text = MAPPINGS.read_text(encoding="utf-8", errors="replace") if MAPPINGS.is_file() else ""
    for line in text.splitlines():
        if header := MAPPING.match(line):  # first line of a mapping; a mapping with an inode other than 0 has a file
            start, end = (int(header[1], 16), int(header[2], 16)) if header[3] != "0" else (0, 0)
        elif end and line.startswith("Anonymous:") and line.split()[1] == "0":
            found.append((start, end))
    return found


def set_aside(tensors: Iterable[Any], files: Sequence[tuple[int, int]] | None = None) -> None:
    """Free the memory of weights that are not read for some time.

    This works for weights in a file that safetensors maps; the system reads them again when they are needed. Weights
    that have changed in memory are kept. `files` is the result of `mapped()`; pass it to share it among many calls.
    """
    files = mapped() if files is None else files
    page = mmap.PAGESIZE
    for tensor in tensors:
        start = -(-tensor.data_ptr() // page) * page
        size = (tensor.data_ptr() + tensor.nbytes) // page * page - start
        at = bisect_right(files, (start, sys.maxsize)) - 1
        if size > 0 and at >= 0 and start + size <= files[at][1]:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), MADV_DONTNEED)


def _gpu() -> Any:
    """Return `torch.cuda` if a GPU's allocator is in use, else None."""
    cuda = sys.modules["torch"].cuda if "torch" in sys.modules else None
    return cuda if cuda is not None and cuda.is_available() and cuda.max_memory_allocated() > 0 else None


def _kept() -> float:
    """Return the peak in GiB since the last reset: of the GPU's allocator if one is in use, else of the process."""
    if (gpu := _gpu()) is not None:
        return float(gpu.max_memory_allocated() / 2**30)
    if STATUS.is_file():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**20  # KiB
    return _resident()


def _reset() -> bool:
    """Reset the peak. Return False if the system cannot."""
    if (gpu := _gpu()) is not None:
        gpu.reset_peak_memory_stats()
        return True
    try:
        CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _resident() -> float:
    """Return the resident set of the process now, in GiB."""
    import psutil  # a requirement of accelerate

    return float(psutil.Process().memory_info().rss) / 2**30


@contextlib.contextmanager
def _looking(peak: Peak) -> Iterator[None]:
    """Let a thread read the resident set into `peak` while the block runs."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(EVERY_S):
            peak.high = max(peak.high, _resident())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
