"""Put the weights of a saved adapter into a model that has an adapter of the same kind, to resume or to go on."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from posttrain.errors import ConfigError, Problem
from posttrain.models.adapters import set_peft_state
from posttrain.models.added import added_to, set_added_state

__all__ = ["set_adapter_state"]


def set_adapter_state(model: PreTrainedModel | PeftModel, folder: Path) -> None:
    """Load the weights in place. TrainingError for the weights of another adapter: a partial load would train on
    silently; ConfigError for a model without an adapter."""
    if isinstance(model, PeftModel):
        set_peft_state(model, folder)
    elif added_to(model) is not None:
        set_added_state(model, folder)
    else:
        raise ConfigError(
            Problem(str(folder), "is an adapter, and this tuner makes none", "use the tuner that made it")
        )
