from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import PosttrainError
from posttrain.models import save
from posttrain.models.fingerprint import stored_weights, weights_fingerprint
from posttrain.models.load import LoadedModel, load_model
from posttrain.models.save import save_model
from tests.pico import FAMILIES

PicoPath = Callable[[str], Path]


@pytest.fixture
def llama(pico_path: PicoPath) -> LoadedModel:
    return load_model(str(pico_path("llama")), device="cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_comes_back(family: str, pico_path: PicoPath, tmp_path: Path) -> None:
    loaded = load_model(str(pico_path(family)), device="cpu")
    save_model(loaded.model, loaded.tokenizer, tmp_path / "deep/er/out", card="# A card\n")
    again = load_model(str(tmp_path / "deep/er/out"), device="cpu")
    assert weights_fingerprint(again.model) == weights_fingerprint(loaded.model)
    assert again.tokenizer.chat_template == loaded.tokenizer.chat_template
    assert (tmp_path / "deep/er/out/README.md").read_text() == "# A card\n"
    assert [p.name for p in (tmp_path / "deep/er").iterdir()] == ["out"]  # no temporary folder is left


def test_a_model_is_replaced_and_anything_else_is_not(llama: LoadedModel, tmp_path: Path) -> None:
    save_model(llama.model, llama.tokenizer, tmp_path / "out")
    (tmp_path / "out/stale.txt").touch()
    save_model(llama.model, llama.tokenizer, tmp_path / "out")
    assert not (tmp_path / "out/stale.txt").exists()
    (tmp_path / "home").mkdir()
    save_model(llama.model, llama.tokenizer, tmp_path / "home")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    with pytest.raises(PosttrainError, match="holds other things than a model"):
        save_model(llama.model, llama.tokenizer, tmp_path / "mine")
    with pytest.raises(PosttrainError, match="is a file"):
        save_model(llama.model, llama.tokenizer, tmp_path / "mine/thesis.tex")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("failing", ["write_notes", "rename"])
def test_a_failure_leaves_the_old_model(
    failing: str, llama: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(llama.model, llama.tokenizer, tmp_path / "out")
    before = stored_weights(tmp_path / "out")
    next(iter(llama.model.parameters())).data.zero_()

    def broken(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    if failing == "write_notes":
        monkeypatch.setattr(save, "write_notes", broken)
    else:
        rename = Path.rename

        def once(self: Path, target: Path) -> Path:
            if self.name == ".tmp-out":
                raise OSError("disk full")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", once)
    with pytest.raises(OSError, match="disk full"):
        save_model(llama.model, llama.tokenizer, tmp_path / "out")
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert stored_weights(tmp_path / "out") == before
