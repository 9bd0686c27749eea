"""BIG-bench's task.json: prefixes, choices, both metrics, subtasks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import DataError, MissingError
from tests.exams.tasks.told import build, judged, scores_of, text_of

CHOOSE: dict[str, Any] = {
    "name": "colours",
    "metrics": ["multiple_choice_grade"],
    "examples": [
        {"input": "Grass is", "target_scores": {"green": 1, "blue": 0}},
        {"input": "The sky is", "target_scores": {"blue": 1, "green": 0.25}},
    ],
}


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")
    return path


def test_choices_by_likelihood_with_their_scores(tmp_path: Path) -> None:
    write(tmp_path / "colours" / "task.json", CHOOSE)
    task = build("bigbench", tmp_path, path="colours/task.json")
    prompt = text_of(task.items[0].asks[0].prompt)
    assert prompt.startswith("\nQ: Grass is\n  choice: ")
    assert prompt.endswith("\nA: ")
    assert sorted(prompt.split("\n")[2:4]) == ["  choice: blue", "  choice: green"]
    assert [a.continuation for a in task.items[0].asks] == ["green", "blue"]  # the prompt ends with its own space
    samples = judged(task, likes=lambda _, text: float(text == "green"))
    assert [s.scores["multiple_choice_grade"] for s in samples] == [1.0, 0.25]
    assert [s.correct for s in samples] == [True, False]
    assert scores_of(task, samples)["multiple_choice_grade"] == 0.625
    assert task.chance == 0.5
    assert samples[0].confidence == pytest.approx(2.71828 / 3.71828, abs=1e-4)


def test_prefixes_of_the_file_and_shots(tmp_path: Path) -> None:
    told = {
        **CHOOSE,
        "task_prefix": "Name the colour.\n",
        "example_input_prefix": "\nThing: ",
        "example_output_prefix": "\nColour: ",
        "append_choices_to_input": False,
    }
    write(tmp_path / "task.json", told)
    task = build("bigbench", tmp_path, path="task.json", shots=1)
    expected = "Name the colour.\n\nThing: The sky is\nColour: blue\nThing: Grass is\nColour: "
    assert text_of(task.items[0].asks[0].prompt) == expected


def test_equal_examples_are_asked_once_and_loose_match_is_apart(tmp_path: Path) -> None:
    told = {
        "metrics": ["exact_str_match", "bleu"],
        "output_regex": r"is (\w+)",
        "examples": [{"input": "1+1", "target": ["2", "two"]}, {"input": "2+2", "target": "4"}, {"input": "2+2", "target": "4"}],
    }  # fmt: skip
    write(tmp_path / "sums" / "task.json", told)
    task = build("bigbench", tmp_path, path="sums")
    assert [i.id for i in task.items] == ["0", "1"]
    assert "sums: 1 examples that stand twice are asked once" in task.notes
    samples = judged(task, "It is Two indeed")
    assert samples[0].scores == {"exact_str_match": 0.0, "exact_loose": 1.0}
    assert judged(task, " it is two")[0].scores["exact_str_match"] == 1.0
    assert judged(task, "two")[0].scores["exact_str_match"] == 0.0  # not what the regular expression takes
    assert any("not scored by bleu" in note for note in task.notes)


def test_subtasks_are_groups(tmp_path: Path) -> None:
    write(tmp_path / "many" / "one" / "task.json", CHOOSE)
    write(tmp_path / "many" / "two" / "task.json", CHOOSE)
    task = build("bigbench", tmp_path, path="many")
    assert [i.group for i in task.items] == ["one", "one", "two", "two"]
    assert len({i.id for i in task.items}) == 4
    assert "multiple_choice_grade/two" in scores_of(task, judged(task))


def test_bad_files(tmp_path: Path) -> None:
    write(
        tmp_path / "a" / "task.json",
        {"examples": [{"input": 1}, {"input": "x", "target_scores": {"a": 1}}, {"input": "x"}]},
    )
    with pytest.raises(DataError) as error:
        build("bigbench", tmp_path, path="a")
    assert len(error.value.problems) == 3
    assert "examples[2]" in str(error.value)
    with pytest.raises(MissingError, match=r"no task\.json"):
        build("bigbench", tmp_path, path="b")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"metrics": [0]}, "'metrics' must be a list of names"),
        ({"metrics": "exact_str_match"}, "'metrics' must be a list of names"),
        ({"task_prefix": 5}, "'task_prefix' must be a text"),
        ({"stop_string": ["x"]}, "'stop_string' must be a text"),
        ({"output_regex": "("}, "'output_regex' is no regular expression"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, wrong: dict[str, Any], words: str) -> None:
    write(tmp_path / "task.json", {**CHOOSE, **wrong})
    with pytest.raises(DataError, match=re.escape(words)):
        build("bigbench", tmp_path, path="task.json")
