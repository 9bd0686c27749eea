"""The name of the real model; other names are tested where models are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.errors import MissingError
from posttrain.models.names import near_model, resolve, told


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POSTTRAIN_REAL", raising=False)
    return tmp_path


def folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


def test_not_made_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingError, match=r"smollm2: the real model is not in \.real/smollm2; .*make real-model"):
        resolve("smollm2")
    monkeypatch.setenv("POSTTRAIN_REAL", "其他")
    with pytest.raises(MissingError, match=r"not in 其他 \(POSTTRAIN_REAL\)"):
        resolve("smollm2")


def test_where_it_is_looked_for(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(elsewhere / ".real" / "smollm2")
    assert resolve("smollm2") == ".real/smollm2"
    monkeypatch.setenv("POSTTRAIN_REAL", str(folder(elsewhere / "其他")))
    assert resolve("smollm2") == str(elsewhere / "其他")
    folder(elsewhere / "smollm2")
    assert resolve("smollm2") == "smollm2"  # a folder of that name goes first


def test_a_gguf_file_that_is_not_there(elsewhere: Path) -> None:
    (elsewhere / "qwen.gguf").write_bytes(b"")
    with pytest.raises(MissingError, match=r"no such GGUF file; did you mean 'qwen\.gguf'\?"):
        resolve("qwem.gguf")


def run_in(path: Path, *, model: bool = True, result: bool = True, steps: tuple[int, ...] = ()) -> Path:
    """The folder of a training, as far as names look at it."""
    path.mkdir(parents=True)
    (path / "posttrain_run.json").write_text("{}")
    if model:
        folder(path / "model")
    if result:
        (path / "result.json").write_text("{}")
    for step in steps:
        folder(path / "checkpoints" / f"step-{step}")
    return path


def test_the_folder_of_a_training_is_its_model() -> None:
    run_in(Path("runs/cook"), steps=(2,))
    assert resolve("runs/cook") == "runs/cook/model"
    assert told("runs/cook") == "runs/cook/model"
    assert told("runs/cook/model") == "runs/cook/model"
    assert told("pocket:chat") == "pocket:chat"
    assert resolve(str(Path("runs/cook").absolute())) == str(Path("runs/cook/model").absolute())
    folder(Path("plain"))  # a model that has a folder `model` and notes beside it stays a model
    run_in(Path("plain/more"))
    assert resolve("plain") == "plain"


def test_the_folder_of_a_training_that_was_begun_anew() -> None:
    run_in(Path("runs/cook"), result=False, steps=(1,))
    assert resolve("runs/cook") == "runs/cook/model"
    assert told("runs/cook") == "runs/cook/model (of an earlier run, the one going on there has saved none yet)"


def test_a_training_without_a_model_names_its_newest_checkpoint() -> None:
    run_in(Path("runs/cook"), model=False, result=False, steps=(2, 10, 9))
    with pytest.raises(MissingError) as caught:
        resolve("runs/cook")
    assert str(caught.value) == (
        "runs/cook: this training has not finished: there is no model in it yet; "
        "run the same command again to finish it, or name a checkpoint: runs/cook/checkpoints/step-10"
    )
    run_in(Path("runs/new"), model=False, result=False)
    with pytest.raises(MissingError, match=r"no model in it yet; run the same command again to finish it$"):
        resolve("runs/new")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("runs/cok2", "runs/cook2"),
        ("runs/cok2/model", "runs/cook2/model"),
        ("rnus/cook2/model", "runs/cook2/model"),
        ("./runs/cok2", "runs/cook2"),
        ("runs/cook2/modl", "runs/cook2/model"),
        ("runs/cook2/checkpoints/step-4", "runs/cook2/checkpoints/step-3"),
        ("cok", "cook"),
        ("nothing/like/it", None),
        ("Qwen/Qwen3-8B", None),
    ],
)
def test_what_a_misspelt_path_is_like(wrong: str, right: str | None) -> None:
    run_in(Path("runs/cook2"), steps=(3,))
    Path("runs/cok22").mkdir()  # no model: further from what is meant than any model
    folder(Path("cook"))
    assert near_model(wrong) == right
    absolute = str(Path(right).absolute()) if right else None
    assert near_model(str(Path(wrong).absolute())) == absolute
    if wrong.count("/") > 1 and right:
        with pytest.raises(MissingError, match=f"no such model folder; did you mean '{right}'"):
            resolve(wrong)
