"""Multiple-choice questions in MMLU's format: knowledge by subject, from examples, by likelihood. arXiv:2009.03300

The prompt is lm-eval's, so that numbers can be compared: `mmlu` in English, `tmmluplus` in Chinese (TMMLU+,
arXiv:2403.01858, the successor of TC-Eval's TMMLU). `score: letters` shows the choices and compares the likelihoods of
their letters; `score: texts` does not show them and compares their texts (lm-eval's `mmlu_continuation`):

    letters   acc       the likeliest letter is the right one
    texts     acc       the likeliest text is the right one
              acc_norm  the likeliest per character is

Examples (`shots`) are the first rows of the subject's dev file. Without one they are the first rows of the subject
itself, for these rows the others of them and the next: no question is its own example, and all are asked.
"""  # fmt: skip

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from posttrain.data.records import Message
from posttrain.exams.behaviour import language_of
from posttrain.exams.records import Sample
from posttrain.exams.score_spec import specs
from posttrain.exams.statistics import Score
from posttrain.exams.task import Ask, Item, Reply, Task, TaskConfig, averages, draw, mean_score, the_scored
from posttrain.exams.tasks._choice_rows import LETTERS, Question, read_questions
from posttrain.inference.protocol import Plain, Prompt
from posttrain.registry import register

__all__ = ["MmluConfig", "mmlu"]


class MmluConfig(TaskConfig):
    """A file or folder of multiple-choice questions."""

    kind: Literal["mmlu"] = "mmlu"
    """Multiple-choice questions by subject."""
    shots: int = Field(default=5, ge=0)
    """Examples of the same subject before each question."""
    score: Literal["letters", "texts"] = "letters"
    """Compare the letters of the choices shown, or the choices' own texts, not shown."""
    language: Literal["auto", "en", "zh"] = "auto"
    """The language of the words around the questions; auto: what most of the questions are in."""


class Wording(NamedTuple):
    """header has {subject}; bare: the header without a subject; gap: between the cue and what is scored."""

    header: str
    bare: str
    question: str
    cue: str
    gap: str


LETTERED = {
    "en": Wording(
        "The following are multiple choice questions (with answers) about {subject}.\n\n",
        "The following are multiple choice questions (with answers).\n\n",
        "{question}\n{choices}\n",
        "Answer:",
        " ",
    ),
    "zh": Wording(
        "以下為{subject}的單選題，請提供正確答案的選項。\n\n",
        "以下為單選題，請提供正確答案的選項。\n\n",
        "{question}\n{choices}\n",
        "Answer:",  # as in lm-eval's tmmluplus
        " ",
    ),
}
TEXTS = {
    "en": Wording(
        "The following are questions (with answers) about {subject}.\n\n",
        "The following are questions (with answers).\n\n",
        "Question: {question}\n",
        "Answer:",
        " ",
    ),
    "zh": Wording("以下為{subject}的題目與答案。\n\n", "以下為題目與答案。\n\n", "問題：{question}\n", "答案：", ""),
}


@register("exam", "mmlu", config=MmluConfig, paper="arXiv:2009.03300")
def mmlu(config: MmluConfig, base: Path) -> Task:
    """The task of a CSV or JSONL file, or of a folder of files by subject."""
    path = config.source(base, what="a CSV or JSONL file, or a folder of them")
    read = read_questions(path)
    chinese = sum(language_of(q.question) == "zh" for q in read.asked) * 2 > len(read.asked)
    language = config.language if config.language != "auto" else "zh" if chinese else "en"
    wording = (LETTERED if config.score == "letters" else TEXTS)[language]
    subjects = _by_subject(read.asked)
    dev = _by_subject(read.examples)
    notes = [*read.notes, *_few(subjects, dev, config.shots, path.name)]
    items = [
        replace(
            _item(question, _examples(question, subjects, dev, config.shots), wording, config),
            location=read.places[question.subject, question.number],
        )
        for question in read.asked
    ]
    items = draw(items, config.limit, config.seed)
    headline = "acc" if config.score == "letters" else "acc_norm"
    template = "chat" if config.template == "chat" else "plain"
    source = "dev" if dev else "others of the subject" if any(subjects) else "others of the file"
    most = max(len(_examples(question, subjects, dev, config.shots)) for question in read.asked)
    shots = f"{most}-shot" + (f" ({source})" if most else "")  # of one question there are no others
    signature = f"mmlu|{path.name}#{_digest(read.asked)}|{shots}|{language}|{config.score}|{template}|v1"
    return Task(
        items=items,
        judge=_judge,
        headline=headline,
        capabilities={headline: "can.knowledge"},
        scores=specs("acc", "acc_macro", *(() if config.score == "letters" else ("acc_norm", "acc_norm_macro"))),
        signature=signature,
        aggregate=_scores,
        chance=sum(1 / len(item.doc["choices"]) for item in items) / len(items),
        notes=tuple(notes),
    )


def _digest(questions: Sequence[Question]) -> str:
    return hashlib.sha256(repr(questions).encode()).hexdigest()[:8]


def _by_subject(questions: Sequence[Question]) -> dict[str, list[Question]]:
    subjects: dict[str, list[Question]] = {}
    for question in questions:
        subjects.setdefault(question.subject, []).append(question)
    return subjects


def _examples(
    question: Question, subjects: Mapping[str, list[Question]], dev: Mapping[str, list[Question]], shots: int
) -> list[Question]:
    """The subject's first dev rows, or else its first rows without the question itself."""
    if question.subject in dev:
        return dev[question.subject][:shots]
    return [q for q in subjects[question.subject][: shots + 1] if q.number != question.number][:shots]


def _few(subjects: Mapping[str, list[Question]], dev: Mapping[str, list[Question]], shots: int, file: str) -> list[str]:
    """Subjects that have fewer examples than asked for; of questions without a subject, the file."""
    short = [s or file for s, own in subjects.items() if len(dev[s] if s in dev else own[1:]) < shots]
    notes = [f"fewer than {shots} examples in {len(short)} of {len(subjects)} subjects: {', '.join(short[:5])}"]
    return notes if short else []


def _item(question: Question, examples: Sequence[Question], wording: Wording, config: MmluConfig) -> Item:
    lettered = config.score == "letters"
    subject = question.subject.replace("_", " ").strip()
    header = wording.header.replace("{subject}", subject) if subject else wording.bare
    continuations = LETTERS[: len(question.choices)] if lettered else question.choices
    prompt: Prompt
    if config.template == "chat":
        turns: list[Message] = []
        for example in examples:
            turns.append(Message("user", _asked(example, wording)))
            turns.append(Message("assistant", _said(example, lettered=lettered)))
        turns.append(Message("user", _asked(question, wording)))
        turns[0] = replace(turns[0], content=header + turns[0].content)
        prompt, gap = tuple(turns), ""
    else:
        shown = [_asked(e, wording) + wording.gap + _said(e, lettered=lettered) + "\n\n" for e in examples]
        prompt, gap = Plain(header + "".join(shown) + _asked(question, wording)), wording.gap
    return Item(
        id=f"{question.subject}:{question.number}",
        question=question.question,
        asks=tuple(Ask("score", prompt, gap + text) for text in continuations),
        group=question.subject,
        doc={"choices": list(question.choices), "answer": question.answer, "lettered": lettered},
    )


def _asked(question: Question, wording: Wording) -> str:
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False))
    words = wording.question.replace("{choices}", listed)  # the question last: it may have braces of its own
    return words.replace("{question}", question.question) + wording.cue


def _said(question: Question, *, lettered: bool) -> str:
    return LETTERS[question.answer] if lettered else question.choices[question.answer]


def _judge(item: Item, replies: Sequence[Reply]) -> Sample:
    """The likeliest choice, the first of equals; its probability among the choices is the confidence."""
    choices, target, lettered = item.doc["choices"], int(item.doc["answer"]), bool(item.doc["lettered"])
    scored = the_scored(replies)
    nats = [one.sum_nats for one in scored]
    per_character = [value / len(choice) for value, choice in zip(nats, choices, strict=True)]
    values = nats if lettered else per_character
    chosen = values.index(max(values))
    scores = {"acc": float(nats.index(max(nats)) == target)}
    if not lettered:
        scores["acc_norm"] = float(chosen == target)
    return item.sample(
        f"{LETTERS[chosen]}. {choices[chosen]}",
        f"{LETTERS[target]}. {choices[target]}",
        scores,
        correct=chosen == target,
        choices=len(choices),
        confidence=1 / sum(math.exp(value - max(values)) for value in values),
        tokens=sum(one.tokens for one in scored),
        extra={"nats": nats},
    )


def _scores(samples: Sequence[Sample]) -> dict[str, Score]:
    """Means over questions and by subject; `<score>_macro`: the mean over subjects of their means."""
    made = averages(samples)
    whole: dict[str, Score] = {}
    for name, score in made.items():
        whole[name] = score
        subjects = [other.value for key, other in made.items() if key.startswith(f"{name}/")]
        if subjects:
            whole[f"{name}_macro"] = mean_score(subjects)._replace(n=score.n)
    return whole
