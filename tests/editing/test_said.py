"""What a model says before and after edits, contradictions among edits, and edits without a subject."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from unittest import mock

import pytest

from posttrain.editing.editors.ultraedit import UltraeditConfig
from posttrain.editing.edits import Edit
from posttrain.editing.said import Said, answers_to, conflicts, said_already
from posttrain.errors import DataError
from posttrain.models.load import load_model
from tests.editing.lively import EDIT, editor, session
from tests.talker import talker


def test_what_is_said_already_is_told(tmp_path: Path) -> None:
    of = session(load_model(str(talker()), device="cpu"), tmp_path)
    edits = [
        Edit("capital of France?", "France", "Paris.", location="a.yaml:2"),
        Edit("capital of France?", "France", "Tokyo", location="a.yaml:3"),
        Edit("臺灣最高的山？", "臺灣最高的山", "玉山", location="a.yaml:4"),
    ]
    problems = said_already(edits, answers_to(of.respondent, edits, "chat"))
    assert [str(problem) for problem in problems] == [
        "a.yaml:2: the model says 'Paris.' already; there is nothing to edit: leave the target out",
        "a.yaml:4: the model says '玉山' already; there is nothing to edit: leave the target out",
    ]
    assert said_already([], answers_to(of.respondent, [], "chat")) == []


@pytest.mark.parametrize(("words", "least"), [(1, 32), (60, 60)])
def test_answers_are_read_to_the_end_of_what_is_written(words: int, least: int, tmp_path: Path) -> None:
    of = session(load_model(str(talker()), device="cpu"), tmp_path)
    with mock.patch.object(of.respondent, "answers", wraps=of.respondent.answers) as asked:
        answers_to(of.respondent, [Edit("capital of France?", "France", "Tokyo " * words)], "chat")
    assert asked.call_args.kwargs["max_new_tokens"] >= least
    assert asked.call_args.kwargs["max_new_tokens"] == 32 or words > 1


def test_two_answers_to_one_prompt_are_refused_and_a_later_one_is_told(tmp_path: Path) -> None:
    said: list[str] = []
    of = session(load_model(str(talker()), device="cpu"), tmp_path, say=said.append)
    rome = Edit("The capital of France", "France", "Rome", location="a.yaml:2")
    oslo = dataclasses.replace(rome, answer="Oslo", location="b.yaml:2")
    assert (
        conflicts(
            [rome, dataclasses.replace(rome, answer=" Rome "), dataclasses.replace(oslo, prompt="The king of France")]
        )
        == []
    )
    with pytest.raises(DataError, match=r"^b.yaml:2: the prompt gets 'Oslo' here and 'Rome' in a.yaml:2; keep one"):
        of.apply([rome, oslo], editor("ft"))
    assert not of.applied
    of.apply([rome], editor("ft"), force=True)
    of.apply([oslo], editor("ft"), force=True)
    assert "b.yaml:2: edit 0 wrote 'Rome' for the same prompt: it is written over" in said


def test_editors_at_the_subject_want_one_and_others_do_not(tmp_path: Path) -> None:
    of = session(load_model(str(talker()), device="cpu"), tmp_path)
    bare = Edit("Where is France?", "", "here", location="a.yaml:3")
    for kind in ("rome", "memit", "emmet", "alphaedit"):
        with pytest.raises(DataError, match=r"^a.yaml:3: the edit names no subject; .* ultraedit and locft need none"):
            of.apply([bare], editor(kind))
    for config in (editor("ft"), editor("locft"), UltraeditConfig(forms=("raw",), layers=(0,))):
        (made,) = of.apply([bare], config, force=True)
        assert made.deltas


def test_answers_are_forgotten_when_the_weights_change(tmp_path: Path) -> None:
    of = session(load_model(str(talker()), device="cpu"), tmp_path)
    of.apply([EDIT], editor("ft"), force=True)
    of.said[0] = Said("a", "b", True)
    of.apply([dataclasses.replace(EDIT, prompt=f"{EDIT.prompt} Say it.")], editor("ft"), force=True)
    assert of.said == {0: Said("a")}
    of.undo(0)
    assert of.said == {}
