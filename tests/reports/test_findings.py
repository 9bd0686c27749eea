from dataclasses import replace

from posttrain.exams.floor import BesideFloor
from posttrain.exams.results import Results
from posttrain.reports.change_page import plot_section
from posttrain.reports.findings import describe_method, findings
from posttrain.reports.folder import Cell, Row, Run
from posttrain.reports.marks import marks_of
from posttrain.reports.texts import text


def run_of(**methods: tuple[dict[str, float], int]) -> Run:
    """Methods with the scores of each of their n changes."""
    cells: list[Cell] = []
    rows: list[Row] = []
    for name, (scores, n) in methods.items():
        own = tuple(Cell(model="pocket:chat", method=name, change=f"c{i}", scores=scores) for i in range(n))
        cells += own
        rows.append(Row(model="pocket:chat", method=name, scores=scores, cells=own))
    return Run(Results(study="s"), tuple(cells), tuple(rows))


def said(run: Run, language: str = "en") -> list[str]:
    return [" ".join(text(m, language) for m in f.sentences).replace("\u00a0", " ") for f in findings(run)]


GOOD = {"reliability": 1.0, "generality.rephrase": 0.9, "locality.same_pattern": 0.95, "locality.refusal": 0.92}
FORGETS = {"reliability": 1.0, "generality.rephrase": 1.0, "locality.same_pattern": 0.12, "locality.refusal": 0.16}
DEAF = {"reliability": 0.0, "generality.rephrase": 0.0, "locality.same_pattern": 1.0, "locality.refusal": 1.0}


def test_a_method_that_learns_and_keeps_is_the_best() -> None:
    shown = said(run_of(full=(FORGETS, 20), good=(GOOD, 20)))
    assert not any("No method" in line for line in shown)
    assert shown[0] == "Best trade-off: `good`, which learned 95 % and forgot 6 %."
    assert shown[1:] == [
        "Learned the new fact in 20 of 20 cases: `full` and `good`.",
        "Asked in other words, gave the new answer 90–100 % of the time: `full` and `good`.",
        "Kept 95 % of the answers to other questions of the same shape: `good`.",
        "Answered only 12 % of other questions of the same shape as before: `full`.",
        "Kept elsewhere: refusal 92 % by `good`.",
        "Lost elsewhere (share of old answers left): refusal 16 % by `full`.",
    ]


def test_the_trade_off_is_told_in_the_figures_of_the_table() -> None:
    run = run_of(full=(FORGETS, 20), good=(GOOD, 20))
    table = plot_section(run, marks_of(run.versions)).panels[1].table
    assert table is not None
    learned, forgotten = next([e.text for e in line.entries] for line in table.lines if line.labels == ("good",))
    assert (learned, forgotten) == ("95", "6")
    for language, sentence in (("en", "learned {} % and forgot {} %."), ("zh-TW", "學到 {} %，遺忘 {} %。")):
        assert said(run, language)[0].endswith(sentence.format(learned, forgotten))


def test_methods_with_the_same_finding_share_one_sentence() -> None:
    """A dozen methods of three kinds are described in as many sentences as three methods are."""
    half = {"reliability": 0.5, "generality.rephrase": 0.4, "locality.same_pattern": 0.7, "locality.refusal": 0.8}
    kinds = {"keeps": GOOD, "forgets": FORGETS, "wears": half}
    few = run_of(**{name: (scores, 6) for name, scores in kinds.items()})
    many = run_of(**{f"{name}{i}": (scores, 6) for i in range(4) for name, scores in kinds.items()})
    assert len(said(many)) == len(said(few))
    shown = said(many)
    for line in shown:
        assert len([other for other in shown if other.split(":")[0] == line.split(":")[0]]) == 1
    assert "Answered only 12 % of other questions of the same shape as before: `forgets0`, `forgets1`, `forgets2` and `forgets3`." in shown  # fmt: skip
    assert "同句型的其他問題守住 95 % 的答案：`keeps0`、`keeps1`、`keeps2`和`keeps3`。" in said(many, "zh-TW")
    for name in (f"{kind}{i}" for i in range(4) for kind in kinds):  # nobody is left out of what was learned
        assert sum(line.startswith("Learned the new fact") and f"`{name}`" in line for line in shown) == 1


def test_what_was_lost_elsewhere_is_one_sentence_whatever_the_mixture() -> None:
    """Groups of probes that were lost by the same methods stand together; the others follow in the same sentence."""
    a = {"reliability": 1.0, "locality.neighbour": 0.1, "locality.format": 0.3, "locality.refusal": 0.2}
    b = {"reliability": 1.0, "locality.neighbour": 0.4, "locality.format": 0.5, "locality.refusal": 1.0}
    lost = [line for line in said(run_of(a=(a, 2), b=(b, 2))) if line.startswith("Lost")]
    assert lost == [
        "Lost elsewhere (share of old answers left): neighbour and format 10–50 % by `a` and `b`; refusal 20 % by `a`."
    ]


def test_more_cases_learned_come_first_and_only_few_are_bad_news() -> None:
    """In the order of the numbers, not of the methods."""
    cells: list[Cell] = []
    rows: list[Row] = []
    for name, right in (("none", 0), ("some", 1), ("all", 3), ("most", 2)):
        own = tuple(
            Cell(model="m", method=name, change=f"c{i}", scores={"reliability": float(i < right)}) for i in range(3)
        )
        cells += own
        rows.append(Row(model="m", method=name, scores={"reliability": right / 3}, cells=own))
    found = [
        f for f in findings(Run(Results(study="s"), tuple(cells), tuple(rows))) if "cases" in text(f.sentences[0], "en")
    ]
    assert [(text(f.sentences[0], "en"), f.kind) for f in found] == [
        ("Learned the new fact in 3 of 3 cases: `all`.", "plain"),
        ("Learned the new fact in 2 of 3 cases: `most`.", "plain"),
        ("Learned the new fact in 1 of 3 cases: `some`.", "bad"),
        ("Learned the new fact in 0 of 3 cases: `none`.", "bad"),
    ]


def test_negative_results_are_said_plainly() -> None:
    deaf = {**DEAF, "generality.reverse": 0.05}
    shown = said(run_of(a=(deaf, 3), full=({**FORGETS, "generality.reverse": 0.0}, 3)))
    assert "No method reached 80 % both in learning and in keeping." in shown
    assert "No method carried the new fact over to: reversed (at most 5 %)." in shown
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
    assert "Kept elsewhere: refusal 90 % by `a`." in shown


def test_a_leak_is_named_however_much_was_kept_in_the_figure_of_the_table() -> None:
    """Wherever it prints as 1 % or more; the mean over changes, not over the probes of them all."""
    worn = {"reliability": 1.0, "locality.same_pattern": 0.77, "leak": 0.08}
    kept = {**GOOD, "leak": 0.004}
    run = run_of(lora=(worn, 3), prompt=({**FORGETS, "leak": 0.05}, 3), full=({**FORGETS, "leak": 0.6}, 3), edit=(kept, 3))  # fmt: skip
    samples = ({"group": "locality.same_pattern", "leak": True},) * 50  # of one change, whose probes are many
    rows = tuple(
        row.model_copy(update={"cells": (row.cells[0].model_copy(update={"samples": samples}), *row.cells[1:])})
        for row in run.rows
    )
    shown = [line for line in said(replace(run, rows=rows)) if "object" in line]
    assert shown == [
        "Named the new object in 60 % of the answers to other questions of all kinds (leak): `full`.",
        "Leaked less: the new object stands in 5–8 % of the answers to other questions by `lora` and `prompt`.",
    ]
    assert "其他各類問題的回答有 60 % 提到新答案（外溢）：`full`。" in said(run, "zh-TW")
    kinds = {text(f.sentences[0], "en")[:23]: f.kind for f in findings(run)}
    assert kinds["Named the new object in"] == "bad"
    assert kinds["Leaked less: the new ob"] == "plain"
    assert "Answered only 12 % of other questions of the same shape as before: `prompt` and `full`." in said(run)


def test_shorter_answers_are_noticed() -> None:
    short = said(run_of(a=({**GOOD, "length.before": 10.0, "length.after": 4.0}, 1)))
    assert "Gave shorter answers, 4.0 tokens on average instead of 10.0: `a`." in short
    same = said(run_of(a=({**GOOD, "length.before": 10.0, "length.after": 9.0}, 1)))
    assert not any("shorter" in line for line in same)


def test_methods_are_described_from_the_study() -> None:
    entry = {"kind": "train", "tuner": "lora", "replay": {"kind": "self", "share": 0.75}, "data": "x.jsonl"}
    shown = [text(m, "en").replace("\u00a0", " ") for m in describe_method(entry)]
    assert shown == [
        "The model is trained on the new fact.",
        "More examples from a file are learned beside it.",
        "Only small low-rank matrices beside the weights (LoRA) move.",
        "75 % of each step's tokens are answers that the untouched model gave to given questions.",
    ]
    assert [text(m, "en") for m in describe_method({"kind": "strange"})] == ["Method `strange`."]
    for editor, told in (
        ("memit", "`memit`, layers: auto."),
        ({"kind": "rome", "layers": [4, 5]}, "`rome`, layers: 4, 5."),
    ):
        said = [text(m, "en") for m in describe_method({"kind": "edit", "editor": editor})]
        assert said == [
            "The new answer is written into the weights, where the model looks the fact up.",
            f"Editor {told}",
        ]


def test_a_chain_is_described_by_its_steps_and_a_start_by_its_name() -> None:
    steps = [{"name": "fact", "kind": "train"}, {"kind": "blend"}]
    assert [text(m, "en") for m in describe_method({"kind": "steps", "steps": steps})] == [
        "A chain, in which each step starts from the model that the one before it has left: `fact` \u2192 `blend`."
    ]
    last = describe_method({"kind": "blend", "start": "taught"})[-1]
    assert text(last, "zh-TW") == "從 `taught` 的模型出發。"


def test_too_few_questions_are_not_called_no_loss() -> None:
    """One of four kept, where the floor keeps all four: p = 0.25 at best, so nothing can be said of it."""
    scores = {"reliability": 1.0, "locality.same_pattern": 0.25, "locality.unrelated": 0.25, "locality.refusal": 0.7}
    run = run_of(lora=(scores, 4))
    few, many = BesideFloor(4, 0.25, 1.0, 0.25, False, False), BesideFloor(40, 0.7, 0.75, 0.5, False, True)
    floor = {"locality.same_pattern": few, "locality.unrelated": few, "locality.refusal": many}
    shown = said(replace(run, rows=tuple(row.model_copy(update={"floor": floor}) for row in run.rows)))
    pattern = "Answered 25 % of other questions of the same shape as before, with too few questions to tell"
    assert f"{pattern} whether that is a loss: `lora`." in shown
    few_said = "Less was kept than on the noise floor, with too few questions to tell whether that is a loss"
    assert f"{few_said}: unrelated 25 % by `lora`." in shown
    assert "No loss is shown (not below the noise floor by a paired test): refusal 70 % by `lora`." in shown


def test_what_is_marked_as_a_loss_is_not_called_kept() -> None:
    """91 % of many questions can be below the floor by a paired test, and the table marks it so."""
    scores = {"reliability": 1.0, "locality.same_pattern": 0.92, "locality.unrelated": 0.91}
    run = run_of(lora=(scores, 6))
    floor = {key: BesideFloor(200, scores[key], 1.0, 0.0001, True, True) for key in scores if "." in key}
    shown = said(replace(run, rows=tuple(row.model_copy(update={"floor": floor}) for row in run.rows)))
    assert "Worn elsewhere (share left): unrelated 91 % by `lora`." in shown
    assert "Answered 92 % of other questions of the same shape as before: `lora`." in shown
    assert not any(line.startswith("Kept") for line in shown)
    assert "Kept elsewhere: unrelated 91 % by `lora`." in said(run)
