"""Second moments of keys against a plain reading of every text, and their cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.editing import moments
from posttrain.editing.moments import cached_moments, measure_moments, outer
from posttrain.editing.sites import Sites, find_sites
from posttrain.errors import DataError, PosttrainError, Problem
from posttrain.models.load import LoadedModel
from posttrain.retention.selection import NoAnswers
from tests.editing.lively import drawn, lively, near, texts
from tests.pico import FAMILIES


def plain_keys(sites: Sites, layer: int, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """The inputs of a layer's matrix, for each text by itself, all tokens but the first."""
    found: list[Tensor] = []

    def read(_: Any, args: Any) -> None:
        found.append(args[0].reshape(-1, args[0].shape[-1])[1:].detach().double())

    handle = sites.module(sites.at(layer)).register_forward_pre_hook(read)
    with torch.no_grad():
        for row in rows:
            sites.model(input_ids=torch.tensor([row]))
    handle.remove()
    return found


@pytest.mark.parametrize("width", [5, moments.BLOCK, moments.BLOCK + 1, 2 * moments.BLOCK + 100])
def test_sums_of_outer_products_are_added_in_blocks(width: int) -> None:
    """Two batches, the one of a single key; above the diagonal every number is there."""
    total = torch.zeros(width, width, dtype=torch.float64)
    keys = [drawn(7, width), drawn(1, width, seed=2)]
    for batch in keys:
        outer(batch, total)
    whole = torch.cat(keys)
    assert torch.allclose(total.triu(), (whole.T @ whole).triu(), rtol=1e-12, atol=1e-12)
    if width > moments.BLOCK:
        assert float(total[-1, 0]) == 0.0  # a block below the diagonal costs nothing


@pytest.mark.parametrize("family", FAMILIES)
def test_moments_of_all_layers_come_from_one_pass(family: str) -> None:
    sites = find_sites(lively(family).model)
    rows = [row[: 3 + i] for i, row in enumerate(texts(9, 30))]
    places = [sites.at(0), sites.at(1)]
    passes: list[int] = []
    handle = sites.model.register_forward_pre_hook(lambda *_: passes.append(1))
    made = measure_moments(sites, [*rows, [5], []], places)
    assert len(passes) == 1
    many = measure_moments(sites, rows, places, batch_tokens=12)  # a row or two at a time
    handle.remove()
    for layer in (0, 1):
        keys = torch.cat(plain_keys(sites, layer, rows))
        expected = keys.T @ keys / len(keys)
        assert made[layer].matrix.dtype == torch.float32
        assert torch.equal(made[layer].matrix, made[layer].matrix.T)
        assert near(made[layer].matrix.double(), expected, 1e-5)
        assert near(many[layer].matrix.double(), expected, 1e-5)
        assert made[layer].tokens == many[layer].tokens == len(keys) == sum(len(row) - 1 for row in rows)
        assert made[layer].left_out == 0


def test_wide_keys_are_summed_in_blocks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    sites = find_sites(lively().model)
    whole = measure_moments(sites, texts(3), [sites.at(0)])[0].matrix
    monkeypatch.setattr(moments, "BLOCK", 24)
    assert near(measure_moments(sites, texts(3), [sites.at(0)])[0].matrix, whole, 1e-6)


def test_attention_sinks_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token whose keys are longer than so many times the median's says nothing of facts."""
    sites = find_sites(lively().model)
    rows = texts(4)
    monkeypatch.setattr(moments, "OUTLIER", 1.3)
    (made,) = measure_moments(sites, rows, [sites.at(1)]).values()
    keys = torch.cat(plain_keys(sites, 1, rows))
    lengths = keys.norm(dim=1)
    usual = keys[lengths <= 1.3 * lengths.median()]
    assert 0 < len(usual) < len(keys)
    assert (made.tokens, made.left_out) == (len(usual), len(keys) - len(usual))
    assert near(made.matrix.double(), usual.T @ usual / len(usual), 1e-5)


def test_moments_in_float64_stay_so() -> None:
    sites = find_sites(lively(dtype=torch.float64).model)
    (made,) = measure_moments(sites, texts(2), [sites.at(0)]).values()
    keys = torch.cat(plain_keys(sites, 0, texts(2)))
    assert near(made.matrix, keys.T @ keys / len(keys), 1e-12)


def test_texts_without_a_second_token_are_an_error() -> None:
    sites = find_sites(lively().model)
    for rows in ([], [[5], [6]]):
        with pytest.raises(DataError, match="moments: the texts have no tokens to measure keys on; give longer texts"):
            measure_moments(sites, rows, [sites.at(0)])


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("all_tokens", [True, False], ids=["every key", "one token's keys"])
def test_keys_that_are_no_numbers_are_an_error(number: float, all_tokens: bool) -> None:
    """NaN is not longer than the median, and infinity no attention sink: neither is left out in silence."""
    sites = find_sites(lively().model)
    places = [sites.at(0), sites.at(1)]

    def broken(_: Any, args: Any) -> Any:
        keys = args[0].clone()
        keys[(slice(None), slice(1, None)) if all_tokens else (0, 3)] = number
        return (keys, *args[1:])

    handle = sites.module(sites.at(1)).register_forward_pre_hook(broken)
    with pytest.raises(PosttrainError, match="layer 1: the second moments of keys are not finite; load the model in"):
        measure_moments(sites, texts(3), places)
    handle.remove()


class Cached:
    """A model with a cache, and how often its texts were asked for."""

    def __init__(self, folder: Path) -> None:
        self.loaded: LoadedModel = lively()
        self.folder = folder
        self.asked = 0
        self.lines: list[str] = []

    def texts(self) -> list[list[int]]:
        self.asked += 1
        return texts(4)

    def moments(self, *layers: int, key: str = "a model") -> dict[int, moments.Moment]:
        sites = find_sites(self.loaded.model)
        places = [sites.at(layer) for layer in layers]
        return cached_moments(sites, places, self.texts, key=key, folder=self.folder, say=self.lines.append)

    @property
    def files(self) -> list[Path]:
        return sorted((self.folder / "moments").iterdir())


def test_moments_are_measured_once_and_kept(tmp_path: Path) -> None:
    cached = Cached(tmp_path)
    first = cached.moments(0)
    assert (cached.asked, len(cached.files)) == (1, 1)
    assert cached.lines[0].startswith("second moments (layers: 1) from 156 tokens of 4 texts: ")
    again = cached.moments(0)
    assert (cached.asked, len(cached.lines)) == (1, 1)
    assert torch.equal(first[0].matrix, again[0].matrix)
    assert first[0][1:] == again[0][1:] == (156, 0)
    both = cached.moments(0, 1)  # only what is missing is measured
    assert (cached.asked, len(cached.files)) == (2, 2)
    assert torch.equal(both[0].matrix, first[0].matrix)
    cached.moments(0, key="another model")
    assert (cached.asked, len(cached.files)) == (3, 3)


def test_a_model_without_answers_has_a_mend_that_editing_has(tmp_path: Path) -> None:
    def mute() -> Any:
        raise NoAnswers(Problem("base", "no answer is of use", "raise max_new_tokens above 128"))

    sites = find_sites(lively().model)
    with pytest.raises(DataError) as caught:
        cached_moments(sites, [sites.at(0)], mute, key="x", folder=tmp_path, say=print)
    assert str(caught.value) == (
        "base: no answer is of use\n"
        "editor: this editor measures second moments on the model's own answers; "
        "choose one that needs none: locft, ft_l or ultraedit"
    )


def test_a_damaged_file_of_the_cache_is_measured_again(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    cached = Cached(tmp_path)
    first = cached.moments(0)[0]
    (path,) = cached.files
    whole = path.read_bytes()
    nan = {"matrix": first.matrix * float("nan"), "counts": torch.tensor([156, 0])}
    damages: list[Callable[[], Any]] = [
        lambda: path.write_bytes(whole[: len(whole) // 2]),
        lambda: path.write_bytes(b""),
        lambda: save_file({"counts": torch.tensor([156, 0])}, path),
        lambda: save_file({"matrix": first.matrix, "counts": torch.tensor([156])}, path),
        lambda: save_file({"matrix": first.matrix[:5, :5].contiguous(), "counts": torch.tensor([156, 0])}, path),
        lambda: save_file(nan, path),
    ]
    for number, damage in enumerate(damages):
        damage()
        assert torch.equal(cached.moments(0)[0].matrix, first.matrix)
        assert cached.asked == number + 2
    assert path.read_bytes() == whole
    assert cached.files == [path]
