"""A change learned by comparing: the target's answer against what the untouched model says."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.config.change import Change
from posttrain.errors import DataError
from posttrain.studies.candidates import CellContext
from posttrain.studies.train_config import settings_of
from posttrain.studies.train_rows import encoded_rows, target_records
from tests.studies.methods.test_train import bench_of, config, context_of, trained

ASKED = ["capital of France?", "who wrote Hamlet?"]


def asking(tmp_path: Path, answers: list[str] | None = None) -> CellContext:
    """answers: wanted; None wants what the talker says already."""
    bench = bench_of(tmp_path)
    wanted = answers or [answer.text.strip() for answer in bench.before.answers(ASKED, max_new_tokens=20)]
    targets = [{"prompt": p, "answer": a} for p, a in zip(ASKED, wanted, strict=True)]
    return context_of(bench, tmp_path / "cell", Change.model_validate({"name": "c", "target": targets}))


@pytest.mark.parametrize(("objective", "rows"), [("dpo", 1), ("orpo", 1), ("kto", 2)])
def test_the_target_gains_on_the_present_answer(tmp_path: Path, objective: str, rows: int) -> None:
    (present,) = asking(tmp_path).changes
    context = asking(tmp_path, ["Tokyo", present.target[1].answer[0]])  # the second is answered so already
    said: list[str] = []
    settings = settings_of(config(objective=objective), context, "talker")
    records = target_records(settings.objective, context.changes, context.bench.before, said.append)
    assert said == ["1 of 2 targets are left out: the model answers as wanted already, or not at all"]
    assert len(records) == rows
    assert len(encoded_rows(settings.objective, records, context.bench.working().tokenizer, 200)) == rows
    result = trained(config(objective=objective), context)
    assert any("1 of 2 targets are left out" in note for note in result.notes)
    history = result.metrics
    assert history[-1]["loss_nats"] < history[0]["loss_nats"]
    assert history[-1]["margin"] > 0


def test_a_change_that_is_there_already_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="every target is answered as wanted already"):
        trained(config(objective="dpo"), asking(tmp_path))


def test_the_targets_are_what_the_teacher_of_sdft_is_shown(tmp_path: Path) -> None:
    context = asking(tmp_path, ["Tokyo", "Marlowe"])
    objective = {"kind": "sdft", "temperature": 0, "max_new_tokens": 8}
    chosen = config(objective=objective, optimizer={"max_steps": 12, "learning_rate": 3e-3})
    settings = settings_of(chosen, context, "talker")
    records = target_records(settings.objective, context.changes, context.bench.before, lambda text: None)
    loaded = context.bench.working()
    rows = encoded_rows(settings.objective, records, loaded.tokenizer, 512)
    assert ["Tokyo" in loaded.tokenizer.decode(row.shown) for row in rows] == [True, False]
    history = trained(chosen, context).metrics
    assert history[-1]["loss_nats"] < 0.7 * history[0]["loss_nats"]
    assert history[0]["answer_tokens"] >= 2  # Paris and its end
