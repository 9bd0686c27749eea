"""Read TruthfulQA's questions from its CSV (either edition), or from JSON Lines or YAML that names their languages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.config.load import read_text
from posttrain.config.yaml_text import parse_yaml, plain
from posttrain.errors import ConfigError, DataError, Problem
from posttrain.exams.rows import Row, Rows

NO_COMMENT = {"en": "I have no comment.", "zh": "我不予置評。"}
ENDS = (".", "。", "！", "？", "!", "?", "」", "”")
"""Marks that close a Chinese answer; an answer without one gets a full stop."""


class Question(NamedTuple):
    """One question with its reference answers, which end with a full stop.

    best: the best true answer; best_false: the best incorrect answer, if the file has it; true, false: all correct and
    all incorrect answers; language: `en` or `zh`, which decides the prompt and the measures; tongue: the language as
    the file names it (`zh-TW`); pair: a name that the versions of one question in several languages share.
    """

    id: str
    question: str
    best: str
    best_false: str | None
    true: tuple[str, ...]
    false: tuple[str, ...]
    category: str
    language: str
    tongue: str
    pair: str


def read_truthful(path: Path) -> tuple[list[Question], list[str], dict[str, str]]:
    """Return the questions, notes for the reader, and the location of each question by its id. Raise DataError with
    every wrong row, and with every id that occurs twice.
    """
    file = Rows(path)
    if path.suffix.lower() in (".yaml", ".yml"):
        read = [(_listed(row), row) for row in _yaml_rows(path, file.problems)]
        if file.problems:
            raise DataError(*file.problems)
    else:
        values = _columns if path.suffix.lower() in (".csv", ".tsv") else _listed
        read = [(values(row), row) for row in file]
        file.check()
    made = [(*_question(value, row.number), row.location) for value, row in read if value is not None]
    questions = [question for question, *_ in made]
    twice = [name for name, count in Counter(question.id for question in questions).items() if count > 1]
    if twice:
        raise DataError(*(Problem(str(path), f"the id '{name}' stands twice", "give each its own") for name in twice))
    added = sum(added for _, added, _ in made)
    both = sum(bool({*question.true} & {*question.false}) for question in questions)
    notes = [f"{added} best answers were not among the correct ones and were added"] if added else []
    notes += [f"{both} questions have an answer that is both correct and incorrect"] if both else []
    return questions, notes, {question.id: location for question, _, location in made}


def _yaml_rows(path: Path, problems: list[Problem]) -> Iterator[Row]:
    """Yield the rows of a YAML file: a list of questions, or `questions:` with a list. A row that is no mapping is
    added to `problems`. Raise DataError when the file is not UTF-8, not YAML, or has no list."""
    try:
        value = plain(parse_yaml(read_text(path), str(path)))
    except ConfigError as error:  # not UTF-8, or not YAML
        mend = "quote the words, or close the bracket"
        raise DataError(*(one._replace(mend=one.mend or mend) for one in error.problems)) from error
    value = value.get("questions", value) if isinstance(value, dict) else value
    if not isinstance(value, list) or not value:
        raise DataError(Problem(str(path), "a list of questions is expected", "or `questions:` with a list"))
    for number, one in enumerate(value, start=1):
        if isinstance(one, Mapping):
            yield Row(f"{path}[{number}]", one, problems, number)
        else:
            problems.append(Problem(f"{path}[{number}]", "a mapping is expected"))


def _columns(row: Row) -> Mapping[str, Any] | None:
    """Return a line of the official CSV under our keys; None, noted as a problem, when a value is absent. The answers
    of a list are separated by semicolons, as in the official `split_multi_answer`."""
    names = ("Question", "Best Answer", "Correct Answers", "Incorrect Answers", "Category")
    found: dict[str, Any] = {key: row.text(key) for key in names}
    if None in found.values():
        return None
    for key in names[2:4]:
        found[key] = [part.strip() for part in found[key].split(";") if part.strip()]
    empty = [key for key in names if not found[key]]
    if empty:
        row.bad(f"'{empty[0]}' has no answer", "answers are separated by semicolons")
        return None
    own = {key.lower().replace(" ", "_"): value for key, value in found.items()}
    return {**own, "best_incorrect_answer": row.value.get("Best Incorrect Answer")}


def _listed(row: Row) -> Mapping[str, Any] | None:
    """Return a row of JSON Lines or YAML; None, with a problem of the row, when a required key is missing. The keys are
    question, best_answer, correct_answers, incorrect_answers (required), category, language and best_incorrect_answer.
    """
    found: dict[str, Any] = {key: row.text(key) for key in ("question", "best_answer")}
    found |= {key: row.texts(key) for key in ("correct_answers", "incorrect_answers")}
    return None if None in found.values() else {**row.value, **found}


def _question(value: Mapping[str, Any], number: int) -> tuple[Question, bool]:
    """Return the question, with answers that end in a full stop, and whether its best answer was added to `true`."""
    tongue = str(value.get("language") or "en")
    chinese = tongue.lower().startswith("zh")

    def closed(text: str) -> str:
        text = text.strip()
        return text if text.endswith(ENDS if chinese else ".") else text + ("。" if chinese else ".")

    best, wrong = closed(value["best_answer"]), value.get("best_incorrect_answer")
    true, false = (tuple(dict.fromkeys(map(closed, value[key]))) for key in ("correct_answers", "incorrect_answers"))
    return Question(
        id=str(value.get("id", number)),
        question=value["question"].strip(),
        best=best,
        best_false=closed(str(wrong)) if wrong else None,
        true=true if best in true else (best, *true),
        false=false,
        category=str(value.get("category") or ""),
        language="zh" if chinese else "en",
        tongue=tongue,
        pair=str(value.get("pair") or ""),
    ), best not in true
