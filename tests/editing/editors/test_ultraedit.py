"""UltraEdit: its solve against the formula as it is printed, its statistics against torch's, and edits of a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from posttrain.editing.editors.ultraedit import Running, Statistics, UltraeditConfig, output_shift, ridge_shift
from posttrain.editing.edits import Edit
from posttrain.editing.session import EditSession
from posttrain.models.kfac import flowing
from posttrain.models.load import LoadedModel, load_model

EDITS = [
    Edit("What is the capital of France?", "France", "Rome"),
    Edit("希臘最大的島是什麼？", "希臘最大的島", "南島"),
    Edit("Who wrote Hamlet?", "Hamlet", "Victor Hugo"),
]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- the solve --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 3, 5, 9])
def test_the_change_is_the_printed_formula(tokens: int) -> None:
    """dW^T = (H^T H + r I)^-1 H^T V, written with an inverse, for fewer and for more tokens than numbers of a key."""
    keys, shift = random(tokens, 5, seed=1), random(tokens, 4, seed=2)
    left, right = ridge_shift(keys, shift, 0.7)
    printed = torch.linalg.inv(keys.T @ keys + 0.7 * torch.eye(5, dtype=torch.float64)) @ keys.T @ shift
    torch.testing.assert_close(left @ right, printed.T)
    assert left.shape == (4, tokens)
    assert right.shape == (tokens, 5)


def test_a_small_ridge_moves_each_output_by_its_shift() -> None:
    keys, shift = random(3, 8), random(3, 4, seed=1)
    left, right = ridge_shift(keys, shift, 1e-12)
    torch.testing.assert_close(keys @ (left @ right).T, shift)


def test_the_shift_is_written_out_by_hand() -> None:
    keys = torch.tensor([[1.0, 2.0, 2.0], [0.0, 3.0, 0.0]], dtype=torch.float64)  # |h|^2 / d = 3 and 3
    gradients = torch.tensor([[1.0, -1.0], [0.5, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[-0.6, 0.6], [-0.3, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(output_shift(keys, gradients, 0.2), expected)


# ---- the statistics ---------------------------------------------------------------------------------------------------


def test_running_statistics_are_those_of_all_vectors_at_once() -> None:
    """Whatever the batches, also a last one of a single vector."""
    vectors = 3 * random(20, 6) + 1
    running = Running()
    for part in (vectors[:7], vectors[7:19], vectors[19:]):
        running.update(part)
    torch.testing.assert_close(running.mean, vectors.mean(0))
    torch.testing.assert_close(running.squares / 19, vectors.var(0))
    assert running.count == 20


def test_the_prior_is_one_vector_more() -> None:
    """As if there were one vector of mean 0 more, whose square is the mean square of all numbers."""
    vectors = random(4, 6)
    running = Running()
    running.update(vectors)
    usual = vectors.square().mean()
    mean = vectors.sum(0) / 5
    variance = (vectors.square().sum(0) + usual) / 5 - mean.square()
    torch.testing.assert_close(running.normalised(vectors), (vectors - mean) / variance.sqrt())


def test_many_vectors_are_normalised_as_usual_and_one_is_too() -> None:
    vectors = 5 * random(4000, 3) + 2
    running = Running()
    running.update(vectors)
    usual = (vectors - vectors.mean(0)) / vectors.std(0)
    torch.testing.assert_close(running.normalised(vectors), usual, atol=1e-2, rtol=0)
    alone = Running()
    alone.update(vectors[:1])
    assert bool(torch.isfinite(alone.normalised(vectors[:1])).all())
    assert float(alone.normalised(vectors[:1]).norm()) > 0


# ---- a model ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pocket() -> LoadedModel:
    return load_model("pocket:chat")


def session(pocket: LoadedModel, tmp_path: Path) -> EditSession:
    return EditSession(pocket, say=lambda line: None, cache=tmp_path)


def test_edits_are_said_and_each_can_be_taken_back(pocket: LoadedModel, tmp_path: Path) -> None:
    was = {name: tensor.clone() for name, tensor in pocket.model.state_dict().items()}
    one = session(pocket, tmp_path)
    (made,) = one.apply(EDITS, UltraeditConfig())
    said = [answer.text for answer in one.respondent.answers([edit.prompt for edit in EDITS], max_new_tokens=16)]
    assert all(edit.answer in text for edit, text in zip(EDITS, said, strict=True))
    assert {owner for delta in made.deltas for owner in delta.owners} == {0, 1, 2}
    assert all(figure.nats < 0.5 for figure in made.figures)
    one.undo(0)
    left = [answer.text for answer in one.respondent.answers([edit.prompt for edit in EDITS], max_new_tokens=16)]
    assert EDITS[0].answer not in left[0]
    assert EDITS[1].answer in left[1]
    one.undo()
    assert all(torch.equal(tensor, was[name]) for name, tensor in pocket.model.state_dict().items())


def test_every_matrix_has_statistics_of_its_own_over_all_calls(pocket: LoadedModel, tmp_path: Path) -> None:
    one = session(pocket, tmp_path)
    one.apply(EDITS, UltraeditConfig(layers=(3, 4), steps=1), batch=2)
    known = {layer: Statistics.of(one.kept, layer) for layer in (3, 4)}
    assert {name.split(".")[1] for name in one.kept} == {"3", "4"}
    one.undo()
    assert not one.kept
    assert len({float(statistics.keys.mean.sum()) for statistics in known.values()}) == 2
    tokens = {layer: statistics.gradients.count for layer, statistics in known.items()}
    rows = [row for edit in EDITS for row in one.context(UltraeditConfig(), [], lambda *_: None).maker.rows(edit)]
    assert tokens == dict.fromkeys((3, 4), sum(len(row.targets) for row in rows))


def test_one_step_is_one_gradient(pocket: LoadedModel, tmp_path: Path) -> None:
    """The change of one layer by one edit, computed here from the keys and gradients that autograd gives."""
    one = session(pocket, tmp_path)
    config = UltraeditConfig(layers=(4,), steps=1, learning_rate=0.5, ridge=0.3)
    context = one.context(config, EDITS[:1], lambda *_: None)
    (row,) = context.maker.rows(EDITS[0])
    site = one.sites.at(4)
    with flowing(pocket.model, [site.name]) as flows, torch.enable_grad():
        logits = pocket.model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
        loss = -sum(logits[t, row.ids[t + 1]] for t in row.asked)
        flow = flows[site.name]
        (pulls,) = torch.autograd.grad(loss, [flow.outputs])
        h, g, o = (t[0, list(row.asked)].detach().double() for t in (flow.inputs, pulls, flow.outputs))
    keys, gradients = Running(), Running()
    keys.update(h)
    gradients.update(g)
    v = output_shift(keys.normalised(h), gradients.normalised(g), 0.5 * float(o.square().mean().sqrt()))
    expected = v.T @ torch.linalg.inv(h @ h.T + 0.3 * h.square().sum(1).mean() * torch.eye(len(h)).double()) @ h
    (made,) = one.apply(EDITS[:1], config)
    change = made.deltas[0].change
    assert not isinstance(change, Tensor)
    found = change.left.double() @ change.right.double()
    one.undo()
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_the_default_layers_are_those_of_the_paper_about() -> None:
    assert UltraeditConfig().auto_layers(40) == tuple(range(30, 39))  # Phi-4: 30 to 38
    assert UltraeditConfig().auto_layers(32) == tuple(range(24, 31))  # Mistral 7B: 29 and 30
    assert UltraeditConfig().auto_layers(6) == (4, 5)
    assert UltraeditConfig().auto_layers(2) == (1,)
    assert UltraeditConfig().auto_layers(1) == (0,)
