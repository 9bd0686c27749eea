"""The files of a merged model: laid out before anything is computed, and written in place.

Every tensor has its final place in a .safetensors file from the start, so threads write in any order, nothing waits in
memory, and a merge that was stopped goes on with the tensors that are missing.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple

from posttrain.models.tensors import SIZES, Stored

__all__ = ["SHARD", "File", "Layout", "Slot", "create", "lay_out", "write_index"]

SHARD = 5 * 10**9
"""Largest size of a file in bytes, as in transformers' save_pretrained; a larger tensor has a file of its own."""
ALIGN = 8
"""The numbers begin at a multiple of so many bytes."""


class Slot(NamedTuple):
    """Where a tensor is written. file: index of its file; start: of its numbers, in bytes from the file's beginning."""

    file: int
    start: int
    size: int


class File(NamedTuple):
    """One file: its name, its header with the length before it, and its length in bytes."""

    name: str
    header: bytes
    size: int


class Layout(NamedTuple):
    """The files of a model and the place of each tensor in them."""

    files: tuple[File, ...]
    slots: Mapping[str, Slot]

    @property
    def size(self) -> int:
        """The number of bytes of all files."""
        return sum(file.size for file in self.files)


def lay_out(tensors: Mapping[str, Stored], shard: int = SHARD) -> Layout:
    """Return the layout of tensors (types and shapes by name) in their order. shard: bytes of a file, at most."""
    groups: list[list[str]] = [[]]
    used = 0
    for name, one in tensors.items():
        size = _size(one)
        if groups[-1] and used + size > shard:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    files: list[File] = []
    slots: dict[str, Slot] = {}
    for number, names in enumerate(groups):
        header, places, size = _header({name: tensors[name] for name in names})
        plain = len(groups) == 1
        title = "model.safetensors" if plain else f"model-{number + 1:05d}-of-{len(groups):05d}.safetensors"
        files.append(File(title, header, size))
        slots |= {name: Slot(number, start, _size(tensors[name])) for name, start in places.items()}
    return Layout(tuple(files), slots)


def _size(one: Stored) -> int:
    return SIZES[one.dtype] * prod(one.shape)


def _header(tensors: Mapping[str, Stored]) -> tuple[bytes, dict[str, int], int]:
    """Return the beginning of a file, where each tensor's numbers begin in it, and its length."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    # Larger types first, as safetensors does it: else a tensor behind odd bytes could not be read in place.
    for name, one in sorted(tensors.items(), key=lambda item: -SIZES[item[1].dtype]):
        size = _size(one)
        entries[name] = {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-(8 + len(text)) % ALIGN)
    begin = 8 + len(text)
    places = {name: begin + entry["data_offsets"][0] for name, entry in entries.items() if name in tensors}  # type: ignore[index]
    return struct.pack("<Q", len(text)) + text, places, begin + at


def create(layout: Layout, folder: Path) -> None:
    """Make the files with their headers and final lengths. Raise OSError if the disk has no room for them."""
    for file in layout.files:
        path = folder / file.name
        with path.open("wb") as handle:
            handle.write(file.header)
            handle.flush()
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle.fileno(), 0, file.size)
            else:
                handle.truncate(file.size)


def write_index(layout: Layout, folder: Path, order: Sequence[str]) -> None:
    """Write the list of which tensor is in which file, where there are several files."""
    if len(layout.files) == 1:
        return
    where = {name: layout.files[layout.slots[name].file].name for name in order}
    total = sum(slot.size for slot in layout.slots.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2, ensure_ascii=False) + "\n"
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8", newline="\n")
