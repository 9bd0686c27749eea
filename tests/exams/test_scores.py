"""Averages over changes."""

from posttrain.exams.change import ProbeResult
from posttrain.exams.results import Line
from posttrain.exams.scores import merged_notes, score
from posttrain.exams.statistics import Interval, bootstrap_over_changes
from posttrain.exams.summary import summarise


def result(change: str, **scores: float) -> Line:
    intervals = {name: Interval(0.0, 1.0) for name in scores}
    return Line(model="m", method="x", change=change, scores=scores, ci95=intervals, n=dict.fromkeys(scores, 5))


def test_summary_by_hand() -> None:
    (summary,) = summarise([result("1", a=1.0, b=0.5), result("2", a=0.0), result("3", a=0.5)])
    assert summary.scores == {"a": 0.5, "b": 0.5}
    assert summary.n == {"a": 15, "b": 5}
    assert summary.changes == {"a": 3, "b": 1}
    assert summary.ci95["a"] == bootstrap_over_changes([1.0, 0.0, 0.5])
    assert summary.ci95["b"] == (0.0, 1.0)  # one change keeps its own interval
    assert summarise([]) == ()


def test_notes_of_several_changes_are_added_up() -> None:
    notes = [["1 of 2 targets were met", "3 of 4 answers were cut"], ["1 of 3 targets were met"], []]
    assert merged_notes(notes) == ["2 of 5 targets were met", "3 of 4 answers were cut"]


def probe(group: str, index: int, *, ok: bool | None, note: str = "", after: str = "x") -> ProbeResult:
    same = after == "x"
    return ProbeResult(
        f"{group}{index}", group, index, "p", (), (), "x", after, ok, kept=1.0 if same else 0.25,
        band="same" if same else "changed", manner=0.5, judged=same, strict=same, leak=not same, tokens_after=4, note=note,
    )  # fmt: skip


def test_what_is_not_counted_is_in_no_score_that_asks_the_same() -> None:
    """A third probe that had nothing to keep moves neither locality nor kept, same, strict and judge; leak, manner and
    lengths are of all three."""
    two = [probe("locality.format", 0, ok=True), probe("locality.format", 1, ok=False, after="y")]
    third = probe("locality.format", 2, ok=None, note="no form", after="z")
    without, result = score(two), score([*two, third])
    names = ("locality.format", "kept.format", "same.format", "strict.format", "judge.format", "judge.agreement")
    assert [result.scores[name] for name in names] == [0.5, 0.625, 0.5, 0.5, 0.5, 1.0]
    for name in names:
        assert (result.scores[name], result.n[name]) == (without.scores[name], 2), name
    assert (result.n["leak"], result.n["manner"], result.n["length.after"]) == (3, 3, 3)
    assert result.scores["leak"] == 2 / 3
    only = score([third]).scores
    assert not [name for name in only if name.partition(".")[0] in ("locality", "kept", "same", "strict", "judge")]


def test_each_reason_has_a_note_of_its_own() -> None:
    samples = [
        probe("locality.unrelated", 0, ok=None, note="'Tolstoy' is not in the answer before: check `keeps`"),
        probe("locality.unrelated", 1, ok=None, note="no form"),
        probe("locality.unrelated", 2, ok=True),
    ]
    assert score(samples).notes[:2] == [
        "1 of 3 probes of locality.unrelated are not counted: 'Tolstoy' is not in the answer before: check `keeps`",
        "1 of 3 probes of locality.unrelated are not counted: no form",
    ]
