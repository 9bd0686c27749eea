from collections.abc import Mapping
from typing import Any

import pytest
from rich.cells import cell_len

from posttrain.exams.floor import NOISE_FLOOR, BesideFloor
from posttrain.exams.results import ExamInfo, Line, Results, Summary, Untouched
from posttrain.exams.score_spec import specs
from posttrain.reports.table import text_table


def line(method: str, change: str, scores: Mapping[str, float], **more: Any) -> Line:
    return Line(model="m", method=method, change=change, scores=dict(scores), **more)


def results_of(*cells: Line, **more: Any) -> Results:
    return Results(study="s", cells=cells, **more)


RESULTS = Results(study="demo", cells=(
    line("full", "a", {"reliability": 1.0, "generality.rephrase": 0.75, "locality.same_pattern": 0.1, "leak": 0.6},
         cost={"wall_s": 2.0}),
    line("full", "b", {"reliability": 1.0, "generality.rephrase": 0.25, "locality.same_pattern": 0.0, "leak": 0.8},
         cost={"wall_s": 4.0}),
    line("重播 self", "a", {"reliability": 1.0, "generality.rephrase": 1.0, "locality.same_pattern": 0.8},
         cost={"wall_s": 3.0}),
    line("重播 self", "b", {}, status="failed", error="x"),
))  # fmt: skip

GOLDEN = """\
demo: per cent over 1 to 2 changes; drift in nats per token

method     reliab.  rephrase  pattern  leak  s/cell
───────────────────────────────────────────────────
full           100        50        5    70       3
重播 self      100       100       80     –       3

Not all over the same changes, so not to be held against each other number by number; of 2 changes: 重播 self 1.
Fewer than 5 changes: no best trade-off is named.
1 cell(s) failed: 重播 self/b
"""


def test_golden() -> None:
    assert text_table(RESULTS, 130) == GOLDEN


@pytest.mark.parametrize("width", [40, 55, 80, 200])
@pytest.mark.parametrize("language", ["en", "zh-TW"])
def test_no_line_is_wider_than_the_terminal(width: int, language: str) -> None:
    shown = text_table(RESULTS, width, language=language)
    assert max(map(cell_len, shown.splitlines())) <= width
    assert "100" in shown


def test_columns_that_do_not_fit_are_named() -> None:
    assert "Left out for the terminal's width: s/cell." in text_table(RESULTS, 44)


def test_markup_in_names_is_shown_as_it_is() -> None:
    assert "[red]x[/red]" in text_table(results_of(line("[red]x[/red]", "a", {"reliability": 1.0})), 80)


def test_no_cells() -> None:
    assert "method" in text_table(results_of(), 80)


def test_nobody_is_best_who_learned_nothing() -> None:
    cells = [line(name, "a", {"reliability": 0.3, "locality.same_pattern": 1.0}) for name in ("a", "b")]
    assert "Best" not in text_table(results_of(*cells), 80)


EXAMS = Results(
    study="demo",
    exams={
        "mmlu": ExamInfo(name="mmlu", kind="mmlu", headline="acc", scores=specs("acc")),
        "wiki": ExamInfo(name="wiki", kind="perplexity", headline="token_perplexity",
                         scores=specs("token_perplexity", unit="number", better="less")),
    },
    before=(Untouched(model="m", scores={"mmlu.acc": 0.5, "wiki.token_perplexity": 20.25}),),
    cells=(line("full", "", {"mmlu.acc": 0.25, "mmlu.acc/law": 0.1}),),
)  # fmt: skip

GOLDEN_EXAMS = """\
demo: main score of each exam

method      mmlu   wiki
───────────────────────
untouched  0.500  20.25
full       0.250      –
"""


def test_exams_stand_beside_the_untouched_model() -> None:
    assert text_table(EXAMS, 80) == GOLDEN_EXAMS


def with_floor(unrelated: BesideFloor) -> Results:
    scores = {"reliability": 1.0, "locality.same_pattern": 0.1, "locality.unrelated": unrelated.score}
    floor = {
        "locality.same_pattern": BesideFloor(40, 0.1, 1.0, 0.0001, below=True, testable=True),
        "locality.unrelated": unrelated,
    }
    cells = [line("lora", change, scores) for change in "abcd"]
    return results_of(*cells, summary=(Summary(model="m", method="lora", scores=scores, floor=floor),))


def test_what_too_few_questions_cannot_tell_has_a_sign_of_its_own() -> None:
    few = BesideFloor(4, 0.25, 1.0, 0.25, below=False, testable=False)
    shown = text_table(with_floor(few), 160)
    assert "10↓" in shown
    assert "25?" in shown
    assert "no loss is shown." in shown
    assert "? kept less than the noise floor, with too few questions to tell" in shown
    assert "is no loss" not in shown
    assert "問題太少，無法判斷" in text_table(with_floor(few), 100, language="zh-TW")
    enough = BesideFloor(40, 0.9, 1.0, 0.125, below=False, testable=True)
    shown = text_table(with_floor(enough), 100)
    assert "90\n" in shown
    assert "?" not in shown


def test_averages_over_different_changes_say_so() -> None:
    """`run --changes 2`, then `run --changes 6 --only full`: five changes are not shared, so nobody is the best."""
    scores = {"reliability": 1.0, "locality.same_pattern": 0.5}
    cells = [line(method, f"c{i}", scores) for method, n in (("prompt", 2), ("full", 6), ("lora", 2)) for i in range(n)]
    shown = text_table(results_of(*cells), 140)
    assert shown.startswith("s: per cent over 2 to 6 changes; ")
    assert "not to be held against each other number by number; of 6 changes: prompt 2, lora 2." in shown
    assert "Fewer than 5 changes" in shown
    assert "Best" not in shown
    chinese = text_table(results_of(*cells), 140, language="zh-TW")
    assert chinese.startswith("s：百分比，對 2 至 6 項改變取平均；")
    assert "6 項改變中只有：prompt 2 項、lora 2 項。" in chinese
    same = [cell for cell in cells if cell.change in ("c0", "c1")]
    shown = text_table(results_of(*same), 140)
    assert shown.startswith("s: per cent over 2 changes; ")
    assert "Not all" not in shown
    assert text_table(results_of(same[0]), 140).startswith("s: per cent over one change; ")


def test_as_many_changes_need_not_be_the_same_ones() -> None:
    scores = {"reliability": 1.0}
    cells = [
        line("full", "a", scores), line("full", "b", {}, status="failed"),
        line("lora", "a", {}, status="failed"), line("lora", "b", scores),
    ]  # fmt: skip
    shown = text_table(results_of(*cells), 140)
    assert shown.startswith("s: per cent over one change; ")
    assert "of 2 changes: full 1, lora 1." in shown


def test_a_column_that_had_nothing_to_count_is_named() -> None:
    notes = (
        "1 of 1 probes of locality.format are not counted: the answer before has no form: no JSON, list, table or code",
        "1 of 3 probes of locality.neighbour are not counted: "
        "the answer before was cut before it showed a form: raise max_new_tokens",
        "2 of 5 probes of locality.refusal are not counted: the answer before is no refusal",
        "1 of 4 probes of locality.unrelated are not counted: 'Tolstoy' is not in the answer before: check `keeps`",
        "1 of 4 targets were met before the change already",
    )
    scores = {"reliability": 1.0, "locality.refusal": 1.0, "locality.unrelated": 1.0}
    cells = [line(method, change, scores, notes=notes) for method in ("full", "lora") for change in ("a", "b")]
    shown = text_table(results_of(*cells), 350)
    assert "format" not in shown.splitlines()[2]
    assert (
        "Not counted in locality, as there was nothing to keep: "
        "format 2 of 2 (no form before: no JSON, list, table or code); "
        "neighbour 2 of 6 (cut before a form showed: `max_new_tokens` is too small); refusal 4 of 10 (no refusal before); "
        "unrelated 2 of 8 (`keeps` has words that are not in the answer before)."
    ) in shown
    assert "格式 2 題中的 2 題（原本的回答沒有格式" in text_table(results_of(*cells), 250, language="zh-TW")


def test_the_noise_floor_is_called_by_its_words() -> None:
    cell = line(NOISE_FLOOR, "a", {"leak": 0.0})
    assert "\n雜訊底線" in text_table(results_of(cell), 80, language="zh-TW")
    assert "\nnoise floor" in text_table(results_of(cell), 80)
