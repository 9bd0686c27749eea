"""The model before training, for objectives and terms that compare with it.

An adapter is switched off for the moment, which costs no memory. Where training moves the model's own weights, a frozen
copy is asked, or the same model in the hands of the caller.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from peft import LoraConfig, PeftModel
from torch import nn

from posttrain.models.added import ADDED, added_to

__all__ = ["Reference", "can_be_switched_off"]


def can_be_switched_off(tuned: nn.Module) -> bool:
    """Whether the parts of a tuner can be taken out of the forward pass for a moment, so that the model before training
    is left. PiSSA's cannot: it takes its adapter out of the model's own weights."""
    if isinstance(tuned, PeftModel):
        config = tuned.peft_config[tuned.active_adapter]
        own = isinstance(config, LoraConfig) and str(config.init_lora_weights).startswith("pissa")
        return not own and not any("modules_to_save" in name for name, _ in tuned.named_parameters())
    return added_to(tuned) is not None and all(
        not p.requires_grad or name.startswith(ADDED) for name, p in tuned.named_parameters()
    )


class Reference:
    """Gives the model before training. copy: a frozen copy; None where the adapter can be switched off, or where the
    model is asked only before its first step (`start_only`)."""

    def __init__(self, tuned: nn.Module, copy: nn.Module | None, *, start_only: bool = False) -> None:
        self.tuned = tuned
        self.copy = copy
        self.start_only = start_only
        self.begun = False

    def training_begins(self) -> None:
        """Note that the tuned model is no longer the model before training."""
        self.begun = True

    @contextlib.contextmanager
    def model(self) -> Iterator[nn.Module]:
        """Give the reference model, in evaluation mode and without gradients, while the block lasts."""
        assert not (self.start_only and self.begun), "a form that asks the reference in training must say so"
        model = self.copy if self.copy is not None else self.tuned
        was_training = model.training
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if self.copy is None and not self.start_only:
                if isinstance(self.tuned, PeftModel):
                    stack.enter_context(self.tuned.disable_adapter())
                else:
                    added = added_to(self.tuned)
                    assert added is not None
                    stack.enter_context(added.switched_off())
            model.eval()
            try:
                yield model
            finally:
                model.train(was_training)
