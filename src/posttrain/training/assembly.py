"""Make the parts of a run before its first step: the plan of its steps, the forms, the reference and the penalties."""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain import registry
from posttrain.data.chat import Encoded
from posttrain.errors import ConfigError, Problem
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.added import added_to
from posttrain.models.curvature import Example
from posttrain.models.load import LoadedModel
from posttrain.models.logits import core_of
from posttrain.models.memory import activation_bytes, is_large
from posttrain.models.notes import head_modules
from posttrain.objectives.sft import SftConfig
from posttrain.retention.penalty._base import PenaltyConfig, PenaltyContext
from posttrain.retention.penalty._measured import examples_of
from posttrain.retention.selection import ReplayConfig
from posttrain.training.batches import Forms, Learner
from posttrain.training.config import TrainConfig
from posttrain.training.forms import form_of
from posttrain.training.forms.base import FormSetup, Preparation
from posttrain.training.forms.distributions import RememberingForm
from posttrain.training.forms.tokens import TokensForm
from posttrain.training.penalties import Term, make_penalties, terms_of
from posttrain.training.precision import Lowered, arithmetic
from posttrain.training.reference import Reference, reference_of
from posttrain.training.steps import FixedRows, Material, RowPlan
from posttrain.training.trackers import check_trackers

__all__ = ["Surroundings", "bare_forms", "check_combination", "learner_of", "plan_of", "show_rows", "tokens_at_once"]

ACTIVATIONS = 768 * 2**20
"""Maximum bytes of activations that a forward pass of training may keep on a CPU."""
FEW_ACTIVATIONS = 448 * 2**20
"""The same limit for a large model, and for a model that trains in bfloat16 with its blocks written out.

In bfloat16 half as many bytes are kept per token. About 290 tokens of SmolLM2-135M reach the limit in float32, and
about 700 in bfloat16. A larger limit does not make training faster.
"""


@dataclass(frozen=True)
class Surroundings:
    """What a training needs in addition to its configuration.

    say: is called with one line for each choice that is made; base: relative paths are relative to this folder; folder:
    the folder of the run; earlier: the folder of the run of the task before; adapter: the folder of an adapter from
    which training continues; forbidden: prompts of exams, which no penalty may look at; before: a second copy of the
    same model, which the caller keeps and never changes.
    """

    say: Callable[[str], None] = print
    base: Path = Path()
    folder: Path | None = None
    earlier: Path | None = None
    adapter: Path | None = None
    forbidden: frozenset[str] = frozenset()
    before: PreTrainedModel | None = None


def bare_forms(
    config: TrainConfig,
    tokenizer: PreTrainedTokenizerBase,
    reference: Reference | None = None,
    terms: list[Term] | None = None,
) -> Forms:
    """Return the forms of a run. Without a reference the forms can only count and collate rows."""
    # Padding is on the right, so no token of a row attends to it, and any token can be used. The pad token itself makes
    # some models warn that there is no attention mask.
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


def check_combination(config: TrainConfig, *, made: bool = False) -> None:
    """Check, as far as the configuration shows it, that the parts go together. Raise ConfigError for parts that do not,
    and MissingError for trackers that are not installed. made: whether rows are made while the model trains.
    """
    check_trackers(config.report_to)
    form = form_of(config.objective)
    if made and form.needs_rows(config.objective):
        cause = "looks at all rows before the first step, and here they are made while the model trains"
        raise ConfigError(Problem("objective", cause, "use another one; dpo takes them with reference: adapter"))
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


def show_rows(tuned: nn.Module, rows: Sequence[Any], seed: int, say: Callable[[str], None]) -> None:
    """Show the new rows to an added part that needs to look at them before the first step. Raise ConfigError for rows
    that are neither conversations nor texts (such as pairs and classes).
    """
    added = added_to(tuned)
    if added is None or not added.looks_at_rows:
        return
    encoded = [row for row in rows if isinstance(row, Encoded)]
    if len(encoded) < len(rows):
        cause = f"{added.kind} measures on conversations or texts, which this objective's rows are not"
        raise ConfigError(Problem("tuner", cause, "use it with sft or clm, or choose another tuner"))

    def examples(count: int) -> list[Example]:
        drawn = encoded if count >= len(encoded) else random.Random(f"looking {seed}").sample(encoded, count)
        return examples_of(drawn)

    tuned.eval()
    added.look(tuned, examples, say)


def learner_of(
    config: TrainConfig,
    tuned: PreTrainedModel | PeftModel,
    loaded: LoadedModel,
    material: Material,
    around: Surroundings,
    *,
    respondent: ModelRespondent,
    lowered: Lowered,
) -> Learner:
    """Make the forms and the penalties, while the tuned model is still the one from which training begins.

    respondent: the model before the tuner was applied, with its fingerprint known; lowered: gives the weights the dtype
    that they have in training.
    """
    say, continued, before = around.say, around.adapter is not None, around.before
    chosen = [part for part in config.penalty if isinstance(part, PenaltyConfig)]
    terms = terms_of(chosen)
    needed = form_of(config.objective).asks_reference(config.objective) or bool(terms)
    reference = reference_of(tuned, needed=needed, say=say, continued=continued, before=before)
    forms = bare_forms(config, loaded.tokenizer, reference, terms)
    fingerprint = f"{respondent.fingerprint} {lowered.dtype}" if around.folder is not None else ""
    tokens, read = config.batch.tokens, rows_read(config, material, loaded.tokenizer)
    preparation = Preparation(tuned, *material, tokens, around.folder, fingerprint, reference, say, read, config.seed)
    with lowered, arithmetic(tuned.device, lowered.dtype):  # so that results equal those of a training step
        for form in (forms.new,) if forms.mixed else (forms.new, forms.old):
            form.device = tuned.device
            form.prepare(preparation)
    trainable = {name: p for name, p in tuned.named_parameters() if p.requires_grad}
    new_parts = head_modules(core_of(tuned))
    added = added_to(core_of(tuned))
    context = PenaltyContext(
        respondent,
        respondent.fingerprint if chosen else "",
        loaded=loaded._replace(model=tuned),
        trainable=trainable,
        seed=config.seed,
        earlier=around.earlier,
        forbidden=around.forbidden,
        base=around.base,
        batch_tokens=config.batch.tokens,
        say=say,
        rows=[row for row in material.new if isinstance(row, Encoded)],
        held={} if before is None else dict(before.named_parameters()),
        untouched=added.switched_off if added is not None and not continued else nullcontext,
        fresh=frozenset(name for name in trainable if any(f".{part}." in f".{name}" for part in new_parts)),
    )
    penalties = make_penalties(chosen, context)
    reference.begun = True  # the tuned model is no longer the model before training
    return Learner(config, tuned, loaded.tokenizer, forms, material, penalties)


def plan_of(config: TrainConfig, material: Material, forms: Forms) -> FixedRows:
    """Return the steps of a run over these rows."""
    new_tokens = [forms.new.tokens_of(row) for row in material.new]
    old_tokens = [forms.old.tokens_of(row) for row in material.old]
    replay = config.replay
    share = replay.share_of(sum(new_tokens), sum(old_tokens)) if isinstance(replay, ReplayConfig) else 0.0
    new, old = [forms.new.size(row) for row in material.new], [forms.old.size(row) for row in material.old]
    tokens, mixed = [*new_tokens, *old_tokens], forms.mixed
    plan = RowPlan(new, old, config.batch, share=share, seed=config.seed, tokens=tokens, mixed=mixed)
    optimizer = config.optimizer
    steps = optimizer.max_steps or plan.steps_in(3.0 if optimizer.epochs is None else optimizer.epochs)
    return FixedRows(plan, [*material.new, *material.old], steps)


def rows_read(config: TrainConfig, material: Material, tokenizer: PreTrainedTokenizerBase) -> Container[int]:
    """Return the indices of the old rows that the run reads if replay has the loss `kl`, else of all old rows."""
    if not isinstance(config.replay, ReplayConfig) or config.replay.loss != "kl":
        return range(len(material.old))
    steps = plan_of(config, material, bare_forms(config, tokenizer))
    new = len(material.new)
    return {row - new for step in islice(steps.plan, steps.total) for micro in step.micro_batches for row in micro}


def tokens_at_once(model: PreTrainedModel | PeftModel, lowered: Lowered) -> int | None:
    """Return how many padded tokens may go through the model together. On a CPU this is the number for which the
    activations stay below the limit in bytes. On other devices it is None: whole micro batches go through together.
    """
    if model.device.type != "cpu":
        return None
    core, low = core_of(model), lowered.token_bytes()
    room = FEW_ACTIVATIONS if low is not None or is_large(core) else ACTIVATIONS
    return max(1, room // max(1, activation_bytes(core) if low is None else low))
