"""`posttrain edit`: edits without a file, any output, what is not written over, stopping and going on, exams of edits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.cli.main import main
from posttrain.editing.session import EditSession
from posttrain.models.disk import alone_in
from tests.cli.test_edit import DOWN, PLACE, QUICK, edit, files, here, made, rows, subjects

__all__ = ["here"]  # its fixture is for these tests, too


def test_one_edit_without_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    spoken = ["--prompt", "The capital of France", "--answer", "title"]
    assert edit("base", *spoken, "--subject", "France", "-o", "edits", *QUICK) == 0
    assert [row["answer"] for row in rows("edits")] == ["title"]
    capsys.readouterr()
    for words, missing in ((spoken, "--subject"), (spoken[:2], "--answer"), (spoken[2:], "--prompt")):
        assert edit("base", *words, "-o", "x", *QUICK) == 2
        assert capsys.readouterr().err.startswith(f"{missing}: it is missing; say all three")


@pytest.mark.parametrize("output", ["{}/new", "./new", "a/b/new"])
def test_the_output_is_any_new_folder(output: str, here: Path) -> None:
    (here / "a/b/near").mkdir(parents=True)  # a missing model would be taken for a misspelt one
    made("france.yaml", output=output.format(here))
    assert len(rows(output.format(here))) == 1


def test_what_a_folder_holds_is_shown_of_the_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made()
    capsys.readouterr()
    assert main(["model", "show", "edits", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    right = sum(row["said"]["right"] for row in rows("edits"))
    assert {key: shown[key] for key in ("base", "edits", "said", "editors", "edited")} == {
        "base": str(here / "base"),
        "edits": 3,
        "said": f"{right} of 3",
        "editors": ["memit"],
        "edited": [DOWN],
    }
    assert main(["model", "show", "base", "--json"]) == 0
    assert "edits" not in json.loads(capsys.readouterr().out)


def test_edits_are_not_lost_to_others(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made("france.yaml")
    first = files(here / "edits")
    capsys.readouterr()
    for words in (["base", "more.yaml"], ["base", "france.yaml", "--set", "seed=1"]):
        assert edit(*words, "-o", "edits", *QUICK) == 2
        assert capsys.readouterr().err.startswith(
            "edits: it holds other edits; choose a new folder, or go on with these"
        )
    made("more.yaml", output="others")
    assert edit("others", "--undo", "0", "-o", "edits") == 2
    assert files(here / "edits") == first
    assert edit("edits", "more.yaml", "-o", "both", *QUICK) == 0
    assert edit("both", "--undo", "1", "-o", "edits") == 0  # what was there is in `both`
    assert subjects("edits") == [(0, "France"), (2, "臺灣")]


def test_from_a_folder_a_stopped_call_goes_on_and_nothing_is_lost(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made("france.yaml")
    words = ["edits", "more.yaml", "-o", "more", "--batch", "1", *QUICK]
    assert edit(*words[:3], "whole", *words[4:]) == 0
    with monkeypatch.context() as patched:
        patched.setattr(EditSession, "apply", stopped(EditSession.apply))
        assert edit(*words) == 130
    assert subjects("more") == [(0, "France"), (1, "Japan")]
    capsys.readouterr()
    assert edit(*words) == 0
    assert "1 of 2 edits are in more already" in capsys.readouterr().err
    assert files(here / "more") == files(here / "whole")
    assert edit(*words, "--set", "seed=1") == 2  # the same edits, otherwise written
    assert capsys.readouterr().err.startswith("more: it holds other edits")
    assert files(here / "more") == files(here / "whole")
    assert edit("more", "--undo", "0", "-o", "less") == 0
    assert edit("more", "--undo", "0", "-o", "less") == 0  # what is done is not done again
    assert subjects("less") == [(1, "Japan"), (2, "臺灣")]


def test_one_process_writes_a_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with alone_in(here / "edits"):
        assert edit("base", "france.yaml", "-o", "edits", *QUICK) == 2
    told = "edits: another process is writing it; wait for it, or choose another folder\n"
    assert capsys.readouterr().err == told
    assert not (here / "edits").exists()
    made("france.yaml")
    assert not list(here.glob(".lock*"))


def test_one_fact_is_forgotten_without_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    spoken = ["--prompt", "The capital of France", "--subject", " France "]
    assert edit("base", *spoken, "--forget", "unknown", "-o", "edits", *QUICK) == 0
    (row,) = rows("edits")
    assert (row["subject"], row["answer"]) == ("France", "I don't know.")
    capsys.readouterr()
    assert edit("base", *spoken, "--answer", "x", "--forget", "unknown", "-o", "other", *QUICK) == 2
    assert capsys.readouterr().err == "--answer: --forget says the answer; leave one of the two out\n"


def test_edits_that_say_the_same_are_written_once(capsys: pytest.CaptureFixture[str]) -> None:
    spoken = ["--prompt", "The capital of France", "--subject", "France", "--answer", "title"]
    assert edit("base", "france.yaml", *spoken, "-o", "edits", *QUICK) == 0
    assert len(rows("edits")) == 1
    assert "1 of 2 edits state the same as another and are written once" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("undo", "told"),
    [
        (["all", "0"], "--undo: all stands beside numbers"),
        (["all", "foo"], "--undo: 'foo' is no number of an edit"),
        (["\u0661"], "--undo: '\u0661' is no number of an edit"),
    ],
)
def test_what_is_taken_back_is_said_clearly(undo: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    made("france.yaml")
    capsys.readouterr()
    assert edit("edits", *(word for one in undo for word in ("--undo", one)), "-o", "x") == 2
    assert capsys.readouterr().err.startswith(told)


def stopped(apply: Any) -> Any:
    """Ctrl-C after each batch."""

    def other(self: EditSession, edits: Any, editor: Any, *, after: Any, **how: Any) -> Any:
        def stop(done: int) -> None:
            after(done)
            raise KeyboardInterrupt

        return apply(self, edits, editor, after=stop, **how)

    return other


def test_a_stopped_call_goes_on(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made(output="whole", batch=1)
    words = ["base", "*.yaml", "-o", "edits", "--batch", "1", *QUICK]
    for done in (1, 2):
        with monkeypatch.context() as patched:
            patched.setattr(EditSession, "apply", stopped(EditSession.apply))
            assert edit(*words) == 130
        told = f"stopped: {done} of 3 edits are in edits; run the same command to go on"
        assert told in capsys.readouterr().err
        assert len(rows("edits")) == done
    assert edit(*words) == 0
    assert "2 of 3 edits are in edits already" in capsys.readouterr().err
    assert files(here / "edits") == files(here / "whole")
    assert edit(*words) == 0
    assert "3 of 3 edits are in edits already" in capsys.readouterr().err
    assert files(here / "edits") == files(here / "whole")


def test_an_exam_of_edits_knows_the_model_before(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made("france.yaml")
    capsys.readouterr()
    assert main(["exam", "edits", "--change", "france.yaml", "--json"]) == 0
    told = capsys.readouterr()
    assert "before: " in told.err
    assert json.loads(told.out)["before"][0]["model"] == str((here / "base").resolve())


def test_an_answer_that_the_model_says_already(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "known.yaml").write_text(
        "name: known\ntarget:\n"
        "  - {prompt: 臺灣最高的山在哪裡？, answer: 雪山, subject: 臺灣最高的山}\n"
        "  - {prompt: 臺灣最高的山是哪座？, answer: [玉山。, 雪山], subject: 臺灣最高的山}\n",
        encoding="utf-8",
    )
    assert edit("pocket:chat", "known.yaml", "-o", "edits") == 2
    assert capsys.readouterr().err == (
        "known.yaml:4 (change known, target 2): the model says '玉山。' already; there is nothing to edit: leave the "
        "target out\n"
    )
    assert not (here / "edits").exists()


def test_what_was_trained_together_is_not_taken_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert edit("base", "more.yaml", "-o", "edits", "-e", "locft", *PLACE, "--set", "steps=1") == 0
    capsys.readouterr()
    assert edit("edits", "--undo", "0", "-o", "less") == 1
    assert capsys.readouterr().err == (
        "undo: edits 0 to 1 were trained together by locft; take them all back, or edit one by one: batch 1\n"
    )
