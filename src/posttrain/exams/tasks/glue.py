"""GLUE and SuperGLUE from their own files: one config for one of their eighteen tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from posttrain.data.metrics import classify
from posttrain.data.metrics import reading as metrics
from posttrain.exams.records import Sample
from posttrain.exams.rows import Row, Rows
from posttrain.exams.statistics import Interval, Score
from posttrain.exams.task import Item, Reply, Task, TaskConfig, averages, choice_asks, chosen, mean_score
from posttrain.exams.tasks._glue import SCORES, TASKS, GlueTask, Posed, posed
from posttrain.inference.protocol import Plain
from posttrain.registry import register

__all__ = ["GlueConfig", "glue"]

GlueName = Literal[
    "cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli",
    "axb", "axg", "boolq", "cb", "copa", "multirc", "record", "wic", "wsc",
]  # fmt: skip
RESAMPLES = 2000
"""Number of bootstrap resamples for an interval."""
METRICS: Mapping[str, Callable[[Sequence[Any], Sequence[Any]], float]] = {
    **dict.fromkeys(("f1", "f1a"), classify.f1_binary),
    "macro_f1": classify.macro_f1,
    "mcc": classify.matthews,
    "pearson": classify.pearson,
    "spearman": classify.spearman,
}


class GlueConfig(TaskConfig):
    """One task of GLUE or SuperGLUE."""

    kind: Literal["glue"] = "glue"
    """A GLUE or SuperGLUE task."""
    task: GlueName
    """Which one; axb and axg are SuperGLUE's diagnostics."""

    @property
    def label(self) -> str:
        """Return the name in the config, or the task's own name."""
        return self.name or self.task


@register("exam", "glue", config=GlueConfig, paper="arXiv:1905.00537")
def glue(config: GlueConfig, base: Path) -> Task:
    """Return the task of a file with labels: TSV as in GLUE, or JSON Lines as in SuperGLUE and on the Hugging Face Hub.

    Raise DataError with every wrong row, and when no row can be asked.
    """
    path, spec = config.source(base, what=f"the dev file of {config.task}"), TASKS[config.task]
    # CoLA's TSV has no line of column names
    nameless = ("source", "label", "star", "sentence") if config.task == "cola" else None
    rows = Rows(path, names=lambda cells: None if "sentence" in cells else nameless)
    plain = config.template != "chat"
    items: list[Item] = []
    unlabelled = 0
    for row in rows:
        if config.task == "mnli" and row.value.get("gold_label") == "-":  # annotators did not agree
            unlabelled += 1
            continue
        for place, one, about in _posed(config.task, spec, row):
            asks = choice_asks(Plain(one.text) if plain else one.chat, one.words)
            doc = {"words": list(one.words), "task": config.task, **about}
            name = f"{path.stem}-{row.number}{place}"
            items.append(Item(name, one.question, asks, doc=doc, location=row.location))
    rows.check(len(items))
    wording = "plain, lm-eval's wording" if plain else "chat"
    if plain and config.task in ("stsb", "axb", "axg"):
        wording = "plain, own wording"
    classes = len(spec.words) or len(spec.labels)
    return Task(
        items=items,
        judge=_judge,
        aggregate=partial(_scores, spec=spec),
        headline=spec.headline,
        capabilities={spec.headline: spec.capability},
        scores=tuple(SCORES[name] for name in spec.scores),
        signature=f"glue|{config.task}|{path.name}|0-shot|{wording}|total log-probability|v1",
        chance={"mcc": 0.0, "pearson": 0.0, "acc": 1 / classes if classes else None}.get(spec.headline),
        notes=(f"{unlabelled} rows without an agreed label are left out",) if unlabelled else (),
    )


def _posed(task: str, spec: GlueTask, row: Row) -> Iterator[tuple[str, Posed, dict[str, Any]]]:
    """Yield (suffix of the id, the question, what `_judge` needs) for a row. Most rows give one question; nested rows
    of MultiRC and ReCoRD give several. A wrong row gives none and is noted."""
    if task == "record" or (task == "multirc" and isinstance(row.value.get("passage"), dict)):
        yield from (_record if task == "record" else _multirc)(row)
        return
    target = row.value.get("target")
    flat = row.with_values(target) if task == "wsc" and isinstance(target, dict) else row
    texts = {name: flat.text(next((c for c in its if c in flat), its[0])) for name, its in spec.columns.items()}
    gold = _label(spec, row, task)
    fields = {name: text for name, text in texts.items() if text is not None}
    if gold is None or len(fields) < len(texts):
        return
    if task == "copa" and fields["question"] not in ("cause", "effect"):
        row.bad(f"'question' is {fields['question']!r}", "'cause' or 'effect' is expected")
        return
    about: dict[str, Any] = {"gold": gold}
    if task == "axg":  # two rows in a row have the same sentence, once with "her" and once with "him"
        about["pair"] = (row.number - 1) // 2
    if task == "multirc":
        about["question"] = f"{fields['passage'][:80]}|{fields['question']}"
    yield "", posed(task, fields), about


def _label(spec: GlueTask, row: Row, task: str) -> int | float | None:
    """Return the number of the row's label, from 0 (STS-B: its score). None, noted as a problem, if there is none."""
    column = next((c for c in spec.label_columns if c in row), None)
    value = row.value[column] if column else None
    told = str(value).strip().lower()
    if column is None or told in ("", "-1"):
        row.bad("no label", "the test files of GLUE and SuperGLUE have none: use the dev or train file")
        return None
    if task == "stsb":
        try:
            return float(told)
        except ValueError:
            row.bad(f"the label {value!r} is no number")
            return None
    if told in spec.labels:
        return spec.labels.index(told)
    if told in map(str, range(len(spec.labels))):
        return int(told)
    row.bad(f"unknown label {value!r}", f"labels of {task}: {', '.join(spec.labels)}, or their numbers from 0")
    return None


def _multirc(row: Row) -> Iterator[tuple[str, Posed, dict[str, Any]]]:
    """Yield a question for each answer of a nested MultiRC row: a passage with questions, each with its answers."""
    try:
        passage = str(row.value["passage"]["text"])
        asked = [
            (q, f".{q}.{a}", str(question["question"]), str(answer["text"]), int(answer["label"]))
            for q, question in enumerate(row.value["passage"]["questions"])
            for a, answer in enumerate(question["answers"])
        ]
    except (KeyError, TypeError, ValueError) as error:
        row.bad(f"passage.questions[].answers[] of {{text, label}} are expected: {error!r}", "test files have no label")
        return
    for q, place, question, answer, label in asked:
        words = posed("multirc", {"passage": passage, "question": question, "answer": answer})
        yield place, words, {"gold": label, "question": f"{row.location}.{q}"}


def _record(row: Row) -> Iterator[tuple[str, Posed, dict[str, Any]]]:
    """Yield a question for each query of a ReCoRD row: a passage with entities, and sentences with a gap. One of the
    entities fills the gap, `@placeholder`."""
    try:
        passage = str(row.value["passage"]["text"])
        spans = [(int(e["start"]), int(e["end"]) + 1) for e in row.value["passage"]["entities"]]
        asked = [(str(q["query"]), [str(a["text"]) for a in q["answers"]]) for q in row.value["qas"]]
    except (KeyError, TypeError, ValueError) as error:
        cause = f"passage {{text, entities}} and qas of {{query, answers}} are expected: {error!r}"
        row.bad(cause, "test files have no answers")
        return
    entities = sorted({passage[a:b] for a, b in spans})
    first, *highlights = passage.strip().split("\n@highlight\n")
    text = first + "\n\n" + "".join(f"  - {one}.\n" for one in highlights)
    for q, (query, answers) in enumerate(asked):
        words = tuple(f"  - {query.replace('@placeholder', one)}" for one in entities)
        chat = f"{text}\n{query}\n\nWhich name stands for @placeholder? Answer with the name only."
        about = {"gold": answers, "entities": entities, "answers": answers}
        yield f".{q}", Posed(text, chat, words, first), about


def _judge(item: Item, replies: Sequence[Reply]) -> Sample:
    doc, gold, words = item.doc, item.doc["gold"], item.doc["words"]
    choice = chosen(replies, words)
    said: float = choice.best
    extra: dict[str, Any] = {"shares": [round(share, 6) for share in choice.shares]}
    correct: bool | None = choice.best == gold
    if doc["task"] == "stsb":
        said, correct = sum(share * number for number, share in enumerate(choice.shares)), None
        scores = {"squared_error": (said - gold) ** 2}
        answer, target = f"{said:.2f}", f"{gold:g}"
    elif doc["task"] == "record":
        answer, target = doc["entities"][choice.best], gold[0] if gold else ""
        scores = {"em": metrics.exact_match(answer, gold), "f1": metrics.f1_squad(answer, gold)}
        correct = scores["em"] == 1.0
    else:
        scores = {"acc": float(choice.best == gold)}
        answer, target = words[choice.best], words[gold]
    if doc["task"] != "record":
        extra |= {"said": said, "gold": gold}
    extra |= {key: doc[key] for key in ("question", "pair") if key in doc}
    sure: dict[str, Any] = {} if correct is None else {"choices": len(words), "confidence": max(choice.shares)}
    return item.sample(answer, target, scores, correct=correct, extra=extra, **sure)


def _scores(samples: Sequence[Sample], *, spec: GlueTask) -> dict[str, Score]:
    made = averages(samples)
    return made | {name: _over_all(name, samples) for name in spec.scores if name not in made}


def _over_all(name: str, samples: Sequence[Sample]) -> Score:
    """Return a score that is computed from all samples together, with its interval (none for `spearman`)."""
    if name in ("em", "parity"):
        return _all_or_none(samples, "question" if name == "em" else "pair")
    said, gold = [s.extra["said"] for s in samples], [s.extra["gold"] for s in samples]
    interval = None if name == "spearman" else _interval(name, said, gold)
    return Score(METRICS[name](said, gold), interval, len(samples))


def _all_or_none(samples: Sequence[Sample], key: str) -> Score:
    """Return a score over groups of samples that share the value of `key`.

    `question` is MultiRC's exact match: the share of questions with every answer right. `pair` is AX-g's parity: the
    share of pairs (the same sentence with "her" and with "him") in which both samples got the same answer."""
    groups: dict[Any, list[Sample]] = {}
    for s in samples:
        groups.setdefault(s.extra[key], []).append(s)
    if key == "question":
        return mean_score([float(all(s.correct for s in own)) for own in groups.values()])
    pairs = [own for own in groups.values() if len(own) == 2]  # a limit may leave out one half of a pair
    return mean_score([float(a.extra["said"] == b.extra["said"]) for a, b in pairs]) if pairs else Score(0.0, None, 0)


def _interval(name: str, said: Sequence[int], gold: Sequence[int]) -> Interval | None:
    """Return the 95 % percentile bootstrap interval over samples; None with fewer than 2 samples (`pearson`: 3).

    The scores of labels depend only on the table of counts of (said, gold), so tables are drawn. The answers of STS-B
    (`pearson`) are no labels, so samples are drawn."""
    n, rng = len(said), np.random.default_rng(0)
    if n < (3 if name == "pearson" else 2):
        return None
    a, b = np.asarray(said), np.asarray(gold)
    if name == "pearson":
        values = _correlations(a, b, rng.integers(0, n, size=(RESAMPLES, n)))
    else:
        size = int(1 + max(a.max(), b.max()))
        table = np.bincount(a * size + b, minlength=size * size)
        drawn = rng.multinomial(n, table / n, size=RESAMPLES)  # (R, K * K)
        values = of_tables(name, drawn.reshape(RESAMPLES, size, size))
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(low), float(high))


def of_tables(name: str, tables: np.ndarray) -> np.ndarray:
    """Return the score (R,) of each table of counts (R, said, gold): `mcc`, `macro_f1`, or F1 of label 1. The values
    equal those that `data/metrics/classify.py` computes from the labels.
    """
    hits = np.diagonal(tables, axis1=1, axis2=2)  # (R, K)
    said, gold = tables.sum(axis=2), tables.sum(axis=1)  # (R, K) each
    if name == "mcc":
        n = tables.sum(axis=(1, 2))
        above = hits.sum(axis=1) * n - (said * gold).sum(axis=1)
        below = np.sqrt((n**2 - (said**2).sum(axis=1)) * (n**2 - (gold**2).sum(axis=1)).astype(np.float64))
        return np.where(below > 0, above / np.where(below > 0, below, 1.0), 0.0)
    named = said + gold
    each = 2 * hits / np.where(named > 0, named, 1)  # (R, K): F1 of each label
    if name == "macro_f1":
        return each.sum(axis=1) / (named > 0).sum(axis=1)
    return each[:, 1] if each.shape[1] > 1 else np.zeros(len(tables))


def _correlations(x: np.ndarray, y: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation (R,) of each draw; drawn: (R, N) indices of samples. 0 when a side is constant."""
    a, b = x[drawn] - x[drawn].mean(1, keepdims=True), y[drawn] - y[drawn].mean(1, keepdims=True)
    spread = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.where(spread > 0, (a * b).sum(1) / np.where(spread > 0, spread, 1.0), 0.0)
