"""Facts whose place in a model is looked for: a prompt, the words in it that the fact is about, and the answer.

They come from change files and editing data sets (what the model says now is traced, not the new answer; CounterFact
has the true one) and from rows, whose answer is what the model says now:

    {"prompt": "The capital of Australia is", "subject": "Australia", "answer": "Canberra"}

The subject is found among the tokens by the place of its characters in the text that the model reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from posttrain.config.change import Change, load_change
from posttrain.config.load import find_files
from posttrain.data.changes import change_of
from posttrain.data.chat import prompt_text
from posttrain.data.edits import counterfact, knowedit, ripple_edits, zsre
from posttrain.data.edits.files import Numbered, Part, read_edit_set, split_part
from posttrain.data.fields import BadRow, kind_of
from posttrain.data.files import file_rows
from posttrain.data.records import Message
from posttrain.editing.edits import Form, tokens_of
from posttrain.errors import ConfigError, DataError, PosttrainError, Problem
from posttrain.inference.encoding import PromptEncoder
from posttrain.inference.protocol import Plain, Spoken

__all__ = ["AnyForm", "AskedFact", "Fact", "FactReader", "distinct", "fact_of", "facts_of", "mentions", "read_facts"]

AnyForm = Literal["auto", "raw", "chat"]
"""How a fact is asked: `raw`, as plain text; `chat`, as a user's words in the chat template; `auto`: chat where the
tokenizer has a template."""
CHANGES = (".yaml", ".yml")
DATA_SETS = (counterfact, zsre, ripple_edits, knowedit)
KEYS = ("prompt", "subject", "answer", "name")


@dataclass(frozen=True)
class Fact:
    """What is known of a subject.

    prompt: the user's words, or a conversation that ends with them; subject: words of the prompt; answer: what the
    model must say, or "" for whatever it says; name: for people; location: file and line, for errors. Raise DataError
    if the subject does not stand in the prompt.
    """

    prompt: Spoken
    subject: str
    answer: str = ""
    name: str = ""
    location: str = ""

    def __post_init__(self) -> None:
        if not self.subject.strip():
            mend = "write which words of the prompt the fact is about: subject: ..."
            raise DataError(Problem(self.location, "the fact names no subject", mend))
        if self.subject.strip() not in self.question:
            cause = f"the subject '{self.subject}' does not stand in the prompt"
            raise DataError(Problem(self.location, cause, "name words of the prompt, letter by letter"))

    @property
    def question(self) -> str:
        """The user's last words."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[-1].content

    @property
    def place(self) -> str:
        """Where it comes from, for messages."""
        return self.location or self.name or f"'{self.question}'"


def mentions(text: str, subject: str) -> list[tuple[int, int]]:
    """Return where a subject stands in a text: its first character and the one after its last. Capitals do not matter
    (unless they change a text's length).

    >>> mentions("Is France in Europe? The capital of france", "France")
    [(3, 9), (36, 42)]
    """
    words, wanted = text, subject.strip()
    if len(text.casefold()) == len(text) and len(wanted.casefold()) == len(wanted):
        words, wanted = text.casefold(), wanted.casefold()
    found = []
    at = words.find(wanted)
    while at >= 0:
        found.append((at, at + len(wanted)))
        at = words.find(wanted, at + len(wanted))
    return found


# ---- reading files ---------------------------------------------------------------------------------------------------


def read_facts(patterns: Sequence[str], base: Path) -> list[Fact]:
    """Return the facts of files, which paths or globs name: change files (.yaml), editing data sets (.json), and rows
    (.jsonl, .json, .csv, ...). A slice may follow a name of JSON: `counterfact.json[:20]`.

    Raise MissingError for a pattern without a file, and ConfigError or DataError with all problems of all files.
    """
    parted = [split_part(pattern) for pattern in patterns]
    paths = {(path, part): None for name, part in parted for path in find_files(name, base, location="FACTS")}
    facts: list[Fact] = []
    problems: list[Problem] = []
    wrong: type[PosttrainError] = DataError
    for path, part in paths:
        try:
            facts += facts_of([load_change(path)]) if path.suffix.lower() in CHANGES else _facts_in(path, part)
        except (ConfigError, DataError) as error:
            problems += error.problems
            wrong = ConfigError if isinstance(error, ConfigError) else wrong
    if problems:
        raise wrong(*problems)
    return facts


def facts_of(changes: Sequence[Change]) -> list[Fact]:
    """Return the targets of changes as facts without an answer. Raise DataError with the problems of all targets."""
    facts: list[Fact] = []
    problems: list[Problem] = []
    for change in changes:
        for number, target in enumerate(change.target):
            prompt = target.prompt
            spoken = prompt if isinstance(prompt, str) else tuple(Message(t.role, t.content) for t in prompt)
            name = change.name if len(change.target) == 1 else f"{change.name} {number + 1}"
            where = change.location_of("reliability", number)
            try:
                facts.append(Fact(spoken, target.subject or "", "", name, where))
            except DataError as error:
                problems += error.problems
    if problems:
        raise DataError(*problems)
    return facts


def _facts_in(path: Path, part: Part) -> list[Fact]:
    """Return the facts of a slice of a file. Raise DataError with the problems of all rows."""
    rows = list(file_rows(path, notes=[]))
    if rows and isinstance(rows[0][1], dict) and any(one.fits(rows[0][1]) for one in DATA_SETS):
        return [_of_record(record) for record in read_edit_set(path, part).records]
    facts: list[Fact] = []
    problems: list[Problem] = []
    for number, (location, row) in list(enumerate(rows, start=1))[slice(*part)]:
        try:
            if isinstance(row, BadRow):
                raise DataError(Problem(location, row.cause, row.mend))
            facts.append(fact_of(row, location, f"{path.stem} {number}"))
        except DataError as error:
            problems += error.problems
    if not facts and not problems:
        mend = 'write a line for each: {"prompt": "...", "subject": "...", "answer": "..."}'
        problems.append(Problem(f"{path}:1", "the file has no facts", mend))
    if problems:
        raise DataError(*problems)
    return facts


def _of_record(record: Numbered) -> Fact:
    """Return the edit of a record as a fact; CounterFact says what is true."""
    (fact,) = facts_of([change_of(record)])
    return replace(fact, answer=record.edit.true) if isinstance(record.edit, counterfact.CounterFact) else fact


def fact_of(row: Any, location: str, name: str = "") -> Fact:
    """Return a row as a fact. Raise DataError with the location if keys are missing or of another type."""
    if not isinstance(row, dict):
        mend = 'expected: {"prompt": "...", "subject": "...", "answer": "..."}'
        raise DataError(Problem(location, f"an object is expected, got {kind_of(row)}", mend))
    for key in KEYS:
        value = row.get(key)
        if value is None and key in ("answer", "name"):
            continue
        if not isinstance(value, str) or (key in ("prompt", "subject") and not value.strip()):
            cause = f"'{key}' is missing" if value is None else f"'{key}' must be a text"
            mend = f"keys of a fact: {', '.join(KEYS)} (answer and name may be left out)"
            raise DataError(Problem(location, cause, mend))
    return Fact(row["prompt"], row["subject"], (row.get("answer") or "").strip(), row.get("name") or name, location)


# ---- tokens ----------------------------------------------------------------------------------------------------------


class AskedFact(NamedTuple):
    """A fact as the model reads it.

    ids: of the prompt; begins: index of the question's first token; subject: indices of the subject's tokens; noisy:
    indices of all tokens of the question that mention the subject; form: how it is asked.
    """

    fact: Fact
    ids: list[int]
    begins: int
    subject: range
    noisy: tuple[int, ...]
    form: Form

    @property
    def evidence(self) -> tuple[tuple[int, ...], range]:
        """What the model reads, and where the subject is in it. Facts alike in this say the same of a model."""
        return tuple(self.ids), self.subject


def distinct(asked: Sequence[AskedFact]) -> list[AskedFact]:
    """Return the facts without those whose prompt and subject an earlier one has: a repeated row is no more evidence
    than one row.
    """
    first: dict[tuple[tuple[int, ...], range], AskedFact] = {}
    for one in asked:
        first.setdefault(one.evidence, one)
    return list(first.values())


class FactReader(PromptEncoder):
    """Makes token ids of facts for one tokenizer. Raise DataError for `chat` without a chat template."""

    def __init__(self, tokenizer: Any, form: AnyForm = "auto") -> None:
        self.tokenizer, self.system_prefix = tokenizer, None
        if form == "chat" and not tokenizer.chat_template:
            raise DataError(
                Problem("--form chat", "the tokenizer has no chat template", "ask in plain text: --form raw")
            )
        self.form: Form = form if form != "auto" else "chat" if tokenizer.chat_template else "raw"

    def read_all(self, facts: Sequence[Fact]) -> list[AskedFact]:
        """Return all facts as tokens. Raise DataError with the problems of all of them."""
        made: list[AskedFact] = []
        problems: list[Problem] = []
        for fact in facts:
            try:
                made.append(self.read(fact))
            except DataError as error:
                problems += [
                    p if p.location == fact.location else Problem(fact.location, str(p)) for p in error.problems
                ]
        if problems:
            raise DataError(*problems)
        return made

    def read(self, fact: Fact) -> AskedFact:
        """Return a fact as tokens. Raise DataError if its subject is not found among them."""
        question = fact.question.strip()
        if self.form == "raw":
            text = fact.question
            ids = self.encode(Plain(text))
        else:
            turns = (Message("user", fact.prompt),) if isinstance(fact.prompt, str) else fact.prompt
            text = prompt_text(turns, self.tokenizer)
            ids = self.encode(fact.prompt)
        begin = text.rfind(question)
        if begin < 0:
            cause = f"the chat template does not show the question as it is, so '{fact.subject}' is not found in it"
            raise DataError(Problem(fact.location, cause, "ask in plain text: --form raw"))
        whole = tokens_of(self.tokenizer, text, ids, begin, begin + len(question))
        spans = list(self._spans(fact, text, ids, begin))
        if whole is None or not spans:
            cause = f"the subject '{fact.subject}' is not found among the tokens of its prompt"
            raise DataError(Problem(fact.location, cause, "name the subject as it is written in the prompt"))
        noisy = sorted({at for span in spans for at in span})
        return AskedFact(fact, ids, whole[0], spans[-1], tuple(noisy), self.form)

    def _spans(self, fact: Fact, text: str, ids: list[int], begin: int) -> Iterator[range]:
        """Yield the tokens of each mention of the subject in the question; the last one is spelled like it."""
        question = fact.question.strip()
        found = mentions(question, fact.subject)
        last = question.rfind(fact.subject.strip())
        for first, end in sorted(found, key=lambda one: (one[0] == last, one)):
            span = tokens_of(self.tokenizer, text, ids, begin + first, begin + end)
            if span is not None:
                yield span
