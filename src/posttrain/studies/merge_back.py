"""Examine the models on the way back from the trained model to the model before.

    theta(a) = (1 - a) theta_before + a theta_trained,   0 < a < 1

On this line in weight space, what training taught and what training lost often change at different points, so a model
on it can have most of both: a cheap remedy for refusals and skills lost in fine-tuning (Wortsman et al. 2022,
arXiv:2109.01903; for safety Farn et al. 2024, arXiv:2412.19512). Nothing is trained. a = 0 is the untouched model and
a = 1 the trained one; both are examined anyway.

LoRA's update is linear in B, so scaling B by a is the same as interpolating the merged weights. Sparse changes are
linear in their values. Other adapters that can be merged (DoRA, PiSSA, (IA)^3) are merged into a copy first. One more
copy of the trained weights is in memory meanwhile.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.errors import ConfigError, Problem
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.added import added_to
from posttrain.models.load import LoadedModel
from posttrain.models.merge_adapter import merge_peft
from posttrain.models.sparse import SparseChange
from posttrain.studies.candidates import Candidate, CellContext, Point

__all__ = ["BESIDE", "Between", "blends"]

BESIDE = ("adapter", "loreft", "prompt_tuning", "p_tuning", "prefix_tuning", "ptuning_v2", "steering_vector")
"""Tuners, and other parts, that put something beside the weights. There is no model between the one with it and the
one without it."""


class Between:
    """The models between `before` and `tuned`. Raises ConfigError if their weights do not correspond."""

    def __init__(self, tuned: PreTrainedModel | PeftModel, before: PreTrainedModel) -> None:
        self.model = tuned
        for model in (tuned, before):
            part = added_to(model)
            if part is not None and part.kind in BESIDE:
                cause = f"{part.kind} puts something beside the weights, there is nothing between"
                raise ConfigError(Problem(model.name_or_path, cause, "name another model"))
        if isinstance(tuned, PeftModel):
            self.moving = scaled_parts(tuned)
            self.start: Mapping[str, Tensor] = {name: torch.zeros_like(p) for name, p in self.moving.items()}
            if self.moving:
                return
            self.model = merge_peft(copy.deepcopy(tuned), "merge_back")
        part = added_to(tuned)
        if isinstance(part, SparseChange):
            self.moving = {change.name: change.values for change in part.all_changes()}
            self.start = {name: torch.zeros_like(values) for name, values in self.moving.items()}
            return
        own = dict(self.model.named_parameters())
        # a tied matrix has two names; if an adapter is on one of them only, merging gives each name its own matrix
        theirs = {name: p.detach() for name, p in before.named_parameters(remove_duplicate=False)}
        lacking = [name for name, _ in before.named_parameters() if name not in own]
        differ = [n for n, p in own.items() if n not in theirs or theirs[n].shape != p.shape] + lacking
        if differ or part is not None:
            cause = "the trained model's weights are not those of the model before" + (
                f": {sorted(differ)[0]}" if differ else ""
            )
            raise ConfigError(Problem("merge_back", cause, "leave merge_back out"))
        self.moving = {name: p for name, p in own.items() if not torch.equal(p.detach(), theirs[name].to(p))}
        self.start = {name: theirs[name] for name in self.moving}

    @contextmanager
    def at(self, a: float) -> Iterator[PreTrainedModel | PeftModel]:
        """Give the model at `a` within the block. Afterwards its weights are again the trained ones, bit by bit."""
        trained = {name: p.detach().clone() for name, p in self.moving.items()}
        try:
            for name, p in self.moving.items():
                p.data = torch.lerp(self.start[name].to(trained[name]), trained[name], a)
            yield self.model
        finally:
            for name, p in self.moving.items():
                p.data = trained[name]


def scaled_parts(tuned: PeftModel) -> dict[str, nn.Parameter]:
    """Return the parameters of a LoRA in which its update is linear: every B. Empty if the adapter has other parts."""
    config = tuned.peft_config[tuned.active_adapter]
    plain = (
        isinstance(config, LoraConfig)
        and not config.use_dora
        and not str(config.init_lora_weights).startswith("pissa")
        and not config.modules_to_save
        and not config.trainable_token_indices
        and not config.ensure_weight_tying  # it makes the head's A the embedding's B
        and config.bias == "none"
    )
    if not plain:
        return {}
    found: dict[str, nn.Parameter] = {}
    for place, module in tuned.named_modules():
        if isinstance(module, LoraLayer):
            for name, layer in module.lora_B.items():
                found |= {f"{place}.lora_B.{name}.{key}": p for key, p in layer.named_parameters()}
            found |= {f"{place}.lora_embedding_B.{name}": p for name, p in module.lora_embedding_B.items()}
    return found


def blends(weights: Sequence[float], cell: CellContext, tuned: PreTrainedModel | PeftModel) -> Iterator[Candidate]:
    """Yield the models at these weights between the model before and the trained one, except those already examined."""
    waiting = [point for a in weights if not cell.examined(point := Point("blend", a))]
    between = Between(tuned, cell.bench.before.model) if waiting else None
    for point in waiting:
        assert between is not None
        with between.at(float(point.value or 0.0)) as model:
            yield Candidate(point, ModelRespondent(LoadedModel(model, cell.bench.before.tokenizer, cell.name(point))))
