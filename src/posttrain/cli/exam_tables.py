"""The tables and notes that `posttrain exam` prints: scores, differences, wrong answers, notes for the reader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from posttrain.cli.options import console, table
from posttrain.cli.plain import column, one_line
from posttrain.language import placed, translate

if TYPE_CHECKING:
    from rich.table import Table

    from posttrain.exams.capabilities import Drift
    from posttrain.exams.compare import Comparison
    from posttrain.exams.records import ProbeResult
    from posttrain.exams.results import ExamInfo, Line, Results, Summary
    from posttrain.exams.running import TaskResult


FEW_GROUPS = 8
"""Scores by group are printed up to this number of groups; more would hide the main scores."""
SHOWN = 8
"""The largest number of wrong answers that are printed."""


def print_part(results: Results, found: Sequence[TaskResult[Any]], before: str, *, by_group: bool = False) -> None:
    """Print the tables of finished exams to stdout. before: the model before's name; by_group: print all groups."""
    from rich.text import Text

    out = console(stderr=False)
    if not out.is_terminal:
        out.width = 200  # output to a file: rich would cut names at 80 columns
    changes = [one for one in found if one.change]
    parts = _changes(results, changes, before) if changes else _others(results, found, before, by_group=by_group)
    for part in parts:
        out.print(Text(part) if isinstance(part, str) else part)


# ---- the change exam -------------------------------------------------------------------------------------------------


def _changes(results: Results, found: Sequence[TaskResult[ProbeResult]], before: str) -> Iterator[Table | str]:
    from posttrain.exams.floor import NOISE_FLOOR
    from posttrain.exams.scores import merged_notes

    lines = [line for line in results.cells if line.change and line.method != NOISE_FLOOR]
    summary = next(row for row in results.summary if row.method != NOISE_FLOOR)
    several = len(lines) > 1
    many = f"{len(lines)} changes" if several else lines[0].change
    yield translate(f"{before} → {lines[0].model}: {many}")
    yield scores_of_changes(found[0].info, summary, several=several)
    if summary.floor:
        floor = "↓ below the noise floor (the model before in other arithmetic) by a paired test"
        yield translate(f"{floor}; elsewhere no loss is shown")
    if any(one.unsure for one in summary.floor.values()):
        yield translate("? kept less than the noise floor, with too few questions to tell")
    yield from map(translate, merged_notes([line.notes for line in lines]))
    wrong = [(one.change, sample) for one in found for sample in one.samples if sample.ok is False]
    if wrong:
        are = "answer is not as it" if len(wrong) == 1 else "answers are not as they"
        yield translate(f"\n{len(wrong)} {are} should be" + (", such as" if len(wrong) > SHOWN else ""))
    for change, sample in _spread(wrong)[:SHOWN]:
        nothing, wanted = translate("(nothing)"), sample.answer or sample.answer_contains
        yield f"  {sample.group}" + (f" ({change})" if several else "") + f": {one_line(sample.prompt)}"
        yield f"    {column(translate('before:'), 8)}{one_line(sample.before) or nothing}"
        yield f"    {column(translate('after:'), 8)}{one_line(sample.after) or nothing}"
        if wanted:
            said = f"{'' if sample.answer else '… '}{one_line(' | '.join(wanted))}"
            yield f"    {column(translate('wanted:'), 8)}{said}"


def scores_of_changes(info: ExamInfo, summary: Summary, *, several: bool) -> Table:
    """Return a table of the change exam's scores, in the order of their declaration, beside the noise floor's."""
    floor = ["floor"] if summary.floor else []
    interval = "95 % interval" + (" (over changes)" if several else "")
    rows = table("score", "value", interval, "probes", *floor, right=("value", "probes", "floor"))
    digits = {"nats": 4, "tokens": 1}
    for spec in info.scores:
        key, places = spec.key, digits.get(spec.unit, 2)
        if key in summary.scores:
            own, beside = summary.ci95.get(key), summary.floor.get(key)
            shown = translate(f"{own.low:.{places}f} to {own.high:.{places}f}") if own else ""
            sign = "" if beside is None else "↓" if beside.below else "?" if beside.unsure else ""
            lost = [f"{beside.floor:.2f}" if beside else ""] if floor else []
            rows.add_row(key, f"{summary.scores[key]:.{places}f}{sign}", shown, str(summary.n[key]), *lost)
    return rows


def _spread(wrong: Sequence[tuple[str, ProbeResult]]) -> list[tuple[str, ProbeResult]]:
    """Return the answers reordered: the first of each group, then the second of each group, and so on."""
    seen: Counter[str] = Counter()

    def turn(item: tuple[str, ProbeResult]) -> int:
        seen[item[1].group] += 1
        return seen[item[1].group]

    return sorted(wrong, key=turn)


# ---- other exams -----------------------------------------------------------------------------------------------------


def _others(
    results: Results, found: Sequence[TaskResult[Any]], before: str, *, by_group: bool
) -> Iterator[Table | str]:
    from posttrain.exams.capabilities import relative_changes

    line = next(line for line in results.cells if not line.change)
    infos = {one.info.name: results.exams[one.info.name] for one in found}
    yield line.model
    yield _scores(line, list(infos.values()), by_group=by_group)
    for name, info in infos.items():
        groups = _groups(line, info)
        if len(groups) > FEW_GROUPS and not by_group:
            where = "results.json has them, --by-group prints them"
            first = groups[0].removeprefix(info.prefix)
            yield translate(f"{name}: {len(groups)} groups are not shown ({first}, ...); {where}")
    compared = {name: line.compare[name] for name in infos if name in line.compare}
    if compared:
        yield f"\n{before} → {line.model}"
        yield differences(compared)
        for name, one in compared.items():
            if one.forgotten is not None:
                turned = f"{one.forgotten} were right and are wrong now, {one.gained} the other way"
                yield placed(name, translate(turned))
            yield from (placed(name, translate(note)) for note in one.notes)
        was = next(one for one in results.before if one.model == before)
        own = {
            key: value for key, value in line.scores.items() if key.startswith(tuple(i.prefix for i in infos.values()))
        }
        for group, drift in relative_changes(was.scores, own, infos).items():
            if drift.change is not None:
                yield placed(group, translate(changed(drift, compared)))
    for name, info in infos.items():
        yield f"\n{name}: {one_line(info.signature, 400)}"
        notes = [note.removeprefix(f"{name}: ") for note in line.notes if note.startswith(f"{name}: ")]
        yield from (f"  {one_line(translate(note), 400)}" for note in notes)


def changed(drift: Drift, compared: Mapping[str, Comparison]) -> str:
    """Return a group's relative change in words.

    It counts as real, and not as chance, if a score in the group was compared and the test found a difference.
    """
    change = drift.change or 0.0
    if change == 0:
        return "unchanged"
    told = {f"{name}.{one.score}" for name, one in compared.items() if one.different}
    by = f"{100 * change:+.1f} %" if abs(change) >= 0.0005 else "less than 0.1 %"
    if any(entry.score in told for entry in drift.scores):
        return f"changed by {by}"
    return f"changed by {by} (not told from chance)"


def _groups(line: Line, info: ExamInfo) -> list[str]:
    """Return the keys of the main score by group."""
    return [key for key in line.scores if key.startswith(f"{info.key}/")]


def _scores(line: Line, infos: Sequence[ExamInfo], *, by_group: bool) -> Table:
    """Return a table of every score. Scores by group: only of the main score, if they are few or `by_group` is set."""
    rows = table("score", "value", "95 % interval", "n", right=("value", "n"))
    for info in infos:
        groups = _groups(line, info)
        shown_groups = {*groups} if by_group or len(groups) <= FEW_GROUPS else set()
        for key, value in line.scores.items():
            if not key.startswith(info.prefix) or ("/" in key and key not in shown_groups):
                continue
            own = line.ci95.get(key)
            shown = translate(f"{own.low:.3f} to {own.high:.3f}") if own else ""
            by_chance = translate(f"   (guessing {info.chance:.3f})") if key == info.key and info.chance else ""
            rows.add_row(key, f"{value:.3f}", shown + by_chance, str(line.n[key]))
    return rows


def differences(compared: Mapping[str, Comparison]) -> Table:
    """Return a table of the scores before and after, with the result of the test for a difference."""
    heads = ("score", "before", "after", "difference", "95 % interval", "p", "")
    rows = table(*heads, right=("before", "after", "difference", "p"))
    for name, one in compared.items():
        if one.before is None or one.after is None or one.difference is None:
            rows.add_row(f"{name}.{one.headline}", *[""] * 5, translate("nothing to compare"))
            continue
        interval = translate(f"{one.ci95.low:+.3f} to {one.ci95.high:+.3f}") if one.ci95 else ""
        shown = f"{one.difference:+.3f}"
        if not one.different:
            verdict = one.too_few or "no difference that can be told from chance"
        elif float(shown) == 0:  # "+0.000 better" would look like a mistake
            verdict = "too small to show"
        else:
            verdict = "better" if one.better else "worse"
        p_value = "" if one.p_value is None else f"{one.p_value:.3g}"
        numbers = (f"{one.before:.3f}", f"{one.after:.3f}", shown, interval, p_value)
        rows.add_row(f"{name}.{one.score}", *numbers, translate(verdict))
    return rows
