"""Respondents that adapt to what they are asked: items one by one and in order, and a killed exam goes on from the state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from posttrain.config.change import Change
from posttrain.errors import PosttrainError
from posttrain.exams.records import Sample
from posttrain.exams.running import run_task
from posttrain.exams.score_spec import ScoreSpec
from posttrain.exams.task import Ask, Item, Reply, Task
from posttrain.inference import state
from posttrain.inference.protocol import Answer, Plain, Scored, State
from posttrain.inference.respondents import ModelRespondent, PromptedRespondent
from posttrain.inference.shards import ShardedRespondent, work
from posttrain.models.load import load_model
from tests.exams.fakes import Fake, examined
from tests.exams.table import BrokeDownError
from tests.inference.adapting import Adapting, Counter

PicoPath = Callable[[str], Path]


def kept(item: Item, replies: Sequence[Reply]) -> Sample:
    """What was said, and how likely each text was."""
    said = " ".join(reply.text for reply in replies if isinstance(reply, Answer))
    nats = [reply.sum_nats for reply in replies if isinstance(reply, Scored)]
    return Sample(item.id, "", item.question, said, "", {"acc": sum(nats)}, extra={"nats": nats})


def task_of(name: str, items: Sequence[Item]) -> Task[Sample]:
    return Task(
        items=items,
        judge=kept,
        headline="acc",
        capabilities={"acc": "can.knowledge"},
        signature=f"{name}|v1",
        scores=(ScoreSpec("acc", "acc", "nats"),),
        name=name,
    )


def says(count: int, prompt: str = "Who?") -> Task[Sample]:
    """The same question so many times."""
    items = [Item(f"q{i}", prompt, (Ask("say", prompt, max_new_tokens=4),)) for i in range(count)]
    return task_of("says", items)


def chooses(count: int) -> Task[Sample]:
    """Questions with four choices each, of which two are the same."""
    items = []
    for i in range(count):
        prompt = Plain(f"Question {i % 3}: The capital of France is")
        items.append(
            Item(f"q{i}", prompt.text, tuple(Ask("score", prompt, text) for text in (" Paris", " a", " b", " a")))
        )
    return task_of("chooses", items)


@pytest.fixture
def _every_item(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is written after every item."""
    monkeypatch.setattr(state, "KEEP_S", 0.0)


def test_items_are_asked_one_by_one_in_order_and_none_is_left_out() -> None:
    counter = Counter()
    result = run_task(counter, says(5))
    assert counter.calls == [["Who?"]] * 5
    assert [sample.answer for sample in result.samples] == ["1", "2", "3", "4", "5"]
    assert [sample.answer for sample in run_task(counter, says(2)).samples] == ["1", "2"]  # from the beginning
    counter.calls.clear()
    run_task(counter, chooses(3))
    assert [[text for _, text in call] for call in counter.calls] == [[" Paris", " a", " b"]] * 3
    table = Fake("table", {"Who?": "I"})
    run_task(table, says(5))
    assert table.asked == [["Who?"]]  # once, of a respondent without a state


@pytest.mark.usefixtures("_every_item")
@pytest.mark.parametrize("dies_after", [1, 3, 4])
def test_a_killed_exam_goes_on_from_the_state(tmp_path: Path, dies_after: int) -> None:
    path = tmp_path / "says.jsonl"
    with pytest.raises(BrokeDownError):
        run_task(Counter(dies_after), says(5), samples_path=path)
    with safe_open(tmp_path / "says.state", "pt") as file:
        assert file.metadata()["count"] == str(dies_after)
    rest = Counter()
    rest.seen = 70  # what it has seen elsewhere is forgotten
    result = run_task(rest, says(5), samples_path=path)
    assert len(rest.calls) == 5 - dies_after
    assert result.earlier == dies_after
    assert [sample.answer for sample in result.samples] == ["1", "2", "3", "4", "5"]
    assert [file.name for file in tmp_path.iterdir()] == ["says.jsonl"]
    nobody = Counter(dies_after=0)
    assert run_task(nobody, says(5), samples_path=path).samples == result.samples


def test_what_was_answered_after_the_state_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "says.jsonl"
    true = state.StateFile.keep

    def seldom(self: state.StateFile, count: int) -> None:
        monkeypatch.setattr(state, "KEEP_S", 0.0 if count == 2 else 99.0)
        true(self, count)

    monkeypatch.setattr(state.StateFile, "keep", seldom)
    with pytest.raises(BrokeDownError):
        run_task(Counter(4), says(6), samples_path=path)
    assert len(path.read_text().splitlines()) == 4
    rest = Counter()
    result = run_task(rest, says(6), samples_path=path)
    assert len(rest.calls) == 4
    assert [sample.answer for sample in result.samples] == ["1", "2", "3", "4", "5", "6"]
    assert len(path.read_text().splitlines()) == 6


@pytest.mark.usefixtures("_every_item")
@pytest.mark.parametrize("lost", ["no state", "torn", "another's", "samples", "restart"])
def test_without_its_state_an_exam_begins_anew(tmp_path: Path, lost: str) -> None:
    path, kept_at = tmp_path / "says.jsonl", tmp_path / "says.state"
    with pytest.raises(BrokeDownError):
        run_task(Counter(3), says(5), samples_path=path)
    exam = says(5, "Who else?") if lost == "another's" else says(5)
    if lost == "no state":
        kept_at.unlink()
    elif lost == "torn":
        kept_at.write_bytes(kept_at.read_bytes()[:20])
    elif lost == "samples":
        path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:2]))
    rest = Counter()
    rest.seen = 70
    result = run_task(rest, exam, samples_path=path, restart=lost == "restart", discard=True)
    assert len(rest.calls) == 5
    assert [sample.answer for sample in result.samples] == ["1", "2", "3", "4", "5"]


@pytest.mark.usefixtures("_every_item")
@pytest.mark.parametrize("told", [False, True])
def test_a_model_that_learns_on_the_way(pico_path: PicoPath, tmp_path: Path, told: bool) -> None:
    """Killed and gone on with, it gives what it gives in one go; in another order, something else."""

    def fresh() -> tuple[Adapting, Any]:
        model = Adapting(load_model(str(pico_path("llama")), device="cpu"))
        return model, PromptedRespondent(model, "Be brief.") if told else model

    model, respondent = fresh()
    exam = chooses(6)
    whole = run_task(respondent, exam).samples
    assert [len(prompts) for prompts in model.asked] == [3] * 6
    nats = [sample.extra["nats"] for sample in whole]
    assert nats[0] != nats[3]  # the same question, some items later
    again = run_task(respondent, exam).samples
    assert again == whole  # it was reset
    turned = task_of(exam.name, list(exam.items)[::-1])
    assert {s.id: s.extra for s in run_task(respondent, turned).samples} != {s.id: s.extra for s in whole}

    model, respondent = fresh()
    step, model._adapt = model._adapt, None  # type: ignore[method-assign, assignment]

    def dies(prompts: Sequence[Any]) -> None:
        if len(model.asked) == 4:
            raise BrokeDownError
        step(prompts)

    model._adapt = dies  # type: ignore[method-assign]
    path = tmp_path / "chooses.jsonl"
    with pytest.raises(BrokeDownError):
        run_task(respondent, exam, samples_path=path)
    model, respondent = fresh()
    with torch.no_grad():
        model.weight += 1.0  # where it stood is of no account
    assert run_task(respondent, exam, samples_path=path).samples == whole
    assert len(model.asked) == 2


def test_a_state_goes_through_the_file_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "KEEP_S", 0.0)
    values = {"臺": [1, 2.5, None], "seen": 3}
    tensors = {"a": torch.randn(3, 4).t(), "b": torch.arange(3).to(torch.bfloat16), "c": torch.tensor(7)}

    class Keeper(Counter):
        restored: State

        def state(self) -> State:
            return State(values, tensors)

        def restore(self, state: State) -> None:
            self.restored = state

    keeper = Keeper()
    items = {"one": "1", "two": "2", "three": "3"}
    file = state.StateFile(tmp_path / "a.state", keeper, items)
    file.keep(2)
    done = {"one": 1, "two": 2}
    file.resume(done)
    assert done == {"one": 1, "two": 2}
    assert keeper.restored.values == values
    assert keeper.restored.tensors.keys() == tensors.keys()
    for name, tensor in keeper.restored.tensors.items():
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor, tensors[name])


CHANGE = Change.model_validate(
    {
        "name": "capital",
        "target": [{"prompt": "t1", "answer": "Lyon"}],
        "generality": {"rephrase": [{"prompt": "r1", "answer": "Lyon"}]},
        "locality": {"unrelated": ["u1", "u2"]},
    }
)
BEFORE = Fake("before", {"t1": "Paris", "r1": "Paris", "u1": "4", "u2": "Blue"})


def test_the_change_exam_asks_one_by_one_after_and_refuses_before() -> None:
    after = Counter()
    after.seen = 70
    result = examined(BEFORE, after, CHANGE)
    asked = [call[0] if isinstance(call[0], str) else [text for _, text in call] for call in after.calls]
    assert asked == ["t1", ["Lyon", "Paris"], "r1", ["Lyon", "Paris"], "u1", "u2"]
    assert [sample.after for sample in result.samples] == ["1", "3", "5", "6"]
    with pytest.raises(PosttrainError, match="counter: it adapts to what it is asked"):
        examined(after, BEFORE, CHANGE)


def test_what_asks_in_any_order_refuses(pico_path: PicoPath) -> None:
    from posttrain.exams.lm_eval import PosttrainLM

    loaded = load_model(str(pico_path("llama")), device="cpu")
    with pytest.raises(PosttrainError, match="lm-eval's tasks are asked in any"):
        PosttrainLM(Adapting(loaded))
    assert PosttrainLM(ModelRespondent(loaded)).respondent.stateful is False
    for share in (ShardedRespondent, work):
        with pytest.raises(PosttrainError, match="several processes cannot share the inputs; run it in one process"):
            share(Counter())
