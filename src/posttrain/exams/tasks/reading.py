"""Reading comprehension: a passage, a question, an answer in words of the passage (SQuAD, DRCD, CMRC 2018)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from posttrain.data.lengths import listed
from posttrain.data.metrics import reading as metrics
from posttrain.errors import DataError, Problem
from posttrain.exams.behaviour import mostly_chinese
from posttrain.exams.records import Sample
from posttrain.exams.rows import Row, read_rows
from posttrain.exams.score_spec import specs
from posttrain.exams.task import Ask, Item, Reply, Task, TaskConfig, the_answer
from posttrain.inference.protocol import Plain
from posttrain.registry import register

__all__ = ["ReadingConfig", "reading"]

UNANSWERABLE = {"en": "unanswerable", "zh": "無法回答"}
SCORES = {
    "en": (*specs("em"), *specs("f1", unit="grade")),
    "zh": (*specs("em_zh", "em_cmrc"), *specs("f1_char_bag", "f1_char_subsequence", "f1_cmrc_lcs", unit="grade")),
}
CHINESE = (metrics.em_zh, metrics.f1_char_bag, metrics.f1_char_subsequence, metrics.em_cmrc, metrics.f1_cmrc_lcs)
MEASURES: Mapping[str, Mapping[str, Callable[[str, Sequence[str]], float]]] = {
    "en": {"em": metrics.exact_match, "f1": metrics.f1_squad},
    "zh": {measure.__name__: measure for measure in CHINESE},
}
"""Language -> name of a score -> function. The first score of a language decides whether an answer is right."""
NO_ANSWER = frozenset(("", "unanswerable", "no answer", "not answerable", "無法回答", "無答案", "沒有答案", "无法回答"))


class ReadingConfig(TaskConfig):
    """A file of passages with questions."""

    kind: Literal["reading"] = "reading"
    """Reading comprehension."""
    language: Literal["auto", "en", "zh"] = "auto"
    """The language of the prompt and of the scores; auto: what most passages are written in."""
    max_new_tokens: int = Field(default=32, gt=0)
    """Tokens of an answer; its first line counts."""
    passage_characters: int | None = Field(default=None, ge=50)
    """Cut longer passages to so many characters around an answer, for models of a short context; the notes say so."""


class Question(NamedTuple):
    """One question of the file. answers: the accepted answers, empty when the passage has none; starts: the character
    indices at which answers begin in the passage, as far as they are known.
    """

    id: str
    passage: str
    question: str
    answers: list[str]
    starts: list[int]
    location: str


@register("exam", "reading", config=ReadingConfig, paper="arXiv:1606.05250")
def reading(config: ReadingConfig, base: Path) -> Task:
    """Return the task of a SQuAD, DRCD or CMRC file, or of flat rows {passage, question, answers}.

    Raise DataError with every wrong row, and for an id that occurs twice.
    """
    path = config.source(base, what="a file of SQuAD's format")
    questions = read_rows(path, _question)
    first = {q.id: q for q in reversed(questions)}
    mend = "give every question its own id"
    twice = [Problem(str(path), f"the id {q.id!r} stands twice", mend) for q in questions if first[q.id] is not q]
    if twice:
        raise DataError(*listed(twice))
    language = config.language
    if language == "auto":
        language = "zh" if mostly_chinese([q.passage for q in questions[:: max(1, len(questions) // 50)]]) else "en"
    answerable = all(q.answers for q in questions)
    rng = random.Random(config.seed)
    notes, items, cut = [], [], 0
    for q in questions:
        passage = _window(q, config.passage_characters, rng)
        cut += passage is not q.passage
        items.append(_item(q, passage, language, config, may_decline=not answerable))
    if cut:
        notes.append(
            f"{cut} of {len(questions)} passages were cut to {config.passage_characters} characters around an answer"
        )
    if not answerable:
        notes.append(f"{sum(not q.answers for q in questions)} questions have no answer: right is to say so")
    settings = f"{config.template}|{config.max_new_tokens} tokens|passages {config.passage_characters or 'whole'}"
    headline = "f1" if language == "en" else "f1_char_bag"
    return Task(
        items=items,
        judge=_judge,
        headline=headline,
        capabilities={headline: "can.in_context"} | ({} if answerable else {"unanswerable.em": "can.faithfulness"}),
        scores=(*SCORES[language], *(() if answerable else specs("unanswerable.em"))),
        signature=f"reading|{path.name}|{language}|0-shot|{settings}|first line|v1",
        notes=tuple(notes),
    )


def _question(row: Row) -> Question | None:
    """Return the question of a row; None, noted as a problem, when the row is wrong.

    The answers are texts or, as in SQuAD's files, objects {text, answer_start}. An empty list, null or `is_impossible`
    says that the passage has no answer."""
    passage = row.text("passage" if "passage" in row else "context")
    question = row.text("question")
    given = row.value.get("answers")
    answers: list[str] | None
    starts: list[int] = []
    if row.value.get("is_impossible") or (given in ([], None) and "answers" in row.value):
        answers = []
    elif isinstance(given, list) and isinstance(given[0], dict):
        try:
            answers = list(dict.fromkeys(str(a["text"]) for a in given))
            starts = [int(a["answer_start"]) for a in given if a.get("answer_start") is not None]
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            row.bad(f"a question needs 'id', 'question' and 'answers' of {{text, answer_start}}: {error!r}")
            return None
    else:
        answers = row.texts("answers")
        starts = [at for a in answers or () if (at := (passage or "").find(a)) >= 0]
    if passage is None or question is None or answers is None:
        return None
    return Question(str(row.value.get("id", row.number)), passage, question, answers, starts, row.location)


def _window(q: Question, room: int | None, rng: random.Random) -> str:
    """Return the passage, or a window of `room` characters that holds the first answer at a random position. Without an
    answer, or without a known start of one, the window is the beginning of the passage."""
    if room is None or len(q.passage) <= room:
        return q.passage
    if not q.starts or not q.answers:
        return q.passage[:room]
    start, size = q.starts[0], len(q.answers[0])
    low = max(0, start + size - room)
    return q.passage[(at := rng.randint(low, max(low, min(start, len(q.passage) - room)))) : at + room]


def _item(q: Question, passage: str, language: str, config: ReadingConfig, *, may_decline: bool) -> Item:
    declined = UNANSWERABLE[language]
    if language == "zh":
        order, unless = "閱讀文章，用文章中的詞語簡短回答問題，只寫答案。", f"文章中沒有答案時，只回答「{declined}」。"
        asked, cue = f"文章：{passage}\n\n問題：{q.question}", "\n\n答案："
    else:
        order = "Read the passage and answer the question briefly in words of the passage. Write the answer only."
        unless = f' When the passage has no answer, answer only "{declined}".'
        asked, cue = f"Passage: {passage}\n\nQuestion: {q.question}", "\n\nAnswer:"
    text = f"{order}{unless if may_decline else ''}\n\n{asked}"
    plain = config.template == "plain"
    prompt, stop = (Plain(text + cue), ("\n",)) if plain else (text, ())
    ask = Ask("say", prompt, max_new_tokens=config.max_new_tokens, stop=stop)
    doc = {"answers": q.answers, "language": language, "declined": declined}
    return Item(q.id, q.question, (ask,), doc=doc, location=q.location)


def _judge(item: Item, replies: Sequence[Reply]) -> Sample:
    said = the_answer(replies)
    answer = next(iter(said.text.strip().splitlines()), "").strip()
    gold, measures = list(item.doc["answers"]), MEASURES[item.doc["language"]]
    if gold:
        scores = {name: float(measure(answer, gold)) for name, measure in measures.items()}
    else:  # SQuAD 2: the passage has no answer, and the right reply is to say so
        right = float(answer.strip(" .。!！").lower() in NO_ANSWER)
        names = [spec.key for spec in SCORES[item.doc["language"]]]
        scores = {**dict.fromkeys(names, right), "unanswerable.em": right}
    target = gold[0] if gold else str(item.doc["declined"])
    return item.sample(answer, target, scores, said, correct=scores[next(iter(measures))] == 1.0)
