"""An option that a verb does not have, but its YAML file: the mend is `--set`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import typer

from posttrain.cli.options import PlainCommand
from posttrain.config.base import Config
from posttrain.errors import ConfigError, Problem, shell_word

__all__ = ["VerbCommand", "setting_named"]

OTHER_NAMES = {
    "lr": "learning_rate",
    "steps": "max_steps",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "epoch": "epochs",
    "batch_size": "rows",
    "per_device_train_batch_size": "rows",
    "gradient_accumulation_steps": "accumulate",
    "gradient_checkpointing": "activation_checkpointing",
    "max_seq_length": "max_length",
    "max_seq_len": "max_length",
    "lr_scheduler_type": "schedule",
    "dtype": "precision",
    "save_steps": "save_every_steps",
    "eval_steps": "evaluate_every_steps",
}
"""What other trainers call the settings."""
OF_THE_TUNER = {"rank": "rank", "r": "rank", "lora_r": "rank", "lora_rank": "rank", "lora_alpha": "alpha"}


class VerbCommand(PlainCommand):
    """A verb; where an unknown option is one of its file's settings it says so."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line. ConfigError for a setting that was given as an option."""
        given = list(args)
        try:
            parsed: list[str] = super().parse_args(ctx, args)
        except typer.TyperException as error:
            option = vars(error).get("option_name")
            if self.name == "train" and isinstance(option, str) and (key := setting_named(option)):
                mend = f"--set {shell_word(f'{key}={_value(option, given)}')}"
                raise ConfigError(Problem(option, "is a setting, which --set reaches", mend)) from error
            raise
        return parsed


def setting_named(option: str) -> str | None:
    """The path of a training's setting that an option names: `optimizer.learning_rate` of `--learning-rate`."""
    from posttrain.training.config import TrainConfig

    wanted = option.lstrip("-").replace("-", "_").lower()
    wanted = OTHER_NAMES.get(wanted, wanted)
    if wanted in OF_THE_TUNER:
        return f"tuner.{OF_THE_TUNER[wanted]}"
    paths = list(_paths(TrainConfig))
    ends = wanted.replace(".", "_")
    return next((path for path in paths if path.replace(".", "_") == ends or path.rpartition(".")[2] == wanted), None)


def _paths(model: type[Config], before: str = "") -> Iterator[str]:
    """A configuration's keys, the shallow ones first, with those of the parts that are no choice by kind."""
    parts = []
    for name, field in model.model_fields.items():
        part = field.annotation
        if isinstance(part, type) and issubclass(part, Config) and part.model_fields:
            parts.append((name, part))
        yield f"{before}{name}"
    for name, part in parts:
        yield from _paths(part, f"{before}{name}.")


def _value(option: str, words: Sequence[str]) -> str:
    """What was given with the option."""
    for place, word in enumerate(words):
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
        if word == option and place + 1 < len(words) and not words[place + 1].startswith("--"):
            return words[place + 1]
    return "VALUE"
