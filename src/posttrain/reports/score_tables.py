"""The tables of the change exam and of costs: models and methods x scores, and a table of all cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from posttrain.reports import numbers
from posttrain.reports.folder import Row, Run, Version
from posttrain.reports.marks import Mark, mark_icon, method_of
from posttrain.reports.shared import group_name
from posttrain.reports.texts import Words, known, say
from posttrain.reports.view import Entry, Head, Line, Table, numeric

__all__ = ["CONTENT_GROUPS", "EXAM_GROUPS", "MORE_GROUPS", "cell_table", "cost_table", "score_table"]

EXAM_GROUPS = ("reliability", "generality", "locality", "leak")
CONTENT_GROUPS = ("same", "kept", "manner", "judge")
MORE_GROUPS = ("likelihood", "drift", "length")
COSTS = ("moved", "moved_share", "wall_s", "train_s", "exam_s", "exam_tokens", "steps", "tokens", "peak_gib")
EXAM_COSTS: tuple[str, ...] = (
    *("wall_s", "peak_gib", "forwarded_tokens", "scored_tokens", "least_tokens", "generated_tokens"),
    *("shared_prefixes", "plain_requests", "cost_usd"),
)
"""The costs that a page of `posttrain exam` shows if they are not 0; all costs are in results.json."""
LOSS, UNSURE = "\u25be", "?"
"""The signs of a score that a paired test finds below the noise floor, and of one that no test could call a loss."""


def score_table(run: Run, groups: Sequence[str], marks: Mapping[Version, Mark], label: Words) -> Table | None:
    """Return a table of the change exam's scores of some groups; None when it would have no column. The table of
    `MORE_GROUPS` also has all scores that no other table shows.
    """
    rows = [row for row in run.shown if row.scores]
    columns = numbers.columns((key for row in rows for key in row.scores), groups)
    if groups == MORE_GROUPS:
        every = {key for row in rows for key in row.scores if run.of_change(key)}
        shown = numbers.columns(every, (*EXAM_GROUPS, *CONTENT_GROUPS, "strict", *groups))
        columns += sorted(every - {*shown})
    heads = (_head(key, [row.n[key] for row in rows if key in row.n]) for key in columns)
    answered = any(cell.samples for cell in run.cells)
    lines = tuple(_line(run, row, [_entry(row, key, answered) for key in columns], marks) for row in rows)
    return Table(label, (Head(say("scores.method")), *heads), lines, "scores") if columns else None


def cost_table(run: Run, marks: Mapping[Version, Mark]) -> Table | None:
    """Return a table of the costs of each method, means over its cells; None when no costs are known. For a run of
    `posttrain exam`, where nothing was trained, it has the costs of each model's exams.
    """
    label = say("head.cost")
    if run.alone:
        icons = {row.method: mark_icon(marks[row.version]) for row in run.final}
        costs = [*((one.model, one.cost) for one in run.before), *((row.method, row.cost) for row in run.final)]
        keys = [key for key in EXAM_COSTS if any(cost.get(key) for _, cost in costs)]
        lines = [
            Line((model,), tuple(_cost(cost, key) for key in keys), icons.get(model, Markup()))
            for model, cost in costs
            if cost
        ]
    else:
        rows = [row for row in run.shown if row.scores]
        # costs with a dot belong to one exam and are shown with it
        measured = dict.fromkeys(key for row in rows for key in row.cost if "." not in key)
        keys = sorted(measured, key=lambda key: COSTS.index(key) if key in COSTS else len(COSTS))
        lines = [_line(run, row, [_cost(row.cost, key) for key in keys], marks) for row in rows]
    heads = (Head(say("scores.method")), *(_head(f"cost.{key}") for key in keys))
    return Table(label, heads, tuple(lines), "scores") if keys and lines else None


def _line(run: Run, row: Row, entries: Sequence[Entry], marks: Mapping[Version, Mark]) -> Line:
    small = "" if row.checkpoint == "final" else row.checkpoint
    under = Markup("<code>{}</code>").format(row.model) if len(run.models) > 1 else ""
    return Line((method_of(row),), tuple(entries), mark_icon(marks[row.version]), small, under=under)


def _head(key: str, counts: Sequence[int] = ()) -> Head:
    group = f"head.{numbers.group_of(key)}"
    return Head(group_name(key), numbers.count_text(counts), say(group if known(group) else "head.other"))


def _entry(row: Row, key: str, answered: bool) -> Entry:
    group = numbers.group_of(key)
    if key not in row.scores:
        return Entry(kind="missing", title=say("scores.missing"))
    value, interval, n = row.scores[key], row.ci95.get(key), row.n.get(key)
    shown = numbers.score_text(key, value)
    between = numbers.interval_text(key, interval) if interval else ""
    told = not (row.is_floor and group in ("reliability", "generality", "likelihood"))
    good = numbers.goodness(key, value) if told else None  # the noise floor was not trained, so it cannot learn
    said = {"method": method_of(row), "group": group_name(key), "score": shown,
            "interval": between or numbers.MISSING, "n": n or "?"}  # fmt: skip
    title = say("scores.cell", **said)
    if key in row.floor:
        beside = row.floor[key]
        floor, p_value = numbers.score_text(key, beside.floor), numbers.p_text(beside.p_value)
        title = say("scores.cell_floor", **said, floor=floor, p=p_value)
    return Entry(
        shown,
        (between,) if between else (),
        "heat" if good is not None else "",
        numbers.cell_colour(good) if good is not None else "",
        round(100 * value) if numbers.is_share(key) else None,
        sign=LOSS if row.below(key) else UNSURE if row.unsure(key) else "",
        title=title,
        link=(row.model, row.method, key) if answered and group in EXAM_GROUPS else None,
        value=value,
    )


def _cost(cost: Mapping[str, float], key: str) -> Entry:
    value = cost.get(key)
    if value is None:
        return Entry(kind="missing", title=say("scores.missing"))
    if key.endswith("_share"):
        return Entry(f"{100 * value:.4g}\u00a0%", value=value)
    return Entry(numbers.duration(value) if key.endswith("_s") else numbers.amount(value), value=value)


def cell_table(run: Run, marks: Mapping[Version, Mark]) -> Table:
    """Return a table of all cells: method, model, change, seed, status, mean of each group of scores, and costs."""
    many = len(run.models) > 1
    names = ["scores.method", *(["answers.model"] if many else []), "details.change", "details.seed", "details.status"]
    columns = [*EXAM_GROUPS, "cost.wall_s", "cost.tokens", "cost.peak_gib"]
    heads = (*(Head(say(name)) for name in names), *(Head(say(f"group.{name}"), kind="n") for name in columns))
    lines = []
    for cell in run.cells:
        status = say("details.done" if cell.done else "details.failed")
        labels = (method_of(cell), *([cell.model] if many else []), cell.change, str(cell.seed), status)
        small = "" if cell.checkpoint == "final" else cell.checkpoint
        entries = [numeric(numbers.group_mean(cell.scores, group), numbers.share_text) for group in EXAM_GROUPS]
        entries += [_cost(cell.cost, key)._replace(kind="n", title=None) for key in ("wall_s", "tokens", "peak_gib")]
        lines.append(Line(labels, tuple(entries), mark_icon(marks[cell.version]), small))
    return Table(say("details.cells", n=len(lines)), heads, tuple(lines), "plain numbers", len(names))
