"""`posttrain merge --check`: whether models fit, and what is decided of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from posttrain.cli.main import main
from tests.merging.test_vocabulary import PLAIN, folder

Capture = pytest.CaptureFixture[str]


def test_models_that_fit(tmp_path: Path, capsys: Capture) -> None:
    base = folder(tmp_path / "base", PLAIN, tied=False)
    chat = folder(tmp_path / "chat", PLAIN, special=["<end>"], tied=True, dtype=torch.bfloat16)
    (chat / "chat_template.jinja").write_text("{{ messages }}")
    command = ["merge", "base + 0.5*(chat - base)", f"base={base}", f"chat={chat}", "--check"]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines() == [
        "fits     yes",
        "note     chat has its head tied: its embedding stands for lm_head.weight",
        "note     chat added 1 token (<end>): left out (tokenizer: union keeps them)",
        "note     types: base F32, chat BF16; added in F32 and stored as F32",
        "note     template: that of chat",
    ]
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["fits"], told["problems"], len(told["decided"])) == (True, [], 4)


def test_models_that_do_not_fit(tmp_path: Path, capsys: Capture) -> None:
    base = folder(tmp_path / "base", PLAIN)
    same = folder(tmp_path / "same", PLAIN, special=["<end>"])
    other = folder(tmp_path / "other", [f"u{number}" for number in range(36)])
    command = ["merge", "-m", "linear", f"base={base}", f"same={same}", f"other={other}"]
    assert main([*command, "--check"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fits     no, 1 problem"
    assert lines[1].startswith("problem  other: it has another tokenizer: 0 of its 36 tokens")
    assert lines[2].startswith("note     same added 1 token (<end>)")
    assert main([*command, "--check", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["fits"], len(told["problems"]), len(told["decided"])) == (False, 1, 1)
    assert main([*command, "--output", str(tmp_path / "out")]) == 1
    assert "another tokenizer" in capsys.readouterr().err
