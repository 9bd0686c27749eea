"""EMMET: many facts at once and exactly; one fact is ROME's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from posttrain.editing.editors.emmet import EmmetConfig, equality_update
from posttrain.editing.editors.rome import rank_one
from tests.editing.lively import EDIT, OTHERS, bits, drawn, editor, lively, moment, near, said, session

WIDTH, OUT, EDITS = 24, 10, 5


def test_one_edit_is_that_of_rome() -> None:
    c, key, wanted = moment(WIDTH), drawn(WIDTH, 1, seed=2), drawn(OUT, 1, seed=3)
    through = torch.linalg.solve(c, key)
    change, condition = equality_update(through, key, wanted, 0.0)
    rome = rank_one(through, key, wanted)
    assert near(change.left @ change.right, rome.left @ rome.right, 1e-10)
    assert condition == 1.0


def test_all_are_written_exactly_and_nothing_moves_less() -> None:
    c, keys, wanted = moment(WIDTH), drawn(WIDTH, EDITS, seed=2), drawn(OUT, EDITS, seed=3)
    change, condition = equality_update(torch.linalg.solve(c, keys), keys, wanted, 0.0)
    dense = change.left @ change.right
    assert near(dense @ keys, wanted, 1e-7)
    inner = keys.T @ torch.linalg.solve(c, keys)
    assert condition == pytest.approx(float(torch.linalg.cond(inner)), rel=1e-6)
    # KKT: the rows of dW C lie in the span of the keys
    basis, _ = torch.linalg.qr(keys)
    slope = dense @ c
    assert near(slope @ basis @ basis.T, slope, 1e-6)
    least = float((dense @ c @ dense.T).trace())
    for seed in range(10):
        other = drawn(OUT, WIDTH, seed=50 + seed) * float(dense.norm()) / 10
        feasible = dense + other - other @ basis @ basis.T
        assert near(feasible @ keys, wanted, 1e-7)
        assert float((feasible @ c @ feasible.T).trace()) > least


def test_epsilon_is_a_ridge_on_the_system_of_the_edits() -> None:
    c, keys, wanted = moment(WIDTH), drawn(WIDTH, EDITS, seed=2), drawn(OUT, EDITS, seed=3)
    through = torch.linalg.solve(c, keys)
    change, _ = equality_update(through, keys, wanted, 0.1)
    inner = keys.T @ through + 0.1 * torch.eye(EDITS, dtype=torch.float64)
    assert near(change.left @ change.right, wanted @ torch.linalg.inv(inner) @ through.T, 1e-9)
    # it is MEMIT's normal equation with eps C: R K^T (eps C + K K^T)^-1
    assert near(change.left @ change.right @ (0.1 * c + keys @ keys.T), wanted @ keys.T, 1e-9)


def test_equal_keys_need_epsilon() -> None:
    """The same subject twice: without eps the system has no inverse."""
    c, key, wanted = moment(WIDTH), drawn(WIDTH, 1, seed=2), drawn(OUT, 1, seed=3)
    through = torch.linalg.solve(c, key)
    change, condition = equality_update(through.repeat(1, 2), key.repeat(1, 2), wanted.repeat(1, 2), 0.1)
    assert near(change.left @ change.right @ key, wanted, 1e-3)
    assert condition > 1e3


def test_settings() -> None:
    assert EmmetConfig().layers_of(32) == (4, 5, 6, 7, 8)
    assert EmmetConfig().epsilon == 0.1


# ---- the editor ------------------------------------------------------------------------------------------------------


def test_one_edit_of_the_editor_is_romes_with_the_same_vector(tmp_path: Path) -> None:
    """Where the vector is added to the state of the only layer, it is added to the matrix's output: ROME's problem."""
    weights = []
    for kind in ("rome", "emmet"):
        loaded = lively(dtype=torch.float64)
        of = session(loaded, tmp_path)
        config = editor(kind, target={"steps": 8, "weight_decay": 0.0, "clamp": 1e6})
        (made,) = of.apply([EDIT], config)
        assert made.figures[0].realised == pytest.approx(1.0, abs=1e-6)
        weights.append(bits(loaded.model)["model.layers.0.mlp.down_proj.weight"])
    untouched = bits(lively(dtype=torch.float64).model)["model.layers.0.mlp.down_proj.weight"]
    assert near(weights[1] - untouched, weights[0] - untouched, 1e-5)


def test_a_batch_is_written_exactly(tmp_path: Path) -> None:
    of = session(lively(), tmp_path)
    (made,) = of.apply([EDIT, *OTHERS], editor("emmet", epsilon=0.0))
    for figures in made.figures:
        assert figures.realised == pytest.approx(1.0, abs=1e-4)
        assert figures.condition is not None
    assert [said(of, edit) for edit in (EDIT, *OTHERS)] == [edit.answer for edit in (EDIT, *OTHERS)]
