"""What is wrong with a folder is found and named; a whole one passes every check."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from posttrain.errors import MissingError
from posttrain.models.load import load_model
from posttrain.models.save import save_model
from posttrain.models.verify import Check, verify_model
from posttrain.tuners.lora import LoraConfig, lora
from tests.pico import FAMILIES
from tests.pico_gguf import write_gguf
from tests.training.tiny import PicoPath, load


@pytest.fixture
def saved(pico_path: PicoPath, tmp_path: Path) -> Path:
    """A llama that posttrain has saved."""
    loaded = load(pico_path)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "m")
    return tmp_path / "m"


def found(name: Path | str, **options: Any) -> dict[str, Check]:
    return {check.check: check for check in verify_model(str(name), **options)}


def wrong(name: Path | str, **options: Any) -> dict[str, str]:
    return {key: check.detail for key, check in found(name, **options).items() if check.ok is False}


def test_a_whole_model_passes(saved: Path) -> None:
    checks = found(saved)
    assert {key: check.ok for key, check in checks.items()} == dict.fromkeys(
        ["files", "weights files", "hashes", "numbers", "shapes", "tokenizer", "answers"], True
    )
    count = sum(p.numel() for p in load_model(str(saved), device="cpu").model.parameters())
    assert checks["shapes"].detail == f"{count:,} parameters, as the configuration says"
    assert checks["numbers"].detail == f"{count:,} numbers, all finite"
    assert checks["tokenizer"].detail.startswith("384 tokens for 384 rows; stops at <|end|>")


@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_others_pass(pico_path: PicoPath, family: str) -> None:
    checks = found(pico_path(family))
    assert [key for key, check in checks.items() if check.ok is None] == ["hashes"]  # nobody noted them
    assert not [key for key, check in checks.items() if check.ok is False]


def test_shards(pico_path: PicoPath, tmp_path: Path) -> None:
    loaded = load(pico_path)
    loaded.model.save_pretrained(tmp_path, max_shard_size="50KB")
    loaded.tokenizer.save_pretrained(tmp_path)
    assert not wrong(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    given = json.loads(index.read_text())
    name, shard = next(iter(given["weight_map"].items()))
    other = next(one for one in given["weight_map"].values() if one != shard)
    index.write_text(json.dumps(given | {"weight_map": given["weight_map"] | {name: other}}))
    assert f"1 tensor is not in the file that it names: {name}" in wrong(tmp_path)["weights files"]
    del given["weight_map"][name]
    index.write_text(json.dumps(given))
    assert f"1 tensor of the files is not listed and not loaded: {name}" in wrong(tmp_path)["weights files"]
    (tmp_path / shard).unlink()
    assert f"{shard} is missing" in wrong(tmp_path)["files"]


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None], file: str = "model.safetensors") -> None:
    tensors = load_file(folder / file)
    edit(tensors)
    save_file(tensors, folder / file, {"format": "pt"})


NORM = "model.norm.weight"


def spoil(value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[NORM][3] = value

    return edit


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none(saved: Path, value: float) -> None:
    change(saved, spoil(value))
    faults = wrong(saved)
    assert f"NaN or infinite numbers in {NORM} (model.safetensors)" in faults["numbers"]
    assert "model.safetensors: changed since it was saved" in faults["hashes"]
    assert found(saved)["answers"] == Check("answers", None, "not asked: numbers failed")


def test_one_bit_is_seen(saved: Path) -> None:
    path = saved / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    assert list(wrong(saved)) == ["hashes"]
    shutil.copyfile(saved / "config.json", saved / "config.bak")
    (saved / "tokenizer_config.json").unlink()
    assert "tokenizer_config.json: missing; model.safetensors: changed" in wrong(saved)["hashes"]
    (saved / "README.md").write_text("mine")  # people write on cards
    assert "README" not in wrong(saved)["hashes"]


def test_a_copy_that_was_cut_short(saved: Path) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "bytes long, and" in wrong(saved)["weights files"]


def add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.7.mlp.up_proj.weight"] = torch.ones(2, 2)


def take(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[NORM]


def grow(tensors: dict[str, torch.Tensor]) -> None:
    tensors[NORM] = torch.ones(33)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (add, "1 tensor of the files has no place in the model: model.layers.7.mlp.up_proj.weight"),
        (take, "the files lack 1 of the model's tensors"),
        (grow, "the model cannot be loaded"),
    ],
)
def test_shapes_are_the_configuration_s(
    saved: Path, edit: Callable[[dict[str, torch.Tensor]], None], words: str
) -> None:
    change(saved, edit)
    assert words in wrong(saved)["shapes"]


@pytest.mark.parametrize(
    ("file", "text", "check", "words"),
    [
        ("config.json", "{", "files", "config.json:1: is not valid JSON"),
        ("generation_config.json", '{"a": ' + "[" * 5000, "files", "is not valid JSON"),
        (
            "generation_config.json",
            '{"eos_token_id": 400}',
            "tokenizer",
            "beyond the 384 rows of the embedding: stop 400",
        ),
    ],
)
def test_files_that_are_wrong(saved: Path, file: str, text: str, check: str, words: str) -> None:
    (saved / file).write_text(text, encoding="utf-8")
    assert words in wrong(saved)[check]


@pytest.mark.parametrize(
    ("file", "words"),
    [("config.json", "no config.json"), ("model.safetensors", "no weights"), ("tokenizer.json", "tokenizer.json")],
)
def test_files_that_are_missing(saved: Path, file: str, words: str) -> None:
    (saved / file).unlink()
    assert any(words in detail for detail in wrong(saved).values())


def test_a_token_beyond_the_embedding(saved: Path) -> None:
    loaded = load_model(str(saved), device="cpu")
    loaded.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    loaded.tokenizer.save_pretrained(saved)
    assert "1 token has an id beyond the 384 rows of the embedding: '[PAD]' (384)" in wrong(saved)["tokenizer"]


def test_adapters(saved: Path, pico_path: PicoPath, tmp_path: Path) -> None:
    loaded = load_model(str(saved), device="cpu")
    save_model(lora(loaded.model, LoraConfig(rank=2)), loaded.tokenizer, tmp_path / "a")
    assert not wrong(tmp_path / "a")
    against = found(tmp_path / "a", against=str(saved))["against"]  # an untrained one is its base
    assert against == Check(
        "against",
        True,
        "an adapter beside its base, so tensors are not compared one by one; outputs differ by 0.00% of their spread",
    )
    file = "adapter_model.safetensors"
    name = next(iter(load_file(tmp_path / "a" / file)))

    def lose(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[name]

    change(tmp_path / "a", lose, file)
    assert "the adapter does not fit its base" in wrong(tmp_path / "a")["shapes"]
    shutil.rmtree(saved)
    assert "the adapter's base" in wrong(tmp_path / "a")["shapes"]
    (tmp_path / "a" / file).unlink()
    assert "adapter_model.safetensors is missing" in wrong(tmp_path / "a")["files"]


def test_gguf_files_and_names(pico_path: PicoPath, tmp_path: Path) -> None:
    file = write_gguf(pico_path("llama"), tmp_path / "pico.gguf", kind="Q8_0")
    checks = found(file)
    assert {key: check.ok for key, check in checks.items()} == {"shapes": True, "tokenizer": False, "answers": True}
    # a token that transformers' converter adds of its own, and that the file has no row for
    assert "1 token has an id beyond the 384 rows of the embedding: '<|endoftext|>' (384)" in checks["tokenizer"].detail
    with pytest.raises(MissingError, match="no such model folder"):
        verify_model(str(tmp_path / "nothing"))
    with pytest.raises(MissingError, match="neither a folder here nor in the local hub cache"):
        verify_model("no/such-model")


def test_against_another(saved: Path, pico_path: PicoPath, tmp_path: Path) -> None:
    same = found(saved, against=str(pico_path("llama")))["against"]
    assert same.ok
    assert load_model(str(saved)).model.config.tie_word_embeddings, "or it shows nothing"
    stored = len(load_file(saved / "model.safetensors"))
    assert same.detail.startswith(f"0 of {stored} common tensors differ"), "one that has two names is one of the file"
    loaded = load(pico_path)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "half", dtype=torch.bfloat16)
    half = found(tmp_path / "half", against=str(saved))["against"]
    assert half.ok  # rounding is no other model, and is said
    assert "outputs differ by 0." in half.detail
    rounding = "; up to 5.0% is taken for rounding, as not both are stored in float32, and answers may differ"
    assert half.detail.endswith(rounding)
    assert "rounding" not in same.detail, "nothing differs"
    with torch.no_grad():
        loaded.model.model.norm.weight[0] += 1
    save_model(loaded.model, loaded.tokenizer, tmp_path / "other")
    assert "1 of " in wrong(tmp_path / "other", against=str(saved))["against"]
    assert "it is another model" in wrong(tmp_path / "other", against=str(saved))["against"]
    assert "cannot be compared" not in wrong(saved, against=str(pico_path("gemma3"))).get("against", "")
    loaded.tokenizer.chat_template = None
    save_model(load(pico_path).model, loaded.tokenizer, tmp_path / "untold")
    assert "chat templates render otherwise" in wrong(tmp_path / "untold", against=str(saved))["against"]
