"""Text overlap with one's own held-out answers: BLEU, ROUGE, and the scores of the ChatGLM scripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from posttrain.data.lengths import listed
from posttrain.data.readers import DataSource, read_records
from posttrain.data.records import Completion, Conversation, Message
from posttrain.errors import DataError, Problem
from posttrain.exams.behaviour import CAPABILITIES, SPECS, behaviour, language_of, length
from posttrain.exams.normalising import normalise
from posttrain.exams.records import Sample
from posttrain.exams.rows import no_path
from posttrain.exams.score_spec import ScoreSpec, specs
from posttrain.exams.statistics import Score
from posttrain.exams.task import Ask, Item, Reply, Task, TaskConfig, averages, resolve, the_answer
from posttrain.inference.protocol import Plain, Prompt
from posttrain.registry import register

__all__ = ["SelfTestConfig", "self_test"]

Words = Literal["auto", "characters", "jieba", "latin"]


class SelfTestConfig(TaskConfig):
    """A file of held-out rows in the format of training data."""

    kind: Literal["self_test"] = "self_test"
    """Overlap with reference answers."""
    words: Words = "auto"
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
    """A prompt with the answer that the file gives."""

    location: str
    prompt: Prompt
    asked: str
    reference: str


@register("exam", "self_test", config=SelfTestConfig, paper="arXiv:1804.08771")
def self_test(config: SelfTestConfig, base: Path) -> Task:
    """The task of a file of conversations (the last answer is the reference) or prompt/completion rows."""
    if config.path is None:
        raise no_path("self_test", "a file of held-out rows")
    path = resolve(config.path, base)
    rows = _rows(path, plain=config.template == "plain")
    chinese = sum(language_of(row.reference) == "zh" for row in rows) * 2 > len(rows)
    words = ("characters" if chinese else "latin") if config.words == "auto" else config.words
    bleu = ("zh" if chinese else "13a") if config.bleu == "auto" else config.bleu
    marked = {"marked": True} if config.headline == "exact" else {}
    items = [
        Item(
            id=f"{path.stem}-{number}",
            question=row.asked,
            asks=(Ask("say", row.prompt, max_new_tokens=config.max_new_tokens),),
            doc={"reference": row.reference, "words": words, "beta": config.beta, **marked},
            location=row.location,
        )
        for number, row in enumerate(rows, start=1)
    ]
    measured = _signature(words, bleu, config)
    return Task(
        items=items,
        judge=_judge,
        aggregate=_aggregate(bleu),
        headline=config.headline,
        # what was taught is a domain, not general knowledge: a rise from near 0 would hide there what was forgotten
        capabilities={config.headline: "can.domains", **CAPABILITIES},
        scores=_declared(bleu),
        signature=f"self_test|{path.name}|{config.template}|{config.max_new_tokens} tokens|{measured}|v1",
    )


def _rows(path: Path, *, plain: bool) -> list[Row]:
    read = read_records(DataSource(path=str(path)))
    rows: list[Row] = []
    problems: list[Problem] = []
    for record in read.records:
        if isinstance(record, Completion):
            rows.append(Row(record.location, _prompt(record.prompt, plain), record.prompt, record.completion))
        elif isinstance(record, Conversation):
            *before, last = record.messages
            users = [m.content for m in before if m.role == "user"]
            if last.role != "assistant" or not last.content.strip():
                problems.append(Problem(record.location, "no reference: the last turn is no answer of the assistant"))
            elif not users or before[-1].role not in ("user", "tool"):
                problems.append(Problem(record.location, "nobody asks before the last answer"))
            elif record.tools:
                problems.append(Problem(record.location, "rows with tools are not asked here", "leave the row out"))
            else:
                turns = tuple(Message(m.role, m.content) for m in before)
                rows.append(Row(record.location, _turns(turns, plain), users[-1], last.content))
        else:
            cause = "a plain text has no question and no answer"
            problems.append(Problem(record.location, cause, "use the exam perplexity for plain text"))
    if problems:
        raise DataError(*listed(problems))
    return rows


def _prompt(text: str, plain: bool) -> Prompt:
    return Plain(text if text[-1:].isspace() else f"{text}\n") if plain else text


def _turns(turns: tuple[Message, ...], plain: bool) -> Prompt:
    if plain:
        return Plain("".join(f"{turn.content}\n" for turn in turns))
    return turns[0].content if len(turns) == 1 and turns[0].role == "user" else turns


def _declared(bleu: str) -> tuple[ScoreSpec, ...]:
    from posttrain.exams.metrics.chatglm import CHATGLM_SCORES
    from posttrain.exams.metrics.rouge import Rouge

    return (
        *specs(*Rouge._fields, unit="grade"),
        *specs("exact"),
        *specs("empty", better="less"),
        *specs("length_ratio", unit="ratio", better="none"),
        *specs(f"bleu_{bleu}", *CHATGLM_SCORES, unit="points"),
        *SPECS,
    )


def _tokenizer(words: str) -> Callable[[str], list[str]]:
    from posttrain.exams.metrics import rouge as metrics

    return {"characters": metrics.characters, "jieba": metrics.jieba_words, "latin": metrics.latin}[words]


def _signature(words: str, bleu: str, config: SelfTestConfig) -> str:
    from posttrain.exams.metrics import chatglm, overlap, rouge

    parts = (
        overlap.bleu_signature(tokenize=bleu),  # type: ignore[arg-type]
        rouge.rouge_signature(tokenizer=_tokenizer(words), beta=config.beta),
        chatglm.chatglm_signature(),
    )
    return "|".join(parts)


def _judge(item: Item, replies: Sequence[Reply]) -> Sample:
    from posttrain.exams.metrics import chatglm, rouge

    said = the_answer(replies)
    answer, reference = said.text.strip(), str(item.doc["reference"]).strip()
    overlap = rouge.rouge(answer, reference, tokenizer=_tokenizer(item.doc["words"]), beta=item.doc["beta"])
    scores = {name: float(value) for name, value in overlap._asdict().items()}
    scores |= chatglm.chatglm_scores(answer, reference)
    scores["length_ratio"] = length(answer) / max(1, length(reference))
    scores["empty"] = float(not answer)
    equal = normalise(answer) == normalise(reference)
    return item.sample(
        answer,
        reference,
        scores | {"exact": float(equal)} | behaviour(item.question, answer),
        said,
        correct=equal if item.doc.get("marked") else None,
    )


def _aggregate(tokenize: str) -> Callable[[Sequence[Sample]], dict[str, Score]]:
    """The means, and BLEU of all answers together."""

    def aggregate(samples: Sequence[Sample]) -> dict[str, Score]:
        from posttrain.exams.metrics import overlap

        made = averages(samples)
        answers, references = [s.answer for s in samples], [[s.target] for s in samples]
        bleu = overlap.bleu(answers, references, tokenize=tokenize)  # type: ignore[arg-type]
        made[f"bleu_{tokenize}"] = Score(bleu.score, None, len(samples))
        return made

    return aggregate
