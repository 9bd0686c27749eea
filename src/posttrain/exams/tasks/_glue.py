"""The tasks of GLUE and SuperGLUE: columns, labels in their official order, wording, official scores.

Wording as lm-eval 0.4.13 has it (`lm_eval/tasks/{glue,super_glue}`), so that plain scores can be compared; STS-B, AX-b
and AX-g, which it has not, are our own. `{field}` in a wording is a column of the row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from posttrain.exams.score_spec import ScoreSpec, specs

__all__ = ["TASKS", "GlueTask", "Posed"]

Fields = Mapping[str, str]
SCORES: Mapping[str, ScoreSpec] = {
    spec.key: spec
    for spec in (
        *specs("acc", "em", "parity"),
        *specs("f1", "f1a", "macro_f1", unit="grade"),
        *specs("mcc", "pearson", "spearman", unit="number"),
        *specs("squared_error", unit="number", better="less"),
    )
}


@dataclass(frozen=True)
class Posed:
    """A row as it is asked. text: ends with "Answer:" when plain; words: the answers; question: what a perturbation
    may change, part of the text; about: what `judge` needs beside the label.
    """

    text: str
    chat: str
    words: tuple[str, ...]
    question: str
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GlueTask:
    """columns: our field -> names of columns it may stand in; labels: names by number; wording ends before "Answer:";
    words: what stands for each label; disturbed: the field that perturbations change; header: of a TSV without one.
    """

    columns: Mapping[str, tuple[str, ...]]
    labels: tuple[str, ...]
    wording: str
    words: tuple[str, ...]
    disturbed: str
    capability: str
    scores: tuple[str, ...] = ("acc",)
    headline: str = "acc"
    label_columns: tuple[str, ...] = ("label",)
    header: tuple[str, ...] | None = None
    pose: Callable[[Fields], Posed] | None = None

    @property
    def specs(self) -> tuple[ScoreSpec, ...]:
        """What its scores are."""
        return tuple(SCORES[name] for name in (*self.scores, *(["squared_error"] if "pearson" in self.scores else [])))

    def posed(self, row: Fields) -> Posed:
        """The row in words."""
        if self.pose is not None:
            return self.pose(row)
        text = self.wording.format_map(row)
        return Posed(f"{text}\nAnswer:", text, self.words, row[self.disturbed])


def _columns(*names: str, **others: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {name: (name,) for name in names} | others


def _mnli(row: Fields) -> Posed:
    hypothesis = row["hypothesis"].strip()
    text = f"{row['premise']}\nQuestion: {hypothesis}{'' if hypothesis.endswith('.') else '.'} True, False or Neither?"
    return Posed(f"{text}\nAnswer:", text, ("True", "Neither", "False"), hypothesis)


def _copa(row: Fields) -> Posed:
    link = {"cause": "because", "effect": "therefore"}[row["question"]]
    premise = row["premise"].strip()
    words = tuple(row[name][0].lower() + row[name][1:] for name in ("choice1", "choice2"))
    chat = f"{premise}\nWhat was the {row['question']} of this? Answer with one sentence."
    return Posed(f"{premise[:-1]} {link}", chat, words, premise[:-1])


def _wsc(row: Fields) -> Posed:
    """The pronoun between stars. span2_index counts words, and its word may carry a mark: "him." """
    words = row["text"].split()
    at, pronoun = int(row["span2_index"]), row["span2_text"]
    size = len(pronoun.split())
    spoken = " ".join(words[at : at + size])
    marked = [*words[:at], spoken.replace(pronoun, f"*{pronoun}*", 1), *words[at + size :]]
    passage = " ".join(marked)
    ask = f'In the passage above, does the pronoun "*{pronoun}*" refer to "*{row["span1_text"]}*"?'
    text = f"Passage: {passage}\nQuestion: {ask}"
    return Posed(f"{text}\nAnswer:", text, ("no", "yes"), passage)


_PAIR = {"sentence1": ("sentence1", "#1 String", "premise"), "sentence2": ("sentence2", "#2 String", "hypothesis")}
_NLI = {"premise": ("premise", "sentence1"), "hypothesis": ("hypothesis", "sentence2")}
_ENTAILS = ("entailment", "not_entailment")
_TRUE_FALSE = "{premise}\nQuestion: {hypothesis} True or False?"

TASKS: Mapping[str, GlueTask] = {
    "cola": GlueTask(
        _columns("sentence"),
        ("unacceptable", "acceptable"),
        "{sentence}\nQuestion: Does this sentence make sense?",
        ("no", "yes"),
        "sentence",
        "can.knowledge",
        ("acc", "mcc"),
        "mcc",
        header=("source", "label", "star", "sentence"),
    ),
    "sst2": GlueTask(
        _columns("sentence"),
        ("negative", "positive"),
        "{sentence}\nQuestion: Is this sentence positive or negative?",
        ("negative", "positive"),
        "sentence",
        "can.knowledge",
    ),
    "mrpc": GlueTask(
        _PAIR,
        ("not_equivalent", "equivalent"),
        "Sentence 1: {sentence1}\nSentence 2: {sentence2}\nQuestion: Do both sentences mean the same thing?",
        ("no", "yes"),
        "sentence2",
        "can.knowledge",
        ("acc", "f1"),
        label_columns=("label", "Quality"),
    ),
    "qqp": GlueTask(
        _columns("question1", "question2"),
        ("not_duplicate", "duplicate"),
        "Question 1: {question1}\nQuestion 2: {question2}\nQuestion: Do both questions ask the same thing?",
        ("no", "yes"),
        "question2",
        "can.knowledge",
        ("acc", "f1"),
        label_columns=("label", "is_duplicate"),
    ),
    "stsb": GlueTask(
        _PAIR,
        (),
        "Sentence 1: {sentence1}\nSentence 2: {sentence2}\n"
        "Question: How similar are both sentences in meaning, from 0 (not at all) to 5 (the same)?",
        ("0", "1", "2", "3", "4", "5"),
        "sentence2",
        "can.knowledge",
        ("pearson", "spearman"),
        "pearson",
        label_columns=("label", "score"),
    ),
    "mnli": GlueTask(
        _NLI,
        ("entailment", "neutral", "contradiction"),
        "",
        (),
        "hypothesis",
        "can.reasoning",
        label_columns=("gold_label", "label"),
        pose=_mnli,
    ),
    "qnli": GlueTask(
        _columns("question", "sentence"),
        _ENTAILS,
        "{question}\n{sentence}\nQuestion: Does this response answer the question?",
        ("yes", "no"),
        "question",
        "can.reasoning",
    ),
    "rte": GlueTask(_NLI, _ENTAILS, _TRUE_FALSE, ("True", "False"), "hypothesis", "can.reasoning"),
    "wnli": GlueTask(
        _NLI, ("not_entailment", "entailment"), _TRUE_FALSE, ("False", "True"), "hypothesis", "can.domains"
    ),
    "axb": GlueTask(
        _NLI, _ENTAILS, _TRUE_FALSE, ("True", "False"), "hypothesis", "can.reasoning", ("acc", "mcc"), "mcc"
    ),
    "axg": GlueTask(_NLI, _ENTAILS, _TRUE_FALSE, ("True", "False"), "hypothesis", "can.reasoning", ("acc", "parity")),
    "boolq": GlueTask(
        _columns("passage", "question"),
        ("false", "true"),
        "{passage}\nQuestion: {question}?",
        ("no", "yes"),
        "question",
        "can.in_context",
    ),
    "cb": GlueTask(
        _columns("premise", "hypothesis"),
        ("entailment", "contradiction", "neutral"),
        "{premise}\nQuestion: {hypothesis}. True, False, or Neither?",
        ("True", "False", "Neither"),
        "hypothesis",
        "can.reasoning",
        ("acc", "macro_f1"),
    ),
    "copa": GlueTask(
        _columns("premise", "choice1", "choice2", "question"), ("0", "1"), "", (), "premise", "can.domains", pose=_copa
    ),
    "multirc": GlueTask(
        _columns("passage", "question", "answer"),
        ("0", "1"),
        "{passage}\nQuestion: {question}\nAnswer: {answer}\nIs the answer correct?",
        ("no", "yes"),
        "question",
        "can.in_context",
        ("acc", "f1a", "em"),
        "f1a",
    ),
    "record": GlueTask(_columns("passage", "query"), (), "", (), "passage", "can.in_context", ("em", "f1"), "f1"),
    "wic": GlueTask(
        _columns("sentence1", "sentence2", "word"),
        ("false", "true"),
        "Sentence 1: {sentence1}\nSentence 2: {sentence2}\n"
        "Question: Is the word '{word}' used in the same way in the two sentences above?",
        ("no", "yes"),
        "sentence2",
        "can.knowledge",
    ),
    "wsc": GlueTask(
        _columns("text", "span1_text", "span2_text", "span2_index"),
        ("false", "true"),
        "",
        (),
        "text",
        "can.domains",
        pose=_wsc,
    ),
}


def record_text(passage: str) -> str:
    """ReCoRD's passage, its highlights as a list."""
    first, *highlights = re.split(r"\n@highlight\n", passage.strip())
    return first + "\n\n" + "".join(f"  - {one}.\n" for one in highlights)
