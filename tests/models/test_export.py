"""What is exported loads with transformers alone and says what the source says."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import AutoPeftModelForCausalLM, PeftModel
from torch import Tensor

from posttrain.config.load import check
from posttrain.errors import ConfigError, DiskError, MissingError, PosttrainError
from posttrain.models.export import export_model
from posttrain.models.fingerprint import template_fingerprint
from posttrain.models.heads import load_any
from posttrain.models.load import load_model, load_tokenizer
from posttrain.models.merge_adapter import relative_distance
from posttrain.models.save import save_model
from posttrain.models.verify import verify_model
from posttrain.registry import load as entry
from tests.models.test_disk import small_disk, unix
from tests.pico_gguf import write_gguf
from tests.training.tiny import PicoPath, load

IDS = torch.tensor([[1, 4, 70, 80, 90, 2, 5, 33]])


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=IDS).logits
    return found.float()


def plain(folder: Path, **options: Any) -> Any:
    """As somebody without posttrain loads it."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **options)


Make = Callable[..., tuple[Path, Tensor]]


@pytest.fixture
def adapter(pico_path: PicoPath, tmp_path: Path) -> Make:
    """A tuner's saved adapter that says something, and what it says; the base may be stored in another precision."""

    def make(kind: str, family: str = "llama", dtype: str = "float32", **settings: Any) -> tuple[Path, Tensor]:
        loaded = load(pico_path, family)
        base = tmp_path / f"base-{dtype}"
        save_model(loaded.model, loaded.tokenizer, base, dtype=getattr(torch, dtype))
        loaded = load_model(str(base), device="cpu")
        tuner = entry("tuner", kind)
        tuned = tuner.function(loaded.model, check({"kind": kind, **settings}, tuner.config, "tuner"))
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for p in tuned.parameters():
                if p.requires_grad:
                    p += 0.1 * torch.randn(p.shape, generator=draw)
        save_model(tuned, loaded.tokenizer, tmp_path / "adapter")
        return tmp_path / "adapter", logits(tuned)

    return make


@pytest.mark.parametrize(
    ("kind", "family", "settings"),
    [
        ("lora", "llama", {"rank": 4}),
        ("lora", "llama", {"rank": 4, "target_modules": ["q_proj", "lm_head"]}),
        ("lora", "gpt2", {"rank": 4, "target_modules": ["c_attn", "wte"], "modules_to_save": ["lm_head"]}),
        ("lora", "llama", {"rank": 4, "dora": True}),
        ("lora", "qwen3", {"rank": 4, "init": "pissa"}),
        ("ia3", "llama", {}),
        ("fishmask", "llama", {"share": 0.1}),
        ("diff_pruning", "llama", {}),
    ],
)
def test_a_merged_adapter(adapter: Make, tmp_path: Path, kind: str, family: str, settings: dict[str, Any]) -> None:
    folder, expected = adapter(kind, family, **settings)
    made = export_model(str(folder), tmp_path / "out")
    model = plain(tmp_path / "out")
    torch.testing.assert_close(logits(model), expected, atol=2e-5, rtol=0)
    assert (made.kind, made.dtype, made.loads_with) == ("merged model", "float32", "transformers")
    assert made.tied is (model.get_input_embeddings().weight is model.get_output_embeddings().weight)
    assert made.tied is (family == "llama" and "lm_head" not in settings.get("target_modules", []))
    assert made.parameters == sum(p.numel() for p in model.parameters())
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    assert template_fingerprint(tokenizer) == template_fingerprint(load_tokenizer(str(folder)))
    assert not any(check.ok is False for check in verify_model(str(tmp_path / "out")))
    assert not (tmp_path / "out" / "adapter_config.json").exists()


@pytest.mark.parametrize(("asked", "stored"), [("auto", "bfloat16"), ("float32", "float32"), ("float16", "float16")])
def test_precisions(adapter: Make, tmp_path: Path, asked: Any, stored: str) -> None:
    folder, expected = adapter("lora", dtype="bfloat16", rank=4)
    said: list[str] = []
    made = export_model(str(folder), tmp_path / "out", dtype=asked, say=said.append)
    assert any("as its base is" in line for line in said) is (asked == "auto")
    model = plain(tmp_path / "out", dtype="auto")
    assert {p.dtype for p in model.parameters()} == {getattr(torch, stored)}
    assert made.dtype == stored
    far = relative_distance(logits(plain(tmp_path / "out", dtype="float32")), expected)
    assert far < (1e-5 if stored == "float32" else 2e-2)
    assert (made.rounding > 1e-5) is (stored != "float32")
    told = (
        f"rounded to {stored}: outputs differ from the source's by {made.rounding:.2%} of their spread, so answers may "
        "differ; the files were checked against the rounded source; --dtype float32 keeps the source's answers"
    )
    assert made.notes == (() if stored == "float32" else (told,))
    # rounded once, from a merge in float32
    merged = load_model(str(folder), device="cpu", adapter_merged=True).model.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, merged[name].to(tensor.dtype))


def test_the_adapter_by_itself(adapter: Make, tmp_path: Path) -> None:
    folder, expected = adapter("lora", rank=4, modules_to_save=["lm_head"])
    made = export_model(str(folder), tmp_path / "out", adapter=True)
    assert (made.kind, made.architecture, made.loads_with) == ("adapter", "LORA", "PEFT")
    theirs = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "out"), is_trainable=False)
    torch.testing.assert_close(logits(theirs), expected, atol=1e-6, rtol=0)
    assert not any(check.ok is False for check in verify_model(str(tmp_path / "out")))
    export_model(str(folder), tmp_path / "half", adapter=True, dtype="bfloat16")
    again = load_model(str(tmp_path / "half"), device="cpu").model
    assert isinstance(again, PeftModel)
    assert 0 < relative_distance(logits(again), expected) < 2e-2


def test_an_adapter_s_base_that_others_do_not_have_is_said(adapter: Make, tmp_path: Path) -> None:
    folder, _ = adapter("lora", rank=4)
    base = str((tmp_path / "base-float32").resolve())
    noted = json.loads((folder / "posttrain.json").read_text())["base_fingerprint"]
    made = export_model(str(folder), tmp_path / "out", adapter=True)
    (note,) = made.notes
    assert note == (
        f"adapter_config.json names the base by a path that others do not have: {base} (fingerprint {noted}); they set "
        "base_model_name_or_path there to their copy of it, or take the merged model (without --adapter)"
    )
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"an adapter for the base `base-float32` (its weights' fingerprint: `{noted}`)." in card
    assert "set `base_model_name_or_path` there to your copy of the base, or ask for the merged model" in card
    assert str(tmp_path) not in card.partition("## The card of the source")[0]
    half = export_model(str(folder), tmp_path / "half", adapter=True, dtype="bfloat16").notes
    assert half[0].startswith("rounded to bfloat16: outputs differ from the source's by ")
    assert half[1] == note

    loaded = load_model("pocket:chat", device="cpu")
    tuner = entry("tuner", "lora")
    tuned = tuner.function(loaded.model, check({"kind": "lora"}, tuner.config, "tuner"))
    save_model(tuned, loaded.tokenizer, tmp_path / "boxed")
    assert export_model(str(tmp_path / "boxed"), tmp_path / "named", adapter=True).notes == ()
    card = (tmp_path / "named" / "README.md").read_text(encoding="utf-8")
    assert "an adapter for the base `pocket:chat`" in card
    assert "write it by `posttrain model export pocket:chat DIR`, and give that folder as the base" in card
    assert "base_model_name_or_path" not in card.partition("## The card of the source")[0]


@pytest.mark.parametrize("kind", ["ptuning_v2", "prompt_tuning", "adapter"])
def test_what_is_no_change_of_weights(adapter: Make, tmp_path: Path, kind: str) -> None:
    folder, expected = adapter(kind)
    with pytest.raises(PosttrainError, match="cannot be merged into its base"):
        export_model(str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    made = export_model(str(folder), tmp_path / "out", adapter=True)
    assert made.loads_with.startswith("PEFT" if kind == "prompt_tuning" else "posttrain only")
    torch.testing.assert_close(logits(load_any(str(tmp_path / "out"), device="cpu").model), expected, atol=1e-6, rtol=0)


def test_a_whole_model_a_gguf_file_and_a_training_s_folder(pico_path: PicoPath, tmp_path: Path) -> None:
    made = export_model(str(pico_path("gemma3")), tmp_path / "a", dtype="bfloat16")
    source = load(pico_path, "gemma3").model
    assert made.kind == "model"
    for name, p in plain(tmp_path / "a", dtype="float32").named_parameters():
        assert torch.equal(p, source.get_parameter(name).bfloat16().float())
    file = write_gguf(pico_path("llama"), tmp_path / "pico.gguf", kind="Q8_0")
    export_model(str(file), tmp_path / "b")
    assert torch.equal(logits(plain(tmp_path / "b")), logits(load_model(str(file), device="cpu").model))
    run = tmp_path / "run"
    save_model(source, load_tokenizer(str(pico_path("gemma3"))), run / "model")
    (run / "result.json").write_text("{}")
    said: list[str] = []
    assert export_model(str(run), tmp_path / "c", say=said.append).source == str(run / "model")
    assert said[0] == f"{run}: its model is {run / 'model'}"
    assert torch.equal(logits(plain(tmp_path / "c")), logits(source))


def test_a_classifier_keeps_its_head(pico_path: PicoPath, tmp_path: Path) -> None:
    from posttrain.models.heads import load_head_model
    from posttrain.tuners.lora import LoraConfig, lora

    said: list[str] = []
    loaded = load_head_model(str(pico_path("llama")), "sequence", ["no", "yes"], say=said.append, device="cpu")
    tuned = lora(loaded.model, LoraConfig(rank=2)).eval()
    save_model(tuned, loaded.tokenizer, tmp_path / "adapter")
    with torch.no_grad():
        expected = tuned(input_ids=IDS).logits
    export_model(str(tmp_path / "adapter"), tmp_path / "out")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", local_files_only=True)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(input_ids=IDS).logits, expected, atol=1e-6, rtol=0)
    assert model.config.id2label == {0: "no", 1: "yes"}


@pytest.mark.parametrize("wrong", ["runs/cok2", "cok"])
def test_a_misspelt_name_is_said_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("runs/cook2", "cook"):
        (tmp_path / path / "model").mkdir(parents=True)
        (tmp_path / path / "posttrain_run.json").write_text("{}")
    said: list[str] = []
    with pytest.raises(MissingError) as caught:
        export_model(wrong, tmp_path / "out", say=said.append)
    right = {"runs/cok2": "runs/cook2", "cok": "cook"}[wrong]
    assert str(caught.value) == (
        f"{wrong}: neither a folder here nor in the local hub cache; "
        f"did you mean '{right}'? (--download allows fetching it from the hub)"
    )
    assert said == []
    with pytest.raises(MissingError, match=r"no/such-model: neither .*; --download allows fetching it from the hub$"):
        export_model("no/such-model", tmp_path / "out", say=said.append)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are otherwise kept there")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_every_file_has_the_permissions_that_the_umask_leaves(
    adapter: Make, pico_path: PicoPath, tmp_path: Path, mask: int, mode: int
) -> None:
    before = os.umask(mask)
    try:
        folder, _ = adapter("lora", "qwen3", rank=4, init="pissa")  # its files are written by PEFT and by us
        whole = load(pico_path, "gpt2")
        save_model(whole.model, whole.tokenizer, tmp_path / "whole")
        export_model(str(folder), tmp_path / "merged")
        export_model(str(folder), tmp_path / "alone", adapter=True)
    finally:
        os.umask(before)
    for written in (folder, tmp_path / "whole", tmp_path / "merged", tmp_path / "alone"):
        modes = {path.name: path.stat().st_mode & 0o777 for path in written.iterdir()}
        assert any(name.endswith(".safetensors") for name in modes)
        assert modes == dict.fromkeys(modes, mode)


def test_refusals_leave_nothing(
    adapter: Make, pico_path: PicoPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = adapter("lora", rank=4)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(ConfigError, match="is there already and is not overwritten"):
        export_model(str(folder), tmp_path / "full")
    with pytest.raises(ConfigError, match=r"--adapter: .*llama is no adapter"):
        export_model(str(pico_path("llama")), tmp_path / "out", adapter=True)
    big = load(pico_path)
    with torch.no_grad():
        big.model.model.norm.weight[0] = 1e6
    save_model(big.model, big.tokenizer, tmp_path / "big")
    with pytest.raises(PosttrainError, match=r"norm\.weight has numbers that float16 cannot hold"):
        export_model(str(tmp_path / "big"), tmp_path / "out", dtype="float16")
    written = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("posttrain.models.export.save_model", _spoiled(save_model))
        with pytest.raises(PosttrainError, match=r"what was written is another model: outputs differ by .*removed"):
            export_model(str(folder), written)
    assert not written.exists()


def _spoiled(save: Callable[..., None]) -> Callable[..., None]:
    """Writes another model than it was given."""

    def wrong(model: Any, tokenizer: Any, folder: Path, **options: Any) -> None:
        with torch.no_grad():
            model.get_output_embeddings().weight[9] += 1
        save(model, tokenizer, folder, **options)

    return wrong


def test_the_card_names_no_path_of_this_machine(adapter: Make, tmp_path: Path) -> None:
    folder, _ = adapter("lora", rank=4)
    (folder / "README.md").write_text("What I did.", encoding="utf-8")
    export_model(str(folder), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "Exported by posttrain from `adapter`: stored as float32." in card
    assert "An adapter was merged" in card
    assert "What I did." in card
    for path in (tmp_path / "out").glob("*.json"):
        assert str(tmp_path) not in path.read_text(encoding="utf-8"), path
        json.loads(path.read_text(encoding="utf-8"))


@unix
def test_a_full_disk_leaves_nothing_and_the_command_starts_anew(adapter: Make, tmp_path: Path) -> None:
    folder, _ = adapter("lora", rank=4)
    for alone in (False, True):
        with (
            small_disk(1_000),
            pytest.raises(DiskError, match=r"out: cannot be written: .*; free some space") as caught,
        ):
            export_model(str(folder), tmp_path / "out", adapter=alone)
        assert caught.value.problems[0].mend.endswith("nothing half-written is left, and the same command starts anew")
        assert not list(tmp_path.glob("*out*"))
    loaded = load_model(str(folder), device="cpu")
    with small_disk(1_000), pytest.raises(DiskError, match="goes on from it"):  # as a training's own saving says
        save_model(loaded.model, loaded.tokenizer, tmp_path / "out")
