"""Read multiple-choice questions from MMLU's CSV (with or without a line of column names), JSON Lines, and folders."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from string import ascii_uppercase as LETTERS
from typing import Any, Literal, NamedTuple

from posttrain.data.lengths import listed
from posttrain.errors import DataError, MissingError, Problem
from posttrain.exams.rows import Row, Rows

HEAVENLY = "甲乙丙丁戊己庚辛壬癸"
"""The ten Chinese signs that may name the choices instead of the letters A to J."""
ANSWER_KEYS = ("answer", "label", "target", "correct", "gold", "答案")
QUESTION_KEYS = ("question", "prompt", "題目", "問題")
SUBJECT_KEYS = ("subject", "category", "科目")
SPLIT = re.compile(r"(.+?)[_-](dev|train|val|validation|test)", re.IGNORECASE)
"""A file's name without its suffix: the subject, then the split."""

Split = Literal["test", "dev"]


class Question(NamedTuple):
    """One question. answer: the index of the right choice, from 0; number: its number within its subject, from 1."""

    subject: str
    number: int
    question: str
    choices: tuple[str, ...]
    answer: int


class Read(NamedTuple):
    """The content of a file or folder. asked: the questions to ask; examples: questions that serve as examples; notes:
    remarks for the reader of the results; locations: the location of each question to ask.
    """

    asked: list[Question]
    examples: list[Question]
    notes: list[str]
    locations: list[str]


class _Draft(NamedTuple):
    """A question before the meaning of numbers as answers is settled for the whole file (see `_settle`).

    counted: the answer as a number, which may count from 0 or from 1; None when the answer is no number. When
    `question.answer` is not -1, the number is also the text of a choice."""

    row: Row
    question: Question
    counted: int | None


def read_questions(path: Path) -> Read:
    """Read the questions of a file or of a folder of files. Raise DataError with every wrong row of all files, or when
    there is no question to ask, and MissingError when a folder holds no file of a known format.
    """
    drafts: dict[Split, list[_Draft]] = {"test": [], "dev": []}
    problems: list[Problem] = []
    notes: list[str] = []
    for file, split, subject in _files(path):
        rows = Rows(file, names=partial(_names, file))
        found = [draft for row in rows if (draft := _draft(row, subject)) is not None]
        if not rows.count and not rows.problems:
            rows.problems.append(Problem(str(file), "the file is empty: no rows"))
        notes += _settle(found, file)
        problems += rows.problems
        drafts[split] += found
    if problems:
        raise DataError(*listed(problems))
    if not drafts["test"]:
        raise DataError(Problem(str(path), "no questions", "MMLU's CSV or JSONL is expected: docs/exams.md"))
    locations = [draft.row.location for draft in drafts["test"]]
    return Read(_numbered(drafts["test"]), _numbered(drafts["dev"]), notes, locations)


def _files(path: Path) -> Iterator[tuple[Path, Split, str]]:
    """Yield each file with its split and its subject; validation files are left out.

    The subject is '' for a single file: its rows name their subjects, or there is none. Raise MissingError when a
    folder holds no .csv, .tsv or .jsonl file."""
    if not path.is_dir():
        yield path, "test", ""
        return
    found = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in (".csv", ".tsv", ".jsonl") and p.is_file()]
    if not found:
        raise MissingError(Problem(str(path), "no .csv, .tsv or .jsonl file in the folder", "name another folder"))
    for file in found:
        named = SPLIT.fullmatch(file.stem)
        split = named[2].lower() if named else file.parent.name.lower()
        subject = named[1] if named else file.stem
        if split in ("dev", "train"):
            yield file, "dev", subject
        elif split not in ("val", "validation") and file.parent.name not in ("val", "auxiliary_train"):
            yield file, "test", subject


def _names(file: Path, first: list[str]) -> tuple[str, ...] | None:
    """Return column names for a table that begins with a question, as in the original MMLU; None when it has names.
    Raise DataError when the first line is neither a line of names nor a question with its choices and its answer."""
    if {cell.strip().lower() for cell in first} & {*QUESTION_KEYS, *ANSWER_KEYS}:
        return None
    if len(first) < 4:
        cause = f"{len(first)} columns; a question, at least two choices and the answer are expected"
        raise DataError(Problem(f"{file}:1", cause, "question,A,B,C,D,answer is MMLU's order"))
    if _answer(first[-1], [cell.strip() for cell in first[1:-1]]) is None:
        cause = "neither names of columns nor a question, its choices and its answer"
        raise DataError(Problem(f"{file}:1", cause, "call the columns question,A,B,C,D,answer"))
    return ("question", *LETTERS[: len(first) - 2], "answer")


def _draft(row: Row, subject: str) -> _Draft | None:
    """Return a row as a question; None when the row is wrong, which is then noted as a problem of the row."""
    names = {str(key).strip().lower(): key for key in row.value}
    asked, key, own = (_first(names, keys) for keys in (QUESTION_KEYS, ANSWER_KEYS, SUBJECT_KEYS))
    if asked is None:
        row.bad("no column 'question'", f"the row has {', '.join(map(str, row.value))}")
        return None
    question = row.text(asked)
    choices = _choices(row, names)
    if question is None or choices is None:
        return None
    value = row.value.get(key) if key else None
    subject = str(row.value[own]).strip() if own and row.value[own] else subject
    answer = _answer(value, choices)
    if answer is None:
        letters = f"{LETTERS[0]} to {LETTERS[len(choices) - 1]}"
        cause = f"the answer {value!r} is none of the {len(choices)} choices" if key else "no column 'answer'"
        row.bad(cause, f"write {letters}, the number of the choice, or its words")
        return None
    index, counted = answer
    return _Draft(row, Question(subject, 0, question.strip(), choices, index), counted)


def _first(names: dict[str, Any], wanted: Sequence[str]) -> Any:
    """Return the row's own key for the first wanted name that the row has, or None."""
    return next((names[name] for name in wanted if name in names), None)


def _choices(row: Row, names: dict[str, Any]) -> tuple[str, ...] | None:
    """Return the choices: from the key `choices` (a list, or {text: [...]}) or from the columns A, B, C, ... None,
    noted as a problem of the row, when there are fewer than two or more than 26 choices, or one is empty."""
    value: Any = row.value.get(_first(names, ("choices", "options")))
    if isinstance(value, dict):
        value = value.get("text")
    if value is None:
        value = [row.value[names[letter]] for letter in takewhile(names.__contains__, LETTERS.lower())]
        while value and not str(value[-1] or "").strip():  # the question has fewer choices than the table has columns
            value.pop()
    if not isinstance(value, list) or len(value) < 2 or len(value) > len(LETTERS):
        row.bad("at least two choices are expected", "a list 'choices', or columns A, B, C, D")
        return None
    texts = tuple(str(one).strip() if isinstance(one, str | int | float) else "" for one in value)
    empty = [LETTERS[i] for i, text in enumerate(texts) if not text]
    if empty:
        row.bad(f"choice {', '.join(empty)} is empty or no text")
        return None
    return texts


def _answer(value: Any, choices: Sequence[str]) -> tuple[int, int | None] | None:
    """Return (index of the choice, number) of an answer, or None when it names no choice.

    A letter, a Chinese sign or the text of a choice gives (index, None). A number gives (-1, number); `_settle` turns
    it into an index. A number that is also the text of a choice gives (index, number)."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return (-1, value) if 0 <= value <= len(choices) else None
    text = unicodedata.normalize("NFKC", str(value)).strip()
    bare = text.strip("()[]{}.、:：。 \t【】「」").upper()
    for signs in (LETTERS, HEAVENLY):
        if len(bare) == 1 and bare in signs[: len(choices)]:
            return signs.index(bare), None
    same = [i for i, choice in enumerate(choices) if unicodedata.normalize("NFKC", choice).strip() == text]
    number = int(bare) if bare.isdecimal() and int(bare) <= len(choices) else None
    if len(same) == 1:
        return same[0], number
    return None if number is None else (-1, number)


def _settle(drafts: list[_Draft], file: Path) -> Iterator[str]:
    """Turn the numeric answers of a file into indices, in `drafts`, and yield notes for the reader.

    The numbers count from 0 when one of them is 0, and from 1 when one of them equals the number of choices. When both
    occur, the row gets a problem. A number that is also the text of a choice ("2" among 1, 2, 3, 4) is read as that
    text, unless another answer of the file can only be a number."""
    if all(draft.counted is None or draft.question.answer >= 0 for draft in drafts):
        return
    numbers = [draft for draft in drafts if draft.counted is not None]
    zero = [d for d in numbers if d.counted == 0]
    last = [d for d in numbers if d.counted == len(d.question.choices)]
    if zero and last:
        last[0].row.bad(
            f"answer {last[0].counted}, and {zero[0].row.location} has 0: do they count from 0 or from 1?",
            "write letters instead of numbers",
        )
    first = 1 if last and not zero else 0
    if numbers and not zero and not last:
        yield f"{file.name}: no answer is 0 or the last number; they are taken to count from 0"
    other = 0
    for i, draft in enumerate(drafts):
        if draft.counted is not None:
            other += draft.question.answer >= 0 and draft.question.answer != draft.counted - first
            drafts[i] = draft._replace(question=draft.question._replace(answer=draft.counted - first))
    if other:
        yield f"{file.name}: {other} answers are a number and another choice's words; taken as numbers like the rest"


def _numbered(drafts: Sequence[_Draft]) -> list[Question]:
    """Return the questions, numbered from 1 within each subject."""
    counts: Counter[str] = Counter()
    numbered = []
    for _, question, _ in drafts:
        counts[question.subject] += 1
        numbered.append(question._replace(number=counts[question.subject]))
    return numbered
