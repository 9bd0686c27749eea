"""Trainable parts that posttrain itself adds to a model. They are saved as an adapter folder and can be loaded again.

PEFT has no Houlsby adapters, and its prefixes shift positions. A part is the model's submodule `posttrain_added`, so
the model stays a `PreTrainedModel`. The folder has `adapter_config.json`, with `posttrain_tuner` instead of PEFT's
`peft_type`, and `adapter_model.safetensors`. The new head of a classifier, tagger or reader is trained together with
the part. A few parameters of the model (its layer norms) may be trained too. Both are saved, and `switched_off` sets
them back to their values at the start.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from posttrain.errors import PosttrainError, Problem
from posttrain.models.fingerprint import remember_base
from posttrain.models.notes import head_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from posttrain.models.examples import Example

__all__ = [
    "ADDED",
    "Added",
    "added_to",
    "at_rest",
    "attach",
    "load_added",
    "merged_added",
    "save_added",
    "set_added_state",
    "two_tokens",
]

ADDED = "posttrain_added"
"""Name of the submodule that holds the part."""

KINDS: dict[str, str] = {
    "adapter": "posttrain.models.bottleneck:Bottlenecks",
    "diff_pruning": "posttrain.models.pruned:PrunedChange",
    "fishmask": "posttrain.models.sparse:SparseChange",
    "loreft": "posttrain.models.loreft:Loreft",
    "ptuning_v2": "posttrain.models.prefix:Prefix",
    "steering_vector": "posttrain.models.steering_vector:SteeringVector",
}
"""Maps `posttrain_tuner` of an adapter folder to a module and a class, as `module:class`."""


class Added(nn.Module, ABC):
    """A part that is put into a model. Training changes the part's parameters; the model's own parameters are frozen.

    A subclass sets `kind` (the folder's `posttrain_tuner`). It is made from the model and its settings (a plain dict,
    which is written to adapter_config.json), and it registers its hooks in `connect`.
    """

    kind: ClassVar[str]
    looks_at_rows: ClassVar[bool] = False
    """Whether `look` is called with training rows before the first step."""

    def __init__(self, model: PreTrainedModel, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.settings = dict(settings)
        self.on = True
        # Parameters of the model that are trained too; in plain dicts, because they are not parameters of this module.
        self.moving: dict[str, nn.Parameter] = {}
        self.start: dict[str, Tensor] = {}

    def why_alone(self) -> str:
        """Return why rows must be read one by one, without shared beginnings; "" if they may share them."""
        return ""

    @abstractmethod
    def connect(self, model: PreTrainedModel) -> None:
        """Register hooks. They must be bound methods of submodules, so that a deep copy of the model calls its own
        hooks.
        """

    def look(self, model: Any, examples: Callable[[int], Sequence[Example]], say: Callable[[str], None]) -> None:
        """Prepare for training. It is called before the first step, with the model in eval mode. `examples(n)` returns
        at most n of the training rows.
        """

    def finish(self, say: Callable[[str], None]) -> None:
        """Finish training. It is called after the last step."""

    def make_room(self, tensors: Mapping[str, Tensor]) -> None:
        """Give parameters the sizes of a folder's tensors. It is called before these tensors are loaded."""

    def merge(self, model: PreTrainedModel) -> None:
        """Add the change to the model's own weights. Raise PosttrainError if the part is not a change of weights."""
        cause = f"a {self.kind} adapter cannot be merged into its base"
        raise PosttrainError(Problem(model.name_or_path, cause, "use it beside it"))

    @contextlib.contextmanager
    def switched_off(self) -> Iterator[None]:
        """Within this block the model computes as if nothing had been added."""
        was, self.on = self.on, False
        moved = {name: p.data for name, p in self.moving.items()}
        for name, p in self.moving.items():
            p.data = self.start[name].to(p)
        try:
            yield
        finally:
            self.on = was
            for name, p in self.moving.items():
                p.data = moved[name]

    def to_save(self) -> dict[str, Tensor]:
        """Return all tensors that are needed to continue training, by name."""
        return dict(self.state_dict())


def added_to(model: nn.Module) -> Added | None:
    """Return the part that was added to a model; None if there is none."""
    found = model._modules.get(ADDED)
    return found if isinstance(found, Added) else None


def head_parameters(model: PreTrainedModel) -> list[str]:
    """Return the names of the parameters of a head, which every tuner must train.

    These are all parameters outside the base model if the model has no output matrix of a language model, and the
    modules that the configuration names as new.
    """
    new = tuple(f"{name}." for name in head_modules(model))
    has_head = model.get_output_embeddings() is None and model.base_model is not model
    inside = (f"{model.base_model_prefix}.", f"{ADDED}.")
    return [
        name
        for name, _ in model.named_parameters()
        if name.startswith(new) or (has_head and not name.startswith(inside))
    ]


def attach(model: PreTrainedModel, added: Added, *, moving: Collection[str] = ()) -> None:
    """Freeze the model and put the part into it. `moving` names the model's own parameters that are trained too, in
    addition to those of a head. Raise PosttrainError if the model already has a part.
    """
    if added_to(model) is not None:
        raise PosttrainError(Problem(model.name_or_path, "has an added part already", "start from the model itself"))
    remember_base(model)
    names = {*moving, *head_parameters(model)}
    added.moving = {name: p for name, p in model.named_parameters() if name in names}
    added.start = {name: p.detach().clone() for name, p in added.moving.items()}
    model.requires_grad_(False)
    for parameter in added.moving.values():
        parameter.requires_grad_(True)
    added.to(next(model.parameters()).device)
    model.add_module(ADDED, added)
    added.connect(model)


@contextlib.contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Within this block the model is in eval mode. Each of its modules returns to its own mode afterwards."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, was in training.items():
            module.training = was


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within this block no parameter takes gradients. Afterwards each moves, or not, as before."""
    took = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, was in took:
            parameter.requires_grad_(was)


@torch.no_grad()
def two_tokens(model: PreTrainedModel) -> None:
    """Run one forward pass of two tokens in eval mode, so that hooks see which modules run and with which shapes. Raise
    PosttrainError if the model needs more inputs than token ids.
    """
    embedding = model.get_input_embeddings()
    ids = torch.full((1, 2), min(5, embedding.num_embeddings - 1), device=embedding.weight.device)
    try:
        with at_rest(model):
            if ids.is_meta:  # a model without weights: code that reads values (masks, warnings) would fail
                mask = torch.ones(1, 1, 2, 2, device="meta")
                model(inputs_embeds=embedding(ids), attention_mask=mask, use_cache=False)
            else:
                model(input_ids=ids)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        cause = f"two tokens cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        mend = "models that read token ids alone can be tuned so; others take lora"
        raise PosttrainError(Problem(type(model).__name__, cause, mend)) from error


def save_added(model: PreTrainedModel, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors."""
    from safetensors.torch import save_file

    from posttrain import __version__

    added = added_to(model)
    assert added is not None
    tensors = {f"{ADDED}.{name}": t for name, t in added.to_save().items()} | added.moving
    save_file({k: t.detach().cpu().clone().contiguous() for k, t in tensors.items()}, folder / WEIGHTS)
    config = {
        "posttrain_tuner": added.kind,
        "base_model_name_or_path": model.name_or_path,
        "settings": added.settings,
        "moving": sorted(added.moving),
        "posttrain": __version__,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8", newline="\n")


WEIGHTS = "adapter_model.safetensors"


def set_added_state(model: PreTrainedModel, folder: Path) -> None:
    """Load adapter_model.safetensors into a model that has the part. Raise PosttrainError that names the tensors that
    do not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    added = added_to(model)
    assert added is not None
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise PosttrainError(Problem(str(path), f"cannot be read: {error}", "copy the adapter again")) from error
    own = {k.removeprefix(f"{ADDED}."): t for k, t in tensors.items() if k.startswith(f"{ADDED}.")}
    added.make_room(own)
    expected = {f"{ADDED}.{name}": t for name, t in added.to_save().items()} | added.moving
    wrong = [f"{k} is missing" for k in expected if k not in tensors]
    wrong += [f"{k} is not part of it" for k in tensors if k not in expected]
    wrong += [
        f"{k} is {tuple(t.shape)}, the model's {tuple(expected[k].shape)}"
        for k, t in tensors.items()
        if k in expected and t.shape != expected[k].shape
    ]
    if wrong:
        cause = f"does not fit this base: {'; '.join(wrong[:3])}"
        raise PosttrainError(Problem(str(path), cause, "use it with its own base"))
    added.load_state_dict(own, strict=False)
    for name, parameter in added.moving.items():
        parameter.data.copy_(tensors[name])


def load_added(model: PreTrainedModel, folder: Path, config: Mapping[str, Any]) -> PreTrainedModel:
    """Put the part of an adapter folder into its base. Return the model frozen and in eval mode. Raise PosttrainError
    for an unknown kind of part and for settings or tensors that do not fit.
    """
    at = str(folder / "adapter_config.json")
    kind = config["posttrain_tuner"]
    if kind not in KINDS:
        raise PosttrainError(Problem(at, f"unknown posttrain_tuner '{kind}'", f"known: {', '.join(KINDS)}"))
    module, _, name = KINDS[kind].partition(":")
    made: type[Added] = vars(importlib.import_module(module))[name]
    try:
        added = made(model, config["settings"])
    except (KeyError, TypeError) as error:
        raise PosttrainError(Problem(at, f"its settings lack {error}", "copy the adapter again")) from error
    attach(model, added, moving=config.get("moving", ()))
    set_added_state(model, folder)
    return model.requires_grad_(False).eval()


def merged_added(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model with the change in its own weights and without the part. Raise PosttrainError if the change
    cannot be merged.
    """
    added = added_to(model)
    assert added is not None
    added.merge(model)
    added.on = False  # the hooks stay registered and do nothing
    del model._modules[ADDED]
    return model
