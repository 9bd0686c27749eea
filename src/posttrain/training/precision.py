"""Choose the arithmetic of a run, with the reason, and hold frozen weights in bfloat16 while a run trains on a CPU.

Plain autocast casts a frozen float32 weight at every use. Therefore the frozen linear layers of a PEFT model are cast
to bfloat16 once, for the duration of training; trained parameters stay float32. Afterwards the frozen weights are
restored bit by bit: from the float32 tensor that was kept, or from the bfloat16 tensor if it holds the weights exactly
(most models are published in bfloat16).

A base with bfloat16 weights is saved as bfloat16 again, so that the result needs as much disk space as the base. The
model in memory is rounded in the same way, so that the exam examines the saved model. Adapters stay float32; they are
small.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.models.adapters import plain_lora
from posttrain.models.added import added_to
from posttrain.models.head_loss import head_kept
from posttrain.models.memory import few_kernels
from posttrain.models.processor import processor
from posttrain.models.tensors import stored_dtype
from posttrain.training.config import SaveDtype, TrainConfig
from posttrain.training.short_attention import attending_briefly
from posttrain.training.slim_blocks import Kinds, kinds_of, slim_blocks
from posttrain.training.slim_lora import Joined, alone

__all__ = ["Lowered", "arithmetic", "precision_of", "rounded_as_saved", "saved_bytes", "unused_dtype"]

BIG_ON_GPU = 1_000_000_000
"""Number of parameters from which `precision: auto` computes in bfloat16 on a GPU that supports it."""
BIG_ON_CPU = 50_000_000
"""Number of parameters from which it does so on a CPU with AMX or AVX512-BF16. For smaller models the overhead costs
more than bfloat16 saves.
"""
ALL: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The dtypes by the names that `save_dtype` uses."""

WHOLE = ("full", "freeze", "bitfit")
"""Tuners that produce a whole model; the others produce an adapter."""


def arithmetic(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[None]:
    """Return a context that computes forward passes in `dtype`, or in the precision of the weights if it is None."""
    if dtype is None:
        return contextlib.nullcontext()
    cast: contextlib.AbstractContextManager[None] = torch.autocast(device.type, dtype=dtype)
    return cast


class Precision(NamedTuple):
    """dtype: of the forward pass if it is lower than that of the weights, else None; reason: shown to the user."""

    dtype: torch.dtype | None
    reason: str

    def __str__(self) -> str:
        return f"precision: {'float32' if self.dtype is None else 'bfloat16'}, {self.reason}"


def precision_of(config: TrainConfig, model: nn.Module, device: torch.device | None = None) -> Precision:
    """Resolve `config.precision` for this model on its device (or on `device`, for a model without weights)."""
    if config.precision != "auto":
        return Precision(torch.bfloat16 if config.precision == "bf16" else None, "as configured")
    parameters = list(model.parameters())
    count = sum(p.numel() for p in parameters)
    device = device or parameters[0].device
    if device.type == "cuda":
        if not torch.cuda.is_bf16_supported():
            return Precision(None, "since this GPU has no bfloat16")
        big = count >= BIG_ON_GPU
        return Precision(torch.bfloat16 if big else None, f"since the model has {count:,} parameters")
    if device.type != "cpu" or count < BIG_ON_CPU:
        return Precision(None, f"since the model has only {count:,} parameters")
    able = processor()
    if able.fast_bf16 and not keeps_updates(model):
        return Precision(None, "since in bfloat16 only plain LoRA learns what it learns in float32 (docs/training.md)")
    return Precision(torch.bfloat16 if able.fast_bf16 else None, f"since {able.reason}")


def keeps_updates(model: nn.Module) -> bool:
    """Return whether every trained parameter is in a plain LoRA layer.

    Such a layer adds up small updates before it rounds. In other parameters an update vanishes if it is smaller than
    half of the last digit of the weight to which it is added.
    """
    places = {f"{name}." for name, module in model.named_modules() if plain_lora(module)}
    moving = [name for name, p in model.named_parameters() if p.requires_grad]
    return bool(places) and all(".lora_" in name and f"{name.rpartition('.lora_')[0]}." in places for name in moving)


class Lowered:
    """Within `with lowered:` a model trains on a CPU in bfloat16.

    Its frozen weights are bfloat16, LoRA layers make fewer passes over memory, and attention over short rows uses plain
    matrix products. The context may be entered again after it was left. It changes nothing if `dtype` is None, on a
    GPU, or if several processes train.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None) -> None:
        self.model, self.dtype = model, dtype
        alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
        self.works = dtype is not None and alone and all(p.device.type == "cpu" for p in model.parameters())
        if self.works:
            few_kernels()
        self.held: list[tuple[Tensor, Tensor | None]] = []
        self.inside = contextlib.ExitStack()
        self.entered = False
        self.found: Kinds | None = None

    @property
    def kinds(self) -> Kinds:
        """Return the blocks that `slim_blocks` computes inside the context. They are searched at the first call, while
        the model is still unchanged.
        """
        if self.found is None:
            able = self.works and isinstance(self.model, PeftModel)
            self.found = kinds_of(self.model) if able else Kinds([], [], [])
        return self.found

    def token_bytes(self) -> int | None:
        """Return about how many bytes training keeps of each token until the backward pass, or None.

        It counts the inputs and outputs of every matrix of the blocks, in bfloat16, and adds a tenth for the statistics
        of norms and of attention over short rows: 0.67 MB for SmolLM2-135M, for which 0.64 MB were measured.

        None means that some plain LoRA layer is not in a block that `slim_blocks` computes, or that there is no such
        block.
        """
        layers: list[Any] = [m for m in self.model.modules() if plain_lora(m)]
        taken = 3 * len(self.kinds.gates) + 4 * len(self.kinds.attentions)
        if not taken or taken < len(layers):
            return None
        return int(sum(sum(layer.base_layer.weight.shape) for layer in layers) * 2 * 1.1)

    def __enter__(self) -> Lowered:
        if self.works and not self.entered:
            self.entered = True
            assert self.dtype is not None
            if isinstance(self.model, PeftModel):
                kinds = self.kinds
                self._lower(self.dtype)
                self.inside.enter_context(_slim(self.model, self.dtype, kinds))
            self.inside.enter_context(attending_briefly(self.model))
            self.inside.enter_context(head_kept(self.model, self.dtype))
        return self

    def __exit__(self, *error: object) -> None:
        if self.entered:
            self.entered = False
            self.inside.close()
            self._raise()

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        """Restore the model to its state before `with lowered:` during the block, for exams and for saving."""
        was = self.entered
        self.__exit__()
        try:
            yield
        finally:
            if was:
                self.__enter__()

    @torch.no_grad()
    def _lower(self, dtype: torch.dtype) -> None:
        """Lower the weights of linear layers only.

        Norms and the residual stream stay float32, as under autocast. A residual stream in bfloat16 changes a loss of
        3.5 nats by 0.010, one in float32 by 0.002 (SmolLM2-135M)."""
        embedded = {id(m.weight) for m in self.model.modules() if isinstance(m, nn.Embedding)}
        for module in self.model.modules():
            parameter = module.weight if isinstance(module, nn.Linear) else None
            if not isinstance(parameter, nn.Parameter) or id(parameter) in embedded or parameter.requires_grad:
                continue
            if parameter.dtype == torch.float32:
                low = parameter.data.to(dtype)
                self.held.append((parameter, None if torch.equal(low.float(), parameter.data) else parameter.data))
                parameter.data = low

    @torch.no_grad()
    def _raise(self) -> None:
        while self.held:
            parameter, exact = self.held.pop()
            parameter.data = parameter.data.contiguous().float() if exact is None else exact


@contextlib.contextmanager
def _slim(model: nn.Module, dtype: torch.dtype, kinds: Kinds) -> Iterator[None]:
    """Make blocks of these kinds, and plain LoRA layers outside of them, use fewer passes over memory during the block.
    Base weights must have the dtype `dtype` already."""
    plain: list[Any] = [module for module in model.modules() if plain_lora(module)]
    plain = [layer for layer in plain if layer.base_layer.weight.dtype == dtype]
    low, taken = {id(layer) for layer in plain}, set[int]()
    groups: list[Joined] = []

    def join(layers: list[Any]) -> Joined:
        groups.append(Joined(layers))
        taken.update(id(layer) for layer in layers)
        return groups[-1]

    with torch.no_grad(), contextlib.ExitStack() as stack:
        stack.callback(alone, groups)
        stack.enter_context(slim_blocks(kinds.within(low), join))
        for layer in plain:
            if id(layer) not in taken:
                join([layer])
        ended = stack.pop_all()
    with ended:
        yield


def unused_dtype(save_dtype: SaveDtype, kind: str) -> str:
    """Return a sentence if `save_dtype` has no effect for this kind of tuner, else an empty string. Tuners that produce
    an adapter always save it in float32.
    """
    if save_dtype in ("auto", "float32") or kind in WHOLE:
        return ""
    return f"save_dtype: {save_dtype} is for whole models: what {kind} leaves is an adapter, saved in float32"


def rounded_as_saved(
    config: TrainConfig, model: PreTrainedModel | PeftModel, say: Callable[[str], None]
) -> torch.dtype | None:
    """Round the weights of a model in place to the precision in which it is saved, and return that precision. None
    means that the model is saved in the precision it has in memory.
    """
    if isinstance(model, PeftModel) or added_to(model) is not None:
        return None
    auto = config.save_dtype == "auto"
    named = _named(config)
    if named is None or all(p.dtype == ALL[named] for p in model.parameters()):
        return None
    dtype = ALL[named]
    if dtype == torch.float32:
        return None if auto else dtype
    largest = torch.finfo(dtype).max
    if any(bool((p.detach().abs() > largest).any()) for p in model.parameters()):
        say(f"the model has numbers that {named} cannot hold: it is saved as it is")
        return None
    far, size = _round(model, dtype)
    lost = f"rounding moves the weights by {far / max(size, 1e-30):.1e} of their size"
    if auto:
        say(f"saved in {named}, as its base is ({config.model}): {lost}; save_dtype: float32 keeps every bit")
    else:
        say(f"saved in {named}, as save_dtype says: {lost}")
    return dtype


def saved_bytes(config: TrainConfig, model: PreTrainedModel | PeftModel) -> int:
    """Return about how many bytes the result's weights take on disk. For an adapter the trained parameters are counted,
    for a whole model all parameters in the precision of saving.
    """
    if isinstance(model, PeftModel) or added_to(model) is not None:
        return 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    named = _named(config)
    return ALL[named or "float32"].itemsize * sum(p.numel() for p in model.parameters())


def _named(config: TrainConfig) -> str | None:
    """Return the precision that the settings or else the base's files name; None if neither names one."""
    if config.save_dtype != "auto":
        return config.save_dtype
    return stored_dtype(config.model, offline=not config.download, trust_remote_code=config.trust_remote_code)


@torch.no_grad()
def _round(model: Any, dtype: torch.dtype) -> tuple[float, float]:
    """Round in place; return how far the weights moved and how large they are, as roots of sums of squares."""
    far = size = 0.0
    for p in model.parameters():
        rounded = p.to(dtype).to(p.dtype)
        far += float((rounded - p).double().square().sum())
        size += float(p.double().square().sum())
        p.copy_(rounded)
    return far**0.5, size**0.5
