"""Rows whose hidden states are led astray or held: the form of `rmu`.

New rows are the forget set, replayed rows the retain set. The states after a block come from the whole model with
`output_hidden_states`; the blocks after it are computed and not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from posttrain.data.batching import length_batches
from posttrain.data.chat import IGNORED, Encoded
from posttrain.data.preferences import FromTargets
from posttrain.data.records import Conversation
from posttrain.errors import ConfigError, Problem
from posttrain.models.adapters import virtual_columns
from posttrain.models.logits import core_of, keeps_logits
from posttrain.models.meter import Meter
from posttrain.objectives._loss import Loss
from posttrain.objectives.rmu import RmuConfig, direction
from posttrain.training.forms.base import MicroBatch, Preparation, Scales
from posttrain.training.forms.tokens import TokenBatch, TokensForm
from posttrain.training.forms.unlearning import check_sets, forget_from_targets

__all__ = ["RepresentationsForm", "states_after"]


def states_after(model: nn.Module, input_ids: Tensor, layer: int) -> Tensor:
    """Hidden states (B, T, D) after block `layer` (from 0; of the last one, they have gone through the final norm)."""
    keeps = keeps_logits(type(core_of(model)))  # type: ignore[arg-type]  # a class can be hashed
    options: dict[str, Any] = {"logits_to_keep": 1} if keeps else {}
    said = model(input_ids=input_ids, use_cache=False, output_hidden_states=True, **options)
    states: Tensor = said.hidden_states[layer + 1]
    return states[:, virtual_columns(model) :]


class RepresentationsForm(TokensForm):
    """Forget rows and retain rows; one unit per row."""

    takes_terms: ClassVar[bool] = False
    old_apart: ClassVar[bool] = False
    objective: RmuConfig

    @classmethod
    def asks_reference(cls, objective: Any) -> bool:
        return True

    @classmethod
    def needs_rows(cls, objective: Any) -> bool:
        return True

    @classmethod
    def from_targets(cls, targets: Sequence[Conversation], present: Callable[[], list[str]]) -> FromTargets[Any]:
        """Learn to forget the present answers."""
        return forget_from_targets(targets, present())

    def units(self, row: Encoded) -> int:
        return 1

    def scales(self, new_units: int, old_units: int) -> Scales:
        """Two means; alpha weighs that of the retain rows."""
        return Scales(1.0 / max(new_units, 1), self.objective.alpha * self.setup.old_weight / max(old_units, 1))

    def prepare(self, preparation: Preparation) -> None:
        """Check the layer and the two sets; say how long the states are that training makes `steering` long."""
        blocks = int(core_of(preparation.model).config.get_text_config().num_hidden_layers)
        layer = self.objective.layer
        if layer >= blocks - 1:
            cause = f"the model has {blocks} blocks, 0 to {blocks - 1}, and the last one cannot be led astray"
            raise ConfigError(Problem("objective.layer", cause, f"give a layer from 0 to {blocks - 2}"))
        check_sets("rmu", "must", preparation)
        forget = preparation.new
        sizes = [self.size(row) for row in forget]
        total = count = 0.0
        with Meter("measuring the states of the forget rows", len(forget), "rows") as meter:
            for numbers in length_batches(sizes, tokens=preparation.tokens, seed=0, epoch=0):
                micro = self.micro_batch([forget[i] for i in numbers], [False] * len(numbers))
                mask = (micro.targets != IGNORED).to(self.device)
                with preparation.reference.model() as reference:
                    lengths = states_after(reference, micro.input_ids.to(self.device), layer).float().norm(dim=-1)
                total, count = total + float((lengths * mask).sum()), count + float(mask.sum())
                meter.more(len(numbers), tokens=sum(sizes[i] for i in numbers))
        preparation.say(
            f"rmu: the states after block {layer} are {total / max(count, 1):.2f} long on the forget rows; "
            f"they shall become {self.objective.steering:g} long"
        )

    @property
    def supervise_all(self) -> bool:
        """Whether the states of every token count; the batch's targets then say which tokens there are."""
        return self.objective.tokens == "all"

    def loss(self, model: nn.Module, micro: MicroBatch) -> Loss:
        assert isinstance(micro, TokenBatch)
        assert self.setup.reference is not None
        layer = self.objective.layer
        input_ids = micro.input_ids.to(self.device)
        old = micro.old.to(self.device)
        before = None
        if bool(micro.old.any()):
            with self.setup.reference.model() as reference:
                before = states_after(reference, input_ids[old], layer)
        states = states_after(model, input_ids, layer)
        unit = direction(states.shape[-1], self.objective.seed).to(states.device)
        return self.setup.function(states, (micro.targets != IGNORED).to(self.device), old, unit, before)
