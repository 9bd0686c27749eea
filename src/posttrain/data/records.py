"""Define the records of data files: conversations, prompt and completion, plain texts, prompts, preferences and others.

The others are graded answers, labelled texts, tagged tokens and questions about texts. Each record has its `location`
(`rows.jsonl:17`), so that every later error can name the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

from posttrain.data.calls import with_objects

__all__ = [
    "NO_TEXTS",
    "ROLES",
    "Completion",
    "Conversation",
    "Graded",
    "LabelledText",
    "Message",
    "Preference",
    "PromptOnly",
    "ReadingQuestion",
    "Record",
    "SpanAnswer",
    "TaggedTokens",
    "Text",
    "talk_of",
    "texts_of",
]

ROLES = ("system", "developer", "user", "assistant", "tool")
"""The roles that a message may have; a chat template may support fewer."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. The chat template gets it as it is, except that arguments in JSON text are parsed.

    train: None is the default (an assistant's turn is learned, others are not); False on an assistant's turn leaves it
    out of the loss; True on another turn puts its words and its end-of-turn token into the loss.
    """

    role: str
    content: str
    reasoning: str | None = None
    tool_calls: tuple[dict[str, Any], ...] | None = None
    name: str | None = None
    train: bool | None = None
    tool_call_id: str | None = None

    @property
    def supervised(self) -> bool:
        """Return whether the words of this turn are in the loss."""
        return self.role == "assistant" if self.train is None else self.train

    def for_template(self) -> dict[str, Any]:
        """Return the dict that chat templates take, without the fields that are None."""
        optional = {
            "reasoning_content": self.reasoning,
            "tool_calls": None if self.tool_calls is None else with_objects(self.tool_calls),
            "name": self.name,
            "tool_call_id": self.tool_call_id,
        }
        given = {key: value for key, value in optional.items() if value is not None}
        return {"role": self.role, "content": self.content, **given}


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order. tools: JSON schemas of the tools that the assistant may call; weight: factor of its loss; ended:
    False when the last turn was cut off, so that its end must not be learned."""

    messages: tuple[Message, ...]
    location: str
    tools: tuple[dict[str, Any], ...] | None = None
    weight: float = 1.0
    ended: bool = True


@dataclass(frozen=True, slots=True)
class Completion:
    """A text and its continuation. A chat template renders it as a user's and an assistant's turn."""

    prompt: str
    completion: str
    location: str

    def as_conversation(self) -> Conversation:
        """Return the same pair as a conversation of two turns."""
        return Conversation((Message("user", self.prompt), Message("assistant", self.completion)), self.location)


@dataclass(frozen=True, slots=True)
class Text:
    """A document. Every token is learned, and the end-of-text token after them."""

    text: str
    location: str


@dataclass(frozen=True, slots=True)
class PromptOnly:
    """A prompt that a model will answer. fields: the other fields of its row, for the code that judges the answer."""

    messages: tuple[Message, ...]
    location: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Return the content of the last message."""
        return self.messages[-1].content


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt, of which `chosen` is preferred. margin: by how much, on any scale, for reward models;
    plain: prompt and answers were strings, so that they are joined as plain text if there is no chat template."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    location: str
    tools: tuple[dict[str, Any], ...] | None = None
    margin: float | None = None
    plain: bool = False

    def both(self) -> tuple[Conversation | Completion, Conversation | Completion]:
        """Return the prompt with the chosen answer, and the prompt with the rejected answer."""
        return _answered(self, self.chosen), _answered(self, self.rejected)


@dataclass(frozen=True, slots=True)
class Graded:
    """An answer that is wanted (label true) or unwanted (label false). `plain`: as in `Preference`."""

    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]
    label: bool
    location: str
    tools: tuple[dict[str, Any], ...] | None = None
    plain: bool = False

    def answered(self) -> Conversation | Completion:
        """Return the prompt with its answer."""
        return _answered(self, self.completion)


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text, or two (a premise and a hypothesis), with its labels. A text that is not labelled yet has none."""

    text: str
    labels: tuple[str, ...]
    location: str
    text2: str | None = None
    gold: bool = True
    """Whether the row has labels, possibly an empty list."""


@dataclass(frozen=True, slots=True)
class TaggedTokens:
    """A sentence split into tokens, each with its tag. A sentence that is not tagged yet has no tags."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    location: str
    gold: bool = True


class SpanAnswer(NamedTuple):
    """An answer. start: index of its first character in the context."""

    text: str
    start: int


@dataclass(frozen=True, slots=True)
class ReadingQuestion:
    """A question about a text. answers: empty when the text has no answer; id: the question's id in its data set."""

    question: str
    context: str
    answers: tuple[SpanAnswer, ...]
    location: str
    id: str = ""
    gold: bool = True


def _answered(row: Preference | Graded, answer: tuple[Message, ...]) -> Conversation | Completion:
    if row.plain:
        return Completion(row.prompt[0].content, answer[0].content, row.location)
    return Conversation((*row.prompt, *answer), row.location, row.tools)


Record: TypeAlias = (
    Conversation | Completion | Text | Preference | Graded | LabelledText | TaggedTokens | ReadingQuestion
)


def texts_of(record: Record) -> list[Record]:
    """Return the records to render for a record: both answers of a preference, the graded answer, or the record itself.
    The `location` of an answer says which one it is: chosen, rejected, wanted or unwanted.
    """
    if isinstance(record, Preference):
        named = zip(record.both(), ("chosen", "rejected"), strict=True)
        return [replace(one, location=f"{record.location} {name}") for one, name in named]
    if isinstance(record, Graded):
        return [replace(record.answered(), location=f"{record.location} {'wanted' if record.label else 'unwanted'}")]
    return [record]


def talk_of(record: Record) -> Conversation | None:
    """Return a record as a conversation, for comparing questions, or None when it is none. A preference gives the
    conversation with its chosen answer.
    """
    if isinstance(record, Preference):
        record = record.both()[0]
    elif isinstance(record, Graded):
        record = record.answered()
    if isinstance(record, Completion):
        return record.as_conversation()
    return record if isinstance(record, Conversation) else None


NO_TEXTS: dict[type[Record], tuple[str, str]] = {
    LabelledText: ("a labelled text, where one to be learned is expected", "format: text"),
    TaggedTokens: ("tagged tokens, where a text is expected", "objective: token_classification"),
    ReadingQuestion: (
        "a question about a text, where an answer to be learned is expected",
        "objective: extractive_qa; or columns: {prompt: ..., completion: ...}, format: completion",
    ),
    Preference: ("two answers to compare, where one text is expected", "objective: dpo or orpo"),
    Graded: (
        "a graded answer, where one to be learned is expected",
        "objective: kto; or format: completion, to learn every answer whatever its label",
    ),
}
"""Kind of record that is not learned as a single text, but by other objectives -> cause and mend of the problem."""
