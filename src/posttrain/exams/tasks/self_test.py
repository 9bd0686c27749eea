"""Text overlap with one's own held-out answers: BLEU, ROUGE, and the scores of the ChatGLM scripts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from posttrain.data.lengths import listed
from posttrain.data.readers import DataSource, read_records
from posttrain.data.records import Completion, Conversation, Message, Record
from posttrain.errors import DataError, Problem
from posttrain.exams.behaviour import CAPABILITIES, SPECS, behaviour, length, mostly_chinese
from posttrain.exams.metrics.chatglm import CHATGLM_SCORES, chatglm_scores, chatglm_signature
from posttrain.exams.metrics.overlap import BleuTokenizer, bleu, bleu_signature
from posttrain.exams.metrics.rouge import Rouge, rouge, rouge_signature
from posttrain.exams.metrics.tokens import characters, jieba_words, latin
from posttrain.exams.normalising import normalise
from posttrain.exams.records import Sample
from posttrain.exams.score_spec import specs
from posttrain.exams.statistics import Score
from posttrain.exams.task import Ask, Item, Reply, Task, TaskConfig, averages, the_answer
from posttrain.inference.protocol import Plain, Prompt
from posttrain.registry import register

__all__ = ["SelfTestConfig", "self_test"]

TOKENIZERS = {"characters": characters, "jieba": jieba_words, "latin": latin}


class SelfTestConfig(TaskConfig):
    """A file of held-out rows in the format of training data."""

    kind: Literal["self_test"] = "self_test"
    """Overlap with reference answers."""
    words: Literal["auto", "characters", "jieba", "latin"] = "auto"
    """What ROUGE counts: Chinese characters (and Latin words), words by jieba, or rouge-score's Latin words; auto:
    characters when most answers are Chinese, else Latin words."""
    bleu: Literal["auto", "zh", "char", "13a", "intl"] = "auto"
    """sacrebleu's tokenizer; auto: zh when most answers are Chinese, else 13a."""
    beta: float = Field(default=1.0, gt=0)
    """The weight of recall in ROUGE-L: 1 is rouge-score's, 1.2 is what some Chinese scripts take."""
    max_new_tokens: int = Field(default=256, gt=0)
    """Tokens of an answer."""
    headline: Literal["rougeL", "exact"] = "rougeL"
    """The score that reports and comparisons take; exact where only one answer is right: then every sample is right or
    wrong, and what was right before and is wrong now is counted."""


class Row(NamedTuple):
    """A row of the file: a prompt with its reference answer. asked: the user's last message."""

    location: str
    prompt: Prompt
    asked: str
    reference: str


@register("exam", "self_test", config=SelfTestConfig, paper="arXiv:1804.08771")
def self_test(config: SelfTestConfig, base: Path) -> Task:
    """Return the task of a file of conversations (the last answer is the reference) or of prompt/completion rows.

    Raise DataError with every row that has no question or no reference answer.
    """
    path = config.source(base, what="a file of held-out rows")
    rows = _rows(path, plain=config.template == "plain")
    chinese = mostly_chinese([row.reference for row in rows])
    words = config.words if config.words != "auto" else "characters" if chinese else "latin"
    tokenize: BleuTokenizer = config.bleu if config.bleu != "auto" else "zh" if chinese else "13a"
    marked = {"marked": True} if config.headline == "exact" else {}
    items = []
    for number, row in enumerate(rows, start=1):
        ask = Ask("say", row.prompt, max_new_tokens=config.max_new_tokens)
        doc = {"reference": row.reference, "words": words, "beta": config.beta, **marked}
        items.append(Item(f"{path.stem}-{number}", row.asked, (ask,), doc=doc, location=row.location))
    of_rouge = rouge_signature(tokenizer=TOKENIZERS[words], beta=config.beta)
    measured = f"{bleu_signature(tokenize=tokenize)}|{of_rouge}|{chatglm_signature()}"
    return Task(
        items=items,
        judge=_judge,
        aggregate=partial(_scores, tokenize=tokenize),
        headline=config.headline,
        # The rows are of the trained domain, not of general knowledge: in that capability a rise from near 0 would hide
        # what was forgotten.
        capabilities={config.headline: "can.domains", **CAPABILITIES},
        scores=(
            *specs(*Rouge._fields, unit="grade"),
            *specs("exact"),
            *specs("empty", better="less"),
            *specs("length_ratio", unit="ratio", better="none"),
            *specs(f"bleu_{tokenize}", *CHATGLM_SCORES, unit="points"),
            *SPECS,
        ),
        signature=f"self_test|{path.name}|{config.template}|{config.max_new_tokens} tokens|{measured}|v1",
    )


def _rows(path: Path, *, plain: bool) -> list[Row]:
    """Return the rows of a file; plain: with prompts of plain text. Raise DataError with every unusable row."""
    read = [_row(record, plain) for record in read_records(DataSource(path=str(path))).records]
    problems = [one for one in read if isinstance(one, Problem)]
    if problems:
        raise DataError(*listed(problems))
    return [one for one in read if isinstance(one, Row)]


def _row(record: Record, plain: bool) -> Row | Problem:
    """Return a record as a prompt with its reference answer, or the problem that makes it unusable."""
    location = record.location
    if isinstance(record, Completion):
        text = record.prompt
        prompt: Prompt = Plain(text if text[-1:].isspace() else f"{text}\n") if plain else text
        return Row(location, prompt, text, record.completion)
    if not isinstance(record, Conversation):
        cause = "a plain text has no question and no answer"
        return Problem(location, cause, "use the exam perplexity for plain text")
    turns, last = [Message(m.role, m.content) for m in record.messages[:-1]], record.messages[-1]
    users = [turn.content for turn in turns if turn.role == "user"]
    if last.role != "assistant" or not last.content.strip():
        return Problem(location, "no reference: the last turn is no answer of the assistant")
    if not users or turns[-1].role not in ("user", "tool"):
        return Problem(location, "nobody asks before the last answer")
    if record.tools:
        return Problem(location, "rows with tools are not asked here", "leave the row out")
    whole = users[0] if len(turns) == 1 else tuple(turns)
    prompt = Plain("".join(f"{turn.content}\n" for turn in turns)) if plain else whole
    return Row(location, prompt, users[-1], last.content)


def _judge(item: Item, replies: Sequence[Reply]) -> Sample:
    said = the_answer(replies)
    answer, reference = said.text.strip(), str(item.doc["reference"]).strip()
    overlap = rouge(answer, reference, tokenizer=TOKENIZERS[item.doc["words"]], beta=item.doc["beta"])
    equal = normalise(answer) == normalise(reference)
    scores = {
        **{name: float(value) for name, value in overlap._asdict().items()},
        **chatglm_scores(answer, reference),
        "length_ratio": length(answer) / max(1, length(reference)),
        "empty": float(not answer),
        "exact": float(equal),
        **behaviour(item.question, answer),
    }
    return item.sample(answer, reference, scores, said, correct=equal if item.doc.get("marked") else None)


def _scores(samples: Sequence[Sample], *, tokenize: BleuTokenizer) -> dict[str, Score]:
    """Return the means of the samples' scores, and the corpus BLEU of all answers."""
    whole = bleu([s.answer for s in samples], [[s.target] for s in samples], tokenize=tokenize)
    return averages(samples) | {f"bleu_{tokenize}": Score(whole.score, None, len(samples))}
