"""A steering vector: one vector that is added to what a layer gives on to the next one, at every token or in answers.

    h' = h + strength * v,   h: the output of the layer, (B, T, D);   v: (D,), float32

Subramani et al. 2022, arXiv:2205.05124; Rimsky et al. 2024, arXiv:2312.06681. No weight of the model changes, and the
vector does not depend on the token, so shared beginnings, caches and padding are read as in the model itself. With
`where: answer` it is added from the last token of the prompt on. Then equal beginnings of two rows may differ inside,
and such a model reads every row alone. The prompt's last token is found by the ids that the chat template writes
before an answer; a text without them (plain text) is read as the model itself reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from posttrain.errors import PosttrainError, Problem
from posttrain.models.added import Added

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["SteeringVector", "ends_of"]


class SteeringVector(Added):
    """The vector and its strength. The settings are: layer (its number), module (its name), where (all, answer), header
    (the token ids before an answer; empty with `where: all`).

    Parameters have names that hold the layer and the place, so that the fingerprints of two steered models differ if
    they answer differently. Only the vector can be trained.
    """

    kind: ClassVar[str] = "steering_vector"

    def __init__(self, model: PreTrainedModel, settings: Mapping[str, Any]) -> None:
        super().__init__(model, settings)
        self.module, self.header = str(settings["module"]), [int(i) for i in settings["header"]]
        self.in_answers = settings["where"] == "answer"
        if self.module not in dict(model.named_modules()):
            cause = f"{type(model).__name__} has no layer '{self.module}', behind which the vector is added"
            raise PosttrainError(Problem(model.name_or_path, cause, "use it with its own base"))
        if self.in_answers and model._is_stateful:
            cause = f"{type(model).__name__} has recurrent layers, and where: answer is told from its cache"
            raise PosttrainError(Problem(model.name_or_path, cause, "where: all"))
        place = f"{settings['where']}_after_{int(settings['layer'])}"
        self.names = (f"vector_{place}", f"strength_{place}")
        self.register_parameter(self.names[0], nn.Parameter(torch.zeros(model.config.get_text_config().hidden_size)))
        self.register_parameter(self.names[1], nn.Parameter(torch.ones(1), requires_grad=False))
        self.begun = torch.zeros(0, dtype=torch.bool)
        self.steered = torch.zeros(0, 0, dtype=torch.bool)

    @property
    def vector(self) -> nn.Parameter:
        """The vector v, (D,)."""
        return self.get_parameter(self.names[0])

    @property
    def strength(self) -> float:
        """What the vector is multiplied by."""
        return float(self.get_parameter(self.names[1]))

    @strength.setter
    def strength(self, value: float) -> None:
        self.get_parameter(self.names[1]).data.fill_(value)

    def why_alone(self) -> str:
        """Return why rows must be read one by one; "" with `where: all`."""
        return "its steering vector begins at the last token of each prompt" if self.in_answers else ""

    def connect(self, model: PreTrainedModel) -> None:
        """Register a hook on the layer, and with `where: answer` one that sees the token ids."""
        model.get_submodule(self.module).register_forward_hook(self.behind)
        if self.in_answers:
            model.base_model.register_forward_pre_hook(self.see, with_kwargs=True)

    def see(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Find the tokens that are steered, before each forward pass. A pass with a cache continues the rows of the
        pass before. Raise PosttrainError for a pass without token ids, and for one that continues other rows.
        """
        if not self.on:
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        cause = "where: answer is told from token ids, and this forward pass has none" if ids is None else ""
        cache = kwargs.get("past_key_values")
        continued = cache is not None and cache.get_seq_length() > 0
        if continued and ids is not None and len(ids) != len(self.begun):
            cause = "where: answer continues the rows of the forward pass before, and these are others"
        if cause:
            raise PosttrainError(Problem(type(module).__name__, cause, "where: all"))
        at = torch.arange(ids.shape[1], device=ids.device)
        ends = ends_of(ids, self.header)[:, None]
        self.steered = (ends >= 0) & (at >= ends)
        if continued:
            self.steered |= self.begun[:, None]
        self.begun = self.steered[:, -1]

    def behind(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Add the vector to the hidden states, which are the output or the first of several outputs. This is the
        forward hook; it computes in float32 or finer.
        """
        if not self.on:
            return None
        states: Tensor = output[0] if isinstance(output, tuple) else output
        precise = torch.promote_types(states.dtype, torch.float32)
        push = (self.get_parameter(self.names[1]) * self.vector).to(states.device, precise)
        if self.in_answers:
            push = push * self.steered[..., None].to(push)
        moved = (states.to(precise) + push).to(states.dtype)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved


def ends_of(ids: Tensor, header: list[int]) -> Tensor:
    """Return for each row of ids (B, T) the index of the last token of the last `header` in it, -1 if there is none."""
    wanted = torch.tensor(header, device=ids.device)
    if not header or ids.shape[1] < len(header):
        return ids.new_full((len(ids),), -1)
    found = (ids.unfold(1, len(header), 1) == wanted).all(-1)  # (B, T - k + 1)
    at = torch.arange(found.shape[1], device=ids.device)
    last = torch.where(found, at, at.new_tensor(-1)).amax(1)
    return torch.where(last >= 0, last + len(header) - 1, last)
