"""Grade-school sums with a chain of thought (GSM8K, and any file of {question, answer "... #### 18"})."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from posttrain.data.records import Message
from posttrain.errors import ConfigError, Problem
from posttrain.exams.behaviour import language_of
from posttrain.exams.numerals import last_number, marked_number
from posttrain.exams.records import Sample
from posttrain.exams.rows import Rows, no_path
from posttrain.exams.score_spec import specs
from posttrain.exams.task import Ask, Item, Reply, Task, TaskConfig, resolve, the_answer
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
        """The questions' file and the examples'."""
        return [*super().files(), *([self.shots_path] if self.shots_path else [])]


@register("exam", "gsm8k", config=Gsm8kConfig, paper="arXiv:2110.14168")
def gsm8k(config: Gsm8kConfig, base: Path) -> Task:
    """The task of a file of questions; right is the number, wherever it stands (flexible) or after #### (strict)."""
    if config.path is None:
        raise no_path("gsm8k", "a file of {question, answer}")
    path = resolve(config.path, base)
    rows = _read(path)
    if config.shots_path is not None:
        shown, asked, origin = _read(resolve(config.shots_path, base))[: config.shots], rows, config.shots_path
    else:
        shown, asked, origin = rows[: config.shots], rows[config.shots :], "first rows"
    if len(shown) < config.shots:
        where = config.shots_path or config.path
        raise ConfigError(Problem(where, f"{len(shown)} rows for {config.shots} examples", "set fewer shots"))
    if not asked:
        raise ConfigError(Problem(config.path, "every row is an example, none is left to ask", "set fewer shots"))
    language = "zh" if sum(language_of(q) == "zh" for _, q, *_ in rows) * 2 > len(rows) else "en"
    plain = config.template != "chat"
    items = [
        Item(
            id=f"{path.stem}-{number}",
            question=question,
            asks=(
                Ask(
                    "say",
                    _plain(shown, question, language) if plain else _chat(shown, question, language),
                    max_new_tokens=config.max_new_tokens,
                    stop=(LABELS[language][0].strip(),) if plain else (),
                ),
            ),
            doc={"answer": answer},
            location=location,
        )
        for number, question, answer, location in asked
    ]
    form = "plain" if plain else "chat"
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


Read = tuple[int, str, str, str]
"""Row number, question, worked answer, location."""


def _read(path: Path) -> list[Read]:
    """Every row of a file."""
    rows = Rows(path)
    found = []
    for number, row in enumerate(rows, start=1):
        question, answer = row.text("question"), row.text("answer")
        if answer is not None and marked_number(answer) is None and last_number(answer) is None:
            row.bad("'answer' holds no number", "end it with '#### 18'")
        if question is not None and answer is not None:
            found.append((number, question.strip(), answer.strip(), row.location))
    rows.check()
    return found


def _plain(shown: Sequence[Read], question: str, language: str) -> Prompt:
    """lm-eval's wording of the same task."""
    asks, answers = LABELS[language]
    examples = "".join(f"{asks}{q}\n{answers} {a}\n\n" for _, q, a, _ in shown)
    return Plain(f"{examples}{asks}{question}\n{answers}")


def _chat(shown: Sequence[Read], question: str, language: str) -> Prompt:
    order = ORDERS[language]
    turns = [
        turn
        for _, q, a, _ in shown
        for turn in (Message("user", f"{order}\n\n{q}"), Message("assistant", a))
    ]  # fmt: skip
    return (*turns, Message("user", f"{order}\n\n{question}"))


def _judge(item: Item, replies: Sequence[Reply]) -> Sample:
    said = the_answer(replies)
    worked = str(item.doc["answer"])
    marked = marked_number(worked)
    gold = marked if marked is not None else last_number(worked)
    strict = marked_number(said.text) == gold
    # a marked answer goes before a number that happens to come last
    found = marked_number(said.text)
    found = last_number(said.text) if found is None else found
    return item.sample(
        said.text,
        str(gold),
        {"flexible": float(found == gold), "strict": float(strict)},
        said,
        correct=found == gold,
        extra={"number": None if found is None else str(found)},
    )
