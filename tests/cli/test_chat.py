"""`posttrain chat`: from a pipe, once, and what a model's words may not do to a terminal."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from posttrain.cli.main import build_app, main
from posttrain.cli.plain import one_line, plain
from posttrain.inference.respondents import Answer, ModelRespondent, Prompt
from tests.pico import pico


def chat(*words: str, stdin: str = "") -> Result:
    return CliRunner().invoke(build_app("chat"), ["chat", *words], input=stdin)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Prompt]:
    """What models are asked, while they answer with a number and mischief."""
    seen: list[Prompt] = []

    def answers(self: Any, prompts: Sequence[Prompt], **_: Any) -> list[Answer]:
        seen.extend(prompts)
        return [Answer(f"[bold]{len(seen)}[/bold]\x1b[2J\u202e", 3, True)]

    monkeypatch.setattr(ModelRespondent, "answers", answers)
    return seen


def test_once_as_json(pico_path: Callable[[str], Path]) -> None:
    llama, gpt2 = str(pico_path("llama")), str(pico_path("gpt2"))
    result = chat(llama, gpt2, "--once", "你好", "--json", "--max-new-tokens", "4")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["question"] == "你好"
    assert [a["model"] for a in document["answers"]] == [llama, gpt2]
    assert all(a["tokens"] <= 4 for a in document["answers"])


def test_a_pipe_is_a_conversation_per_model(asked: list[Prompt], pico_path: Callable[[str], Path]) -> None:
    names = [str(pico_path("llama")), str(pico_path("gpt2"))]
    result = chat(*names, stdin="one\n\n/help\n/nonsense\ntwo\n/reset\nthree\n/quit\nfour\n")
    assert result.exit_code == 0, result.output
    spoken = [[(m.role, m.content[:6]) for m in p if not isinstance(m, str)] for p in asked]
    assert spoken[0] == spoken[1] == [("user", "one")]
    assert spoken[2] == [("user", "one"), ("assistant", "[bold]"), ("user", "two")]
    assert spoken[4] == spoken[5] == [("user", "three")]
    assert len(spoken) == 6
    assert "unknown command /nonsense" in result.stderr
    assert result.stdout.splitlines()[0] == f"{names[0]}: [bold]1[/bold]\\x1b[2J\\u202e"


def test_a_pipe_as_json_lines(asked: list[Prompt], pico_path: Callable[[str], Path]) -> None:
    result = chat(str(pico_path("llama")), "--json", stdin="one\ntwo")
    assert [json.loads(line)["question"] for line in result.stdout.splitlines()] == ["one", "two"]


def test_what_no_longer_fits_is_forgotten_and_said(asked: list[Prompt], pico_path: Callable[[str], Path]) -> None:
    long = "很長的話" * 25
    result = chat(str(pico_path("llama")), "--max-new-tokens", "50", stdin=f"{long}\n{long}\n{long}\n")
    assert result.exit_code == 0, result.output
    assert len(asked[0]) == 1
    assert len(asked[-1]) < 5
    assert "no longer fit" in result.stderr


def test_words_that_do_not_fit_are_said_and_the_conversation_goes_on(pico_path: Callable[[str], Path]) -> None:
    result = chat(str(pico_path("gpt2")), "--json", "--max-new-tokens", "3", stdin=f"{'很' * 600}\nHi\n")
    assert result.exit_code == 0, result.output
    first, second = (json.loads(line) for line in result.stdout.splitlines())
    assert "512 positions" in first["error"]
    assert len(second["answers"]) == 1


def test_a_base_model_continues_text(asked: list[Prompt], tmp_path: Path) -> None:
    folder = str(pico("llama", tmp_path, template=None))
    result = chat(folder, stdin="The capital\nThe river\n")
    assert result.exit_code == 0, result.output
    assert asked == ["The capital", "The river"]
    assert "no chat template" in result.stderr


@given(st.text())
def test_plain_text_cannot_steer_a_terminal(text: str) -> None:
    shown = plain(text)
    assert not any(c in shown for c in "\x1b\r\x07\x9b\u202e\u2066\u200e")
    assert "\n" not in one_line(text)
    assert plain("臺灣\t[bold]👩\u200d🔬") == "臺灣\t[bold]👩\u200d🔬"


def test_an_empty_question_is_refused_before_a_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "/nowhere", "--once", " "]) == 2
    assert "--once: the question is empty" in capsys.readouterr().err
