"""The cells of a study, and what makes each of them the same as one that has been run before.

A cell is one model x method x change x seed; its checkpoints are examined within it. The training hash covers all that
goes into the trained weights: the method's settings, the change, the model's weights and template, the bytes of every
file that the method reads. The content hash covers the exams besides. A cell whose folder holds a result with the same
content hash is done; one with the same training hash keeps what training has left there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain import __version__
from posttrain.config.change import Change
from posttrain.config.load import mend_of
from posttrain.errors import ConfigError, MissingError, Problem
from posttrain.models.gguf_header import is_gguf
from posttrain.studies.config import MethodConfig, StageConfig, Study, safe_name

__all__ = ["RESULT_FORMAT", "Cell", "content_hash", "find_model", "make_plan", "select", "training_hash"]

RESULT_FORMAT = 3
"""Raised when the meaning of a result changes, so that older results are made again."""

LATER = {"precision": "auto", "save_dtype": "auto"}
"""Settings of methods that there were not always, and what holds without them: cells of before stay done."""


@dataclass(frozen=True)
class Cell:
    """One model x method x change x seed of a study; change: None in a study without changes; stages: the study's,
    where the method learns them.
    """

    model: str
    method: MethodConfig
    change: Change | None
    seed: int
    stages: tuple[StageConfig, ...] = ()

    @property
    def change_name(self) -> str:
        """The change's name, or empty."""
        return self.change.name if self.change is not None else ""

    @property
    def files(self) -> list[str]:
        """Paths of the files that it reads."""
        return self.method.files(self.change_name) + [path for stage in self.stages for path in stage.files()]

    def barred(self, base: Path, forbidden: frozenset[str]) -> list[str]:
        """What the exams' prompts keep out of its rows."""
        own = self.method.barred(self.change_name, base, forbidden)
        return own + (self.method.stages_barred(self.stages, base, forbidden) if self.stages else [])

    @property
    def folder(self) -> str:
        """`<model>--<method>--<change>--s<seed>`, safe for a file system; without the change where there is none."""
        names = [self.model, self.method.label, *([self.change_name] if self.change is not None else [])]
        return "--".join([*map(safe_name, names), f"s{self.seed}"])

    def __str__(self) -> str:
        names = [self.model, self.method.label, *([self.change_name] if self.change is not None else [])]
        return " | ".join([*names, f"seed {self.seed}"])


def make_plan(
    study: Study, changes: Sequence[Change], base: Path, *, location: Callable[[str, str], str] = lambda path, name: ""
) -> list[Cell]:
    """Every cell, all methods of one change together, so that an unfinished run already compares.

    location: where a path was written that is not there, the name of the cell's change filled in.
    Raises ConfigError when two cells would share a folder, MissingError when a file that a method reads is not there.
    """
    each: list[Change | None] = [*changes] if changes else [None]
    floor = floor_of(study)
    cells = [
        Cell(model, method, change, seed, study.stages if method.learns_stages else ())
        for model in study.models
        for change in each
        for seed in study.seeds
        for method in (*(floor if seed == study.seeds[0] else ()), *study.methods)
    ]
    folders: dict[str, Cell] = {}
    for cell in cells:
        if cell.folder in folders:
            raise ConfigError(Problem("", f"'{cell}' and '{folders[cell.folder]}' share the folder {cell.folder}"))
        folders[cell.folder] = cell
    nameless = {
        path: Problem(
            "", f"method '{cell.method.label}' reads {path}, but there are no changes", "name the file itself"
        )
        for cell in cells
        for path in cell.method.files("{change}" if cell.change is None else cell.change_name)
        if cell.change is None and "{change}" in path
    }
    if nameless:
        raise ConfigError(*nameless.values())
    missing = {
        path: Problem(
            location(path, cell.change_name),
            f"method '{cell.method.label}' reads {path}, which is not there",
            mend_of(base / path),
        )
        for cell in cells
        for path in cell.files
        if not (base / path).is_file()
    }
    if missing:
        raise MissingError(*missing.values())
    return cells


def floor_of(study: Study) -> tuple[MethodConfig, ...]:
    """The row of the noise floor, in a study with a change exam that does not give it itself."""
    given = any(method.kind == "noise_floor" for method in study.methods)
    if study.change_exam is None or study.noise_floor == "none" or given:
        return ()
    from posttrain.studies.methods.noise_floor import NoiseFloorConfig

    return (NoiseFloorConfig(arithmetic=study.noise_floor),)


def select(cells: Sequence[Cell], *, only: Sequence[str] = (), changes: int | None = None) -> list[Cell]:
    """The cells of some methods (`--only`; the noise floor stands beside any), and of the first so many changes
    (`--changes`).
    """
    known = list(dict.fromkeys(cell.method.label for cell in cells))
    unknown = [name for name in only if name not in known]
    if unknown:
        raise ConfigError(*(Problem("--only", f"no method '{name}'", f"known: {', '.join(known)}") for name in unknown))
    names = list(dict.fromkeys(cell.change_name for cell in cells))[:changes]
    return [
        cell
        for cell in cells
        if cell.change_name in names and (not only or cell.method.label in only or cell.method.kind == "noise_floor")
    ]


def _bytes_hash(path: Path, seen: dict[Path, str]) -> str:
    if path not in seen:
        seen[path] = hashlib.sha256(path.read_bytes()).hexdigest()
    return seen[path]


def find_model(name: str, base: Path) -> tuple[str, str]:
    """Where a study's model is, and what has to be said about it: a folder or a GGUF file is looked for beside the
    study file, as `posttrain train` does, then where the command runs; any other name is left to the hub and to pocket.
    """
    path = Path(name).expanduser()
    if name.startswith("pocket:") or path.is_absolute() or not name:
        return name, ""
    if (base / path).is_dir() or is_gguf(base / path):
        return str(base / path), ""
    if (path.is_dir() or is_gguf(path)) and base.resolve() != Path.cwd():
        return name, f"{name}: not beside the study file; taken from the folder where the command runs"
    return name, ""


def training_hash(
    cell: Cell, fingerprints: Mapping[str, str], base: Path, seen: dict[Path, str], forbidden: frozenset[str]
) -> str:
    """sha256 (first 16 hex digits) of everything that goes into a cell's weights.

    fingerprints: model name -> its weights' and template's fingerprint. seen: hashes of files already read.
    forbidden: prompts that no row may hold; what they keep out of this cell's rows counts.
    """
    parts = {
        "format": RESULT_FORMAT,
        "model": fingerprints[cell.model],
        "method": _settings_of(cell.method),
        "change": cell.change.model_dump(mode="json") if cell.change is not None else None,
        "seed": cell.seed,
        "stages": [stage.model_dump(mode="json") for stage in cell.stages],
        "files": {path: _bytes_hash(base / path, seen) for path in sorted(cell.files)},
        "barred": sorted(cell.barred(base, forbidden)),
        "posttrain": ".".join(__version__.split(".")[:2]),
    }
    return _hash(parts)


def _settings_of(method: MethodConfig) -> dict[str, Any]:
    """A method's settings; those of LATER as if they were not there, where they are what they were before."""
    settings = method.model_dump(mode="json", exclude={"name"})
    return {key: value for key, value in settings.items() if key not in LATER or value != LATER[key]}


def content_hash(study: Study, training: str, exams: Mapping[str, str]) -> str:
    """The same of a cell's result: its training hash, and how it is examined. exams: exam -> hash."""
    saves = study.saves
    parts = {
        "training": training,
        "exams": dict(exams),
        "checkpoints": [saves.every, list(saves.at)],
        "max_new_tokens": study.max_new_tokens,
        "keep": study.keep,
    }
    return _hash(parts)


def _hash(parts: Mapping[str, object]) -> str:
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
