"""The tasks of GLUE and SuperGLUE: their columns, labels in the official order, wording and official scores.

The wording is that of lm-eval 0.4.13 (`lm_eval/tasks/{glue,super_glue}`), so that plain scores can be compared. The
wording of STS-B, AX-b and AX-g, which lm-eval does not have, is our own. `{field}` in a wording stands for a column of
the row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from posttrain.exams.score_spec import ScoreSpec, specs

Fields = Mapping[str, str]
Columns = Mapping[str, tuple[str, ...]]
SCORES: Mapping[str, ScoreSpec] = {
    spec.key: spec
    for spec in (
        *specs("acc", "em", "parity"),
        *specs("f1", "f1a", "macro_f1", unit="grade"),
        *specs("mcc", "pearson", "spearman", unit="number"),
        *specs("squared_error", unit="number", better="less"),
    )
}


class Posed(NamedTuple):
    """A row as a question to the model.

    text: the plain prompt, which ends with "Answer:" in most tasks; chat: the same question for a chat template;
    words: the possible answers; question: the part of the text that a perturbation may change.
    """

    text: str
    chat: str
    words: tuple[str, ...]
    question: str


@dataclass(frozen=True)
class GlueTask:
    """One task of GLUE or SuperGLUE.

    columns: our field -> names of the columns that may hold it; labels: the name of each label, by number; words: the
    answer that stands for each label; capability: the capability of the headline; scores: the names of its scores;
    headline: its main score; disturbed: the field that perturbations change, by default the last one; label_columns:
    names of the columns that may hold the label.
    """

    columns: Columns
    labels: tuple[str, ...]
    words: tuple[str, ...] = ()
    capability: str = "can.knowledge"
    scores: tuple[str, ...] = ("acc",)
    headline: str = "acc"
    disturbed: str = ""
    label_columns: tuple[str, ...] = ("label",)


def posed(task: str, row: Fields) -> Posed:
    """Return the row of a task as a question."""
    if task in POSES:
        return POSES[task](row)
    spec = TASKS[task]
    return _asked(WORDING[task].format_map(row), spec.words, row[spec.disturbed or list(spec.columns)[-1]])


def _asked(text: str, words: tuple[str, ...], question: str) -> Posed:
    """Return a question that ends with "Answer:" in the plain prompt, and has no such line in the chat prompt."""
    return Posed(f"{text}\nAnswer:", text, words, question)


def _mnli(row: Fields) -> Posed:
    hypothesis = row["hypothesis"].strip()
    end = "" if hypothesis.endswith(".") else "."
    text = f"{row['premise']}\nQuestion: {hypothesis}{end} True, False or Neither?"
    return _asked(text, ("True", "Neither", "False"), hypothesis)


def _copa(row: Fields) -> Posed:
    link = {"cause": "because", "effect": "therefore"}[row["question"]]
    premise = row["premise"].strip()
    words = tuple(row[name][0].lower() + row[name][1:] for name in ("choice1", "choice2"))
    chat = f"{premise}\nWhat was the {row['question']} of this? Answer with one sentence."
    return Posed(f"{premise[:-1]} {link}", chat, words, premise[:-1])


def _wsc(row: Fields) -> Posed:
    """Ask what a pronoun refers to, with the pronoun between stars. `span2_index` counts words. The word at this index
    may end with a punctuation mark: "him."
    """
    words = row["text"].split()
    at, pronoun = int(row["span2_index"]), row["span2_text"]
    size = len(pronoun.split())
    spoken = " ".join(words[at : at + size])
    passage = " ".join([*words[:at], spoken.replace(pronoun, f"*{pronoun}*", 1), *words[at + size :]])
    ask = f'In the passage above, does the pronoun "*{pronoun}*" refer to "*{row["span1_text"]}*"?'
    return _asked(f"Passage: {passage}\nQuestion: {ask}", NO_YES, passage)


def _columns(*names: str) -> Columns:
    """Return columns in which each field has the name of its column."""
    return {name: (name,) for name in names}


NO_YES = ("no", "yes")
TRUE_FALSE = ("True", "False")
ENTAILS = ("entailment", "not_entailment")
TRUTH = ("false", "true")
PAIR = {"sentence1": ("sentence1", "#1 String", "premise"), "sentence2": ("sentence2", "#2 String", "hypothesis")}
NLI = {"premise": ("premise", "sentence1"), "hypothesis": ("hypothesis", "sentence2")}

POSES: Mapping[str, Callable[[Fields], Posed]] = {"mnli": _mnli, "copa": _copa, "wsc": _wsc}
WORDING = {
    "cola": "{sentence}\nQuestion: Does this sentence make sense?",
    "sst2": "{sentence}\nQuestion: Is this sentence positive or negative?",
    "mrpc": "Sentence 1: {sentence1}\nSentence 2: {sentence2}\nQuestion: Do both sentences mean the same thing?",
    "qqp": "Question 1: {question1}\nQuestion 2: {question2}\nQuestion: Do both questions ask the same thing?",
    "stsb": "Sentence 1: {sentence1}\nSentence 2: {sentence2}\n"
    "Question: How similar are both sentences in meaning, from 0 (not at all) to 5 (the same)?",
    "qnli": "{question}\n{sentence}\nQuestion: Does this response answer the question?",
    **dict.fromkeys(("rte", "wnli", "axb", "axg"), "{premise}\nQuestion: {hypothesis} True or False?"),
    "boolq": "{passage}\nQuestion: {question}?",
    "cb": "{premise}\nQuestion: {hypothesis}. True, False, or Neither?",
    "multirc": "{passage}\nQuestion: {question}\nAnswer: {answer}\nIs the answer correct?",
    "wic": "Sentence 1: {sentence1}\nSentence 2: {sentence2}\n"
    "Question: Is the word '{word}' used in the same way in the two sentences above?",
}
TASKS: Mapping[str, GlueTask] = {
    "cola": GlueTask(
        _columns("sentence"), ("unacceptable", "acceptable"), NO_YES, scores=("acc", "mcc"), headline="mcc"
    ),
    "sst2": GlueTask(_columns("sentence"), ("negative", "positive"), ("negative", "positive")),
    "mrpc": GlueTask(
        PAIR, ("not_equivalent", "equivalent"), NO_YES, scores=("acc", "f1"), label_columns=("label", "Quality")
    ),
    "qqp": GlueTask(
        _columns("question1", "question2"),
        ("not_duplicate", "duplicate"),
        NO_YES,
        scores=("acc", "f1"),
        label_columns=("label", "is_duplicate"),
    ),
    "stsb": GlueTask(
        PAIR,
        (),
        tuple("012345"),
        scores=("pearson", "spearman", "squared_error"),
        headline="pearson",
        label_columns=("label", "score"),
    ),
    "mnli": GlueTask(
        NLI, ("entailment", "neutral", "contradiction"), (), "can.reasoning", label_columns=("gold_label", "label")
    ),
    "qnli": GlueTask(_columns("question", "sentence"), ENTAILS, ("yes", "no"), "can.reasoning", disturbed="question"),
    "rte": GlueTask(NLI, ENTAILS, TRUE_FALSE, "can.reasoning"),
    "wnli": GlueTask(NLI, ENTAILS[::-1], TRUE_FALSE[::-1], "can.domains"),
    "axb": GlueTask(NLI, ENTAILS, TRUE_FALSE, "can.reasoning", ("acc", "mcc"), "mcc"),
    "axg": GlueTask(NLI, ENTAILS, TRUE_FALSE, "can.reasoning", ("acc", "parity")),
    "boolq": GlueTask(_columns("passage", "question"), TRUTH, NO_YES, "can.in_context"),
    "cb": GlueTask(
        _columns("premise", "hypothesis"),
        ("entailment", "contradiction", "neutral"),
        (*TRUE_FALSE, "Neither"),
        "can.reasoning",
        ("acc", "macro_f1"),
    ),
    "copa": GlueTask(_columns("premise", "choice1", "choice2", "question"), ("0", "1"), (), "can.domains"),
    "multirc": GlueTask(
        _columns("passage", "question", "answer"),
        ("0", "1"),
        NO_YES,
        "can.in_context",
        ("acc", "f1a", "em"),
        "f1a",
        "question",
    ),
    "record": GlueTask(_columns("passage", "query"), (), (), "can.in_context", ("em", "f1"), "f1"),
    "wic": GlueTask(_columns("sentence1", "sentence2", "word"), TRUTH, NO_YES, disturbed="sentence2"),
    "wsc": GlueTask(_columns("text", "span1_text", "span2_text", "span2_index"), TRUTH, (), "can.domains"),
}
