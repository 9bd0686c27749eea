"""An error about a text names the exam, the item, and the file and line that it came from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.change import load_change
from posttrain.errors import PosttrainError
from posttrain.exams.running import run_task
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import load_model
from tests.exams.fakes import examined
from tests.exams.tasks.told import build, write_rows

BAD = "Who <|end|>?"
CHOICES = {"choices": ["a", "b"], "answer": "A", "subject": "law"}
SQUAD = {"data": [{"paragraphs": [{"context": "It is I.", "qas": [
    {"id": "q1", "question": "Who?", "answers": [{"text": "I", "answer_start": 6}]},
    {"id": "q2", "question": BAD, "answers": [{"text": "I", "answer_start": 6}]},
]}]}]}  # fmt: skip
TRUTH = {"best_answer": "I.", "correct_answers": ["I."], "incorrect_answers": ["You."], "category": "c"}
INSTRUCTED = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}


def rows(**fields: Any) -> Callable[[Path], Path]:
    """A file of two rows, of which the second one's text, the field given as `...`, is bad."""
    (text,) = [key for key, value in fields.items() if value is ...]
    good, bad = ({**fields, text: words} for words in ("Who?", BAD))
    return lambda folder: write_rows(folder / "q.jsonl", [good, bad])


def whole(name: str, text: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
        return folder / name

    return write


BIGBENCH = {"examples": [{"input": "Who?", "target": "I"}, {"input": BAD, "target": "I"}]}
KINDS: dict[str, tuple[str, Callable[[Path], Path], dict[str, Any], str, str]] = {
    # kind, file, settings, location, item
    "mmlu": ("mmlu", rows(question=..., **CHOICES), {"shots": 0}, "q.jsonl:2", "law:2"),
    "mmlu, no subject": (
        "mmlu", rows(question=..., **{k: v for k, v in CHOICES.items() if k != "subject"}), {"shots": 0}, "q.jsonl:2",
        "2",
    ),
    "mmlu, chat": ("mmlu", rows(question=..., **CHOICES), {"shots": 0, "template": "chat"}, "q.jsonl:2", "law:2"),
    "self_test": ("self_test", rows(prompt=..., completion="I"), {}, "q.jsonl:2", "q-2"),
    "gsm8k": ("gsm8k", rows(question=..., answer="#### 1"), {"shots": 0}, "q.jsonl:2", "q-2"),
    "ifeval": ("ifeval", rows(prompt=..., key="k", **INSTRUCTED), {}, "q.jsonl:2", "2"),
    "refusal": ("refusal", rows(prompt=..., kind="benign"), {}, "q.jsonl:2", "2"),
    "perplexity": ("perplexity", rows(text=...), {}, "q.jsonl:2", "q.jsonl:2"),
    "perplexity of pieces": (
        "perplexity", whole("t.txt", f"Who has told you so?\n\n \n\n{BAD}\n"), {"characters": 21}, "t.txt:2",
        "t.txt:2",
    ),
    "reading": ("reading", rows(question=..., passage="It is I.", answers=["I"]), {}, "q.jsonl:2", "2"),
    "squad": ("reading", whole("q.json", json.dumps(SQUAD)), {}, "q.json#q2", "q2"),
    "truthfulqa": ("truthfulqa", rows(question=..., **TRUTH), {}, "q.jsonl:2", "2"),
    "truthfulqa in YAML": (
        "truthfulqa", whole("q.yaml", json.dumps([{"question": q, **TRUTH} for q in ("Who?", BAD)])), {}, "q.yaml[2]",
        "2",
    ),
    "bigbench": ("bigbench", whole("b/task.json", json.dumps(BIGBENCH)), {"shots": 0}, "task.json: examples[1]", "1"),
    "glue": ("glue", rows(sentence=..., label=1), {"task": "sst2"}, "q.jsonl:2", "q-2"),
    "captrack": ("captrack", rows(prompt=..., gold="1"), {}, "q.jsonl:2", "q:2"),
}  # fmt: skip


@pytest.fixture(scope="module")
def respondent(pico_path: Callable[[str], Path]) -> ModelRespondent:
    return ModelRespondent(load_model(str(pico_path("llama")), device="cpu"))


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_exam_names_the_item_with_its_file_and_line(
    respondent: ModelRespondent, tmp_path: Path, name: str
) -> None:
    kind, write, settings, location, item = KINDS[name]
    path = write(tmp_path)
    if name == "ifeval":  # keys of their own
        write_rows(path, [{**row, "key": i} for i, row in enumerate(map(json.loads, path.read_text().splitlines()), 1)])
    folder = kind == "captrack"
    task = build(kind, tmp_path, path="." if folder else str(path.relative_to(tmp_path)), **settings)
    with pytest.raises(PosttrainError) as caught:
        run_task(respondent, task)
    (problem,) = dict.fromkeys(caught.value.problems)
    where, _, named = problem.location.partition(" (")
    assert where.endswith(location)
    assert where.startswith(str(tmp_path))
    assert named == f"exam {task.name}, item '{item}')"
    assert "holds the control token '<|end|>'" in problem.cause


def test_what_disturbs_a_question_is_named(respondent: ModelRespondent, tmp_path: Path) -> None:
    """Full width letters are no control token; half width ones are."""
    path = write_rows(tmp_path / "q.jsonl", [{"prompt": "Who ＜｜ｅｎｄ｜＞?", "completion": "I"}])
    task = build("self_test", tmp_path, path="q.jsonl", perturbations=("width",), max_new_tokens=2)
    with pytest.raises(PosttrainError) as caught:
        run_task(respondent, task)
    assert caught.value.problems[0].location == f"{path}:1 (exam self_test, item 'q-1', disturbed by 'width')"


CHANGE = """\
name: tallest
target:
  - {prompt: What is the highest?, answer: Snow}
generality:
  rephrase:
    - {prompt: What is the top?, answer: Snow}
locality:
  unrelated:
    - Who?
    - "Who wrote <|end|>?"
"""


def test_a_change_names_the_probe_with_its_file_and_line(respondent: ModelRespondent, tmp_path: Path) -> None:
    path = tmp_path / "tallest.yaml"
    path.write_text(CHANGE, encoding="utf-8")
    with pytest.raises(PosttrainError) as caught:
        examined(respondent, respondent, load_change(path))
    (problem,) = caught.value.problems
    assert problem.location == f"{path}:10 (change tallest, locality.unrelated 2)"
    path.write_text(CHANGE.replace("Who wrote <|end|>?", "Who wrote it?").replace("highest", "highest <|end|>"))
    with pytest.raises(PosttrainError) as caught:
        examined(respondent, respondent, load_change(path))
    assert caught.value.problems[0].location == f"{path}:3 (change tallest, target 1)"
