"""The plan of a study: its cells as a graph, and the hashes that tell whether a cell has been run before.

A cell is one model x method x change (or all changes) x seed; its candidates are examined within it. A method may start
from the product of another method or take it as an input; its cell then comes after the other cell. The training hash
covers everything that goes into the weights: the method's settings, the changes, the model's weights and template, the
bytes of every file that the method reads, and the training hashes of the cells that it needs. The content hash also
covers the exams. A cell is done if its folder holds a result with the same content hash. If only the training hash is
the same, the cell keeps what training has left in its folder.
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
"""A number that is increased when the meaning of a result changes, so that older results are made again."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One model x method x change x seed of a study.

    changes: one change; empty in a study without changes; several if they are taught together or one after another;
    stages: the study's stages, if the method learns them; sequence: the number of changes between two candidates if
    changes are taught one after another, else None; needs: the folders of the cells that it takes products from, by
    method.
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
        """The change's name; `together` or `sequence` for several changes, empty without a change."""
        if len(self.changes) == 1:
            return self.changes[0].name
        return ("together" if self.sequence is None else "sequence") if self.changes else ""

    @property
    def head(self) -> dict[str, Any]:
        """The fields that identify the cell in results.json."""
        return {"model": self.model, "method": self.method.label, "change": self.change_name, "seed": self.seed}

    @property
    def names(self) -> list[str]:
        """The names of its changes; one empty name if it has no changes."""
        return [change.name for change in self.changes] or [""]

    @property
    def files(self) -> list[str]:
        """Paths of the files that it reads, each once."""
        own = [path for name in self.names for path in self.method.files(name)]
        return list(dict.fromkeys(own + [stage.data.path for stage in self.stages if stage.data.path]))

    def barred(self, base: Path, forbidden: frozenset[str]) -> list[str]:
        """Return what the exams' prompts keep out of its rows."""
        own = [line for name in self.names for line in self.method.barred(name, base, forbidden)]
        return own + [str(row) for stage in self.stages for row in colliding(stage.data.at(base), forbidden)]

    @property
    def folder(self) -> str:
        """`<model>--<method>--<change>--s<seed>`, safe for a file system; without `<change>` if it has no changes."""
        return "--".join([*map(safe_name, self._named), f"s{self.seed}"])

    @property
    def _named(self) -> list[str]:
        return [self.model, self.method.label, *([self.change_name] if self.changes else [])]

    def __str__(self) -> str:
        return " | ".join([*self._named, f"seed {self.seed}"])


def make_plan(
    study: Study, changes: Sequence[Change], base: Path, *, location: Callable[[str, str], str] = lambda path, name: ""
) -> list[Cell]:
    """Return every cell of a study.

    All methods of one change come together, so that an unfinished run already compares them. A cell comes after the
    cells that it needs.

    location: from a missing path and the name of the cell's change, returns where the path is written.
    Raise ConfigError if two cells would share a folder, MissingError if a file that a method reads does not exist.
    """
    each = study.changes_as == "each" and changes
    sets: list[tuple[Change, ...]] = [(change,) for change in changes] if each else [tuple(changes)]
    every = study.changes_as.sequence if isinstance(study.changes_as, InSequence) else None
    cells: list[Cell] = []
    for model, own, seed in product(study.models, sets, study.seeds):
        made: dict[str, Cell] = {}
        for method in (*(floor_of(study) if seed == study.seeds[0] else ()), *_in_order(study)):
            needs = {name: other.folder for name, other in made.items() if name in method.takes}
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
    """Return the methods in the file's order, but each one after the methods that it takes products from."""
    known = {method.label: method for method in study.methods}
    placed: dict[str, MethodConfig] = {}

    def put(method: MethodConfig) -> None:
        for name in method.takes:
            if name in known and name not in placed:
                put(known[name])
        placed.setdefault(method.label, method)

    for method in study.methods:
        put(method)
    return list(placed.values())


def floor_of(study: Study) -> tuple[MethodConfig, ...]:
    """Return the method of the noise floor, if the study has a change exam and does not list this method itself."""
    given = any(method.kind == "noise_floor" for method in study.methods)
    if study.change_exam is None or study.noise_floor == "none" or given:
        return ()
    from posttrain.studies.methods.noise_floor import NoiseFloorConfig

    return (NoiseFloorConfig(arithmetic=study.noise_floor),)


def select(cells: Sequence[Cell], *, only: Sequence[str] = (), changes: int | None = None) -> list[Cell]:
    """Return the cells of some methods (`--only`) and of the first changes (`--changes`: their number).

    Cells of the noise floor and cells that the selected cells need are always included. Raise ConfigError for an
    unknown method, or if changes are selected in a study that teaches them together or in sequence.
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
    """Return the sha256 (first 16 hex digits) of everything that goes into a cell's weights.

    fingerprint: of the model's weights and template. seen: hashes of files that were already read. forbidden: prompts
    that no row may hold; the hash covers what they keep out of this cell's rows. needed: the training hashes of the
    cells that it needs, by method. An input that is not a method's product counts by the bytes of its files.
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
    """Return the hash of an input model's files; for a name without files here (pocket model, hub id), the name."""
    found = Path(find_model(name, base)[0]).expanduser()
    files = [found] if found.is_file() else sorted(path for path in found.rglob("*") if path.is_file())
    names = {str(path.relative_to(found)) if found.is_dir() else path.name: path for path in files}
    return _hash({key: _bytes_hash(path, seen) for key, path in names.items()}) if files else name


def content_hash(study: Study, training: str, exams: Mapping[str, str]) -> str:
    """Return the hash of a cell's result: of its training hash and of how it is examined. exams: exam -> hash."""
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
