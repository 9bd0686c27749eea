"""Read the header of a GGUF file: its tensors and their sizes, without the weights and without any package.

Layout (ggml-org/ggml, docs/gguf.md): the word GGUF, a version, counts of tensors and of key-value pairs, the pairs, the
tensors' names, shapes, types and offsets, then their data from the next multiple of `general.alignment`. Numbers are
little-endian; a string is a 64-bit length followed by UTF-8.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.errors import MissingError, PosttrainError, Problem

__all__ = ["SUFFIX", "GgufHeader", "GgufTensor", "is_gguf", "read_header"]

SUFFIX = ".gguf"
VERSIONS = (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Maps the GGUF numbers of types with one value to `struct` letters; 8 is a string, 9 an array."""
STRING, ARRAY = 8, 9
LIMIT = 1 << 32
"""Largest length of a string or an array, so that a broken length does not allocate all memory."""
COPY = "copy the file again"


class GgufTensor(NamedTuple):
    """One tensor: its name, its shape in torch's order, the number of its ggml type, and its offset in bytes."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int

    @property
    def elements(self) -> int:
        return prod(self.shape)


class GgufHeader(NamedTuple):
    """Everything that precedes the weights in a file. `fields` holds numbers and strings by key, and for an array only
    its length. `data_start` is the position of the data in bytes.
    """

    path: Path
    fields: dict[str, Any]
    tensors: tuple[GgufTensor, ...]
    data_start: int

    @property
    def architecture(self) -> str:
        return str(self.fields["general.architecture"])

    @property
    def parameters(self) -> int:
        """Number of parameters in all tensors, without the tables of rotary factors."""
        return sum(t.elements for t in self.tensors if not t.name.startswith("rope_"))

    @property
    def kind(self) -> int:
        """Number of the ggml type that holds most parameters."""
        held: Counter[int] = Counter()
        for tensor in self.tensors:
            held[tensor.kind] += tensor.elements
        return held.most_common(1)[0][0]

    @property
    def stops(self) -> tuple[int, ...]:
        """Ids of the tokens that end an answer: the end of text, and the end of a turn if it is another token."""
        keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
        return tuple(dict.fromkeys(int(self.fields[key]) for key in keys if key in self.fields))

    @property
    def positions(self) -> int | None:
        found = self.fields.get(f"{self.architecture}.context_length")
        return int(found) if found is not None else None


def is_gguf(name: str | Path) -> bool:
    """Return whether `name` is the path of an existing GGUF file."""
    path = Path(name)
    return path.suffix.lower() == SUFFIX and path.is_file()


def read_header(path: Path) -> GgufHeader:
    """Return the header of a file. Raise MissingError if the file cannot be read, and PosttrainError if it is broken or
    cut short.
    """
    location = str(path)
    try:
        with path.open("rb") as file:
            if path.stat().st_size < 24:
                raise PosttrainError(Problem(location, "is too short to be a GGUF file", COPY))
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                return _read(path, view)
    except OSError as error:
        cause = f"cannot be read: {error.strerror}"
        raise MissingError(Problem(location, cause, "give a file that is there")) from error
    except (struct.error, _Cut) as error:
        raise PosttrainError(Problem(location, "is cut short: it ends within its header", COPY)) from error
    except (UnicodeDecodeError, KeyError) as error:
        raise PosttrainError(Problem(location, f"has a broken header ({error})", COPY)) from error


class _Cut(Exception):
    """Raised when a length points beyond the end of the file."""


class _Cursor:
    """A reader that takes values one after the other."""

    def __init__(self, view: mmap.mmap, at: int) -> None:
        self.view, self.at = view, at

    def one(self, letter: str) -> Any:
        (value,) = struct.unpack_from(f"<{letter}", self.view, self.at)
        self.at += struct.calcsize(f"<{letter}")
        return value

    def length(self) -> int:
        found = int(self.one("Q"))
        if found > min(LIMIT, len(self.view)):
            raise _Cut
        return found

    def string(self) -> str:
        length = self.length()
        if self.at + length > len(self.view):
            raise _Cut
        text = self.view[self.at : self.at + length].decode("utf-8")
        self.at += length
        return text

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.one(SCALARS[kind])
        inner, length = self.one("I"), self.length()
        if inner in SCALARS:
            self.at += length * struct.calcsize(f"<{SCALARS[inner]}")
            return length
        for _ in range(length):
            if inner == STRING:
                skipped = self.length()  # this moves `at` too
                self.at += skipped
            else:
                self.value(inner)
        return length


def _read(path: Path, view: mmap.mmap) -> GgufHeader:
    location = str(path)
    if view[:4] != b"GGUF":
        raise PosttrainError(Problem(location, "is not a GGUF file: it does not begin with the word GGUF", COPY))
    cursor = _Cursor(view, 4)
    version = cursor.one("I")
    if version not in VERSIONS:
        cause = "is stored big-endian" if version >> 16 else f"is of GGUF version {version}"
        mend = f"versions {VERSIONS[0]} and {VERSIONS[1]}, little-endian, are read"
        raise PosttrainError(Problem(location, cause, mend))
    tensor_count, pairs = cursor.length(), cursor.length()
    fields: dict[str, Any] = {}
    for _ in range(pairs):
        key = cursor.string()
        fields[key] = cursor.value(cursor.one("I"))
    tensors = []
    for _ in range(tensor_count):
        name = cursor.string()
        shape = tuple(cursor.one("Q") for _ in range(cursor.one("I")))
        tensors.append(GgufTensor(name, shape[::-1], cursor.one("I"), cursor.one("Q")))
    if "general.architecture" not in fields or not tensors:
        cause = "holds no model: no weights, or no general.architecture"
        raise PosttrainError(Problem(location, cause, "take a file that holds a language model"))
    if int(fields.get("split.count", 1)) > 1:
        cause = f"is one of {fields['split.count']} parts of a model"
        raise PosttrainError(Problem(location, cause, "join the parts with llama.cpp's llama-gguf-split --merge"))
    align = int(fields.get("general.alignment", 32))
    return GgufHeader(path, fields, tuple(tensors), -(-cursor.at // align) * align)
