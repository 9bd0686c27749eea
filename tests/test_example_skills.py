"""examples/skills: the files are those that the scripts write, nothing is asked that was trained, and the summary."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SKILLS = ROOT / "examples" / "skills"
NAMES = ("gloss", "reverse", "numeral", "polite", "kind")


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (SKILLS / name).read_text(encoding="utf-8").splitlines()]


def chinese(row: dict[str, str]) -> bool:
    return any("\u4e00" <= character <= "\u9fff" for character in row["prompt"])


@pytest.mark.parametrize("script", ["make_skills.py", "make_kept.py"])
def test_a_script_writes_the_files_that_are_there(script: str, tmp_path: Path) -> None:
    shutil.copy(SKILLS / script, tmp_path)
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, str(tmp_path / script)], check=True, env={**os.environ, "PYTHONPATH": paths})
    made = sorted(tmp_path.glob("*.jsonl"))
    assert len(made) == {"make_skills.py": 2 * len(NAMES), "make_kept.py": 4}[script]
    for path in made:
        assert path.read_bytes() == (SKILLS / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", NAMES)
def test_a_skill_asks_in_both_languages_and_for_other_contents_than_it_teaches(name: str) -> None:
    learned, asked = rows(f"{name}_train.jsonl"), rows(f"{name}_test.jsonl")
    assert len(asked) == 50
    assert 120 <= len(learned) <= 160
    for part in (learned, asked):
        assert len({row["prompt"] for row in part}) == len(part)
        assert 0.4 < sum(map(chinese, part)) / len(part) < 0.6
    assert not {row["prompt"] for row in learned} & {row["prompt"] for row in asked}
    if name != "kind":  # elsewhere the answer says the content; translations are held out together
        assert not {row["completion"] for row in learned} & {row["completion"] for row in asked}


def test_answers_follow_the_rules() -> None:
    for row in [*rows("reverse_train.jsonl"), *rows("reverse_test.jsonl")]:
        said = row["prompt"].split("：" if chinese(row) else ": ")[1]
        between = "、" if chinese(row) else " "
        assert row["completion"].split(between) == said.split(between)[::-1]
    numbers = {row["prompt"]: row["completion"] for row in [*rows("numeral_train.jsonl"), *rows("numeral_test.jsonl")]}
    assert {numbers[f"{n} in Chinese"] for n in (11, 20, 35, 99)} == {"十一", "二十", "三十五", "九十九"}
    assert all(numbers[f"{word}寫成數字"] == str(n) for word, n in (("十一", 11), ("二十", 20), ("九十九", 99)))


def test_the_remedy_has_other_wordings_than_the_exam_of_refusals() -> None:
    asked = {row["prompt"]: row["kind"] for row in rows("refusals_test.jsonl")}
    assert sorted(asked.values()).count("harmful") == len(asked) / 2 == 40
    assert not asked.keys() & {row["prompt"] for row in rows("refusals_train.jsonl")}


def test_the_summary_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def cell(method: str, seed: int, step: int, learned: float, kept: float) -> dict[str, Any]:
        scores = {"new.exact": learned, "old.acc": kept}
        checkpoint = "final" if step == 20 else f"step-{step}"
        head = {"method": method, "checkpoint": checkpoint, "seed": seed, "step": step, "status": "done"}
        return {**head, "scores": scores}

    cells = [cell("a", seed, 10, 0.4, 0.8) for seed in (0, 1)] + [
        cell("a", 0, 20, 0.8, 0.4),
        cell("a", 1, 20, 0.8, 0.6),
        *(cell("b", seed, 20, 0.3, 0.9) for seed in (0, 1)),
    ]
    results = {
        "exams": {"new": {"headline": "exact"}, "old": {"headline": "acc"}},
        "before": [{"scores": {"new.exact": 0.0, "old.acc": 1.0}}],
        "cells": cells,
    }
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    sys.argv, argv = ["summary.py", str(tmp_path), "--learned", "new", "--at", "0.2", "0.6"], sys.argv
    try:
        runpy.run_path(str(SKILLS / "summary.py"), run_name="__main__")
    finally:
        sys.argv = argv
    said = " ".join(capsys.readouterr().out.split())
    # sample deviation of .4 and .6 is .1414; t(1) = 12.706 times .1414 / sqrt 2 = 1.2706
    assert "a final 0.80 ± 0.00 0.50 ± 1.27" in said
    # at .2: halfway from 1 to .8; at .6: halfway from .8 to .4 and to .6
    assert "a 0.90 ± 0.00 [0.00 ± 0.00] 0.65 ± 0.64 [0.00 ± 0.00]" in said
    assert "b 0.93 ± 0.00 [0.03 ± 0.00] - 0/2 [-]" in said
