"""LoReFT against its formula written out position by position, and what it takes and refuses."""

from __future__ import annotations

import copy
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from posttrain.errors import PosttrainError
from posttrain.models.added import added_to, attach, load_added, merged_added, save_added
from posttrain.models.loreft import Loreft, groups_of, orthonormal, reft
from posttrain.models.marks import FIRST, mark
from posttrain.tuners._moved import count_moved
from tests.models.test_bottleneck import encoder
from tests.models.test_prefix import IDS, made
from tests.pico import FAMILIES, VOCABULARY, config

SETTINGS: dict[str, Any] = {"rank": 3, "prefix": 1, "suffix": 2, "share": "ends", "layers": None, "seed": 0}
PROMPTS = torch.tensor([5, 7])  # of the rows of IDS, 9 tokens each


def with_loreft(model: Any, **settings: Any) -> Any:
    model = copy.deepcopy(model)
    attach(model, Loreft(model, {**SETTINGS, **settings}))
    return model.eval()


def part_of(model: Any) -> Loreft:
    added = added_to(model)
    assert isinstance(added, Loreft)
    return added


def moved(model: Any, size: float = 0.5) -> Any:
    """With changes that do something, another in each layer and group."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for parameter in part_of(model).parameters():
            parameter.add_(torch.randn_like(parameter) * size)
    return model


def group_at(part: Loreft, place: int, prompt: int) -> int | None:
    """The group of a place, counted from 0, in a row whose first `prompt` tokens are the prompt."""
    prefix, suffix, share = int(part.settings["prefix"]), int(part.settings["suffix"]), part.settings["share"]
    if place >= prompt:
        return None
    if place >= prompt - suffix:
        return {"all": 0, "ends": int(prefix > 0), "none": prefix + prompt - 1 - place}[share]
    if place < prefix:
        return {"all": 0, "ends": 0, "none": place}[share]
    return None


def phi(part: Loreft, layer: int, group: int, h: Tensor) -> Tensor:
    """h + R^T (W h + b - R h) of one state (d,); R by Gram-Schmidt, one row after the other."""
    own: Any = part.subspaces[layer]
    rows: list[Tensor] = []
    for row in own.frame[group]:
        rest = row - sum((row @ one * one for one in rows), torch.zeros_like(row))
        rows.append(rest / rest.norm())
    r, w, b = torch.stack(rows), own.weight[group], own.bias[group]
    changed: Tensor = h + r.T @ (w @ h + b - r @ h)
    return changed


@torch.no_grad()
def by_hand(base: Any, part: Loreft, ids: list[int], prompt: int) -> Tensor:
    """Logits (T, V) of one row, alone: the base model, whose layers' outputs are changed place by place."""

    def change(layer: int, output: Any) -> Any:
        states = (output[0] if isinstance(output, tuple) else output).clone()
        for place in range(len(ids)):
            group = group_at(part, place, prompt)
            if group is not None:
                states[0, place] = phi(part, layer, group, states[0, place])
        return (states, *output[1:]) if isinstance(output, tuple) else states

    with ExitStack() as hooks:
        for layer, name in enumerate(part.layers):
            hook = base.get_submodule(name).register_forward_hook
            hooks.enter_context(hook(lambda _, __, output, layer=layer: change(layer, output)))
        logits: Tensor = base(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return logits


# ---- the mathematics -------------------------------------------------------------------------------------------------


def test_rows_are_orthonormal_by_gram_schmidt() -> None:
    frame = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = orthonormal(frame)
    assert torch.allclose(basis @ basis.mT, torch.eye(4, dtype=torch.float64), atol=1e-12)
    for group in range(2):
        for row in range(4):  # a row is a sum of the basis up to itself, with a positive share of its own
            shares = basis[group] @ frame[group, row]
            assert torch.allclose(shares[: row + 1] @ basis[group, : row + 1], frame[group, row], atol=1e-12)
            assert shares[row] > 0
    assert torch.allclose(orthonormal(basis), basis, atol=1e-12)
    assert torch.allclose(orthonormal(basis * 7.0), basis, atol=1e-12)


def test_what_is_outside_of_the_subspace_stays_and_inside_is_replaced() -> None:
    draw = torch.Generator().manual_seed(0)
    h, w = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((5, 8), (3, 8)))
    b = torch.randn(3, generator=draw, dtype=torch.float64)
    r = orthonormal(torch.randn(3, 8, generator=draw, dtype=torch.float64))
    changed = reft(h, r, w, b)
    assert torch.allclose(changed @ r.T, h @ w.T + b, atol=1e-12)
    outside = torch.eye(8, dtype=torch.float64) - r.T @ r
    assert torch.allclose(changed @ outside, h @ outside, atol=1e-12)
    assert torch.equal(reft(h, r, r, torch.zeros_like(b)), h)


def test_gradients_of_states_frame_weight_and_bias() -> None:
    draw = torch.Generator().manual_seed(0)
    given = [torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((4, 6), (3, 6), (3, 6), (3,))]
    for tensor in given:
        tensor.requires_grad_(True)

    def changed(h: Tensor, frame: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return reft(h, orthonormal(frame), w, b)

    assert torch.autograd.gradcheck(changed, given)
    given[1] = orthonormal(given[1]).detach().requires_grad_(True)  # where training begins
    assert torch.autograd.gradcheck(changed, given)


@pytest.mark.parametrize(("prefix", "suffix"), [(0, 1), (2, 0), (1, 2), (3, 3)])
@pytest.mark.parametrize("share", ["all", "ends", "none"])
def test_places_by_hand_in_prompts_of_every_length(prefix: int, suffix: int, share: str) -> None:
    part = part_of(with_loreft(made("llama"), prefix=prefix, suffix=suffix, share=share))
    groups = groups_of(prefix, suffix, share)
    assert {len(p) for p in part.subspaces[0].parameters()} == {groups}
    seen = set()
    for prompt in range(1, 10):
        before = torch.arange(12)
        found = (part.marks(before, prompt - 1 - before) - FIRST).tolist()
        expected = [group_at(part, place, prompt) for place in range(12)]
        assert [group if group >= 0 else None for group in found] == expected
        assert expected.count(None) == 12 - min(prompt, prefix + suffix)
        seen |= {*expected} - {None}
    assert seen == set(range(groups))


# ---- in a model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*FAMILIES, "bert", "distilbert", "modernbert"])
@torch.no_grad()
def test_starts_as_the_model_moves_away_and_comes_back(family: str) -> None:
    """Encoders and decoders; a deep copy has hooks of its own."""
    base = made(family) if family in FAMILIES else encoder(family)
    model = with_loreft(base)
    ids = mark(model, IDS, PROMPTS) if family in FAMILIES else IDS
    expected = base(IDS).logits
    assert torch.equal(model(ids).logits, expected)
    away = moved(model)(ids).logits
    assert not torch.allclose(away, expected, atol=1e-3)
    with part_of(model).switched_off():
        assert torch.equal(model(ids).logits, expected)
        assert torch.equal(model(IDS).logits, expected)
    copied = copy.deepcopy(model)
    for parameter in part_of(model).parameters():
        parameter.copy_(torch.eye(*parameter.shape[-2:]) if parameter.dim() > 2 else torch.zeros_like(parameter))
    assert torch.equal(copied(ids).logits, away)
    assert torch.equal(model(ids).logits, expected)  # R = W, b = 0
    with part_of(copied).switched_off():
        assert torch.equal(copied(ids).logits, expected)


@pytest.mark.parametrize("share", ["all", "ends", "none"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_equals_the_formula_written_out(family: str, share: str) -> None:
    base = made(family)
    model = moved(with_loreft(base, share=share, prefix=2))
    found = model(mark(model, IDS, PROMPTS)).logits
    for row, prompt in enumerate(PROMPTS.tolist()):
        expected = by_hand(base, part_of(model), IDS[row].tolist(), prompt)
        assert (found[row] - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_chosen_layers_and_numbers_by_hand() -> None:
    base = made("llama")  # d = 32
    model = with_loreft(base, layers=[-1], share="none")
    assert part_of(model).layers == ["model.layers.1"]
    sizes = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    assert sum(sizes.values()) == 3 * (2 * 3 * 32 + 3)  # positions of their own, r = 3
    assert all(name.startswith("posttrain_added.subspaces.0.") for name in sizes)
    model(mark(model, IDS, PROMPTS)).logits.square().sum().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == set(sizes)
    with pytest.raises(PosttrainError, match=r"there is no layer 2, -3; the model has layers 0 to 1"):
        with_loreft(base, layers=[2, 0, -3])
    with pytest.raises(PosttrainError, match="no layer is chosen"):
        with_loreft(base, layers=[])
    with pytest.raises(PosttrainError, match="33, and the hidden states have 32 numbers"):
        with_loreft(base, rank=33)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_without_weights_can_be_counted(family: str) -> None:
    with torch.device("meta"):
        empty: Any = transformers.AutoModelForCausalLM.from_config(config(family))
    attach(empty, Loreft(empty, SETTINGS))
    assert count_moved(empty) == count_moved(with_loreft(made(family)))


def test_drawn_from_its_seed_and_the_random_state_stays() -> None:
    state = torch.get_rng_state()
    first, again, other = (part_of(with_loreft(made("llama"), seed=s)).to_save() for s in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.allclose(first["subspaces.0.frame"], other["subspaces.0.frame"])
    assert not torch.allclose(first["subspaces.0.frame"], first["subspaces.1.frame"])


@torch.no_grad()
def test_computes_in_float32_whatever_the_states_are() -> None:
    model = moved(with_loreft(made("llama").bfloat16()))
    own: Any = part_of(model).subspaces[0]
    assert own.frame.dtype == torch.float32
    assert model(mark(model, IDS, PROMPTS)).logits.dtype == torch.bfloat16
    low = with_loreft(made("llama")).bfloat16()  # parameters too: a frame is made orthonormal in float32
    assert part_of(low).subspaces[0].rotation().dtype == torch.float32  # type: ignore[operator]
    assert low(mark(low, IDS, PROMPTS)).logits.dtype == torch.bfloat16
    exact = moved(with_loreft(made("llama")))
    own = part_of(exact).subspaces[0]
    states = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []
    hook = exact.model.layers[1].register_forward_pre_hook(lambda _, args: seen.append(own(states)))
    with torch.autocast("cpu", torch.bfloat16):
        exact(mark(exact, IDS, PROMPTS))
    exact(mark(exact, IDS, PROMPTS))
    hook.remove()
    assert torch.equal(seen[0], seen[1])


def test_gradients_are_the_same_when_activations_are_recomputed() -> None:
    """Two forward passes with other prompts before the backward pass."""

    def gradient(recomputed: bool) -> dict[str, Tensor]:
        model = moved(with_loreft(made("llama"))).train()
        if recomputed:
            model.activation_checkpointing_enable()
        one = model(mark(model, IDS, PROMPTS)).logits.log_softmax(-1)[..., 7].sum()
        (one - model(mark(model, IDS[:1, :4], PROMPTS[:1] - 3)).logits.square().sum()).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, again = gradient(False), gradient(True)
    assert len(plain) == 2 * 3
    for name, expected in plain.items():
        assert expected.abs().max() > 0
        assert torch.allclose(again[name], expected, rtol=1e-4, atol=1e-5), name


def test_a_layer_that_is_recomputed_outside_of_a_pass_is_an_error() -> None:
    model = moved(with_loreft(made("llama")))
    model(mark(model, IDS, PROMPTS))
    with pytest.raises(PosttrainError, match="runs outside of a forward pass of the model"):
        model.model.layers[0](torch.zeros(1, 2, 32), position_embeddings=(torch.ones(1, 2, 8), torch.zeros(1, 2, 8)))


@torch.no_grad()
def test_later_layers_and_other_hooks_see_the_changed_states() -> None:
    base = made("llama")
    base(IDS, output_hidden_states=True)  # transformers installs its own hooks at the first request
    model = moved(with_loreft(base, layers=[0]))
    found = model(mark(model, IDS, PROMPTS), output_hidden_states=True).hidden_states
    plain = base(IDS, output_hidden_states=True).hidden_states
    assert torch.equal(found[0], plain[0])
    differ = (found[1] != plain[1]).any(-1)
    assert differ.tolist() == [[group_at(part_of(model), i, n) is not None for i in range(9)] for n in (5, 7)]


@pytest.mark.parametrize("family", ["llama", "bert"])
@torch.no_grad()
def test_there_and_back(family: str, tmp_path: Path) -> None:
    base = encoder("bert") if family == "bert" else made(family)
    model = moved(with_loreft(base, share="none", layers=[-2]))
    ids = IDS if family == "bert" else mark(model, IDS, PROMPTS)
    save_added(model, tmp_path)
    noted = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert noted["posttrain_tuner"] == "loreft"
    again: Any = load_added(copy.deepcopy(base), tmp_path, noted)
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert not any(p.requires_grad for p in again.parameters())
    with pytest.raises(PosttrainError, match=r"frame is \(3, 3, 32\), the model's \(3, 4, 32\)"):
        load_added(copy.deepcopy(base), tmp_path, noted | {"settings": noted["settings"] | {"rank": 4}})
    with pytest.raises(PosttrainError, match="its settings lack 'prefix'"):
        load_added(copy.deepcopy(base), tmp_path, noted | {"settings": {"rank": 3}})
    with pytest.raises(PosttrainError, match="a loreft adapter cannot be merged into its base"):
        merged_added(again)


def test_what_takes_no_loreft_says_why() -> None:
    with pytest.raises(PosttrainError, match="its encoder and its decoder have layers"):
        with_loreft(made("t5"))
    small: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64}
    reformed = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**small, num_hidden_layers=2, num_attention_heads=4)
    )

    class Flat(nn.Module):
        """A layer that hands states on without rows, or takes them so."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, states: Tensor, **given: Any) -> Tensor:
            flat = states.dim() == 2
            out: Tensor = self.inner(states[None] if flat else states, **given)
            return out if flat else out[0]

    reformed.model.layers[0] = Flat(reformed.model.layers[0])
    reformed.model.layers[1] = Flat(reformed.model.layers[1])
    with pytest.raises(PosttrainError, match=r"but \(2, 32\), \(1, 2, 32\) for two tokens"):
        with_loreft(reformed)
