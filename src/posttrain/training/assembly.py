"""What a run is put together from before its first step: forms, the reference model, penalties."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain import registry
from posttrain.data.chat import Encoded
from posttrain.errors import ConfigError, Problem
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.added import added_to
from posttrain.models.load import LoadedModel
from posttrain.models.logits import core_of
from posttrain.models.notes import head_modules
from posttrain.objectives.sft import SftConfig
from posttrain.retention.penalty._base import PenaltyConfig, PenaltyContext
from posttrain.retention.selection import ReplayConfig
from posttrain.training.batches import Forms
from posttrain.training.config import TrainConfig
from posttrain.training.forms import form_of
from posttrain.training.forms.base import FormSetup, Preparation
from posttrain.training.forms.forward import arithmetic
from posttrain.training.forms.remembering import RememberingForm
from posttrain.training.forms.tokens import TokensForm
from posttrain.training.penalties import PENALTIES, Penalties, Term, make_penalties, terms_of
from posttrain.training.reference import Reference, can_be_switched_off
from posttrain.training.trackers import check_trackers

__all__ = ["Parts", "bare_forms", "check_combination", "parts_of"]


class Parts(NamedTuple):
    """How rows become losses, and what is added to the gradients."""

    forms: Forms
    penalties: Penalties


def bare_forms(
    config: TrainConfig,
    tokenizer: PreTrainedTokenizerBase,
    reference: Reference | None = None,
    terms: list[Term] | None = None,
) -> Forms:
    """The forms of a run; without a reference they can count and collate rows only."""
    # Padding is never seen (it is on the right), so any token will do; the pad token itself makes some models warn that
    # there is no attention mask.
    pad_id = 0 if tokenizer.pad_token_id != 0 else 1
    weight = config.replay.weight if isinstance(config.replay, ReplayConfig) else 1.0

    def setup(objective: Any) -> FormSetup:
        function = partial(registry.load("objective", objective.kind).function, config=objective)
        return FormSetup(objective, function, tokenizer, pad_id, weight, reference, terms or ())

    kind = form_of(config.objective)
    new = kind(setup(config.objective))
    if isinstance(config.replay, ReplayConfig) and config.replay.loss == "kl":
        return Forms(new, RememberingForm(setup(SftConfig())))
    return Forms(new, new if kind.mixes else TokensForm(setup(SftConfig())))


def check_combination(config: TrainConfig) -> None:
    """ConfigError for parts that do not go together, as far as the configuration tells; MissingError for trackers that
    are not there."""
    check_trackers(config.report_to)
    form = form_of(config.objective)
    on_logits = [p.kind for p in config.penalty if isinstance(p, PenaltyConfig) and p.acts_on == "logits"]
    if on_logits and not form.takes_terms:
        cause = f"{on_logits[0]} compares logits, which this objective has none of"
        raise ConfigError(Problem("penalty", cause, "use objectives on tokens, such as sft"))
    if isinstance(config.replay, ReplayConfig) and config.replay.loss == "kl" and not form.old_apart:
        cause = "this objective has a loss of its own for replayed rows, which it retains"
        raise ConfigError(Problem("replay.loss", cause, "leave it out; objective.retain: kl compares distributions"))
    problem = form.replay_problem(config.objective) if config.replay is not None else None
    if problem is not None:
        raise ConfigError(problem)


def parts_of(
    config: TrainConfig,
    tuned: PreTrainedModel | PeftModel,
    loaded: LoadedModel,
    material: Any,
    *,
    respondent: ModelRespondent,
    folder: Path | None,
    earlier: Path | None,
    base: Path,
    forbidden: frozenset[str],
    say: Callable[[str], None],
    continued: bool = False,
    autocast: torch.dtype | None = None,
    read: Container[int] = range(2**63),
    before: PreTrainedModel | None = None,
    lowered: AbstractContextManager[Any] | None = None,
) -> Parts:
    """Forms and penalties, prepared while the tuned model is still where training begins.

    respondent: of the model before the tuner, its fingerprint known; earlier: folder of the run of the task before;
    continued: the tuned model has taken up an adapter, so that it is another one than without its adapter;
    autocast: precision of the forward passes to come, None for the weights' own; read: numbers of the rows that will be
    read; before: see `reference_of`; lowered: holds weights as they will be in training.
    """
    chosen = [part for part in config.penalty if isinstance(part, PenaltyConfig)]
    terms = terms_of(tuple(chosen))
    form = form_of(config.objective)
    needed = form.asks_reference(config.objective) or bool(terms)
    reference = reference_of(tuned, needed=needed, say=say, continued=continued, before=before)
    forms = bare_forms(config, loaded.tokenizer, reference, terms)
    for one in (forms.new, forms.old):
        one.device = tuned.device
    preparation = Preparation(
        tuned,
        [*material.new, *material.old],
        len(material.new),
        material.validation,
        config.batch.tokens,
        folder,
        f"{respondent.fingerprint} {autocast}" if folder is not None else "",
        reference,
        say,
        read,
        config.seed,
    )
    with (
        lowered or nullcontext(),
        arithmetic(tuned.device, autocast),
    ):  # what is computed beforehand shall be what a step would compute
        forms.new.prepare(preparation)
        if not forms.mixed:
            forms.old.prepare(preparation)
    trainable = {name: p for name, p in tuned.named_parameters() if p.requires_grad}
    new_parts = head_modules(core_of(tuned))
    part_added = added_to(core_of(tuned))

    def context(part: PenaltyConfig) -> PenaltyContext:
        state = earlier / PENALTIES / f"{part.kind}.safetensors" if earlier is not None else None
        return PenaltyContext(
            loaded._replace(model=tuned),
            trainable,
            respondent,
            respondent.fingerprint,
            seed=config.seed,
            earlier=state,
            forbidden=forbidden,
            base=base,
            batch_tokens=config.batch.tokens,
            say=say,
            rows=[row for row in material.new if isinstance(row, Encoded)],
            held={} if before is None else dict(before.named_parameters()),
            untouched=part_added.switched_off if part_added is not None and not continued else nullcontext,
            fresh=frozenset(name for name in trainable if any(f".{part}." in f".{name}" for part in new_parts)),
        )

    penalties = make_penalties(tuple(chosen), tuned, trainable, context, say)
    reference.training_begins()
    return Parts(forms, penalties)


def reference_of(
    tuned: PreTrainedModel | PeftModel,
    *,
    needed: bool,
    say: Callable[[str], None],
    continued: bool = False,
    before: PreTrainedModel | None = None,
) -> Reference:
    """The model before training; a frozen copy where it is needed during training and nothing can be switched off.

    before: the same model, which somebody else holds and nobody changes: asked instead of a copy.
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
