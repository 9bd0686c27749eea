"""A model as a Python object that can be asked, talked to and saved. Nothing in this package changes it."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pydantic import Field

from posttrain.config.base import Config
from posttrain.config.load import check
from posttrain.data.records import Message
from posttrain.errors import ConfigError, MissingError, PosttrainError, Problem
from posttrain.inference.opening import open_respondent
from posttrain.inference.protocol import Plain, Respondent
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import LoadedModel, load_model
from posttrain.models.save import save_model

__all__ = ["SCRATCH", "Chat", "Model", "as_arguments", "chat", "load", "respondent_of"]

P = ParamSpec("P")
T = TypeVar("T")
SCRATCH = "posttrain-rows-"
"""How the names of temporary folders of rows begin."""
SPOKEN = re.compile(rf"\S*{SCRATCH}\w+/rows\.jsonl|--[a-z][a-z-]+")
"""Matches what an error of the library says in other words: files of rows that were mappings, and options."""


def as_arguments(function: Callable[P, T]) -> Callable[P, T]:
    """Return the function with errors that speak of its arguments: `restart=True` for `--restart`, `data:3` for the
    third of the rows that were given as mappings."""
    known = signature(function).parameters

    def said(found: re.Match[str]) -> str:
        name = found[0][2:].replace("-", "_")
        if not found[0].startswith("--"):
            return "data"
        return found[0] if name not in known else f"{name}=True" if known[name].default is False else name

    @wraps(function)
    def call(*given: P.args, **named: P.kwargs) -> T:
        try:
            return function(*given, **named)
        except PosttrainError as error:
            problems = [Problem(*(SPOKEN.sub(said, part) for part in problem)) for problem in error.problems]
            PosttrainError.__init__(error, *problems)
            raise

    return call


@dataclass(frozen=True)
class Model:
    """A loaded model with its tokenizer. history: one entry per training step; cost: the cost of its training (seconds,
    steps, tokens, peak GiB); notes: lines that its training reported; folder: where it was saved, None if it was not.
    """

    loaded: LoadedModel
    history: Sequence[Mapping[str, Any]] = ()
    cost: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()
    folder: Path | None = None

    @property
    def name(self) -> str:
        """The name under which it was loaded, or the `name` that was given to `train`."""
        return self.loaded.name

    @property
    def model(self) -> Any:
        """The `transformers` (or peft) model."""
        return self.loaded.model

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self.loaded.tokenizer

    @property
    def respondent(self) -> ModelRespondent:
        """The model as a respondent, which takes exams."""
        return ModelRespondent(self.loaded)

    def ask(self, *prompts: str, max_new_tokens: int = 64, temperature: float = 0.0, seed: int = 0) -> list[str]:
        """Return an answer to each prompt; the likeliest tokens at temperature 0, sampled ones above. Raise ConfigError
        for a prompt that is neither a text nor messages."""
        given: tuple[object, ...] = prompts
        if wrong := [prompt for prompt in given if not isinstance(prompt, str | Plain | tuple)]:
            cause = f"a question is a text or a tuple of messages, got {wrong[0]!r}"
            raise ConfigError(Problem("ask", cause, "several questions are several arguments: ask(one, other)"))
        said = self.respondent.answers(prompts, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        return [answer.text for answer in said]

    def save(self, folder: str | Path) -> Path:
        """Save it as a folder that `load`, transformers and peft can read. Raise the errors of `save_model`."""
        save_model(self.model, self.tokenizer, Path(folder))
        return Path(folder)

    def __repr__(self) -> str:
        return f"Model({self.name!r}, {self.model.num_parameters():,} parameters, {self.model.device})"


def _check_device(device: str | None) -> None:
    """ConfigError for a device that torch does not know, MissingError for a GPU that is not here."""
    if device is None:
        return
    import torch

    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(Problem("device", f"torch knows no device '{device}'", "cpu, cuda or cuda:1")) from error
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        cause = f"'{device}' is not here: torch sees {torch.cuda.device_count()} GPUs"
        raise MissingError(Problem("device", cause, "posttrain doctor tells what this machine has"))


@as_arguments
def load(
    name: str | Path,
    *,
    device: str | None = None,
    dtype: str = "auto",
    download: bool = False,
    trust_remote_code: bool = False,
    allow_template_mismatch: bool = False,
) -> Model:
    """Load a model: a folder, an adapter folder, a GGUF file, a hub id, `pocket:base` or `pocket:chat`.

    device: a torch device, by default the first GPU or the CPU; dtype: `auto` (the dtype of the files), `float32`,
    `bfloat16`, `float16`; download: allow a download from the hub; the others are as on the command line.
    Raise MissingError if there is no such model (it names the most similar names) or no such device.
    """
    _check_device(device)
    return Model(
        load_model(
            str(name),
            device=device,
            dtype=dtype,
            offline=not download,
            trust_remote_code=trust_remote_code,
            allow_template_mismatch=allow_template_mismatch,
        )
    )


def respondent_of(given: Model | Respondent | str | Path) -> Respondent:
    """Return the respondent of a loaded model or of a name (a model, api:MODEL@URL, a YAML file); keep a respondent.
    Raise ConfigError for anything else."""
    if isinstance(given, Model):
        return given.respondent
    if isinstance(given, str | Path):
        return open_respondent(str(given))
    if not isinstance(given, Respondent):
        raise ConfigError(Problem("model", f"a model, a respondent or a name is expected, got {given!r}"))
    return given


class _ChatOptions(Config):
    """What `chat` takes besides models."""

    system: str = ""
    max_new_tokens: int = Field(default=256, ge=1)
    temperature: float = Field(default=0.0, ge=0)


@dataclass
class Chat:
    """A conversation with one or several models side by side."""

    models: Mapping[str, Respondent]
    system: str = ""
    max_new_tokens: int = 256
    temperature: float = 0.0
    turns: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Each question with the answers, by model name."""

    def say(self, words: str) -> str | dict[str, str]:
        """Return the answer, or with several models their answers by name. Earlier turns are part of the prompt."""
        if not isinstance(words, str):
            raise ConfigError(Problem("chat.say", f"a text is expected, got {words!r}"))
        answers = {}
        for name, respondent in self.models.items():
            turns = [Message("system", self.system)] if self.system else []
            for asked, said in self.turns:
                turns += [Message("user", asked), Message("assistant", said[name])]
            prompt = (*turns, Message("user", words))
            (answer,) = respondent.answers(
                [prompt], max_new_tokens=self.max_new_tokens, temperature=self.temperature, seed=len(self.turns)
            )
            answers[name] = answer.text
        self.turns.append((words, answers))
        return answers if len(answers) > 1 else next(iter(answers.values()))

    def _repr_html_(self) -> str:
        heads = "".join(f"<th>{html.escape(name)}</th>" for name in self.models)
        rows = "".join(
            f"<tr><td>{html.escape(asked)}</td>"
            + "".join(f"<td>{html.escape(said[name])}</td>" for name in self.models)
            + "</tr>"
            for asked, said in self.turns
        )
        return f"<table><thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def chat(
    *models: Model | Respondent | str, system: str = "", max_new_tokens: int = 256, temperature: float = 0.0
) -> Chat:
    """Talk to one or several models side by side: `pt.chat(base, new).say("誰寫了哈姆雷特？")`. Raise ConfigError if
    no model is given, if two have the same name, or if the length or temperature is out of range.
    """
    told = {"system": system, "max_new_tokens": max_new_tokens, "temperature": temperature}
    options = check(told, _ChatOptions, "pt.chat")
    respondents = [respondent_of(one) for one in models]
    names = [one.name for one in respondents]
    if not names or len(set(names)) < len(names):
        raise ConfigError(Problem("pt.chat", f"models with names that differ are expected, got {names}"))
    return Chat(dict(zip(names, respondents, strict=True)), **options.model_dump())
