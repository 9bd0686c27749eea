"""What is seen, in words computed from the scores: no sentence here knows how a study came out.

Each method gets a paragraph (what it learned, what it forgot); above them stand the best trade-off, what nobody
achieved, and what failed. Words follow thresholds that are named below, so that a reader can check them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from posttrain.reports import numbers
from posttrain.reports.exam_findings import exam_sentences
from posttrain.reports.folder import Row, Run
from posttrain.reports.texts import Message, known, say

__all__ = ["KEPT", "LEARNED", "LOST", "Finding", "describe_method", "findings", "group_name"]

LEARNED = 0.8
"""A method has learned when its learned score is at least this."""
KEPT = 0.9
"""Old answers count as kept when at least this share is."""
LOST = 0.5
"""Old answers count as lost when at most this share is left."""
ABSENT = 0.2
"""What no method gets above this is named as not achieved."""

LOCALITY_REST = ("locality.neighbour", "locality.unrelated", "locality.format", "locality.refusal")


class Finding(NamedTuple):
    """A paragraph: its sentences, and whether it is bad news (shown with a sign, not only a colour)."""

    sentences: tuple[Message, ...]
    kind: str  # "best", "bad", "plain"


def group_name(key: str) -> Message:
    """The readable name of a score or probe group; its key where the catalogue has none."""
    return say(f"group.{key}") if known(f"group.{key}") else say("verbatim", text=key)


def findings(run: Run) -> list[Finding]:
    """The general findings, then one per row of the table."""
    rows = [row for row in run.final if row.scores]  # a method's last checkpoint speaks for it
    found = [*_general(rows), *_failed(run), *_before(run)]
    found += [Finding(said, _kind(row)) for row in rows if (said := tuple(_row(row, _label(row, run))))]
    return found + [Finding(said, "bad" if bad else "plain") for said, bad in exam_sentences(run)]


def _label(row: Row, run: Run) -> str:
    parts = [f"`{row.method}`"]
    if len(run.models) > 1 and not run.alone:
        parts.append(f"({row.model})")
    return " ".join(parts)


def _kind(row: Row) -> str:
    new, lost = numbers.learned(row.scores), numbers.forgotten(row.scores)
    if row.is_floor:
        return "plain"
    return "bad" if (new is not None and new < LOST) or (lost is not None and lost > 1 - LOST) else "plain"


def _general(every: Sequence[Row]) -> Iterator[Finding]:
    rows = [row for row in every if not row.is_floor]
    ranked = sorted(
        ((numbers.trade_off(row.scores) or 0.0, row) for row in rows if numbers.trade_off(row.scores) is not None),
        key=lambda pair: -pair[0],
    )
    if len(ranked) > 1:
        yield from _best(ranked)
    for group in _columns(rows, "generality."):
        scores = [row.scores[group] for row in rows if group in row.scores]
        if max(scores) < ABSENT:
            most = numbers.percent(max(scores))
            yield Finding((say("seen.absent", group=group_name(group), most=most),), "bad")
    asked = [row for row in rows if "reliability" in row.scores]
    if asked and not any(numbers.has_learned(row.scores) for row in asked):
        yield Finding((say("seen.none_learned"),), "bad")


def _best(ranked: Sequence[tuple[float, Row]]) -> Iterator[Finding]:
    """The best trade-off among the methods that learned: keeping everything is no feat of one that learned nothing."""
    able = [row for _, row in ranked if numbers.has_learned(row.scores)]
    if able and min(row.changes for _, row in ranked) < numbers.FEWEST_CHANGES:
        yield Finding((say("seen.few", least=numbers.FEWEST_CHANGES),), "plain")
    elif able:
        best = able[0]
        new, lost = numbers.learned(best.scores) or 0.0, numbers.forgotten(best.scores) or 0.0
        model = say("seen.on_model", model=best.model) if len({row.model for _, row in ranked}) > 1 else ""
        shown = {"learned": numbers.percent(new), "kept": numbers.percent(1 - lost)}
        sentences = [say("seen.best", method=best.method, model=model, **shown)]
        close = [row.method for row in able[1:] if _within(best, row)]
        if close:
            sentences.append(say("seen.close", methods=say_list(close)))
        if lost < 1:
            yield Finding(tuple(sentences), "best")
    if not any(_good(row.scores) for _, row in ranked):
        yield Finding((say("seen.no_good", least=numbers.percent(LEARNED)),), "bad")


def _good(scores: Mapping[str, float]) -> bool:
    """Whether a method has both learned and kept."""
    new, lost = numbers.learned(scores), numbers.forgotten(scores)
    return new is not None and lost is not None and _shown(new) >= LEARNED and _shown(1 - lost) >= LEARNED


def _within(a: Row, b: Row) -> bool:
    """Whether two methods cannot be told apart: the mean difference of their trade-offs, paired by change and seed,
    has a 95 % interval that holds 0."""
    others = {(cell.change, cell.seed): numbers.trade_off(cell.scores) for cell in b.cells}
    pairs = [(numbers.trade_off(cell.scores), others.get((cell.change, cell.seed))) for cell in a.cells]
    differences = [one - other for one, other in pairs if one is not None and other is not None]
    if a.model != b.model or len(differences) < 2:
        return False
    low, high = numbers.bootstrap(differences)
    return low <= 0 <= high


def say_list(names: Sequence[str]) -> str:
    """Method names as code, separated so that it reads in either language."""
    return " · ".join(f"`{name}`" for name in names)


def _failed(run: Run) -> Iterator[Finding]:
    failed = [cell for cell in run.cells if not cell.done]
    if failed:
        yield Finding((say("seen.failed", k=len(failed), n=len(run.cells)),), "bad")
    if run.planned > len(run.trained_once):
        yield Finding((say("seen.unfinished", k=len(run.trained_once), n=run.planned),), "bad")


def _before(run: Run) -> Iterator[Finding]:
    """What the untouched model said already, from the samples; and what could not be judged."""
    samples = [sample for cell in run.cells for sample in cell.samples]
    asked = [s for s in samples if s.get("group") == "reliability" and s.get("ok_before") is not None]
    if asked:
        share = numbers.mean([float(s["ok_before"]) for s in asked])
        yield Finding((say("seen.before", share=numbers.percent(share)),), "plain")
    left_out = sum("ok" in s and s["ok"] is None for s in samples)
    if left_out:
        yield Finding((say("seen.uncounted", k=f"{left_out:,}", n=f"{len(samples):,}"),), "plain")


def _columns(rows: Sequence[Row], prefix: str) -> list[str]:
    keys = [c.key for c in numbers.columns(key for row in rows for key in row.scores)]
    return [key for key in keys if key.startswith(prefix)]


def _row(row: Row, label: str) -> Iterator[Message]:
    scores = row.scores
    if row.is_floor:
        kept = [key for key in ("locality.same_pattern", *LOCALITY_REST) if key in scores]
        if kept:
            yield say("seen.floor", groups=_shares(kept, scores))
        return
    if "reliability" in scores:
        cells = [cell for cell in row.cells if "reliability" in cell.scores]
        k = sum(cell.scores["reliability"] > 0.5 for cell in cells)
        key = "seen.learned_cells" if cells else "seen.learned"
        yield say(key, method=label, k=k, n=len(cells), share=numbers.percent(scores["reliability"]))
    if "generality.rephrase" in scores:
        yield say("seen.rephrase", share=numbers.percent(scores["generality.rephrase"]))
    if "locality.same_pattern" in scores:
        yield _pattern(row, scores["locality.same_pattern"])
    rest = [key for key in LOCALITY_REST if key in scores]
    within = [key for key in rest if key in row.floor and not row.below(key) and _shown(scores[key]) < KEPT]
    if within:
        yield say("seen.within_floor", groups=_shares(within, scores))
    rest = [key for key in rest if key not in within]
    lost = [key for key in rest if _shown(scores[key]) <= LOST]
    if lost:
        yield say("seen.lost", groups=_shares(lost, scores))
    worn = [key for key in rest if LOST < _shown(scores[key]) < KEPT]
    if worn:
        yield say("seen.worn", groups=_shares(worn, scores))
    kept = [key for key in rest if _shown(scores[key]) >= KEPT]
    if kept:
        yield say("seen.kept", groups=_shares(kept, scores))
    yield from _length(scores)


def _shown(share: float) -> float:
    """A share as it is printed, so that a word never contradicts the number beside it."""
    return round(share, 2)


def _pattern(row: Row, share: float) -> Message:
    shown = numbers.percent(share)
    if "locality.same_pattern" in row.floor and not row.below("locality.same_pattern") and _shown(share) < KEPT:
        return say("seen.pattern_floor", share=shown)
    leak = leak_of(row, "locality.same_pattern")
    if _shown(share) > LOST:
        return say("seen.pattern_kept" if _shown(share) >= KEPT else "seen.pattern_worn", share=shown)
    if leak is None:
        return say("seen.pattern_lost", share=shown)
    return say("seen.pattern_leak", share=shown, leak=numbers.percent(leak))


def leak_of(row: Row, group: str) -> float | None:
    """The share of a group's probes that are answered with the new object, from the samples; None without any."""
    leaks = [
        bool(s["leak"])
        for cell in row.cells
        for s in cell.samples
        if s.get("group") == group and s.get("leak") is not None
    ]
    return numbers.mean([float(leak) for leak in leaks]) if leaks else None


def _shares(keys: Sequence[str], scores: Mapping[str, float]) -> Message:
    """`refusals 16 %, format 40 %` with translated names."""
    listed: Message = say("list.one", name=group_name(keys[0]), share=numbers.percent(scores[keys[0]]))
    for key in keys[1:]:
        listed = say("list.more", head=listed, name=group_name(key), share=numbers.percent(scores[key]))
    return listed


def _length(scores: Mapping[str, float]) -> Iterator[Message]:
    old, new = scores.get("length.before"), scores.get("length.after")
    if old and new is not None and not 0.7 <= new / old <= 1.4:
        key = "seen.shorter" if new < old else "seen.longer"
        yield say(key, before=f"{old:.1f}", after=f"{new:.1f}")


def describe_method(config: Mapping[str, object], *, change: bool = True) -> list[Message]:
    """What a method does, from its entry in study.yaml: its kind, tuner and replay, in plain language."""
    parts = []
    kind = str(config.get("kind", ""))
    if kind == "train" and not change:
        parts.append(say("method.train_data"))
    elif known(f"method.{kind}"):
        parts.append(say(f"method.{kind}"))
    elif kind:
        parts.append(say("method.other", kind=kind))
    for part, default in (("tuner", "full" if kind == "train" else ""), ("replay", "")):
        given = config.get(part, default)
        name = str(given.get("kind", "")) if isinstance(given, Mapping) else str(given or "")
        if name:
            share = given.get("share", 0.9) if isinstance(given, Mapping) else 0.9
            key = f"{part}.{name}" if known(f"{part}.{name}") else f"{part}.other"
            shown = numbers.percent(share) if isinstance(share, int | float) else share
            parts.append(say(key, kind=name, share=shown))
    penalties = config.get("penalty") or ()
    for one in penalties if isinstance(penalties, list | tuple) else [penalties]:
        name = str(one.get("kind", "")) if isinstance(one, Mapping) else str(one)
        parts.append(say(f"penalty.{name}" if known(f"penalty.{name}") else "penalty.other", kind=name))
    if change and config.get("data"):
        parts.insert(1, say("data.more"))
    return parts
