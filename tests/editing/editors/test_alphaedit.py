"""AlphaEdit writes in the null space alone, as the published form does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from posttrain.editing.editors.alphaedit import AlphaEditConfig, null_space, null_update
from posttrain.editing.solve import Ridge
from posttrain.errors import PosttrainError
from tests.editing.lively import EDIT, OTHERS, bits, drawn, editor, lively, moment, near, said, session

WIDTH, OUT, EDITS = 24, 10, 5


def eye(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


def test_the_null_space_is_what_lies_beyond_most_of_the_trace() -> None:
    """Eigenvalues 8, 4, 2, 1, 1: half of the trace is held by the first, 75 % by two, 94 % by four."""
    basis, _ = torch.linalg.qr(drawn(5, 5))
    matrix = (basis * torch.tensor([8.0, 4.0, 2.0, 1.0, 1.0], dtype=torch.float64)) @ basis.T
    for energy, free in ((0.49, 4), (0.51, 3), (0.74, 3), (0.76, 2), (0.86, 2), (0.88, 1), (0.93, 1), (0.95, 0)):
        found = null_space(matrix, energy=energy)
        assert found.shape == (5, free)
        assert near(found.T @ found, eye(free), 1e-10) or free == 0
    two = null_space(matrix, energy=0.8)
    assert near(two @ two.T, basis[:, 3:] @ basis[:, 3:].T, 1e-9)
    assert [null_space(matrix, threshold=t).shape[1] for t in (0.5, 1.5, 3.0, 9.0)] == [0, 2, 3, 5]
    # energy does not depend on the scale, the published threshold does
    assert near(null_space(1e-4 * matrix, energy=0.8) @ null_space(1e-4 * matrix, energy=0.8).T, two @ two.T, 1e-9)
    assert null_space(1e-4 * matrix, threshold=0.02).shape[1] == 5


def test_the_update_is_the_published_one_and_leaves_the_rest_alone() -> None:
    c, keys, wanted = moment(WIDTH), drawn(WIDTH, EDITS, seed=2), drawn(OUT, EDITS, seed=3)
    past, l2 = drawn(WIDTH, 7, seed=4), 0.3
    basis = null_space(c, energy=0.9)
    free = basis.shape[1]
    assert 0 < free < WIDTH
    ridge = Ridge(l2 * eye(free))
    ridge.add(basis.T @ past)
    change, directions, condition = null_update(basis, ridge, keys, wanted)
    dense = change.left @ change.right
    projector = basis @ basis.T
    system = past @ past.T @ projector + keys @ keys.T @ projector + l2 * eye(WIDTH)
    assert near(dense, wanted @ keys.T @ projector @ torch.linalg.inv(system), 1e-9)
    assert near(dense @ projector, dense, 1e-12)
    _, vectors = torch.linalg.eigh(c)
    assert float((dense @ vectors[:, free:]).norm()) < 1e-12 * float(dense.norm())
    assert near(projector @ directions, directions, 1e-12)
    assert condition >= 1


def test_one_by_one_with_the_earlier_keys_is_all_at_once() -> None:
    c, keys, wanted = moment(WIDTH), drawn(WIDTH, EDITS, seed=2), drawn(OUT, EDITS, seed=3)
    basis = null_space(c, energy=0.9)
    ridge = Ridge(0.3 * eye(basis.shape[1]))
    all_at_once = null_update(basis, ridge, keys, wanted)[0]
    so_far = torch.zeros(OUT, WIDTH, dtype=torch.float64)
    for i in range(EDITS):
        key = keys[:, i : i + 1]
        change = null_update(basis, ridge, key, wanted[:, i : i + 1] - so_far @ key)[0]
        so_far = so_far + change.left @ change.right
        ridge.add(basis.T @ key)
    assert near(so_far, all_at_once.left @ all_at_once.right, 1e-9)


def test_settings() -> None:
    assert AlphaEditConfig().layers_of(32) == (4, 5, 6, 7, 8)
    assert AlphaEditConfig().bare == 0.5


# ---- the editor ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_editor_leaves_the_keys_that_the_model_uses_alone(family: str, tmp_path: Path) -> None:
    lines: list[str] = []
    loaded = lively(family)
    before = bits(loaded.model)
    of = session(loaded, tmp_path, say=lines.append)
    (made,) = of.apply([EDIT, *OTHERS], editor("alphaedit", energy=0.8))
    site = of.sites.at(0)
    basis = null_space(of.moments([site])[0].matrix, energy=0.8)
    assert f"layer 0: {basis.shape[1]} of {site.inputs} directions are free to edit" in lines
    change = made.deltas[0].change
    assert not isinstance(change, Tensor)
    assert near(change.right.double() @ basis @ basis.T, change.right.double(), 1e-6)
    moved = site.oriented(of.sites.weight(site).detach() - before[site.weight]).double()
    _, vectors = torch.linalg.eigh(of.moments([site])[0].matrix.double())
    assert float((moved @ vectors[:, basis.shape[1] :]).norm()) < 1e-5 * float(moved.norm())


def test_the_weight_of_the_length_does_not_depend_on_the_scale_of_the_keys(tmp_path: Path) -> None:
    """l2 is a share of what other keys have in the free directions; with a threshold it is a number."""
    of = session(lively(), tmp_path)
    of.apply([EDIT], editor("alphaedit", l2=0.5))
    matrix = of.moments([of.sites.at(0)])[0].matrix.double()
    basis = null_space(matrix)
    ridges = [value for value in of._memory.values() if isinstance(value, tuple)]
    ((_, kept),) = ridges
    assert near(kept.ridge.matrix, 0.5 * float((basis.T @ matrix @ basis).trace()) * eye(basis.shape[1]), 1e-9)
    threshold = float(torch.linalg.eigvalsh(matrix)[19:21].mean())
    of.apply([OTHERS[0]], editor("alphaedit", l2=0.5, threshold=threshold))
    (_, kept) = [value for value in of._memory.values() if isinstance(value, tuple)][1]
    assert near(kept.ridge.matrix, 0.5 * eye(20), 1e-9)


@pytest.mark.parametrize(
    ("threshold", "cause"),
    [
        (1e-12, "layer 0: no direction is free: .* leave threshold out, or raise it"),
        (1e9, "no direction is left alone"),
    ],
)
def test_a_threshold_on_the_wrong_scale_is_an_error(threshold: float, cause: str, tmp_path: Path) -> None:
    loaded = lively()
    before = bits(loaded.model)
    of = session(loaded, tmp_path)
    with pytest.raises(PosttrainError, match=f"editor alphaedit: .*{cause}"):
        of.apply([EDIT], editor("alphaedit", threshold=threshold))
    assert all(torch.equal(parameter, before[name]) for name, parameter in loaded.model.named_parameters())


def test_earlier_keys_are_spared_in_the_null_space(tmp_path: Path) -> None:
    moved = {}
    for past in (True, False):
        of = session(lively(), tmp_path)
        of.apply([EDIT, *OTHERS], editor("alphaedit", energy=0.5, l2=0.001, past_keys=past), batch=1)
        keys = torch.cat([one.past[0] for one in of.applied], dim=1)
        last = of.applied[-1].deltas[0].change
        assert not isinstance(last, Tensor)
        moved[past] = float((last.left.double() @ last.right.double() @ keys[:, :3]).norm())
        assert said(of, OTHERS[-1]) == OTHERS[-1].answer
    assert moved[True] < 0.5 * moved[False]
