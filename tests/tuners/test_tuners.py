"""Which parameters move, how many, and that the rest stays where it is."""

from __future__ import annotations

import pytest
import torch

from posttrain.errors import ConfigError
from posttrain.training.run import train
from posttrain.tuners._moved import Moved, count_moved
from posttrain.tuners.full import FullConfig, full
from posttrain.tuners.lora import LoraConfig, lora
from tests.training.tiny import PicoPath, Remembers, config, load, rows, weights

LINEAR = 2 * 7  # q, k, v, o, gate, up, down in two layers


def test_full_moves_everything_in_float32(pico_path: PicoPath) -> None:
    model = load(pico_path).model.bfloat16().requires_grad_(False)
    tuned = full(model, FullConfig())
    assert tuned is model
    assert all(p.requires_grad and p.dtype == torch.float32 for p in tuned.parameters())
    moved = count_moved(tuned)
    assert moved.trainable == moved.total == model.num_parameters()


def test_lora_parameters_by_hand(pico_path: PicoPath) -> None:
    model = load(pico_path).model
    before = model.num_parameters()
    tuned = lora(model, LoraConfig(rank=4))
    # hidden 32, key and value 16, intermediate 64: r x (in + out) for q, o: 64; k, v: 48; gate, up, down: 96
    by_hand = 2 * 4 * (2 * 64 + 2 * 48 + 3 * 96)
    assert count_moved(tuned) == Moved(by_hand, before + by_hand)
    scales = {m.scaling["default"] for m in tuned.modules() if type(m).__module__.endswith("lora.layer") and m.scaling}
    assert scales == {2.0}  # alpha is twice the rank


def test_scaling(pico_path: PicoPath) -> None:
    def scaling(settings: LoraConfig) -> float:
        tuned = lora(load(pico_path).model, settings)
        return float(tuned.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"])

    assert scaling(LoraConfig(rank=4, alpha=2)) == 0.5
    assert scaling(LoraConfig(rank=4, alpha=2, use_rslora=True)) == 1.0  # 2 / sqrt(4)


def test_lora_starts_as_the_model_it_is_put_into(pico_path: PicoPath) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        plain = load(pico_path).model(ids).logits
        tuned = lora(load(pico_path).model, LoraConfig())(ids).logits
    assert torch.equal(plain, tuned)


def test_lora_seed_decides_and_the_global_one_is_left_alone(pico_path: PicoPath) -> None:
    state = torch.get_rng_state()
    first, again, other = (lora(load(pico_path).model, LoraConfig(seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    one, two, three = (weights(m) for m in (first, again, other))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert any(not torch.equal(one[k], three[k]) for k in one)


def test_unknown_layers_are_named_with_those_there_are(pico_path: PicoPath) -> None:
    with pytest.raises(ConfigError, match=r"query_key_value.*linear layers here: .*q_proj"):
        lora(load(pico_path).model, LoraConfig(target_modules=["query_key_value"]))


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_training_says_what_moves_and_moves_that_only(pico_path: PicoPath, kind: str) -> None:
    loaded, remembers = load(pico_path), Remembers()
    before = weights(loaded.model)
    result = train(config(tuner=kind, optimizer={"max_steps": 2}), loaded=loaded, rows=rows(4), progress=remembers)
    after = {
        k.removeprefix("base_model.model.").replace(".base_layer", ""): v for k, v in weights(result.model).items()
    }
    still = [k for k in before if torch.equal(before[k], after[k])]
    assert still == ([] if kind == "full" else list(before))
    assert len([k for k in after if k not in before]) == (0 if kind == "full" else 2 * LINEAR)
    share = f"{result.moved.trainable:,} of {result.moved.total:,} parameters move"
    assert any(share in line for line in remembers.said)


def test_dropout_is_on_from_the_first_step(pico_path: PicoPath) -> None:
    """A new LoRA layer in a model at rest must not leave it at rest."""

    def first_loss(kind: str) -> float:
        chosen = config(tuner=kind, optimizer={"max_steps": 1})
        return float(train(chosen, loaded=load(pico_path, "gpt2"), rows=rows(4)).history[0]["loss_nats"])

    quiet = load(pico_path, "gpt2").model
    one = rows(4)
    counts = [sum(label != -100 for label in r.labels) for r in one]
    with torch.no_grad():
        means = [quiet(torch.tensor([r.input_ids]), labels=torch.tensor([r.labels])).loss.item() for r in one]
    at_rest = sum(mean * n for mean, n in zip(means, counts, strict=True)) / sum(counts)
    assert first_loss("lora") == first_loss("full") != pytest.approx(at_rest, abs=1e-4)
