"""The model for lm-eval around its scores: caches, keys, several processes, registered name, tasks found by name."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ["HF_DATASETS_OFFLINE"] = "1"
pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from posttrain.errors import ConfigError, DataError, MissingError, PosttrainError, TemplateError
from posttrain.exams.exam import Sitting
from posttrain.exams.lm_eval import PosttrainLM
from posttrain.exams.lm_eval_tasks import load_tasks
from posttrain.exams.running import TaskResult
from posttrain.exams.tasks.lm_eval import LmEvalConfig, LmEvalExam
from posttrain.inference.respondents import ModelRespondent, PromptedRespondent
from posttrain.models.load import load_model
from tests.pico import pico
from tests.processes import Started

PicoPath = Callable[[str], Path]

TASK = """\
task: {name}
tag: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: [" red", " blue", " green"]
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
SAID = """\
task: said
dataset_path: json
dataset_kwargs: {data_files: {test: questions.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "x"
generation_kwargs: {until: ["."], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(autouse=True)
def no_report_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """`simple_evaluate` asks pip and git about this machine, for seconds."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda storage: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tasks over ten questions, one with a path relative to itself."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": f"The colour of number {i} is", "answer": i % 3} for i in range(10)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "near.yaml").write_text(TASK.format(name="near", file="questions.jsonl"), encoding="utf-8")
    (folder / "far.yaml").write_text(TASK.format(name="far", file=folder / "questions.jsonl"), encoding="utf-8")
    (folder / "said.yaml").write_text(SAID, encoding="utf-8")
    return folder


def taken(folder: Path, *tasks: str, **settings: Any) -> LmEvalExam:
    """Tasks of a folder as an exam."""
    return LmEvalExam(LmEvalConfig(tasks=tasks, include_path=(str(folder),), **settings), Path())


def results(exam: LmEvalExam, respondent: Any, out: Path | None = None) -> dict[str, TaskResult]:
    return {one.info.name: one for one in exam.take(Sitting(respondent, out))}


def forwarded(lm: PosttrainLM) -> int:
    return lm.usage.scored_tokens + lm.usage.prompt_tokens


def shaken(path: Path, to: Path) -> Path:
    """A copy with other weights."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(path, to)
    torch.manual_seed(3)
    weights = {k: v + torch.randn_like(v) for k, v in load_file(to / "model.safetensors").items()}
    save_file(weights, to / "model.safetensors", {"format": "pt"})
    return to


# ---- by name, and the caches ---------------------------------------------------------------------------------------


def test_the_registered_name_is_the_object(folder: Path, pico_path: PicoPath) -> None:
    settings: dict[str, Any] = {
        "tasks": ["far"],
        "task_manager": TaskManager(include_path=str(folder), include_defaults=False),
        "bootstrap_iters": 0,
    }
    path = str(pico_path("llama"))
    named = simple_evaluate(model="posttrain", model_args=f"pretrained={path},batch_tokens=512", **settings)
    given = simple_evaluate(model=PosttrainLM.from_pretrained(path), **settings)
    assert [s["resps"] for s in named["samples"]["far"]] == [s["resps"] for s in given["samples"]["far"]]
    assert named["config"]["model_sha"] == given["config"]["model_sha"]
    assert named["config"]["model_num_parameters"] > 1000


def test_lm_evals_cache_knows_the_model(folder: Path, pico_path: PicoPath, tmp_path: Path) -> None:
    """`use_cache` has requests alone as keys: another model of the same path got the first one's answers."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)

    def run(path: Path) -> tuple[list[Any], int]:
        lm = PosttrainLM(str(path))
        found = simple_evaluate(
            model=lm, tasks=["far"], task_manager=manager, bootstrap_iters=0, use_cache=str(tmp_path / "cache")
        )
        return [s["resps"] for s in found["samples"]["far"]], forwarded(lm)

    first, second = pico_path("llama"), shaken(pico_path("llama"), tmp_path / "shaken")
    was, spent = run(first)
    assert spent > 0
    changed, spent = run(second)
    assert spent > 0
    assert changed != was
    assert run(first) == (was, 0)
    assert run(second) == (changed, 0)


class Interrupting(PosttrainLM):
    """Dies after the third response, as a kill would have it."""

    left = 3

    def _step(self, kind: str, done: int, total: int) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["loglikelihood", "loglikelihood_rolling", "generate_until"])
def test_what_was_answered_is_not_asked_again(kind: str, pico_path: PicoPath, tmp_path: Path) -> None:
    path, file = str(pico_path("llama")), tmp_path / "out" / "responses.jsonl"
    texts = [f"Number {i} is a number" for i in range(8)]
    arguments: dict[str, list[tuple[Any, ...]]] = {
        "loglikelihood": [(text, " indeed") for text in texts],
        "loglikelihood_rolling": [(text,) for text in texts],
        "generate_until": [(text, {"until": ["e"], "max_gen_toks": 5}) for text in texts],
    }
    requests = [Instance(kind, {}, args, i) for i, args in enumerate(arguments[kind])]
    whole = PosttrainLM(path)
    expected = getattr(whole, kind)(requests)

    dying = Interrupting(path, responses=file, batch_tokens=64)
    dying.on_progress = dying._step
    with pytest.raises(KeyboardInterrupt):
        getattr(dying, kind)(requests)
    assert file.read_bytes().count(b"\n") == 3
    with file.open("a", encoding="utf-8") as torn:
        torn.write('{"exam": "abc", "requ')

    asked: list[tuple[int, int]] = []
    again = PosttrainLM(path, responses=file, on_progress=lambda _, done, total: asked.append((done, total)))
    for mine, whole_one in zip(getattr(again, kind)(requests), expected, strict=True):
        assert mine == (whole_one if isinstance(mine, str) else pytest.approx(whole_one))
    assert asked == [(i, 8) for i in range(4, 9)]
    assert file.read_bytes().count(b"\n") == 8
    third = PosttrainLM(path, responses=file)
    assert getattr(third, kind)(requests) == getattr(again, kind)(requests)
    assert forwarded(third) == 0


def test_kept_responses_of_another_model_or_setting_are_refused(pico_path: PicoPath, tmp_path: Path) -> None:
    file = tmp_path / "responses.jsonl"
    request = [Instance("loglikelihood", {}, ("a", " b"), 0)]
    path = pico_path("llama")
    PosttrainLM(str(path), responses=file).loglikelihood(request)
    PosttrainLM(str(path), responses=file)
    for lm in (
        {"pretrained": str(shaken(path, tmp_path / "shaken"))},
        {"pretrained": str(path), "max_length": 100},
        {"pretrained": str(path), "add_bos_token": True},
    ):
        with pytest.raises(ConfigError, match="responses of another model"):
            PosttrainLM(**lm, responses=file)
    file.write_text("not json\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"responses\.jsonl:1: not a response"):
        PosttrainLM(str(path), responses=file)


def test_equal_requests_are_asked_once_unless_sampled(pico_path: PicoPath) -> None:
    lm = PosttrainLM(str(pico_path("llama")))
    sampled = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.5}
    texts = lm.generate_until([Instance("generate_until", {}, ("Hello", sampled), i) for i in range(6)])
    assert len(set(texts)) > 1
    greedy = {"until": [], "max_gen_toks": 8}
    told: list[int] = []
    lm.on_progress = lambda kind, done, total: told.append(total)
    texts = lm.generate_until([Instance("generate_until", {}, ("Hello", greedy), i) for i in range(6)])
    assert len(set(texts)) == 1
    assert told == [1]


# ---- thinking, templates ---------------------------------------------------------------------------------------------


def test_thoughts_are_cut_off(pico_path: PicoPath) -> None:
    path = str(pico_path("llama"))
    request = [Instance("generate_until", {}, ("Hello", {"until": [], "max_gen_toks": 30}), 0)]
    whole = PosttrainLM(path).generate_until(request)[0]
    mark = whole[len(whole) // 2]
    told = PosttrainLM(path, enable_thinking=True, think_end_token=mark)
    assert told.generate_until(request)[0] == whole.rpartition(mark)[2].lstrip()
    with pytest.raises(PosttrainError, match="no room to think"):
        told.loglikelihood(request)
    with pytest.raises(PosttrainError, match="think_end_token"):
        PosttrainLM(path, enable_thinking=True)


def test_a_model_without_a_template(tmp_path: Path) -> None:
    lm = PosttrainLM(str(pico("llama", tmp_path, template=None)))
    with pytest.raises(TemplateError, match="has no chat template"):
        lm.apply_chat_template([{"role": "user", "content": "Hello"}])


# ---- several processes -------------------------------------------------------------------------------------------------


def examine_twice(model: str, folder: Path, out: Path) -> None:
    """One of the processes: what it finds, and what it finds when it is started again, goes to 0.json and 1.json."""
    exam = taken(folder, "far", "said")
    respondent = ModelRespondent(load_model(model))
    for start in range(2):
        found = results(exam, respondent, out)
        assert (not found) == bool(int(os.environ["RANK"]))
        if found:
            rows = {name: [s.to_json() for s in result.samples] for name, result in found.items()}
            text = json.dumps([rows, {n: r.scores for n, r in found.items()}, found["far"].cost])
            (out / f"{start}.json").write_text(text)
        torch.distributed.barrier()


@pytest.mark.slow
def test_two_processes_are_as_one(folder: Path, pico_path: PicoPath, tmp_path: Path) -> None:
    model = str(pico_path("llama"))
    out = tmp_path / "out"
    out.mkdir()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    started = []
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
        own = world | {"RANK": rank, "LOCAL_RANK": rank}
        started.append(Started(examine_twice, model, folder, out, folder=tmp_path / rank, environment=own))
    one = ModelRespondent(load_model(model))
    expected = results(taken(folder, "far", "said"), one)
    for process in started:
        code, _, complaint = process.finish()
        assert code == 0, complaint

    rows, scores, cost = json.loads((out / "0.json").read_text())
    assert scores == {name: result.scores for name, result in expected.items()}
    for name, result in expected.items():
        for mine, theirs in zip(rows[name], result.samples, strict=True):
            assert mine["id"] == theirs.id
            assert mine["answer"] == theirs.answer
            assert mine["scores"] == theirs.scores
    assert cost["forwarded_tokens"] >= one.usage.scored_tokens + one.usage.prompt_tokens
    assert len(list(out.glob("responses*.jsonl"))) == 2
    again = json.loads((out / "1.json").read_text())
    assert again[1] == scores
    assert again[2]["forwarded_tokens"] == 0  # every process reads all files


# ---- tasks by name -----------------------------------------------------------------------------------------------------


def test_tasks_tags_globs_and_files(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    assert list(load_tasks(["near"], [Path("tasks")], say=said.append)["tasks"]) == ["near"]
    assert said == [f"near: data files are read from {folder.resolve()}"]
    assert Path.cwd() == tmp_path
    assert sorted(load_tasks(["colours"], [folder], say=said.append)["tasks"]) == ["far", "near"]
    assert sorted(load_tasks(["*ar"], [folder], say=said.append)["tasks"]) == ["far", "near"]
    assert list(load_tasks(["tasks/said.yaml"], say=said.append)["tasks"]) == ["said"]
    (folder / "all.yaml").write_text("group: all\ntask: [said, far]\naggregate_metric_list: []\n", encoding="utf-8")
    loaded = load_tasks(["all", "near"], [folder], say=said.append)
    assert sorted(loaded["tasks"]) == ["far", "near", "said"]
    assert list(loaded["groups"]) == ["all"]


def test_what_is_not_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no folder here"):
        load_tasks(["near"], [tmp_path / "nowhere"])
    (folder / "lost.yaml").write_text(TASK.format(name="lost", file="lost.jsonl"), encoding="utf-8")
    with pytest.raises(MissingError, match=r"data file 'lost\.jsonl' is neither in"):
        load_tasks(["lost"], [folder], say=lambda _: None)
    (folder / "hub.yaml").write_text(
        TASK.format(name="hub", file="x.json").replace("dataset_path: json", "dataset_path: some/where"),
        encoding="utf-8",
    )
    with pytest.raises(MissingError, match="--download"):
        load_tasks(["hub"], [folder], say=lambda _: None)


@pytest.mark.slow
def test_close_names_among_lm_evals_own() -> None:
    with pytest.raises(ConfigError, match=r"'mmul' is no task.*did you mean mmlu"):
        load_tasks(["mmul"])


def test_results_of_groups_and_generation(folder: Path, pico_path: PicoPath) -> None:
    (folder / "all.yaml").write_text(
        "group: all\ntask: [near, far]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n",
        encoding="utf-8",
    )
    found = results(taken(folder, "all", "said", limit=7), ModelRespondent(load_model(str(pico_path("llama")))))
    assert set(found) == {"near", "far", "said", "all"}
    assert found["all"].scores["acc"] == pytest.approx((found["near"].scores["acc"] + found["far"].scores["acc"]) / 2)
    assert found["all"].n["acc"] == 14
    near = found["near"]
    assert near.n == {"acc": 7}
    assert near.info.headline == "acc"
    assert near.info.chance == pytest.approx(1 / 3)
    assert [(spec.key, spec.unit, spec.better) for spec in near.info.scores] == [("acc", "share", "more")]
    sample = near.samples[4]
    assert (sample.id, sample.question, sample.target, sample.choices) == ("4", "The colour of number 4 is", " blue", 3)
    assert sample.correct == (sample.answer == sample.target)
    assert sample.confidence is not None
    assert 1 / 3 <= sample.confidence <= 1
    nats = [each[0][0] for each in sample.extra["responses"]]
    assert sample.answer == [" red", " blue", " green"][nats.index(max(nats))]
    assert found["said"].samples[0].choices is None
    assert "shots:0|template:none" in near.info.signature


def test_an_exam_of_lm_eval_says_what_it_asks_before_a_model_is_there(folder: Path) -> None:
    exam = taken(folder, "near", "said", limit=3, num_fewshot=0)
    assert [part.info.name for part in exam.parts] == ["near", "said"]
    near, said = exam.parts
    assert [item.question for item in near.items] == [f"The colour of number {i} is" for i in range(3)]
    assert [ask.continuation for ask in near.items[0].asks] == [" red", " blue", " green"]
    assert [(ask.kind, ask.max_new_tokens) for ask in said.items[0].asks] == [("say", 4)]
    assert [part.info.name for part in taken(folder, "near", "said", name="x").parts] == ["x-near", "x-said"]
    assert [part.info.name for part in taken(folder, "near", name="x").parts] == ["x"]
    assert exam.fingerprint == taken(folder, "near", "said", limit=3, num_fewshot=0, name="x").fingerprint
    (folder / "questions.jsonl").write_text('{"question": "Another", "answer": 1}\n' * 10, encoding="utf-8")
    assert exam.fingerprint != taken(folder, "near", "said", limit=3, num_fewshot=0).fingerprint


def test_a_model_that_is_told_a_text_reads_it_before_every_question(folder: Path, pico_path: PicoPath) -> None:
    model = ModelRespondent(load_model(str(pico_path("llama"))))
    exam = taken(folder, "far")
    plain, told = (results(exam, one)["far"] for one in (model, PromptedRespondent(model, "All is blue.")))
    responses = [[sample.extra["responses"] for sample in one.samples] for one in (plain, told)]
    assert responses[0] != responses[1]


def test_a_model_as_it_is_and_as_it_becomes(pico_path: PicoPath) -> None:
    """An exam during training: no response of the weights before is taken for those after."""
    loaded = load_model(str(pico_path("gpt2")))
    lm = PosttrainLM(loaded.model, loaded.tokenizer)
    assert lm.model is loaded.model
    request = [Instance("loglikelihood", {}, ("Hello", " there"), 0)]
    was, key = lm.loglikelihood(request), lm.fingerprint
    assert lm.loglikelihood(request) == was
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert lm.loglikelihood(request) != was
    assert lm.fingerprint != key


@pytest.mark.parametrize("kind", ["loglikelihood", "loglikelihood_rolling", "generate_until"])
def test_a_text_that_cannot_be_read_is_named_by_its_document(pico_path: PicoPath, kind: str) -> None:
    lm = PosttrainLM(load_model(str(pico_path("llama")), device="cpu"))
    lm.tokenizer.add_tokens(["<new>"])
    arguments: dict[str, Any] = {
        "loglikelihood": lambda text: (text, " x"),
        "loglikelihood_rolling": lambda text: ("one " * 700 + text,),
        "generate_until": lambda text: (text, {"until": ["."], "max_gen_toks": 2 + len(text)}),
    }
    texts = ["a", "b", "who <new>?"]
    requests = [Instance(kind, {}, arguments[kind](text), 0, ("colours", at, 1)) for at, text in enumerate(texts)]
    with pytest.raises(DataError, match=r"^exam colours, document 2: holds the token '<new>'"):
        vars(PosttrainLM)[kind](lm, requests)
