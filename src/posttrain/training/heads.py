"""Prepare runs that train a head for classes, tags or answers: labels and other settings that loading needs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from posttrain.errors import ConfigError, Problem
from posttrain.models.heads import load_head_model, reads_one_way
from posttrain.models.load import LoadedModel, base_of, config_of, load_model
from posttrain.models.notes import HEADS, HeadNotes, head_of_model, saved_head
from posttrain.training.config import TrainConfig
from posttrain.training.forms import form_of
from posttrain.training.rows import read_source

__all__ = ["check_head", "loader_for", "resolved"]


def resolved(config: TrainConfig, loaded: LoadedModel | None, say: Callable[[str], None]) -> TrainConfig:
    """Fill in the settings of the objective that the model or the rows decide, such as labels.

    Labels are the given ones; otherwise those of the model, if it already has this kind of head; otherwise those of the
    rows. An objective without a head is not changed. Raise ConfigError if such a run has replay.
    """
    form = form_of(config.objective)
    if form.head == "causal":
        return config
    if config.replay is not None:
        cause = "a model with a head has no words: it can neither make nor learn conversations"
        raise ConfigError(Problem("replay", cause, "leave replay out; old rows of the same kind go into data"))
    objective = config.objective
    fields = type(objective).model_fields
    there = head_of_model(loaded.model) if loaded is not None else saved_head(config.model, offline=not config.download)
    given, filled = objective.model_dump(), dict[str, Any]()
    if "labels" in fields and given["labels"] is None and there is not None and there.head == form.head:
        filled["labels"] = there.labels
    if "piece" in fields and given["piece"] is None:
        filled["piece"] = _piece(config, loaded, there, say)
    objective = type(objective).model_validate({**given, **filled})
    source = config.data
    objective = form.resolved(objective, lambda: read_source(source, config).records if source is not None else [])
    if "labels" in fields:
        labels = form.outputs(objective)
        say(f"{len(labels)} labels: {', '.join(labels)}")
    return config.model_copy(update={"objective": objective})


def _piece(config: TrainConfig, loaded: LoadedModel | None, there: HeadNotes | None, say: Callable[[str], None]) -> str:
    """Return the piece of a token at which its tag is learned: `first`, `last` or `start`.

    It is the piece that the head was trained with. For a new head it depends on the direction in which the model reads:
    `last` for a model that reads in one direction, else `first`."""
    if there is not None and there.head == "token":
        return str(there.settings.get("piece", "start"))
    try:
        base = loaded.model.config if loaded else config_of(base_of(config.model), offline=not config.download)
    except OSError:  # the model is not there; loading it raises the error that says what is missing
        return "first"
    late = reads_one_way(base)
    said = (
        "tags are learned at each token's last piece: it reads from left to right"
        if late
        else "tags are learned at each token's first piece: it reads in both directions"
    )
    say(f"{said} (objective: {{piece: first}} or {{piece: last}})")
    return "last" if late else "first"


def loader_for(config: TrainConfig, say: Callable[[str], None]) -> Callable[..., LoadedModel]:
    """Return `load_model`, or a function that loads a model with the head that a resolved objective needs."""
    form = form_of(config.objective)
    if form.head == "causal":
        return load_model
    settings = {**form.head_settings(config.objective), "max_length": config.max_length}
    labels = form.outputs(config.objective)
    return partial(load_head_model, head=form.head, labels=labels, settings=settings, seed=config.seed, say=say)


def check_head(config: TrainConfig, model: PreTrainedModel) -> None:
    """Raise ConfigError if a model that the caller loaded has another head than the objective trains."""
    wanted = form_of(config.objective).head
    notes = head_of_model(model)
    has = notes.head if notes is not None else "causal"
    if has != wanted:
        names = {"causal": "language models", **{head: f"heads for {purpose}" for head, (_, purpose) in HEADS.items()}}
        raise ConfigError(Problem("objective", f"trains {names[wanted]}, the model is one of {names[has]}"))
