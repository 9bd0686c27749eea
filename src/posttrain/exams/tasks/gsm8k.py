"""Grade-school sums with a chain of thought (GSM8K, and any file of {question, answer "... #### 18"})."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from posttrain.errors import ConfigError, Problem
from posttrain.exams.behaviour import mostly_chinese
from posttrain.exams.numerals import final_number, marked_number
from posttrain.exams.records import Sample
from posttrain.exams.rows import Row, read_rows
from posttrain.exams.score_spec import specs
from posttrain.exams.task import Ask, Item, Reply, Task, TaskConfig, resolve, the_answer, turns
from posttrain.inference.protocol import Plain, Prompt
from posttrain.registry import register

__all__ = ["Gsm8kConfig", "gsm8k"]

LABELS = {"en": ("Question: ", "Answer:"), "zh": ("問題：", "答案：")}
ORDERS = {
    "en": "Solve the problem step by step and end with a line '#### ' followed by the number alone.",
    "zh": "逐步解題，最後一行寫「#### 」，後面只寫答案的數字。",
}


class Gsm8kConfig(TaskConfig):
    """A file of word problems with worked answers."""

    kind: Literal["gsm8k"] = "gsm8k"
    """Grade-school sums."""
    shots: int = Field(default=8, ge=0)
    """Worked examples before each question: the first rows, which are then not asked."""
    shots_path: str | None = None
    """Take the worked examples from this file instead, such as the training split."""
    max_new_tokens: int = Field(default=256, gt=0)
    """Tokens of a worked answer."""

    def files(self) -> list[str]:
        """Return the file of the questions and, if it is named, the file of the examples."""
        return [*super().files(), *([self.shots_path] if self.shots_path else [])]


@register("exam", "gsm8k", config=Gsm8kConfig, paper="arXiv:2110.14168")
def gsm8k(config: Gsm8kConfig, base: Path) -> Task:
    """Return the task of a file of questions.

    An answer is right when its number is: the number after #### or, without one, the last number (flexible), or only
    the number after #### (strict). Raise ConfigError when the file has too few rows for the examples, or none left to
    ask, and DataError with every wrong row.
    """
    path = config.source(base, what="a file of {question, answer}")
    rows = read_rows(path, _read)
    if config.shots_path is not None:
        examples, asked, origin = read_rows(resolve(config.shots_path, base), _read), rows, config.shots_path
    else:
        examples, asked, origin = rows, rows[config.shots :], "first rows"
    shown = examples[: config.shots]
    if len(shown) < config.shots:
        where = config.shots_path or str(config.path)
        raise ConfigError(Problem(where, f"{len(shown)} rows for {config.shots} examples", "set fewer shots"))
    if not asked:
        raise ConfigError(Problem(str(config.path), "every row is an example, none is left to ask", "set fewer shots"))
    language = "zh" if mostly_chinese([row.question for row in rows]) else "en"
    form, words = ("chat", _chat) if config.template == "chat" else ("plain", _plain)
    stop = (LABELS[language][0].strip(),) if form == "plain" else ()
    items = []
    for row in asked:
        ask = Ask("say", words(shown, row.question, language), max_new_tokens=config.max_new_tokens, stop=stop)
        name, doc = f"{path.stem}-{row.number}", {"answer": row.answer}
        items.append(Item(name, row.question, (ask,), doc=doc, location=row.location))
    return Task(
        items=items,
        judge=_judge,
        headline="flexible",
        capabilities={"flexible": "can.reasoning", "strict": "how.instructions"},
        scores=specs("flexible", "strict"),
        signature=f"gsm8k|{path.name}|{len(shown)}-shot cot ({origin})|{form}|{config.max_new_tokens} tokens|v2",
        chance=0.0,
        notes=() if config.shots_path or not shown else (f"the first {len(shown)} rows are examples and not asked",),
    )


class Worked(NamedTuple):
    """A row of a file: its number, the question, the worked answer and its location."""

    number: int
    question: str
    answer: str
    location: str


def _read(row: Row) -> Worked | None:
    """Return a row; None, noted as a problem, when the question or the number of the answer is missing."""
    question, answer = row.text("question"), row.text("answer")
    if answer is not None and final_number(answer) is None:
        row.bad("'answer' holds no number", "end it with '#### 18'")
    if question is None or answer is None:
        return None
    return Worked(row.number, question.strip(), answer.strip(), row.location)


def _plain(shown: Sequence[Worked], question: str, language: str) -> Prompt:
    """Return the plain prompt, in lm-eval's wording of the same task."""
    asks, answers = LABELS[language]
    examples = "".join(f"{asks}{one.question}\n{answers} {one.answer}\n\n" for one in shown)
    return Plain(f"{examples}{asks}{question}\n{answers}")


def _chat(shown: Sequence[Worked], question: str, language: str) -> Prompt:
    """Return the prompt as turns of a conversation, each question with the instruction before it."""
    order = ORDERS[language]
    return turns(((f"{order}\n\n{one.question}", one.answer) for one in shown), f"{order}\n\n{question}")


def _judge(item: Item, replies: Sequence[Reply]) -> Sample:
    said = the_answer(replies)
    gold = final_number(item.doc["answer"])
    found = final_number(said.text)  # a number after #### has priority over the last number
    scores = {"flexible": float(found == gold), "strict": float(marked_number(said.text) == gold)}
    extra = {"number": None if found is None else str(found)}
    return item.sample(said.text, str(gold), scores, said, correct=found == gold, extra=extra)
