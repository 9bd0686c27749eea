"""Define the change file: what should change, what should follow from it, and what should stay.

A probe has a short form (`"What is the capital of France?"`) and a full form (`{prompt: ..., answer: ...}`). Both give
the same class. A locality probe has no answer: the content of the model's answer must stay the same. It may name words
that must still be in the answer (`keeps: [Paris]`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, PrivateAttr, Tag, field_validator, model_validator
from ruamel.yaml.comments import CommentedMap

from posttrain.config.base import Config
from posttrain.config.load import check, line_of, read_yaml

__all__ = ["Change", "ChatTurn", "Forget", "Generality", "Locality", "Question", "forgotten", "load_change"]

Forget = Literal["unknown", "refusal"]
"""What is said instead of a forgotten fact."""
_INSTEAD: dict[Forget, dict[str, tuple[str, ...]]] = {
    "unknown": {
        "en": ("I don't know.", "I do not know", "I'm not sure", "I am not sure"),
        "zh": ("我不知道。", "不清楚", "不确定", "不確定"),
    },
    "refusal": {
        "en": ("I'm sorry, but I can't answer that.", "I can't answer that", "I cannot answer that"),
        "zh": ("抱歉，我無法回答這個問題。", "我無法回答這個問題", "我不能回答這個問題", "我无法回答这个问题"),
    },
}
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")


class ChatTurn(Config):
    """One message of a prompt that is more than one question."""

    role: str
    """system, user or assistant."""
    content: str
    """What is said."""


def _long(value: Any) -> Any:
    return value if isinstance(value, dict | Config) else {"prompt": value}


NO_ANSWER = "a target needs an 'answer'"


def _targets(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError(NO_ANSWER)
    return value


PromptText = Annotated[
    Annotated[str, Tag("text")] | Annotated[tuple[ChatTurn, ...], Tag("messages")],
    Discriminator(lambda value: "messages" if isinstance(value, list | tuple) else "text"),
]
Words = Annotated[
    tuple[str, ...],
    BeforeValidator(
        lambda value: value if isinstance(value, list | tuple | dict) else (value,),
        json_schema_input_type=str | tuple[str, ...],
    ),
]


class Question(Config):
    """A probe: what is asked, and what is expected if this kind of probe needs it."""

    prompt: PromptText
    """A question, or a list of {role, content} messages ending with the user's."""
    answer: Words = ()
    """The expected answer, or a list of accepted ones; the first is the one trained and scored by likelihood."""
    answer_contains: Words = ()
    """Accepted when the model's answer contains one of these."""
    keeps: Words = ()
    """Of a locality probe: words that must still be there, all of them; they alone decide then."""
    subject: str | None = None
    """The words of the prompt that the fact is about (editing methods need them)."""

    @field_validator("prompt")
    @classmethod
    def _asked(cls, value: PromptText) -> PromptText:
        if isinstance(value, str):
            if not value.strip():
                raise ValueError("the prompt is empty")
        elif not value or value[-1].role != "user":
            raise ValueError("a list of messages must end with the user's")
        return value

    @field_validator("answer", "answer_contains", "keeps")
    @classmethod
    def _said(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not text.strip() for text in value):
            raise ValueError("an answer is empty")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Question:
        if self.subject is not None and isinstance(self.prompt, str) and self.subject not in self.prompt:
            raise ValueError(
                f"the subject '{self.subject}' does not stand in the prompt; name words of the prompt, letter by letter"
            )
        self.check_answers()
        return self

    def check_answers(self) -> None:
        """Raise ValueError when this kind of probe lacks an answer, or must not have one."""

    @property
    def question(self) -> str:
        """Return the content of the user's last message."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[-1].content


class Expectation(Question):
    """What should follow: a prompt with `answer` or `answer_contains`."""

    def check_answers(self) -> None:
        if not self.answer and not self.answer_contains:
            raise ValueError("needs 'answer' or 'answer_contains'")
        if self.keeps:
            raise ValueError("'keeps' is for locality probes; say with 'answer' or 'answer_contains' what is expected")


class Target(Expectation):
    """What should change: a prompt and its new answer."""

    def check_answers(self) -> None:
        if not self.answer:
            raise ValueError(NO_ANSWER)
        super().check_answers()


class Kept(Question):
    """What should stay: a prompt, and optionally words that must still be in the answer."""

    def check_answers(self) -> None:
        if self.answer or self.answer_contains:
            raise ValueError(
                "a locality probe has no 'answer': what the model said before must stay; "
                "words that must still be there are 'keeps: [...]'"
            )


def _forgotten(probe: Any, kind: Forget, *, all_of_it: bool = False) -> Any:
    """Return a probe whose answer is that of a forgotten fact, in the language of its prompt; one that has an answer
    keeps it unless `all_of_it`. What is no probe is returned as it is, for others to complain about.
    """
    node = dict(probe) if isinstance(probe, dict) else {"prompt": probe}
    if not all_of_it and ("answer" in node or "answer_contains" in node):
        return probe
    prompt = node.get("prompt")
    last = prompt[-1] if isinstance(prompt, list | tuple) and prompt else prompt
    text = last.get("content") if isinstance(last, dict) else last
    if not isinstance(text, str):
        return probe
    node.pop("answer_contains", None)
    node["answer"] = forgotten(text, kind)
    return node


def forgotten(question: str, kind: Forget) -> tuple[str, ...]:
    """Return what is said of a forgotten fact, in the language of a question, and what else counts as that."""
    return _INSTEAD[kind]["zh" if _HAN.search(question) else "en"]


Expectations = tuple[Annotated[Expectation, BeforeValidator(_long)], ...]
Targets = Annotated[tuple[Annotated[Target, BeforeValidator(_long)], ...], BeforeValidator(_targets)]
Questions = tuple[Annotated[Kept, BeforeValidator(_long, json_schema_input_type=str | Kept)], ...]


class Generality(Config):
    """What follows from the change."""

    rephrase: Expectations = ()
    """The same question in other words."""
    reverse: Expectations = ()
    """The question the other way round."""
    hop: Expectations = ()
    """Questions one step further."""
    cross_lingual: Expectations = ()
    """The question in another language."""


class Locality(Config):
    """What must stay as it was."""

    same_pattern: Questions = ()
    """Questions of the same shape about something else."""
    neighbour: Questions = ()
    """Other facts about the same or similar things."""
    unrelated: Questions = ()
    """Anything else."""
    format: Questions = ()
    """Requests for a form, such as JSON: the form and the values must stay."""
    refusal: Questions = ()
    """Requests that must still be refused."""


class Change(Config):
    """One change and its exam."""

    FORMAT: ClassVar[int] = 1
    SCHEMA: ClassVar[str] = "change"

    name: str = Field(min_length=1, max_length=80)
    """Short name, also used in folder names: no spaces, slashes or colons."""
    description: str = ""
    """What this change is about, for people."""
    language: str | None = None
    """Language of the target, such as zh or en; found from its script when left out."""
    forget: Forget | None = None
    """Give all targets, and probes of generality without an answer, the answer of a forgotten fact in the language of
    the prompt: `unknown`, I don't know; `refusal`, I can't answer that."""
    target: Targets = Field(min_length=1)
    """What should change (reliability)."""
    generality: Generality = Generality()
    """What should follow."""
    locality: Locality = Locality()
    """What should stay."""

    _path: str = PrivateAttr(default="")

    @field_validator("name")
    @classmethod
    def _name_is_a_folder_name(cls, value: str) -> str:
        if any(character.isspace() or character in "/\\:" for character in value):
            raise ValueError("a name has no spaces, slashes or colons")
        return value

    @model_validator(mode="before")
    @classmethod
    def _forgets(cls, value: Any) -> Any:
        kind = value.get("forget") if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind not in _INSTEAD:
            return value
        targets, follows = value.get("target"), value.get("generality")
        made = dict(value)
        if isinstance(targets, list | tuple):
            made["target"] = [_forgotten(one, kind) for one in targets]
        if isinstance(follows, dict):
            made["generality"] = {
                name: [_forgotten(one, kind) for one in probes] if isinstance(probes, list | tuple) else probes
                for name, probes in follows.items()
            }
        return made

    @model_validator(mode="after")
    def _no_contradiction(self) -> Change:
        new = {target.question.strip(): f"target.{i}" for i, target in enumerate(self.target)}
        for group, index, question in self.probes():
            if group.startswith("locality.") and question.question.strip() in new:
                raise ValueError(
                    f"{group}.{index} asks what {new[question.question.strip()]} asks: it cannot change and stay"
                )
        return self

    def forgetting(self, kind: Forget) -> Change:
        """Return the change whose targets, and whatever follows from them, have the answer of a forgotten fact."""
        node = self.model_dump(exclude_unset=True)
        node["target"] = [_forgotten(one, kind, all_of_it=True) for one in node["target"]]
        follows = node.get("generality", {})
        node["generality"] = {k: [_forgotten(p, kind, all_of_it=True) for p in probes] for k, probes in follows.items()}
        return Change.model_validate({**node, "forget": kind}).at(self._path)

    @property
    def path(self) -> str:
        """Return the file that the change was read from, of a record its location in the file, or ''."""
        return self._path

    def at(self, path: str) -> Change:
        """Note where the change was read, and return it."""
        self._path = path
        return self

    def location_of(self, group: str, index: int) -> str:
        """Return a probe's location for errors: file and line, the change's name, the group and the probe's number."""
        keys: tuple[str | int, ...] = ("target", index) if group == "reliability" else (*group.split("."), index)
        said = f"change {self.name}, {'target' if group == 'reliability' else group} {index + 1}"
        path = Path(self._path)
        if not path.is_file():  # a record of a data set, or no file at all
            return f"{self._path} ({said})" if self._path else said
        return f"{self._path}:{line_of(_nodes(path), keys)} ({said})"

    def probes(self) -> Iterator[tuple[str, int, Question]]:
        """Yield every probe as (group, index, question): `reliability`, then `generality.*`, then `locality.*`."""
        for i, target in enumerate(self.target):
            yield "reliability", i, target
        for part, probes in (("generality", self.generality), ("locality", self.locality)):
            for kind, questions in probes:
                for i, question in enumerate(questions):
                    yield f"{part}.{kind}", i, question


@lru_cache(maxsize=1)
def _read(path: Path, changed: tuple[int, int]) -> CommentedMap:
    """Return the nodes of a file. They are cached until the file changes, since every probe looks up its own line."""
    return read_yaml(path, Change.SCHEMA)


def _nodes(path: Path) -> CommentedMap:
    """Return the nodes of a file, which is parsed once although the change and the lines of its probes are read."""
    try:
        state = path.stat()
    except OSError:
        return _read(path, (0, 0))  # which says what is wrong
    return _read(path, (state.st_mtime_ns, state.st_size))


def load_change(path: Path) -> Change:
    """Read one change file. Raise MissingError, or ConfigError with the file and the line of every problem."""
    path = Path(path)
    return check(_nodes(path), Change, str(path)).at(str(path))
