"""How `posttrain exam` shows and writes exams of any kind: progress, cost, tables, the document of results.json."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from posttrain.cli.options import console, quiet, talk
from posttrain.cli.plain import one_line
from posttrain.language import translate
from posttrain.models.meter import Doing, clock, listening
from posttrain.studies.config import safe_name

if TYPE_CHECKING:
    from rich.table import Table

    from posttrain.exams.compare import Comparison
    from posttrain.exams.running import TaskProgress, TaskResult

__all__ = ["compared_results", "cost_line", "print_results", "results_document", "shown"]

LINE_EVERY_S = 10.0
"""Seconds between two lines of progress off a terminal."""
FEW_GROUPS = 8
"""More groups than that would bury the scores of the whole."""


@contextmanager
def shown(head: str) -> Iterator[Callable[[TaskProgress], None]]:
    """A live line on a terminal, a plain line every few seconds elsewhere, nothing with --quiet."""
    import sys

    if quiet() or not sys.stderr.isatty():
        lines = _Lines(head)
        with listening(lines.doing):
            yield lines
        return
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.fields[head]}"), BarColumn(bar_width=24), TextColumn("{task.description}"))
    with Progress(*columns, console=console(), transient=True) as bar:
        shown = bar.add_task("", head=head, total=None)

        def tell(progress: TaskProgress) -> None:
            bar.update(shown, total=progress.total, completed=progress.done, description=translate(_progress(progress)))

        def doing(work: Doing) -> None:
            words = "" if work.ends else translate(str(work))
            bar.update(shown, total=work.total, completed=work.done, description=words)

        with listening(doing):
            yield tell


class _Lines:
    """Progress as lines: the first after a while, then one every few seconds."""

    def __init__(self, head: str) -> None:
        self.head = head
        self.last = time.monotonic()

    def __call__(self, progress: TaskProgress) -> None:
        self._say(_progress(progress))

    def doing(self, work: Doing) -> None:
        """What is done besides asking."""
        if not work.ends:
            self._say(str(work))

    def _say(self, words: str) -> None:
        now = time.monotonic()
        if now - self.last >= LINE_EVERY_S:
            self.last = now
            talk(f"{self.head}: {words}")


def _progress(progress: TaskProgress) -> str:
    rate = progress.tokens / max(progress.wall_s, 1e-9)
    columns = [f"{progress.done:,}/{progress.total:,}", f"{rate:,.0f} tokens/s"]
    if progress.left_s is not None:
        columns.append(f"{clock(progress.left_s)} left")
    return "  ".join(columns)


def cost_line(cost: Mapping[str, float]) -> str:
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
        shared = f"{cost['shared_prefixes']:,.0f}"
        one = cost["shared_prefixes"] == 1
        parts.append(f"{shared} prefix{'' if one else 'es'} shared (saved {saved})")
    if cost["plain_requests"]:
        plain = f"{cost['plain_requests']:,.0f}"
        parts.append(f"{plain} request{'' if cost['plain_requests'] == 1 else 's'} shared none")
    if cost["cost_usd"]:
        parts.append(f"{cost['cost_usd']:.2f} USD")
    return ", ".join([*parts, f"{cost['peak_gib']:.2f} GiB"])


# ---- results -----------------------------------------------------------------------------------------------------


def compared_results(before: Mapping[str, TaskResult], after: Mapping[str, TaskResult]) -> dict[str, Comparison]:
    """Task -> before against after, on the samples of both."""
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


def results_document(
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


def print_results(
    model: str,
    results: Mapping[str, TaskResult],
    before: str | None,
    was: Mapping[str, TaskResult] | None,
    compared: Mapping[str, Comparison],
    *,
    by_group: bool = False,
) -> None:
    """The tables on stdout: scores, differences, what a reader has to know. by_group: groups, however many."""
    from rich.text import Text

    out = console(stderr=False)
    if not out.is_terminal:
        out.width = 200  # a file has no edge: rich would cut names at 80
    out.print(Text(model))
    out.print(_table(results, by_group=by_group))
    for line in [] if by_group else _left_out(results):
        out.print(Text(translate(line)))
    if compared and was is not None:
        out.print(Text(f"\n{before} → {model}"))
        out.print(_differences(results, compared))
        for name, one in compared.items():
            if one.forgotten is not None:
                turned = f"{one.forgotten} were right and are wrong now, {one.gained} the other way"
                out.print(Text(f"{name}: {translate(turned)}"))
            for note in one.notes:
                out.print(Text(f"{name}: {translate(note)}"))
        for group, drift in _drift(was, results).items():
            if drift["change"] is not None:
                out.print(Text(f"{group}: {translate(_changed(drift, compared))}"))
    for name, result in results.items():
        out.print(Text(f"\n{name}: {one_line(result.signature, 400)}"))
        for note in result.notes:
            out.print(Text(f"  {one_line(translate(note), 400)}"))


def _changed(drift: Mapping[str, Any], compared: Mapping[str, Comparison]) -> str:
    """A group's relative change; told from chance where a score behind it was compared and is a difference."""
    change = drift["change"]
    if change == 0:
        return "unchanged"
    told = {f"{name}.{one.score}" for name, one in compared.items() if one.different}
    by = f"{100 * change:+.1f} %" if abs(change) >= 0.0005 else "less than 0.1 %"
    if any(entry["score"] in told for entry in drift["scores"]):
        return f"changed by {by}"
    return f"changed by {by} (not told from chance)"


def _groups(result: TaskResult) -> list[str]:
    """The headline's scores by group."""
    return [key for key in result.scores if key.startswith(f"{result.headline}/")]


def _left_out(results: Mapping[str, TaskResult]) -> Iterator[str]:
    for name, result in results.items():
        groups = _groups(result)
        if len(groups) > FEW_GROUPS:
            where = "results.json has them, --by-group prints them"
            yield f"{name}: {len(groups)} groups are not shown ({groups[0]}, ...); {where}"


def _table(results: Mapping[str, TaskResult], *, by_group: bool) -> Table:
    """Every score; those by group only of the headline, and when they are few or asked for."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(translate("score"), overflow="fold")
    table.add_column(translate("value"), justify="right", overflow="fold")
    table.add_column(translate("95 % interval"), overflow="fold")
    table.add_column("n", justify="right")
    for name, result in results.items():
        groups = _groups(result)
        shown_groups = {*groups} if by_group or len(groups) <= FEW_GROUPS else set()
        for key, value in result.scores.items():
            if "/" in key and key not in shown_groups:
                continue
            interval = result.ci95.get(key)
            shown = translate(f"{interval[0]:.3f} to {interval[1]:.3f}") if interval else ""
            by_chance = (
                translate(f"   (guessing {result.chance:.3f})") if key == result.headline and result.chance else ""
            )
            table.add_row(f"{name}.{key}", f"{value:.3f}", shown + by_chance, str(result.n[key]))
    return table


def _differences(results: Mapping[str, TaskResult], compared: Mapping[str, Comparison]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("score", "before", "after", "difference", "95 % interval", "p"):
        justify: Literal["left", "right"] = "left" if column in ("score", "95 % interval") else "right"
        table.add_column(translate(column), justify=justify, overflow="fold")
    table.add_column("", overflow="fold")
    for name, one in compared.items():
        if one.before is None or one.after is None or one.difference is None:
            table.add_row(f"{name}.{results[name].headline}", *[""] * 5, translate("nothing to compare"))
            continue
        interval = translate(f"{one.ci95.low:+.3f} to {one.ci95.high:+.3f}") if one.ci95 else ""
        shown = f"{one.difference:+.3f}"
        if not one.different:
            verdict = one.too_few or "no difference that can be told from chance"
        elif float(shown) == 0:  # "+0.000 better" would be read as a mistake
            verdict = "too small to show"
        else:
            verdict = "better" if one.better else "worse"
        table.add_row(
            f"{name}.{one.score}",
            f"{one.before:.3f}",
            f"{one.after:.3f}",
            shown,
            interval,
            "" if one.p_value is None else f"{one.p_value:.3g}",
            translate(verdict),
        )
    return table
