"""Building from a seed: the same recipe gives the same weights, bit for bit, also after an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.models.fingerprint import weights_fingerprint
from posttrain.models.load import load_model
from tools.pocket.__main__ import main
from tools.pocket.build import build
from tools.pocket.compare import distance
from tools.pocket.recipe import Recipe

TINY = Recipe(
    vocabulary=400,
    hidden=16,
    layers=2,
    intermediate=32,
    heads=2,
    key_value_heads=1,
    tokenizer_texts=50,
    base_tokens=4096,
    review_tokens=2048,
    chat_tokens=4096,
    last_tokens=2048,
    batch_tokens=1024,
)


def small(folder: Path) -> dict[str, Any]:
    """Build the tiny recipe from small draws; what it cost."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tools.pocket.build.DRAWN", 64)
        return build(folder, TINY, say=lambda line: None)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("built")
    return folder, small(folder)


@pytest.mark.slow
def test_the_same_seed_builds_the_same_models(built: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, cost = built
    small(tmp_path)
    for kind in ("base", "chat"):
        one, two = (weights_fingerprint(load_model(str(path / kind)).model) for path in (folder, tmp_path))
        assert one == two
    assert all(cost[stage]["steps"] >= 2 for stage in ("base-1", "base-2", "chat-1", "chat-2"))
    again = small(folder)  # finished: reads the result back
    assert again["chat-2"]["steps"] == cost["chat-2"]["steps"]
    base, chat = (load_model(str(folder / kind)).model for kind in ("base", "chat"))
    assert weights_fingerprint(base) != weights_fingerprint(chat)


def test_another_shape_than_the_shipped_one_is_said(built: tuple[Path, dict[str, Any]]) -> None:
    assert "shape" in distance(built[0])["chat"]["summary"]


def test_recipe_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "x", "--dry-run", "--set", "layers=8"]) == 0
    assert '"layers": 8' in capsys.readouterr().out
    assert main(["build", "x", "--dry-run", "--set", "layrs=8"]) == 2
    assert "did you mean 'layers'" in capsys.readouterr().err
