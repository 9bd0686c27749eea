"""`posttrain chat`: from a pipe, once, and what a model's words may not do to a terminal."""

import io
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from posttrain import language
from posttrain.cli.chat_display import Columns
from posttrain.cli.main import build_app, main
from posttrain.cli.plain import one_line, plain
from posttrain.errors import MissingError
from posttrain.inference.protocol import Answer, Prompt
from posttrain.inference.respondents import ModelRespondent
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


def test_the_folder_of_a_training(asked: list[Prompt], tmp_path: Path) -> None:
    """Its model answers, which is said; before it has one, its checkpoint is named."""
    made = pico("llama", tmp_path)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "posttrain_run.json").write_text("{}", encoding="utf-8")
    made.rename(tmp_path / "run" / "checkpoints" / "step-3")
    result = chat(str(tmp_path / "run"), "--once", "one")
    assert isinstance(result.exception, MissingError)
    assert str(result.exception).endswith(f"or name a checkpoint: {tmp_path / 'run' / 'checkpoints' / 'step-3'}")
    assert asked == []
    (tmp_path / "run" / "result.json").write_text("{}", encoding="utf-8")
    (tmp_path / "run" / "checkpoints" / "step-3").rename(tmp_path / "run" / "model")
    result = chat(str(tmp_path / "run"), "--once", "one")
    assert result.exit_code == 0, result.output
    assert f"loading {tmp_path / 'run' / 'model'}" in result.stderr
    assert len(asked) == 1


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


def test_a_pipe_shows_its_questions(
    asked: list[Prompt], pico_path: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the answers, which stay alone on stdout; in the user's words, whatever the language."""
    name = str(pico_path("llama"))
    plain = chat(name, stdin="no such file\n\ntwo\x1b[31m\n/reset\n")
    shown = [line for line in plain.stderr.splitlines() if line.startswith(">")]
    assert shown == ["> no such file", "> two\\x1b[31m"]
    assert ">" not in plain.stdout
    assert "> " not in chat(name, "--json", stdin="one\n").stderr
    language.speak("zh-TW")
    try:
        assert "> no such file\n" in chat(name, stdin="no such file\n").stderr
    finally:
        language.speak("en")


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


# ---- answers that come word by word, and are stopped ----------------------------------------------------------------

CHINESE = "鱻麤龘，囍甯碁。"
"""Characters that are three tokens each in a pico vocabulary."""


class Speaker:
    """Answers like a model, token by token; `meanwhile` is told how many tokens of which answer were said."""

    def __init__(self, text: str, meanwhile: Callable[[int, int], None]) -> None:
        self.text, self.meanwhile = text, meanwhile
        self.asked: list[Any] = []

    def __call__(self, respondent: Any, prompts: Sequence[Prompt], *, on_token: Any, **_: Any) -> list[Answer]:
        self.asked += prompts
        ids = respondent.tokenizer.encode(self.text, add_special_tokens=False)
        for end in range(1, len(ids) + 1):
            self.meanwhile(len(self.asked), end)
            on_token(0, ids[:end])
        return [Answer(self.text, len(ids), True)]


@pytest.fixture
def speaks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Speaker]:
    def speaks(text: str = CHINESE, meanwhile: Callable[[int, int], None] = lambda turn, tokens: None) -> Speaker:
        speaker = Speaker(text, meanwhile)

        def answers(self: Any, prompts: Sequence[Prompt], **options: Any) -> list[Answer]:
            return speaker(self, prompts, **options)

        monkeypatch.setattr(ModelRespondent, "answers", answers)
        return speaker

    return speaks


def test_words_are_written_as_they_come(
    speaks: Callable[..., Speaker], pico_path: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    written: list[str] = []
    speaks(meanwhile=lambda turn, tokens: written.append(capsys.readouterr().out))
    assert main(["chat", str(pico_path("llama")), "--once", "Which?"]) == 0
    written.append(capsys.readouterr().out)
    assert "".join(written) == CHINESE + "\n"
    assert [text for text in written if text][:3] == ["鱻", "麤", "龘"]  # three bytes each, none of them torn


def test_ctrl_c_stops_the_answer_and_the_talk_goes_on(
    speaks: Callable[..., Speaker], pico_path: Callable[[str], Path]
) -> None:
    former = signal.getsignal(signal.SIGINT)
    speaker = speaks(meanwhile=lambda turn, tokens: signal.raise_signal(2) if (turn, tokens) == (1, 7) else None)
    result = chat(str(pico_path("llama")), stdin="one\ntwo\n")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"鱻麤 …\n{CHINESE}\n"  # seven bytes are two characters and a third of one
    assert "stopped; /quit leaves" in result.stderr
    assert [(m.role, m.content) for m in speaker.asked[1]] == [("user", "one"), ("assistant", "鱻麤"), ("user", "two")]
    assert signal.getsignal(signal.SIGINT) is former


def test_an_answer_stopped_before_its_first_word_was_not_asked(
    speaks: Callable[..., Speaker], pico_path: Callable[[str], Path]
) -> None:
    speaker = speaks(meanwhile=lambda turn, tokens: signal.raise_signal(2) if (turn, tokens) == (1, 1) else None)
    result = chat(str(pico_path("llama")), "--json", stdin="one\ntwo\n")
    first, second = (json.loads(line)["answers"][0] for line in result.stdout.splitlines())
    assert (first["text"], first["ended"], first["stopped"]) == ("", False, True)
    assert (second["text"], second["ended"], second["stopped"]) == (CHINESE, True, False)
    assert [(m.role, m.content) for m in speaker.asked[1]] == [("user", "two")]


def test_side_by_side_ctrl_c_stops_the_turn(speaks: Callable[..., Speaker], pico_path: Callable[[str], Path]) -> None:
    names = [str(pico_path(family)) for family in ("llama", "gpt2", "qwen3")]
    speaker = speaks(meanwhile=lambda turn, tokens: signal.raise_signal(2) if (turn, tokens) == (2, 4) else None)
    result = chat(*names, stdin="one\ntwo\n")
    assert result.exit_code == 0, result.output
    first = [f"{names[0]}: {CHINESE}", f"{names[1]}: 鱻 …"]
    assert result.stdout.splitlines() == [*first, *(f"{name}: {CHINESE}" for name in names)]
    assert f"not asked: {names[2]}" in result.stderr
    assert [len(prompt) for prompt in speaker.asked] == [1, 1, 3, 3, 1]


def test_twice_in_one_answer_ends_the_program(
    speaks: Callable[..., Speaker], pico_path: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(turn: int, tokens: int) -> None:
        signal.raise_signal(2)
        signal.raise_signal(2)

    speaker = speaks(meanwhile=twice)
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    assert main(["chat", str(pico_path("llama"))]) == 130
    assert len(speaker.asked) == 1


@pytest.mark.parametrize(("later_s", "code", "turns"), [(0.05, 0, 2), (0.6, 130, 1)])
def test_ctrl_c_at_the_prompt_right_after_an_answer_was_stopped_is_not_heard(
    speaks: Callable[..., Speaker],
    pico_path: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    later_s: float,
    code: int,
    turns: int,
) -> None:
    now = [100.0]
    monkeypatch.setattr("posttrain.cli.chat.clock", lambda: now[0])

    class Prompting(io.StringIO):
        def __iter__(self) -> Any:
            yield "one\n"
            now[0] += later_s
            signal.raise_signal(2)
            yield "two\n"

    speaker = speaks(meanwhile=lambda turn, tokens: signal.raise_signal(2) if (turn, tokens) == (1, 7) else None)
    monkeypatch.setattr(sys, "stdin", Prompting())
    assert main(["chat", str(pico_path("llama"))]) == code
    assert len(speaker.asked) == turns


def test_ctrl_c_right_after_a_whole_answer_leaves(
    speaks: Callable[..., Speaker], pico_path: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain.cli.chat.clock", lambda: 0.1)

    class Prompting(io.StringIO):
        def __iter__(self) -> Any:
            yield "one\n"
            signal.raise_signal(2)
            yield "two\n"

    speaker = speaks()
    monkeypatch.setattr(sys, "stdin", Prompting())
    assert main(["chat", str(pico_path("llama"))]) == 130
    assert len(speaker.asked) == 1


def test_sigterm_in_an_answer_ends_the_program(
    speaks: Callable[..., Speaker], pico_path: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    speaker = speaks(meanwhile=lambda turn, tokens: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    assert main(["chat", str(pico_path("llama"))]) == 143
    assert len(speaker.asked) == 1


def test_ctrl_c_at_the_prompt_and_during_once_ends_the_program(
    speaks: Callable[..., Speaker],
    pico_path: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Prompting(io.StringIO):
        def __iter__(self) -> Any:
            yield "one\n"
            raise KeyboardInterrupt

    speaks()
    monkeypatch.setattr(sys, "stdin", Prompting())
    assert main(["chat", str(pico_path("llama"))]) == 130
    assert capsys.readouterr().out == f"{CHINESE}\n"
    speaks(meanwhile=lambda turn, tokens: signal.raise_signal(2) if tokens == 5 else None)
    assert main(["chat", str(pico_path("llama")), "--once", "one"]) == 130
    assert capsys.readouterr().out == "鱻 …\n"


def test_a_real_answer_is_stopped_after_its_token_and_the_model_is_as_before(
    pico_path: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = json.loads(chat(str(pico_path("llama")), "--json", "--max-new-tokens", "20", stdin="one").stdout)
    answers, turns = ModelRespondent.answers, []

    def stopping(self: Any, prompts: Any, *, on_token: Any, **options: Any) -> Any:
        turns.append(self)

        def stop(place: int, ids: list[int]) -> None:
            if len(turns) == 1 and len(ids) == 3:
                signal.raise_signal(2)
            on_token(place, ids)

        return answers(self, prompts, on_token=stop, **options)

    monkeypatch.setattr(ModelRespondent, "answers", stopping)
    result = chat(str(pico_path("llama")), "--json", "--max-new-tokens", "20", stdin="one\n/reset\none\n")
    first, second = (json.loads(line)["answers"][0] for line in result.stdout.splitlines())
    assert (first["tokens"], first["stopped"]) == (3, True)
    assert {**second, "wall_s": 0} == {**whole["answers"][0], "wall_s": 0}


def test_columns_grow_side_by_side_and_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    stream = io.StringIO()
    screen = Console(file=stream, force_terminal=True, width=60, height=12, highlight=False)
    monkeypatch.setattr("posttrain.cli.chat_display.console", lambda **_: screen)
    monkeypatch.setattr("posttrain.cli.chat_display.SHOWN_S", 0.0)
    with Columns(["first", "second"]) as columns:
        for place, texts in enumerate((["玉山", "最高。"], ["[bold]x\x1b[2J\n" * 30, "end"])):
            columns.begin(place)
            for text in texts:
                columns.put(text)
            columns.done()
        assert len(columns.tails()[1].splitlines()) <= 12 - 6
        assert columns.tails()[1].endswith("end")
    shown = stream.getvalue()
    last = shown[shown.rindex("┏") :]
    assert "玉山最高。" in last
    assert last.count("[bold]x\\x1b[2J") == 30
    assert "\x1b[2J" not in shown
