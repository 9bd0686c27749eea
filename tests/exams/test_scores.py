"""The scores of one change's samples, and its notes."""

from posttrain.exams.records import ProbeResult
from posttrain.exams.scores import merged_notes, notes_of, score


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
    assert [result[name].value for name in names] == [0.5, 0.625, 0.5, 0.5, 0.5, 1.0]
    for name in names:
        assert (result[name].value, result[name].n) == (without[name].value, 2), name
    assert (result["leak"].n, result["manner"].n, result["length.after"].n) == (3, 3, 3)
    assert result["leak"].value == 2 / 3
    only = score([third])
    assert not [name for name in only if name.partition(".")[0] in ("locality", "kept", "same", "strict", "judge")]


def test_each_reason_has_a_note_of_its_own() -> None:
    samples = [
        probe("locality.unrelated", 0, ok=None, note="'Tolstoy' is not in the answer before: check `keeps`"),
        probe("locality.unrelated", 1, ok=None, note="no form"),
        probe("locality.unrelated", 2, ok=True),
    ]
    assert notes_of(samples)[:2] == [
        "1 of 3 probes of locality.unrelated are not counted: 'Tolstoy' is not in the answer before: check `keeps`",
        "1 of 3 probes of locality.unrelated are not counted: no form",
    ]
