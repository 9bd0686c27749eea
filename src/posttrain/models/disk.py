"""Writing to a disk that may be full: what is said, what is kept, what is removed.

The same trouble has many names: OSError of Python's own files, SafetensorError of safetensors, a bare Exception of
tokenizers, and a RuntimeError of torch, which says neither the file nor the reason.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from posttrain.errors import DiskError, Problem

__all__ = [
    "append",
    "as_umask_says",
    "disk_problem",
    "safe_name",
    "starting_anew",
    "whole_file",
    "whole_folder",
    "write_whole",
    "writing",
]

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""No space, the user's share of it used up, a limit on the size of files, a broken disk."""
LITTLE = 1 << 20
"""Bytes that are free on a disk that counts as full."""
_BINARY: int = vars(os).get("O_BINARY", 0)
"""Windows would write other line ends."""
MEND = "free some space, or choose another place; what was there before is kept, and the same command goes on from it"
ANEW = "free some space, or choose another place; nothing half-written is left, and the same command starts anew"

_anew: ContextVar[bool] = ContextVar("anew", default=False)


def safe_name(name: str) -> str:
    """A name as a part of a folder name: `pocket:chat` -> `pocket-chat`, `Qwen/Qwen3-8B` -> `Qwen-Qwen3-8B`.

    Letters and digits of any script, `.`, `_` and `+` are kept; never `--`, which parts the names in a cell's folder.
    """
    return re.sub(r"-+", "-", re.sub(r"[^\w.+-]", "-", name)).strip("-.") or "x"


@contextmanager
def starting_anew() -> Iterator[None]:
    """While this lasts, what is written is no part of a work that goes on where it was."""
    before = _anew.set(True)
    try:
        yield
    finally:
        _anew.reset(before)


def disk_problem(error: BaseException, place: Path | str) -> Problem | None:
    """What to say of an error if it is the disk's refusal to take more; None of any other error."""
    reason = _reason(error, place)
    mend = ANEW if _anew.get() else MEND
    return Problem(str(place), f"cannot be written: {reason}", mend) if reason is not None else None


def _reason(error: BaseException, place: Path | str) -> str | None:
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in FULL else None
    text = str(error)
    if found := re.search(r"\(os error (\d+)\)", text):  # of code in Rust: safetensors, tokenizers
        return os.strerror(int(found[1])) if int(found[1]) in FULL else None
    if isinstance(error, RuntimeError) and ("inline_container" in text or "PytorchStreamWriter" in text):
        full = _free(Path(place)) < LITTLE
        return os.strerror(errno.ENOSPC) if full else "PyTorch could not write the file to its end (is the disk full?)"
    return None


def _free(place: Path) -> int:
    """Bytes that are free where a path is, or would be."""
    there = next((path for path in (place, *place.absolute().parents) if path.exists()), Path())
    return shutil.disk_usage(there).free


@contextmanager
def writing(place: Path, *remove: Path) -> Iterator[None]:
    """DiskError in place of every name that a full disk goes by; when the block fails, whyever, the half-written files
    and folders `remove` go.

    place: what is written, for the message.
    """
    try:
        yield
    except BaseException as error:
        problem = disk_problem(error, place)  # asked while the disk is as full as it was
        for path in remove:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        if problem is None:
            raise
        raise DiskError(problem) from error


def as_umask_says(*paths: Path) -> None:
    """Give files, and those in folders, the permissions of any file that this user makes: safetensors writes its own
    readable by nobody else, whatever the umask. Where permissions are otherwise kept (Windows), nothing is done.
    """
    if sys.platform == "win32":
        return
    mask = os.umask(0o077)  # it cannot be read without being set
    os.umask(mask)
    for path in paths:
        for file in (one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]:
            file.chmod(0o666 & ~mask)


@contextmanager
def whole_file(path: Path, *, flush: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path`. When the block ends well, what it wrote there takes the place of `path` as a
    whole; else nothing of it is left, and `path` is what it was. A reader sees the old file or the new one, also after
    a full disk (DiskError) or a kill.

    flush: ask the disk to keep the file before it gets its name.
    """
    temporary = path.with_name(f".tmp-{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path, temporary):
        yield temporary
        as_umask_says(temporary)
        if flush:
            _flush(temporary)
        temporary.replace(path)


@contextmanager
def whole_folder(folder: Path, *, main: bool = True, flush: bool = False) -> Iterator[Path]:
    """The same for a folder: give a temporary one to write into, which then takes the place of `folder`.

    main: False on the other processes of a distributed run, which write beside the main one and rename nothing; flush:
    ask the disk to keep every file and the lists of names.
    """
    temporary, old = folder.with_name(f".tmp-{folder.name}"), folder.with_name(f".tmp-old-{folder.name}")
    if not main:
        yield temporary
        return
    _come_back(old, folder)  # of a process that was killed between two names
    try:
        with writing(folder, temporary):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            as_umask_says(temporary)
            if flush:
                for path in (*temporary.rglob("*"), temporary):
                    _flush(path)
            if folder.exists():
                folder.rename(old)
            temporary.rename(folder)
            if flush:
                _flush(folder.parent)
    finally:
        _come_back(old, folder)
        shutil.rmtree(old, ignore_errors=True)


def _come_back(old: Path, folder: Path) -> None:
    if old.exists() and not folder.exists():
        old.rename(folder)


def _flush(path: Path) -> None:
    """Ask the disk to keep a file, or the names in a folder. Windows opens no folders, and keeps names itself."""
    if path.is_dir() and sys.platform == "win32":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, text: str | bytes, *, flush: bool = False) -> None:
    """Replace a file as a whole; see `whole_file`."""
    with whole_file(path, flush=flush) as temporary:
        temporary.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))


def append(path: Path, text: str) -> None:
    """Add whole lines to a file: all of them, or none where the disk is full."""
    with writing(path):
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _BINARY, 0o666)
        try:
            before = os.fstat(handle)
            left = memoryview(text.encode("utf-8"))
            try:
                while left:
                    left = left[os.write(handle, left) :]
            except OSError:
                if stat.S_ISREG(before.st_mode):  # a pipe or a device cannot be shortened
                    os.ftruncate(handle, before.st_size)
                raise
        finally:
            os.close(handle)
