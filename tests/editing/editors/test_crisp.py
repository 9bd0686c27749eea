"""CrispEdit: nothing protected is LocFT bit by bit; what is protected does not move; the paper's quadratic form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from posttrain.editing.editors.crisp import CrispConfig
from posttrain.editing.editors.locft import LocftConfig
from posttrain.editing.edits import Edit
from posttrain.editing.gradients import measure_gradients
from posttrain.editing.session import EditSession
from posttrain.errors import DataError
from posttrain.models.examples import Example
from posttrain.models.kfac import kfac, low_curvature
from posttrain.models.load import LoadedModel, load_model

EDITS = [
    Edit("What is the capital of France?", "France", "Rome"),
    Edit("希臘最大的島是什麼？", "希臘最大的島", "南島"),
    Edit("Who wrote Hamlet?", "Hamlet", "Victor Hugo"),
]


@pytest.fixture(scope="module")
def pocket() -> LoadedModel:
    return load_model("pocket:chat")


@pytest.fixture
def texts(pocket: LoadedModel) -> list[list[int]]:
    """Some prompts, as token ids."""
    session = EditSession(pocket, say=lambda line: None)
    return [session.respondent.encode(text) for text in session._prompts(48)]


def session_of(pocket: LoadedModel, texts: list[list[int]], tmp_path: Path) -> EditSession:
    return EditSession(pocket, texts=lambda: texts, named="test", say=lambda line: None, cache=tmp_path)


def change_of(session: EditSession) -> Tensor:
    """The whole change of the only edited matrix, in float64."""
    (delta,) = [delta for made in session.applied for delta in made.deltas]
    assert isinstance(delta.change, Tensor)
    return delta.change.double()


def test_nothing_protected_is_locft(pocket: LoadedModel, texts: list[list[int]], tmp_path: Path) -> None:
    changes = []
    for config in (LocftConfig(steps=6), CrispConfig(steps=6, learning_rate=5e-4, energy=0)):
        session = session_of(pocket, texts, tmp_path)
        session.apply(EDITS, config)
        changes.append(change_of(session))
        session.undo()
    assert torch.equal(*changes)
    assert float(changes[0].norm()) > 0


@pytest.mark.parametrize("energy", [0.5, 0.95])
def test_protected_directions_do_not_move(
    pocket: LoadedModel, texts: list[list[int]], tmp_path: Path, energy: float
) -> None:
    session = session_of(pocket, texts, tmp_path)
    config = CrispConfig(steps=8, energy=energy)
    site = session.sites.at(config.auto_layers(len(session.sites.layers))[0])
    session.apply(EDITS, config)
    change = change_of(session)
    session.undo()
    keys, gradients = session.moments([site])[site.layer], session.gradients([site])[site.layer]
    found = low_curvature(keys.matrix, gradients.matrix, energy)
    inside = found.left.T @ change @ found.right
    assert 0 < found.rank < found.free.numel()
    assert float(inside[~found.free].norm()) < 1e-5 * float(inside.norm())
    assert float(inside[found.free].norm()) > 0


@pytest.mark.slow
def test_more_protection_costs_less_curvature_for_its_length(
    pocket: LoadedModel, texts: list[list[int]], tmp_path: Path
) -> None:
    """1/2 tr(G M A M^T) over |M|^2, which the KL divergence follows."""
    costs = []
    for energy in (0.0, 0.5, 0.95):
        session = session_of(pocket, texts, tmp_path)
        config = CrispConfig(steps=8, energy=energy)
        session.apply(EDITS, config)
        change = change_of(session)
        session.undo()
        site = session.sites.at(config.auto_layers(len(session.sites.layers))[0])
        a, g = session.moments([site])[site.layer].matrix, session.gradients([site])[site.layer].matrix
        costs.append(float((g.double() @ change @ a.double() * change).sum() / change.square().sum()))
    assert costs[0] > 2 * costs[1] > 4 * costs[2]


def test_curvature_is_that_of_the_untouched_model_and_measured_once(
    pocket: LoadedModel, texts: list[list[int]], tmp_path: Path
) -> None:
    session = session_of(pocket, texts, tmp_path)
    site = session.sites.at(4)
    clean = session.gradients([site])[4].matrix.clone()
    edited = session_of(pocket, texts, tmp_path / "other")
    edited.apply(EDITS, LocftConfig(steps=4))
    found = edited.gradients([edited.sites.at(4)])[4].matrix
    edited.undo()
    torch.testing.assert_close(found, clean)
    again = EditSession(pocket, texts=pytest.fail, named="test", say=lambda line: None, cache=tmp_path)
    assert torch.equal(again.gradients([again.sites.at(4)])[4].matrix, clean)  # from the cache, without texts


def test_gradients_are_the_outputs_factor_of_kfac(pocket: LoadedModel, texts: list[list[int]], tmp_path: Path) -> None:
    session = session_of(pocket, texts, tmp_path)
    site = session.sites.at(4)
    few = [text for text in texts if len(text) > 2][:6]
    rows = [Example(torch.tensor(t), torch.arange(1, len(t) - 1), torch.tensor(t[2:])) for t in few]
    expected = kfac(pocket.model, [site.name], rows, skip=1)[site.name].outputs
    assert torch.equal(measure_gradients(session.sites, few, [site])[4].matrix, expected)
    with pytest.raises(DataError, match="no tokens to measure gradients on"):
        measure_gradients(session.sites, [[1, 2]], [site])
