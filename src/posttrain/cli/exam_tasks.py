"""Exams on your own files, for `posttrain exam M --exam KIND=PATH` and `--exams FILE`: run, shown, compared, written.

DIR/results.json                          scores, intervals, costs, comparisons
DIR/exams/<name>.jsonl                    every sample of MODEL, appended while it runs
DIR/before/<model>/exams/<name>.jsonl     the same of the model before
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from posttrain.cli.options import console, quiet, talk
from posttrain.cli.plain import one_line
from posttrain.config.base import ByKind, Config
from posttrain.config.load import check, load_yaml
from posttrain.errors import ConfigError, Interrupted, PosttrainError, Problem
from posttrain.studies.config import safe_name

if TYPE_CHECKING:
    from rich.table import Table

    from posttrain.exams.compare import Comparison
    from posttrain.exams.running import TaskProgress, TaskResult
    from posttrain.exams.task import Task
    from posttrain.inference.protocol import Respondent

__all__ = ["ExamsFile", "exam_tasks"]

LINE_EVERY_S = 10.0
"""Seconds between two lines of progress off a terminal."""


class ExamsFile(Config):
    """A YAML file of exams, for `--exams`."""

    exams: tuple[Annotated[Config, ByKind("exam")], ...] = Field(min_length=1)
    """The exams: a list of kinds, or of {kind, path, ...}."""


class Wanted(NamedTuple):
    """An exam to be taken. base: what its paths are relative to."""

    name: str
    kind: str
    config: Any
    base: Path


def exam_tasks(
    model: str,
    load: Callable[[str], Respondent],
    *,
    exams: Sequence[str] = (),
    exams_file: Path | None = None,
    before: str | None = None,
    output: Path | None = None,
    table: bool = True,
    limit: int | None = None,
    restart: bool = False,
    sets: Sequence[str] = (),
) -> dict[str, Any]:
    """Put every exam to the model (and to the model before); the document of results.json.

    exams: `KIND` or `KIND=PATH`; exams_file: a YAML file with `exams:`; load: name -> a respondent, called once per
    model; limit: overrides that of each exam; restart: samples on the disk are thrown away; sets: `--set` of the file.
    """
    tasks = _tasks(_wanted(exams, exams_file, limit, sets))
    runs: dict[str, dict[str, TaskResult]] = {}
    for name in dict.fromkeys([before, model] if before else [model]):
        assert name is not None
        folder = None if output is None else output if name == model else output / "before" / safe_name(name)
        runs[name] = _run(load(name), tasks, folder, restart=restart)
    compared = _compared(runs[before], runs[model]) if before and before != model else {}
    if table:
        _print(model, runs[model], before, runs.get(before or ""), compared)
    return _document(model, runs[model], before, runs.get(before or ""), compared)


# ---- what is asked for -------------------------------------------------------------------------------------------


def _wanted(exams: Sequence[str], exams_file: Path | None, limit: int | None, sets: Sequence[str]) -> list[Wanted]:
    """The configs with their names, which must differ; a kind that stands twice is told apart by its file's name."""
    configs: list[tuple[Any, Path]] = []
    if exams_file is not None:
        loaded = load_yaml(exams_file, ExamsFile, sets)
        configs += [(config, exams_file.parent) for config in loaded.exams]
    for text in exams:
        kind, _, path = text.partition("=")
        node = {"exams": [{"kind": kind, **({"path": path} if path else {})}]}
        configs.append((check(node, ExamsFile, f"--exam {text}").exams[0], Path.cwd()))
    if limit is not None:
        configs = [(config.model_copy(update={"limit": limit}), base) for config, base in configs]
    often = Counter(config.label for config, _ in configs)
    wanted = []
    for config, base in configs:
        path = config.model_dump().get("path")
        own = f"{config.label}-{Path(path).stem.removeprefix('builtin:')}" if path else config.label
        wanted.append(Wanted(own if often[config.label] > 1 else config.label, config.kind, config, base))
    twice = [name for name, count in Counter(safe_name(w.name) for w in wanted).items() if count > 1]
    if twice:
        cause = f"several exams are called {', '.join(twice)}"
        raise ConfigError(Problem(str(exams_file or "--exam"), cause, "give each a `name` of its own in the YAML"))
    return wanted


def _tasks(wanted: Sequence[Wanted]) -> list[Task]:
    """Every exam read before any model is; what is wrong with any of them is told at once."""
    from posttrain import registry

    tasks: list[Task] = []
    errors: list[PosttrainError] = []
    for one in wanted:
        try:
            config = one.config if one.name == one.config.label else one.config.model_copy(update={"name": one.name})
            tasks.append(registry.load("exam", one.kind).function(config, one.base))
        except PosttrainError as error:
            errors.append(error)
    if len({type(error) for error in errors}) == 1:
        raise type(errors[0])(*(problem for error in errors for problem in error.problems))
    if errors:
        raise ConfigError(*(problem for error in errors for problem in error.problems))
    return tasks


# ---- running -----------------------------------------------------------------------------------------------------


def _run(respondent: Respondent, tasks: Sequence[Task], folder: Path | None, *, restart: bool) -> dict[str, TaskResult]:
    from posttrain.exams.running import run_task

    results: dict[str, TaskResult] = {}
    for number, task in enumerate(tasks, start=1):
        path = folder / "exams" / f"{safe_name(task.name)}.jsonl" if folder else None
        head = f"[{number}/{len(tasks)}] {task.name} on {respondent.name}"
        try:
            with _shown(head) as tell:
                results[task.name] = run_task(respondent, task, samples_path=path, on_progress=tell, restart=restart)
        except KeyboardInterrupt as error:
            kept = "the same command goes on where it stopped" if path else "nothing was kept: give --output to go on"
            raise Interrupted(f"{head}: stopped; {kept}") from error
        talk(f"{head}: {len(results[task.name].samples)} samples, {_cost(results[task.name].cost)}")
    return results


@contextmanager
def _shown(head: str) -> Iterator[Callable[[TaskProgress], None]]:
    """A live line on a terminal, a plain line every few seconds elsewhere, nothing with --quiet."""
    import sys

    if quiet() or not sys.stderr.isatty():
        yield _Lines(head)
        return
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.fields[head]}"), BarColumn(bar_width=24), TextColumn("{task.description}"))
    with Progress(*columns, console=console(), transient=True) as bar:
        shown = bar.add_task("", head=head, total=None)

        def tell(progress: TaskProgress) -> None:
            bar.update(shown, total=progress.total, completed=progress.done, description=_progress(progress))

        yield tell


class _Lines:
    """Progress as lines: the first after a while, then one every few seconds."""

    def __init__(self, head: str) -> None:
        self.head = head
        self.last = time.monotonic()

    def __call__(self, progress: TaskProgress) -> None:
        now = time.monotonic()
        if now - self.last >= LINE_EVERY_S:
            self.last = now
            talk(f"{self.head}: {_progress(progress)}")


def _progress(progress: TaskProgress) -> str:
    rate = progress.tokens / max(progress.wall_s, 1e-9)
    left = "" if progress.left_s is None else f"  {_clock(progress.left_s)} left"
    return f"{progress.done:,}/{progress.total:,}  {rate:,.0f} tokens/s{left}"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    minutes, hours = whole // 60 % 60, whole // 3600
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def _cost(cost: Mapping[str, float]) -> str:
    """Time, tokens against the least there can be, what was shared and what was not."""
    parts = [f"{cost['wall_s']:.1f} s"]
    forwarded, least = cost["forwarded_tokens"], cost["least_tokens"]
    if forwarded:
        scored = cost.get("scored_tokens", 0.0)
        beside = f" (scoring {scored / least:.2f}x the least, {least:,.0f})" if least and scored else ""
        parts.append(f"{forwarded:,.0f} tokens forwarded{beside}")
    if cost["generated_tokens"]:
        parts.append(f"{cost['generated_tokens']:,.0f} generated")
    if cost["shared_prefixes"]:
        saved = f"{cost['shared_tokens']:,.0f} tokens"
        parts.append(f"{cost['shared_prefixes']:,.0f} prefixes shared, which saved {saved}")
    if cost["plain_requests"]:
        parts.append(f"{cost['plain_requests']:,.0f} requests shared none")
    if cost["cost_usd"]:
        parts.append(f"{cost['cost_usd']:.2f} USD")
    return ", ".join([*parts, f"{cost['peak_gib']:.2f} GiB"])


# ---- results -----------------------------------------------------------------------------------------------------


def _compared(before: Mapping[str, TaskResult], after: Mapping[str, TaskResult]) -> dict[str, Comparison]:
    from posttrain.exams.compare import compare

    return {
        name: compare(
            _originals(before[name]),
            _originals(result),
            headline=result.headline,
            higher_is_better=result.higher_is_better,
        )
        for name, result in after.items()
    }


def _originals(result: TaskResult) -> list[Any]:
    return [sample for sample in result.samples if not sample.perturbation]


def _document(
    model: str,
    results: Mapping[str, TaskResult],
    before: str | None,
    was: Mapping[str, TaskResult] | None,
    compared: Mapping[str, Comparison],
) -> dict[str, Any]:
    """As a study's results.json: one cell, and the model before."""
    cell = {
        "model": model,
        "method": "exam",
        "change": "",
        "checkpoint": "final",
        "seed": 0,
        "status": "done",
        **_flat(results),
        "compare": {name: comparison.to_json() for name, comparison in compared.items()},
        "notes": [f"{name}: {note}" for name, result in results.items() for note in result.notes],
    }
    document: dict[str, Any] = {"study": "exam", "exams": _about(results)}
    if compared and was is not None:
        cell["drift"] = _drift(was, results)
    if before is not None and was is not None:
        folder = "." if before == model else f"before/{safe_name(before)}"
        document["before"] = [{"model": before, **_flat(was), "folder": folder}]
    return {**document, "cells": [cell]}


def _about(results: Mapping[str, TaskResult]) -> dict[str, dict[str, Any]]:
    """What each exam is, apart from what a model scored in it."""
    own = ("headline", "capabilities", "signature", "chance", "higher_is_better", "notes")
    return {name: {key: result.to_json()[key] for key in own} for name, result in results.items()}


def _drift(before: Mapping[str, TaskResult], after: Mapping[str, TaskResult]) -> dict[str, dict[str, Any]]:
    """Capability -> its relative change, with the scores behind it."""
    from posttrain.exams.capabilities import relative_changes

    return relative_changes(_flat(before)["scores"], _flat(after)["scores"], _about(after))


def _flat(results: Mapping[str, TaskResult]) -> dict[str, Any]:
    """Scores of every task as `<task>.<score>`, and what all of them cost."""
    costs = [result.cost for result in results.values()]
    summed = {key: sum(cost[key] for cost in costs) for key in costs[0]} if costs else {}
    if costs:
        summed["peak_gib"] = max(cost["peak_gib"] for cost in costs)
    return {
        "scores": {f"{name}.{key}": value for name, r in results.items() for key, value in r.scores.items()},
        "ci95": {f"{name}.{key}": list(ci) for name, r in results.items() for key, ci in r.ci95.items()},
        "n": {f"{name}.{key}": n for name, r in results.items() for key, n in r.n.items()},
        "cost": summed,
    }


def _print(
    model: str,
    results: Mapping[str, TaskResult],
    before: str | None,
    was: Mapping[str, TaskResult] | None,
    compared: Mapping[str, Comparison],
) -> None:
    from rich.text import Text

    out = console(stderr=False)
    if not out.is_terminal:
        out.width = 200  # a file has no edge: rich would cut names at 80
    out.print(Text(model))
    out.print(_table(results))
    if compared and was is not None:
        out.print(Text(f"\n{before} → {model}"))
        out.print(_differences(results, compared))
        for name, one in compared.items():
            if one.forgotten is not None:
                out.print(Text(f"{name}: {one.forgotten} were right and are wrong now, {one.gained} the other way"))
            for note in one.notes:
                out.print(Text(f"{name}: {note}"))
        for group, drift in _drift(was, results).items():
            if drift["change"] is not None:
                out.print(Text(f"{group}: {drift['change']:+.1%} of what it was"))
    for name, result in results.items():
        out.print(Text(f"\n{name}: {one_line(result.signature, 400)}"))
        for note in result.notes:
            out.print(Text(f"  {one_line(note, 400)}"))


def _table(results: Mapping[str, TaskResult]) -> Table:
    """Every score, those by group only of the headline."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("score")
    table.add_column("value", justify="right")
    table.add_column("95 % interval")
    table.add_column("n", justify="right")
    for name, result in results.items():
        for key, value in result.scores.items():
            if "/" in key and key.partition("/")[0] != result.headline:
                continue
            interval = result.ci95.get(key)
            shown = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
            by_chance = f"   (guessing {result.chance:.3f})" if key == result.headline and result.chance else ""
            table.add_row(f"{name}.{key}", f"{value:.3f}", shown + by_chance, str(result.n[key]))
    return table


def _differences(results: Mapping[str, TaskResult], compared: Mapping[str, Comparison]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("score", "before", "after", "difference", "95 % interval", "p"):
        table.add_column(column, justify="left" if column in ("score", "95 % interval") else "right")
    table.add_column("")
    for name, one in compared.items():
        if one.before is None or one.after is None or one.difference is None:
            table.add_row(f"{name}.{results[name].headline}", *[""] * 5, "nothing to compare")
            continue
        interval = f"{one.ci95.low:+.3f} to {one.ci95.high:+.3f}" if one.ci95 else ""
        verdict = (
            ("better" if one.better else "worse") if one.different else "no difference that can be told from chance"
        )
        table.add_row(
            f"{name}.{one.score}",
            f"{one.before:.3f}",
            f"{one.after:.3f}",
            f"{one.difference:+.3f}",
            interval,
            "" if one.p_value is None else f"{one.p_value:.3g}",
            verdict,
        )
    return table
