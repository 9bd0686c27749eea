"""Every file under examples/ is read by the code that will run it, and its header says how to run it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from posttrain.config.change import Change, load_change, load_changes
from posttrain.config.load import load_yaml, read_yaml
from posttrain.studies.config import Study
from posttrain.studies.plan import make_plan
from posttrain.training.config import TrainConfig

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
YAMLS = sorted(EXAMPLES.rglob("*.yaml"))


def kind_of(path: Path) -> str:
    keys = set(read_yaml(path))
    return "study" if "study" in keys else "change" if "target" in keys else "train"


RUN = [path for path in YAMLS if kind_of(path) != "change"]
CHANGES = [path for path in YAMLS if kind_of(path) == "change"]


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.name)
def test_a_file_to_run_validates_and_says_how(path: Path) -> None:
    verb = {"study": "run", "train": "train"}[kind_of(path)]
    name = path.relative_to(ROOT).as_posix()
    assert f"posttrain {verb} {name}" in path.read_text(encoding="utf-8").split("\n\n")[0]
    if verb == "run":
        study = load_yaml(path, Study)
        changes = load_changes(study.changes, path.parent)
        assert make_plan(study, changes, path.parent)
        assert study.title
        assert study.notes
    else:
        load_yaml(path, TrainConfig)


def test_every_change_validates() -> None:
    problems = []
    for path in CHANGES:
        change = load_change(path)
        asked = [question.question for _, _, question in change.probes()]
        twice = {prompt for prompt in asked if asked.count(prompt) > 1}
        if twice:
            problems.append(f"{path.name}: asked twice: {twice}")
    assert not problems


def test_the_kinds_are_told_apart() -> None:
    assert {"target"} <= set(Change.model_fields)
    assert not {"study", "target"} & set(TrainConfig.model_fields)
    assert "target" not in Study.model_fields


def test_files_named_in_comments_exist() -> None:
    missing = [
        f"{path.name}: {name}"
        for path in YAMLS
        for name in re.findall(r"examples/[\w./-]+\.(?:yaml|jsonl)", path.read_text(encoding="utf-8"))
        if not (ROOT / name).exists()
    ]
    assert not missing
