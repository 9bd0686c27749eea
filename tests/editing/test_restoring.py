"""The runs of causal tracing against one plain forward pass for each cell, in every family of pico models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock

import pytest
import torch
import transformers
from torch import Tensor

from posttrain.editing.places import KINDS, Kind, Places, find_places
from posttrain.editing.restoring import Cell, PlainRun, Run, TracedRow, run_of
from posttrain.editing.sites import find_sites
from posttrain.models.load import load_model
from tests.pico import FAMILIES

IDS = [7, 90, 31, 44, 250, 18, 333, 12, 9, 77, 61, 300, 45, 28, 199, 101, 8, 54, 21, 240, 150]
NOISY = (5, 6, 7, 12)
TOKENS = (5, 6, 9, 12, 13, 20)
"""The first noisy one, one among noisy ones, one between, the last noisy one, the one after it, the last of all."""
SAMPLES = 3


class Model(NamedTuple):
    model: Any
    places: Places


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, pico_path: Callable[[str], Path]) -> Model:
    return loaded(str(pico_path(request.param)))


@cache
def loaded(folder: str) -> Model:
    """A pico model with larger matrices, so that what is restored makes a difference."""
    model = load_model(folder, device="cpu").model
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(6)
    return Model(model, find_places(find_sites(model), KINDS))


def row(targets: int = 1) -> TracedRow:
    wanted = [17, 230, 5][:targets]
    return TracedRow(IDS + wanted[:-1], NOISY, range(len(IDS) - 1, len(IDS) - 1 + targets), wanted)


def noise(sigma: float = 0.5) -> Tensor:
    return sigma * torch.randn(len(NOISY), SAMPLES, 32, generator=torch.Generator().manual_seed(3))


def cells_of(places: Places, tokens: Sequence[int]) -> list[Cell]:
    return [Cell(kind, layer, token) for kind in KINDS for layer in range(len(places.layers)) for token in tokens]


@torch.no_grad()
def reference(one: Model, asked: TracedRow, added: Tensor, cell: Cell | None, sample: int) -> float:
    """The probability in one row with one sample of noise: written out, one forward pass and all logits."""
    model, ids = one.model, torch.tensor([asked.ids])
    names = one.places.names(cell.kind, cell.layer) if cell else []
    clean: dict[str, Tensor] = {}

    def first(output: Any) -> Any:
        return output[0] if isinstance(output, tuple) else output

    handles = [
        model.get_submodule(name).register_forward_hook(lambda m, a, o, n=name: clean.__setitem__(n, first(o).clone()))
        for name in names
    ]
    model(ids)
    for handle in handles:
        handle.remove()

    def corrupt(module: Any, args: Any, output: Tensor) -> Tensor:
        changed = output.clone()
        for number, at in enumerate(asked.noisy):
            changed[0, at] += added[number, sample]
        return changed

    def restore(name: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> Any:
            changed = first(output).clone()
            assert cell is not None
            changed[0, cell.token] = clean[name][0, cell.token]
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    handles = [model.get_input_embeddings().register_forward_hook(corrupt)]
    handles += [model.get_submodule(name).register_forward_hook(restore(name)) for name in names]
    logps = model(ids).logits[0].log_softmax(-1)
    for handle in handles:
        handle.remove()
    return float(sum(logps[at, target] for at, target in zip(asked.asked, asked.targets, strict=True)).exp())


def close(found: Any, expected: Any) -> bool:
    """Equal but for float32's rounding."""
    return torch.allclose(torch.as_tensor(found).double(), torch.as_tensor(expected).double(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("targets", [1, 3])
def test_every_cell_is_what_a_pass_of_its_own_gives(family: Model, targets: int) -> None:
    asked, added = row(targets), noise()
    cells = cells_of(family.places, TOKENS)
    means = [sum(reference(family, asked, added, cell, s) for s in range(SAMPLES)) / SAMPLES for cell in cells]
    for kind in (PlainRun, Run):
        run = kind(family.model, family.places, asked, added, 512)
        assert close(run.probabilities(cells), means), kind
    spread = torch.tensor(means).log()
    assert spread.max() - spread.min() > 0.1  # the cells differ by far more than what is taken for rounding


def test_restoring_everything_is_clean_and_restoring_nothing_is_corrupted(family: Model) -> None:
    run = Run(family.model, family.places, row(), noise(), 512)
    clean = float(run.clean.double().sum().exp())
    corrupted = float(run.corrupted.double().sum(-1).exp().mean())
    every = [Cell("state", 0, token) for token in range(len(IDS))]
    assert close(run.together(every), clean)
    assert close(run.together([]), corrupted)
    assert not close(clean, corrupted)
    assert close(clean, reference(family, row(), 0 * noise(), None, 0))
    assert close(corrupted, sum(reference(family, row(), noise(), None, s) for s in range(SAMPLES)) / SAMPLES)


def test_the_last_layers_output_at_the_last_token_is_everything(family: Model) -> None:
    run = Run(family.model, family.places, row(), noise(), 512)
    last = len(family.places.layers) - 1
    (whole, nothing) = run.probabilities([Cell("state", last, len(IDS) - 1), Cell("state", last, len(IDS) - 2)])
    assert close(whole, float(run.clean.double().exp()))
    assert close(nothing, float(run.corrupted.double().exp().mean()))


def test_without_noise_nothing_is_lost(family: Model) -> None:
    run = Run(family.model, family.places, row(), noise(0.0), 512)
    cells = cells_of(family.places, TOKENS)
    assert close(run.corrupted.double().exp(), run.clean.double().exp().expand(SAMPLES, 1))
    assert close(run.probabilities(cells), [float(run.clean.double().exp())] * len(cells))


@pytest.mark.parametrize("kind", [PlainRun, Run])
def test_batches_do_not_matter(family: Model, kind: type[PlainRun]) -> None:
    cells = cells_of(family.places, TOKENS)
    done: list[tuple[int, int]] = []
    apart = kind(family.model, family.places, row(), noise(), 1)
    found = apart.probabilities(cells, lambda cells, tokens: done.append((cells, tokens)))
    together = kind(family.model, family.places, row(), noise(), 1 << 20)
    assert close(found, together.probabilities(cells))
    assert close(found, together.probabilities(cells[::-1])[::-1])
    assert [count for count, _ in done] == [1] * len(cells)


def test_a_window_of_all_layers_restores_more_than_one(pico_path: Callable[[str], Path]) -> None:
    model, places = loaded(str(pico_path("llama")))
    wide = places._replace(width=10)
    kinds: list[Kind] = ["mlp", "attn"]
    for kind in kinds:
        assert wide.names(kind, 0) == wide.names(kind, 1)
        run = Run(model, wide, row(), noise(), 512)
        one, other = run.probabilities([Cell(kind, 0, 7), Cell(kind, 1, 7)])
        assert close(one, other)


def test_one_sample_and_noise_on_the_first_token(pico_path: Callable[[str], Path]) -> None:
    one = loaded(str(pico_path("llama")))
    asked = TracedRow(IDS, (0, 1), range(len(IDS) - 1, len(IDS)), [17])
    added = noise()[:2, :1]
    cells = cells_of(one.places, range(len(IDS)))
    run = Run(one.model, one.places, asked, added, 512)
    assert close(run.probabilities(cells), [reference(one, asked, added, cell, 0) for cell in cells])


def test_a_trial_decides(pico_path: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast way is taken where it is right, also beyond a sliding window, and not where it is wrong or fails."""
    one, told = loaded(str(pico_path("gemma3"))), list[str]()
    known: dict[int, bool] = {}
    run = run_of(one.model, one.places, row(), noise(), 512, say=told.append, known=known)
    assert (type(run), known, told) == (Run, {16: True}, [])  # the text is longer than the window of 16
    run = run_of(
        one.model,
        one.places,
        row()._replace(ids=IDS[:14], asked=range(13, 14)),
        noise(),
        512,
        say=told.append,
        known=known,
    )
    assert known == {16: True, 8: True} or known == {16: True, 0: True}

    right = Run._cache
    monkeypatch.setattr(Run, "_cache", lambda self, token: right(self, max(token - 1, 0)))
    run = run_of(one.model, one.places, row(), noise(), 512, say=told.append, known={})
    assert type(run) is PlainRun
    assert "tracing reads whole rows, which is slow: " in told[0]

    # what models of transformers say that keep no cache: it must be told to the user, not end the trace
    monkeypatch.setattr(Run, "_cache", Mock(side_effect=NotImplementedError("no cache")))
    run = run_of(one.model, one.places, row(), noise(), 512, say=told.append, known={})
    assert type(run) is PlainRun
    assert told[1] == "tracing reads whole rows, which is slow: NotImplementedError: no cache"


def test_a_model_with_recurrent_layers_is_read_in_the_plain_way() -> None:
    torch.manual_seed(0)
    config = transformers.Qwen3NextConfig(
        vocab_size=384, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, head_dim=8, num_experts=0, linear_num_value_heads=2,
        linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    one, told = Model(model, find_places(find_sites(model), KINDS)), list[str]()
    assert {name.rpartition(".")[2] for names in one.places.attn for name in names} == {"out_proj", "o_proj"}
    run = run_of(model, one.places, row(), noise(), 512, say=told.append, known={})
    assert type(run) is PlainRun
    assert told
    cells = [Cell(kind, layer, 7) for kind in KINDS for layer in (0, 3)]
    means = [sum(reference(one, row(), noise(), cell, s) for s in range(SAMPLES)) / SAMPLES for cell in cells]
    assert close(run.probabilities(cells), means)
