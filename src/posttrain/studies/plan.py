"""The cells of a study, and what makes each of them the same as one that has been run before.

A cell is one model x method x change x seed; its checkpoints are examined within it. The content hash covers everything
that goes into a cell: its configuration, the change, the model's weights and template, the bytes of every file that it
reads, and the version of the result format. A cell whose folder holds a result with the same hash is done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain import __version__
from posttrain.config.change import Change
from posttrain.errors import ConfigError, MissingError, Problem
from posttrain.studies.config import Every, MethodConfig, Study, safe_name

__all__ = ["RESULT_FORMAT", "Cell", "content_hash", "make_plan", "select"]

RESULT_FORMAT = 1
"""Raised when the meaning of a result changes, so that older results are made again."""


@dataclass(frozen=True)
class Cell:
    """One model x method x change x seed of a study."""

    model: str
    method: MethodConfig
    change: Change
    seed: int

    @property
    def folder(self) -> str:
        """`<model>--<method>--<change>--s<seed>`, safe for a file system."""
        parts = (safe_name(self.model), safe_name(self.method.label), safe_name(self.change.name), f"s{self.seed}")
        return "--".join(parts)

    def __str__(self) -> str:
        return f"{self.model} | {self.method.label} | {self.change.name} | seed {self.seed}"


def make_plan(study: Study, changes: Sequence[Change], base: Path) -> list[Cell]:
    """Every cell, all methods of one change together, so that an unfinished run already compares.

    Raises ConfigError when two cells would share a folder, MissingError when a file that a method reads is not there.
    """
    cells = [
        Cell(model, method, change, seed)
        for model in study.models
        for change in changes
        for seed in study.seeds
        for method in study.methods
    ]
    folders: dict[str, Cell] = {}
    for cell in cells:
        if cell.folder in folders:
            raise ConfigError(Problem("", f"'{cell}' and '{folders[cell.folder]}' share the folder {cell.folder}"))
        folders[cell.folder] = cell
    missing = {
        path: Problem("", f"method '{cell.method.label}' reads {path}, which is not there", f"looked in {base}")
        for cell in cells
        for path in cell.method.files(cell.change.name)
        if not (base / path).is_file()
    }
    if missing:
        raise MissingError(*missing.values())
    return cells


def select(cells: Sequence[Cell], *, only: Sequence[str] = (), changes: int | None = None) -> list[Cell]:
    """The cells of some methods (`--only`), and of the first so many changes (`--changes`)."""
    known = list(dict.fromkeys(cell.method.label for cell in cells))
    unknown = [name for name in only if name not in known]
    if unknown:
        raise ConfigError(*(Problem("--only", f"no method '{name}'", f"known: {', '.join(known)}") for name in unknown))
    names = list(dict.fromkeys(cell.change.name for cell in cells))[:changes]
    return [cell for cell in cells if cell.change.name in names and (not only or cell.method.label in only)]


def _bytes_hash(path: Path, seen: dict[Path, str]) -> str:
    if path not in seen:
        seen[path] = hashlib.sha256(path.read_bytes()).hexdigest()
    return seen[path]


def content_hash(
    cell: Cell,
    study: Study,
    fingerprints: Mapping[str, str],
    base: Path,
    seen: dict[Path, str],
    forbidden: frozenset[str],
) -> str:
    """sha256 (first 16 hex digits) of everything that goes into a cell.

    fingerprints: model name -> its weights' and template's fingerprint. seen: hashes of files already read.
    forbidden: prompts that no replay and no extra row may hold; they count for methods that have such rows.
    """
    every = study.checkpoints.every if isinstance(study.checkpoints, Every) else None
    parts = {
        "format": RESULT_FORMAT,
        "model": fingerprints[cell.model],
        "method": cell.method.model_dump(mode="json", exclude={"name"}),
        "change": cell.change.model_dump(mode="json"),
        "seed": cell.seed,
        "exams": study.exams,
        "every": every,
        "max_new_tokens": study.max_new_tokens,
        "keep": study.keep,
        "files": {path: _bytes_hash(base / path, seen) for path in sorted(cell.method.files(cell.change.name))},
        "forbidden": sorted(forbidden) if cell.method.brings_rows else [],
        "posttrain": ".".join(__version__.split(".")[:2]),
    }
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
