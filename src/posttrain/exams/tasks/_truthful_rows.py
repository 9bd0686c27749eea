"""TruthfulQA's questions from its CSV (either edition), or from JSON Lines or YAML with a language to each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.config.load import read_text
from posttrain.config.yaml_text import parse_yaml, plain
from posttrain.errors import ConfigError, DataError, Problem
from posttrain.exams.rows import Row, Rows

__all__ = ["Question", "read_truthful"]

NO_COMMENT = {"en": "I have no comment.", "zh": "我不予置評。"}
ENDS = (".", "。", "！", "？", "!", "?", "」", "”")


class Question(NamedTuple):
    """One question. language: `en` or `zh`, of the prompt and the measures; tongue: as the file has it (`zh-TW`);
    pair: the same for one question in several languages; answers end in a full stop.
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
    """The questions, notes for the reader, and each question's location by its id. DataError with every wrong row."""
    rows: list[Row]
    if path.suffix.lower() in (".yaml", ".yml"):
        problems: list[Problem] = []
        rows = list(_yaml_rows(path, problems))
        read = [_listed(row, number) for number, row in enumerate(rows, start=1)]
        if problems:
            raise DataError(*problems)
    else:
        reader = Rows(path)
        as_row = _columns if path.suffix.lower() in (".csv", ".tsv") else _listed
        rows = list(reader)
        read = [as_row(row, number) for number, row in enumerate(rows, start=1)]
        reader.check()
    places = {one[0].id: row.location for one, row in zip(read, rows, strict=True) if one is not None}
    found = [one for one in read if one is not None]
    questions = [question for question, _ in found]
    _check_ids(path, questions)
    added = sum(added for _, added in found)
    both = sum(bool({*question.true} & {*question.false}) for question in questions)
    notes = [f"{added} best answers were not among the correct ones and were added"] if added else []
    notes += [f"{both} questions have an answer that is both correct and incorrect"] if both else []
    return questions, notes, places


def _check_ids(path: Path, questions: Sequence[Question]) -> None:
    twice = [name for name, count in Counter(question.id for question in questions).items() if count > 1]
    if twice:
        raise DataError(*(Problem(str(path), f"the id '{name}' stands twice", "give each its own") for name in twice))


def _yaml_value(path: Path) -> Any:
    try:
        return plain(parse_yaml(read_text(path), str(path)))
    except ConfigError as error:  # not UTF-8, or not YAML
        problems = [
            problem._replace(mend=problem.mend or "quote the words, or close the bracket") for problem in error.problems
        ]
        raise DataError(*problems) from error


def _yaml_rows(path: Path, problems: list[Problem]) -> Iterator[Row]:
    value = _yaml_value(path)
    value = value.get("questions", value) if isinstance(value, dict) else value
    if not isinstance(value, list) or not value:
        raise DataError(Problem(str(path), "a list of questions is expected", "or `questions:` with a list"))
    for number, one in enumerate(value, start=1):
        if isinstance(one, Mapping):
            yield Row(f"{path}[{number}]", one, problems)
        else:
            problems.append(Problem(f"{path}[{number}]", "a mapping is expected"))


def _columns(row: Row, number: int) -> tuple[Question, bool] | None:
    """A line of the official CSV; lists are separated by semicolons, as in the official `split_multi_answer`."""
    texts = {
        key: row.text(key) for key in ("Question", "Best Answer", "Correct Answers", "Incorrect Answers", "Category")
    }
    if any(text is None for text in texts.values()):
        return None
    found = {key: text or "" for key, text in texts.items()}
    true, false = (
        [part.strip() for part in found[key].split(";") if part.strip()]
        for key in ("Correct Answers", "Incorrect Answers")
    )
    empty = [key for key, parts in (("Correct Answers", true), ("Incorrect Answers", false)) if not parts]
    if empty:
        row.bad(f"'{empty[0]}' has no answer", "answers are separated by semicolons")
        return None
    wrong = row.value.get("Best Incorrect Answer") or None
    return _question(
        str(number), found["Question"], found["Best Answer"], wrong, true, false, found["Category"], "en", ""
    )


def _listed(row: Row, number: int) -> tuple[Question, bool] | None:
    """A row {question, best_answer, correct_answers, incorrect_answers, category, language, best_incorrect_answer}."""
    question, best = row.text("question"), row.text("best_answer")
    true, false = row.texts("correct_answers"), row.texts("incorrect_answers")
    if question is None or best is None or true is None or false is None:
        return None
    value = row.value
    return _question(
        str(value.get("id", number)),
        question,
        best,
        value.get("best_incorrect_answer") or None,
        true,
        false,
        str(value.get("category") or ""),
        str(value.get("language") or "en"),
        str(value.get("pair") or ""),
    )


def _question(
    name: str,
    question: str,
    best: str,
    best_false: Any,
    true: list[str],
    false: list[str],
    category: str,
    tongue: str,
    pair: str,
) -> tuple[Question, bool]:
    """The question with closed answers; whether its best answer had to be added to the true ones."""
    language = "zh" if tongue.lower().startswith("zh") else "en"

    def closed(text: str) -> str:
        text = text.strip()
        return text if text.endswith(ENDS if language == "zh" else ".") else text + ("。" if language == "zh" else ".")

    trues = tuple(dict.fromkeys(map(closed, true)))
    chosen = closed(best)
    wrong = closed(str(best_false)) if best_false else None
    falses = tuple(dict.fromkeys(map(closed, false)))
    added = chosen not in trues
    whole = (chosen, *trues) if added else trues
    return Question(name, question.strip(), chosen, wrong, whole, falses, category, language, tongue, pair), added
