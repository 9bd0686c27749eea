"""Give the model before training to objectives and penalties that compare with it.

An adapter is switched off for the comparison, which costs no memory. If training changes the model's own weights, the
reference is a frozen copy, or the same model if the caller keeps an unchanged one.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel

from posttrain.models.added import ADDED, added_to

__all__ = ["Reference", "reference_of"]


def can_be_switched_off(tuned: nn.Module) -> bool:
    """Return whether the parts that a tuner adds can be switched off, so that the model before training remains. This
    is not possible for PiSSA, since it subtracts its adapter from the model's own weights.
    """
    if isinstance(tuned, PeftModel):
        config = tuned.peft_config[tuned.active_adapter]
        own = isinstance(config, LoraConfig) and str(config.init_lora_weights).startswith("pissa")
        return not own and not any("modules_to_save" in name for name, _ in tuned.named_parameters())
    return added_to(tuned) is not None and all(
        not p.requires_grad or name.startswith(ADDED) for name, p in tuned.named_parameters()
    )


@dataclass
class Reference:
    """The object that gives the model before training. copy: a frozen copy; None if the adapter can be switched off, or
    if the reference is used only before the first step (`start_only`); begun: whether training has begun.
    """

    tuned: nn.Module
    copy: nn.Module | None
    start_only: bool = False
    begun: bool = False

    @contextlib.contextmanager
    def model(self) -> Iterator[nn.Module]:
        """Give the reference model, in evaluation mode and without gradients, during the block."""
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


def reference_of(
    tuned: PreTrainedModel | PeftModel,
    *,
    needed: bool,
    say: Callable[[str], None],
    continued: bool = False,
    before: PreTrainedModel | None = None,
) -> Reference:
    """Return the reference of a run.

    It is the tuned model with its adapter switched off, if that is possible; else `before`, the same model that the
    caller keeps unchanged; else a frozen copy. A copy is made only if it is needed during training.
    """
    if can_be_switched_off(tuned) and not continued:
        return Reference(tuned, None)
    if not needed:
        return Reference(tuned, None, start_only=True)
    if before is not None and not continued and type(before) is type(tuned) and before.dtype == tuned.dtype:
        say("the untouched model is asked beside it, to compare with")
        return Reference(tuned, before)
    say("a frozen copy of the model is kept beside it, to compare with")
    frozen = copy.deepcopy(tuned)
    frozen.requires_grad_(False)
    frozen.eval()
    return Reference(tuned, frozen)
