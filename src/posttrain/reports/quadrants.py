"""Forgetting, sample by sample (arXiv:2510.17776): answers that were right and are wrong now, and the other quadrants.

results.json has the counts. This module finds the samples behind them. For the page it draws at most `CAP` samples of
each quadrant, exam and method.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.exams.results import ExamInfo
from posttrain.models.disk import safe_name
from posttrain.reports import numbers
from posttrain.reports.examined import QUADRANTS
from posttrain.reports.folder import Cell, Run, Version, read_lines
from posttrain.reports.marks import Mark, label_of, mark_icon
from posttrain.reports.texts import say, say_if
from posttrain.reports.view import Entry, Head, Line, Panel, Section, Table, heads_of, numeric

__all__ = ["CAP", "TEXT_CAP", "Pair", "draw", "forgetting", "pairs_of", "payload", "quadrant_of"]

CAP = 50
"""Largest number of samples on the page for each quadrant of an exam and a method."""

TEXT_CAP = 1500
"""Largest number of characters of a question or an answer on the page; the full text is in the run folder."""


class Pair(NamedTuple):
    """One question with its answers before and after. quadrant: the index in `QUADRANTS`."""

    id: str
    quadrant: int
    question: str
    wanted: str
    before: str
    after: str
    change: str
    seed: int


def quadrant_of(before: bool, after: bool) -> int:
    """Return the index in `QUADRANTS`: kept right 0, forgotten 1, gained 2, kept wrong 3."""
    return 2 * (not before) + (not after)


def pairs_of(before: Iterable[Mapping[str, Any]], after: Iterable[Mapping[str, Any]], cell: Cell) -> Iterator[Pair]:
    """Yield the questions without perturbation that both files judge as right or wrong, joined by their id. Questions
    with another number of choices after are left out.
    """
    known = {row["id"]: row for row in before if _counts(row)}
    for row in after:
        old = known.get(row.get("id")) if _counts(row) else None
        if old is not None and old.get("choices") == row.get("choices"):
            quadrant = quadrant_of(bool(old["correct"]), bool(row["correct"]))
            texts = (row.get("question"), row.get("target"), old.get("answer"), row.get("answer"))
            question, wanted, first, then = map(_text, texts)
            yield Pair(str(row["id"]), quadrant, question, wanted, first, then, cell.change, cell.seed)


def _counts(row: Mapping[str, Any]) -> bool:
    """Whether a row has an id, is not perturbed, and is judged as right or wrong."""
    return row.get("id") is not None and not row.get("perturbation") and isinstance(row.get("correct"), bool)


def _text(value: Any) -> str:
    """Return a value as text of at most `TEXT_CAP` characters, with an ellipsis where it is cut."""
    text = str(value if value is not None else "")
    return text if len(text) <= TEXT_CAP else text[:TEXT_CAP] + " …"


def draw(pairs: Iterable[Pair]) -> list[Pair]:
    """Return at most `CAP` pairs of each quadrant, those with the smallest hash of the id. The choice is therefore
    random, but the same for every method.
    """
    hashed = sorted((hashlib.sha256(one.id.encode()).hexdigest(), one.id, one.change, one.seed, one) for one in pairs)
    quadrants = ([one for *_, one in hashed if one.quadrant == number] for number in range(len(QUADRANTS)))
    return [one for own in quadrants for one in own[:CAP]]


def payload(run: Run) -> dict[str, Any]:
    """Return the samples of the forgetting section for the page's script; an empty mapping when there are none.

    exams: names; versions: [model, method]; places: [change, seed]; items: [question, wanted, before], each once;
    texts: answers after, each once; rows: a flat list of six indices per sample, in this order: exam, version,
    quadrant, item, answer after (in `texts`), change and seed (in `places`).
    """
    exams, versions = [exam.name for exam in run.exams], list(run.versions)
    places: dict[tuple[str, int], int] = {}
    items: dict[tuple[str, str, str], int] = {}
    texts: dict[str, int] = {}
    rows: list[int] = []
    for e, exam in enumerate(exams):
        for v, version in enumerate(versions):
            for pair in draw(_version_pairs(run, exam, version)):
                where = places.setdefault((pair.change, pair.seed), len(places))
                item = items.setdefault((pair.question, pair.wanted, pair.before), len(items))
                after = texts.setdefault(pair.after, len(texts))
                rows += [e, v, pair.quadrant, item, after, where]
    if not rows:
        return {}
    return {
        "exams": exams,
        "versions": versions,
        "places": [*places],
        "items": [*items],
        "texts": [*texts],
        "rows": rows,
    }


def _version_pairs(run: Run, exam: str, version: tuple[str, str]) -> Iterator[Pair]:
    untouched = run.untouched(version[0])
    if untouched is None or run.folder is None:
        return
    before = _rows(run.folder, untouched.folder, exam)
    for cell in run.rows_of(*version)[-1].cells:
        if before and cell.folder:
            yield from pairs_of(before, _rows(run.folder, cell.folder, exam), cell)


def _rows(run_folder: Path, folder: str, exam: str) -> list[dict[str, Any]]:
    return list(read_lines(run_folder / folder / "exams" / f"{safe_name(exam)}.jsonl", run_folder, []))


# ---- the section ---------------------------------------------------------------------------------------------------


def forgetting(run: Run, marks: Mapping[Version, Mark], *, samples: bool) -> Section | None:
    """Return the section with the quadrants of all exams that judge answers as right or wrong; None without any.
    samples: whether the page has questions of the quadrants.
    """
    found = [(exam.name, table) for exam in run.exams if (table := _quadrants(run, exam, marks)).lines]
    if not found:
        return None
    adjusted = any(len(table.heads) > len(QUADRANTS) + 2 for _, table in found)
    about = say_if({"forgetting.about": True, "forgetting.adjusted_about": adjusted})
    keys = tuple((f"q{i}", say(f"quadrant.{name}")) for i, name in enumerate(QUADRANTS))
    panels = (Panel(notes=about, keys=keys), *(Panel(name, table=table) for name, table in found))
    return Section("forgetting", say("forgetting.title"), panels, part="samples" if samples else "")


def _quadrants(run: Run, exam: ExamInfo, marks: Mapping[Version, Mark]) -> Table:
    """Return a table with the counts and shares of each model and method. If the chance level is known, it also has the
    shares that guessing does not explain."""
    rows = [(row, one) for row in run.final if (one := row.compare.get(exam.name)) is not None and one.shares()]
    known_chance = any(one.adjusted[0] is not None for _, one in rows)
    names = [f"quadrant.{name}" for name in QUADRANTS]
    names += ["forgetting.forgotten_adjusted", "forgetting.gained_adjusted"] if known_chance else []
    first, *rest = heads_of(say("scores.method"), map(say, names))
    heads = (first, Head(say("forgetting.shares"), unseen=True), *rest)
    lines = []
    for row, one in rows:
        shares, counts = one.shares() or (), one.counts or ()
        entries = [Entry("", kind="stack", stack=tuple(round(100 * share, 2) for share in shares))]
        entries += [numeric(n, "{:,}".format, numbers.percent(share)) for n, share in zip(counts, shares, strict=True)]
        adjusted = one.adjusted if known_chance else ()
        entries += [numeric(each, lambda share: numbers.percent(share).replace("-", "\u2212")) for each in adjusted]
        lines.append(Line((label_of(row.version, run),), tuple(entries), mark_icon(marks[row.version])))
    return Table(say("scores.scroll"), heads, tuple(lines), "plain shares")
