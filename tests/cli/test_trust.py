"""`--trust-remote-code` of the verbs that read a model's configuration or tokenizer, and nothing more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from posttrain.cli.main import main
from tests.own_code import own_code


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("verb", ["show", "check"])
def test_data_with_a_model_s_own_code(
    tmp_path: Path, rows: str, verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The option reaches everything that is read of the model; without it nothing is trusted."""
    trusted: list[object] = []
    for auto in (transformers.AutoTokenizer, transformers.AutoConfig):
        real = auto.from_pretrained

        def noting(*names: Any, real: Any = real, **options: Any) -> Any:
            trusted.append(options.get("trust_remote_code"))
            return real(*names, **options)

        monkeypatch.setattr(auto, "from_pretrained", noting)
    words = ["data", verb, rows, "--model", str(own_code(tmp_path)), "--json"]
    for more, expected in (([], False), (["--trust-remote-code"], True)):
        trusted.clear()
        assert main([*words, *more]) == 0
        assert trusted
        assert set(trusted) == {expected}
        capsys.readouterr()


def test_training_with_a_model_s_own_code(tmp_path: Path, rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--model", str(own_code(tmp_path)), "--data", rows, "--objective", "sft", "--tuner", "full"]
    words += ["--output", str(tmp_path / "run"), "--set", "optimizer.max_steps=1", "--dry-run", "--json"]
    assert main(words) == 1
    assert "trust_remote_code" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert main([*words, "--trust-remote-code"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 1
    assert (tmp_path / "ran").exists()
