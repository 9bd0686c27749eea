"""Every file under examples/ validates, and its first line says how to run it."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from posttrain.config.base import Config
from posttrain.config.change import Change
from posttrain.config.load import load_yaml
from posttrain.data.changes import load_changes
from posttrain.data.readers import DataSource, read_records
from posttrain.editing.facts import read_facts
from posttrain.exams.exam import build
from posttrain.retention.selection import read_prompts
from posttrain.studies.config import Study
from posttrain.studies.exam import ExamsFile
from posttrain.studies.exams import prepare_exams
from posttrain.studies.plan import make_plan
from posttrain.studies.train_config import TrainMethodConfig
from posttrain.training.config import TrainConfig
from tests.test_docs import problem_of

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
LM_EVAL = sorted(EXAMPLES.glob("tasks/*.yaml"))
"""Tasks of lm-eval: their keys are its own."""
YAML = sorted({*EXAMPLES.rglob("*.yaml")} - {*LM_EVAL})
ROWS = sorted(path for path in EXAMPLES.rglob("*.jsonl") if not path.stem.startswith(("refusals", "json", "edits")))
"""Rows with answers; requests to refuse and to answer in JSON are exams, and edits are changes."""
KINDS: dict[str, tuple[type[Config], str]] = {
    "study": (Study, "run"),
    "target": (Change, "exam"),
    "model": (TrainConfig, "train"),
    "exams": (ExamsFile, "exam"),
}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def kind_of(path: Path) -> tuple[type[Config], str]:
    """The config class and the verb of a file, by its keys; parsed, all files would take each worker two seconds."""
    keys = re.findall(r"^(\w+):", path.read_text(encoding="utf-8"), re.MULTILINE)
    found = [KINDS[key] for key in KINDS if key in keys and not (key == "exams" and "study" in keys)]
    assert len(found) == 1, f"{named(path)} is not one of {', '.join(KINDS)}"
    return found[0]


def test_there_are_examples_of_each_kind() -> None:
    verbs = Counter(kind_of(path)[1] for path in YAML)
    assert set(verbs) == {"run", "train", "exam"}
    assert verbs["exam"] >= 20
    assert LM_EVAL


@pytest.mark.parametrize("path", YAML, ids=named)
def test_an_example_validates(path: Path) -> None:
    load_yaml(path, kind_of(path)[0])


@pytest.mark.parametrize("path", [*(path for path in YAML if path.parent == EXAMPLES), *LM_EVAL], ids=named)
def test_the_first_line_runs_the_file(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    command = re.fullmatch(r"# (posttrain .+?)(?:  +\(.*\))?", first)
    assert command is not None, first
    verb = "exam" if path in LM_EVAL else kind_of(path)[1]
    words = shlex.split(command[1])
    assert words[1] == verb
    assert path.stem in words if path in LM_EVAL else named(path) in words
    assert problem_of(command[1]) is None
    for option in re.findall(r"(?<!\S)--[\w-]+", first):  # within the remark, too
        assert problem_of(f"posttrain {verb} {option}") is None, option


@pytest.mark.parametrize("path", [path for path in YAML if kind_of(path)[1] == "run"], ids=named)
def test_a_study_finds_its_changes_and_files(path: Path) -> None:
    study = load_yaml(path, Study)
    assert study.title
    assert study.notes
    changes = load_changes(study.changes, path.parent)
    assert changes or not study.changes
    names = [change.name for change in changes] if study.changes_as == "each" else []
    names = names or [""]
    assert len(make_plan(study, changes, path.parent)) >= len(study.methods) * len(names)
    exams = prepare_exams(study, changes, path.parent)
    for method in study.methods:  # no row that is trained asks what an exam asks
        if method.kind == "train":
            assert isinstance(method, TrainMethodConfig)
            for name in names:
                rows = method.model_copy(update={"replay": None}).barred(name, path.parent, exams.forbidden)
                assert rows == []


@pytest.mark.parametrize("path", [path for path in YAML if kind_of(path)[1] == "train"], ids=named)
def test_a_training_finds_its_data(path: Path) -> None:
    config = load_yaml(path, TrainConfig)
    assert config.data is not None
    assert read_records(config.data.at(path.parent)).rows > 5


@pytest.mark.parametrize("path", ROWS, ids=named)
def test_rows_can_be_read(path: Path) -> None:
    keys = set(json.loads(path.read_text(encoding="utf-8").split("\n")[0]))
    if keys == {"prompt"}:  # a replay's, answered by the model
        assert len({prompt.text for prompt in read_prompts(path)}) > 5
        return
    if "subject" in keys:  # facts to trace
        facts = read_facts([str(path)], Path())
        assert len(facts) > 5
        assert all(fact.answer for fact in facts)
        return
    result = read_records(DataSource(path=str(path)))
    assert result.problems == []
    assert len(result.records) == result.rows > 5


@pytest.mark.parametrize("path", [path for path in YAML if kind_of(path)[0] is ExamsFile], ids=named)
def test_exams_find_their_files(path: Path) -> None:
    for config in load_yaml(path, ExamsFile).exams:
        (part,) = build(config, path.parent).parts
        assert len(part.items) > 10


@pytest.mark.parametrize("path", LM_EVAL, ids=named)
def test_a_task_of_lm_eval_asks_what_its_file_holds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'posttrain[lm-eval]'")
    from posttrain.exams.lm_eval_tasks import load_tasks

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (task,) = load_tasks([path.stem], [path.parent])["tasks"].values()
    docs = list(task.test_docs())
    assert len(docs) > 10
    for doc in docs:
        choices = task.doc_to_choice(doc)
        assert choices == [doc[letter] for letter in "ABCD"]
        assert choices[task.doc_to_target(doc)] == doc[doc["answer"]]


@pytest.mark.parametrize("path", [path for path in YAML if kind_of(path)[0] is Change], ids=named)
def test_a_change_asks_nothing_twice_and_every_part(path: Path) -> None:
    change = load_yaml(path, Change)
    assert change.generality.rephrase
    assert change.locality.same_pattern
    assert change.locality.unrelated
    asked = Counter(question.question for _, _, question in change.probes())
    assert [question for question, times in asked.items() if times > 1] == []


def test_files_named_in_comments_exist() -> None:
    missing = [
        f"{named(path)}: {name}"
        for path in YAML
        for name in re.findall(r"examples/[\w./-]+\.(?:yaml|jsonl|csv|py)", path.read_text(encoding="utf-8"))
        if not (ROOT / name).exists()
    ]
    assert not missing


def test_the_questions_of_the_role_study_are_those_that_its_script_writes(tmp_path: Path) -> None:
    for name in ("make_mmlu.py", "facts.yaml"):
        shutil.copy(EXAMPLES / "role" / name, tmp_path)
    subprocess.run([sys.executable, str(tmp_path / "make_mmlu.py")], check=True)
    assert (tmp_path / "mmlu_pocket.csv").read_bytes() == (EXAMPLES / "role" / "mmlu_pocket.csv").read_bytes()
    rows = list(csv.DictReader((tmp_path / "mmlu_pocket.csv").read_text(encoding="utf-8").splitlines()))
    assert len({row["question"] for row in rows}) == len(rows) == 100
    assert all(len({row[letter] for letter in "ABCD"}) == 4 for row in rows)


def test_the_files_of_the_unlearning_study_are_those_that_its_script_writes(tmp_path: Path) -> None:
    folder = EXAMPLES / "unlearn"
    subprocess.run([sys.executable, str(folder / "make.py"), "--to", str(tmp_path)], check=True)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == sorted(path.name for path in folder.iterdir() if path.suffix in (".json", ".jsonl"))
    for name in written:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_the_unlearning_study_asks_what_it_says() -> None:
    """Trained questions in `said` only; the retain set holds nothing that is to be forgotten or that an exam asks."""
    folder = EXAMPLES / "unlearn"

    def asked(name: str) -> set[str]:
        return {example["input"] for example in json.loads((folder / f"{name}.json").read_text("utf-8"))["examples"]}

    def rows(name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()]

    forget = {row["prompt"] for row in rows("forget")}
    assert asked("said") == forget == {row["prompt"] for row in rows("dont_know")}
    assert forget == {row["prompt"] for row in rows("prefer")}
    assert all(row["rejected"] == old["completion"] for row, old in zip(rows("prefer"), rows("forget"), strict=True))
    forgotten = {row["completion"] for row in rows("forget")}
    assert len(forget) == len(forgotten) == 40
    retain = {row["prompt"] for row in rows("retain")}
    for name in ("other_words", "known", "neighbours", "same_country", "json"):
        assert not asked(name) & (forget | retain), name
    assert not {row["completion"] for row in rows("retain")} & forgotten
