"""What the methods have in common, in words: those with the same finding share one sentence.

A finding is a kind of result (learned in all cases, lost the same probes, ...), not a number: the numbers of the
methods that share it stand in the sentence as a range, and each method's own are in the table above.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from posttrain.reports import numbers
from posttrain.reports.folder import Row
from posttrain.reports.texts import Message, known, say

__all__ = [
    "ABSENT",
    "KEPT",
    "LEARNED",
    "LOCALITY_REST",
    "LOST",
    "group_name",
    "leak_of",
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
ABSENT = 0.2
"""What no method gets above this is named as not achieved."""

LOCALITY_REST = ("locality.neighbour", "locality.unrelated", "locality.format", "locality.refusal")


class Point(NamedTuple):
    """What one row shows: the sentence for it, what other rows must have in common to share that sentence (groups of
    probes, among others), its numbers, and whether it is bad news."""

    key: str
    common: tuple[str, ...]
    figures: Mapping[str, tuple[float, ...]]
    bad: bool = False
    groups: tuple[str, ...] = ()


@dataclass
class _Shared:
    """Rows with the same finding."""

    point: Point
    labels: list[str] = field(default_factory=list)
    figures: dict[str, list[float]] = field(default_factory=dict)


def shared_sentences(rows: Sequence[Row], label: Callable[[Row], str]) -> Iterator[tuple[Message, bool]]:
    """For each finding one sentence with the methods that have it, and whether it is bad news; by topic, and within a
    topic the good ones first."""
    for topic in (_learned, _rephrased, _pattern, _elsewhere, _length):
        found: dict[tuple[str, ...], _Shared] = {}
        for row in rows:
            for point in topic(row):
                one = found.setdefault((point.key, *point.common), _Shared(point))
                one.labels.append(label(row))
                for name, values in point.figures.items():
                    one.figures.setdefault(name, []).extend(values)
        for shared in sorted(found.values(), key=_order):
            yield _sentence(shared), shared.point.bad


ORDER = (
    *("seen.learned_cells", "seen.learned", "seen.rephrase", "seen.pattern_kept", "seen.pattern_worn"),
    *("seen.pattern_floor", "seen.pattern_lost", "seen.pattern_leak", "seen.kept", "seen.within_floor", "seen.worn"),
    *("seen.lost", "seen.shorter", "seen.longer"),
)


def _order(shared: _Shared) -> tuple[int, float]:
    """Within a topic: by kind, then the higher numbers first."""
    return ORDER.index(shared.point.key), -max(numbers.mean(each) for each in shared.figures.values())


def _sentence(shared: _Shared) -> Message:
    shown: dict[str, object] = {"methods": name_list(shared.labels)}
    for name, values in shared.figures.items():
        if name in ("k", "n"):
            low, high = int(min(values)), int(max(values))
            shown[name] = str(low) if low == high else f"{low}\u2013{high}"
        elif name in ("before", "after"):
            ends = [f"{min(values):.1f}", f"{max(values):.1f}"]
            shown[name] = "\u2013".join(dict.fromkeys(ends))
        else:
            shown[name] = numbers.percent_range(values)
    if shared.point.groups:
        shown["groups"] = name_list([group_name(key) for key in shared.point.groups])
    return say(shared.point.key, **shown)


def name_list(names: Sequence[str | Message]) -> Message:
    """`a, b and c`, as each language writes it."""
    each = [name if isinstance(name, Message) else say("verbatim", text=name) for name in names]
    listed = each[0]
    for name in each[1:-1]:
        listed = say("list.two", head=listed, tail=name)
    return say("list.last", head=listed, tail=each[-1]) if len(each) > 1 else listed


def group_name(key: str) -> Message:
    """The readable name of a score or probe group; its key where the catalogue has none."""
    return say(f"group.{key}") if known(f"group.{key}") else say("verbatim", text=key)


def printed(share: float) -> float:
    """A share as it is printed, so that a word never contradicts the number beside it."""
    return round(share, 2)


# ---- the topics ----------------------------------------------------------------------------------------------------


def _learned(row: Row) -> Iterator[Point]:
    """In how many cases; by the table's share where the cases are not known."""
    if "reliability" not in row.scores:
        return
    share = row.scores["reliability"]
    cells = [cell for cell in row.cells if "reliability" in cell.scores]
    if not cells:
        kind = "all" if printed(share) >= LEARNED else "most" if share > LOST else "few"
        yield Point("seen.learned", (kind,), {"share": (share,)}, bad=share <= LOST)
        return
    k, n = sum(numbers.has_learned(cell.scores) for cell in cells), len(cells)
    kind = "all" if k == n else "none" if not k else "most" if 2 * k > n else "few"
    yield Point("seen.learned_cells", (kind, str(n)), {"k": (k,), "n": (n,)}, bad=2 * k <= n)


def _rephrased(row: Row) -> Iterator[Point]:
    share = row.scores.get("generality.rephrase")
    if share is not None:
        kind = "yes" if printed(share) >= LEARNED else "no" if printed(share) <= ABSENT else "partly"
        yield Point("seen.rephrase", (kind,), {"share": (share,)}, bad=kind == "no")


def _pattern(row: Row) -> Iterator[Point]:
    """Other questions of the same shape, where one-example training does its damage."""
    share = row.scores.get("locality.same_pattern")
    if share is None:
        return
    if "locality.same_pattern" in row.floor and not row.below("locality.same_pattern") and printed(share) < KEPT:
        yield Point("seen.pattern_floor", (), {"share": (share,)})
        return
    leak = leak_of(row, "locality.same_pattern")
    if printed(share) > LOST:
        yield Point("seen.pattern_kept" if printed(share) >= KEPT else "seen.pattern_worn", (), {"share": (share,)})
    elif leak is None:
        yield Point("seen.pattern_lost", (), {"share": (share,)}, bad=True)
    else:
        yield Point("seen.pattern_leak", (), {"share": (share,), "leak": (leak,)}, bad=True)


def _elsewhere(row: Row) -> Iterator[Point]:
    """The other kinds of locality: which are kept, worn and lost, and which are no loss by the noise floor."""
    scores = row.scores
    rest = [key for key in LOCALITY_REST if key in scores]
    within = [key for key in rest if key in row.floor and not row.below(key) and printed(scores[key]) < KEPT]
    others = [key for key in rest if key not in within]
    kinds = {
        "seen.kept": [key for key in others if printed(scores[key]) >= KEPT],
        "seen.within_floor": within,
        "seen.worn": [key for key in others if LOST < printed(scores[key]) < KEPT],
        "seen.lost": [key for key in others if printed(scores[key]) <= LOST],
    }
    for key, groups in kinds.items():
        if groups:
            yield _of_groups(key, groups, scores)


def _of_groups(key: str, groups: Iterable[str], scores: Mapping[str, float]) -> Point:
    names = tuple(groups)
    return Point(key, names, {"share": tuple(scores[n] for n in names)}, bad=key == "seen.lost", groups=names)


def _length(row: Row) -> Iterator[Point]:
    old, new = row.scores.get("length.before"), row.scores.get("length.after")
    if old and new is not None and not 0.7 <= new / old <= 1.4:
        yield Point("seen.shorter" if new < old else "seen.longer", (), {"before": (old,), "after": (new,)})


def leak_of(row: Row, group: str) -> float | None:
    """The share of a group's probes that are answered with the new object, from the samples; None without any."""
    leaks = [
        bool(s["leak"])
        for cell in row.cells
        for s in cell.samples
        if s.get("group") == group and s.get("leak") is not None
    ]
    return numbers.mean([float(leak) for leak in leaks]) if leaks else None
