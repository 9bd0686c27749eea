"""Studies on editing data sets: a change from each record, and exams that compare with the untouched model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.exams.exam import build
from posttrain.exams.tasks.counterfact import CounterfactConfig
from posttrain.studies.exams import words_of
from tests.data.edits.records import EXAMPLES, example, written
from tests.studies.test_run import go, results


@pytest.fixture
def edited(make_study: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Writes a study of the first two records of CounterFact, told in the prompt."""
    for form in ("counterfact", "knowedit", "ripple_edits"):
        written(tmp_path / f"{form}.json", example(form))

    def write(**fields: Any) -> Path:
        exams = [
            "change",
            *({"kind": kind, "path": f"{kind}.json[:2]"} for kind in ("counterfact", "knowedit", "ripple_edits")),
        ]
        given = {"changes": "counterfact.json[:2]", "methods": [{"name": "told", "kind": "prompt"}], "exams": exams}
        return make_study(**{**given, **fields})

    return write


def test_a_change_from_each_record_and_locality_against_the_untouched_model(edited: Callable[..., Path]) -> None:
    path = edited()
    outcome, _ = go(path)
    assert outcome.failed == []
    data = results(path)
    told = [cell for cell in data["cells"] if cell["method"] == "told"]
    assert [cell["change"] for cell in told] == ["counterfact-00000", "counterfact-00001"]
    assert [cell["n"]["generality.rephrase"] for cell in told] == [2, 2]
    (before,) = data["before"]
    assert before["scores"]["knowedit.locality"] == 1.0
    for cell in told:
        assert 0.0 <= cell["scores"]["knowedit.locality"] <= 1.0
        assert "counterfact.efficacy.success" in cell["scores"]
        assert cell["compare"]["knowedit"]["n"] == 2
        samples = path.parent / "run" / cell["folder"] / "exams" / "knowedit.jsonl"
        assert len(samples.read_text(encoding="utf-8").splitlines()) == 2


def test_a_second_run_asks_nothing_and_a_larger_slice_keeps_the_cells(edited: Callable[..., Path]) -> None:
    path = edited()
    go(path)
    _, listener = go(path)
    assert listener.ran == []
    first = {cell["change"]: cell["hash"] for cell in results(path)["cells"]}
    path = edited(changes="counterfact.json[:3]")
    _, listener = go(path)
    assert "told/counterfact-00000" not in listener.ran
    again = {cell["change"]: cell["hash"] for cell in results(path)["cells"]}
    assert first.items() <= again.items()
    assert len(again) == 3


def test_every_prompt_of_a_record_is_kept_out_of_training() -> None:
    exam = build(CounterfactConfig(path="counterfact.json[:1]"), EXAMPLES)
    (item,) = exam.parts[0].items
    asked = {text for ask in item.asks for text in words_of(item, ask)}
    record = example("counterfact")[0]
    plain = {"Kenya lies in", *record["neighborhood_prompts"], *record["generation_prompts"]}
    assert plain | {text for text in record["paraphrase_prompts"] if "Kenya lies in" not in text} <= asked
