"""What the methods have in common: all methods with the same finding stand in one sentence.

A finding is a kind of result (learned in all cases, lost the same probes, ...), not a number. The sentence gives the
numbers of its methods as a range; the table above it has the numbers of each method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from posttrain.reports import numbers
from posttrain.reports.folder import Row
from posttrain.reports.texts import Message, say, say_known

__all__ = [
    "ABSENT",
    "KEPT",
    "LEARNED",
    "LOCALITY_REST",
    "LOST",
    "group_name",
    "name_list",
    "printed",
    "shared_sentences",
]

LEARNED = 0.8
"""A method has learned when its learned score is at least this."""
KEPT = 0.9
"""Old answers count as kept when at least this share is."""
LOST = 0.5
"""Old answers count as lost when at most this share is left."""
MUCH = 0.1
"""A leak into at least this share of the other answers is bad news: it is one minus KEPT."""
ABSENT = 0.2
"""What no method gets above this share is named as not achieved."""

LOCALITY_REST = ("locality.neighbour", "locality.unrelated", "locality.format", "locality.refusal")


class Point(NamedTuple):
    """The finding of one row. key: its sentence; common: what another row must have, too, to share it; figures: its
    numbers; bad: whether it is bad news."""

    key: str
    common: tuple[str, ...]
    figures: Mapping[str, float]
    bad: bool = False


def shared_sentences(rows: Sequence[Row], label: Callable[[Row], str]) -> Iterator[tuple[Message, bool]]:
    """Yield one sentence per finding with the methods that have it, and whether it is bad news; by topic, and within a
    topic good news first."""
    yield from _of_topics(rows, label, (_learned, _rephrased, _pattern))
    yield from _elsewhere(rows, label)
    yield from _of_topics(rows, label, (_leak, _length))


ORDER = (
    *("seen.learned_cells", "seen.learned", "seen.rephrase", "seen.pattern_kept", "seen.pattern_worn"),
    *("seen.pattern_floor", "seen.pattern_few", "seen.pattern_lost", "seen.leak", "seen.leak_some"),
    *("seen.shorter", "seen.longer"),
)


def _of_topics(
    rows: Sequence[Row], label: Callable[[Row], str], topics: Sequence[Callable[[Row], Iterator[Point]]]
) -> Iterator[tuple[Message, bool]]:
    for topic in topics:
        found: dict[tuple[str, ...], list[tuple[str, Point]]] = {}
        for row in rows:
            for point in topic(row):
                found.setdefault((point.key, *point.common), []).append((label(row), point))
        sentences = []
        for each in found.values():
            first = each[0][1]
            figures = {name: [point.figures[name] for _, point in each] for name in first.figures}
            shown = {name: _range(name, values) for name, values in figures.items()}
            rank = (ORDER.index(first.key), -numbers.mean(next(iter(figures.values()))))  # then higher numbers first
            sentences.append((rank, say(first.key, methods=name_list([name for name, _ in each]), **shown), first.bad))
        yield from ((sentence, bad) for _, sentence, bad in sorted(sentences, key=lambda one: one[0]))


def _range(name: str, values: Sequence[float]) -> str:
    """Return numbers as one, or as `low–high`. name: k and n are counts, before and after lengths, others shares."""
    if name not in ("k", "n", "before", "after"):
        return numbers.percent_range(values)
    places = 0 if name in ("k", "n") else 1
    return "\u2013".join(dict.fromkeys(f"{end:.{places}f}" for end in (min(values), max(values))))


def name_list(names: Sequence[str | Message]) -> Message:
    """Return `a, b and c`, as each language writes it."""
    each = [name if isinstance(name, Message) else say("verbatim", text=name) for name in names]
    if len(each) == 1:
        return each[0]
    return say("list.last", head=joined("list.two", each[:-1]), tail=each[-1])


def joined(key: str, parts: Sequence[Message]) -> Message:
    """Join messages from left to right, two at a time, by the message `key`."""
    listed = parts[0]
    for part in parts[1:]:
        listed = say(key, head=listed, tail=part)
    return listed


def group_name(key: str) -> Message:
    """Return the readable name of a score or probe group; its key where the catalogue has none."""
    return say_known(f"group.{key}", key)


def printed(share: float) -> float:
    """Return a share as it is printed, so that no word contradicts the number beside it."""
    return round(share, 2)


# ---- the topics ----------------------------------------------------------------------------------------------------


def _learned(row: Row) -> Iterator[Point]:
    """Say in how many cases a row learned; by the share in the table where its cases are not known."""
    if "reliability" not in row.scores:
        return
    share = row.scores["reliability"]
    cells = [cell for cell in row.cells if "reliability" in cell.scores]
    if not cells:
        kind = "all" if printed(share) >= LEARNED else "most" if share > LOST else "few"
        yield Point("seen.learned", (kind,), {"share": share}, bad=share <= LOST)
        return
    k, n = sum(numbers.has_learned(cell.scores) for cell in cells), len(cells)
    kind = "all" if k == n else "none" if not k else "most" if 2 * k > n else "few"
    yield Point("seen.learned_cells", (kind, str(n)), {"k": k, "n": n}, bad=2 * k <= n)


def _rephrased(row: Row) -> Iterator[Point]:
    share = row.scores.get("generality.rephrase")
    if share is not None:
        kind = "yes" if printed(share) >= LEARNED else "no" if printed(share) <= ABSENT else "partly"
        yield Point("seen.rephrase", (kind,), {"share": share}, bad=kind == "no")


def _pattern(row: Row) -> Iterator[Point]:
    """Say what became of other questions of the same shape, where training on one example does most damage."""
    key = "locality.same_pattern"
    share = row.scores.get(key)
    if share is None:
        return
    if key in row.floor and not row.below(key) and printed(share) < KEPT:
        name = "few" if row.unsure(key) else "floor"
    elif printed(share) <= LOST:
        name = "lost"
    else:
        name = "kept" if printed(share) >= KEPT and not row.below(key) else "worn"
    yield Point(f"seen.pattern_{name}", (), {"share": share}, bad=name == "lost")


def _leak(row: Row) -> Iterator[Point]:
    """Say how often the new object stands in answers to other questions, where that is 1 % or more as printed, however
    much was kept. From MUCH on it is bad news."""
    share = row.scores.get("leak")
    if share is not None and printed(share):
        much = printed(share) >= MUCH
        yield Point("seen.leak" if much else "seen.leak_some", (), {"share": share}, bad=much)


KINDS = ("seen.kept", "seen.within_floor", "seen.too_few", "seen.worn", "seen.lost")
"""The sentences about other kinds of locality, in their order."""


def _kind(row: Row, key: str) -> str:
    """Return the sentence of another kind of locality: kept, no loss by the noise floor, too few questions to tell,
    worn, or lost; none where it was not asked."""
    if key not in row.scores:
        return ""
    share = printed(row.scores[key])
    if share >= KEPT and not row.below(key):  # of so much kept a test may still find a loss
        return "seen.kept"
    if row.unsure(key):
        return "seen.too_few"
    if key in row.floor and not row.below(key):
        return "seen.within_floor"
    return "seen.lost" if share <= LOST else "seen.worn"


def _elsewhere(rows: Sequence[Row], label: Callable[[Row], str]) -> Iterator[tuple[Message, bool]]:
    """Yield one sentence for what is kept, shows no loss, has too few questions to tell, is worn, or is lost. It names
    groups together where they are so for the same methods."""
    for said in KINDS:
        together: dict[tuple[str, ...], list[str]] = {}
        for group in LOCALITY_REST:
            labels = tuple(label(row) for row in rows if _kind(row, group) == said)
            together.setdefault(labels, []).append(group)
        parts = []
        for labels, groups in together.items():
            shares = [row.scores[group] for group in groups for row in rows if _kind(row, group) == said]
            if shares:
                named = name_list([group_name(group) for group in groups])
                share = numbers.percent_range(shares)
                parts.append(say("list.by", groups=named, share=share, methods=name_list(labels)))
        if parts:
            yield say(said, parts=joined("list.then", parts)), said == "seen.lost"


def _length(row: Row) -> Iterator[Point]:
    old, new = row.scores.get("length.before"), row.scores.get("length.after")
    if old and new is not None and not 0.7 <= new / old <= 1.4:
        yield Point("seen.shorter" if new < old else "seen.longer", (), {"before": old, "after": new})
