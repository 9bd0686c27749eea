"""Models put together of layers of others, by recipes of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from posttrain.errors import ConfigError
from posttrain.merging.plan import Misfit
from posttrain.merging.recipe import Recipe, planned
from posttrain.merging.write import write_merge
from tests.merging.test_vocabulary import EMBED, HEAD, PLAIN, WIDTH, folder

NORM = "model.norm.weight"


def deep(path: Path, layers: int, seed: int, width: int = WIDTH, special: tuple[str, ...] = ()) -> Path:
    """Write a model of some layers."""
    made = folder(path, PLAIN, special=special, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    held = {name: one for name, one in load_file(made / "model.safetensors").items() if "layers" not in name}
    held |= {f"model.layers.{n}.mlp.weight": torch.randn(3, width, generator=draw) for n in range(layers)}
    held[NORM] = torch.randn(WIDTH, generator=draw)
    save_file(held, made / "model.safetensors")
    config = f'{{"vocab_size": {len(PLAIN) + len(special)}, "num_hidden_layers": {layers}, "kinds_of_layer": '
    kinds = [f"{seed}{number}" for number in range(layers)]
    (made / "config.json").write_text(config + str(kinds).replace("'", '"') + "}")
    return made


def recipe(models: dict[str, Path], slices: list[dict[str, Any]], method: str = "passthrough", **more: Any) -> Recipe:
    given = {name: str(path) for name, path in models.items()}
    return Recipe.model_validate({"models": given, "slices": slices, "method": {"kind": method}, **more})


def test_layers_are_numbered_anew(tmp_path: Path) -> None:
    """The vocabulary is matched, too: the head of the last model gets the first one's order of tokens."""
    a, b = deep(tmp_path / "a", 3, 1), deep(tmp_path / "b", 4, 2, special=("<s>",))
    slices: list[dict[str, Any]] = [{"models": {"a": (0, 2)}}]
    slices += [{"models": {"b": (2, 4)}, "scale": [2.0, 3.0]}, {"models": {"a": (2, 3)}}]
    plan = planned(recipe({"a": a, "b": b}, [*slices, {"models": {"b": (0, 1)}}]))
    assert plan.what == "passthrough: 6 layers of a, b"
    assert "b added 1 token (<s>): left out (tokenizer: union keeps them)" in plan.notes
    assert plan.config == {"num_hidden_layers": 6, "kinds_of_layer": ["10", "11", "22", "23", "12", "20"]}
    write_merge(plan, tmp_path / "out", recipe={}, say=lambda text: None)
    out, one, two = (load_file(path / "model.safetensors") for path in (tmp_path / "out", a, b))
    layer = "model.layers.{}.mlp.weight"
    expected = [one[layer.format(0)], one[layer.format(1)], 2 * two[layer.format(2)], 3 * two[layer.format(3)]]
    expected += [one[layer.format(2)], two[layer.format(0)]]
    assert all(torch.equal(out[layer.format(n)], each) for n, each in enumerate(expected))
    assert torch.equal(out[EMBED], one[EMBED])
    assert torch.equal(out[NORM], two[NORM])
    assert torch.equal(out[HEAD], two[HEAD][:36])


def test_other_layers_are_another_merge(tmp_path: Path) -> None:
    """A merge that was stopped is not gone on with for other layers."""
    models = {"a": deep(tmp_path / "a", 4, 1), "b": deep(tmp_path / "b", 4, 2)}
    some = [planned(recipe(models, [{"models": {"a": at, "b": at}}], "linear")) for at in ((0, 2), (1, 3))]
    put = [planned(recipe(models, [{"models": {"a": at}}, {"models": {"b": at}}])) for at in ((0, 2), (1, 3))]
    assert len({plan.merge.digest for plan in (*some, *put)}) == 4
    whole = planned(recipe(models, [{"models": {"a": (0, 4), "b": (0, 4)}}], "linear"))
    assert not whole.config


def test_layers_of_another_shape_are_refused(tmp_path: Path) -> None:
    models = {"a": deep(tmp_path / "a", 2, 1), "b": deep(tmp_path / "b", 2, 2, width=5)}
    with pytest.raises(Misfit, match="b: layer 1 has other tensors or shapes than those of a"):
        planned(recipe(models, [{"models": {"a": (0, 2)}}, {"models": {"b": (1, 2)}}]))
    with pytest.raises(ConfigError, match="slices: the layers 1 to 3 of b are not there; it has 2: from 0 to 2"):
        planned(recipe(models, [{"models": {"a": (0, 2)}}, {"models": {"b": (1, 3)}}]))


@pytest.mark.parametrize(
    ("slices", "method", "said"),
    [
        ([{"models": {"c": (0, 1)}}], "passthrough", "unknown model 'c'; known: a, b"),
        ([{"models": {"a": (0, 1), "b": (0, 1)}}], "passthrough", "passthrough takes one model for each slice"),
        ([{"models": {"a": (0, 1)}}], "linear", "linear takes one slice, of all models"),
        ([{"models": {"a": (0, 1), "b": (0, 2)}}], "linear", "all models need the same number of layers"),
    ],
)
def test_slices_that_make_no_model(slices: list[dict[str, Any]], method: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        recipe({"a": Path("a"), "b": Path("b")}, slices, method)
