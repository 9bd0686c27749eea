"""Multiple-choice questions in MMLU's format: knowledge by subject, from examples, by likelihood. arXiv:2009.03300

The prompt is lm-eval's, so that numbers can be compared: `mmlu` in English, `tmmluplus` in Chinese (TMMLU+,
arXiv:2403.01858, the successor of TC-Eval's TMMLU). `score: letters` shows the choices and compares the likelihoods of
their letters. `score: texts` does not show the choices and compares the likelihoods of their texts (lm-eval's
`mmlu_continuation`):

    letters   acc       1 when the likeliest letter is the right one
    texts     acc       1 when the likeliest text is the right one
              acc_norm  1 when the text with the highest log-probability per character is the right one

The examples (`shots`) are the first rows of the subject's dev file. Without a dev file they are the first rows of the
subject itself. A question among these rows gets the others and the next row instead. So no question is its own example,
and every question is asked.
"""  # fmt: skip

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from string import ascii_uppercase as LETTERS
from typing import Literal, NamedTuple

from pydantic import Field

from posttrain.exams.behaviour import mostly_chinese
from posttrain.exams.records import Sample
from posttrain.exams.score_spec import specs
from posttrain.exams.statistics import Score
from posttrain.exams.task import Ask, Item, Reply, Task, TaskConfig, averages, draw, mean_score, the_scored, turns
from posttrain.exams.tasks._choice_rows import Question, read_questions
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
    """The words around a question.

    header: the first line; about: fills {about} in the header, which stays empty without a subject; question: the
    question, perhaps with its choices; cue: the words after it; gap: the text between the cue and what is scored.
    """

    header: str
    about: str
    question: str
    cue: str = "Answer:"  # in Chinese too, as in lm-eval's tmmluplus
    gap: str = " "


SHOWN = "{question}\n{choices}\n"
WORDINGS = {
    ("letters", "en"): Wording(
        "The following are multiple choice questions (with answers){about}.\n\n", " about {subject}", SHOWN
    ),
    ("letters", "zh"): Wording("以下為{about}單選題，請提供正確答案的選項。\n\n", "{subject}的", SHOWN),
    ("texts", "en"): Wording(
        "The following are questions (with answers){about}.\n\n", " about {subject}", "Question: {question}\n"
    ),
    ("texts", "zh"): Wording("以下為{about}題目與答案。\n\n", "{subject}的", "問題：{question}\n", "答案：", ""),
}


@register("exam", "mmlu", config=MmluConfig, paper="arXiv:2009.03300")
def mmlu(config: MmluConfig, base: Path) -> Task:
    """Return the task of a CSV or JSONL file, or of a folder with a file for each subject."""
    path = config.source(base, what="a CSV or JSONL file, or a folder of them")
    read = read_questions(path)
    chinese = mostly_chinese([q.question for q in read.asked])
    language = config.language if config.language != "auto" else "zh" if chinese else "en"
    wording = WORDINGS[config.score, language]
    subjects, dev = _by_subject(read.asked), _by_subject(read.examples)
    examples = [_examples(question, subjects, dev, config.shots) for question in read.asked]
    items = [_item(*one, wording, config) for one in zip(read.asked, examples, read.locations, strict=True)]
    items = draw(items, config.limit, config.seed)
    headline = "acc" if config.score == "letters" else "acc_norm"
    template = "chat" if config.template == "chat" else "plain"
    source = "dev" if dev else "others of the subject" if any(subjects) else "others of the file"
    most = max(map(len, examples))
    shots = f"{most}-shot" + (f" ({source})" if most else "")  # a subject with one question has no examples
    digest = hashlib.sha256(repr(read.asked).encode()).hexdigest()[:8]
    few = dict.fromkeys(q.subject for q, own in zip(read.asked, examples, strict=True) if len(own) < config.shots)
    short = [subject or path.name for subject in few]
    if short:
        read.notes.append(
            f"fewer than {config.shots} examples in {len(short)} of {len(subjects)} subjects: {', '.join(short[:5])}"
        )
    return Task(
        items=items,
        judge=_judge,
        headline=headline,
        capabilities={headline: "can.knowledge"},
        scores=specs("acc", "acc_macro", *(() if config.score == "letters" else ("acc_norm", "acc_norm_macro"))),
        signature=f"mmlu|{path.name}#{digest}|{shots}|{language}|{config.score}|{template}|v1",
        aggregate=_scores,
        chance=sum(1 / len(item.doc["choices"]) for item in items) / len(items),
        notes=tuple(read.notes),
    )


def _by_subject(questions: Sequence[Question]) -> dict[str, list[Question]]:
    """Return the questions of each subject, in their order."""
    subjects: dict[str, list[Question]] = {}
    for question in questions:
        subjects.setdefault(question.subject, []).append(question)
    return subjects


def _examples(
    question: Question, subjects: Mapping[str, list[Question]], dev: Mapping[str, list[Question]], shots: int
) -> list[Question]:
    """Return a question's examples: the subject's first dev rows, or else its first rows without the question."""
    if question.subject in dev:
        return dev[question.subject][:shots]
    return [q for q in subjects[question.subject][: shots + 1] if q.number != question.number][:shots]


def _item(
    question: Question, examples: Sequence[Question], location: str, wording: Wording, config: MmluConfig
) -> Item:
    lettered = config.score == "letters"
    subject = question.subject.replace("_", " ").strip()
    header = wording.header.replace("{about}", wording.about.replace("{subject}", subject) if subject else "")
    continuations = LETTERS[: len(question.choices)] if lettered else question.choices
    shown = [(_asked(one, wording), _said(one, lettered=lettered)) for one in examples]
    asked, gap = _asked(question, wording), wording.gap
    prompt: Prompt = Plain(header + "".join(f"{a}{gap}{b}\n\n" for a, b in shown) + asked)
    if config.template == "chat":
        first, *rest = turns(shown, asked)
        prompt, gap = (replace(first, content=header + first.content), *rest), ""
    asks = tuple(Ask("score", prompt, gap + text) for text in continuations)
    doc = {"choices": list(question.choices), "answer": question.answer, "lettered": lettered}
    name = f"{question.subject}:{question.number}"
    return Item(name, question.question, asks, question.subject, doc, location)


def _asked(question: Question, wording: Wording) -> str:
    """Return a question as the model reads it, up to the cue of the answer."""
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False))
    # the question is filled in last, because it may contain braces
    words = wording.question.replace("{choices}", listed)
    return words.replace("{question}", question.question) + wording.cue


def _said(question: Question, *, lettered: bool) -> str:
    """Return the right answer: its letter, or its text."""
    return LETTERS[question.answer] if lettered else question.choices[question.answer]


def _judge(item: Item, replies: Sequence[Reply]) -> Sample:
    """Judge the likeliest choice (the first of equals); its probability among the choices is the confidence."""
    choices, target, lettered = item.doc["choices"], int(item.doc["answer"]), bool(item.doc["lettered"])
    scored = the_scored(replies)
    nats = [one.sum_nats for one in scored]
    values = nats if lettered else [value / len(choice) for value, choice in zip(nats, choices, strict=True)]
    chosen = values.index(max(values))
    scores = {"acc": float(nats.index(max(nats)) == target)}
    if not lettered:
        scores["acc_norm"] = float(chosen == target)
    answer, wanted = (f"{LETTERS[number]}. {choices[number]}" for number in (chosen, target))
    sure = 1 / sum(math.exp(value - max(values)) for value in values)
    tokens, right, extra = sum(one.tokens for one in scored), chosen == target, {"nats": nats}
    return item.sample(
        answer, wanted, scores, correct=right, choices=len(choices), confidence=sure, tokens=tokens, extra=extra
    )


def _scores(samples: Sequence[Sample]) -> dict[str, Score]:
    """Return means over all questions and by subject, and `<score>_macro`: the mean of the means of the subjects."""
    made, whole = averages(samples), {}
    for name, score in made.items():
        whole[name] = score
        subjects = [other.value for key, other in made.items() if key.startswith(f"{name}/")]
        if subjects:
            whole[f"{name}_macro"] = mean_score(subjects)._replace(n=score.n)
    return whole
