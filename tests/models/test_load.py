from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.data.control import gate_of
from posttrain.errors import MissingError, PosttrainError, TemplateError
from posttrain.models import names
from posttrain.models.load import check_folder, load_model, load_tokenizer, resolve, stop_ids
from posttrain.models.save import save_model
from posttrain.models.vocabulary import stops_of
from tests.pico import CHATML, FAMILIES, pico

PicoPath = Callable[[str], Path]
IDS = torch.tensor([[1, 4, 70, 80, 2, 5]])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS.to(model.device)).logits
    return found.cpu()


@pytest.fixture
def copied(pico_path: PicoPath, tmp_path: Path) -> Path:
    """A llama folder of one's own."""
    return Path(shutil.copytree(pico_path("llama"), tmp_path / "model"))


def lora(base: str, folder: Path) -> Any:
    """Save a random LoRA adapter of a model by name; the adapted model."""
    from peft import LoraConfig, get_peft_model

    loaded = load_model(base, device="cpu")
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(loaded.model, config)
    save_model(adapted, loaded.tokenizer, folder)
    return adapted.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, pico_path: PicoPath) -> None:
    name = str(pico_path(family))
    loaded = load_model(name, device="cpu")
    assert loaded.name == name
    assert not loaded.model.training
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert logits(loaded.model).isfinite().all()
    assert torch.equal(logits(loaded.model), logits(load_model(name, device="cpu").model))
    assert stop_ids(name, loaded.tokenizer) == (2,)


def test_float32_on_cpu_whatever_is_stored(copied: Path) -> None:
    loaded = load_model(str(copied), device="cpu")
    loaded.model.to(torch.bfloat16).save_pretrained(copied)
    assert json.loads((copied / "config.json").read_text())["dtype"] == "bfloat16"
    again = load_model(str(copied), device="cpu").model
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert {p.dtype for p in load_model(str(copied), device="cpu", dtype="bfloat16").model.parameters()} == {
        torch.bfloat16
    }
    with pytest.raises(PosttrainError, match="unknown 'int4'; one of auto"):
        load_model(str(copied), device="cpu", dtype="int4")


def test_shards_and_a_missing_one(copied: Path) -> None:
    model = load_model(str(copied), device="cpu").model
    expected = logits(model)
    (copied / "model.safetensors").unlink()
    model.save_pretrained(copied, max_shard_size="50KB")
    shards = sorted(copied.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert torch.equal(logits(load_model(str(copied), device="cpu").model), expected)
    shards[-1].unlink()
    with pytest.raises(MissingError, match=rf"{shards[-1].name} is missing \(model.safetensors.index.json"):
        load_model(str(copied))


def test_pickled_weights_are_read_without_running_them(copied: Path, tmp_path: Path) -> None:
    model = load_model(str(copied), device="cpu").model
    expected = logits(model)
    (copied / "model.safetensors").unlink()
    torch.save(model.state_dict(), copied / "pytorch_model.bin")
    assert torch.equal(logits(load_model(str(copied), device="cpu").model), expected)

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"lm_head.weight": Bomb()}, copied / "pytorch_model.bin")
    with pytest.raises(PosttrainError, match="cannot be"):
        load_model(str(copied))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("remove", "words"),
    [
        (["model.safetensors"], "no weights: model.safetensors is missing"),
        (["config.json"], "no config.json"),
        (["tokenizer.json", "tokenizer_config.json"], "no tokenizer: tokenizer.json is missing"),
    ],
)
def test_a_file_is_missing(copied: Path, remove: list[str], words: str) -> None:
    for name in remove:
        (copied / name).unlink()
    with pytest.raises(MissingError, match=f"{copied}: {words}") as error:
        load_model(str(copied))
    assert error.value.exit_code == 3


def test_broken_weights(copied: Path) -> None:
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(PosttrainError, match="the files cannot be read"):
        load_model(str(copied))


def test_incomplete_weights_are_not_filled_with_random_ones(copied: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copied / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(PosttrainError, match=r"lack 1 of the model's tensors \(such as model.norm.weight\)"):
        load_model(str(copied))


def test_a_broken_config(copied: Path) -> None:
    (copied / "config.json").write_text('{"model_type": "unheard_of"}')
    with pytest.raises(PosttrainError, match=r"cannot be loaded.*unheard_of"):
        load_model(str(copied))
    (copied / "config.json").write_text("{")
    with pytest.raises(PosttrainError, match="cannot be read"):
        load_model(str(copied))


def test_names(tmp_path: Path, copied: Path) -> None:
    assert resolve("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
    assert resolve(str(copied)) == str(copied)
    with pytest.raises(MissingError, match="no such model in the box; did you mean 'pocket:chat'"):
        resolve("pocket:chart")
    with pytest.raises(MissingError, match="known: pocket:base, pocket:chat"):
        resolve("pocket:xyzzy")
    with pytest.raises(MissingError, match=rf"no such model folder; did you mean '{copied}'"):
        resolve(str(tmp_path / "modell"))
    with pytest.raises(MissingError, match="is a file, a model is a folder"):
        resolve(str(copied / "config.json"))
    with pytest.raises(MissingError, match="no such model folder"):
        resolve("./nothing/here")


def test_hub_models_are_not_fetched_unasked() -> None:
    for load in (load_model, load_tokenizer):
        with pytest.raises(MissingError, match="--download allows fetching"):
            load("posttrain-tests/there-is-none")


def test_pocket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pico_path: PicoPath) -> None:
    monkeypatch.setattr(names, "_HERE", tmp_path)
    with pytest.raises(MissingError, match=r"pocket:base: .*has no weights; install the package again"):
        resolve("pocket:base")
    shutil.copytree(pico_path("llama"), tmp_path / "chat")
    assert resolve("pocket:chat") == str(tmp_path / "chat")
    loaded = load_model("pocket:chat", device="cpu")
    assert loaded.name == "pocket:chat"
    assert loaded.model.name_or_path == "pocket:chat"


def test_adapters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pico_path: PicoPath) -> None:
    monkeypatch.setattr(names, "_HERE", tmp_path / "box")
    shutil.copytree(pico_path("llama"), tmp_path / "box/chat")
    adapted = lora("pocket:chat", tmp_path / "adapter")
    assert (
        json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == "pocket:chat"
    )
    shutil.move(tmp_path / "adapter", tmp_path / "elsewhere")
    loaded = load_model(str(tmp_path / "elsewhere"), device="cpu")
    assert torch.equal(logits(loaded.model), logits(adapted))
    assert not torch.allclose(logits(loaded.model), logits(load_model("pocket:chat", device="cpu").model))
    merged = load_model(str(tmp_path / "elsewhere"), device="cpu", adapter_merged=True).model
    assert type(merged).__name__ == "LlamaForCausalLM"
    torch.testing.assert_close(logits(merged), logits(adapted), atol=1e-5, rtol=1e-5)
    assert stop_ids(str(tmp_path / "elsewhere"), loaded.tokenizer) == (2,)


def test_an_adapter_without_its_base(tmp_path: Path, copied: Path) -> None:
    lora(str(copied), tmp_path / "adapter")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "adapter" / file).unlink()
    assert load_model(str(tmp_path / "adapter"), device="cpu").tokenizer.chat_template  # the base's tokenizer
    shutil.rmtree(copied)
    with pytest.raises(
        MissingError, match=r"adapter_config.json: the adapter's base '.*model' is missing.*\n.*no such"
    ):
        load_model(str(tmp_path / "adapter"), device="cpu")
    (tmp_path / "adapter/adapter_model.safetensors").unlink()
    with pytest.raises(MissingError, match=r"adapter_model.safetensors is missing"):
        load_model(str(tmp_path / "adapter"), device="cpu")


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "does not name"), ("{}", "does not name"), ('{"base_model_name_or_path": null}', "is empty")],
)
def test_a_broken_adapter_config(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(MissingError, match=words):
        load_model(str(tmp_path))


def test_an_adapter_that_is_its_own_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(MissingError, match="base is itself"):
        load_model(str(tmp_path))


def test_an_adapter_of_another_model(tmp_path: Path, copied: Path, pico_path: PicoPath) -> None:
    lora(str(copied), tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(pico_path("gpt2"))}))
    with pytest.raises(PosttrainError, match="the adapter does not fit its base"):
        load_model(str(tmp_path / "adapter"), device="cpu")


def test_a_pad_token_is_set_in_memory(copied: Path) -> None:
    path = copied / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["pad_token"]
    path.write_text(json.dumps(config))
    loaded = load_model(str(copied), device="cpu")
    assert loaded.tokenizer.pad_token_id == loaded.model.config.pad_token_id == 2
    assert "pad_token" not in json.loads(path.read_text())


def test_a_template_mismatch_is_refused_unless_told(copied: Path, tmp_path: Path) -> None:
    loaded = load_model(str(copied), device="cpu")
    save_model(loaded.model, loaded.tokenizer, tmp_path / "saved")
    load_model(str(tmp_path / "saved"), device="cpu")
    (tmp_path / "saved/chat_template.jinja").write_text(CHATML)
    with pytest.raises(TemplateError, match=r"trained with the chat template .*--allow-template-mismatch"):
        load_model(str(tmp_path / "saved"), device="cpu")
    assert (
        load_model(str(tmp_path / "saved"), device="cpu", allow_template_mismatch=True).tokenizer.chat_template
        == CHATML
    )


def test_stop_ids_come_from_the_generation_config(copied: Path) -> None:
    tokenizer = load_tokenizer(str(copied))
    (copied / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 4]}))
    assert stop_ids(str(copied), tokenizer) == (2, 4)
    (copied / "generation_config.json").write_text("{}")
    assert stop_ids(str(copied), tokenizer) == (2,)  # config.json
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "eos_token_id": None}))
    assert stop_ids(str(copied), tokenizer) == (2,)  # the tokenizer's


def test_a_tokenizer_knows_where_its_model_stops(copied: Path) -> None:
    """An added token that is not special, at which generation stops, is a control token like others."""
    assert stops_of(load_tokenizer(str(copied))) == set()
    tokenizer = load_tokenizer(str(copied))
    tokenizer.add_tokens(["<halt>"])
    tokenizer.save_pretrained(copied)
    halt = tokenizer.convert_tokens_to_ids("<halt>")
    (copied / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, halt]}))
    found = load_tokenizer(str(copied))
    assert stops_of(found) == {2, halt}
    assert gate_of(found).first_in("so <halt>", found) == "<halt>"


def test_pico_models_are_the_same_each_time(tmp_path: Path, pico_path: PicoPath) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    again = pico("gemma3", tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (again / "model.safetensors").read_bytes() == (pico_path("gemma3") / "model.safetensors").read_bytes()
    config = json.loads((again / "config.json").read_text())
    assert config["sliding_window"] == 16
    assert set(config["layer_types"]) == {"sliding_attention", "full_attention"}


def test_a_folder_is_looked_at_without_loading_it(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_folder(str(copied))
    check_folder("owner/model")  # a hub id: loading will tell
    with monkeypatch.context() as patch:  # root may read everything, so a mode of 0 would not do
        patch.setattr(os, "access", lambda path, mode: Path(path).suffix != ".safetensors")
        with pytest.raises(MissingError, match=r"model.safetensors: cannot be read: permission denied; let this user"):
            check_folder(str(copied))
    (copied / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(MissingError, match="does not list the weights' files"):
        check_folder(str(copied))
    (copied / "model.safetensors.index.json").unlink()
    (copied / "model.safetensors").unlink()
    with pytest.raises(MissingError, match=r"no weights: model.safetensors is missing"):
        check_folder(str(copied))


def test_a_file_for_a_folder(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=f"is a file, a model is a folder; did you mean '{copied}'"):
        resolve(str(copied / "model.safetensors"))
    (tmp_path / "rows.jsonl").touch()
    with pytest.raises(
        MissingError, match=r"is a file, a model is a folder; give a folder, a \.gguf file, a hub id or pocket:chat"
    ):
        resolve(str(tmp_path / "rows.jsonl"))
