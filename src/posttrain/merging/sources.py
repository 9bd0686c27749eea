"""Where the numbers of a merge come from: rows of a model's tensors, as float32, without loading the model.

A tensor is read as a table: its first dimension are the rows, all others one row's numbers. A tensor of one dimension
is a single row.

    StoredModel    the safetensors files of a folder
    MemoryModel    tensors in memory
    WithChanges    a model and an adapter or edits on it (`terms.py`)
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from posttrain.errors import PosttrainError, Problem
from posttrain.models.tensors import SIZES, Stored, tensors_in, weight_files

__all__ = ["KINDS", "MemoryModel", "Source", "StoredModel", "numbers_of", "table_of"]

KINDS: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Types whose numbers are merged, by safetensors' names. All others must be the same in every model, and are copied."""


def table_of(shape: Sequence[int]) -> tuple[int, int]:
    """Return the rows and columns as which a tensor is read.

    >>> [table_of(shape) for shape in ((), (5,), (3, 4), (3, 2, 2))]
    [(1, 1), (1, 5), (3, 4), (3, 4)]
    """
    return (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape))


class Source(Protocol):
    """A model whose rows can be read by several threads at once."""

    @property
    def tensors(self) -> Mapping[str, Stored]:
        """The type and shape of every tensor, by name."""

    def rows(self, name: str, first: int, out: Tensor) -> None:
        """Read rows, from `first`, as many as `out` (rows, columns; float32) has, into it."""


class StoredModel:
    """The safetensors files of a folder. `close` closes them, at the latest when the model is no longer used.

    Raise PosttrainError for a folder without any and for damaged files, MissingError for one that the index names.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._where: dict[str, int] = {}
        self._tensors: dict[str, Stored] = {}
        self._local = threading.local()
        self._files: list[int] = []
        paths = weight_files(folder)
        if not paths:
            mend = "a folder with .safetensors files: posttrain model export writes one"
            raise PosttrainError(Problem(str(folder), "it has no weights in safetensors", mend))
        for path in paths:
            found = tensors_in(path)
            if double := sorted(self._tensors.keys() & found.keys()):
                cause = f"{double[0]} is in a second file, too"
                raise PosttrainError(Problem(str(path), cause, "delete what is left of an older model"))
            handle = os.open(path, os.O_RDONLY)
            self._files.append(handle)
            self._tensors |= found
            self._where |= dict.fromkeys(found, handle)
        self.close = weakref.finalize(self, _close, self._files)

    @property
    def tensors(self) -> Mapping[str, Stored]:
        """The type, shape and place of every tensor, by name."""
        return self._tensors

    def rows(self, name: str, first: int, out: Tensor) -> None:
        """Read rows into `out`, as float32."""
        stored = self._tensors[name]
        raw = self.raw(name, first * out.shape[1], out.numel())
        out.copy_(raw.view(KINDS[stored.dtype]).view(out.shape))

    def raw(self, name: str, first: int, count: int) -> Tensor:
        """Return the bytes of `count` numbers of a tensor from number `first` (uint8). They hold until the thread reads
        again.
        """
        stored = self._tensors[name]
        size = SIZES[stored.dtype]
        buffer = self._buffer(count * size)
        numbers: Any = buffer.numpy()
        view = memoryview(numbers)
        at, end = stored.start + first * size, stored.start + (first + count) * size
        while at < end:
            got = os.preadv(self._where[name], [view[len(view) - (end - at) :]], at)
            if not got:
                cause = f"it ends within {name}"
                raise PosttrainError(Problem(str(self.folder), cause, "the file was changed while it was read"))
            at += got
        return buffer

    def _buffer(self, size: int) -> Tensor:
        known: Any = getattr(self._local, "buffer", None)
        if known is None or known.numel() < size:
            known = self._local.buffer = torch.empty(size, dtype=torch.uint8)
        return known[:size]


def _close(files: list[int]) -> None:
    while files:
        os.close(files.pop())


class MemoryModel:
    """Tensors in memory, by name."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._held = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        names = {dtype: name for name, dtype in KINDS.items()}
        self._tensors = {name: Stored(names[one.dtype], tuple(one.shape)) for name, one in self._held.items()}

    @property
    def tensors(self) -> Mapping[str, Stored]:
        """The type and shape of every tensor, by name."""
        return self._tensors

    def rows(self, name: str, first: int, out: Tensor) -> None:
        """Read rows into `out`, as float32."""
        table = self._held[name].view(table_of(self._held[name].shape))
        out.copy_(table[first : first + len(out)])


def numbers_of(source: Source, name: str) -> Tensor:
    """Return a whole tensor, as float32 in its own shape."""
    shape = source.tensors[name].shape
    out = torch.empty(table_of(shape))
    source.rows(name, 0, out)
    return out.view(shape)
