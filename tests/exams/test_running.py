from __future__ import annotations

import os
import re
import signal
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain import registry
from posttrain.data.records import Message
from posttrain.errors import ConfigError, DataError, DiskError, PosttrainError
from posttrain.exams.exam import Sitting, build
from posttrain.exams.records import Sample
from posttrain.exams.running import TaskProgress, run_task
from posttrain.exams.sample_log import SampleKey, SampleLog, read_samples
from posttrain.exams.score_spec import specs
from posttrain.exams.statistics import wilson
from posttrain.exams.task import Ask, Item, Reply, Task, draw, mean_score
from posttrain.inference.protocol import Answer, Plain, Scored
from posttrain.inference.respondents import ModelRespondent, PromptedRespondent
from posttrain.models.load import load_model
from tests.exams.table import BrokeDownError, Table
from tests.pico import pico
from tests.processes import Started


def two_choices(item: Item, replies: Sequence[Reply]) -> Sample:
    """Right when the first continuation is likelier; what was said is kept."""
    nats = [reply.sum_nats for reply in replies if isinstance(reply, Scored)]
    said = [reply for reply in replies if isinstance(reply, Answer)]
    right = nats[0] > nats[1]
    return Sample(
        id=item.id,
        group=item.group,
        question=item.question,
        answer=said[0].text if said else "",
        target="yes",
        scores={"acc": float(right)},
        correct=right,
        choices=2,
        confidence=item.doc.get("confidence"),
        ended=all(one.ended for one in said),
    )


def item(name: str, *, say: bool = False, confidence: float | None = None) -> Item:
    prompt = Plain(f"examples\nIs {name} so?")
    asks = (Ask("score", prompt, " yes"), Ask("score", prompt, " no"))
    free = (Ask("say", f"Is {name} so?", max_new_tokens=8, stop=("\n",)),) if say else ()
    return Item(name, f"Is {name} so?", (*asks, *free), doc={"confidence": confidence})


def task(items: Sequence[Item], **changes: object) -> Task:
    made = Task(
        list(items), two_choices, "acc", {"acc": "can.knowledge"}, "small|v1", specs("acc"), chance=0.5, name="small",
        kind="toy",
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


NAMES = ["water", "iron", "glass", "stone", "sand", "clay"]


def test_one_call_for_each_kind_of_ask_and_the_same_ask_once() -> None:
    items = [item(name, say=True) for name in NAMES]
    items.append(replace(items[0], id="again"))  # the same asks under another id
    items.append(Item("long", "Q", (*items[0].asks[:2], Ask("say", "Q", max_new_tokens=99))))
    items.append(Item("text", "T", (*items[1].asks[:2], Ask("text", "", "a whole text"))))
    table = Table()
    result = run_task(table, task(items))
    assert sorted((kind, len(asks)) for kind, asks in table.calls) == [
        ("say", 1),
        ("say", 6),
        ("score", 12),
        ("text", 1),
    ]
    assert [sample.id for sample in result.samples] == [*NAMES, "again", "long", "text"]
    assert result.samples[0].answer == result.samples[6].answer == "said Is "  # cut at 8 of the fake's tokens


def test_scores_cost_and_what_the_task_says_of_itself() -> None:
    likes = {" yes": -1.0, " no": -2.0}
    exam = task([item(name, say=True) for name in NAMES], notes=("a note",))
    result = run_task(Table(likes=lambda prompt, text: likes[text] - 9 * (text == " yes" and "iron" in prompt)), exam)
    assert result.scores == {"acc": pytest.approx(5 / 6)}
    assert result.ci95 == {"acc": wilson(5, 6)}
    assert result.n == {"acc": 6}
    assert result.cost["scored_tokens"] == result.cost["forwarded_tokens"] == 12  # not the 1,000 spent before
    assert result.cost["requests"] == 18
    assert result.cost["peak_gib"] > 0.01
    assert result.notes == ["a note", "6 of 6 samples have an answer cut at max_new_tokens"]
    info = result.info
    assert (info.name, info.kind, info.headline, info.chance) == ("small", "toy", "acc", 0.5)
    assert info.signature == exam.whole_signature
    assert re.fullmatch(rf"small\|v1\|n {len(exam.items)}\|#[0-9a-f]{{8}}", info.signature)
    assert replace(exam, items=exam.items[1:]).whole_signature[-8:] != info.signature[-8:]  # of the questions


def test_every_sample_is_on_the_disk_as_soon_as_it_is_judged(tmp_path: Path) -> None:
    path = tmp_path / "exams" / "small.jsonl"
    seen: list[tuple[int, int]] = []

    def look(progress: TaskProgress) -> None:
        lines = path.read_text().splitlines() if path.exists() else []
        seen.append((progress.done, len(lines)))

    run_task(Table(), task([item(name) for name in NAMES]), samples_path=path, on_progress=look)
    assert seen == [(done, done // 2) for done in range(1, 13)]


def test_a_breakdown_loses_nothing_and_the_second_start_redoes_nothing(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    exam = task([item(name, say=True) for name in NAMES], perturbations=("lower", "typos"))
    run_task(Table(), exam, samples_path=whole)
    with pytest.raises(BrokeDownError):
        run_task(Table(dies_after=36 + 7), exam, samples_path=broken)  # all likelihoods, 7 of 18 answers
    assert len(broken.read_text().splitlines()) == 7
    second = Table()
    result = run_task(second, exam, samples_path=broken)
    assert sum(len(asks) for _, asks in second.calls) == 3 * 11
    assert broken.read_bytes() == whole.read_bytes()
    assert result.earlier == 7
    assert "7 of 18 samples were there already; time and tokens are of the others" in result.notes
    third = Table()
    assert run_task(third, exam, samples_path=broken).scores == result.scores
    assert third.calls == []


def run_and_die(path: Path) -> None:
    def stop(progress: TaskProgress) -> None:
        if progress.done == 7:
            os.kill(os.getpid(), signal.SIGKILL)

    run_task(Table(), task([item(name) for name in NAMES]), samples_path=path, on_progress=stop)


def test_kill_minus_nine_between_two_samples(tmp_path: Path) -> None:
    path = tmp_path / "small.jsonl"
    code, _, err = Started(run_and_die, path, folder=tmp_path).finish()
    assert code == -signal.SIGKILL, err
    assert len(path.read_text().splitlines()) == 3
    table = Table()
    run_task(table, task([item(name) for name in NAMES]), samples_path=path)
    assert [len(asks) for _, asks in table.calls] == [6]


def test_a_torn_line_is_cut_and_a_broken_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "small.jsonl"
    exam = task([item(name) for name in NAMES])
    run_task(Table(), exam, samples_path=path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    table = Table()
    run_task(table, exam, samples_path=path)
    assert [len(asks) for _, asks in table.calls] == [2]
    assert path.read_bytes() == whole
    path.write_bytes(whole.replace(b'"id": "iron"', b'"id": "iron', 1))
    with pytest.raises(DataError, match=r"small.jsonl:2: not a sample of an exam"):
        run_task(Table(), exam, samples_path=path)


def test_samples_of_another_model_or_task_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.jsonl"
    exam = task([item(name) for name in NAMES])
    run_task(Table(), exam, samples_path=path)

    def refused(respondent: Table, exam: Task) -> str:
        with pytest.raises(ConfigError) as caught:
            run_task(respondent, exam, samples_path=path)
        assert respondent.calls == []
        (problem,) = caught.value.problems
        assert (problem.location, problem.mend) == (str(path), "give another --output, or --restart to throw them away")
        return problem.cause.removeprefix("holds ")

    model, settings = "another model or chat template", "other settings or another file of questions"
    assert refused(Table(name="another"), exam) == f"6 samples of another exam: {model}"
    assert refused(Table(), replace(exam, signature="small|v2")) == f"6 samples of another exam: {settings}"
    edited = task([item(name, say=name == "iron") for name in NAMES])
    assert refused(Table(), edited) == "1 samples of another exam: questions worded otherwise"
    fewer = "questions that are not asked now (such as with a smaller limit)"
    assert refused(Table(), task([item(name) for name in NAMES[:4]])) == f"2 samples of another exam: {fewer}"
    other = Table(name="another")
    run_task(other, exam, samples_path=path, restart=True)
    assert len(other.calls[0][1]) == 12
    assert [sample.id for sample in read_samples(path)] == NAMES
    rest = Table(name="another")
    run_task(rest, exam, samples_path=path)
    assert rest.calls == []
    path.write_text(re.sub('"exam": "[^"]*"', '"exam": "0123456789abcdef"', path.read_text()))
    assert refused(Table(name="another"), exam) == "6 samples of another exam: of an earlier version of posttrain"


def test_more_questions_go_on_and_give_the_file_of_a_run_in_one_piece(tmp_path: Path) -> None:
    """What is there is not asked again; the new questions stand in their places."""
    exam = task([item(name) for name in NAMES], perturbations=("lower",))
    some = replace(exam, items=[exam.items[i] for i in (1, 4)])
    part, whole = tmp_path / "part.jsonl", tmp_path / "whole.jsonl"
    run_task(Table(), some, samples_path=part)
    table, fresh = Table(), Table()
    result = run_task(table, exam, samples_path=part)
    assert run_task(fresh, exam, samples_path=whole).scores == result.scores
    assert part.read_bytes() == whole.read_bytes()
    asked, every = ([ask for _, asks in one.calls for ask in asks] for one in (table, fresh))
    assert len(every) - len(asked) == result.earlier * 2 > 0  # each sample is two asks
    assert not [ask for ask in asked if NAMES[1] in str(ask) or NAMES[4] in str(ask)]


def test_a_study_throws_away_what_is_of_another_exam_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "small.jsonl"
    run_task(Table(), task([item(name) for name in NAMES]), samples_path=path)
    table = Table()
    run_task(table, task([item(name) for name in [*NAMES[:3], "new"]]), samples_path=path, discard=True)
    assert [len(asks) for _, asks in table.calls] == [2]
    assert [sample.id for sample in read_samples(path)] == [*NAMES[:3], "new"]
    path.write_text("not a sample\n")
    run_task(Table(), task([item("a")]), samples_path=path, discard=True)
    assert [sample.id for sample in read_samples(path)] == ["a"]


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 400), st.integers(0, 3))
def test_a_larger_limit_has_the_items_of_a_smaller_one(total: int, one: int, other: int, seed: int) -> None:
    items = [item(str(i)) for i in range(total)]
    few, many = (draw(items, limit, seed) for limit in sorted((one, other)))
    assert [i for i in many if i in few] == few
    assert len(few) == min(one, other, total)
    assert [i for i in items if i in few] == few  # in their order


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "small: the task has no items"),
        ([item("a"), item("b"), item("a")], "two items have the id 'a'"),
    ],
)
def test_tasks_that_cannot_be_asked(items: list[Item], message: str) -> None:
    with pytest.raises(DataError, match=message):
        run_task(Table(), task(items))


def test_an_answer_of_no_tokens_does_not_win_silently() -> None:
    """It would have 0 nats: the likeliest there can be."""
    nothing = Item("iron", "Q", (Ask("score", Plain("Q"), ""), Ask("score", Plain("Q"), " no")))
    with pytest.raises(DataError, match=r"^exam small, item 'iron': the model has no token for the answer ''"):
        run_task(Table(), task([item("water"), nothing]))


def test_a_perturbation_needs_the_question_in_every_prompt() -> None:
    text = Item("t", "Some Text", (Ask("text", "", "Some Text"),))
    with pytest.raises(
        PosttrainError, match="cannot be asked with 'lower': the words of item 't' are not in its prompt"
    ):
        run_task(Table(), task([text], perturbations=("lower",)))


def test_only_the_last_occurrence_is_disturbed_in_plain_text_and_in_turns() -> None:
    turns = (Message("user", "ABC"), Message("assistant", "no"), Message("user", "x ABC"))
    asks = (Ask("score", turns, "1"), Ask("score", Plain("ABC ABC:"), "2"), Ask("score", "ABC", "3"))
    table = Table()
    run_task(table, task([Item("i", "ABC", asks)], perturbations=("lower",)))
    prompts = [pair[0] for pair in table.calls[0][1][3:]]  # type: ignore[index]
    assert prompts == [(*turns[:2], Message("user", "x abc")), Plain("ABC abc:"), "abc"]


def test_robustness_is_the_worst_case_over_questions_that_changed() -> None:
    def likes(prompt: str, text: str) -> float:
        wrong = "ＩＲＯＮ" in prompt or "Clay" in prompt
        return -1.0 if (text == " yes") != wrong else -2.0

    items = [item("IRON"), item("Clay"), replace(item("sand"), question="sand")]
    result = run_task(Table(likes=likes), task(items, perturbations=("lower", "width")))
    assert result.scores["acc"] == pytest.approx(2 / 3)  # Clay is wrong
    assert result.scores["acc~lower"] == 1.0  # iron, clay; 'sand' is in lower case already
    assert result.n["acc~lower"] == 2
    assert result.scores["acc~width"] == pytest.approx(2 / 3)
    assert result.scores["robust.acc"] == pytest.approx(1 / 3)  # iron falls at width, clay always, sand stands
    assert result.n["robust.acc"] == 3
    assert result.ci95["robust.acc"] == wilson(1, 3)
    assert "lower changes nothing in 1 of 3 questions" in result.notes
    assert [s.key for s in result.samples] == [
        "IRON|", "Clay|", "sand|", "IRON|lower", "Clay|lower", "IRON|width", "Clay|width", "sand|width",
    ]  # fmt: skip


def test_where_lower_is_better_the_worst_is_the_largest() -> None:
    def judge(one: Item, replies: Sequence[Reply]) -> Sample:
        loss = -sum(reply.sum_nats for reply in replies if isinstance(reply, Scored))
        return Sample(one.id, "", one.question, "", "", {"loss": loss})

    low = task([item("A"), item("B")], judge=judge, headline="loss", perturbations=("lower",),
               scores=specs("loss", unit="nats", better="less"))  # fmt: skip
    likes = {"A": 1.0, "a": 3.0, "B": 5.0, "b": 2.0}

    def half(prompt: str, text: str) -> float:
        return -next(value for name, value in likes.items() if f" {name} " in prompt) / 2

    result = run_task(Table(likes=half), low)
    assert result.scores["loss"] == 3.0
    assert result.scores["robust.loss"] == 4.0  # 3 and 5
    assert result.scores["loss~lower"] == 2.5


def test_a_headline_of_all_samples_together_has_no_worst_case() -> None:
    exam = task([item("A")], aggregate=lambda samples: {"f1": mean_score([0.5])}, headline="f1", scores=specs("f1"))
    result = run_task(Table(), replace(exam, perturbations=("lower",)))
    assert result.scores == {"f1": 0.5, "f1~lower": 0.5}
    assert any(note.startswith("no robust.f1") for note in result.notes)


def test_a_score_that_nobody_declared_is_an_error() -> None:
    exam = task([item("A")], aggregate=lambda samples: {"acc": mean_score([1.0]), "speed": mean_score([0.5])})
    with pytest.raises(PosttrainError, match="exam small: the kind 'toy' makes the score 'speed' and does not declare"):
        run_task(Table(), exam)


def test_every_score_has_its_declaration() -> None:
    result = run_task(Table(), task([item("A", confidence=0.9)], perturbations=("lower",)))
    assert {"acc", "acc~lower", "robust.acc", "calibration.ece_em10"} <= result.scores.keys()
    better = {spec.key: spec.better for spec in result.info.scores}
    assert better.keys() >= result.scores.keys()
    assert (better["robust.acc"], better["calibration.ece_em10"]) == ("more", "less")


def test_calibration_by_hand() -> None:
    def likes(prompt: str, text: str) -> float:
        return -1.0 if (text == " yes") == ("water" in prompt or "glass" in prompt) else -2.0

    sure = [item("water", confidence=0.9), item("iron", confidence=0.7), item("glass", confidence=0.95)]
    result = run_task(Table(likes=likes), task([*sure, item("sand")]))
    # bins of equal width: 0.7 alone and wrong, 0.9 and 0.95 both right: |0.7 - 0| / 3 + |1.85 - 2| / 3
    assert result.scores["calibration.ece_ew10"] == pytest.approx((0.7 + 0.15) / 3)
    assert result.scores["calibration.selective_acc"] == 1.0
    assert result.scores["calibration.selective_area"] == pytest.approx((1 + 1 + 2 / 3) / 3)
    assert result.n["calibration.ece_em10"] == 3
    assert "calibration is over 3 samples only; below 300 it is mostly noise" in result.notes


def test_chunks_change_nothing_but_the_calls() -> None:
    exam = task([item(name) for name in NAMES])
    whole = run_task(Table(), exam)
    table = Table()
    parts = run_task(table, exam, chunk=4)
    assert [len(asks) for _, asks in table.calls] == [4, 4, 4]
    assert (parts.samples, parts.scores) == (whole.samples, whole.scores)


def test_progress_ends_at_the_whole_and_does_not_guess_at_first() -> None:
    told: list[TaskProgress] = []
    items = [item(str(i)) for i in range(60)]
    run_task(Table(), task([*items, replace(items[0], id="twin")]), on_progress=told.append)
    assert told[0].left_s is None
    assert told[-1].done == told[-1].total == 122  # an ask that two items share counts twice
    assert told[-1].left_s == 0.0
    assert told[-1].tokens == 120
    assert all(a.done <= b.done for a, b in pairwise(told))


def test_a_last_step_has_every_sample_and_may_say_something() -> None:
    seen: list[tuple[str, int]] = []

    def finish(name: str, samples: Sequence[Sample]) -> list[str]:
        seen.append((name, len(samples)))
        return ["written"]

    result = run_task(Table(), task([item("a"), item("b")], finish=finish))
    assert seen == [("table", 2)]
    assert result.notes[-1] == "written"


def test_usage_that_is_a_new_object_each_time_is_read_again() -> None:
    class Sharded(Table):
        def logprobs(self, pairs, *, on_scored=None):  # type: ignore[no-untyped-def]
            done = super().logprobs(pairs, on_scored=on_scored)
            self.usage = replace(self.usage, scored_tokens=1500)
            return done

    assert run_task(Sharded(), task([item("a")])).cost["scored_tokens"] == 500


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_told_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    file = SampleLog(path, {("", "a|"): SampleKey("model", "settings", "question")}, Sample.from_json)
    path.symlink_to("/dev/full")  # only now: reading it never ends
    with pytest.raises(DiskError, match="cannot be written: No space left on device; free some space") as error:
        file.append(Sample("a", "", "q", "yes", "yes", {"acc": 1.0}))
    assert error.value.problems[0].location == str(path)


def test_a_chat_template_that_is_not_there_is_asked_for(tmp_path: Path) -> None:
    plain = ModelRespondent(load_model(str(pico("llama", tmp_path, template=None)), device="cpu"))
    file = tmp_path / "q.jsonl"
    file.write_text('{"prompt": "hello", "kind": "benign", "id": "a"}\n', encoding="utf-8")
    for wanted, fails in (("auto", False), ("chat", True)):
        config = registry.load("exam", "refusal").config(path=str(file), template=wanted)
        exam = build(config, tmp_path)
        if fails:
            told = PromptedRespondent(plain, "Remember this.")
            with pytest.raises(ConfigError, match=r"refusal: the exam asks in the chat template .*, and .* has none"):
                exam.take(Sitting(told))
        else:
            assert exam.take(Sitting(plain))[0].samples
