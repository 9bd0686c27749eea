"""Heads: the rest of the model is the base's, what is saved comes back, what is not there is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from posttrain.errors import PosttrainError
from posttrain.models.heads import load_any, load_head_model
from posttrain.models.load import load_model
from posttrain.models.notes import Head, head_modules, head_of_model, saved_head
from posttrain.models.save import save_model
from tests.pico import FAMILIES, pico_encoder

PicoPath = Callable[[str], Path]
HEADS: tuple[Head, ...] = ("sequence", "token", "answer")
LACKING = {("gemma3", "token"), ("gemma3", "answer"), ("glm", "answer")}
"""What transformers 5.23 has no class for."""
IDS = torch.tensor([[11, 12, 13, 14]])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_encoder(tmp_path_factory.mktemp("encoder"))


def load(folder: Path, head: Head, labels: tuple[str, ...] = ("a", "b", "c"), **options: Any) -> Any:
    options = {"say": lambda _: None, "device": "cpu", **options}
    return load_head_model(str(folder), head, None if head == "answer" else labels, **options)


def outputs(model: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        found = model(input_ids=IDS)
    return [v for k, v in found.items() if k.endswith("logits")]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_backbone_is_the_bases(pico_path: PicoPath, family: str, head: Head) -> None:
    if (family, head) in LACKING:
        with pytest.raises(PosttrainError, match=f"has no {family}.* model with a head for"):
            load(pico_path(family), head)
        return
    base = load_model(str(pico_path(family)), device="cpu").model
    model = load(pico_path(family), head).model
    with torch.no_grad():
        assert torch.equal(model.base_model(IDS).last_hidden_state, base.base_model(IDS).last_hidden_state)
    expected = {} if head == "answer" else {0: "a", 1: "b", 2: "c"}
    assert not expected or model.config.id2label == expected
    assert not model.training


def test_a_checkpoint_of_an_encoder_has_no_pooler(encoder: Path) -> None:
    base = transformers.BertModel.from_pretrained(encoder, add_pooling_layer=False).eval()
    said: list[str] = []
    model = load(encoder, "sequence", say=said.append).model
    with torch.no_grad():
        ours, theirs = model.base_model(IDS).last_hidden_state, base(IDS).last_hidden_state
    assert torch.equal(ours, theirs)
    assert head_modules(model) == ("classifier", "bert.pooler")
    assert said == ["new head for classes of texts (random, seed 0; classifier, bert.pooler): a, b, c"]
    assert head_modules(load(encoder, "token").model) == ("classifier",)


def test_a_new_head_is_drawn_from_the_seed(pico_path: PicoPath, encoder: Path) -> None:
    for folder in (pico_path("llama"), encoder):
        state = torch.random.get_rng_state()
        one, same, other = (outputs(load(folder, "sequence", seed=seed).model)[0] for seed in (1, 1, 2))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
        assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("head", HEADS)
def test_a_saved_folder_comes_back(pico_path: PicoPath, encoder: Path, tmp_path: Path, head: Head) -> None:
    for i, folder in enumerate((pico_path("llama"), pico_path("gpt2"), encoder)):
        loaded = load(folder, head, seed=3, settings={"max_length": 77})
        saved = tmp_path / str(i)
        save_model(loaded.model, loaded.tokenizer, saved)
        notes = saved_head(str(saved))
        assert notes == head_of_model(loaded.model)
        assert notes is not None
        assert (notes.head, notes.settings) == (head, {"max_length": 77})
        said: list[str] = []
        again = load_any(str(saved), device="cpu", say=said.append)
        assert said == []  # nothing is new
        for a, b in zip(outputs(loaded.model), outputs(again.model), strict=True):
            assert torch.equal(a, b)


def test_other_labels_make_a_new_head(pico_path: PicoPath, tmp_path: Path) -> None:
    loaded = load(pico_path("llama"), "sequence")
    save_model(loaded.model, loaded.tokenizer, tmp_path / "saved")
    said: list[str] = []
    again = load(tmp_path / "saved", "sequence", ("c", "a", "b"), say=said.append)  # the same ones: the folder's order
    assert list(again.model.config.id2label.values()) == ["a", "b", "c"]
    assert said == []
    other = load(tmp_path / "saved", "sequence", ("a", "b"), say=said.append)
    assert list(other.model.config.id2label.values()) == ["a", "b"]
    assert len(said) == 1
    assert load(tmp_path / "saved", "token", say=said.append).model.config.id2label[2] == "c"
    assert len(said) == 2


def test_missing_tensors_are_an_error(pico_path: PicoPath, encoder: Path, tmp_path: Path) -> None:
    for folder, drop in ((pico_path("llama"), "score.weight"), (encoder, "bert.pooler.dense.bias")):
        loaded = load(folder, "sequence")
        saved = tmp_path / folder.name
        save_model(loaded.model, loaded.tokenizer, saved)
        tensors = load_file(saved / "model.safetensors")
        del tensors[drop]
        save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(PosttrainError, match=f"lack 1 of the model's tensors \\(such as {drop}\\)"):
            load_any(str(saved), device="cpu")


def test_a_base_with_missing_tensors_is_an_error(pico_path: PicoPath, tmp_path: Path) -> None:
    loaded = load_model(str(pico_path("qwen3")), device="cpu")
    save_model(loaded.model, loaded.tokenizer, tmp_path / "base")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PosttrainError, match=r"lack 1 .* \(such as transformer.layers.1.mlp.up_proj.weight\)"):
        load(tmp_path / "base", "answer")


def test_somebody_elses_head_is_read(encoder: Path, tmp_path: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(
        encoder, id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1}
    )
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "theirs")
    load(encoder, "token").tokenizer.save_pretrained(tmp_path / "theirs")
    notes = saved_head(str(tmp_path / "theirs"))
    assert notes is not None
    assert (notes.head, notes.labels) == ("sequence", ("no", "yes"))
    loaded = load_any(str(tmp_path / "theirs"), device="cpu")
    assert head_modules(loaded.model) == ("classifier",)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "theirs").eval()
    assert torch.equal(outputs(loaded.model)[0], outputs(theirs)[0])


def test_no_language_model(pico_path: PicoPath, encoder: Path, tmp_path: Path) -> None:
    loaded = load(pico_path("llama"), "sequence")
    save_model(loaded.model, loaded.tokenizer, tmp_path / "saved")
    with pytest.raises(PosttrainError, match="has a head for classes of texts and no language-model head"):
        load_model(str(tmp_path / "saved"), device="cpu")
    with pytest.raises(PosttrainError, match="bert is an encoder: it reads in both directions"):
        load_model(str(encoder), device="cpu")
    assert saved_head(str(pico_path("llama"))) is None
    with pytest.raises(PosttrainError, match="has no head for classes of texts, so no labels; name the labels"):
        load_head_model(str(pico_path("llama")), "sequence", device="cpu")


def test_a_classifier_finds_where_rows_end(pico_path: PicoPath, tmp_path: Path) -> None:
    """Padded or not, a row has the same scores: also where the padding token is the end token, and rows end with it."""
    folder = tmp_path / "eos"
    loaded = load_model(str(pico_path("llama")), device="cpu")
    loaded.tokenizer.pad_token = loaded.tokenizer.eos_token
    save_model(loaded.model, loaded.tokenizer, folder)
    model = load(folder, "sequence").model
    end = loaded.tokenizer.eos_token_id
    assert model.config.pad_token_id == end
    for row in ([11, 12, 13], [11, 12, end], [11, end, 13]):
        padded = torch.tensor([[*row, end, end], [21, 22, 23, 24, 25]])
        mask = torch.tensor([[1, 1, 1, 0, 0], [1] * 5])
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([row])).logits[0]
            beside = model(input_ids=padded, attention_mask=mask).logits[0]
            hidden = model.base_model(torch.tensor([row])).last_hidden_state[0]
        assert torch.allclose(alone, beside, atol=1e-6)
        last = max(i for i, token in enumerate(row) if token != end)
        assert torch.allclose(alone, model.score(hidden[last]), atol=1e-6)


def test_an_adapter_brings_its_head(pico_path: PicoPath, encoder: Path, tmp_path: Path) -> None:
    from posttrain.tuners.lora import LoraConfig, lora

    for i, folder in enumerate((pico_path("llama"), encoder)):
        loaded = load(folder, "sequence", seed=5)
        tuned = lora(loaded.model, LoraConfig(rank=2))
        moving = {n for n, p in tuned.named_parameters() if p.requires_grad}
        for module in head_modules(loaded.model):
            assert any(f"{module}.modules_to_save" in name for name in moving), (module, moving)
        with torch.no_grad():
            for parameter in tuned.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1)
        tuned.eval()
        saved = tmp_path / str(i)
        save_model(tuned, loaded.tokenizer, saved)
        assert saved_head(str(saved)) == head_of_model(loaded.model)
        for merged in (False, True):
            again = load_any(str(saved), device="cpu", adapter_merged=merged, say=pytest.fail)
            assert torch.allclose(outputs(tuned)[0], outputs(again.model)[0], atol=1e-6)
        with pytest.raises(PosttrainError, match="no language-model head"):
            load_model(str(saved), device="cpu")
        tensors = load_file(saved / "adapter_model.safetensors")
        save_file({k: v for k, v in tensors.items() if "lora" in k}, saved / "adapter_model.safetensors")
        with pytest.raises(PosttrainError, match="lacks the head"):
            load_any(str(saved), device="cpu")


def test_notes_are_plain_json(pico_path: PicoPath, tmp_path: Path) -> None:
    loaded = load(pico_path("llama"), "token")
    save_model(loaded.model, loaded.tokenizer, tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8"))
    assert config["posttrain_head"] == {
        "head": "token", "labels": ["a", "b", "c"], "settings": {}, "modules": ["score"], "seed": 0
    }  # fmt: skip
    assert transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "saved").config.num_labels == 3


def test_positions_that_begin_after_the_paddings(tmp_path: Path) -> None:
    """A RoBERTa of 20 positions has 18 for tokens; one more is an index error in the middle of a run."""
    from posttrain.inference.decode import context_limit

    config = transformers.RobertaConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=20, pad_token_id=1,
    )  # fmt: skip
    model = transformers.RobertaForSequenceClassification(config).eval()
    assert context_limit(model) == 18
    assert model(input_ids=torch.full((1, 18), 5)).logits.isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, 19), 5))
