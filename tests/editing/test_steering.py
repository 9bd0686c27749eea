"""Vectors by hand, on every family; a trained vector that says the answer and is no longer than allowed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.data.chat import encode_prompt
from posttrain.data.records import Message
from posttrain.editing.sites import find_sites
from posttrain.editing.steering import (
    Answered,
    Step,
    VectorTraining,
    answer_means,
    contrast,
    header_of,
    layer_in,
    train_vector,
)
from posttrain.errors import ConfigError, PosttrainError
from posttrain.models.added import attach
from posttrain.models.steering_vector import SteeringVector
from tests.models.test_prefix import made
from tests.pico import CHATML, FAMILIES, MARKED, UNMARKED, tokenizer

ROWS = [
    Answered([5, 20, 21, 22], [40, 41, 42], [2], "here:1"),
    Answered([5, 30], [50], [2], "here:2"),
    Answered([5, 20, 21, 23, 24, 25], [60, 61], [], "here:3"),
]


def test_a_contrast_by_hand() -> None:
    wanted = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    present = torch.tensor([[0.0, 4.0], [1.0, 0.0]])
    assert contrast(wanted, present).tolist() == [1.5, -1.0]  # ((1, -2) + (2, 0)) / 2


@torch.no_grad()
def states_of(model: Any, layer: str, ids: list[int]) -> Tensor:
    """A layer's output (T, D) for one row."""
    seen: list[Any] = []
    with model.get_submodule(layer).register_forward_hook(lambda m, a, o: seen.append(o)):
        model(input_ids=torch.tensor([ids]), use_cache=False)
    found: Tensor = (seen[0][0] if isinstance(seen[0], tuple) else seen[0])[0]
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_means_are_over_the_answers_tokens(family: str) -> None:
    model = made(family)
    sites = find_sites(model)
    for layer in (0, 1):
        found = answer_means(sites, layer, ROWS)
        lengths = answer_means(sites, layer, ROWS, before=True)
        assert torch.equal(answer_means(sites, layer, ROWS, batch_tokens=1).argmax(1), found.argmax(1))
        for row, mean, length in zip(ROWS, found, lengths, strict=True):
            states = states_of(model, sites.layers[layer], [*row.prompt, *row.answer])
            first = len(row.prompt)
            by_hand = sum(states[first + i] for i in range(len(row.answer))) / len(row.answer)
            assert (mean - by_hand).abs().max() <= 1e-5
            expected = sum(float(states[first - 1 + i].norm()) for i in range(len(row.answer) + 1))
            assert float(length) == pytest.approx(expected / (len(row.answer) + 1), rel=1e-5)


def test_layers_by_number() -> None:
    sites = find_sites(made("llama"))
    assert [layer_in(sites, layer, "layer") for layer in (0, 1, -1, -2)] == [0, 1, 1, 0]
    assert layer_in(sites, None, "layer") == 0  # of 2 layers; of 30 the fifteenth, number 14
    for wrong in (2, -3):
        with pytest.raises(ConfigError, match=f"layer: there is no layer {wrong}: LlamaForCausalLM has layers 0 to 1"):
            layer_in(sites, wrong, "layer")


@pytest.mark.parametrize(
    ("template", "written"),
    [
        (MARKED, "<|assistant|>"),
        (UNMARKED, "<|assistant|>"),
        (CHATML, "<|user|>assistant\n"),
        (
            "{% for m in messages %}{{ '<|user|>' + m.content + '<|end|>' if m.role == 'user' else m.content }}{% endfor %}",
            "<|end|>",
        ),
    ],
    ids=["marked", "unmarked", "chatml", "nothing more for an answer"],
)
def test_what_a_template_writes_before_an_answer(template: str, written: str) -> None:
    own = copy.deepcopy(tokenizer(MARKED))
    own.chat_template = template
    header = header_of(own)
    assert own.decode(header) == written
    talk = (Message("user", "hello"), Message("assistant", "hi"), Message("user", "臺灣最高的山？"))
    for prompt in ("capital of France?", talk):
        assert encode_prompt(prompt, own)[-len(header) :] == header


def test_without_a_template_no_answer_begins() -> None:
    with pytest.raises(ConfigError, match="no chat template that shows where an answer begins; where: all"):
        header_of(tokenizer(None))


def part_in(model: Any, where: str = "all", layer: int = 0) -> SteeringVector:
    module = find_sites(model).layers[layer]
    part = SteeringVector(model, {"layer": layer, "module": module, "where": where, "header": [20, 21]})
    attach(model, part)
    model.requires_grad_(False)
    part.vector.requires_grad_(True)
    return part


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trained_vector_says_the_answers(family: str) -> None:
    model = made(family)
    before = {name: p.clone() for name, p in model.named_parameters()}
    sites = find_sites(model)
    part = part_in(model)
    row = ROWS[1]._replace(end=[])
    size = float(answer_means(sites, 0, [row], before=True))
    told: list[Step] = []
    found = train_vector(sites, part, 0, [row], VectorTraining(learning_rate=0.1, bound=4.0), told.append)
    assert found.loss < 0.6 * told[0].loss  # a random model is sure of nothing, but this is now the likeliest
    with torch.no_grad():
        assert int(model(torch.tensor([row.prompt])).logits[0, -1].argmax()) == 50
    assert [step.number for step in told] == list(range(1, found.steps + 1))
    assert found.tokens == (found.steps + 1) * 3
    assert float(part.vector.detach().norm()) <= 4.0 * size * 1.001
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)
    assert part.vector.grad is None


def test_loss_and_first_step_by_hand() -> None:
    """The mean over rows of nats per token, end of turn included; Adam's first step is the rate times the sign."""
    model = made("llama")
    sites = find_sites(model)
    part = part_in(model)
    size = float(answer_means(sites, 0, ROWS, before=True).mean())
    nats = []
    for row in ROWS:
        ids = torch.tensor([[*row.prompt, *row.answer, *row.end]])
        logps = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        own = [-logps[at - 1, int(ids[0, at])] for at in range(len(row.prompt), ids.shape[1])]
        nats.append(sum(own) / len(own))
    expected: Any = sum(nats) / len(nats)
    (slope,) = torch.autograd.grad(expected, part.vector)
    told: list[Step] = []
    for batch_tokens in (0, 1):  # in one forward pass, or a row at a time
        train_vector(sites, part, 0, ROWS, VectorTraining(steps=1, bound=1.0), told.append, batch_tokens=batch_tokens)
        assert told[-1].loss == pytest.approx(expected.item(), rel=1e-5)
        assert (part.vector + 0.02 * size / 32**0.5 * slope.sign()).abs().max() < 1e-3 * size


def test_a_vector_is_no_longer_than_allowed() -> None:
    model = made("llama")
    sites, part = find_sites(model), part_in(model)
    size = float(answer_means(sites, 0, ROWS, before=True).mean())
    found = train_vector(sites, part, 0, ROWS, VectorTraining(steps=20, learning_rate=0.1, bound=0.2))
    assert float(part.vector.detach().norm()) == pytest.approx(0.2 * size, rel=1e-3)
    assert found.bounded
    assert part.strength == 1.0


def test_training_steers_where_it_will_be_steered() -> None:
    """With `where: answer` the vector is not added to the prompt's first tokens."""
    whole = made("llama")
    rows = [Answered([5, 8, 9, 20, 21], [40, 41], [2])]
    config = VectorTraining(steps=3)
    losses = {}
    for where in ("all", "answer"):
        model = copy.deepcopy(whole)
        sites, part = find_sites(model), part_in(model, where)
        train_vector(sites, part, 0, rows, config)
        push = torch.zeros(8, 32)
        push[0 if where == "all" else 4 :] = part.vector.detach()
        with whole.model.layers[0].register_forward_hook(lambda m, a, o, push=push: o + push), torch.no_grad():
            logps = whole(torch.tensor([[5, 8, 9, 20, 21, 40, 41, 2]])).logits[0].log_softmax(-1)
        losses[where] = -float(logps[[4, 5, 6], [40, 41, 2]].mean())
        again = train_vector(sites, part, 0, rows, config)
        assert again.loss == pytest.approx(losses[where], rel=1e-4)
    assert losses["all"] != pytest.approx(losses["answer"], rel=1e-3)


def test_a_vector_for_a_bfloat16_model() -> None:
    model = made("llama").bfloat16()
    sites, part = find_sites(model), part_in(model)
    row = ROWS[1]._replace(end=[])
    told: list[Step] = []
    found = train_vector(sites, part, 0, [row], VectorTraining(learning_rate=0.1, bound=4.0), told.append)
    assert part.vector.dtype == torch.float32
    assert answer_means(sites, 0, [row]).dtype == torch.float32
    assert found.loss < 0.6 * told[0].loss


def test_a_loss_that_is_no_number_names_its_row() -> None:
    model = made("llama")
    sites, part = find_sites(model), part_in(model)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(PosttrainError, match="here:1: the loss of the vector is not finite"):
        train_vector(sites, part, 0, ROWS, VectorTraining())


def test_what_is_read_does_not_depend_on_the_batch(pico_path: Callable[[str], Path]) -> None:
    model = made("qwen3")
    sites = find_sites(model)
    one, many = (answer_means(sites, 1, ROWS, batch_tokens=tokens) for tokens in (1, 1000))
    assert (one - many).abs().max() <= 1e-5
