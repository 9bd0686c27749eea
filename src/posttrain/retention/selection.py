"""Define what all kinds of replay share: the context, the selection of conversations, and the cache on disk.

Replay mixes examples of the old behaviour into training on the new one (rehearsal, Robins 1995). If the model makes the
examples itself, replay needs no old data (LAMOL, arXiv:1909.03329; Magpie, arXiv:2406.08464). Conversations with a
prompt of the exam are always left out, since an exam question that was trained on measures nothing.
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
from posttrain.data.scripts import normalise_prompt, normalised
from posttrain.errors import DataError, Problem
from posttrain.inference.encoding import PromptReader
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.disk import write_whole
from posttrain.models.names import resolve
from posttrain.retention.cache_folder import default_cache

__all__ = [
    "NO_TASK",
    "NoAnswers",
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
"""Questions and requests in Traditional Chinese and English, of the kinds that pocket was trained on: mostly facts.
They are used for pocket if no prompts are given.
"""
GENERAL_PROMPTS = Path(__file__).parent / "replay" / "general.jsonl"
"""Requests to a chat model, of 25 kinds, in English and Traditional Chinese; used for all other models."""


@lru_cache(maxsize=1)
def _pocket_vocabulary() -> frozenset[str]:
    stored = json.loads(read_text(Path(resolve("pocket:chat")) / "tokenizer.json"))
    return frozenset([*stored["model"]["vocab"], *(token["content"] for token in stored["added_tokens"])])


def packaged_prompts(tokenizer: Any) -> Path:
    """Return the packaged prompts that suit a model: those for pocket, recognised by its vocabulary, or the others."""
    return PACKAGED_PROMPTS if _pocket_vocabulary() == set(tokenizer.get_vocab()) else GENERAL_PROMPTS


def only_change_in_braces(paths: Iterable[str]) -> None:
    """Raise ValueError for a path with braces that are not {change}."""
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
        """Return the paths of the files that this replay reads."""
        return []

    def for_change(self, name: str) -> ReplayConfig:
        """Return this replay for the training on one change: {change} in a path becomes the change's name."""
        return self

    def rows(self, base: Path) -> Sequence[Conversation] | None:
        """Return rows with the prompts that are known before a model answers; None if the model makes them up."""
        return None

    def check(self, base: Path, reader: PromptReader, seed: int) -> str:
        """Check rows and prompts before a model answers them; for `--dry-run`. Raise errors for bad rows and prompts.
        Return a sentence if there are fewer prompts or rows than `n`, else an empty string.
        """
        self.rows(base)
        return ""

    def made_tokens(self, base: Path) -> int:
        """Return roughly how many tokens the model generates for this replay; for `--dry-run`."""
        return 0

    def share_of(self, new_tokens: int, old_tokens: int) -> float:
        """Return the share of replayed tokens. new_tokens, old_tokens: number of tokens of all new, all old rows."""
        return self.share

    def lessons(self, rows: Sequence[Conversation], task: Task) -> list[Conversation]:
        """Return conversations to learn together with the rows of a task, so that the task can be replayed later."""
        return []

    def leave(self, rows: Sequence[Conversation], task: Task, seed: int) -> None:
        """Write the data that later tasks need into `Task.folder`, at the end of the task's run."""


class Task(NamedTuple):
    """A task that the model will learn now.

    name: of a study's stage; rows: number of new rows; earlier: folder of the run that learned the task before, None
    for the first task; folder: folder of this task's run, for data that later tasks need, None if nothing is written.
    """

    name: str = ""
    rows: int = 0
    earlier: Path | None = None
    folder: Path | None = None


NO_TASK = Task()
"""The task of a run that is not one of several tasks."""


@dataclass(frozen=True)
class ReplayContext:
    """The parts that a replay may use.

    respondent: the model before training; fingerprint: of its weights and template, the key of the cache; forbidden:
    prompts (in any spelling) that must not be replayed; base: relative paths are relative to this folder; cache: the
    cache folder, None for the default; say: is called with one line for each choice that is made; task: the task to
    learn.
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
    """Return conversations, also made from prompts with completions, and the locations of all other records."""
    made = [r.as_conversation() if isinstance(r, Completion) else r for r in records]
    others = [r.location for r in made if not isinstance(r, Conversation)]
    return [r for r in made if isinstance(r, Conversation)], others


class NoAnswers(DataError):
    """All answers of a model to prompts are empty. Its mend is a setting of replay."""

    def without_mend(self) -> list[Problem]:
        """Return the problems for a verb that has no such setting."""
        return [problem._replace(mend="") for problem in self.problems]


class Selection(NamedTuple):
    """Conversations that can be replayed, and how many were left out, by reason."""

    conversations: list[Conversation]
    dropped: dict[str, int]

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items() if count)
        return f"{len(self.conversations)} conversations" + (f" ({reasons} left out)" if reasons else "")


def conversation_key(messages: Sequence[Message]) -> str:
    """Return a conversation up to a user's turn as one prompt: the words of all messages except system messages."""
    return "\n".join(message.content for message in messages if message.role != "system")


def prompts_collide(conversations: Iterable[Conversation], forbidden: Iterable[str]) -> list[Conversation]:
    """Return conversations in which a user turn is a forbidden prompt, alone or together with all turns before it."""
    keys = normalised(frozenset(forbidden))

    def asks(messages: Sequence[Message]) -> bool:
        turns = [at for at, message in enumerate(messages) if message.role == "user"]
        said = [messages[at].content for at in turns] + [conversation_key(messages[: at + 1]) for at in turns if at]
        return any(normalise_prompt(words) in keys for words in said)

    return [c for c in conversations if asks(c.messages)]


def select(conversations: Sequence[Conversation], forbidden: Iterable[str], source: str) -> Selection:
    """Leave out forbidden prompts, repeated prompts and empty answers. Raise DataError if nothing is left."""
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
    """Return a sentence if there are fewer than `n`, else an empty string."""
    return f"replay: {n} were asked for (n), {there} are there" if n is not None and there < n else ""


def read_prompts(path: Path) -> list[PromptOnly]:
    """Read prompts from a JSONL file. Raise DataError with every bad line. A row is `{"prompt": ...}`, `{"messages":
    [...]}` (its first user message is the prompt), or a string.
    """
    prompts, problems = sifted_prompts(path)
    if problems:
        raise DataError(*problems)
    return prompts


def sifted_prompts(path: Path) -> tuple[list[PromptOnly], list[Problem]]:
    """Return the prompts of the good rows and the problems of the others. Raise DataError for a file without rows."""
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
    """Return what `make` returns; read it from disk if it was made before for the same fingerprint and settings."""
    text = json.dumps(
        {"format": ReplayConfig.FORMAT, "model": context.fingerprint, **settings}, sort_keys=True, ensure_ascii=False
    )
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:24]
    path = (context.cache or default_cache()) / "replay" / f"{fingerprint}.jsonl"
    if path.is_file():
        context.say(f"replay: read from the cache ({path})")
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: answers may contain U+2028, U+0085
        rows = [json.loads(line) for line in lines if line]
        return [
            conversation(row["prompt"], row["answer"], f"{path}:{i}", ended=row["ended"])
            for i, row in enumerate(rows, start=1)
        ]
    made = make()
    if not made:  # an empty result is not cached; the selection reports the reason
        return made
    rows = [{"prompt": c.messages[0].content, "answer": c.messages[-1].content, "ended": c.ended} for c in made]
    write_whole(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    return made


def conversation(prompt: str, answer: str, location: str, *, ended: bool = True) -> Conversation:
    """Return a conversation of one question and one answer. ended: False if the answer was cut off."""
    return Conversation((Message("user", prompt), Message("assistant", answer)), location, ended=ended)


def in_brief(text: str, limit: int = 40) -> str:
    """Return the start of a text as one line of at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
