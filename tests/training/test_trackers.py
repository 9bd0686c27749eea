"""Trackers: said to be missing before anything is loaded, logs beside the run, nothing sent unasked."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from posttrain.cli.main import main
from posttrain.errors import ConfigError, MissingError, TrainingError
from posttrain.studies.config import Study
from posttrain.training.config import TrainConfig
from posttrain.training.run import train
from posttrain.training.trackers import TRACKERS, check_trackers, chosen_trackers
from tests.studies.conftest import write_study
from tests.training.tiny import PicoPath, Remembers, load, rows

BOARD = """
import json, os
class SummaryWriter:
    def __init__(self, log_dir):
        self.path = os.path.join(log_dir, "events.jsonl")
        os.makedirs(log_dir, exist_ok=True)
    def _add(self, *row):
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\\n")
    def add_scalar(self, key, value, step):
        self._add(key, value, step)
    def add_text(self, *_):
        pass
    def flush(self):
        pass
    def close(self):
        self._add("closed", 0, 0)
"""
WANDB = """
import os
run, config, told = None, {}, []
class Run:
    summary = {}
    def _label(self, **_):
        pass
def init(project, name):
    global run
    run = Run()
    told.append(("init", name, os.environ["WANDB_MODE"], os.environ["WANDB_DIR"]))
def define_metric(*_, **__):
    pass
def log(values):
    told.append(("log", values))
def finish():
    global run
    run = None
    told.append(("finish",))
"""


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Packages that do as TensorBoard's writer and wandb do, with what they are told written down."""
    packages = tmp_path / "packages"
    for name, source in {"tensorboardX": BOARD, "wandb": WANDB}.items():
        (packages / name).mkdir(parents=True)
        (packages / name / "__init__.py").write_text(source, encoding="utf-8")
    lib = packages / "wandb" / "sdk" / "lib"
    lib.mkdir(parents=True)
    (lib / "config_util.py").write_text("class ConfigError(Exception):\n    pass\n", encoding="utf-8")
    (lib / "__init__.py").touch()
    (lib.parent / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(packages))
    for key in [key for key in os.environ if key.startswith(("WANDB", "TENSORBOARD"))]:
        monkeypatch.delenv(key)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in ("tensorboardX", "wandb")]:
        del sys.modules[name]


def settings(**fields: Any) -> TrainConfig:
    return TrainConfig.model_validate({"model": "pico", "optimizer": {"max_steps": 3}, **fields})


def board(folder: Path) -> list[Any]:
    lines = (folder / "tensorboard" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [tuple(json.loads(line)) for line in lines]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("tensorboard", ("tensorboard",)),
        (["tensorboard", "mlflow", "tensorboard"], ("tensorboard", "mlflow")),
        ("wandb, trackio", ("wandb", "trackio")),
        ("none", ()),
        (None, ()),
        ([], ()),
        ("all", ("all",)),
    ],
)
def test_a_word_a_list_or_none(given: Any, names: tuple[str, ...]) -> None:
    assert settings(report_to=given).report_to == names
    study = {"study": "s", "models": "m", "changes": "c.yaml", "methods": [{"kind": "prompt"}], "report_to": given}
    assert Study.model_validate(study).report_to == names


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("tensorbord", "unknown tracker 'tensorbord'; did you mean 'tensorboard'?"),
        (["MLFlow"], "unknown tracker 'MLFlow'; did you mean 'mlflow'?"),
        ("comet", "did you mean 'comet_ml'?"),
        ("azureml", "did you mean 'azure_ml'?"),
        ("qqqq", "known: tensorboard, wandb, mlflow, trackio"),
        (["tensorboard", "nope"], "unknown tracker 'nope'; known: tensorboard, wandb, mlflow, trackio"),
        ("al", "did you mean 'all'?"),
        ("nonee", "did you mean 'none'?"),
        (["none", "wandb"], "'none' stands alone"),
        (3, "valid tuple"),
    ],
)
def test_names_that_are_none(given: Any, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        settings(report_to=given)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "install"),
    [("tensorboard", "tensorboard"), ("wandb", "wandb"), ("comet_ml", "comet-ml"), ("azure_ml", "azureml-core")],
)
@pytest.mark.parametrize("dry", [True, False])
def test_a_missing_tracker_is_said_before_anything_is_loaded(
    name: str,
    install: str,
    dry: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("posttrain.training.run.load_for_training", lambda *_, **__: pytest.fail("a model was loaded"))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    words = ["train", "--model", "pocket:chat", "--data", str(tmp_path / "rows.jsonl"), "-o", str(tmp_path / "run")]
    assert main([*words, "--set", f"report_to={name}", *(["--dry-run"] if dry else [])]) == 3
    assert f"report_to: the tracker {name} is not installed; pip install {install}\n" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_all_missing_ones_at_once_and_all_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingError) as caught:
        check_trackers(["wandb", "mlflow"])
    assert [problem.mend for problem in caught.value.problems] == ["pip install wandb", "pip install mlflow"]
    monkeypatch.setattr("posttrain.training.trackers._installed", lambda name: False)
    with pytest.raises(MissingError, match="no tracker is installed; pip install tensorboard"):
        check_trackers(["all"])
    check_trackers([])


def test_a_folder_that_a_tracker_has_left_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb" / "run-1").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    with pytest.raises(MissingError, match="pip install wandb"):
        check_trackers(["wandb"])


def test_an_installed_tracker_that_does_not_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "__init__.py").write_text("import not_there_at_all\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    with pytest.raises(MissingError, match="wandb is installed and cannot be used: No module named 'not_there_at_all'"):
        check_trackers(["wandb"])


@pytest.mark.usefixtures("stand_ins")
def test_logs_lie_beside_the_run_and_hold_every_step_and_validation(
    pico_path: PicoPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    output, remembers = tmp_path / "run", Remembers()
    chosen = settings(report_to="tensorboard", evaluate_every_steps=3, keep_best=False)
    given = {"loaded": load(pico_path), "rows": rows(6), "validation_rows": rows(2, 1)}
    done = train(chosen, output=output, progress=remembers, **given)  # type: ignore[arg-type]
    told = board(output / "trackers")
    losses = [(value, step) for key, value, step in told if key == "train/loss"]
    assert losses == [(entry["loss_nats"], entry["step"]) for entry in done.history if "loss_nats" in entry]
    validations = [(value, step) for key, value, step in told if key == "eval/loss"]
    assert validations == [(done.history[-1]["validation_loss_nats"], 3)]
    assert told[-1][0] == "closed"
    assert any("tensorboard: what it writes is in" in line for line in remembers.said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packages", "run"]  # no `runs/` where the command runs
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ


@pytest.mark.usefixtures("stand_ins")
def test_where_the_user_says_it_goes_there(
    pico_path: PicoPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "mine"))
    remembers = Remembers()
    train(
        settings(report_to="tensorboard"),
        loaded=load(pico_path),
        rows=rows(4),
        output=tmp_path / "run",
        progress=remembers,
    )
    assert (tmp_path / "mine" / "events.jsonl").is_file()
    assert "tensorboard: as TENSORBOARD_LOGGING_DIR says" in remembers.said


@pytest.mark.usefixtures("stand_ins")
def test_wandb_stays_offline_and_each_training_has_its_own_run(pico_path: PicoPath, tmp_path: Path) -> None:
    import wandb  # type: ignore[import-not-found]

    for name in ("first", "second"):
        train(settings(report_to=["wandb"]), loaded=load(pico_path), rows=rows(4), output=tmp_path / name)
    begun = [row[1:] for row in wandb.told if row[0] == "init"]
    assert [(name.split()[-1], mode, place) for name, mode, place in begun] == [
        (name, "offline", str(tmp_path / name / "trackers")) for name in ("first", "second")
    ]
    assert [row[0] for row in wandb.told if row[0] != "log"] == ["init", "finish"] * 2
    assert sum("train/loss" in row[1] for row in wandb.told if row[0] == "log") == 2 * 3
    assert "WANDB_MODE" not in os.environ


@pytest.mark.usefixtures("stand_ins")
def test_a_training_that_fails_ends_the_trackers_run(
    pico_path: PicoPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setattr(
        "posttrain.training.trainer.PostTrainer._check_loss", lambda *_: (_ for _ in ()).throw(TrainingError("no"))
    )
    with pytest.raises(TrainingError):
        train(settings(report_to=["wandb"]), loaded=load(pico_path), rows=rows(4), output=tmp_path / "run")
    assert wandb.told[-1] == ("finish",)


@pytest.mark.usefixtures("stand_ins")
def test_all_are_those_that_are_installed() -> None:
    assert set(chosen_trackers(["all"])) >= {"tensorboard", "wandb"}
    assert set(chosen_trackers(["all"])) <= set(TRACKERS)


@pytest.mark.usefixtures("stand_ins")
def test_a_training_without_a_folder_has_no_place_for_them(pico_path: PicoPath) -> None:
    with pytest.raises(ConfigError, match="no folder for what trackers write"):
        train(settings(report_to="tensorboard"), loaded=load(pico_path), rows=rows(4))


def test_a_study_says_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_study(tmp_path, report_to="tensorboard"))
    for words in (["--dry-run"], []):
        assert main(["run", path, *words, "--output", str(Path(path).parent / "out")]) == 3
        assert "report_to: the tracker tensorboard is not installed; pip install tensorboard" in capsys.readouterr().err
    assert not (Path(path).parent / "out").exists()


@pytest.mark.usefixtures("stand_ins")
def test_each_cell_of_a_study_has_its_logs(tmp_path: Path) -> None:
    path = write_study(tmp_path, report_to="tensorboard", changes="changes/france.yaml")
    assert main(["run", str(path), "--only", "full", "--output", str(tmp_path / "out")]) == 0
    (cell,) = (tmp_path / "out" / "cells").iterdir()
    metrics = [json.loads(line) for line in (cell / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [(value, step) for key, value, step in board(cell / "trackers") if key == "train/loss"]
    assert losses == [(entry["loss_nats"], entry["step"]) for entry in metrics]
    assert len(losses) == 6
