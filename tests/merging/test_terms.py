"""What a name stands for: adapters give the numbers of PEFT's merge, edits the bits of the loaded model."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from posttrain.errors import MissingError, PosttrainError
from posttrain.merging.sources import numbers_of
from posttrain.merging.terms import Term, open_term
from posttrain.models.edit_delta import Delta, LowRank, write_deltas
from posttrain.models.load import load_model
from posttrain.models.sketch import sketch
from tests.merging.folders import drawn, folder

PicoPath = Callable[[str], Path]
ATTENTION = ["q_proj", "v_proj"]
ALL = ["q_proj", "v_proj", "up_proj", "down_proj"]


def change(path: Path, **settings: Any) -> None:
    config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    (path / "adapter_config.json").write_text(json.dumps({**config, **settings}), encoding="utf-8")


def adapter(base: Path, path: Path, **settings: Any) -> Path:
    """Write a LoRA adapter of random numbers, and return its folder."""
    from peft import LoraConfig, get_peft_model

    model = load_model(str(base), device="cpu", adapter_merged=True).model
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tied embeddings, and an old name within PEFT
        adapted = get_peft_model(model, LoraConfig(**{"r": 3, "init_lora_weights": False, **settings}))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and "lora_magnitude" in name:
                parameter.mul_(1 + torch.rand_like(parameter))
            elif parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about embeddings that it saves, too
        adapted.save_pretrained(path)
    change(path, base_model_name_or_path=str(base))
    return path


def numbers(term: Term) -> dict[str, Tensor]:
    return {name: numbers_of(term.source, name) for name in term.source.tensors}


def merged_by_peft(path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_model(str(path), device="cpu", adapter_merged=True).model.state_dict()
    return found


def same(path: Path, base: Path, *, atol: float = 1e-6) -> list[str]:
    """Compare a term with what PEFT merges; return the names of the tensors that the adapter changes."""
    term = open_term(str(path))
    assert (term.path, term.folder) == (path.resolve(), base.resolve())
    ours, theirs, before = numbers(term), merged_by_peft(path), numbers(open_term(str(base)))
    assert ours.keys() == before.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=atol, rtol=1e-6)
    return [name for name, tensor in ours.items() if not torch.equal(tensor, before[name])]


@pytest.mark.parametrize(
    ("family", "settings", "changed"),
    [
        ("qwen3", {"target_modules": ALL}, 8),
        ("qwen3", {"target_modules": ALL, "rank_pattern": {"q_proj": 5, "layers.1.mlp.up_proj": 1}}, 8),
        ("qwen3", {"target_modules": ALL, "alpha_pattern": {"v_proj": 32, r".*\.0\.mlp\.up_proj": 2}}, 8),
        ("qwen3", {"target_modules": ALL, "use_rslora": True, "lora_alpha": 5, "rank_pattern": {"q_proj": 7}}, 8),
        ("qwen3", {"target_modules": ALL, "use_dora": True}, 8),
        ("llama", {"target_modules": ATTENTION, "layers_to_transform": [1]}, 2),
        ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}, 8),
        ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "all"}, None),
        ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "lora_only"}, 4),
        ("qwen3", {"target_modules": ["embed_tokens", "q_proj"]}, 3),
        ("qwen3", {"target_modules": ["lm_head"]}, 1),
        ("qwen3", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, 3),
        ("qwen3", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "model.norm"]}, 4),
    ],
)
def test_lora_gives_the_numbers_of_peft(
    family: str, settings: dict[str, Any], changed: int | None, pico_path: PicoPath, tmp_path: Path
) -> None:
    base = pico_path(family)
    found = same(adapter(base, tmp_path / "adapter", **settings), base)
    assert changed is None or len(found) == changed


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_embeddings_that_are_saved_beside(family: str, pico_path: PicoPath, tmp_path: Path) -> None:
    """PEFT does it when it is not sure that the base has them; a head may be the same matrix."""
    path = adapter(pico_path(family), tmp_path / "adapter", target_modules=["q_proj"])
    tensors = load_file(path / "adapter_model.safetensors")
    weight = numbers(open_term(str(pico_path(family))))["model.embed_tokens.weight"]
    names = [f"base_model.model.{name}.weight" for name in ("model.embed_tokens", "lm_head")]
    names = names if family == "llama" else names[:1]
    save_file(tensors | {name: weight.clone() for name in names}, path / "adapter_model.safetensors")
    assert len(same(path, pico_path(family))) == 2


def test_rows_are_the_same_wherever_they_begin(pico_path: PicoPath, tmp_path: Path) -> None:
    term = open_term(str(adapter(pico_path("qwen3"), tmp_path / "adapter", target_modules=ALL, use_dora=True)))
    name = "model.layers.1.mlp.up_proj.weight"
    whole = numbers_of(term.source, name)
    for first in (0, 5, 63):
        out = torch.empty(1, whole.shape[1])
        term.source.rows(name, first, out)
        torch.testing.assert_close(out[0], whole[first], atol=1e-7, rtol=1e-6)


def test_an_adapter_on_an_adapter(pico_path: PicoPath, tmp_path: Path) -> None:
    base = pico_path("qwen3")
    first = adapter(base, tmp_path / "first", target_modules=["q_proj"])
    second = adapter(first, tmp_path / "second", target_modules=["q_proj", "up_proj"])
    assert len(same(second, base)) == 4
    assert open_term(str(second)).parents == (base.resolve(), first.resolve())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "IA3"}, "an adapter of kind IA3 is no sum with its base; posttrain model export writes it"),
        ({"peft_type": None, "posttrain_tuner": "loreft"}, "an adapter of kind loreft is no sum"),
        ({"layer_replication": [[0, 1]]}, "an adapter with layer_replication is no sum"),
        ({"trainable_token_indices": [1]}, "an adapter with trainable_token_indices is no sum"),
        ({"lora_bias": True}, "an adapter with lora_bias is no sum"),
        ({"target_parameters": ["a.b"]}, "an adapter with target_parameters is no sum"),
        ({"init_lora_weights": "pissa_niter_4"}, "an adapter that began with pissa_niter_4 belongs to other weights"),
        ({"init_lora_weights": "olora"}, "an adapter that began with olora belongs to other weights"),
        ({"base_model_name_or_path": "none/such/base/at/all"}, "the adapter's base 'none/such/base/at/all' is missing"),
        ({"base_model_name_or_path": ""}, "base_model_name_or_path is empty"),
    ],
)
def test_what_is_no_sum_is_refused(settings: dict[str, Any], words: str, pico_path: PicoPath, tmp_path: Path) -> None:
    path = adapter(pico_path("llama"), tmp_path / "adapter", target_modules=["q_proj"])
    change(path, **settings)
    with pytest.raises(PosttrainError) as told:
        open_term(str(path))
    assert words in str(told.value)


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", "eva", True, False])
def test_other_beginnings_leave_the_base_alone(init: Any, pico_path: PicoPath, tmp_path: Path) -> None:
    path = adapter(pico_path("llama"), tmp_path / "adapter", target_modules=["q_proj"])
    before = numbers(open_term(str(path)))
    change(path, init_lora_weights=init)
    assert all(torch.equal(tensor, before[name]) for name, tensor in numbers(open_term(str(path))).items())


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["lm_head"]},
    ],
)
def test_a_tied_head_is_not_changed_by_half(settings: dict[str, Any], pico_path: PicoPath, tmp_path: Path) -> None:
    """PEFT's model has then two matrices, its base's files have one."""
    path = adapter(pico_path("llama"), tmp_path / "adapter", **settings)
    with pytest.raises(PosttrainError, match=r"but not the head, which is the same|has no tensor in its base \(a tied"):
        open_term(str(path))


def test_dora_of_turned_weights_is_refused(pico_path: PicoPath, tmp_path: Path) -> None:
    path = adapter(pico_path("gpt2"), tmp_path / "adapter", target_modules=["c_fc"], use_dora=True, fan_in_fan_out=True)
    with pytest.raises(PosttrainError, match=r"DoRA on transformer.h.0.mlp.c_fc is not read row by row"):
        open_term(str(path))


def test_adapters_that_do_not_fit(pico_path: PicoPath, tmp_path: Path) -> None:
    path = adapter(pico_path("qwen3"), tmp_path / "adapter", target_modules=["up_proj"])
    change(path, base_model_name_or_path=str(folder(tmp_path / "other")))
    with pytest.raises(PosttrainError, match=r"adapter: model.layers.0.mlp.up_proj: .* does not fit .* \(24, 8\)"):
        open_term(str(path))
    change(path, base_model_name_or_path=str(path))
    with pytest.raises(PosttrainError, match="it is its own base"):
        open_term(str(path))
    change(path, base_model_name_or_path=str(pico_path("gpt2")))
    with pytest.raises(PosttrainError, match=r"its model.layers.0.mlp.up_proj.weight has no tensor in its base"):
        open_term(str(path))
    tensors = load_file(path / "adapter_model.safetensors")
    change(path, base_model_name_or_path=str(pico_path("qwen3")))
    tensors.pop(next(name for name in tensors if "lora_B" in name))
    save_file(tensors, path / "adapter_model.safetensors")
    with pytest.raises(PosttrainError, match="lacks one of its two factors"):
        open_term(str(path))
    (path / "adapter_model.safetensors").write_bytes(b"12")
    with pytest.raises(PosttrainError, match="cannot be read"):
        open_term(str(path))
    (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")
    with pytest.raises(MissingError, match=r"adapter_model.safetensors is missing; save the adapter in safetensors"):
        open_term(str(path))


# ---- edits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "turned"), [("llama", False), ("gpt2", True)])
def test_edits_give_the_very_same_bits(family: str, turned: bool, pico_path: PicoPath, tmp_path: Path) -> None:
    base = pico_path(family)
    names = [
        *(("transformer.h.0.mlp.c_proj.weight", "transformer.h.1.mlp.c_fc.weight") if turned else ()),
        *(() if turned else ("model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.up_proj.weight")),
    ]
    draw = torch.Generator().manual_seed(2)
    deltas = []
    for name, rank in ((names[0], 2), (names[1], None), (names[0], 1), (names[0], None)):
        stored = tuple(load_model(str(base), device="cpu").model.get_parameter(name).shape)
        rows, columns = reversed(stored) if turned else stored
        own: Any = torch.randn(rows, columns, generator=draw)
        if rank is not None:
            own = LowRank(torch.randn(rows, rank, generator=draw), torch.randn(rank, columns, generator=draw))
        deltas.append(Delta.of(name, turned, own, [0] * (rank or 1)))
    path = tmp_path / "edits"
    path.mkdir()
    write_deltas(path, str(base), deltas, [], {})
    term = open_term(str(path))
    assert (term.path, term.folder, term.parents) == (path.resolve(), base.resolve(), (base.resolve(),))
    loaded = load_model(str(path), device="cpu").model.state_dict()
    found, before = numbers(term), numbers(open_term(str(base)))
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in found.items())
    assert {name for name, tensor in found.items() if not torch.equal(tensor, before[name])} == set(names)
    change(path, base_model_name_or_path=str(pico_path("gpt2" if family == "llama" else "llama")))
    with pytest.raises(PosttrainError, match="has no tensor in its base"):
        open_term(str(path))


def test_edits_of_another_base(pico_path: PicoPath, tmp_path: Path) -> None:
    name, path = "model.layers.0.mlp.up_proj.weight", tmp_path / "edits"
    path.mkdir()
    known = sketch(load_model(str(pico_path("llama")), device="cpu").model)
    deltas = [Delta.of(name, False, torch.ones(64, 32), [0]) for _ in range(2)]
    write_deltas(path, str(pico_path("llama")), deltas, [], {"sketch": known})
    before = numbers(open_term(str(pico_path("llama"))))[name]
    assert torch.equal(numbers(open_term(str(path)))[name], before + 1 + 1)
    change(path, base_model_name_or_path=str(pico_path("qwen3")))
    with pytest.raises(PosttrainError, match=f"its edits were written on another base: {name} is another"):
        open_term(str(path))


def test_edits_of_another_shape(tmp_path: Path) -> None:
    path = tmp_path / "edits"
    path.mkdir()
    delta = Delta.of("model.layers.0.mlp.up_proj.weight", False, torch.ones(24, 9), [0])
    write_deltas(path, str(folder(tmp_path / "base")), [delta], [], {})
    with pytest.raises(PosttrainError, match=r"its change of .* is 24 x 9, and the tensor 24 x 8; use it with its own"):
        open_term(str(path))


# ---- models ----------------------------------------------------------------------------------------------------------


def test_models_that_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "quantised", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(PosttrainError, match="quantised: its weights are quantised: their numbers cannot be added"):
        open_term("quantised")
    (tmp_path / "small.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(PosttrainError, match=r"small.gguf: is a GGUF file; .*posttrain model convert small.gguf DIR"):
        open_term("small.gguf")
    with pytest.raises(MissingError, match="no such model folder"):
        open_term("./nowhere")
    with pytest.raises(MissingError, match="--download allows fetching"):
        open_term("posttrain-tests/there-is-none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match=r"no config.json: not a model folder"):
        open_term("empty")
    (folder(tmp_path / "broken") / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(PosttrainError, match=r"broken/config.json: cannot be read"):
        open_term("broken")


def test_a_shard_that_is_missing(tmp_path: Path) -> None:
    """The tensors in it would be missing in the merged model, and nobody would be told."""
    path = folder(tmp_path / "model")
    (path / "model.safetensors").unlink()
    where = {}
    for number, (name, tensor) in enumerate(drawn().items()):
        where[name] = f"model-{number}.safetensors"
        save_file({name: tensor}, path / where[name])
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}), encoding="utf-8")
    assert numbers(open_term(str(path))).keys() == drawn().keys()
    (path / "model-3.safetensors").unlink()
    with pytest.raises(MissingError, match=r"model-3.safetensors is missing \(model.safetensors.index.json names it\)"):
        open_term(str(path))
    index.write_text("[]", encoding="utf-8")
    with pytest.raises(PosttrainError, match="does not list the weights' files"):
        open_term(str(path))


def test_the_base_may_have_moved(pico_path: PicoPath, tmp_path: Path) -> None:
    base = Path(shutil.copytree(pico_path("llama"), tmp_path / "base"))
    path = adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(MissingError, match=r"the adapter's base '.*base' is missing; put the base where") as told:
        open_term(str(path))
    assert told.value.exit_code == 3
    assert len(told.value.problems) == 2
