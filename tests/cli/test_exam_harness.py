"""`posttrain exam --tasks`: table, JSON, files, comparison, a kill in the middle, what is refused."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from posttrain.cli.main import build_app, main
from posttrain.cli.options import take_global
from posttrain.errors import ConfigError, Interrupted, MissingError, PosttrainError
from tests.processes import Started

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

Invoke = Callable[..., Result]
TASK = """\
task: letters
dataset_path: json
dataset_kwargs: {data_files: {test: questions.jsonl, dev: questions.jsonl}}
test_split: test
fewshot_split: dev
fewshot_config: {sampler: first_n}
num_fewshot: 2
output_type: multiple_choice
doc_to_text: "{{question}}\\nAnswer:"
doc_to_choice: ["A", "B", "C"]
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 2.0}
"""
CHANGE = """\
name: tallest
target: [{prompt: "臺灣最高的山是哪座？", answer: "雪山"}]
locality: {unrelated: ["What is the capital of France?"]}
"""


@pytest.fixture
def exam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    monkeypatch.chdir(tmp_path)
    for name in (
        "HF_HUB_OFFLINE",
        "HF_DATASETS_OFFLINE",
        "HF_EVALUATE_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "TQDM_DISABLE",
    ):
        monkeypatch.setenv(name, "1")  # the verb sets them for good
    write(tmp_path, 12)
    app = build_app("exam")
    return lambda *words: CliRunner().invoke(app, ["exam", *words])


def write(folder: Path, questions: int) -> None:
    tasks = folder / "tasks"
    tasks.mkdir(exist_ok=True)
    rows = [{"question": f"Which letter has number {i}?", "answer": i % 3} for i in range(questions)]
    (tasks / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tasks / "letters.yaml").write_text(TASK, encoding="utf-8")


def cells(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, (result.output, result.exception)
    found: list[dict[str, Any]] = json.loads(result.stdout)["cells"]
    return found


def test_table_files_and_a_second_start(exam: Invoke, pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    model = str(pico_path("llama"))
    words = [model, "--tasks", "letters", "--include-path", "tasks", "-o", "out"]
    result = exam(*words)
    assert result.exit_code == 0, (result.output, result.exception)
    row = next(line for line in result.stdout.splitlines() if line.startswith("letters.acc"))
    assert re.search(r"0\.\d{3}  0\.\d{3} to 0\.\d{3}   \(guessing 0\.333\)  12$", row)
    assert "task:letters|version:2.0|shots:2|template:none" in result.stdout
    assert re.search(r"letters on .*: [\d.]+ s, \d+ tokens forwarded \(scoring 1\.\d\dx the least", result.stderr)
    assert "prefixes shared" in result.stderr

    document = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    own = json.loads((tmp_path / "out" / "lm_eval.json").read_text(encoding="utf-8"))["results"]["letters"]["acc,none"]
    assert document["cells"][0]["scores"]["letters.acc"] == pytest.approx(own)
    assert document["cells"][0]["cost"]["shared_prefixes"] > 0
    samples = (tmp_path / "out" / "exams" / "letters.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in samples] == [str(i) for i in range(12)]

    again = exam(*words, "--json")
    assert cells(again)[0]["cost"]["forwarded_tokens"] == 0
    assert cells(again)[0]["scores"] == document["cells"][0]["scores"]
    assert "36 responses were there" in again.stderr
    assert (tmp_path / "out" / "exams" / "letters.jsonl").read_text(encoding="utf-8").splitlines() == samples
    fresh = exam(*words, "--json", "--restart")
    assert cells(fresh)[0]["cost"]["forwarded_tokens"] > 0


@pytest.mark.usefixtures("loud_again")
def test_what_lm_eval_does_besides_asking_is_shown_and_not_printed(
    exam: Invoke, pico_path: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tasks" / "letters.yaml"
    two = TASK.replace("metric: acc, aggregation: mean", "metric: f1, aggregation: f1").replace(', "C"]', "]")
    path.write_text(two, encoding="utf-8")
    rows = [{"question": f"Which letter has number {i}?", "answer": i % 2} for i in range(12)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "tasks" / "questions.jsonl").write_text(lines, encoding="utf-8")
    monkeypatch.setattr("posttrain.cli.works.LINE_EVERY_S", 0.0)
    monkeypatch.setattr("posttrain.models.meter.MOMENT_S", 0.0)
    monkeypatch.setattr("posttrain.exams.tasks.lm_eval.BOOTSTRAPS", 20)
    model = str(pico_path("llama"))
    words = [model, "--tasks", "letters", "--include-path", "tasks", "--json"]
    shown = exam(*words)
    assert "letters.f1" in cells(shown)[0]["scores"]  # nothing but the document: lm-eval prints that it bootstraps
    said = shown.stderr
    assert said.index(f"loading {model}") < said.index("loading weights: 0/20 tensors\n")
    head = f"letters on {model}: "
    for words_of in ("writing out the questions of lm-eval: 0/12 questions", "judging the answers: 0/12 answers"):
        assert head + words_of in said
    assert head + "computing the scores: 0/1 tasks" in said
    take_global(["--quiet"])
    silent = exam(*words).stderr
    assert not any(word in silent for word in ("letters on", "loading", "lm-eval"))


def test_ctrl_c_before_the_first_answer(
    exam: Invoke, pico_path: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lm_eval.api.task.ConfigurableTask.construct_requests", interrupted)
    model = str(pico_path("llama"))
    result = exam(model, "--tasks", "letters", "--include-path", "tasks", "-o", "out")
    assert isinstance(result.exception, Interrupted)
    stage, kept = "writing out the questions of lm-eval (0 of 12 questions)", "answers that --output keeps stay"
    assert str(result.exception) == f"stopped while {stage}; {kept}, the same command goes on from them"


@pytest.mark.slow
def test_kill_9_in_the_middle(exam: Invoke, pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    write(tmp_path, 400)
    words = [
        str(pico_path("llama")),
        "--tasks",
        "letters",
        "--include-path",
        "tasks",
        "-o",
        "out",
        "--batch-tokens",
        "256",
    ]
    process = Started(main, ["exam", *words], folder=tmp_path)
    responses = tmp_path / "out" / "responses.jsonl"
    process.wait_until(lambda: responses.exists() and responses.stat().st_size > 0)
    process.send(signal.SIGKILL)
    code, out, err = process.finish()
    assert code == -signal.SIGKILL, (out, err)
    done = responses.read_bytes().count(b"\n")
    assert 0 < done < 1200
    result = exam(*words, "--json")
    assert cells(result)[0]["n"]["letters.acc"] == 400
    assert f"{done:,} responses were there" in result.stderr
    assert cells(result)[0]["cost"]["requests"] == 1200 - done


def test_before_and_after_with_a_change_exam(exam: Invoke, pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    after, before = str(pico_path("llama")), str(pico_path("gpt2"))
    (tmp_path / "tallest.yaml").write_text(CHANGE, encoding="utf-8")
    words = [after, "-b", before, "--tasks", "letters", "--include-path", "tasks", "-c", "tallest.yaml"]
    result = exam(*words, "--limit", "9", "-o", "out", "--json", "--max-new-tokens", "6")
    change, floor, own = cells(result)
    assert change["change"] == floor["change"] == "tallest"
    assert (change["method"], floor["method"]) == ("exam", "noise floor")
    assert "reliability" in change["scores"]
    assert own["compare"]["letters"]["n"] == 9
    assert own["compare"]["letters"]["after"] == pytest.approx(own["scores"]["letters.acc"])
    document = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert document == json.loads(result.stdout)
    row = document["before"][0]
    assert row["model"] == before
    assert (tmp_path / "out" / row["folder"] / "exams" / "letters.jsonl").exists()


def test_with_the_chat_template(exam: Invoke, pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    from tests.pico import pico

    words = ["--tasks", "letters", "--include-path", "tasks", "--json", "--num-fewshot", "1"]
    plain, asked = (cells(exam(str(pico_path("llama")), *words, *more)) for more in ((), ("--apply-chat-template",)))
    assert asked[0]["cost"]["least_tokens"] != plain[0]["cost"]["least_tokens"]
    bare = str(pico("llama", tmp_path, template=None))
    error = exam(bare, *words, "--apply-chat-template").exception
    assert isinstance(error, PosttrainError)
    assert "has no chat template" in str(error)


def test_what_is_refused(exam: Invoke, pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    words = [str(pico_path("llama")), "--tasks", "letters", "-o", "out"]
    assert isinstance(exam(*words, "--include-path", "none").exception, MissingError)
    assert exam(*words, "--include-path", "tasks").exit_code == 0
    (tmp_path / "out" / "results.json").unlink()  # as after a kill
    error = exam(str(pico_path("gpt2")), *words[1:], "--include-path", "tasks").exception
    assert isinstance(error, ConfigError)
    assert "36 responses of another model" in str(error)
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "tasks" / "code.yaml").write_text(
        TASK.replace("letters", "code") + "unsafe_code: true\n", encoding="utf-8"
    )
    error = exam(words[0], "--tasks", "code", "--include-path", "tasks").exception
    assert isinstance(error, ConfigError)
    assert "runs code that the model writes" in str(error)
    (tmp_path / "rows.jsonl").write_text('{"question": "q", "choices": ["a", "b"], "answer": "A"}\n', encoding="utf-8")
    (tmp_path / "own.yaml").write_text("exams: [{kind: mmlu, path: rows.jsonl, name: letters}]", encoding="utf-8")
    error = exam(*words, "--include-path", "tasks", "--exams", str(tmp_path / "own.yaml")).exception
    assert isinstance(error, ConfigError)
    assert "several exams are called letters; give each a `name` of its own" in str(error)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    error = exam(words[0], "--tasks", " , ").exception
    assert isinstance(error, ConfigError)
    assert "no task is named" in str(error)
    error = exam("api:some-model", "--tasks", "letters", "--include-path", "tasks").exception
    assert isinstance(error, PosttrainError)


def test_without_lm_eval_the_install_line_is_told(
    exam: Invoke, pico_path: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("lm_eval", "lm_eval_tasks"):
        monkeypatch.delitem(sys.modules, f"posttrain.exams.{name}", raising=False)
    error = exam(str(pico_path("llama")), "--tasks", "letters", "--include-path", "tasks").exception
    assert isinstance(error, MissingError)
    assert str(error) == "lm-eval: is not installed; pip install 'posttrain[lm-eval]'"
