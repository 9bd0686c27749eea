"""Read the headers of safetensors files without the numbers, and find the precision in which a model is stored."""

from __future__ import annotations

import json
import struct
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, Unpack

from posttrain.errors import MissingError, PosttrainError, Problem
from posttrain.models.gguf_header import is_gguf
from posttrain.models.load import Source, adapter_base, config_of
from posttrain.models.names import resolve

__all__ = ["DTYPES", "Stored", "stored_dtype", "tensors_in", "weight_files"]

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
SIZES |= {"F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8}
"""Size of a number in bytes, by safetensors' name of its type. Types smaller than a byte are missing here, and their
sizes are not checked.
"""
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Maps safetensors' names of the precisions for training and inference to torch's names."""
MOST = 100 << 20
"""Largest size in bytes of a header that safetensors accepts."""


class Stored(NamedTuple):
    """One tensor of a file. start: of its numbers, in bytes from the file's beginning."""

    dtype: str
    shape: tuple[int, ...]
    start: int = 0


def tensors_in(path: Path) -> dict[str, Stored]:
    """Return the type, shape and place of every tensor of a safetensors file, by name. Raise PosttrainError if the
    header cannot be read, or if the file does not have the length that the header states (a copy that was cut short).
    """

    def wrong(cause: str) -> PosttrainError:
        return PosttrainError(Problem(str(path), cause, "copy the file again"))

    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else MOST + 1
        if length > min(MOST, size - 8):
            raise wrong("is not a whole safetensors file: its header is longer than the file")
        try:
            header: dict[str, Any] = json.loads(file.read(length).decode("utf-8"))
            header.pop("__metadata__", None)
            found = {
                name: Stored(str(t["dtype"]), tuple(map(int, t["shape"])), 8 + length + int(t["data_offsets"][0]))
                for name, t in header.items()
            }
            extents = sorted((int(t["data_offsets"][0]), int(t["data_offsets"][1]), name) for name, t in header.items())
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise wrong(f"its safetensors header cannot be read: {type(error).__name__}") from error
    end = 0
    for first, last, name in extents:
        one = found[name]
        promised = SIZES[one.dtype] * prod(one.shape) if one.dtype in SIZES else last - first
        if first != end or last - first != promised:
            raise wrong(f"the header is wrong about {name}: {last - first} bytes for {one.dtype} {list(one.shape)}")
        end = last
    if 8 + length + end != size:
        raise wrong(f"is {size:,} bytes long, and {8 + length + end:,} by its header")
    return found


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model or adapter folder."""
    return sorted(path for path in folder.glob("*.safetensors") if path.name != "training_state.safetensors")


def stored_dtype(name: str, **how: Unpack[Source]) -> str | None:
    """Return the precision in which most of a model's numbers are stored; for an adapter that of its base. Return None
    if a model cannot be trained in it (a quantised file), or if it is not known.
    """
    folder = Path(resolve(name))
    if is_gguf(folder):
        return None
    if (base := adapter_base(folder)) is not None:
        try:
            return stored_dtype(base, **how)
        except MissingError:  # loading the model reports where the base should be
            return None
    counts: Counter[str] = Counter()
    for path in weight_files(folder) if folder.is_dir() else []:
        for one in tensors_in(path).values():
            counts[one.dtype] += prod(one.shape)
    if counts:
        return DTYPES.get(counts.most_common(1)[0][0])
    try:
        said = config_of(name, **how).dtype
    except (OSError, ValueError):
        return None
    text = str(said).removeprefix("torch.")
    return text if text in DTYPES.values() else None
