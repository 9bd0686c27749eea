"""P-Tuning, the first: virtual tokens made by a small network. Liu et al. 2021, arXiv:2103.10385.

    e_1 ... e_P = MLP(v_1 ... v_P)   or   MLP(LSTM(v_1 ... v_P)),   v and the network move

The network makes the vectors depend on each other while they are learned; it is not needed afterwards. PEFT builds it.
The result is saved as a PEFT adapter folder that holds only the P vectors; a checkpoint keeps the network too, so that
training can continue. The virtual tokens come before every row, as in prompt tuning, not between its words.
"""

from __future__ import annotations

from typing import Literal

from peft import PeftModel, PromptEncoderConfig
from pydantic import Field
from transformers import PreTrainedModel

from posttrain.registry import register
from posttrain.tuners._peft import put_in, refuse_looking_back
from posttrain.tuners._virtual import VirtualTokens

__all__ = ["PTuningConfig", "p_tuning"]


class PTuningConfig(VirtualTokens):
    """Train virtual tokens through a small network."""

    kind: Literal["p_tuning"] = "p_tuning"
    """P-Tuning v1."""
    encoder: Literal["mlp", "lstm"] = "mlp"
    """The network: three linear layers, or a two-way LSTM before two."""
    hidden_size: int | None = Field(None, ge=1)
    """Width inside the network; the model's hidden size when left out."""
    lstm_layers: int = Field(2, ge=1)
    """Layers of the LSTM."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout between the LSTM's layers."""


@register("tuner", "p_tuning", config=PTuningConfig, paper="arXiv:2103.10385")
def p_tuning(model: PreTrainedModel, config: PTuningConfig) -> PeftModel:
    """Freeze the model and put virtual tokens before its input; return the PEFT model. The weights are not changed."""
    refuse_looking_back(model, "p_tuning")
    lstm = config.encoder == "lstm"
    adapter = PromptEncoderConfig(
        num_virtual_tokens=config.tokens,
        encoder_reparameterization_type="LSTM" if lstm else "MLP",
        encoder_hidden_size=config.hidden_size or model.config.get_text_config().hidden_size,
        **({"encoder_num_layers": config.lstm_layers, "encoder_dropout": config.dropout} if lstm else {}),
    )
    return put_in(model, adapter, seed=config.seed)
