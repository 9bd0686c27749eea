from posttrain.reports.findings import describe_method, findings, leak_of
from posttrain.reports.folder import Cell, Row, Run
from posttrain.reports.texts import text


def run_of(**methods: tuple[dict[str, float], int]) -> Run:
    """Methods with the scores of each of their n changes."""
    cells: list[Cell] = []
    rows: list[Row] = []
    for name, (scores, n) in methods.items():
        own = tuple(Cell("pocket:chat", name, f"c{i}", 0, "final", "done", "", scores, {}, {}, {}) for i in range(n))
        cells += own
        rows.append(Row("pocket:chat", name, "final", scores, {}, {}, own))
    return Run("s", {}, "", tuple(cells), tuple(rows))


def said(run: Run, language: str = "en") -> list[str]:
    return [" ".join(text(m, language) for m in f.sentences).replace("\u00a0", " ") for f in findings(run)]


GOOD = {"reliability": 1.0, "generality.rephrase": 0.9, "locality.same_pattern": 0.95, "locality.refusal": 0.92}
FORGETS = {"reliability": 1.0, "generality.rephrase": 1.0, "locality.same_pattern": 0.12, "locality.refusal": 0.16}
DEAF = {"reliability": 0.0, "generality.rephrase": 0.0, "locality.same_pattern": 1.0, "locality.refusal": 1.0}


def test_a_method_that_learns_and_keeps_is_the_best() -> None:
    shown = said(run_of(full=(FORGETS, 20), good=(GOOD, 20)))
    assert shown[0] == "Best trade-off: `good`, which learned 95 % and kept 94 % (each score's mean)."
    assert shown[1] == (
        "`full` learned the new fact in 20 of 20 cases. Asked in other words, it gives the new answer 100 % of the time. "
        "But it answers only 12 % of other questions of the same shape as before. "
        "Lost elsewhere (share of old answers left): refusal 16 %."
    )
    assert "It keeps 95 % of its answers to other questions of the same shape. Kept: refusal 92 %." in shown[2]
    assert not any("No method" in line for line in shown)


def test_negative_results_are_said_plainly() -> None:
    deaf = {**DEAF, "generality.reverse": 0.05}
    shown = said(run_of(a=(deaf, 3), full=({**FORGETS, "generality.reverse": 0.0}, 3)))
    assert "No method reached 80 % both in learning and in keeping." in shown
    assert "No method carried the new fact over to “reversed”: at most 5 %." in shown
    assert "No method learned the new facts in more than half of the changes." in said(run_of(a=(deaf, 3), b=(deaf, 3)))


def test_nobody_is_best_who_learned_nothing() -> None:
    assert not any("Best" in line for line in said(run_of(a=(DEAF, 3), b=(DEAF, 3))))


def test_keeping_everything_is_no_feat_of_a_method_that_learned_nothing() -> None:
    hardly = {**DEAF, "reliability": 0.1}  # its trade-off of 0.1 is above that of `wrecked`, 0.08
    wrecked = {**FORGETS, "locality.same_pattern": 0.04, "locality.refusal": 0.04}
    shown = said(run_of(hardly=(hardly, 5), wrecked=(wrecked, 5)))
    assert shown[0].startswith("Best trade-off: `wrecked`")
    few = said(run_of(hardly=(hardly, 4), wrecked=(wrecked, 4)))
    assert few[0] == "Fewer than 5 changes: no method is called the best."
    nobody = said(run_of(hardly=(hardly, 5), deaf=(DEAF, 5)))
    assert not any("Best" in line for line in nobody)
    assert "No method reached 80 % both in learning and in keeping." in nobody


def test_no_method_reached_is_said_of_all_methods_and_not_of_the_best_alone() -> None:
    even = {"reliability": 0.81, "generality.rephrase": 0.81, "locality.a": 0.81}  # trade-off 0.81
    uneven = {"reliability": 0.75, "generality.rephrase": 0.75, "locality.a": 1.0}  # trade-off 0.86
    assert not any("No method reached" in line for line in said(run_of(even=(even, 2), uneven=(uneven, 2))))


def test_methods_that_cannot_be_told_apart_are_named() -> None:
    shown = said(run_of(good=(GOOD, 20), twin=(GOOD, 20), full=(FORGETS, 20)))
    assert shown[0].endswith(
        "Not told apart from it by these changes (the 95 % interval of the paired difference holds 0): `twin`."
    )


def test_word_and_number_never_disagree_at_a_threshold() -> None:
    shown = said(run_of(a=({**GOOD, "locality.refusal": 0.897}, 2)))
    assert "Kept: refusal 90 %." in shown[-1]


def test_leak_is_counted_in_the_samples_of_its_group() -> None:
    samples = tuple({"group": "locality.same_pattern", "leak": leak} for leak in (True, True, True, False, None))
    cell = Cell("m", "full", "c", 0, "final", "done", "", FORGETS, {}, {}, {}, samples=samples)
    row = Row("m", "full", "final", FORGETS, {}, {}, (cell,))
    assert leak_of(row, "locality.same_pattern") == 0.75
    assert leak_of(row, "locality.refusal") is None
    run = Run("s", {}, "", (cell,), (row,))
    assert (
        "only 12 % of other questions of the same shape as before, and 75 % of them now with the new object"
        in said(run)[0]
    )
    assert "有 75 % 竟以新答案回答" in said(run, "zh-TW")[0]


def test_shorter_answers_are_noticed() -> None:
    assert "shorter: 4.0 tokens on average, 10.0 before" in said(
        run_of(a=({**GOOD, "length.before": 10.0, "length.after": 4.0}, 1))
    )[0]  # fmt: skip
    assert "shorter" not in said(run_of(a=({**GOOD, "length.before": 10.0, "length.after": 9.0}, 1)))[0]


def test_methods_are_described_from_the_study() -> None:
    entry = {"kind": "train", "tuner": "lora", "replay": {"kind": "self", "share": 0.75}, "data": "x.jsonl"}
    shown = [text(m, "en").replace("\u00a0", " ") for m in describe_method(entry)]
    assert shown == [
        "The model is trained on the new fact.",
        "More examples from a file are learned beside it.",
        "Only small low-rank matrices beside the weights (LoRA) move.",
        "75 % of each step's tokens are answers that the untouched model gave to given questions.",
    ]
    assert [text(m, "en") for m in describe_method({"kind": "edit"})] == ["Method `edit`."]
