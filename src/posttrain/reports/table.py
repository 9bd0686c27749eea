"""The main scores as a table that fits the width of the terminal; a Chinese character takes two columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.cells import cell_len

from posttrain.exams.results import CHANGE, Results
from posttrain.reports import numbers
from posttrain.reports.folder import Row, rows_of
from posttrain.reports.shared import changes_notes, over, shared_changes
from posttrain.reports.tables_out import folded, to_text
from posttrain.reports.texts import Message, catalogue, say, text
from posttrain.reports.view import Entry, Head, Line, Table, fixed_column

__all__ = ["PRIORITY", "text_table"]

PRIORITY: tuple[str, ...] = (
    *("reliability", "locality.same_pattern", "generality.rephrase", "locality.unrelated", "locality.refusal", "leak"),
    *("locality.neighbour", "locality.format", "drift.unrelated_kl", "wall_s", "generality.cross_lingual"),
    *("generality.hop", "generality.reverse"),
)
"""The columns of the table by priority: in a narrow terminal the last ones are left out first."""

SHOWN: tuple[str, ...] = (
    *("reliability", "generality.rephrase", "generality.reverse", "generality.hop", "generality.cross_lingual"),
    *("locality.same_pattern", "locality.neighbour", "locality.unrelated", "locality.format", "locality.refusal"),
    *("leak", "drift.unrelated_kl", "wall_s"),
)
"""The same columns in their order from left to right."""


BELOW = "↓"
"""The sign of a locality score that a paired test finds below the noise floor."""
UNSURE = "?"
"""The sign of a score that fell, but on so few questions that no test could call it a loss."""


def text_table(results: Results, width: int = 100, *, language: str = "en") -> str:
    """Return a table of methods x main scores of results.json, with remarks below it, as text that ends in a newline.
    width: the largest width in columns of the terminal; a value below 40 counts as 40.
    """
    # the others are in the report only
    rows = [row for row in rows_of(results) if not row.checkpoint.startswith(("stage-", "blend-", "strength-"))]
    words = catalogue(language)
    exams = {exam.key: exam.name for exam in results.exams.values() if exam.kind != CHANGE and exam.role == "report"}
    over_stages = {f"stages.{name}": words[f"stages.{name}"] for name in ("acc", "bwt", "fwt", "forgetting")}
    every = (*SHOWN, *exams, *over_stages)
    names = {key: words[f"table.{key}"] for key in SHOWN} | exams | over_stages
    shown = rows
    if exams:
        name = words["table.untouched"]
        before = (Row(model=one.model, method=name, checkpoint="", scores=one.scores) for one in results.before)
        shown = [*before, *rows]
    body = {key: [_value(row, key) for row in shown] for key in SHOWN}
    body |= {key: fixed_column([row.scores.get(key) for row in shown]) for key in exams}
    body |= {key: fixed_column([row.transfer.get(key.partition(".")[2]) for row in shown]) for key in over_stages}
    order = (PRIORITY[0], *over_stages, *exams, *PRIORITY[1:])
    present = [key for key in order if any(entry.text != numbers.MISSING for entry in body[key])]
    labels = [_label(row, shown, language) for row in shown]
    kept = _fitting(present, names, body, max(map(cell_len, [*labels, words["table.method"]])), max(width, 40))
    columns = [key for key in every if key in kept]
    heads = (Head(words["table.method"]), *(Head(names[key]) for key in columns))
    lines = tuple(Line((label,), tuple(body[key][i] for key in columns)) for i, label in enumerate(labels))
    mixed = set(present) & {*SHOWN} - {"wall_s"}
    title = "table.title" if not exams else "table.title_both" if mixed else "table.title_exams"
    told = text(say(title, study=results.study, changes=over(rows)), language)
    left_out = [names[key] for key in every if key in present and key not in kept]
    table = to_text(Table(told, heads, lines), language, width=max(width, 40))
    remarks = _remarks(results, rows, left_out, lambda row: _label(row, rows, language))
    after = "\n".join(text(remark, language) for remark in remarks)
    return folded(told, max(width, 40)) + "\n" + table + (f"\n{folded(after, max(width, 40))}" if after else "")


def _value(row: Row, key: str) -> Entry:
    if key == "wall_s":
        return Entry(numbers.amount(row.cost[key])) if key in row.cost else Entry()
    if key not in row.scores:
        return Entry()
    sign = BELOW if row.below(key) else UNSURE if row.unsure(key) else ""
    return Entry(numbers.score_text(key, row.scores[key]), sign=sign)


def _label(row: Row, rows: Sequence[Row], language: str) -> str:
    label = text(say("answers.noise_floor"), language) if row.is_floor else row.method
    if len({r.model for r in rows}) > 1:
        label = f"{row.model} {label}"
    if row.checkpoint and len({r.checkpoint for r in rows if r.checkpoint}) > 1:
        label = f"{label} @{row.checkpoint}"
    return label


def _fitting(
    present: Sequence[str], names: Mapping[str, str], body: Mapping[str, Sequence[Entry]], first: int, width: int
) -> set[str]:
    """Return the columns that fit next to the first one, by priority; at least one."""
    kept: set[str] = set()
    used = min(first, width // 2) + 1
    for key in present:
        needs = max(map(cell_len, [names[key], *(f"{entry.text}{entry.sign}" for entry in body[key])])) + 2
        if kept and used + needs > width:
            break
        kept.add(key)
        used += needs
    return kept


def _remarks(
    results: Results, rows: Sequence[Row], left_out: Sequence[str], label: Callable[[Row], str]
) -> Iterator[Message]:
    """Yield the remarks below the table."""
    yield from changes_notes(rows, label)
    rated = [r for r in rows if numbers.trade_off(r.scores) is not None and not r.is_floor]
    able = [row for row in rated if numbers.has_learned(row.scores)]
    if able and len(rated) > 1:
        if shared_changes(rated) < numbers.FEWEST_CHANGES:
            yield say("table.few", least=numbers.FEWEST_CHANGES)
        else:
            best = max(able, key=lambda row: numbers.trade_off(row.scores) or 0.0)
            yield say("table.best", method=label(best))
    if any(row.floor for row in rows):
        yield say("table.below", mark=BELOW)
    if any(row.unsure(key) for row in rows for key in row.floor):
        yield say("table.unsure", mark=UNSURE)
    failed = [line for line in results.cells if not line.done]
    if failed:
        names = ", ".join(f"{line.method}/{line.change}" for line in failed[:5]) + (" …" if len(failed) > 5 else "")
        yield say("table.failed", k=len(failed), names=names)
    if left_out:
        yield say("table.left_out", names=", ".join(left_out))
