"""What edits have added to weights: one arithmetic everywhere, files, and the same as a LoRA adapter for plain PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from torch import Tensor

from posttrain.errors import PosttrainError
from posttrain.models.edit_delta import (
    Delta,
    LowRank,
    added,
    apply_deltas,
    lora_tensors,
    read_deltas,
    read_edits,
    write_deltas,
    write_lora,
)
from posttrain.models.export import export_model
from posttrain.models.fingerprint import base_fingerprint
from posttrain.models.load import load_model
from posttrain.models.save import write_notes
from tests.editing.lively import bits, changed, drawn, lively, lively_folder, near

IDS = torch.tensor([[1, 4, 70, 80, 90, 2, 5, 33]])
DOWN, CONV = "model.layers.{}.mlp.down_proj.weight", "transformer.h.{}.mlp.c_proj.weight"


def low(rank: int, *, out: int = 32, inputs: int = 64, seed: int = 0) -> LowRank:
    return LowRank(drawn(out, rank, seed=seed), 0.1 * drawn(rank, inputs, seed=seed + 1))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found


def deltas_of(family: str) -> list[Delta]:
    """Two layers, two edits of rank two and three in one of them, and a whole matrix."""
    conv, name, inputs = family == "gpt2", CONV if family == "gpt2" else DOWN, 128 if family == "gpt2" else 64
    whole = 0.05 * drawn(32, inputs, seed=9)
    return [
        Delta.of(name.format(0), conv, low(2, inputs=inputs), [0, 1]),
        Delta.of(name.format(1), conv, low(1, inputs=inputs, seed=3), [2]),
        Delta.of(name.format(0), conv, low(3, inputs=inputs, seed=5), [3, 4, 4]),
        Delta.of(name.format(1), conv, whole, [5, 6]),
    ]


def written(folder: Path, family: str, deltas: list[Delta]) -> Path:
    """A folder of deltas on a family's lively model."""
    folder.mkdir()
    base = load_model(str(lively_folder(family)), device="cpu")
    write_deltas(folder, str(lively_folder(family)), deltas, [{"number": 0}], {"batches": []})
    base.tokenizer.save_pretrained(folder)
    write_notes(folder, base.tokenizer, base=base_fingerprint(base.model))
    return folder


def test_a_delta_is_added_in_double_and_rounded_once() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        weight = drawn(32, 64).to(dtype)
        change = low(3)
        delta = Delta.of("w", False, change, [0, 1, 2])
        exact = weight.double() + change.left.float().double() @ change.right.float().double()
        assert torch.equal(added(weight, delta), exact.to(dtype))
        turned = Delta.of("w", True, change, [0, 1, 2])
        assert torch.equal(added(weight.T.contiguous(), turned), exact.to(dtype).T)
        whole = Delta.of("w", False, drawn(32, 64, seed=4), [0])
        assert torch.equal(added(weight, whole), (weight.double() + drawn(32, 64, seed=4).float().double()).to(dtype))


def test_parts_are_kept_in_float32_and_apart_from_what_they_were_made_of() -> None:
    change = LowRank(drawn(32, 2).requires_grad_(True), drawn(64, 2).T)
    delta = Delta.of("w", False, change, [0, 1])
    assert not isinstance(delta.change, Tensor)
    assert {part.dtype for part in delta.change} == {torch.float32}
    assert all(part.is_contiguous() and not part.requires_grad for part in delta.change)
    assert (delta.rank, Delta.of("w", False, drawn(32, 64), [0]).rank) == (2, None)


def test_columns_of_edits_are_taken_out() -> None:
    delta = Delta.of("w", False, low(4), [7, 8, 8, 9])
    change = delta.change
    assert not isinstance(change, Tensor)
    left = delta.without(frozenset({8}))
    assert left is not None
    assert not isinstance(left.change, Tensor)
    assert left.owners == (7, 9)
    assert torch.equal(left.change.left, change.left[:, [0, 3]])
    assert torch.equal(left.change.right, change.right[[0, 3]])
    assert delta.without(frozenset({7, 8, 9, 10})) is None
    untouched = delta.without(frozenset({1}))
    assert untouched is not None
    assert untouched.owners == delta.owners
    whole = Delta.of("w", False, drawn(32, 64), [1, 2])
    assert whole.without(frozenset({1})) is whole
    assert whole.without(frozenset({1, 2})) is None


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_deltas_are_read_as_they_were_written(family: str, tmp_path: Path) -> None:
    deltas = deltas_of(family)
    folder = written(tmp_path / "edits", family, deltas)
    for one, other in zip(read_deltas(folder), deltas, strict=True):
        assert (one.weight, one.transposed, one.owners, one.rank) == (
            *(other.weight, other.transposed, other.owners, other.rank),
        )
        for part, same in zip(one.change, other.change, strict=True):
            assert torch.equal(part, same)
    assert read_edits(folder) == [{"number": 0}]
    model = lively(family).model
    apply_deltas(model, deltas, "edits")
    assert not changed(load_model(str(folder), device="cpu").model, bits(model))
    expected = lively(family).model
    for delta in deltas:
        parameter = expected.get_parameter(delta.weight)
        parameter.data.copy_(added(parameter.data, delta))
    assert not changed(model, bits(expected))


def test_what_does_not_fit_is_said_before_anything_is_changed() -> None:
    model = lively().model
    before = bits(model)
    good = Delta.of(DOWN.format(0), False, low(1), [0])
    nan = low(1)._replace(left=torch.full((32, 1), float("nan")))
    for wrong, told in (
        (Delta.of("model.layers.9.mlp.down_proj.weight", False, low(1), [0]), "layers.9.* is missing in the base"),
        (Delta.of(DOWN.format(1), True, low(1), [0]), r"down_proj.weight is \(64, 32\), the base's \(32, 64\)"),
        (Delta.of(DOWN.format(1), False, drawn(32, 32), [0]), r"down_proj.weight is \(32, 32\), the base's"),
        (Delta.of(DOWN.format(1), False, nan, [0]), "the change of .* holds numbers that are not finite"),
        (Delta.of(DOWN.format(1), False, drawn(32, 64) * float("inf"), [0]), "holds numbers that are not finite"),
    ):
        with pytest.raises(PosttrainError, match=f"edits: the edits do not fit this base: .*{told}"):
            apply_deltas(model, [good, wrong], "edits")
        assert not changed(model, before)


# ---- as a LoRA adapter -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_sum_of_a_modules_deltas_is_one_product(family: str) -> None:
    deltas = deltas_of(family)
    pairs = lora_tensors(deltas)
    assert list(pairs) == [
        name.format(i).removesuffix(".weight") for i in (0, 1) for name in [CONV if family == "gpt2" else DOWN]
    ]
    ranks = [left.shape[1] for left, _ in pairs.values()]
    assert ranks == [5, 1 + 32]  # a whole matrix has as many as it is wide
    for name, (left, right) in pairs.items():
        summed = sum(
            delta.change.double()
            if isinstance(delta.change, Tensor)
            else delta.change.left.double() @ delta.change.right.double()
            for delta in deltas
            if delta.weight == f"{name}.weight"
        )
        assert isinstance(summed, Tensor)
        assert near(left.double() @ right.double(), summed, 1e-6)


def test_a_whole_matrix_of_low_rank_has_few_columns() -> None:
    change = low(3)
    ((left, right),) = lora_tensors([Delta.of("a.weight", False, change.left @ change.right, [0])]).values()
    assert left.shape[1] <= 4
    assert near(left.double() @ right.double(), change.left @ change.right, 1e-6)
    ((left, right),) = lora_tensors([Delta.of("a.weight", False, torch.zeros(4, 6), [0])]).values()
    assert (left.shape, right.shape) == ((4, 1), (1, 6))  # PEFT has no rank 0
    assert not left.any()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_an_exported_adapter_is_loaded_by_plain_peft_and_says_the_same(family: str, tmp_path: Path) -> None:
    """Through a file, by PEFT and transformers alone; GPT-2's matrices are stored the other way round."""
    folder = written(tmp_path / "edits", family, deltas_of(family))
    lines: list[str] = []
    done = export_model(str(folder), tmp_path / "lora", adapter=True, say=lines.append)
    assert (done.kind, done.loads_with, done.architecture) == ("adapter", "PEFT", "LORA")
    assert done.rounding < 1e-5
    base = transformers.AutoModelForCausalLM.from_pretrained(lively_folder(family), dtype=torch.float32)
    before = logits(base)
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "lora")).eval()
    expected = logits(load_model(str(folder), device="cpu").model)
    assert float((expected - before).abs().max()) > 0.5
    assert torch.allclose(logits(adapted), expected, atol=1e-4)
    merged: Any = adapted.merge_and_unload()
    assert torch.allclose(logits(merged), expected, atol=1e-4)
    ours = load_model(str(tmp_path / "lora"), device="cpu")  # and it is an adapter of ours
    assert torch.allclose(logits(ours.model), expected, atol=1e-4)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["fan_in_fan_out"] == (family == "gpt2")
    assert "posttrain_tuner" not in config


def test_an_exported_model_has_the_edits_in_its_weights(tmp_path: Path) -> None:
    folder = written(tmp_path / "edits", "llama", deltas_of("llama"))
    done = export_model(str(folder), tmp_path / "whole", say=lambda line: None)
    assert (done.kind, done.dtype, done.tied) == ("merged model", "float32", True)
    alone = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32)
    assert not changed(alone, bits(load_model(str(folder), device="cpu").model))


def test_an_adapter_in_half_precision(tmp_path: Path) -> None:
    folder = written(tmp_path / "edits", "llama", deltas_of("llama"))
    done = export_model(str(folder), tmp_path / "lora", adapter=True, dtype="bfloat16", say=lambda line: None)
    assert done.dtype == "bfloat16"
    assert any("rounded to bfloat16" in note for note in done.notes)


def test_no_edits_are_no_adapter(tmp_path: Path) -> None:
    folder = written(tmp_path / "none", "llama", [])
    with pytest.raises(PosttrainError, match="none: there are no edits to write as an adapter; all were taken back"):
        export_model(str(folder), tmp_path / "lora", adapter=True, say=lambda line: None)
    assert not (tmp_path / "lora").exists()
    export_model(str(folder), tmp_path / "whole", say=lambda line: None)
    alone = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32)
    assert not changed(alone, bits(lively().model))


def test_each_module_has_its_own_rank(tmp_path: Path) -> None:
    folder = written(tmp_path / "edits", "llama", deltas_of("llama"))
    (tmp_path / "lora").mkdir()
    tensors = write_lora(folder, tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text(encoding="utf-8"))
    modules = [f"model.layers.{i}.mlp.down_proj" for i in (0, 1)]
    assert config["rank_pattern"] == config["alpha_pattern"] == dict(zip(modules, (5, 33), strict=True))
    assert config["base_model_name_or_path"] == str(lively_folder())
    assert {name: tuple(t.shape) for name, t in tensors.items() if "layers.0" in name} == {
        "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight": (5, 64),
        "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight": (32, 5),
    }
