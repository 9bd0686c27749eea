"""The cells of a study as a graph, and what makes each of them the same as one that has been run before.

A cell is one model x method x change (or all changes) x seed; its candidates are examined within it. A method may start
from another one's product or take it as an input: such a cell comes after the other one. The training hash covers all
that goes into the weights: the method's settings, the changes, the model's weights and template, the bytes of every
file that the method reads, and the training hashes of the cells that it needs. The content hash covers the exams
besides. A cell whose folder holds a result with the same content hash is done; one with the same training hash keeps
what training has left there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from posttrain import __version__
from posttrain.config.change import Change
from posttrain.config.load import mend_of
from posttrain.errors import ConfigError, MissingError, Problem
from posttrain.studies.config import InSequence, MethodConfig, StageConfig, Study, find_model, safe_name
from posttrain.studies.train_rows import colliding

__all__ = ["RESULT_FORMAT", "Cell", "content_hash", "make_plan", "select", "training_hash"]

RESULT_FORMAT = 4
"""Raised when the meaning of a result changes, so that older results are made again."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One model x method x change x seed of a study; changes: none in a study without, several where they are taught
    together or one after another (`sequence`: the candidates' distance); stages: the study's, where the method learns
    them; needs: the folders of the cells whose products it takes, by method.
    """

    model: str
    method: MethodConfig
    changes: tuple[Change, ...]
    seed: int
    stages: tuple[StageConfig, ...] = ()
    sequence: int | None = None
    needs: Mapping[str, str] = field(default_factory=dict)

    @property
    def change_name(self) -> str:
        """The change's name; `together` or `sequence` with several, empty without one."""
        if len(self.changes) == 1:
            return self.changes[0].name
        return ("together" if self.sequence is None else "sequence") if self.changes else ""

    @property
    def head(self) -> dict[str, Any]:
        """What tells it from others, as in results.json."""
        return {"model": self.model, "method": self.method.label, "change": self.change_name, "seed": self.seed}

    @property
    def names(self) -> list[str]:
        """The names of its changes; one that is empty where there are none."""
        return [change.name for change in self.changes] or [""]

    @property
    def files(self) -> list[str]:
        """Paths of the files that it reads."""
        own = [path for name in self.names for path in self.method.files(name)]
        return list(dict.fromkeys(own + [stage.data.path for stage in self.stages if stage.data.path]))

    def barred(self, base: Path, forbidden: frozenset[str]) -> list[str]:
        """What the exams' prompts keep out of its rows."""
        own = [line for name in self.names for line in self.method.barred(name, base, forbidden)]
        return own + [str(row) for stage in self.stages for row in colliding(stage.data.at(base), forbidden)]

    @property
    def folder(self) -> str:
        """`<model>--<method>--<change>--s<seed>`, safe for a file system; without the change where there is none."""
        return "--".join([*map(safe_name, self._named), f"s{self.seed}"])

    @property
    def _named(self) -> list[str]:
        return [self.model, self.method.label, *([self.change_name] if self.changes else [])]

    def __str__(self) -> str:
        return " | ".join([*self._named, f"seed {self.seed}"])


def make_plan(
    study: Study, changes: Sequence[Change], base: Path, *, location: Callable[[str, str], str] = lambda path, name: ""
) -> list[Cell]:
    """Every cell, all methods of one change together, so that an unfinished run already compares; what a cell needs
    comes before it.

    location: where a path was written that is not there, the name of the cell's change filled in.
    Raises ConfigError when two cells would share a folder, MissingError when a file that a method reads is not there.
    """
    each = study.changes_as == "each" and changes
    sets: list[tuple[Change, ...]] = [(change,) for change in changes] if each else [tuple(changes)]
    every = study.changes_as.sequence if isinstance(study.changes_as, InSequence) else None
    cells: list[Cell] = []
    for model, own, seed in product(study.models, sets, study.seeds):
        made: dict[str, Cell] = {}
        for method in (*(floor_of(study) if seed == study.seeds[0] else ()), *_in_order(study)):
            wanted = {method.start, *method.all_inputs.values()}
            needs = {name: other.folder for name, other in made.items() if name in wanted}
            stages = study.stages if method.learns_stages else ()
            made[method.label] = Cell(model, method, own, seed, stages, every, needs)
        cells += made.values()
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
        if not cell.changes
        for path in cell.method.files("{change}")
        if "{change}" in path
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


def _in_order(study: Study) -> list[MethodConfig]:
    """The methods in the file's order, each after those whose products it takes."""
    known = {method.label: method for method in study.methods}
    placed: dict[str, MethodConfig] = {}

    def location(method: MethodConfig) -> None:
        for name in (method.start, *method.all_inputs.values()):
            if name in known and name not in placed:
                location(known[name])
        placed.setdefault(method.label, method)

    for method in study.methods:
        location(method)
    return list(placed.values())


def floor_of(study: Study) -> tuple[MethodConfig, ...]:
    """The row of the noise floor, in a study with a change exam that does not give it itself."""
    given = any(method.kind == "noise_floor" for method in study.methods)
    if study.change_exam is None or study.noise_floor == "none" or given:
        return ()
    from posttrain.studies.methods.noise_floor import NoiseFloorConfig

    return (NoiseFloorConfig(arithmetic=study.noise_floor),)


def select(cells: Sequence[Cell], *, only: Sequence[str] = (), changes: int | None = None) -> list[Cell]:
    """The cells of some methods (`--only`; the noise floor stands beside any, and what they start from comes along),
    and of the first so many changes (`--changes`).
    """
    if changes is not None and any(len(cell.changes) > 1 for cell in cells):
        cause = "the study teaches its changes together or in sequence"
        raise ConfigError(Problem("--changes", cause, "name fewer of them: --set changes=[...]"))
    known = list(dict.fromkeys(cell.method.label for cell in cells))
    unknown = [name for name in only if name not in known]
    if unknown:
        raise ConfigError(*(Problem("--only", f"no method '{name}'", f"known: {', '.join(known)}") for name in unknown))
    names = list(dict.fromkeys(cell.change_name for cell in cells))[:changes]
    wanted = [cell for cell in cells if cell.change_name in names and (not only or cell.method.label in only)]
    needed = {cell.folder for cell in wanted}
    for cell in reversed(cells):  # a cell comes after those that it needs
        if cell.folder in needed:
            needed |= set(cell.needs.values())
    floors = {cell.folder for cell in cells if cell.method.kind == "noise_floor" and cell.change_name in names}
    return [cell for cell in cells if cell.folder in needed | floors]


def _bytes_hash(path: Path, seen: dict[Path, str]) -> str:
    if path not in seen:
        seen[path] = hashlib.sha256(path.read_bytes()).hexdigest()
    return seen[path]


def training_hash(
    cell: Cell,
    fingerprint: str,
    base: Path,
    seen: dict[Path, str],
    forbidden: frozenset[str],
    needed: Mapping[str, str] | None = None,
) -> str:
    """sha256 (first 16 hex digits) of everything that goes into a cell's weights.

    fingerprint: of the model's weights and template. seen: hashes of files already read. forbidden: prompts that no
    row may hold; what they keep out of this cell's rows counts. needed: the training hashes of the cells that it needs,
    by method. The files of an input that is a model of its own count by their bytes.
    """
    models = [given for given in cell.method.all_inputs.values() if given not in cell.needs]
    parts = {
        "format": RESULT_FORMAT,
        "model": fingerprint,
        "method": cell.method.model_dump(mode="json", exclude={"name"}),
        "changes": [change.model_dump(mode="json") for change in cell.changes],
        "sequence": cell.sequence,
        "seed": cell.seed,
        "stages": [stage.model_dump(mode="json") for stage in cell.stages],
        "files": {path: _bytes_hash(base / path, seen) for path in sorted(cell.files)},
        "inputs": {name: _model_hash(name, base, seen) for name in sorted(models)},
        "needs": dict(sorted((needed or {}).items())),
        "barred": sorted(cell.barred(base, forbidden)),
        "posttrain": ".".join(__version__.split(".")[:2]),
    }
    return _hash(parts)


def _model_hash(name: str, base: Path, seen: dict[Path, str]) -> str:
    """Of the files of a model that is an input; of one of the box, its name says it."""
    found = Path(find_model(name, base)[0]).expanduser()
    files = [found] if found.is_file() else sorted(path for path in found.rglob("*") if path.is_file())
    return _hash({str(path.name): _bytes_hash(path, seen) for path in files}) if files else name


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
