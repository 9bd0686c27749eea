"""Shared by every kind of replay: its context, the selection of conversations, and the cache on disk.

Replay mixes examples of the old behaviour into training on the new (rehearsal, Robins 1995). Made from the model itself
it needs no old data (LAMOL, arXiv:1909.03329; Magpie, arXiv:2406.08464). Conversations whose prompt is one of the
exam's are always left out: an exam question that was trained on measures nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from posttrain.config.base import Config
from posttrain.config.load import read_text
from posttrain.data.fields import BadRow
from posttrain.data.files import json_lines
from posttrain.data.records import Completion, Conversation, Message, PromptOnly, Record
from posttrain.data.scripts import normalise_prompt
from posttrain.errors import DataError, Problem
from posttrain.inference.encoding import PromptReader
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.disk import write_whole
from posttrain.models.names import resolve
from posttrain.retention.cache_folder import default_cache

__all__ = [
    "NO_TASK",
    "ReplayConfig",
    "ReplayContext",
    "Selection",
    "Task",
    "cached",
    "conversation_key",
    "conversations_in",
    "default_cache",
    "in_brief",
    "only_change_in_braces",
    "packaged_prompts",
    "prompts_collide",
    "read_prompts",
    "select",
    "short_of",
    "sifted_prompts",
]

PACKAGED_PROMPTS = Path(__file__).parent / "replay" / "prompts.jsonl"
"""Questions and requests in Traditional Chinese and English in the manner that pocket was brought up in: facts most of
all. Used for pocket when no prompts are given."""
GENERAL_PROMPTS = Path(__file__).parent / "replay" / "general.jsonl"
"""What people ask of a chat model, of 25 kinds, in English and Traditional Chinese; used for all other models."""


@lru_cache(maxsize=1)
def _pocket_vocabulary() -> frozenset[str]:
    stored = json.loads(read_text(Path(resolve("pocket:chat")) / "tokenizer.json"))
    return frozenset([*stored["model"]["vocab"], *(token["content"] for token in stored["added_tokens"])])


def packaged_prompts(tokenizer: Any) -> Path:
    """The packaged prompts that suit a model: pocket, known by its vocabulary, or any other."""
    return PACKAGED_PROMPTS if _pocket_vocabulary() == set(tokenizer.get_vocab()) else GENERAL_PROMPTS


def only_change_in_braces(paths: Iterable[str]) -> None:
    """ValueError for a path with braces that nothing fills."""
    if any("{" in path.replace("{change}", "") for path in paths):
        raise ValueError("only {change} may stand in braces in the path")


class ReplayConfig(Config):
    """The settings that every kind of replay has."""

    FORMAT: ClassVar[int] = 2
    of_tasks: ClassVar[bool] = False
    """Whether it replays tasks that were learned earlier, not the model as it was at the beginning."""

    kind: str
    """Where the old examples come from: see `posttrain list replay`."""
    share: float = Field(default=0.9, gt=0, lt=1)
    """Replayed tokens over all tokens of a training step: 0.9 is nine old tokens for each new one."""
    loss: Literal["words", "kl"] = "words"
    """What is learned of replayed rows: their words, by cross-entropy; or `kl`, the whole distribution that the model
    had in each place before training."""
    weight: float = Field(default=1.0, ge=0)
    """With objectives that are no mean over tokens (preferences, unlearning, heads): the weight of the replayed rows'
    mean loss beside the objective's."""

    def files(self) -> list[str]:
        """Paths of the files that this replay reads."""
        return []

    def for_change(self, name: str) -> ReplayConfig:
        """This replay in the training on one change of a study: its name stands where a path has {change}."""
        return self

    def rows(self, base: Path) -> Sequence[Conversation] | None:
        """The rows whose prompts are known before a model is asked; None where the model makes them up."""
        return None

    def check(self, base: Path, reader: PromptReader, seed: int) -> str:
        """Raise errors for bad rows and prompts before a model is asked; for `--dry-run`. Return a sentence where there
        are fewer prompts or rows than were asked for; else an empty text."""
        self.rows(base)
        return ""

    def made_tokens(self, base: Path) -> int:
        """Roughly how many tokens the model writes for it; for `--dry-run`."""
        return 0

    def share_of(self, new_tokens: int, old_tokens: int) -> float:
        """The share, given how many tokens all new and all old rows have."""
        return self.share

    def lessons(self, rows: Sequence[Conversation], task: Task) -> list[Conversation]:
        """The conversations to learn beside the rows of a task, so that the task can be replayed later."""
        return []

    def leave(self, rows: Sequence[Conversation], task: Task, seed: int) -> None:
        """Write the data that later tasks need into the folder of the task's run (`Task.folder`), at its end."""


class Task(NamedTuple):
    """A task that is about to be learned. name: of a study's stage; rows: how many new rows it has; earlier: the folder
    of the run that has learned the task before it, None for the first; folder: of this task's run, for what is worth
    keeping, None where nothing is written.
    """

    name: str = ""
    rows: int = 0
    earlier: Path | None = None
    folder: Path | None = None


NO_TASK = Task()


@dataclass(frozen=True)
class ReplayContext:
    """What a replay may use.

    respondent: the model before it is changed; fingerprint: of its weights and template, the key of the cache;
    forbidden: prompts (any spelling) that must not be replayed; base: relative paths are relative to it;
    say: receives one line per choice made; task: what is about to be learned.
    """

    respondent: ModelRespondent
    fingerprint: str
    seed: int = 0
    forbidden: frozenset[str] = frozenset()
    base: Path = field(default_factory=Path)
    cache: Path | None = None
    say: Callable[[str], None] = print
    task: Task = NO_TASK


def conversations_in(records: Iterable[Record]) -> tuple[list[Conversation], list[str]]:
    """The records that are conversations, or prompts with completions; and the locations of the others."""
    made = [r.as_conversation() if isinstance(r, Completion) else r for r in records]
    return [r for r in made if isinstance(r, Conversation)], [
        r.location for r in made if not isinstance(r, Conversation)
    ]


class Selection(NamedTuple):
    """Conversations fit for replay and how many were left out, by reason."""

    conversations: list[Conversation]
    dropped: dict[str, int]

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items() if count)
        return f"{len(self.conversations)} conversations" + (f" ({reasons} left out)" if reasons else "")


def conversation_key(messages: Sequence[Message]) -> str:
    """A conversation up to a user's turn as one prompt: the words of all messages but system messages."""
    return "\n".join(message.content for message in messages if message.role != "system")


@lru_cache(maxsize=8)
def normalised(prompts: frozenset[str]) -> frozenset[str]:
    """Normalise a set of prompts; a study asks for the same thousands again and again."""
    return frozenset(normalise_prompt(prompt) for prompt in prompts)


def prompts_collide(conversations: Iterable[Conversation], forbidden: Iterable[str]) -> list[Conversation]:
    """The conversations in which a user asks one of the forbidden prompts: by itself, or with all that came before."""
    keys = normalised(frozenset(forbidden))

    def asks(messages: Sequence[Message]) -> bool:
        return any(
            message.role == "user"
            and (
                normalise_prompt(message.content) in keys
                or (at > 0 and normalise_prompt(conversation_key(messages[: at + 1])) in keys)
            )
            for at, message in enumerate(messages)
        )

    return [c for c in conversations if asks(c.messages)]


def select(conversations: Sequence[Conversation], forbidden: Iterable[str], source: str) -> Selection:
    """Leave out forbidden prompts, repeated prompts and empty answers. DataError when nothing is left."""
    asked = {id(c) for c in prompts_collide(conversations, forbidden)}
    dropped = {"asked by the exam": 0, "repeated": 0, "without an answer": 0}
    kept: dict[str, Conversation] = {}
    for conversation in conversations:
        key = normalise_prompt("\n".join(m.content for m in conversation.messages[:-1]))
        if id(conversation) in asked:
            dropped["asked by the exam"] += 1
        elif not conversation.messages[-1].content.strip():
            dropped["without an answer"] += 1
        elif key in kept:
            dropped["repeated"] += 1
        else:
            kept[key] = conversation
    selection = Selection(list(kept.values()), dropped)
    if not kept:
        raise DataError(Problem(source, f"nothing to replay: {selection}", "give more or other prompts"))
    return selection


def short_of(n: int | None, there: int) -> str:
    """A sentence where fewer are there than were asked for; else empty."""
    return f"replay: {n} were asked for (n), {there} are there" if n is not None and there < n else ""


def read_prompts(path: Path) -> list[PromptOnly]:
    """Read prompts of a JSONL file: `{"prompt": ...}` or `{"messages": [...]}` rows (the user's first words), or
    strings. DataError that names every bad line.
    """
    prompts, problems = sifted_prompts(path)
    if problems:
        raise DataError(*problems)
    return prompts


def sifted_prompts(path: Path) -> tuple[list[PromptOnly], list[Problem]]:
    """Read the good rows, and the problems of the others. DataError for a file without any row."""
    prompts, problems = [], []
    for location, row in json_lines(read_text(path), str(path)):
        prompt = None if isinstance(row, BadRow) else _prompt_of(row)
        if isinstance(row, BadRow):
            problems.append(Problem(location, row.cause, row.mend))
        elif prompt is None:
            problems.append(Problem(location, "no prompt in this row", 'expected {"prompt": "..."}'))
        else:
            fields = {k: v for k, v in row.items() if k not in ("prompt", "messages")} if isinstance(row, dict) else {}
            prompts.append(PromptOnly((Message("user", prompt),), location, fields))
    if not prompts and not problems:
        raise DataError(Problem(str(path), "the file has no prompts"))
    return prompts, problems


def _prompt_of(row: Any) -> str | None:
    if isinstance(row, dict):
        messages = row.get("messages")
        if isinstance(messages, list):
            users = [m for m in messages if isinstance(m, dict) and m.get("role") == "user"]
            row = users[0].get("content") if users else None
        else:
            row = row.get("prompt")
    return row.strip() if isinstance(row, str) and row.strip() else None


def cached(
    context: ReplayContext, settings: dict[str, Any], make: Callable[[], list[Conversation]]
) -> list[Conversation]:
    """Call `make`, or read from disk what it made for the same model fingerprint and settings."""
    text = json.dumps(
        {"format": ReplayConfig.FORMAT, "model": context.fingerprint, **settings}, sort_keys=True, ensure_ascii=False
    )
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:24]
    path = (context.cache or default_cache()) / "replay" / f"{fingerprint}.jsonl"
    if path.is_file():
        context.say(f"replay: read from the cache ({path})")
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: answers may hold U+2028 and U+0085
        rows = [json.loads(line) for line in lines if line]
        return [
            conversation(row["prompt"], row["answer"], f"{path}:{i}", ended=row["ended"])
            for i, row in enumerate(rows, start=1)
        ]
    made = make()
    if not made:  # nothing worth keeping: the selection says why
        return made
    rows = [{"prompt": c.messages[0].content, "answer": c.messages[-1].content, "ended": c.ended} for c in made]
    write_whole(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    return made


def conversation(prompt: str, answer: str, location: str, *, ended: bool = True) -> Conversation:
    """One question and one answer; ended: False where the answer was cut off."""
    return Conversation((Message("user", prompt), Message("assistant", answer)), location, ended=ended)


def in_brief(text: str, limit: int = 40) -> str:
    """The start of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
