"""A setting given as an option, rows given as a configuration, columns on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.cli.main import main
from posttrain.cli.settings import setting_named
from posttrain.cli.train import configured


@pytest.mark.parametrize(
    ("option", "key"),
    [
        ("--learning-rate", "optimizer.learning_rate"),
        ("--learning_rate", "optimizer.learning_rate"),
        ("--lr", "optimizer.learning_rate"),
        ("--optimizer.learning_rate", "optimizer.learning_rate"),
        ("--epochs", "optimizer.epochs"),
        ("--max-steps", "optimizer.max_steps"),
        ("--batch-size", "batch.rows"),
        ("--seed", "seed"),
        ("--max-length", "max_length"),
        ("--rank", "tuner.rank"),
        ("--replay", "replay"),
        ("--nonsense", None),
    ],
)
def test_what_an_option_would_be(option: str, key: str | None) -> None:
    assert setting_named(option) == key


@pytest.mark.parametrize("words", [["--learning-rate", "1e-4"], ["--learning-rate=1e-4"]])
def test_train_points_to_set(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--model", "pocket:chat", *words]) == 2
    err = capsys.readouterr().err
    assert err == "--learning-rate: is a setting, which --set reaches; --set optimizer.learning_rate=1e-4\n"
    assert main(["train", "--epochs"]) == 2
    assert capsys.readouterr().err.endswith("--set optimizer.epochs=VALUE\n")
    assert main(["train", "--nonsense"]) == 2
    assert "No such option: --nonsense" in capsys.readouterr().err
    assert main(["chat", "--learning-rate", "1"]) == 2
    assert "No such option: --learning-rate" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cook.jsonl", "cook.csv", "cook.parquet", "cook.jsonl.gz", "cook.json", "做菜.txt"])
def test_rows_in_the_place_of_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text('[\n{"prompt": "a", "completion": "b"}]\n', encoding="utf-8")
    assert main(["train", name]) == 2
    stem = name.split(".")[0]
    assert capsys.readouterr().err == (
        f"{name}: that is data, not a configuration; posttrain train --data {name} --model MODEL --output runs/{stem}\n"
    )


def test_a_configuration_in_json_is_one(tmp_path: Path) -> None:
    file = tmp_path / "cook.json"
    file.write_text('{"model": "pocket:chat", "data": "rows.jsonl"}', encoding="utf-8")
    config, _ = configured(file, {}, None, [])
    assert config.model == "pocket:chat"


def test_columns_on_the_command_line(tmp_path: Path) -> None:
    columns = {"prompt": "問題", "completion": "the answer"}
    given = {"model": "pocket:chat", "data": "rows.csv"}
    config, _ = configured(None, given, tmp_path, [], columns)
    assert config.data is not None
    assert (config.data.path, config.data.columns) == ("rows.csv", columns)
    config, _ = configured(None, given, tmp_path, ["data.columns.prompt=問題", "validation.path=v.csv"])
    assert config.data is not None
    assert config.data.columns == {"prompt": "問題"}
