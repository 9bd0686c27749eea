"""`posttrain train` as a person types it: with a file, with options, with mistakes."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from posttrain import registry
from posttrain.cli.main import main
from tests.processes import Started
from tests.training.tiny import PicoPath


@pytest.fixture
def study(tmp_path: Path, pico_path: PicoPath, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A YAML file with rows beside it; the shell stands elsewhere."""
    home = tmp_path / "study"
    home.mkdir()
    talks = [[{"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": str(i)}] for i in range(6)]
    text = "".join(json.dumps({"messages": talk}) + "\n" for talk in talks)
    (home / "rows.jsonl").write_text(text, encoding="utf-8")
    (home / "sft.yaml").write_text(
        f"model: {pico_path('llama')}\ndata: rows.jsonl\ntuner: lora\noptimizer:\n  max_steps: 3\n", encoding="utf-8"
    )
    (tmp_path / "shell").mkdir()
    monkeypatch.chdir(tmp_path / "shell")
    return home


def test_a_file(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(study / "sft.yaml"), "--json", "--set", "optimizer.max_steps=2"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["output"] == "runs/sft"
    assert result["steps"] == 2
    assert 0 < result["trainable"] < result["parameters"]
    assert Path("runs/sft/model/adapter_config.json").is_file()
    assert "6 rows read" in captured.err
    assert "parameters move" in captured.err
    assert "step 2/2" in captured.err
    # the same again: nothing to do; then from the start
    assert main(["train", str(study / "sft.yaml"), "--set", "optimizer.max_steps=2"]) == 0
    captured = capsys.readouterr()
    assert "is finished" in captured.err
    assert captured.out.strip() == "runs/sft/model"
    assert main(["train", str(study / "sft.yaml")]) == 2
    assert "optimizer.max_steps: 2 -> 3" in capsys.readouterr().err
    assert main(["train", str(study / "sft.yaml"), "--restart", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_options_alone(study: Path, pico_path: PicoPath, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--model", str(pico_path("llama")), "--data", str(study / "rows.jsonl"), "--objective", "sft"]
    words += ["--tuner", "lora", "--set", "tuner.rank=2", "--set", "optimizer.learning_rate=1e-3"]
    assert main(words) == 2
    assert "--output" in capsys.readouterr().err
    assert main([*words, "--output", "here", "--set", "optimizer.max_steps=1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 1
    adapter = json.loads(Path("here/model/adapter_config.json").read_text(encoding="utf-8"))
    assert adapter["r"] == 2


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_tables_of_rows_and_what_is_wrong_with_one_of_them(
    suffix: str, study: Path, pico_path: PicoPath, capsys: pytest.CaptureFixture[str]
) -> None:
    def written(name: str, answers: list[str]) -> str:
        rows = [{"prompt": f'Say "{i}", please', "completion": answer} for i, answer in enumerate(answers)]
        path = study / f"{name}{suffix}"
        if suffix == ".parquet":
            parquet.write_table(pa.Table.from_pylist(rows), path)
        else:
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]), delimiter="," if suffix == ".csv" else "\t")
                writer.writeheader()
                writer.writerows(rows)
        return str(path)

    words = ["train", "--model", str(pico_path("llama")), "--tuner", "lora", "--set", "optimizer.max_steps=1"]
    assert main([*words, "--data", written("rows", ["a", "b", "c, d"]), "--output", "whole", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["steps"] == 1
    assert "3 rows read" in captured.err
    assert main([*words, "--data", written("hole", ["a", "", "c"]), "--output", "hole"]) == 1
    place = "hole.parquet[2]" if suffix == ".parquet" else f"hole{suffix}:3"
    assert f"{study / place}: a row without an answer" in capsys.readouterr().err


def test_dry_run_writes_nothing(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(study / "sft.yaml"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    for word in ("rows", "steps", "tokens", "parameters", "disk", "runs/sft"):
        assert word in out
    assert main(["train", str(study / "sft.yaml"), "--dry-run", "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert (seen["rows"], seen["steps"]) == (6, 3)
    assert re.search(r"^time        about .+ to .+ on this machine: a guess by arithmetic", out, flags=re.M)
    # of 3 steps at the arithmetic's most: the step's own 0.02 s, and a machine of a GFLOP/s or more
    assert 0.06 <= seen["wall_s"] <= 0.06 + 6 * seen["parameters"] * seen["tokens"] / 1e9
    assert list(Path().iterdir()) == []


def test_mistakes(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def message(*words: str, code: int) -> str:
        assert main(["train", *words]) == code
        return capsys.readouterr().err

    config = study / "sft.yaml"
    right = config.read_text(encoding="utf-8")
    config.write_text(right.replace("max_steps", "max_step"), encoding="utf-8")
    assert f"{config}:5: unknown key 'max_step'; did you mean 'max_steps'?" in message(str(config), code=2)
    config.write_text(right.replace("rows.jsonl", "row.jsonl"), encoding="utf-8")
    assert "did you mean" in message(str(config), code=3)
    config.write_text(right, encoding="utf-8")
    assert "did you mean 'lora'" in message(str(config), "--tuner", "lorra", code=2)
    assert "no such" in message(str(config), "--model", "/nowhere/model", code=3)
    assert "no data" in message("--model", "pocket:chat", code=2)
    assert "no model" in message("--data", "rows.jsonl", code=2)
    rows = study / "rows.jsonl"
    with rows.open("a", encoding="utf-8") as file:
        file.write('{"messages": [{"role": "user"')
    assert f"{rows}:7" in message(str(config), code=1)
    assert main(["train", str(config), "--on-bad-row", "skip", "--json"]) == 0
    captured = capsys.readouterr()
    assert "1 bad ones skipped" in captured.err
    assert f"{rows}:7" in captured.err


def test_ctrl_c_saves(study: Path) -> None:
    words = ["train", str(study / "sft.yaml"), "--set", "optimizer.max_steps=4000", "--set", "tuner=full"]
    process = Started(main, words, folder=study)
    metrics = Path("runs/sft/metrics.jsonl")
    process.wait_until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > 3)
    process.send(signal.SIGINT)
    code, _, err = process.finish()
    assert code == 130, err
    assert "Traceback" not in err
    (saved,) = Path("runs/sft/checkpoints").iterdir()
    step = int(saved.name.removeprefix("step-"))
    assert f"stopped after step {step} of 4000; saved in runs/sft/checkpoints/step-{step}" in err
    assert (saved / "optimizer.pt").is_file()


def test_sigterm_before_the_first_step_is_not_silent(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the model is loaded, no step can be finished and saved: nothing is kept, and that is said."""
    former = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("posttrain.training.run.load_for_training", lambda *_, **__: os.kill(os.getpid(), 15))
    assert main(["train", str(study / "sft.yaml")]) == 143
    assert "stopped before the first step: nothing is kept" in capsys.readouterr().err
    assert not Path("runs/sft").exists()
    assert signal.getsignal(signal.SIGTERM) is former


def test_help_names_every_objective_and_tuner(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    words = set(re.findall(r"\w+", capsys.readouterr().out))
    assert {*registry.kinds("objective"), *registry.kinds("tuner")} <= words


def test_the_plan_says_which_format_was_recognised(
    study: Path, pico_path: PicoPath, capsys: pytest.CaptureFixture[str]
) -> None:
    (study / "alpaca.json").write_text('[{"instruction": "Sum.", "input": "1+1", "output": "2"}]', encoding="utf-8")
    words = [
        "train",
        "--model",
        str(pico_path("llama")),
        "--data",
        str(study / "alpaca.json"),
        "-o",
        str(study / "out"),
    ]
    assert main([*words, "--dry-run", "--set", "optimizer.max_steps=1"]) == 0
    shown = capsys.readouterr()
    assert f"{study}/alpaca.json: recognised as Alpaca" in shown.err
    assert "rows        1 with" in shown.out


@pytest.mark.parametrize("dry", [True, False])
def test_a_bad_prompt_of_replay_is_named(study: Path, capsys: pytest.CaptureFixture[str], dry: bool) -> None:
    prompts = study / "prompts.jsonl"
    prompts.write_text('{"prompt": "Hi"}\n{"prompt": "Who <|end|>?"}\n', encoding="utf-8")
    words = ["train", str(study / "sft.yaml"), "--set", "replay={kind: self, prompts: prompts.jsonl}"]
    assert main([*words, *(["--dry-run"] if dry else [])]) == 1
    assert f"{prompts}:2: turn 0 (user) holds the control token '<|end|>'" in capsys.readouterr().err
