"""`posttrain trace`: tables, files, JSON, dry runs and errors, on a pico model that knows six facts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.cli.main import main
from posttrain.editing.trace_file import read_trace
from tests.talker import talker

CHANGE = """\
name: france
target: [{prompt: "capital of France?", answer: "Rome", subject: "France"}]
"""
ROWS: list[dict[str, Any]] = [
    {"name": "hamlet", "prompt": "who wrote Hamlet?", "subject": "Hamlet", "answer": "Shakespeare"},
    {"name": "japan", "prompt": "capital of Japan?", "subject": "Japan", "answer": "Kyoto"},
]
FEW = ["--set", "samples=2", "--set", "least_fall=0"]


@pytest.fixture
def facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "france.yaml").write_text(CHANGE, encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return ["france.yaml", "rows.jsonl"]


def test_a_trace(facts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", str(talker()), *facts, *FEW, "-o", "out"]) == 0
    said = capsys.readouterr()
    assert "not traced: 1 of 3 facts" in said.out
    assert "japan: the model says 'Tokyo', not 'Kyoto'" in said.out
    assert "state, subject" in said.out
    assert "layers: [" in said.out or "no layer is recommended" in said.out
    assert "arXiv:2301.04213" in said.out
    assert f"wrote {Path('out') / 'trace.json'}; pictures: " in said.err
    made = read_trace(tmp_path / "out")
    assert [fact.name for fact in made.facts] == ["france", "hamlet"]
    assert made.settings["samples"] == 2
    for name in ("averages", "layers", "facts/001-france", "facts/002-hamlet"):
        assert (tmp_path / "out" / f"{name}.svg").is_file()
        assert (tmp_path / "out" / f"{name}.png").is_file()
    assert main(["trace", str(talker()), *facts, *FEW, "-o", "out", "--json"]) == 0
    again = capsys.readouterr()
    assert "2 of 2 facts were traced before and are kept" in again.err
    assert json.loads(again.out) == made.model_dump(mode="json")


def test_an_answer_that_survives_the_noise(facts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", str(talker()), *facts, "--set", "samples=2", "--set", "kinds=[state]"]) == 0
    said = capsys.readouterr().out
    assert "not traced: 2 of 3 facts" in said
    assert "hamlet: the probability of 'Sh' is 0.9" in said
    assert "it falls by less than 10 %" in said


def test_settings_of_the_command_line(facts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["trace", str(talker()), *facts, *FEW, "--set", "kinds=[state]", "--limit", "1", "--seed", "3", "--json"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert [fact["name"] for fact in told["facts"]] == ["france"]
    assert (told["seed"], set(told["averages"]), told["advice"]) == (3, {"state"}, None)
    assert main([*words[:-1], "--form", "chat"]) == 0
    said = capsys.readouterr()
    assert "which layers to edit is said by mlp, which was not traced" in said.out
    assert "nothing was kept: with --output DIR there are pictures" in said.err


def test_a_dry_run(
    facts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["trace", str(talker()), *facts, "--dry-run", "-o", "out"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"model       {talker()}: 2 layers, windows of 1"
    assert lines[1] == "facts       3, asked in the chat template"
    assert lines[2].startswith("cells ")
    assert lines[3] == "output      out"
    assert lines[4].startswith("time        about ")
    assert not (tmp_path / "out").exists()
    assert main(["trace", str(talker()), *facts, "--dry-run", "--json", "--limit", "2", "--form", "raw"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["facts"], told["form"], told["layers"], told["window"]) == (2, "raw", 2, 1)
    assert main(["trace", str(talker()), *facts, "france.yaml", "rows.jsonl[:1]", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == [
        "facts       3, asked in the chat template",
        "repeated    1: they have the prompt and the subject of another fact",
    ]
    assert 0 < told["wall_s"] < 60
    monkeypatch.setattr("posttrain.studies.speed.flops_per_s", lambda: 1e12)
    seconds = []
    for more in ([], ["-o", "out"]):
        assert main(["trace", str(talker()), *facts, "--dry-run", "--json", *more]) == 0
        seconds.append(json.loads(capsys.readouterr().out)["wall_s"])
    assert seconds[1] - seconds[0] == pytest.approx(5 * 0.4), "three facts and the two averages are drawn"


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_what_it_cannot(facts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], dry: list[str]) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "who wrote it?", "subject": "Hamlet"}\n', encoding="utf-8")
    cases: tuple[tuple[list[str], int, str], ...] = (
        (["bad.jsonl"], 1, "bad.jsonl:1: the subject 'Hamlet' does not stand in the prompt; name words of the prompt"),
        ([*facts, "--set", "noise=.inf"], 2, "--set: noise: a finite number is expected, got inf"),
        ([*facts, "-o", "."], 2, "--output: . holds other things than a trace; choose a new or an empty folder"),
        (["nothing.yaml"], 3, "FACTS: no file matches 'nothing.yaml'"),
        ([*facts, "--set", "sample=2"], 2, "--set: unknown key 'sample'; did you mean 'samples'?"),
        ([*facts, "--set", "kinds=[mlps]"], 2, "--set: kinds.0:"),
        ([*facts, "-o", "rows.jsonl"], 2, "--output: rows.jsonl is a file; name a folder"),
        ([*facts, "--set", "samples=0"], 2, "--set: samples: input should be greater than or equal to 1"),
    )
    for words, code, message in cases:
        assert main(["trace", str(talker()), *words, *dry]) == code, words
        assert message in capsys.readouterr().err
    assert main(["trace", "./nowhere", *facts, *dry]) == 3
    assert "no such model folder" in capsys.readouterr().err
    assert main(["trace", "api:x@http://localhost:1/v1", *facts, *dry]) == 2
    assert "is not loaded here, so that its layers cannot be read" in capsys.readouterr().err


def test_no_fact_is_left(facts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "unknown.jsonl").write_text(json.dumps(ROWS[1]) + "\n", encoding="utf-8")
    assert main(["trace", str(talker()), "unknown.jsonl", "--json"]) == 1
    said = capsys.readouterr()
    assert "none of 1 facts can be traced; state what the model says" in said.err
    assert "unknown.jsonl:1: the model says 'Tokyo', not 'Kyoto'" in said.err
    assert json.loads(said.out)["exit_code"] == 1


def test_it_speaks_chinese(facts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["trace", str(talker()), *facts, *FEW, "--language", "zh-TW"]
    assert main(words) == 0
    said = capsys.readouterr()
    for line in (*said.out.splitlines(), *said.err.splitlines()):
        latin = sum(c.isascii() and c.isalpha() for c in line)
        chinese = sum(c >= "\u4e00" for c in line)
        assert chinese or latin < 30, line
