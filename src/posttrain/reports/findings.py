"""The findings of a study: sentences that are computed from its scores.

First come the best trade-off, what no method achieved, and failed cells. Then follows what the methods learned and
lost, in one sentence for all methods with the same finding (`shared.py`). The page names the thresholds, so that
readers can check them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from posttrain.exams.results import ExamInfo
from posttrain.reports import numbers
from posttrain.reports.exam_page import difference_text, verdict_kind
from posttrain.reports.examined import Compared
from posttrain.reports.folder import Row, Run
from posttrain.reports.marks import label_of
from posttrain.reports.shared import (
    ABSENT,
    KEPT,
    LEARNED,
    LOCALITY_REST,
    LOST,
    group_name,
    name_list,
    printed,
    shared_changes,
    shared_sentences,
)
from posttrain.reports.steps_page import exam_points, falls
from posttrain.reports.texts import Message, known, say, say_if

__all__ = ["Finding", "describe_method", "findings", "seen_notes"]


class Finding(NamedTuple):
    """A paragraph of the findings. kind: bad news is shown with a sign, not only with a colour."""

    sentences: tuple[Message, ...]
    kind: str  # "best", "bad", "plain"


def findings(run: Run) -> list[Finding]:
    """Return the findings in their order on the page. The order: general findings, findings that methods share, exams,
    noise floor, targets that the untouched model already met, and answers that could not be judged.
    """
    rows = [row for row in run.final if row.scores]  # the last checkpoint of each method
    methods = [row for row in rows if not row.is_floor]
    found = [*_general(methods)]
    failed = [cell for cell in run.trained_once if not cell.done]
    if failed:
        found.append(Finding((say("seen.failed", k=len(failed), n=len(run.trained_once)),), "bad"))
    several = len(run.models) > 1 and not run.alone
    shared = shared_sentences(methods, lambda row: f"`{row.method}`" + (f" ({row.model})" if several else ""))
    found += [Finding((said,), "bad" if bad else "plain") for said, bad in shared]
    return [*found, *_exams(run), *_floor(rows), *_before(run)]


def seen_notes(run: Run) -> Iterator[Message]:
    """Yield explanations of the words and thresholds of the findings."""
    groups = run.groups
    several = len([row for row in run.final if row.scores and not row.is_floor]) > 1
    about = {"intro.seen_about": groups & {"reliability", "locality"}, "intro.seen_shared": several}
    yield from say_if({**about, "intro.seen_learned": "reliability" in groups})
    if "locality" in groups:
        yield say("intro.seen_kept", kept=numbers.percent(KEPT), lost=numbers.percent(LOST))
    yield from say_if({"intro.seen_exams": any(row.compare for row in run.final)})
    chose = ", ".join(f"`{exam.name}`" for exam in run.results.exams.values() if exam.role == "select")
    if chose:
        yield say("intro.seen_select", names=chose)


def _general(rows: Sequence[Row]) -> Iterator[Finding]:
    rated = [row for row in rows if numbers.trade_off(row.scores) is not None]
    if len(rated) > 1:
        yield from _best(sorted(rated, key=lambda row: -(numbers.trade_off(row.scores) or 0.0)))
    asked_of = numbers.columns((key for row in rows for key in row.scores), ("generality",))
    tops = {group: max(row.scores[group] for row in rows if group in row.scores) for group in asked_of}
    absent = [group for group, most in tops.items() if most < ABSENT]
    if absent:
        most = numbers.percent(max(tops[group] for group in absent))
        yield Finding((say("seen.absent", groups=name_list([group_name(g) for g in absent]), most=most),), "bad")
    asked = [row for row in rows if "reliability" in row.scores]
    if asked and not any(numbers.has_learned(row.scores) for row in asked):
        yield Finding((say("seen.none_learned"),), "bad")


def _best(ranked: Sequence[Row]) -> Iterator[Finding]:
    """Name the best trade-off among the methods that learned; a method that learns nothing would keep everything.
    ranked: rows by trade-off, best first. With too few shared changes, say so instead of naming the best."""
    able = [row for row in ranked if numbers.has_learned(row.scores)]
    if able and shared_changes(ranked) < numbers.FEWEST_CHANGES:
        yield Finding((say("seen.few", least=numbers.FEWEST_CHANGES),), "plain")
    elif able:
        best = able[0]
        new, lost = numbers.learned(best.scores) or 0.0, numbers.forgotten(best.scores) or 0.0
        model = say("seen.on_model", model=best.model) if len({row.model for row in ranked}) > 1 else ""
        shown = {"learned": numbers.percent(new), "forgotten": numbers.percent(lost)}  # as in the table of the plot
        sentences = [say("seen.best", method=best.method, model=model, **shown)]
        close = [row.method for row in able[1:] if _within(best, row)]
        if close:
            sentences.append(say("seen.close", methods=name_list([f"`{name}`" for name in close])))
        if lost < 1:
            yield Finding(tuple(sentences), "best")
    if not any(_good(row.scores) for row in ranked):
        yield Finding((say("seen.no_good", least=numbers.percent(LEARNED)),), "bad")


def _good(scores: Mapping[str, float]) -> bool:
    """Whether a method's learned share and kept share are both at least `LEARNED`, as printed."""
    both = (numbers.learned(scores), numbers.kept(scores))
    return all(share is not None and printed(share) >= LEARNED for share in both)


def _within(a: Row, b: Row) -> bool:
    """Whether two methods cannot be distinguished by their trade-offs. This is so when the 95 % interval of the mean
    difference, paired by change and seed, contains 0. False for two models or fewer than two pairs."""
    others = {(cell.change, cell.seed): numbers.trade_off(cell.scores) for cell in b.cells}
    pairs = [(numbers.trade_off(cell.scores), others.get((cell.change, cell.seed))) for cell in a.cells]
    differences = [one - other for one, other in pairs if one is not None and other is not None]
    if a.model != b.model or len(differences) < 2:
        return False
    low, high = numbers.bootstrap(differences)
    return low <= 0 <= high


KINDS: dict[str, str] = {  # kind of difference from the untouched model -> key of its sentence
    "worse": "seen.exams_fell",
    "better": "seen.exams_rose",
    "some": "seen.exams_some",
    "same": "seen.exams_same",
}


def _exams(run: Run) -> Iterator[Finding]:
    """Yield which exams really fell or rose, which differences are unsure, and from which step on knowledge falls. A
    page with one model and method has one paragraph for this; with several, each exam has its own paragraph."""
    rows = [row for row in run.final if row.compare]
    falling = list(_falls(run))
    if len(rows) == 1:
        beside = ((f"`{exam.name}`", exam, rows[0].compare.get(exam.name)) for exam in run.exams)
        said, bad = _sorted_out(beside)
        said += [sentence for sentence, _ in falling]
        if said:
            first = say("seen.exams", method=f"`{label_of(rows[0].version, run)}`")
            yield Finding((first, *said), "bad" if bad or any(fell for _, fell in falling) else "plain")
        return
    for exam in run.exams:
        said, bad = _sorted_out((f"`{label_of(row.version, run)}`", exam, row.compare.get(exam.name)) for row in rows)
        if said:
            yield Finding((say("seen.exam_beside", exam=exam.name), *said), "bad" if bad else "plain")
    for sentence, fell in falling:
        yield Finding((sentence,), "bad" if fell else "plain")


def _sorted_out(beside: Iterable[tuple[str, ExamInfo, Compared | None]]) -> tuple[list[Message], bool]:
    """Return a sentence for each kind of difference from the untouched model, and whether one is a real fall. beside:
    (shown name, exam, comparison)."""
    names: dict[str, list[Message]] = {kind: [] for kind in KINDS}
    for name, exam, compared in beside:
        if compared is None:
            continue
        shown = {"name": name, "difference": difference_text(compared)}
        if 0 < compared.agree < compared.cells:
            names["some"].append(say("seen.exam_some", **shown, k=compared.agree, n=compared.cells))
        else:
            names[verdict_kind(compared, exam)].append(say("seen.exam", **shown))
    return [say(key, exams=name_list(names[kind])) for kind, key in KINDS.items() if names[kind]], bool(names["worse"])


def _falls(run: Run) -> Iterator[tuple[Message, bool]]:
    """Yield (sentence, whether it is a fall) about knowledge over training steps. Methods with the same exam and the
    same step share a sentence."""
    shared: dict[tuple[str, str, int], list[str]] = {}
    for version, exam, point in falls(run) if run.stepped else ():
        key = "seen.knowledge_falls" if point else "seen.knowledge_stays"
        step = point.step if point else exam_points(run, exam, version)[-1].step
        shared.setdefault((key, exam.name, step), []).append(f"`{label_of(version, run)}`")
    for (key, name, step), labels in shared.items():
        yield say(key, exam=name, step=step, methods=name_list(labels)), key == "seen.knowledge_falls"


def _floor(rows: Sequence[Row]) -> Iterator[Finding]:
    """Yield the shares of its own answers that the untouched model keeps when only the arithmetic differs."""
    for row in rows:
        kept = [key for key in ("locality.same_pattern", *LOCALITY_REST) if key in row.scores]
        if row.is_floor and kept:
            named = [say("list.one", name=group_name(k), share=numbers.percent(row.scores[k])) for k in kept]
            yield Finding((say("seen.floor", groups=name_list(named)),), "plain")


def _before(run: Run) -> Iterator[Finding]:
    """Yield the share of targets that the untouched model already met, and how many answers could not be judged."""
    samples = [sample for cell in run.cells for sample in cell.samples]
    asked = [s for s in samples if s.get("group") == "reliability" and s.get("ok_before") is not None]
    if asked:
        share = numbers.mean([float(s["ok_before"]) for s in asked])
        yield Finding((say("seen.before", share=numbers.percent(share)),), "plain")
    left_out = sum("ok" in s and s["ok"] is None for s in samples)
    if left_out:
        yield Finding((say("seen.uncounted", k=f"{left_out:,}", n=f"{len(samples):,}"),), "plain")


def describe_method(config: Mapping[str, object], change: bool = True, summary: str = "") -> list[Message]:
    """Return what a method does, from its entry in study.yaml: its kind, tuner, replay and penalties. change: whether
    the run has the change exam; summary: a text for a kind that the catalogue does not know.
    """
    parts = []
    kind = str(config.get("kind", ""))
    targets = config.get("targets")
    alone = targets is False or (targets is None and bool(config.get("data")) and bool(config.get("start")))
    steps, start = config.get("steps"), config.get("start")
    if isinstance(steps, list | tuple):
        names = [f"`{one.get('name') or one.get('kind')}`" for one in steps if isinstance(one, Mapping)]
        parts.append(say("method.steps", steps=" \u2192 ".join(names)))
    elif kind == "train" and (not change or alone):
        parts.append(say("method.train_rows" if change else "method.train_data"))
    elif known(f"method.{kind}"):
        parts.append(say(f"method.{kind}"))
        editor = config.get("editor")
        if kind == "edit" and editor:
            its = editor if isinstance(editor, Mapping) else {"kind": editor}
            layers = its.get("layers", "auto")
            listed = ", ".join(map(str, layers)) if isinstance(layers, list | tuple) else str(layers)
            parts.append(say("method.editor", kind=str(its.get("kind", "")), layers=listed))
        if known(own_way := f"method.{kind}_{config.get('source', '')}"):
            parts.append(say(own_way))
    elif kind:
        parts.append(say("method.other", kind=f"{kind}: {summary}" if summary else kind))
    penalties = config.get("penalty") or ()
    given = [("tuner", config.get("tuner", "full" if kind == "train" else "")), ("replay", config.get("replay"))]
    given += [("penalty", one) for one in (penalties if isinstance(penalties, list | tuple) else [penalties])]
    for part, one in given:
        own = one if isinstance(one, Mapping) else {"kind": one or ""}
        name, share = str(own.get("kind", "")), own.get("share", 0.9)
        if name:
            shown = numbers.percent(share) if isinstance(share, int | float) else share
            parts.append(say(f"{part}.{name}" if known(f"{part}.{name}") else f"{part}.other", kind=name, share=shown))
    if change and config.get("data") and not alone:
        parts.insert(1, say("data.more"))
    return [*parts, say("method.start", start=start)] if start else parts
