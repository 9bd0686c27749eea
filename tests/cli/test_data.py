from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.cli.main import main
from posttrain.data.chat import Encoded
from posttrain.data.survey import check_prompt, check_stop, lengths_of
from posttrain.models.save import write_notes
from tests.pico import CHATML, MARKED, pico, tokenizer

PicoPath = Callable[[str], Path]

ROWS: list[Any] = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "你好"}]},
    {"prompt": "2+3?", "completion": "5 \u001b[31mred"},
    {"messages": [{"role": "user", "content": "word " * 30}, {"role": "assistant", "content": "yes"}]},
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


@pytest.fixture
def model(pico_path: PicoPath) -> str:
    return str(pico_path("llama"))


def test_show(rows: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", str(rows), "--model", model, "--rows", "2", "--max-length", "40"]) == 0
    out = capsys.readouterr().out
    assert "--- rows.jsonl:1: 10 tokens, 4 learned\n<|bos|><|user|>Hi<|end|><|assistant|>⟦你好<|end|>⟧\n" in out
    assert "⟦5 \\x1b[31mred<|end|>⟧" in out  # an escape sequence in the data is text
    assert "rows.jsonl:3" not in out
    assert "rows     3, 0 of them bad" in out
    assert "over     1 rows are longer than max_length 40" in out
    assert "stop     ok: turns end with <|end|>, generation stops at <|end|>" in out
    assert "prompt   ok" in out


@pytest.mark.parametrize("verb", ["show", "check"])
def test_of_a_training_s_folder_it_is_said_which_model_is_taken(
    verb: str, rows: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "first"
    shutil.copytree(model, run / "model")
    (run / "result.json").write_text("{}")
    assert main(["data", verb, str(rows), "--model", str(run), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == f"{run}: its model is {run / 'model'}\n"
    assert json.loads(captured.out)["rows"] == 3


def test_show_as_json(rows: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", str(rows), "-m", model, "-n", "1", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["rows"] == 3
    (row,) = data["shown"]
    assert row == {
        "place": f"{rows}:1",
        "tokens": 10,
        "supervised": 4,
        "segments": [
            {"text": "<|bos|><|user|>Hi<|end|><|assistant|>", "supervised": False},
            {"text": "你好<|end|>", "supervised": True},
        ],
    }
    assert data["lengths"]["min"] == 10
    assert data["stop"] == {"ends": ["<|end|>"], "stops": ["<|end|>"], "problem": ""}


def test_show_goes_on_with_bad_rows_and_names_them(rows: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows.write_text(rows.read_text() + '{"prompt": "a"}\n' + '{"prompt": "a", "completion": "<|end|>"}\n')
    assert main(["data", "show", str(rows), "-m", model]) == 0
    shown = capsys.readouterr()
    assert "rows     5, 2 of them bad" in shown.out
    assert f"bad row: {rows}:4: a row without an answer" in shown.err
    assert f"bad row: {rows}:5: turn 1 (assistant) holds the control token" in shown.err


def test_colours_on_a_terminal(
    rows: Path, model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(["data", "show", str(rows), "-m", model, "-n", "1"]) == 0
    out = capsys.readouterr().out
    assert "\x1b[1;32m你好<|end|>\x1b[0m" in out
    assert "⟦" not in out


def test_check(rows: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(rows), "-m", model, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["rows"], data["usable"], data["bad"], data["dropped"], data["truncated"]) == (3, 3, 0, 0, 0)
    assert data["supervised_tokens"] < data["tokens"] == data["lengths"]["total"]


def test_check_fails_on_bad_rows_and_skips_when_told(
    rows: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows.write_text(rows.read_text() + '{"prompt": "a"}\n' + '{"messages": [{"role": "us')
    assert main(["data", "check", str(rows), "-m", model]) == 1
    shown = capsys.readouterr()
    assert f"{rows}:4: a row without an answer" in shown.err
    assert f"{rows}:5: not valid JSON" in shown.err
    assert "2 of 5 rows cannot be used; --on-bad-row skip" in shown.err
    assert [line.split() for line in shown.out.splitlines()[:3]] == [["rows", "5"], ["usable", "3"], ["bad", "2"]]
    assert main(["data", "check", str(rows), "-m", model, "--on-bad-row", "skip"]) == 0
    shown = capsys.readouterr()
    assert f"left out: {rows}:4" in shown.err


@pytest.mark.parametrize("pair", [False, True])
def test_check_names_rows_with_tokens_that_the_model_has_no_embedding_for(
    tmp_path: Path, pico_path: PicoPath, capsys: pytest.CaptureFixture[str], pair: bool
) -> None:
    """Tokens were added to the tokenizer, and the model was not resized."""
    folder = tmp_path / "model"
    shutil.copytree(pico_path("llama"), folder)
    grown = tokenizer.__wrapped__()
    grown.add_special_tokens({"pad_token": "[PAD]"})
    grown.add_tokens(["<new>"])
    grown.save_pretrained(folder)
    answers = ("Yes", "a <new> b", "No")
    made = [
        {"prompt": "Hi", "chosen": a, "rejected": "-"} if pair else {"prompt": "Hi", "completion": a} for a in answers
    ]
    path = tmp_path / "new.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    assert main(["data", "check", str(path), "-m", str(folder), "--json"]) == 1
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert (found["rows"], found["usable"], found["bad"]) == (3, 2, 1)
    (problem,) = found["problems"]
    assert problem["place"] == f"{path}:2"
    assert (
        problem["cause"] == "holds the token '<new>' (id 385), and the model has embeddings for 384 tokens (0 to 383)"
    )
    assert "the padding token [PAD] is beyond the model's 384 embeddings" in said.err
    assert main(["data", "show", str(path), "-m", str(folder)]) == 0
    assert "new.jsonl:2" in capsys.readouterr().err


def test_over_long_rows(rows: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    check = ["data", "check", str(rows), "-m", model, "--max-length", "40"]
    assert main(check) == 1
    assert f"{rows}:3:" in capsys.readouterr().err
    assert main([*check, "--over-long", "drop", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dropped"] == 1
    assert main([*check, "--over-long", "truncate"]) == 1  # nothing is left to learn of row 3
    assert "no supervised token is left after cutting" in capsys.readouterr().err


def test_columns_hub_and_mistakes(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str], rows: Path) -> None:
    path = tmp_path / "qa.jsonl"
    path.write_text('{"q": "a", "a": "b"}\n')
    columns = ["--column", "prompt=q", "--column", "completion=a"]
    assert main(["data", "check", str(path), "-m", model, *columns]) == 0
    assert main(["data", "check", str(path), "-m", model, "--column", "prompt"]) == 2
    assert main(["data", "check", str(path), "-m", model, "--column", "promt=q"]) == 2
    assert "unknown field 'promt'" in capsys.readouterr().err
    assert main(["data", "check", "posttrain-tests/none", "--hub", "-m", model]) == 3
    assert "--download allows" in capsys.readouterr().err
    assert main(["data", "check", str(tmp_path / "rowz.jsonl"), "-m", model]) == 3
    assert main(["data", "show", str(rows), "-m", str(tmp_path / "nope")]) == 3


def test_a_model_that_would_not_stop(tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pico("llama", tmp_path, template=MARKED.replace("{{ '<|end|>' }}", "{{ '<|tool|>' }}"))
    assert main(["data", "show", str(rows), "-m", str(folder), "-n", "0"]) == 0
    out = capsys.readouterr().out
    assert "stop     PROBLEM: turns end with <|tool|>, but generation stops at <|end|>: add it to eos_token_id" in out


def test_survey_numbers() -> None:
    made = [Encoded([0] * n, [0] * n, "a:1") for n in range(1, 101)]
    assert lengths_of(made, max_length=97) == (1, 50, 95, 100, 5050, 3)
    assert lengths_of(made[:1], max_length=1) == (1, 1, 1, 1, 1, 0)
    tok = tokenizer(MARKED)
    whole = Encoded([4, 70, 2], [-100, 70, 2], "a:1")
    cut = Encoded([4, 70], [-100, 70], "a:2", truncated=True)
    assert check_stop([whole, cut], tok, (2, 4)).problem == ""
    assert "generation stops at nothing" in check_stop([whole], tok, ()).problem
    assert check_stop([cut], tok, (2,)).problem == "no supervised turn"


def test_prompt_check() -> None:
    assert check_prompt(tokenizer(MARKED)) == check_prompt(tokenizer(None)) == ""
    assert "<think>" in check_prompt(tokenizer(CHATML.replace("assistant\n", "assistant\n<think>")))
    assert "refuses" in check_prompt(tokenizer("{{ raise_exception('no') }}"))


def test_a_template_that_the_weights_do_not_know(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pico("llama", tmp_path)
    write_notes(folder, tokenizer(CHATML))
    for verb in ("show", "check"):
        assert main(["data", verb, str(rows), "--model", str(folder)]) == 0
        assert "template PROBLEM: " in (out := capsys.readouterr().out)
        assert "the weights were trained with the chat template" in out
    assert main(["data", "show", str(rows), "-m", str(folder), "--json"]) == 0
    assert "answers would be garbage" in json.loads(capsys.readouterr().out)["template_problem"]


def test_a_template_that_is_no_jinja(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pico("llama", tmp_path, template="{% for m in messages %}\n{{ m.content }")
    assert main(["data", "show", str(rows), "--model", str(folder)]) == 1
    err = capsys.readouterr().err
    assert f"{folder}: the tokenizer's chat template is not valid Jinja: line 2: unexpected '}}'; correct" in err


def test_answers_to_compare_are_shown_and_checked(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, graded = tmp_path / "pairs.jsonl", tmp_path / "graded.jsonl"
    pairs.write_text('{"prompt": "Hi", "chosen": "Yo", "rejected": "No"}\n' * 2, encoding="utf-8")
    graded.write_text('{"prompt": "Hi", "completion": "Yo", "label": false}\n', encoding="utf-8")
    assert main(["data", "show", str(pairs), "-m", model, "-n", "2"]) == 0
    out = capsys.readouterr().out
    assert "pairs.jsonl:1 chosen: 9 tokens, 3 learned\n<|bos|><|user|>Hi<|end|><|assistant|>⟦Yo<|end|>⟧" in out
    assert "pairs.jsonl:1 rejected" in out
    assert main(["data", "show", str(graded), "-m", model]) == 0
    assert "graded.jsonl:1 unwanted: " in capsys.readouterr().out
    for file, usable in ((pairs, 2), (graded, 1)):
        assert main(["data", "check", str(file), "-m", model, "--json"]) == 0
        checked = json.loads(capsys.readouterr().out)
        assert (checked["rows"], checked["usable"], checked["bad"]) == (usable, usable, 0)
    assert checked["tokens"] == 9
    assert main(["data", "check", str(pairs), "-m", model, "--max-length", "8"]) == 1
    assert "pairs.jsonl:2: 9 tokens, more than max_length 8" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["check", "show"])
@pytest.mark.parametrize("line", ['{"promt": "a", "completion": "b"}', '{"prompt": "a", "completion": "<|end|>"}'])
def test_every_row_bad_is_counted_too(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str], verb: str, line: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{line}\n{line}\n", encoding="utf-8")
    assert main(["data", verb, str(path), "-m", model]) == 1
    shown = capsys.readouterr()
    assert "2 of 2 rows" in shown.err or "no row is left of 2: all are bad" in shown.err
    assert "max_length" not in shown.err
    if verb == "check":
        names = ("rows", "usable", "bad", "too long", "dropped", "truncated", "tokens", "supervised tokens")
        numbers = (2, 0, 2, 0, 0, 0, 0, 0)
        expected = [f"{name:<18}{number:>12}" for name, number in zip(names, numbers, strict=True)]
        assert shown.out.splitlines()[:8] == expected
    else:
        assert "rows     2, 2 of them bad" in shown.out
    assert main(["data", verb, str(path), "-m", model, "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert (data["rows"], data["bad"], data["lengths"], data["stop"]) == (2, 2, None, None)
    assert len(data["problems"]) >= 2
    if verb == "check":
        assert (data["usable"], data["tokens"]) == (0, 0)
    assert main(["data", verb, str(path), "-m", model, *(["--on-bad-row", "skip"] if verb == "check" else [])]) == 1


@pytest.mark.parametrize("verb", ["show", "check"])
@pytest.mark.parametrize(
    ("text", "place", "cause"),
    [
        (b"", "", "the file is empty: no rows"),
        ('{"text": "Hi"}'.encode("utf-16"), ":1", "not UTF-8 but UTF-16"),
        (b'[{"text": ', ":1", "not valid JSON"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_document_with_json(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str], verb: str, text: bytes, place: str, cause: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(text)
    assert main(["data", verb, str(path), "-m", model, "--json"]) == 1
    shown = capsys.readouterr()
    (problem,) = json.loads(shown.out)["problems"]
    assert problem["place"] == f"{path}{place}"
    assert cause in problem["cause"]
    assert cause in shown.err


def test_rows_that_are_too_long_are_counted(rows: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    check = ["data", "check", str(rows), "-m", model, "--json"]
    assert main([*check, "--max-length", "40"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert (data["rows"], data["usable"], data["bad"], data["too_long"]) == (3, 2, 0, 1)
    assert any(p["place"] == f"{rows}:3" for p in data["problems"])
    assert main([*check, "--max-length", "2", "--over-long", "drop"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert (data["rows"], data["usable"], data["bad"], data["dropped"], data["tokens"]) == (3, 0, 0, 3, 0)


def test_the_format_that_was_recognised_is_said(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "alpaca.csv"
    path.write_text("instruction;input;output\nSum.;1+1;2\n", encoding="utf-8")
    for verb in ("show", "check"):
        assert main(["data", verb, str(path), "-m", model]) == 0
        out = capsys.readouterr().out
        assert "format   Alpaca\nnote     the columns are separated by semicolons\n" in out
        assert main(["data", verb, str(path), "-m", model, "--json"]) == 0
        data = json.loads(capsys.readouterr().out)
        assert (data["format"], data["notes"]) == ("Alpaca", ["the columns are separated by semicolons"])
    assert main(["data", "show", str(path), "-m", model]) == 0
    assert "<|user|>Sum.\n\n1+1<|end|><|assistant|>⟦2<|end|>⟧" in capsys.readouterr().out
