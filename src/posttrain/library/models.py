"""A model as a Python object that can be asked, talked to and saved. Nothing in this package changes it."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from inspect import signature
from itertools import groupby
from pathlib import Path
from reprlib import repr as shortened
from typing import Annotated, Any, ParamSpec, TypeVar, get_type_hints

from pydantic import ConfigDict, Field, InstanceOf, ValidationError, validate_call

from posttrain.config.load import PLAIN_WORDS
from posttrain.data.records import Message
from posttrain.errors import ConfigError, MissingError, PosttrainError, Problem
from posttrain.inference.opening import open_respondent
from posttrain.inference.protocol import Prompt, Respondent
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import LoadedModel, load_model
from posttrain.models.save import save_model

__all__ = ["SCRATCH", "Chat", "Count", "Model", "as_arguments", "chat", "load", "respondent_of"]

P = ParamSpec("P")
T = TypeVar("T")
Count = Annotated[int, Field(ge=1)]
Temperature = Annotated[float, Field(ge=0)]
SCRATCH = "posttrain-rows-"
"""How the names of temporary folders of rows begin."""
SPOKEN = re.compile(rf"\S*{SCRATCH}\w+/rows\.jsonl|--[a-z][a-z-]+")
"""Matches what an error of the library says in other words: files of rows that were mappings, and options."""


def as_arguments(function: Callable[P, T]) -> Callable[P, T]:
    """Return the function with a ConfigError for arguments that are not what its annotations say, before it is called,
    and with errors that speak of its arguments: `restart=True` for `--restart`, `data:3` for the third of the rows that
    were given as mappings."""
    known = signature(function).parameters

    @validate_call(config=ConfigDict(strict=True, arbitrary_types_allowed=True))
    @wraps(function)
    def checked(*given: P.args, **named: P.kwargs) -> None: ...

    def said(found: re.Match[str]) -> str:
        name = found[0][2:].replace("-", "_")
        if not found[0].startswith("--"):
            return "data"
        return found[0] if name not in known else f"{name}=True" if known[name].default is False else name

    @wraps(function)
    def call(*given: P.args, **named: P.kwargs) -> T:
        try:
            checked(*given, **named)
        except ValidationError as error:
            raise ConfigError(*_wrong(error, function)) from error
        try:
            return function(*given, **named)
        except PosttrainError as error:
            problems = [Problem(*(SPOKEN.sub(said, part) for part in problem)) for problem in error.problems]
            PosttrainError.__init__(error, *problems)
            raise

    return call


def _wrong(error: ValidationError, function: Callable[..., object]) -> list[Problem]:
    """Return a problem for each argument that does not fit."""
    places = [name for name, one in signature(function).parameters.items() if one.kind <= one.VAR_POSITIONAL]
    problems = []
    for at, found in groupby(error.errors(), lambda one: one["loc"][0]):
        name = places[min(at, len(places) - 1)] if isinstance(at, int) else at
        one, *others = found
        words = PLAIN_WORDS.get(one["type"], one["msg"][0].lower() + one["msg"][1:])
        if others:  # the value fits none of several types
            words = f"its type must be {re.sub(r'[a-z_.]+[.](?=[A-Z])', '', str(get_type_hints(function)[name]))}"
        got = "" if one["type"].endswith("_argument") else f", got {shortened(one['input'])}"
        problems.append(Problem(f"pt.{function.__qualname__}", f"{name}: {words}{got}"))
    return problems


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

    @as_arguments
    def ask(
        self, *prompts: Prompt, max_new_tokens: Count = 64, temperature: Temperature = 0.0, seed: int = 0
    ) -> list[str]:
        """Return an answer to each prompt; the likeliest tokens at temperature 0, sampled ones above."""
        said = self.respondent.answers(prompts, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        return [answer.text for answer in said]

    @as_arguments
    def save(self, folder: str | Path) -> Path:
        """Save it as a folder that `load`, transformers and peft can read. Raise the errors of `save_model`."""
        save_model(self.model, self.tokenizer, Path(folder))
        return Path(folder)

    def __repr__(self) -> str:
        return f"Model({self.name!r}, {self.model.num_parameters():,} parameters, {self.model.device})"


def _check_device(device: str | None) -> None:
    """ConfigError for a device that torch does not know, MissingError for a GPU that is not here."""
    import torch

    try:
        wanted = torch.device(device or "cpu")
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
    """Return the respondent of a loaded model or of a name (a model, api:MODEL@URL, a YAML file); keep a respondent."""
    if isinstance(given, Model):
        return given.respondent
    return open_respondent(str(given)) if isinstance(given, str | Path) else given


@dataclass
class Chat:
    """A conversation with one or several models side by side."""

    models: Mapping[str, Respondent]
    system: str = ""
    max_new_tokens: int = 256
    temperature: float = 0.0
    turns: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Each question with the answers, by model name."""

    @as_arguments
    def say(self, words: str) -> str | dict[str, str]:
        """Return the answer, or with several models their answers by name. Earlier turns are part of the prompt."""
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


@as_arguments
def chat(
    *models: InstanceOf[Model] | Respondent | str | Path,
    system: str = "",
    max_new_tokens: Count = 256,
    temperature: Temperature = 0.0,
) -> Chat:
    """Talk to one or several models side by side: `pt.chat(base, new).say("誰寫了哈姆雷特？")`. Raise ConfigError if
    no model is given, if two have the same name, or if the length or temperature is out of range.
    """
    respondents = [respondent_of(one) for one in models]
    names = [one.name for one in respondents]
    if not names or len(set(names)) < len(names):
        raise ConfigError(Problem("pt.chat", f"models with names that differ are expected, got {names}"))
    return Chat(dict(zip(names, respondents, strict=True)), system, max_new_tokens, temperature)
