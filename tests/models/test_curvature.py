from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from posttrain.models import curvature
from posttrain.models.curvature import Curvature, Example, FisherKind, fisher, language_logits, mas_importance
from posttrain.models.load import load_model
from posttrain.registry import load
from posttrain.tuners.prompt_tuning import PromptConfig, prompt_tuning
from tests.pico import FAMILIES

PicoPath = Callable[[str], Path]
NORMS = 1e-6
"""Relative to the largest entry: the norms of transformers compute in float32 whatever the weights are."""


def examples(count: int, *, seed: int = 0, vocabulary: int = 300) -> list[Example]:
    """Rows of 4 to 12 tokens whose last 1 to 4 positions are asked."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        asked = int(torch.randint(1, 5, (), generator=draw))
        length = asked + int(torch.randint(3, 9, (), generator=draw))
        ids = torch.randint(10, vocabulary, (length + 1,), generator=draw)
        made.append(Example(ids[:-1], torch.arange(length - asked, length), ids[1:][-asked:]))
    return made


def moving(model: nn.Module, *parts: str) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad and (not parts or any(s in n for s in parts))}


def assert_close(one: Curvature, other: dict[str, Tensor], tolerance: float) -> None:
    scale = max(float(t.abs().max()) for t in other.values())
    for name, expected in other.items():
        torch.testing.assert_close(one.diagonal[name], expected, atol=tolerance * scale, rtol=0, msg=name)


def double(pico_path: PicoPath, family: str = "llama") -> nn.Module:
    model: nn.Module = load_model(str(pico_path(family)), device="cpu").model
    return model.double().requires_grad_(True)


# ---- the definition ---------------------------------------------------------------------------------------------------


def by_hand(model: nn.Module, parameters: dict[str, nn.Parameter], rows: list[Example]) -> dict[str, Tensor]:
    """The double sum over positions and vocabulary, one backward pass each."""
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    positions = 0
    for row in rows:
        for t in row.positions.tolist():
            positions += 1
            logarithms = model(input_ids=row.inputs[None]).logits[0, t].log_softmax(-1)
            for v in range(len(logarithms)):
                gradients = torch.autograd.grad(logarithms[v], list(parameters.values()), retain_graph=True)
                for name, g in zip(parameters, gradients, strict=True):
                    sums[name] += logarithms[v].exp().detach() * g**2
    return {name: s / positions for name, s in sums.items()}


def test_true_is_the_double_sum(pico_path: PicoPath) -> None:
    model = double(pico_path)
    parameters = moving(model, "layers.1.self_attn.q_proj", "norm.weight")
    rows = examples(2)[:2]
    found = fisher(model, parameters, rows, kind="true")
    assert_close(found, by_hand(model, parameters, rows), NORMS)
    assert found.positions == sum(len(r.positions) for r in rows)
    assert found.trace == pytest.approx(sum(float(d.sum()) for d in found.diagonal.values()))


@pytest.mark.parametrize("kind", ["signs", "sampled"])
def test_estimates_go_to_true_as_draws_grow(pico_path: PicoPath, kind: FisherKind) -> None:
    model = double(pico_path)
    parameters, rows = moving(model, "layers.1.mlp.down_proj", "norm.weight"), examples(2)
    true = fisher(model, parameters, rows, kind="true")
    errors = []
    for draws in (4, 64, 1024):
        found = fisher(model, parameters, rows, kind=kind, draws=draws, chunk_rows=128)
        errors.append(sum(float((found.diagonal[n] - true.diagonal[n]).abs().sum()) for n in parameters) / true.trace)
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.08
    assert found.trace == pytest.approx(true.trace, rel=0.05)


def test_signs_leave_nothing_to_rare_draws() -> None:
    """Two outputs, sure of the first (99.9 %): F of the logit's weight is p (1 - p) for every draw of signs, and a draw of
    a label misses it 999 times in 1000."""
    layer = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[6.9068], [0.0]]))
    model = Rowwise(layer)
    row = [Example(torch.ones(1), torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))]
    expected = 2 * 0.999 * 0.001
    signs = [fisher(model, moving(model), row, seed=s).trace for s in range(20)]
    drawn = [fisher(model, moving(model), row, kind="sampled", seed=s).trace for s in range(20)]
    # (e_1 sqrt(p) + e_2 sqrt(1 - p)) sqrt(p (1 - p)) squared: 1 +- 2 sqrt(p (1 - p)) times the truth
    assert all(0.9 * expected < trace < 1.1 * expected for trace in signs)
    assert sum(signs) / 20 == pytest.approx(expected, rel=0.05)
    assert all(trace < 0.01 * expected for trace in drawn)


def test_the_square_is_of_the_row_not_of_its_tokens(pico_path: PicoPath) -> None:
    """Empirical: tokens of a row add up before they are squared."""
    model = double(pico_path)
    parameters, rows = moving(model, "norm.weight"), examples(3)
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for row in rows:
        logarithms = model(input_ids=row.inputs[None]).logits[0].log_softmax(-1)
        total = logarithms[row.positions].gather(1, row.targets[:, None]).sum()
        for name, g in zip(parameters, torch.autograd.grad(total, list(parameters.values())), strict=True):
            sums[name] += g**2
    count = sum(len(r.positions) for r in rows)
    found = fisher(model, parameters, rows, kind="empirical")
    assert_close(found, {name: s / count for name, s in sums.items()}, NORMS)


def test_half_the_fisher_of_a_small_step_is_its_kl(pico_path: PicoPath) -> None:
    """The unit of `strength`: 1/2 d' F d is the mean KL per token. One parameter, so that the diagonal is all there is."""
    model = double(pico_path)
    gain = nn.Parameter(torch.ones(1, dtype=torch.float64))
    handle = model.get_submodule("lm_head").register_forward_hook(lambda _m, _i, out: out * gain)
    model.register_parameter("gain", gain)
    rows = examples(6)
    found = fisher(model, {"gain": gain}, rows, kind="true")
    step, nats, count = 1e-2, 0.0, 0
    before = [language_logits(model, r.inputs[None], r.positions).detach().log_softmax(-1) for r in rows]
    with torch.no_grad():
        gain.add_(step)
        for row, old in zip(rows, before, strict=True):
            new = language_logits(model, row.inputs[None], row.positions).log_softmax(-1)
            nats += float((old.exp() * (old - new)).sum())
            count += len(row.positions)
    handle.remove()
    assert 0.5 * float(found.diagonal["gain"]) * step**2 == pytest.approx(nats / count, rel=0.03)


def test_mas_is_the_gradient_of_the_squared_norm(pico_path: PicoPath) -> None:
    model = double(pico_path)
    parameters, rows = moving(model, "layers.0.mlp", "norm.weight"), examples(3)
    expected = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for row in rows:
        value = model(input_ids=row.inputs[None]).logits[0, row.positions].square().sum()
        for name, g in zip(parameters, torch.autograd.grad(value, list(parameters.values())), strict=True):
            expected[name] += g.abs()
    count = sum(len(r.positions) for r in rows)
    assert_close(mas_importance(model, parameters, rows), {name: s / count for name, s in expected.items()}, NORMS)


# ---- how it is computed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tuner", "family"),
    [
        pytest.param(tuner, family, marks=[pytest.mark.slow] if (i + j) % 2 else [])
        for i, tuner in enumerate(("full", "lora"))
        for j, family in enumerate(FAMILIES)
    ],
)
def test_rows_together_and_singly_are_equal(pico_path: PicoPath, family: str, tuner: str) -> None:
    entry = load("tuner", tuner)
    model = entry.function(load_model(str(pico_path(family)), device="cpu").model, entry.config()).double().eval()
    parameters, rows = moving(model), examples(5)
    measures: list[Callable[[int], Curvature]] = [
        lambda chunk: fisher(model, parameters, rows, draws=2, chunk_rows=chunk),
        lambda chunk: fisher(model, parameters, rows, kind="sampled", draws=2, chunk_rows=chunk),
        lambda chunk: fisher(model, parameters, rows, kind="empirical", chunk_rows=chunk),
        lambda chunk: mas_importance(model, parameters, rows, chunk_rows=chunk),
    ]
    for measure in measures:
        singly, together = measure(1), measure(3)
        assert not singly.chunked
        assert together.chunked is (family != "gpt2"), together.reason  # whose code looks for padding with .item()
        assert_close(together, singly.diagonal, NORMS)
        assert singly.trace > 0


def test_a_model_that_cannot_be_batched_goes_row_by_row(pico_path: PicoPath, monkeypatch: pytest.MonkeyPatch) -> None:
    model = double(pico_path)
    parameters, rows = moving(model, "norm.weight"), examples(4)

    def ask(model: nn.Module, inputs: Tensor, positions: Tensor) -> Tensor:
        assert inputs.sum().item() > 0  # vmap forbids .item()
        return language_logits(model, inputs, positions)

    with monkeypatch.context() as patch:
        patch.setattr(curvature, "language_logits", ask)
        found = fisher(model, parameters, rows, kind="empirical")
    assert not found.chunked
    assert ".item()" in found.reason
    assert_close(found, fisher(model, parameters, rows, kind="empirical").diagonal, NORMS)


def test_nothing_is_left_behind(pico_path: PicoPath) -> None:
    model = double(pico_path)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    state = torch.random.get_rng_state()
    fisher(model, moving(model), examples(3))
    assert all(p.grad is None and torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_lora_at_its_start(pico_path: PicoPath) -> None:
    """B is zero, so only B has curvature: what A is does not matter yet."""
    entry = load("tuner", "lora")
    model = entry.function(load_model(str(pico_path("llama")), device="cpu").model, entry.config(rank=4)).eval()
    found = fisher(model, moving(model), examples(4))
    assert {"lora_A" in n for n, d in found.diagonal.items() if d.any()} == {False}


# ---- the law: popular codes square batch means -------------------------------------------------------------------------


class Digits(nn.Module):
    """An MLP on 8 x 8 digits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.layers(pixels)
        return logits


class Rowwise(nn.Module):
    """A classifier that is called as a causal model; the one position of a row is the whole input."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self.inner(input_ids)[:, None])  # (B, 1, classes)


@pytest.fixture(scope="module")
def digits() -> tuple[Rowwise, list[Example]]:
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    data = load_digits()
    pixels, labels = torch.tensor(data.data / 16, dtype=torch.float32)[:256], torch.tensor(data.target)[:256]
    model = Digits()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(pixels), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    rows = [Example(x, torch.zeros(1, dtype=torch.long), y[None]) for x, y in zip(pixels, labels, strict=True)]
    return Rowwise(model), rows


def batch_means_squared(model: nn.Module, rows: list[Example], size: int) -> float:
    """What Avalanche and others compute: the trace of the mean over batches of (gradient of the batch's mean loss)^2."""
    traces = []
    for batch in _batched(rows, size):
        logits = model(torch.stack([r.inputs for r in batch]))
        loss = nn.functional.cross_entropy(logits, torch.cat([r.targets for r in batch]))
        traces.append(sum(float(g.square().sum()) for g in torch.autograd.grad(loss, list(model.parameters()))))
    return sum(traces) / len(traces)


def _batched(rows: list[Example], size: int) -> list[list[Example]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def test_squared_batch_means_shrink_like_one_over_b_and_ours_do_not(digits: tuple[Rowwise, list[Example]]) -> None:
    model, rows = digits
    parameters = moving(model)
    ours = [fisher(model, parameters, rows, kind="empirical", chunk_rows=b).trace for b in (1, 8, 64)]
    theirs = [batch_means_squared(model.inner, rows, b) for b in (1, 8, 64)]
    assert ours == pytest.approx([theirs[0]] * 3, rel=1e-4)
    assert theirs[1] < theirs[0] / 4
    assert theirs[2] < theirs[0] / 16


def test_estimates_on_digits(digits: tuple[Rowwise, list[Example]]) -> None:
    """True and sampled agree; empirical is another thing on a model that fits its data."""
    model, rows = digits
    parameters = moving(model)
    true = fisher(model, parameters, rows, kind="true")
    signs = fisher(model, parameters, rows, draws=4, chunk_rows=256)
    sampled = fisher(model, parameters, rows, kind="sampled", draws=16, chunk_rows=256)
    empirical = fisher(model, parameters, rows, kind="empirical")
    assert signs.trace == pytest.approx(true.trace, rel=0.05)
    assert sampled.trace == pytest.approx(true.trace, rel=0.1)
    assert empirical.trace < 0.8 * true.trace


def test_the_law_holds_for_a_language_model(pico_path: PicoPath) -> None:
    model = double(pico_path)
    parameters, rows = moving(model, "layers", "norm"), examples(32)
    per_row = [fisher(model, parameters, rows, kind="empirical", chunk_rows=b).trace for b in (1, 16)]
    assert per_row[0] == pytest.approx(per_row[1], rel=1e-6)
    squared = {}
    for size in (1, 16):
        traces = []
        for batch in _batched(rows, size):
            nats = [
                -language_logits(model, r.inputs[None], r.positions).log_softmax(-1).gather(1, r.targets[:, None]).sum()
                for r in batch
            ]
            gradients = torch.autograd.grad(torch.stack(nats).mean(), list(parameters.values()))
            traces.append(sum(float(g.square().sum()) for g in gradients))
        squared[size] = sum(traces) / len(traces)
    assert squared[16] < squared[1] / 4


def test_virtual_tokens_have_no_part_in_what_is_asked(pico_path: Callable[[str], Path]) -> None:
    """A soft prompt stands in front of the row: its outputs are not the row's."""
    tuned = prompt_tuning(load_model(str(pico_path("llama")), device="cpu").model, PromptConfig(tokens=3))
    ids, positions = torch.tensor([[5, 6, 7, 8]]), torch.tensor([1, 3])
    with torch.no_grad():
        whole = tuned(input_ids=ids).logits  # (1, 3 + 4, V)
        assert torch.allclose(language_logits(tuned, ids, positions), whole[0, positions + 3], atol=1e-6)
