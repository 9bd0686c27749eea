"""Advice for an option that a verb does not have but its YAML file has as a setting: use `--set`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import typer

from posttrain.cli.speaking import PlainCommand
from posttrain.config.base import Config
from posttrain.errors import ConfigError, Problem, shell_word

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
"""Name in another trainer -> our setting."""
OF_THE_TUNER = {"rank": "rank", "r": "rank", "lora_r": "rank", "lora_rank": "rank", "lora_alpha": "alpha"}
"""Name in another trainer -> our setting of the tuner."""


class VerbCommand(PlainCommand):
    """The command of a verb. For `train`, an unknown option that is a setting of its file gives a helpful error."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line. Raise ConfigError for a setting that was given as an option."""
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
    """Return the key path of the training setting that an option names, or None.

    For example `optimizer.learning_rate` for `--learning-rate`.
    """
    from posttrain.training.config import TrainConfig

    wanted = option.lstrip("-").replace("-", "_").lower()
    wanted = OTHER_NAMES.get(wanted, wanted)
    if wanted in OF_THE_TUNER:
        return f"tuner.{OF_THE_TUNER[wanted]}"
    paths = list(_paths(TrainConfig))
    ends = wanted.replace(".", "_")
    return next((path for path in paths if path.replace(".", "_") == ends or path.rpartition(".")[2] == wanted), None)


def _paths(model: type[Config], before: str = "") -> Iterator[str]:
    """Yield the key paths of a configuration, the short ones first. Parts that are chosen by `kind` are not entered."""
    parts = []
    for name, field in model.model_fields.items():
        part = field.annotation
        if isinstance(part, type) and issubclass(part, Config) and part.model_fields:
            parts.append((name, part))
        yield f"{before}{name}"
    for name, part in parts:
        yield from _paths(part, f"{before}{name}.")


def _value(option: str, words: Sequence[str]) -> str:
    """Return the value that was given with an option, or `VALUE` if there is none."""
    for place, word in enumerate(words):
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
        if word == option and place + 1 < len(words) and not words[place + 1].startswith("--"):
            return words[place + 1]
    return "VALUE"
