"""LoRA's options, (IA)3 and virtual tokens against PEFT, arithmetic by hand, and plain forward passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

from posttrain.config.load import check
from posttrain.data.chat import Encoded
from posttrain.errors import ConfigError, PosttrainError, TrainingError
from posttrain.inference.decode import decode
from posttrain.inference.one_length import way_of
from posttrain.models.adapters import TRAINING_STATE, set_peft_state, virtual_columns, virtual_positions
from posttrain.models.load import load_model
from posttrain.models.save import save_model
from posttrain.studies.train_config import TrainMethodConfig
from posttrain.training.config import TrainConfig
from posttrain.training.rows import longest_row
from posttrain.training.run import train
from posttrain.tuners._moved import Moved, count_moved
from posttrain.tuners.ia3 import Ia3Config, ia3
from posttrain.tuners.lora import LoraConfig, lora
from posttrain.tuners.p_tuning import PTuningConfig, p_tuning
from posttrain.tuners.prefix_tuning import PrefixConfig, prefix_tuning
from posttrain.tuners.prompt_tuning import PromptConfig, prompt_tuning
from tests.pico import FAMILIES, POSITIONS
from tests.training.tiny import PicoPath, config, load, rows

IDS = torch.tensor([[40, 41, 42, 43, 44]])
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=ids).logits
    return found


def shake(model: Any, size: float = 0.1) -> None:
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(size * torch.randn(p.shape, generator=draw))


# ---- lora ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_pissa_begins_as_the_model_and_is_saved_for_its_untouched_base(
    pico_path: PicoPath, tmp_path: Path, family: str, rslora: bool
) -> None:
    loaded = load(pico_path, family)
    before = logits(loaded.model)
    tuned = lora(loaded.model, LoraConfig(rank=4, init="pissa", use_rslora=rslora))
    torch.testing.assert_close(logits(tuned), before, atol=1e-6, rtol=0)
    shake(tuned)
    save_model(tuned, loaded.tokenizer, tmp_path / "saved")
    again = load_model(str(tmp_path / "saved"), device="cpu").model
    assert (logits(tuned) - before).abs().max() > 1e-2
    torch.testing.assert_close(logits(again), logits(tuned), atol=1e-6, rtol=0)
    with again.disable_adapter():
        assert torch.equal(logits(again), before)
    assert json.loads((tmp_path / "saved" / "adapter_config.json").read_text())["r"] == 8
    torch.testing.assert_close(logits(again.merge_and_unload()), logits(tuned), atol=2e-6, rtol=0)


def test_pissa_takes_the_largest_directions(pico_path: PicoPath) -> None:
    weight = load(pico_path).model.model.layers[0].mlp.up_proj.weight.detach().clone()
    tuned = lora(load(pico_path).model, LoraConfig(rank=4, alpha=4, init="pissa"))
    layer = tuned.base_model.model.model.layers[0].mlp.up_proj
    u, s, vh = torch.linalg.svd(weight)
    best = u[:, :4] * s[:4] @ vh[:4]
    torch.testing.assert_close(layer.lora_B["default"].weight @ layer.lora_A["default"].weight, best, atol=1e-5, rtol=0)
    torch.testing.assert_close(layer.base_layer.weight, weight - best, atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match="has 16 singular directions, PiSSA wants 24"):
        lora(load(pico_path).model, LoraConfig(rank=24, init="pissa"))


@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["q_proj", "embed_tokens"], ".*(q_proj|lm_head)"])
def test_pissa_leaves_a_matrix_alone_that_the_embeddings_have(pico_path: PicoPath, targets: Any) -> None:
    """It writes into the matrix: training would begin from another model."""
    with pytest.raises(ConfigError, match=r"tuner.init: PiSSA takes .*(lm_head|embed_tokens) is that of the emb"):
        lora(load(pico_path).model, LoraConfig(rank=4, init="pissa", target_modules=targets))


def test_pissa_on_a_head_of_its_own(pico_path: PicoPath, tmp_path: Path) -> None:
    loaded = load(pico_path, "qwen3")
    before = logits(loaded.model)
    tuned = lora(loaded.model, LoraConfig(rank=4, init="pissa", target_modules=["q_proj", "lm_head"]))
    torch.testing.assert_close(logits(tuned), before, atol=3e-6, rtol=0)
    shake(tuned)
    save_model(tuned, loaded.tokenizer, tmp_path / "saved")
    again = load_model(str(tmp_path / "saved"), device="cpu", adapter_merged=True).model
    torch.testing.assert_close(logits(again), logits(tuned), atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match="embed_tokens is that of the embeddings"):
        lora(load(pico_path, "qwen3").model, LoraConfig(rank=4, init="pissa", target_modules=["embed_tokens"]))


def test_dora_is_pefts(pico_path: PicoPath) -> None:
    ours = lora(load(pico_path).model, LoraConfig(rank=4, dora=True, target_modules=["q_proj"]))
    shape = peft.LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=["q_proj"], task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(load(pico_path).model, shape)
    assert count_moved(ours).trainable == theirs.get_nb_trainable_parameters()[0] == 2 * (4 * 64 + 32)
    with pytest.raises(ConfigError, match="dora begins with init: default"):
        check({"dora": True, "init": "pissa"}, LoraConfig, "tuner")
    with pytest.raises(ConfigError, match="one of default, pissa"):
        check({"init": "olora"}, LoraConfig, "tuner")


@pytest.mark.parametrize(("layers", "targets", "wanted"), [
    ([-1], "all-linear", {f"1.{n}" for n in ("q", "k", "v", "o", "gate", "up", "down")}),
    ([0], ["q_proj", "mlp.up_proj"], {"0.q", "0.up"}),
    ([0, 1], ".*v_proj", {"0.v", "1.v"}),
])  # fmt: skip
def test_layers(pico_path: PicoPath, layers: list[int], targets: Any, wanted: set[str]) -> None:
    tuned = lora(load(pico_path).model, LoraConfig(rank=2, layers=layers, target_modules=targets))
    found = {n.split(".layers.")[1] for n, p in tuned.named_parameters() if p.requires_grad}
    assert {f"{n[0]}.{n.split('.')[2].removesuffix('_proj')}" for n in found} == wanted


def test_layers_that_are_not_there(pico_path: PicoPath) -> None:
    with pytest.raises(ConfigError, match="there is no layer 2, -3; the model has layers 0 to 1"):
        lora(load(pico_path).model, LoraConfig(layers=[2, 0, -3]))
    with pytest.raises(ConfigError, match=r"no target module is in layers \[0\]"):
        lora(load(pico_path).model, LoraConfig(layers=[0], target_modules=["qq_proj"]))


def test_modules_saved_whole(pico_path: PicoPath, tmp_path: Path) -> None:
    loaded = load(pico_path, "qwen3")
    tuned = lora(loaded.model, LoraConfig(rank=2, modules_to_save=["lm_head"]))
    shake(tuned)
    save_model(tuned, loaded.tokenizer, tmp_path / "saved")
    again = load_model(str(tmp_path / "saved"), device="cpu").model
    torch.testing.assert_close(logits(again), logits(tuned), atol=1e-6, rtol=0)


# ---- (IA)3 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_ia3_scales_keys_values_and_the_inner_activations(pico_path: PicoPath, family: str) -> None:
    tuned = ia3(load(pico_path, family).model, Ia3Config())
    names = {n.split(".ia3_l")[0].rpartition(".")[2]: p for n, p in tuned.named_parameters() if p.requires_grad}
    attention = {"c_attn"} if family == "gpt2" else {"k_proj", "v_proj"}
    inner = "c_proj" if family == "gpt2" else "down_proj"
    assert set(names) == {*attention, inner}
    width = 128 if family == "gpt2" else 64
    assert names[inner].shape == (1, width)  # on the input
    by_hand = 2 * (96 + 128) if family == "gpt2" else 2 * (16 + 16 + 64)
    assert count_moved(tuned).trainable == by_hand
    assert torch.equal(logits(tuned), logits(load(pico_path, family).model))


def test_ia3_where_nothing_is_found(pico_path: PicoPath) -> None:
    model = load(pico_path).model
    tuned = ia3(model, Ia3Config(target_modules=["q_proj"], feedforward_modules=[]))
    assert count_moved(tuned).trainable == 2 * 32
    model = load(pico_path).model
    for layer in model.model.layers:
        layer.mlp.narrow = layer.mlp._modules.pop("down_proj")
    with pytest.raises(ConfigError, match=r"the MLP's second matrix are not found.*linear layers here: .*narrow"):
        ia3(model, Ia3Config())
    with pytest.raises(ConfigError, match="together"):
        check({"target_modules": ["q_proj"]}, Ia3Config, "tuner")


# ---- virtual tokens -----------------------------------------------------------------------------------------------------


def made(pico_path: PicoPath, kind: str, family: str = "llama") -> Any:
    model = load(pico_path, family).model
    if kind == "prompt_tuning":
        return prompt_tuning(model, PromptConfig(tokens=4))
    if kind == "p_tuning":
        return p_tuning(model, PTuningConfig(tokens=4))
    return prefix_tuning(model, PrefixConfig(tokens=4))


@pytest.mark.parametrize("family", ["llama", "gemma3", "glm"])
@pytest.mark.parametrize("kind", ["prompt_tuning", "p_tuning", "prefix_tuning"])
def test_the_loss_is_that_of_rows_read_alone(pico_path: PicoPath, kind: str, family: str) -> None:
    """Virtual tokens have outputs of their own, and rows are padded: the first step's loss against log_softmax."""
    data = rows(5)
    settings = {"kind": kind, "tokens": 4}
    chosen = config(tuner=settings, optimizer={"max_steps": 1}, batch={"tokens": 1000})
    told = train(chosen, loaded=load(pico_path, family), rows=data).history[0]["loss_nats"]
    model = made(pico_path, kind, family)

    def nats(row: Encoded) -> float:
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            out = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        table = torch.log_softmax(out[-ids.shape[1] :], -1)
        learned = [t for t, label in enumerate(row.labels) if label != -100]
        return -float(sum(table[t - 1, row.input_ids[t]] for t in learned))

    by_hand = sum(nats(row) for row in data) / sum(label != -100 for row in data for label in row.labels)
    assert told == pytest.approx(by_hand, abs=1e-5)


@pytest.mark.parametrize("kind", ["prompt_tuning", "p_tuning", "prefix_tuning"])
def test_virtual_tokens_take_positions_while_they_are_switched_on(pico_path: PicoPath, kind: str) -> None:
    tuned = made(pico_path, kind)
    columns = 0 if kind == "prefix_tuning" else 4
    assert (virtual_positions(tuned), virtual_columns(tuned)) == (4, columns)
    with tuned.disable_adapter():
        assert (virtual_positions(tuned), virtual_columns(tuned)) == (0, 0)
    chosen = config(tuner={"kind": kind, "tokens": 4}, max_length=4096)
    assert longest_row(chosen, load(pico_path).model) == POSITIONS - 4


def test_parameters_by_hand(pico_path: PicoPath) -> None:
    total = load(pico_path).model.num_parameters()
    assert count_moved(made(pico_path, "prompt_tuning")) == Moved(4 * 32, total + 4 * 32)
    mlp = 4 * 32 + 3 * (32 * 32 + 32)
    assert count_moved(made(pico_path, "p_tuning")) == Moved(mlp, total + mlp)
    prefix = 4 * 2 * 2 * 16  # keys and values of two layers, two heads of eight
    assert count_moved(made(pico_path, "prefix_tuning")) == Moved(prefix, total + prefix)


def test_where_prompts_begin(pico_path: PicoPath) -> None:
    loaded = load(pico_path, "gemma3")  # which multiplies embeddings by sqrt(32)
    table = loaded.model.get_input_embeddings().weight.detach() * 32**0.5

    def start(**settings: Any) -> torch.Tensor:
        tuned = prompt_tuning(load(pico_path, "gemma3").model, PromptConfig(**settings))
        found: torch.Tensor = tuned.prompt_encoder["default"].embedding.weight.detach()
        return found

    text = "The capital of France"
    ids = loaded.tokenizer.encode(text, add_special_tokens=False)
    torch.testing.assert_close(start(tokens=3, init="text", init_text=text), table[ids[:3]])
    repeated = start(tokens=len(ids) + 2, init="text", init_text=text)
    torch.testing.assert_close(repeated, table[[*ids, *ids[:2]]])
    words = start(tokens=8)
    assert all(any(torch.allclose(word, row) for row in table) for word in words)
    assert torch.equal(words, start(tokens=8))
    assert not torch.equal(words, start(tokens=8, seed=1))
    assert start(tokens=64, init="random").std() == pytest.approx(float(table.std()), rel=0.1)
    with pytest.raises(ConfigError, match="belong together"):
        check({"init": "text"}, PromptConfig, "tuner")
    with pytest.raises(ConfigError, match="belong together"):
        check({"init_text": "hello"}, PromptConfig, "tuner")


def test_training_goes_on_from_the_network_not_from_what_it_made(pico_path: PicoPath, tmp_path: Path) -> None:
    loaded = load(pico_path)
    tuned = p_tuning(loaded.model, PTuningConfig(tokens=4))
    save_model(tuned, loaded.tokenizer, tmp_path / "saved")
    assert set(load_file(tmp_path / "saved" / "adapter_model.safetensors")) == {"prompt_embeddings"}
    other = p_tuning(load(pico_path).model, PTuningConfig(tokens=4, seed=7))
    assert not torch.equal(logits(other), logits(tuned))
    set_peft_state(other, tmp_path / "saved")
    assert torch.equal(logits(other), logits(tuned))
    (tmp_path / "saved" / TRAINING_STATE).unlink()
    with pytest.raises(TrainingError, match="holds what its parameters lead to"):
        set_peft_state(other, tmp_path / "saved")
    with pytest.raises(TrainingError, match="not this adapter's weights"):
        set_peft_state(made(pico_path, "prefix_tuning"), tmp_path / "saved")


@pytest.mark.parametrize(("whole", "where"), [({"model": "m"}, TrainConfig), ({"kind": "train"}, TrainMethodConfig)])
def test_a_prefix_is_not_recomputed(whole: dict[str, Any], where: Any) -> None:
    settings = {**whole, "tuner": "prefix_tuning", "batch": {"activation_checkpointing": True}}
    with pytest.raises(ConfigError, match="recomputes layers without the cache that holds a prefix"):
        check(settings, where, "t.yaml")


@pytest.mark.parametrize("kind", ["prompt_tuning", "lora", "freeze"])
def test_activation_checkpointing_changes_nothing(pico_path: PicoPath, kind: str) -> None:
    def losses(on: bool) -> list[float]:
        chosen = config(tuner=kind, optimizer={"max_steps": 3, "learning_rate": 1e-2},
                        batch={"activation_checkpointing": on})  # fmt: skip
        return [e["loss_nats"] for e in train(chosen, loaded=load(pico_path), rows=rows(4)).history]

    assert losses(True) == pytest.approx(losses(False), abs=1e-5)
    assert len(set(losses(False))) == 3


# ---- another base -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lora", "prompt_tuning", "adapter"])
def test_an_adapter_for_another_base_is_refused(pico_path: PicoPath, tmp_path: Path, kind: str) -> None:
    loaded = load(pico_path)
    train(config(tuner=kind, optimizer={"max_steps": 1}), loaded=loaded, rows=rows(2), output=tmp_path / "run")
    folder = tmp_path / "run" / "model"
    load_model(str(folder), device="cpu")
    other = load(pico_path)
    with torch.no_grad():  # same shapes, one matrix a little different
        other.model.model.layers[0].mlp.up_proj.weight.mul_(1.02)
    save_model(other.model, other.tokenizer, tmp_path / "other")
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(tmp_path / "other")
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(PosttrainError, match=r"trained on another base than '.*/other'.*fingerprint"):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize("other", ["qwen3", "gpt2"])
def test_an_adapter_whose_layers_are_not_there(pico_path: PicoPath, tmp_path: Path, other: str) -> None:
    """Made without posttrain, so that no fingerprint is noted: PEFT would leave what it lacks at random."""
    loaded = load(pico_path)
    shape = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    tuned = peft.get_peft_model(loaded.model, shape)
    tuned.save_pretrained(tmp_path / "saved")
    settings = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(pico_path(other))
    settings["target_modules"] = ["q_proj"] if other == "qwen3" else ["q_proj", "up_proj"]
    (tmp_path / "saved" / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(PosttrainError, match=rf"does not fit its base '.*{other}'"):
        load_model(str(tmp_path / "saved"), device="cpu")


@pytest.mark.filterwarnings("ignore:answers are")
@pytest.mark.parametrize("family", ["llama", "gemma3"])  # whose window is 16
@pytest.mark.parametrize("kind", ["prompt_tuning", "p_tuning", "prefix_tuning"])
def test_answers_go_on_from_a_memory_that_holds_the_virtual_tokens(pico_path: PicoPath, kind: str, family: str) -> None:
    tuned = made(pico_path, kind, family).eval()
    shake(tuned, 0.5)
    assert way_of(tuned).memory == "past_key_values"
    prompts = [list(range(20, 20 + length)) for length in (3, 14, 40, 40)]
    prompts[3][0] = 99
    for prompt, answer in zip(
        prompts, decode(tuned, prompts, stop=frozenset(), pad_id=0, max_new_tokens=6), strict=True
    ):
        ids = list(prompt)
        for _ in range(6):
            ids.append(int(logits(tuned, torch.tensor([ids]))[0, -1].argmax()))
        assert answer.ids == ids[len(prompt) :]
