"""Make a dry run: count rows, tokens, steps, trained parameters and disk space without reading the weights."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from posttrain import registry
from posttrain.inference.decode import context_limit
from posttrain.inference.encoding import PromptReader
from posttrain.models.load import LoadedModel, check_folder, config_of, load_tokenizer, resolve
from posttrain.models.names import say_taken
from posttrain.models.vocabulary import rows_of
from posttrain.retention.selection import ReplayConfig
from posttrain.training.assembly import bare_forms, check_combination, plan_of
from posttrain.training.config import TrainConfig
from posttrain.training.forms import form_of
from posttrain.training.heads import resolved
from posttrain.training.precision import precision_of, saved_bytes, unused_dtype
from posttrain.training.rates import auto_rate
from posttrain.training.rows import material_of
from posttrain.training.run import kind_of, load_for_training
from posttrain.tuners._moved import count_moved

__all__ = ["Preview", "preview"]


class Preview(NamedTuple):
    """The numbers of a dry run.

    rows, validation_rows: after dropping; tokens: all tokens that the run reads, replay included (estimated from
    `share`); trainable, parameters: numbers of parameters; learning_rate: its peak, or None if a range test will find
    it; model_gib, checkpoint_gib: size of the final weights and of each checkpoint, in GiB; precision: the arithmetic,
    with the reason.
    """

    rows: int
    validation_rows: int
    row_tokens: int
    steps: int
    epochs: float
    tokens: int
    trainable: int
    parameters: int
    learning_rate: float | None
    model_gib: float
    checkpoint_gib: float
    disk_gib: float
    precision: str


def preview(config: TrainConfig, *, base: Path | None = None, say: Callable[[str], None] = print) -> Preview:
    """Read and render the data, plan the steps, and build the model without its weights; return the numbers."""
    config = resolved(config, None, say)
    check_combination(config)
    loaded = skeleton(config, say)
    if config.replay is not None:
        assert isinstance(config.replay, ReplayConfig)
        reader = PromptReader(loaded.tokenizer, rows_of(loaded.model), context_limit(loaded.model))
        if short := config.replay.check(base or Path(), reader, config.seed):
            say(short)
        say("replayed rows are not made in a dry run; tokens are estimated from their share")
    material = material_of(config, loaded, replay_rows=[], base=base, say=say)
    tuned = registry.load("tuner", kind_of(config.tuner)).function(loaded.model, config.tuner)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = precision_of(config, tuned, device)
    if unused := unused_dtype(config.save_dtype, kind_of(config.tuner)):
        say(unused)
    moved = count_moved(tuned)
    forms = bare_forms(config, loaded.tokenizer)
    fixed = plan_of(config, material, forms)
    plan, steps = fixed.plan, fixed.total
    lengths = [forms.new.tokens_of(row) for row in material.new]
    epochs, new_tokens = 0.0, 0
    for step in islice(plan, steps):
        epochs = step.epoch
        new_tokens += sum(lengths[row] for micro in step.micro_batches for row in micro)
    given = config.optimizer.learning_rate
    rate = None if given == "find" else auto_rate(kind_of(config.tuner), moved.total) if given == "auto" else given
    model_gib = saved_bytes(config, tuned) / 2**30
    checkpoint = moved.trainable * 3 * 4 / 2**30  # float32: weights and the two moments of AdamW
    saves = len(
        {*range(0, steps + 1, config.save_every_steps or steps + 1), *config.save_at_steps} & {*range(1, steps + 1)}
    )
    kept = min(saves, config.keep_checkpoints or saves) + bool(material.validation and config.keep_best)
    return Preview(
        rows=len(material.new),
        validation_rows=len(material.validation),
        row_tokens=sum(lengths),
        steps=steps,
        epochs=epochs,
        tokens=round(new_tokens / (1 - plan.share)),
        trainable=moved.trainable,
        parameters=moved.total,
        learning_rate=rate,
        model_gib=model_gib,
        checkpoint_gib=checkpoint,
        precision=str(precision).removeprefix("precision: "),
        # one checkpoint more than is kept exists while it is written, and an interruption saves one
        disk_gib=model_gib + (kept + 1) * checkpoint,
    )


def skeleton(config: TrainConfig, say: Callable[[str], None]) -> LoadedModel:
    """Build the model without weights (on torch's meta device) and load its tokenizer. Adapter folders and models with
    a head are loaded whole.
    """
    folder = resolve(config.model)
    check_folder(folder)
    if (Path(folder) / "adapter_config.json").is_file() or form_of(config.objective).head != "causal":
        return load_for_training(config, say=say)
    say_taken(config.model, say)
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code, offline=not config.download)
    settings = config_of(folder, trust_remote_code=config.trust_remote_code, offline=not config.download)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(settings, trust_remote_code=config.trust_remote_code)
    return LoadedModel(model, tokenizer, config.model)
