"""Guess the encoding or kind of a file that is not UTF-8, and say what to do."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from posttrain.errors import shell_word as quote

__all__ = ["Guess", "guess", "wide_of"]

COMMON = {"Big5": ("cp950", range(0xA4, 0xC7)), "GB18030": ("gb18030", range(0xB0, 0xD8))}
"""Encoding -> (Python's codec, the lead bytes of its 5,400 (Big5) or 3,755 (GB) most common characters)."""
SIGNS = range(0xA1, 0xA4)
"""The lead bytes of punctuation and full-width forms in both encodings."""
MAGIC = {
    b"PAR1": ("not UTF-8 but a Parquet file", "call it .parquet"),
    b"\x1f\x8b": ("not UTF-8 but compressed by gzip", "end its name in .gz"),
    b"PK\x03\x04": ("not UTF-8 but an Excel or ZIP file", "save the table as CSV UTF-8"),
}
"""First bytes of other kinds of files -> cause and mend."""
READ = 200_000
"""The number of bytes that are examined."""
CLEAR = 0.8
"""The least share of common characters at which an encoding is likely."""


class Guess(NamedTuple):
    """A guess about a file that is not UTF-8. cause: what the file seems to be; mend: what to do."""

    cause: str
    mend: str


def guess(data: bytes, name: str) -> Guess:
    """Guess what the bytes of a file are that do not decode as UTF-8. name: of the file."""
    for start in MAGIC:
        if data.startswith(start):
            return Guess(*MAGIC[start])
    wide = wide_of(data)
    if wide:
        return Guess(f"not UTF-8 but {wide}", f"save it as UTF-8: {_converted(wide, name)}")
    chinese = _chinese(data[:READ])
    if chinese:
        told = " or ".join(chinese)
        excel = "in Excel, 'CSV UTF-8'; or: " if name.lower().endswith((".csv", ".tsv", ".txt")) else ""
        codec = chinese[0].upper()
        return Guess(f"not UTF-8; it looks like {told}", f"save it as UTF-8 ({excel}{_converted(codec, name)})")
    return Guess("not UTF-8", "save the file as UTF-8")


def _converted(codec: str, name: str) -> str:
    """Return the command that writes a UTF-8 copy into the file's folder. The copy keeps the file's ending, as it says
    how the file is read."""
    path = Path(name)
    packed = path.suffix.lower() == ".gz"
    bare = path.with_suffix("") if packed else path
    to = quote(str(bare.with_name(f"{bare.stem}.utf8{bare.suffix}")))
    if packed:
        return f"gzip -dc {quote(name)} | iconv -f {codec} -t UTF-8 > {to}"
    return f"iconv -f {codec} -t UTF-8 {quote(name)} > {to}"


def wide_of(data: bytes) -> str:
    """Return the name of a UTF-16 or UTF-32 encoding, or "" for other bytes. It is recognised by a byte order mark, or
    by zeros in most of every second byte at the beginning.
    """
    marks = {b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
    found = next((name for mark, name in marks.items() if data.startswith(mark)), "")
    head = data[:200]
    if not found and len(head) >= 4:
        if head[1::2].count(0) * 2 > len(head[1::2]) and 0 not in head[::2]:
            return "UTF-16LE"
        if head[::2].count(0) * 2 > len(head[::2]) and 0 not in head[1::2]:
            return "UTF-16BE"
    return found


def _chinese(data: bytes) -> list[str]:
    """Return the Chinese encodings that the bytes may have, the likeliest first; empty when neither is likely."""
    shares = {}
    for name, (codec, common) in COMMON.items():
        text = data.decode(codec, errors="ignore")
        try:
            data[: data.rfind(b"\n") + 1 or len(data)].decode(codec)
        except UnicodeDecodeError:
            continue
        wide = [c.encode(codec) for c in text if ord(c) > 127]
        letters = [pair for pair in wide if len(pair) == 2 and pair[0] not in SIGNS]
        if letters:
            shares[name] = sum(pair[0] in common for pair in letters) / len(letters)
    likely = sorted((name for name, share in shares.items() if share >= CLEAR), key=lambda name: -shares[name])
    if len(likely) == 2 and shares[likely[0]] - shares[likely[1]] > 0.1:
        return likely[:1]
    return likely
