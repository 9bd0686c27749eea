"""ROME's closed form, and what the editor writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.editing.editors.rome import RomeConfig, rank_one
from posttrain.editing.edits import Row, RowMaker
from posttrain.editing.reading import look
from posttrain.editing.session import EditSession
from posttrain.editing.solve import shrunk
from tests.editing.lively import EDIT, OTHERS, bits, drawn, editor, lively, moment, near, said, session

WIDTH, OUT = 24, 10


def rome_of(moment: Tensor, keys: Tensor, deltas: Tensor) -> Tensor:
    """The whole change, (D, d)."""
    change = rank_one(torch.linalg.solve(moment, keys), keys, deltas)
    return change.left @ change.right


def test_one_edit_writes_its_value_exactly() -> None:
    weight, key, value = drawn(OUT, WIDTH), drawn(WIDTH, 1, seed=2), drawn(OUT, 1, seed=3)
    change = rome_of(moment(WIDTH), key, value - weight @ key)
    assert near((weight + change) @ key, value, 1e-12)
    assert int(torch.linalg.matrix_rank(change)) == 1


def test_no_other_change_moves_other_outputs_less() -> None:
    """KKT: dW C is a multiple of k^T; so tr(dW C dW^T) is the least among all dW with dW k = delta."""
    c, key, delta = moment(WIDTH), drawn(WIDTH, 1, seed=2), drawn(OUT, 1, seed=3)
    change = rome_of(c, key, delta)
    slope = change @ c
    along = slope @ key / key.square().sum() @ key.T
    assert near(slope, along, 1e-7)
    least = float((change @ c @ change.T).trace())
    for seed in range(20):
        other = drawn(OUT, WIDTH, seed=100 + seed) * float(change.norm()) / 10
        feasible = change + other - other @ key / key.square().sum() @ key.T
        assert near(feasible @ key, delta, 1e-9)
        assert float((feasible @ c @ feasible.T).trace()) > least


def test_the_scale_of_the_moments_does_not_matter() -> None:
    c, keys, deltas = moment(WIDTH), drawn(WIDTH, 3, seed=2), drawn(OUT, 3, seed=3)
    for scale in (1e-6, 1e3):
        assert near(rome_of(scale * c, keys, deltas), rome_of(c, keys, deltas), 1e-7)


def test_edits_together_are_one_edit_after_another() -> None:
    """Each takes into account what those before it have moved: (W_i - W_(i-1)) k_i = v_i - W_(i-1) k_i."""
    c, keys, deltas, weight = moment(WIDTH), drawn(WIDTH, 5, seed=2), drawn(OUT, 5, seed=3), drawn(OUT, WIDTH)
    values = weight @ keys + deltas
    change = rank_one(torch.linalg.solve(c, keys), keys, deltas)
    now = weight.clone()
    for i in range(5):
        key = keys[:, i : i + 1]
        one = rome_of(c, key, values[:, i : i + 1] - now @ key)
        assert near(change.left[:, i : i + 1] @ change.right[i : i + 1], one, 1e-7)
        now = now + one
        assert near(now @ key, values[:, i : i + 1], 1e-7)
    assert near(weight + change.left @ change.right, now, 1e-7)


def test_the_layer_is_at_a_sixth_of_the_depth() -> None:
    assert [RomeConfig().layers_of(count) for count in (2, 6, 28, 30, 32, 48)] == [(0,), (1,), (4,), (5,), (5,), (8,)]
    assert RomeConfig(layers=(3, 4)).layers_of(32) == (3, 4)
    assert (RomeConfig().needs_moments, RomeConfig(moments=False).needs_moments) == (True, False)
    assert (RomeConfig().most_steps, RomeConfig().texts_before) == (40, 5)


# ---- the editor ------------------------------------------------------------------------------------------------------


def keys_of(of: EditSession, rows: list[Row], before: dict[str, Tensor]) -> Tensor:
    """The mean key of an edit's rows in the untouched model, (d, 1)."""
    site = of.sites.at(0)
    now = of.sites.weight(site).detach().clone()
    of.sites.weight(site).data.copy_(before[site.weight])
    keys = look(of.sites, rows, [site]).keys[0].double()
    of.sites.weight(site).data.copy_(now)
    shares = torch.tensor([[row.weight] for row in rows], dtype=torch.float64)
    return (keys * shares).sum(0)[:, None]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_editor_writes_the_closed_form(family: str, tmp_path: Path) -> None:
    """What was added to the weights is delta (C^-1 k)^T / (k^T C^-1 k), with the shrunk C and mean keys."""
    loaded = lively(family, dtype=torch.float64)
    before = bits(loaded.model)
    of = session(loaded, tmp_path)
    (made,) = of.apply([EDIT], editor("rome", contexts=2))
    site = of.sites.at(0)
    rows = RowMaker(loaded.tokenizer, forms=("raw",)).rows(EDIT, of.before("en", 2))
    key = keys_of(of, rows, before)
    stored = of.moments([site])[0]
    direction = torch.linalg.solve(shrunk(stored.matrix, stored.tokens)[0], key)
    change = site.oriented(of.sites.weight(site).detach() - before[site.weight])
    delta = change @ key  # what the output gains
    expected = delta @ direction.T / (direction * key).sum()
    assert near(change, expected, 1e-6)
    (figures,) = made.figures
    assert figures.realised == pytest.approx(1.0, abs=1e-6)
    cosine = float((key * direction).sum() / key.norm() / direction.norm())
    assert figures.alignment == pytest.approx(cosine, rel=1e-6)
    share = float(change.norm() / site.oriented(before[site.weight]).norm())
    assert figures.share == pytest.approx(share, rel=1e-6)
    assert figures.condition is None
    assert said(of) == "title"


def test_with_one_row_the_model_has_exactly_the_loss_that_the_search_has_found(tmp_path: Path) -> None:
    """In the last layer, where what the edit moves at other tokens does not reach the answer."""
    of = session(lively(), tmp_path)
    (made,) = of.apply([EDIT], editor("rome", contexts=0, layers=(1,)))
    (row,) = RowMaker(of.loaded.tokenizer, forms=("raw",)).rows(EDIT)
    model: Any = of.loaded.model
    with torch.no_grad():
        logps = model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
    nats = [-float(logps[at, target]) for at, target in zip(row.asked, row.targets, strict=True)]
    assert made.figures[0].nats == pytest.approx(sum(nats) / len(nats), abs=1e-4)


def test_without_moments_the_key_itself_is_the_direction(tmp_path: Path) -> None:
    def never() -> Any:
        raise AssertionError("no text is needed")

    of = session(lively(), tmp_path, measured=never)
    (made,) = of.apply([EDIT], editor("rome", moments=False))
    assert made.figures[0].alignment == pytest.approx(1.0)
    assert said(of) == "title"
    assert of.applied[0].past[0].shape == (64, 1)


def test_published_keys_divide_by_the_bare_prompts(tmp_path: Path) -> None:
    """u comes from the mean key, and what is divided by from the bare one, which differ."""
    loaded = lively(dtype=torch.float64)
    before = bits(loaded.model)
    of = session(loaded, tmp_path)
    (made,) = of.apply([EDIT], editor("rome", contexts=2, legacy_keys=True), force=True)
    rows = RowMaker(loaded.tokenizer, forms=("raw",)).rows(EDIT, of.before("en", 2))
    bare, mean = keys_of(of, [rows[0]._replace(weight=1.0)], before), keys_of(of, rows, before)
    stored = of.moments([of.sites.at(0)])[0]
    direction = torch.linalg.solve(shrunk(stored.matrix, stored.tokens)[0], mean)
    change = of.sites.weight(of.sites.at(0)).detach() - before["model.layers.0.mlp.down_proj.weight"]
    assert near(change, (change @ bare) @ direction.T / (direction * bare).sum(), 1e-6)
    ratio = float((direction * mean).sum() / (direction * bare).sum())
    assert abs(ratio - 1) > 0.01
    assert made.figures[0].realised == pytest.approx(ratio, rel=1e-5)  # of the mean key, which is what is looked up


def test_several_edits_of_one_batch(tmp_path: Path) -> None:
    of = session(lively(), tmp_path)
    (made,) = of.apply([EDIT, *OTHERS], editor("rome"))
    assert [delta.rank for delta in made.deltas] == [4]
    assert made.deltas[0].owners == (0, 1, 2, 3)
    assert made.figures[-1].realised == pytest.approx(1.0, abs=1e-5)  # the last one; the others were moved by it
    assert said(of, OTHERS[-1]) == OTHERS[-1].answer
