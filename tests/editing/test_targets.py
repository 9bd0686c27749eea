"""The search of target vectors against the plainest one: a row at a time, torch's own Adam, the loss written out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from posttrain.editing.edits import Edit, Row, RowMaker
from posttrain.editing.sites import Sites, find_sites
from posttrain.editing.tails import Where
from posttrain.editing.targets import Found, Search, TargetConfig, _groups, kl_row, search
from posttrain.errors import PosttrainError
from tests.editing.lively import EDIT, OTHERS, lively
from tests.editing.test_reading import plain
from tests.editing.test_tails import PLACES
from tests.pico import FAMILIES, tokenizer

EDITS = (
    Edit("The capital of France is", "France", "Rome", location="a.yaml:2"),
    Edit("臺灣最高的山是哪座？", "臺灣最高的山", "雪山", location="b.yaml:2"),
    Edit("I am Hamlet", "I", "not so sure of it", location="c.yaml:2"),
    EDIT,
    *OTHERS,
)


class Case(NamedTuple):
    sites: Sites
    task: Search
    rows: list[list[Row]]


def case_of(model: Any, edits: Sequence[Edit], *, forms: Any = ("raw", "chat"), tokens: int = 0) -> Case:
    sites, maker = find_sites(model), RowMaker(tokenizer(), forms=forms)
    rows = [maker.rows(edit, ["So it was."], bare=0.7) for edit in edits]
    return Case(sites, Search(sites, maker, lambda line: None, {}, tokens), rows)


def found_in(
    case: Case, edits: Sequence[Edit], where: Where, config: TargetConfig, *, layer: int = 0, only: Sequence[int] = ()
) -> Found:
    chosen = list(only) or list(range(len(edits)))
    rows = [case.rows[i] for i in chosen]
    return search(case.task, [edits[i] for i in chosen], rows, case.sites.at(layer), where, config)


def read(sites: Sites, row: Row, where: Where, delta: Tensor) -> Tensor:
    """Log-probabilities (T, V) of a row with a vector added at its subject, in layer 0."""
    site = sites.at(0)
    name = site.name if where == "value" else sites.layers[0]

    def add(_: Any, args: Any, output: Any) -> Any:
        states = output if isinstance(output, Tensor) else output[0]
        moved = states + torch.nn.functional.one_hot(torch.tensor(row.at), states.shape[1])[None, :, None] * delta
        return moved if isinstance(output, Tensor) else (moved, *output[1:])

    model: Any = sites.model
    handle = model.get_submodule(name).register_forward_hook(add)
    logits: Tensor = model(input_ids=torch.tensor([row.ids])).logits[0]
    handle.remove()
    return logits.log_softmax(-1)


def plainly(case: Case, edit: Edit, rows: Sequence[Row], where: Where, config: TargetConfig) -> tuple[Tensor, float]:
    """The delta of one edit, and the nats of its answer with it, after `config.steps` readings without an early end."""
    essence = kl_row(edit, case.task.maker)
    parts = [plain(case.sites, row, 0)[1 if where == "value" else 2] for row in rows]
    base = sum(row.weight * part for row, part in zip(rows, parts, strict=True))
    assert isinstance(base, Tensor)
    delta = torch.zeros(32, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=config.learning_rate)
    with torch.no_grad():
        before = read(case.sites, essence, where, torch.zeros(32).double())[essence.at]
    nats = 0.0
    for step in range(config.steps):
        said = torch.zeros((), dtype=torch.float64)
        for row in rows:
            logps = read(case.sites, row, where, delta)
            own = [-logps[at, target] for at, target in zip(row.asked, row.targets, strict=True)]
            said = said + row.weight * torch.stack(own).mean()
        now = read(case.sites, essence, where, delta)[essence.at]
        divergence = (now.exp() * (now - before)).sum()
        loss = said + config.kl * divergence + config.weight_decay * delta.norm() / base.norm() ** 2
        nats = float(said.detach())
        if step == config.steps - 1:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            longest = config.clamp * base.norm()
            if delta.norm() > longest:
                delta.mul_(longest / delta.norm())
    return delta.detach(), nats


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_a_search_is_adam_on_the_loss_as_written(family: str, where: Where) -> None:
    """The clamp is reached, the KL counts much, and the rows have unequal weights and lengths."""
    case = case_of(lively(family, dtype=torch.float64).model, EDITS[:1])
    config = TargetConfig(steps=9, clamp=0.5, kl=0.5, weight_decay=0.2, stop_loss=0.0)
    found = found_in(case, EDITS[:1], where, config)
    delta, nats = plainly(case, EDITS[0], case.rows[0], where, config)
    assert torch.allclose(found.deltas[0], delta, atol=2e-6)  # weights of rows and norms are in float32
    assert float(found.nats[0]) == pytest.approx(nats, abs=1e-6)
    assert found.steps.tolist() == [8]  # the last reading tells the nats, and moves nothing
    parts = [plain(case.sites, row, 0)[1 if where == "value" else 2] for row in case.rows[0]]
    expected = sum(row.weight * part for row, part in zip(case.rows[0], parts, strict=True))
    assert torch.allclose(found.base[0], torch.as_tensor(expected), atol=1e-6)
    assert float(found.deltas[0].norm()) == pytest.approx(0.5 * float(found.base[0].norm()), rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_many_edits_together_are_each_alone(family: str) -> None:
    """Edits of two languages and several lengths, some of which end early: the batch is narrowed on the way."""
    edits = EDITS[1:5]
    case = case_of(lively(family).model, edits, forms=("raw",))
    config = TargetConfig(steps=16, clamp=8.0, stop_loss=2.0)
    together = found_in(case, edits, "state", config)
    few = found_in(case._replace(task=case.task._replace(group_tokens=60)), edits, "state", config)
    assert float(together.steps.min()) < 15 == float(together.steps.max())
    for i in range(len(edits)):
        alone = found_in(case, edits, "state", config, only=[i])
        for whole in (together, few):
            assert torch.allclose(whole.deltas[i], alone.deltas[0], atol=1e-4)
            assert torch.allclose(whole.base[i], alone.base[0], atol=1e-5)
            assert float(whole.nats[i]) == pytest.approx(float(alone.nats[0]), abs=1e-4)
            assert whole.steps[i] == alone.steps[0]


def test_an_edit_that_is_found_ends_and_says_its_answer() -> None:
    edits = (*EDITS[3:5], EDITS[6])
    case = case_of(lively().model, edits, forms=("raw",))
    found = found_in(case, edits, "value", TargetConfig(steps=80, clamp=20.0, stop_loss=0.6, kl=0.0))
    assert found.steps.max() < 79
    assert found.nats.max() < 0.6
    for rows, delta in zip(case.rows, found.deltas, strict=True):
        said = [read(case.sites, row, "value", delta.float())[row.start - 1].argmax() for row in rows]
        assert said == [row.targets[0] for row in rows]


def test_no_vector_is_longer_than_the_clamp() -> None:
    case = case_of(lively().model, EDITS)
    for clamp in (0.1, 1.0):
        found = found_in(case, EDITS, "value", TargetConfig(steps=6, learning_rate=5.0, clamp=clamp, stop_loss=0.0))
        share = found.deltas.norm(dim=1) / found.base.norm(dim=1)
        assert float(share.max()) <= clamp * (1 + 1e-5)
        assert float(share.min()) == pytest.approx(clamp, rel=1e-5)  # they all want to be longer


def test_the_kl_keeps_what_the_subject_is() -> None:
    case = case_of(lively().model, EDITS[:1])
    essence = kl_row(EDITS[0], case.task.maker)

    def moved(kl: float) -> float:
        found = found_in(case, EDITS[:1], "state", TargetConfig(steps=15, clamp=3.0, kl=kl, stop_loss=0.0))
        zero = torch.zeros(32)
        with torch.no_grad():
            before, now = (read(case.sites, essence, "state", d)[essence.at] for d in (zero, found.deltas[0].float()))
        return float((now.exp() * (now - before)).sum())

    free, held = moved(0.0), moved(20.0)
    assert 0 < held < 0.2 * free


def test_weight_decay_holds_vectors_short() -> None:
    case = case_of(lively().model, EDITS[:1])
    lengths = [
        float(found_in(case, EDITS[:1], "value", TargetConfig(steps=15, weight_decay=w)).deltas.norm())
        for w in (0.0, 1.0, 50.0)
    ]
    assert lengths[0] > lengths[1] > 2 * lengths[2]


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_a_loss_that_is_no_number_names_its_edits_alone(family: str) -> None:
    """A character whose embedding is broken: only the edit that reads it fails."""
    model = lively(family).model
    ids = [{token for row in rows for token in row.ids} for rows in case_of(model, EDITS).rows]
    token = min(ids[1].difference(*ids[:1], *ids[2:]))
    broken = [1] if family == "qwen3" else list(range(len(EDITS)))  # GPT-2's head is the embedding: nothing is left
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("nan")
    with pytest.raises(PosttrainError) as caught:
        found_in(case_of(model, EDITS), EDITS, "value", TargetConfig(steps=4))
    assert sorted(problem.location for problem in caught.value.problems) == sorted(EDITS[i].location for i in broken)
    assert {problem.cause for problem in caught.value.problems} == {"its loss is not finite"}


def test_a_search_in_half_precision_finds_a_vector() -> None:
    case = case_of(lively(dtype=torch.bfloat16).model, EDITS[3:4], forms=("raw",))
    found = found_in(case, EDITS[3:4], "value", TargetConfig(steps=60, clamp=20.0, stop_loss=0.5, kl=0.0))
    assert found.deltas.dtype == found.base.dtype == torch.float64
    assert float(found.nats[0]) < 0.5


def test_groups_hold_edits_of_like_cost() -> None:
    """Cost counts tokens from the subject on, and every row of a group as the longest."""
    maker = RowMaker(tokenizer(), forms=("raw",))
    rows = [maker.rows(edit) for edit in EDITS]
    cost = [sum(len(row.ids) - row.at for row in own) for own in rows]
    for limit in (1, 12, 40, 10_000):
        groups = list(_groups(rows, limit))
        assert sorted(i for group in groups for i in group) == list(range(len(rows)))
        assert all(len(group) == 1 or len(group) * max(cost[i] for i in group) <= limit for group in groups)
        flat = [cost[i] for group in groups for i in group]
        assert flat == sorted(flat)
    assert len(list(_groups(rows, 10_000))) == 1
    assert len(list(_groups(rows, 1))) == len(rows)
