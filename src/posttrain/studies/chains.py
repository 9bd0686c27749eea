"""Methods that run one after another: each step starts from the product that the previous step left on disk.

A chain (`steps:`) is a list of methods. A sequence is one method that learns one change after another. Both are cells
like any other: they yield candidates, the engine examines them, and a kill does not lose a finished step.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from posttrain import registry
from posttrain.config.change import Change
from posttrain.errors import PosttrainError, Problem
from posttrain.exams.results import write_json
from posttrain.models.load import adapter_base
from posttrain.models.save import is_saved
from posttrain.studies.candidates import END, Candidate, CellContext, Point
from posttrain.studies.config import MethodConfig, safe_name
from posttrain.studies.examine import summed

__all__ = ["Link", "chain", "sequence", "step_names"]

STEP = "step.json"
"""Name of the file that is written to a step's folder when its candidates have been examined."""


class Link(NamedTuple):
    """One step of a chain or a sequence.

    name: the name of its folder; changes: what it learns; point: the point at its end, None if that is not examined;
    taught: how many of the cell's changes the model has learned at its end, None for all.
    """

    name: str
    method: MethodConfig
    changes: tuple[Change, ...]
    point: Point | None
    taught: int | None = None


def step_names(steps: Sequence[MethodConfig]) -> list[str]:
    """Return the names of a chain's steps, such as `1-train`, `2-edit`."""
    return [f"{number}-{safe_name(step.label)}" for number, step in enumerate(steps, start=1)]


def chain(steps: Sequence[MethodConfig], cell: CellContext) -> Iterator[Candidate]:
    """Run methods one after another; the end of each is a point `after <step>`, the end of the last is the cell's."""
    names = step_names(steps)
    ends = [*(Point("after", name) for name in names[:-1]), END]
    links = [Link(name, step, cell.changes, end) for name, step, end in zip(names, steps, ends, strict=True)]
    return _linked(links, cell)


def sequence(method: MethodConfig, cell: CellContext) -> Iterator[Candidate]:
    """Let a method learn the cell's changes one after another, with a point after every `cell.sequence` changes."""
    total = len(cell.changes)
    links = []
    for number, change in enumerate(cell.changes, start=1):
        due = cell.sequence is not None and number % cell.sequence == 0
        point = END if number == total else Point("changes", number) if due else None
        links.append(Link(f"{number}-{safe_name(change.name)}", method, (change,), point, number))
    return _linked(links, cell)


def _linked(links: Sequence[Link], cell: CellContext) -> Iterator[Candidate]:
    done: list[Step] = []
    for number, (link, known) in enumerate(zip(links, _finished(links, cell), strict=True)):
        last = number + 1 == len(links)
        if known is not None:
            done.append(known)
            continue
        start = cell.bench.after(cell.folder / done[-1].product) if done else cell.bench
        inner = cell.within(
            link.name,
            bench=start,
            changes=link.changes,
            inputs=cell.inputs if cell.sequence else {n: cell.inputs[given] for n, given in link.method.inputs.items()},
            sequence=None,
            keep=cell.keep if last or cell.keep == "all" else "final",
            resumable=True,
            steps_before=int(sum(step.cost.get("steps", 0) for step in done)),
        )
        step = yield from _step(link, inner, done, last=last)
        if last:
            return
        start.release()
        if cell.keep != "all" and adapter_base(cell.folder / step.product) is None:
            for earlier in done:  # an adapter needs them as its base
                shutil.rmtree(cell.folder / earlier.product, ignore_errors=True)
        done.append(step)


def _step(link: Link, cell: CellContext, done: Sequence[Step], *, last: bool) -> Generator[Candidate, None, Step]:
    """Yield one step's candidates and return what it leaves. No reference to its model remains afterwards. Raise
    PosttrainError if the step offers no candidate at its end, or leaves no model for the next step."""
    home = cell.folder.parents[1]
    left: Step | None = None
    points = dict.fromkeys([link.point] if link.point is not None else [])

    def examined(point: Point) -> bool:
        points[point.inside(link.name)] = None
        return cell.examined(point)

    own = replace(cell, examined=examined)
    for candidate in registry.load("method", link.method.kind).function(link.method, own):
        if candidate.point != END:
            inside = candidate.point.inside(link.name)
            points[inside] = None
            yield replace(candidate, point=inside, step=None, changes=link.taught)
            continue
        passed = candidate.passed and candidate.passed.inside(link.name)
        same = candidate.same and candidate.same.inside(link.name)
        product = str(candidate.product.relative_to(home)) if candidate.product is not None else ""
        left = Step(product, dict(candidate.cost), [f"{link.name}: {note}" for note in candidate.notes], [])
        if last:
            steps = [*done, left]
            scratch = [*candidate.scratch, *_unneeded(home, cell, candidate.product)]
            yield replace(
                candidate, point=END,
                step=None, changes=link.taught, scratch=scratch, passed=passed, same=same,
                cost=summed([step.cost for step in steps]), notes=[note for step in steps for note in step.notes],
            )  # fmt: skip
        elif link.point is not None:
            yield replace(
                candidate, point=link.point, step=None, changes=link.taught, scratch=(), passed=passed, same=same
            )
            points.pop(passed, None)
        for folder in () if last else candidate.scratch:
            shutil.rmtree(folder, ignore_errors=True)
    if left is None:
        raise PosttrainError(Problem(link.name, "the step offered no candidate at its end"))
    if not left.product and not last:
        cause = f"step '{link.name}' leaves no model that the next one could start from"
        raise PosttrainError(Problem(home.name, cause, "let it be the last step"))
    if not last:
        write_json(cell.folder / STEP, left._replace(points=list(points))._asdict())
    return left


def _unneeded(home: Path, cell: CellContext, product: Path | None) -> list[Path]:
    """Return the folders of steps that are no longer needed when the chain is finished."""
    if cell.keep == "all":
        return []
    if cell.keep == "none":
        return [home / "steps"]
    if product is not None and adapter_base(product) is not None:
        return []  # its base is the product of an earlier step
    return [folder for folder in (home / "steps").iterdir() if folder != cell.folder]


class Step(NamedTuple):
    """What a step has left, as written to `step.json` when its candidates have been examined. product: its product's
    path relative to the cell's folder, empty without one; cost: its costs; notes: its notes; points: its points.
    """

    product: str
    cost: Mapping[str, float]
    notes: Sequence[str]
    points: Sequence[Point]


def _finished(links: Sequence[Link], cell: CellContext) -> list[Step | None]:
    """Return what an earlier run has left of each step, None for a step that must run: the last one, a step with a
    point that is not examined, and a step without a product that a later one starts from."""
    found: list[Step | None] = [None] * len(links)
    for i in reversed(range(len(links) - 1)):
        try:
            text = (cell.folder / "steps" / links[i].name / STEP).read_text(encoding="utf-8")
            known = Step(**json.loads(text))
            points = [Point(*point) for point in known.points]
        except (OSError, ValueError, TypeError):  # there is none, or it is damaged
            continue
        needed = found[i + 1] is None
        there = bool(known.product) and (not needed or is_saved(cell.folder / known.product))
        if there and all(map(cell.examined, points)):
            found[i] = known
    return found
