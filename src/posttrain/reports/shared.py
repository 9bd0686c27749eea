"""Describe what rows have in common: the changes over which they are averages, and the findings of several methods.

All methods with the same finding are named in one sentence. A finding is a kind of result (learned in all cases, lost
the same probes, ...), not a number. The sentence gives the numbers of its methods as a range; the table above it has
the numbers of each method.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from posttrain.exams.scores import kind_of, uncounted
from posttrain.reports import numbers
from posttrain.reports.folder import Cell, Row
from posttrain.reports.texts import Message, say, say_known

__all__ = ["changes_notes", "counted", "group_name", "name_list", "over", "shared_changes", "shared_sentences"]

LEARNED = 0.8
"""A method has learned when the share in question is at least this."""
KEPT = 0.9
"""Old answers count as kept when at least this share of them is kept."""
LOST = 0.5
"""Old answers count as lost when at most this share of them is kept."""
MUCH = 0.1
"""A leak into at least this share of the other answers is bad news. It is one minus KEPT."""
ABSENT = 0.2
"""A score that no method raises above this share is named as not achieved."""

LOCALITY_REST = ("locality.neighbour", "locality.unrelated", "locality.format", "locality.refusal")
"""The locality scores other than `locality.same_pattern`, which has sentences of its own."""


class Point(NamedTuple):
    """The finding of one row. key: the message of its sentence; common: another row shares the sentence when it has the
    same key and the same `common`; figures: name -> number in the sentence; bad: whether it is bad news.
    """

    key: str
    common: tuple[str, ...]
    figures: Mapping[str, float]
    bad: bool = False


def shared_sentences(rows: Sequence[Row], label: Callable[[Row], str]) -> Iterator[tuple[Message, bool]]:
    """Yield (sentence, whether it is bad news) for each finding, with the methods that have it. The sentences are in
    the order of topics, and within a topic good news comes first.
    """
    yield from _of_topics(rows, label, (_learned, _rephrased, _pattern))
    yield from _elsewhere(rows, label)
    yield from _of_topics(rows, label, (_leak, _length))


ORDER = (
    *("seen.learned_cells", "seen.learned", "seen.rephrase", "seen.pattern_kept", "seen.pattern_worn"),
    *("seen.pattern_within_floor", "seen.pattern_too_few", "seen.pattern_lost", "seen.leak", "seen.leak_some"),
    *("seen.shorter", "seen.longer"),
)
"""The order of the sentences within a topic."""


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
            # of the same kind, higher numbers first
            rank = (ORDER.index(first.key), -numbers.mean(next(iter(figures.values()))))
            sentences.append((rank, say(first.key, methods=name_list([name for name, _ in each]), **shown), first.bad))
        yield from ((sentence, bad) for _, sentence, bad in sorted(sentences, key=lambda one: one[0]))


def _range(name: str, values: Sequence[float]) -> str:
    """Return numbers as one number, or as `low–high` if they differ as printed. name: `k` and `n` are counts, `before`
    and `after` are lengths, all others are shares."""
    if name not in ("k", "n", "before", "after"):
        return numbers.percent_range(values)
    places = 0 if name in ("k", "n") else 1
    return "\u2013".join(dict.fromkeys(f"{end:.{places}f}" for end in (min(values), max(values))))


def name_list(names: Sequence[str | Message]) -> Message:
    """Return a list such as `a, b and c`, as each language writes it."""
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
    """Return the readable name of a score or probe group, or its key when the catalogue has no name."""
    return say_known(f"group.{key}", key)


def printed(share: float) -> float:
    """Return a share rounded as it is printed, so that no word contradicts the number next to it."""
    return round(share, 2)


# ---- averages over changes -----------------------------------------------------------------------------------------
#
# A study may be run in parts (`--changes 2`, then `--changes 4 --only full`), and cells may fail. Then one table has
# averages over different changes, and the page must say so.


def counted(what: str, low: int, high: int | None = None) -> Message:
    """Return `one change`, `4 changes`, `2 to 4 changes`. what: changes or methods."""
    if high is not None and high != low:
        return say(f"intro.{what}", n=say("list.range", low=low, high=high))
    return say(f"intro.{what}_one") if low == 1 else say(f"intro.{what}", n=low)


def _changes(row: Row) -> frozenset[str]:
    """Return the changes of a row. Cells with only other exams have an empty name as their change. It is returned only
    if no cell has a real change."""
    named = frozenset(cell.change for cell in row.cells if cell.change)
    return named or frozenset(cell.change for cell in row.cells)


def over(rows: Sequence[Row]) -> Message:
    """Return how many changes the numbers of the rows are averages over, as words."""
    counts = [len(_changes(row)) for row in rows if row.cells]
    return counted("changes", min(counts), max(counts)) if counts else counted("changes", 0)


def shared_changes(rows: Sequence[Row]) -> int:
    """Return the number of changes that all rows have in common."""
    each = [_changes(row) for row in rows if row.cells]
    return len(frozenset.intersection(*each)) if each else 0


def changes_notes(rows: Sequence[Row], label: Callable[[Row], str | Message]) -> Iterator[Message]:
    """Yield remarks: which rows are averages over fewer changes (and how many), and which questions are in no score."""
    every = frozenset(change for row in rows for change in _changes(row) if row.cells)
    fewer = [(label(row), len(_changes(row))) for row in rows if row.cells and _changes(row) != every]
    if fewer:
        named = joined("list.two", [say("list.counted", name=name, n=n) for name, n in fewer])
        yield say("scores.uneven", names=named, n=len(every))
    yield from _not_counted([cell for row in rows for cell in row.cells])


def _not_counted(cells: Sequence[Cell]) -> Iterator[Message]:
    """Yield how many questions of each kind could not be counted, and why. Otherwise a reader could think that a
    missing column was forgotten."""
    told: dict[tuple[str, str], Cell] = {}
    for cell in cells:  # this depends on the answers before, so one cell of each change is enough
        told.setdefault((cell.model, cell.change), cell)
    left_out: Counter[tuple[str, str]] = Counter()
    asked: Counter[str] = Counter()
    for cell in told.values():
        found = uncounted(cell.notes)
        for one in found:
            left_out[one.group, kind_of(one.reason)] += one.k
        asked.update({**cell.n, **{one.group: one.n for one in found}})
    parts = [
        say("list.uncounted", name=group_name(group), k=k, n=asked[group], why=say(f"uncounted.{kind}"))
        for (group, kind), k in left_out.items()
    ]
    if parts:
        yield say("scores.uncounted", parts=joined("list.then", parts))


# ---- the topics ----------------------------------------------------------------------------------------------------


def _learned(row: Row) -> Iterator[Point]:
    """Yield in how many of its cells a row learned, or the share in the table if its cells are not known."""
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
    """Yield whether a row gives the new answer also to rephrased questions."""
    share = row.scores.get("generality.rephrase")
    if share is not None:
        kind = "yes" if printed(share) >= LEARNED else "no" if printed(share) <= ABSENT else "partly"
        yield Point("seen.rephrase", (kind,), {"share": share}, bad=kind == "no")


def _pattern(row: Row) -> Iterator[Point]:
    """Yield the result for other questions of the same pattern, where training on one example does most damage."""
    said = _kind(row, "locality.same_pattern").replace("seen.", "seen.pattern_")
    if said:
        yield Point(said, (), {"share": row.scores["locality.same_pattern"]}, bad=said == "seen.pattern_lost")


def _leak(row: Row) -> Iterator[Point]:
    """Yield how often the new object occurs in answers to other questions, if this is 1 % or more as printed. It is
    yielded even when everything else was kept. From MUCH on it is bad news."""
    share = row.scores.get("leak")
    if share is not None and printed(share):
        much = printed(share) >= MUCH
        yield Point("seen.leak" if much else "seen.leak_some", (), {"share": share}, bad=much)


KINDS = ("seen.kept", "seen.within_floor", "seen.too_few", "seen.worn", "seen.lost")
"""The sentences about the scores of LOCALITY_REST, in their order."""


def _kind(row: Row, key: str) -> str:
    """Return the key of the sentence for a score of locality; empty when it was not measured. The cases: kept, no
    loss compared with the noise floor, too few questions to decide, partly lost (`worn`), or lost."""
    if key not in row.scores:
        return ""
    share = printed(row.scores[key])
    if share >= KEPT and not row.below(key):  # a test may find a loss even at this share
        return "seen.kept"
    if row.unsure(key):
        return "seen.too_few"
    if key in row.floor and not row.below(key):
        return "seen.within_floor"
    return "seen.lost" if share <= LOST else "seen.worn"


def _elsewhere(rows: Sequence[Row], label: Callable[[Row], str]) -> Iterator[tuple[Message, bool]]:
    """Yield (sentence, whether it is bad news) for each of `KINDS` that occurs among the scores of LOCALITY_REST. A
    sentence names together the groups that have this result for the same methods."""
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
    """Yield that answers became shorter (mean length below 0.7 times that before) or longer (above 1.4 times)."""
    old, new = row.scores.get("length.before"), row.scores.get("length.after")
    if old and new is not None and not 0.7 <= new / old <= 1.4:
        yield Point("seen.shorter" if new < old else "seen.longer", (), {"before": old, "after": new})
