"""Folders of parts of our own: there and back, what does not fit, what was never there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from posttrain.errors import PosttrainError
from posttrain.models.added import Added, added_to, attach, load_added, save_added, set_added_state
from posttrain.models.bottleneck import Bottlenecks
from posttrain.models.notes import HeadNotes
from posttrain.models.prefix import Prefix
from posttrain.tuners._moved import count_moved
from tests.models.test_bottleneck import SETTINGS as BOTTLENECK
from tests.models.test_bottleneck import encoder
from tests.models.test_prefix import IDS, made
from tests.models.test_prefix import SETTINGS as PREFIX
from tests.pico import FAMILIES, config

PARTS: dict[str, tuple[type[Added], dict[str, Any]]] = {
    "adapter": (Bottlenecks, BOTTLENECK),
    "ptuning_v2": (Prefix, PREFIX | {"projection": "v2"}),
}


def tuned(model: Any, kind: str, **settings: Any) -> Any:
    """The part in the model, everything that moves somewhere else than at its start."""
    part, usual = PARTS[kind]
    moving = [n for n, _ in model.named_parameters() if n.endswith("norm.weight")]
    attach(model, part(model, {**usual, **settings}), moving=moving)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def saved(model: Any, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    save_added(model, folder)
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return config


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
@torch.no_grad()
def test_there_and_back_with_heads_and_norms(kind: str, family: str, tmp_path: Path) -> None:
    def base() -> Any:
        return encoder("bert") if family == "bert" else made(family)

    model = tuned(base(), kind)
    noted = saved(model, tmp_path / "one")
    again: Any = load_added(base(), tmp_path / "one", noted)
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert not torch.allclose(again(IDS).logits, base()(IDS).logits, atol=1e-4)
    assert not any(p.requires_grad for p in again.parameters())
    assert not again.training
    saved(again, tmp_path / "two")  # a model at rest is saved with all that it had
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)
    if family == "bert":
        assert {"classifier.weight", "classifier.bias"} < set(first)
    added = added_to(again)
    assert added is not None
    with added.switched_off():
        assert torch.equal(again(IDS).logits, base()(IDS).logits)


def test_one_part_to_a_model() -> None:
    model = tuned(made("llama"), "adapter")
    with pytest.raises(PosttrainError, match="has an added part already"):
        attach(model, Prefix(model, PREFIX))


def test_what_does_not_fit_is_named_with_both_shapes(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    noted = saved(tuned(made("llama"), "adapter"), folder)
    wider = {**noted, "settings": noted["settings"] | {"size": 9}}
    with pytest.raises(PosttrainError, match=r"down.bias is \(8,\), the model's \(9,\)"):
        load_added(made("llama"), folder, wider)
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(iter(tensors))
    rest = {k: t for k, t in tensors.items() if k != name}
    save_file({**rest, "stranger": torch.zeros(1)}, folder / "adapter_model.safetensors")
    with pytest.raises(PosttrainError, match=rf"{name} is missing; stranger is not part of it"):
        load_added(made("llama"), folder, noted)
    (folder / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(PosttrainError, match="cannot be read"):
        set_added_state(tuned(made("llama"), "adapter"), folder)
    with pytest.raises(PosttrainError, match="unknown posttrain_tuner 'tape'; known: adapter, "):
        load_added(made("llama"), folder, {**noted, "posttrain_tuner": "tape"})
    with pytest.raises(PosttrainError, match="its settings lack 'where'"):
        load_added(made("llama"), folder, {**noted, "settings": {}})


def test_nothing_of_a_failed_reading_stays(tmp_path: Path) -> None:
    """Shapes are compared before anything is written."""
    folder = tmp_path / "a"
    saved(tuned(made("llama"), "adapter"), folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    last = list(tensors)[-1]
    save_file(tensors | {last: torch.zeros(2)}, folder / "adapter_model.safetensors")
    model = made("llama")
    attach(model, Bottlenecks(model, BOTTLENECK))
    before = model(IDS).logits
    with pytest.raises(PosttrainError):
        set_added_state(model, folder)
    assert torch.equal(model(IDS).logits, before)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_weights_can_be_counted(family: str) -> None:
    """What `--dry-run` does: shapes alone."""
    for kind, (part, settings) in PARTS.items():
        real = made(family)
        attach(real, part(real, settings))
        with torch.device("meta"):
            empty: Any = transformers.AutoModelForCausalLM.from_config(config(family))
        attach(empty, part(empty, settings))
        assert count_moved(empty) == count_moved(real), kind


def test_what_the_configuration_notes_as_new_moves_too() -> None:
    model = encoder("bert")
    notes = HeadNotes("sequence", ("a", "b"), {}, ("classifier", "bert.pooler"))
    model.config.posttrain_head = notes.to_json()
    attach(model, Bottlenecks(model, BOTTLENECK))
    own = {
        n.rsplit(".", 1)[0] for n, p in model.named_parameters() if p.requires_grad and not n.startswith("posttrain_")
    }
    assert own == {"classifier", "bert.pooler.dense"}
