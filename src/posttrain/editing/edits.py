"""An edit: what shall be said of a subject. Its rows of tokens, with the place of the subject in each.

An editor works at the subject's last token, where a model has read the whole name and looks up what it knows of it. The
place is found by character offsets in the text that the model reads, so it is right in Chinese, in a chat template and
in the middle of a sentence. A model meets the fact after other words, too, and both as a plain text and as a user's
question; so each edit has several rows:

    form   text before   prompt                            answer
    raw                  臺灣最高的山是哪座？               雪山
    raw    因此，...。    臺灣最高的山是哪座？               雪山
    chat                 <user>臺灣最高的山是哪座？<assistant>   雪山 <end>
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from posttrain.config.change import Change
from posttrain.data.chat import prompt_text
from posttrain.data.records import Message
from posttrain.errors import ConfigError, DataError, Problem
from posttrain.inference.encoding import PromptEncoder
from posttrain.inference.protocol import Plain, Spoken

__all__ = ["Edit", "Form", "Row", "RowMaker", "chinese", "each_once", "edits_of", "tokens_of", "without_subject"]

Form = Literal["raw", "chat"]


@dataclass(frozen=True)
class Edit:
    """What shall be said: after `prompt`, `answer`. The prompt holds the words of the `subject`.

    prompt: the user's words, or a conversation that ends with them; subject: "" for editors that need none; name: of
    the change that it belongs to; location: file and line, for errors. Raise DataError for a subject that is not in the
    prompt, and for an answer that is empty or has several lines.
    """

    prompt: Spoken
    subject: str
    answer: str
    name: str = ""
    location: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "subject", self.subject.strip())
        if self.subject not in self.question:
            cause = f"the subject '{self.subject}' does not stand in the prompt"
            if not isinstance(self.prompt, str) and any(self.subject in turn.content for turn in self.prompt):
                cause = f"the subject '{self.subject}' stands in an earlier message, not in the prompt's last one"
            raise DataError(Problem(self.location, cause, "name words of the prompt, letter by letter"))
        if not self.answer.strip():
            raise DataError(Problem(self.location, "the answer is empty", "write what shall be said of the subject"))
        if len(self.answer.strip().splitlines()) > 1:
            cause = "the answer has several lines; an editor writes one short statement"
            raise DataError(Problem(self.location, cause, "give one line, or teach it with kind: train"))
        if any(unicodedata.category(letter) == "Cc" for letter in self.answer.strip()):
            raise DataError(Problem(self.location, "the answer has a control character", "write it in plain letters"))

    @property
    def question(self) -> str:
        """The user's last words."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[-1].content

    @property
    def statement(self) -> tuple[Spoken, str]:
        """What is said after what: edits alike in this are the same."""
        return self.prompt, self.answer.strip()

    @property
    def cut(self) -> str:
        """The word of the prompt of which the subject is a piece, with letters of an alphabet on both sides of a cut:
        `Australia` for the subject `Austral`. Empty where it stands as a word of its own.

        Only letters that do not change with their neighbours and are written with spaces between words are looked at,
        so neither Chinese nor an ending after an apostrophe is a cut.
        """
        text, subject = self.question.strip(), self.subject.strip()
        begin = text.rfind(subject)
        first, last = begin, begin + len(subject)
        while subject and first > 0 and spelt(text[first - 1]) and spelt(text[first]):
            first -= 1
        while subject and last < len(text) and spelt(text[last]) and spelt(text[last - 1]):
            last += 1
        return text[first:last] if last - first > len(subject) else ""

    def after(self, words: str) -> Edit:
        """Return the edit with other words before the question. White space stands between them, except in Chinese."""
        if not words:
            return self
        text = f"{words}{'' if chinese(self.question) else ' '}{self.question}"
        if isinstance(self.prompt, str):
            return replace(self, prompt=text)
        return replace(self, prompt=(*self.prompt[:-1], Message("user", text)))


def spelt(letter: str) -> bool:
    """Return whether a character is a letter of an alphabet whose words stand between spaces: Latin, Greek, Cyrillic.

    >>> [spelt(letter) for letter in "aé山й7 '"]
    [True, True, False, True, False, False, False]
    """
    return letter.isalpha() and letter <= "\u052f"


def chinese(text: str) -> bool:
    """Return whether a text has Chinese characters."""
    return any("\u4e00" <= c <= "\u9fff" or "\u3400" <= c <= "\u4dbf" for c in text)


def without_subject(edits: Sequence[Edit]) -> list[Problem]:
    """Return a problem for each edit that names no subject, for editors that work at it."""
    cause = "the edit names no subject"
    mend = "write which words of the prompt the fact is about: subject: ...; ultraedit and locft need none"
    return [Problem(edit.location, cause, mend) for edit in edits if not edit.subject.strip()]


def edits_of(changes: Sequence[Change], *, subjects: bool = True) -> list[Edit]:
    """Return the targets of changes as edits, in their order. subjects: whether each must name a subject. Raise
    ConfigError, as for anything wrong in a change file, with the problems of all targets.
    """
    edits: list[Edit] = []
    problems: list[Problem] = []
    for change in changes:
        for number, target in enumerate(change.target):
            prompt = target.prompt
            spoken = prompt if isinstance(prompt, str) else tuple(Message(t.role, t.content) for t in prompt)
            where = change.location_of("reliability", number)
            try:
                edits.append(Edit(spoken, target.subject or "", target.answer[0], change.name, where))
                problems += without_subject(edits[-1:]) if subjects else []
            except DataError as error:
                problems += error.problems
    if problems:
        raise ConfigError(*problems)
    return edits


def each_once(edits: Sequence[Edit], say: Callable[[str], None]) -> list[Edit]:
    """Return edits without those that state the same as one before them, and say how many were left out."""
    kept = list({edit.statement: edit for edit in reversed(edits)}.values())[::-1]
    if len(kept) < len(edits):
        say(f"{len(edits) - len(kept)} of {len(edits)} edits state the same as another and are written once")
    return kept


class Row(NamedTuple):
    """One text of an edit as token ids.

    ids: of the prompt and the answer; at: index of the subject's last token; start: index of the answer's first token
    (the number of ids, if it has none); weight: its share among the edit's rows, which sum to 1; form: how it is asked;
    bare: whether no other words stand before the prompt.
    """

    ids: list[int]
    at: int
    start: int
    weight: float
    form: Form
    bare: bool = True

    @property
    def asked(self) -> range:
        """The positions whose logits predict the answer."""
        return range(self.start - 1, len(self.ids) - 1)

    @property
    def targets(self) -> list[int]:
        """The ids of the answer."""
        return self.ids[self.start :]


class RowMaker(PromptEncoder):
    """Makes the rows of edits for one tokenizer.

    forms: the ways to ask; chat is left out for a tokenizer without a chat template; ends: whether the end of the turn
    is a part of the answer in a chat.
    """

    def __init__(self, tokenizer: Any, *, forms: Sequence[Form] = ("raw", "chat"), ends: bool = True) -> None:
        self.tokenizer, self.system_prefix, self.ends = tokenizer, None, ends
        self.forms: tuple[Form, ...] = tuple(form for form in forms if form == "raw" or tokenizer.chat_template)
        if not self.forms:
            cause = "the tokenizer has no chat template"
            mend = "edit under the raw prompt: forms: [raw]"
            raise DataError(Problem("forms", cause, mend))

    def rows(self, edit: Edit, before: Sequence[str] = (), *, bare: float | None = None) -> list[Row]:
        """Return the rows of an edit: in each form the bare prompt, and the prompt after each text of `before`.

        bare: the share of the bare prompt among the rows of its form; all rows of a form count alike if it is None.
        """
        share = (1.0 if not before else 1 / (1 + len(before))) if bare is None or not before else bare
        made = []
        for form in self.forms:
            for words in ("", *before):
                weight = share if not words else (1 - share) / len(before)
                made.append(self.row(edit.after(words), form, weight / len(self.forms), bare=not words))
        return made

    def row(self, edit: Edit, form: Form, weight: float = 1.0, *, bare: bool = True) -> Row:
        """Return one row of an edit. Raise DataError if the subject is not found in what the model reads."""
        said = edit.answer.strip()  # a block of YAML ends with a line break
        if form == "raw":
            text = edit.question
            spaced = text[-1:].isascii() and said[:1].isascii() and not text[-1:].isspace()
            pair = self.encode_pair(Plain(text), f" {said}" if spaced else said)
        else:
            turns = (Message("user", edit.prompt),) if isinstance(edit.prompt, str) else edit.prompt
            text = prompt_text(turns, self.tokenizer)
            pair = self.encode_pair(edit.prompt, said)
        answer = pair.answer + (pair.end if self.ends else [])
        at = self._last_token(edit, text, pair.prompt)
        return Row(pair.prompt + answer, at, len(pair.prompt), weight, form, bare)

    def place(self, edit: Edit, text: str) -> tuple[list[int], int]:
        """Return the ids of a plain text that holds the subject, and the index of the subject's last token."""
        ids = self.encode(Plain(text))
        return ids, self._last_token(replace(edit, prompt=text), text, ids)

    def _last_token(self, edit: Edit, text: str, ids: list[int]) -> int:
        """Return the index of the token that holds the last character of the subject, or of the question if there is
        none. text: what the ids stand for.
        """
        begin = text.rfind(edit.question.strip())
        subject = edit.subject.strip() or edit.question.strip()
        inside = edit.question.strip().rfind(subject)
        if begin < 0 or inside < 0:
            cause = f"the chat template does not show the question as it is, so '{edit.subject}' is not found in it"
            raise DataError(Problem(edit.location, cause, "edit under the raw prompt: forms: [raw]"))
        end = begin + inside + len(subject)
        found = tokens_of(self.tokenizer, text, ids, end - len(subject), end)
        if found is None:
            cause = f"the subject '{edit.subject}' is not found among the tokens of its prompt"
            raise DataError(Problem(edit.location, cause, "name the subject as it is written in the prompt"))
        return found[-1]


def tokens_of(tokenizer: Any, text: str, ids: list[int], begin: int, end: int) -> range | None:
    """Return the indices of the tokens that hold the characters `begin` to `end` of a text; None if they are not found.

    text: what the ids stand for. Where the tokenizer knows offsets and codes the text to just these ids, the offsets
    say it. Otherwise the ids are decoded one after another: a token belongs to the first text that it completes.
    """
    for special in (False, True):  # plain texts may begin with a token that begins documents
        coded = tokenizer([text], add_special_tokens=special, return_offsets_mapping=tokenizer.is_fast)
        if tokenizer.is_fast and coded["input_ids"][0] == ids:
            spans = coded["offset_mapping"][0]
            found = [i for i, (first, last) in enumerate(spans) if first < end and last > max(first, begin)]
            return range(found[0], found[-1] + 1) if found else None
    first, last = (_completing(tokenizer, ids, text[:to]) for to in (begin + 1, end))
    return None if first is None or last is None else range(first, last + 1)


def _completing(tokenizer: Any, ids: list[int], head: str) -> int | None:
    """Return the index of the first token with which the decoded ids hold all of `head`. White space does not count."""
    wanted = "".join(head.split())
    for count in range(1, len(ids) + 1):
        said = "".join(tokenizer.decode(ids[:count], skip_special_tokens=False).split())
        if wanted in said:
            return count - 1
    return None
