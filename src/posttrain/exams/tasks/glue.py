"""GLUE and SuperGLUE from their own files: one config for one of their eighteen tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from posttrain.exams.records import Sample
from posttrain.exams.rows import Row, Rows, no_path
from posttrain.exams.statistics import Interval, Score
from posttrain.exams.task import Item, Reply, Task, TaskConfig, averages, choice_asks, chosen, mean_score, resolve
from posttrain.exams.tasks._glue import TASKS, GlueTask, Posed, record_text
from posttrain.inference.protocol import Plain
from posttrain.registry import register

__all__ = ["GlueConfig", "glue"]

GlueName = Literal[
    "cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli",
    "axb", "axg", "boolq", "cb", "copa", "multirc", "record", "wic", "wsc",
]  # fmt: skip
RESAMPLES = 2000


class GlueConfig(TaskConfig):
    """One task of GLUE or SuperGLUE."""

    kind: Literal["glue"] = "glue"
    """A GLUE or SuperGLUE task."""
    task: GlueName
    """Which one; axb and axg are SuperGLUE's diagnostics."""

    @property
    def label(self) -> str:
        """The task's own name unless another is given."""
        return self.name or self.task


@register("exam", "glue", config=GlueConfig, paper="arXiv:1905.00537")
def glue(config: GlueConfig, base: Path) -> Task:
    """The task of a file with labels: TSV as GLUE has them, JSON Lines as SuperGLUE and the hub have them."""
    if config.path is None:
        raise no_path("glue", f"the dev file of {config.task}")
    path, spec = resolve(config.path, base), TASKS[config.task]
    rows = Rows(path, names=lambda cells: None if "sentence" in cells else spec.header)  # CoLA's TSV has no names
    plain = config.template != "chat"
    items: list[Item] = []
    unlabelled = 0
    for number, row in enumerate(rows, start=1):
        if config.task == "mnli" and row.value.get("gold_label") == "-":  # annotators did not agree
            unlabelled += 1
            continue
        for place, posed, gold in _posed(config.task, spec, row):
            prompt = Plain(posed.text) if plain else posed.chat
            doc = {"gold": gold, "words": list(posed.words), "task": config.task, **posed.about}
            name = f"{path.stem}-{number}{place}"
            items.append(Item(name, posed.question, choice_asks(prompt, posed.words), doc=doc, location=row.location))
    rows.check(len(items))
    wording = "plain, lm-eval's wording" if plain else "chat"
    if plain and config.task in ("stsb", "axb", "axg"):
        wording = "plain, own wording"
    classes = len(spec.words) or len(spec.labels)
    return Task(
        items=items,
        judge=_judge,
        aggregate=_aggregates(config.task, spec),
        headline=spec.headline,
        capabilities={spec.headline: spec.capability},
        scores=spec.specs,
        signature=f"glue|{config.task}|{path.name}|0-shot|{wording}|total log-probability|v1",
        chance={"mcc": 0.0, "pearson": 0.0, "acc": 1 / classes if classes else None}.get(spec.headline),
        notes=(f"{unlabelled} rows without an agreed label are left out",) if unlabelled else (),
    )


def _posed(task: str, spec: GlueTask, row: Row) -> Iterator[tuple[str, Posed, Any]]:
    """(suffix of the id, the row in words, what is right): one for most rows, several for MultiRC and ReCoRD."""
    if task == "multirc" and isinstance(row.value.get("passage"), dict):
        yield from _multirc(spec, row)
        return
    if task == "record":
        yield from _record(row)
        return
    fields = _fields(spec, _flat_wsc(row) if task == "wsc" else row)
    gold = _label(spec, row, task)
    if fields is None or gold is None:
        return
    if task == "copa" and fields["question"] not in ("cause", "effect"):
        row.bad(f"'question' is {fields['question']!r}", "'cause' or 'effect' is expected")
        return
    about: dict[str, Any] = {}
    if task == "axg":  # the same sentence stands twice, once with her and once with him
        about["pair"] = (row.number - 1) // 2
    if task == "multirc":
        about["question"] = f"{fields['passage'][:80]}|{fields['question']}"
    posed = spec.posed(fields)
    yield "", Posed(posed.text, posed.chat, posed.words, posed.question, about), gold


def _fields(spec: GlueTask, row: Row) -> dict[str, str] | None:
    """Every field of the wording, in whichever of its columns it stands."""
    found = {}
    for name, columns in spec.columns.items():
        column = next((c for c in columns if c in row), columns[0])
        found[name] = row.text(column)
    return None if None in found.values() else {name: str(value) for name, value in found.items()}


def _label(spec: GlueTask, row: Row, task: str) -> int | float | None:
    """The number of the row's label (STS-B: its score). None, and noted, when there is none."""
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


def _flat_wsc(row: Row) -> Row:
    target = row.value.get("target")
    return row.with_values(target) if isinstance(target, dict) else row


def _multirc(spec: GlueTask, row: Row) -> Iterator[tuple[str, Posed, Any]]:
    """SuperGLUE's nested rows: a passage, its questions, their answers."""
    try:
        passage = str(row.value["passage"]["text"])
        asked = [
            (q, a, str(question["question"]), str(answer["text"]), int(answer["label"]))
            for q, question in enumerate(row.value["passage"]["questions"])
            for a, answer in enumerate(question["answers"])
        ]
    except (KeyError, TypeError, ValueError) as error:
        row.bad(f"passage.questions[].answers[] of {{text, label}} are expected: {error!r}", "test files have no label")
        return
    for q, a, question, answer, label in asked:
        posed = spec.posed({"passage": passage, "question": question, "answer": answer})
        about = {"question": f"{row.location}.{q}"}
        yield f".{q}.{a}", Posed(posed.text, posed.chat, posed.words, posed.question, about), label


def _record(row: Row) -> Iterator[tuple[str, Posed, Any]]:
    """SuperGLUE's rows: a passage with its entities, and sentences with a gap that one of them fills."""
    try:
        passage = str(row.value["passage"]["text"])
        spans = [(int(e["start"]), int(e["end"]) + 1) for e in row.value["passage"]["entities"]]
        asked = [(str(q["query"]), [str(a["text"]) for a in q["answers"]]) for q in row.value["qas"]]
    except (KeyError, TypeError, ValueError) as error:
        cause = f"passage {{text, entities}} and qas of {{query, answers}} are expected: {error!r}"
        row.bad(cause, "test files have no answers")
        return
    entities = tuple(sorted({passage[a:b] for a, b in spans}))
    text = record_text(passage)
    first = passage.strip().split("\n@highlight\n")[0]
    for q, (query, answers) in enumerate(asked):
        about = {"entities": list(entities), "answers": answers}
        words = tuple(f"  - {query.replace('@placeholder', one)}" for one in entities)
        chat = f"{text}\n{query}\n\nWhich name stands for @placeholder? Answer with the name only."
        yield f".{q}", Posed(text, chat, words, first, about), answers


def _judge(item: Item, replies: Sequence[Reply]) -> Sample:
    from posttrain.data.metrics import reading as metrics

    doc, gold = item.doc, item.doc["gold"]
    words = doc["words"]
    choice = chosen(replies, words)
    extra: dict[str, Any] = {"shares": [round(share, 6) for share in choice.shares]}
    scores: dict[str, float]
    correct: bool | None
    if doc["task"] == "stsb":
        said = sum(share * number for number, share in enumerate(choice.shares))
        scores, correct = {"squared_error": (said - gold) ** 2}, None
        extra |= {"said": said, "gold": gold}
        answer, target = f"{said:.2f}", f"{gold:g}"
    elif doc["task"] == "record":
        answer, target = doc["entities"][choice.best], doc["answers"][0] if gold else ""
        scores = {"em": metrics.exact_match(answer, gold), "f1": metrics.f1_squad(answer, gold)}
        correct = scores["em"] == 1.0
    else:
        correct = choice.best == gold
        scores = {"acc": float(correct)}
        extra |= {"said": choice.best, "gold": gold}
        answer, target = words[choice.best], words[gold]
    extra |= {key: doc[key] for key in ("question", "pair") if key in doc}
    return item.sample(
        answer,
        target,
        scores,
        correct=correct,
        choices=None if correct is None else len(words),
        confidence=None if correct is None else max(choice.shares),
        extra=extra,
    )


# ---- scores of all samples together ------------------------------------------------------------------------------


def _aggregates(task: str, spec: GlueTask) -> Callable[[Sequence[Sample]], dict[str, Score]]:
    def aggregate(samples: Sequence[Sample]) -> dict[str, Score]:
        made = averages(samples)
        made.update((name, _over_all(name, samples, len(spec.labels))) for name in spec.scores if name not in made)
        return made

    return aggregate


def _over_all(name: str, samples: Sequence[Sample], labels: int) -> Score:
    from posttrain.data.metrics import classify

    if name in ("em", "parity"):
        return _all_or_none(samples, "question" if name == "em" else "pair")
    said, gold = [s.extra["said"] for s in samples], [s.extra["gold"] for s in samples]
    if name in ("pearson", "spearman"):
        value = (classify.pearson if name == "pearson" else classify.spearman)(said, gold)
        return Score(value, _pearson_interval(said, gold) if name == "pearson" else None, len(samples))
    metric: Callable[[Sequence[int], Sequence[int]], float] = {
        "f1": classify.f1_binary,
        "f1a": classify.f1_binary,
        "macro_f1": classify.macro_f1,
        "mcc": classify.matthews,
    }[name]
    return Score(metric(said, gold), _interval(name, said, gold), len(samples))


def _all_or_none(samples: Sequence[Sample], key: str) -> Score:
    """MultiRC's exact match: the share of questions with every answer right. AX-g's parity: the share of pairs (the
    same sentence with her and with him) that were answered alike.
    """
    groups: dict[Any, list[Sample]] = {}
    for s in samples:
        groups.setdefault(s.extra[key], []).append(s)
    if key == "question":
        return mean_score([float(all(s.correct for s in own)) for own in groups.values()])
    pairs = [own for own in groups.values() if len(own) == 2]  # a limit may leave one alone
    return mean_score([float(a.extra["said"] == b.extra["said"]) for a, b in pairs]) if pairs else Score(0.0, None, 0)


def _interval(name: str, said: Sequence[int], gold: Sequence[int]) -> Interval | None:
    """Percentile bootstrap over samples. The score depends on the table of (said, gold) only, so tables are drawn."""
    n, size = len(said), 1 + max(*said, *gold)
    if n < 2:
        return None
    table = np.zeros((size, size))
    np.add.at(table, (np.asarray(said), np.asarray(gold)), 1)
    drawn = np.random.default_rng(0).multinomial(n, table.ravel() / n, size=RESAMPLES)  # (R, K * K)
    low, high = np.percentile(of_tables(name, drawn.reshape(RESAMPLES, size, size)), [2.5, 97.5])
    return Interval(float(low), float(high))


def of_tables(name: str, tables: np.ndarray) -> np.ndarray:
    """The score of each table of counts (R, said, gold), as `data/metrics/classify.py` has it of the labels."""
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


def _pearson_interval(said: Sequence[float], gold: Sequence[float]) -> Interval | None:
    x, y = np.asarray(said, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if len(x) < 3:
        return None
    drawn = np.random.default_rng(0).integers(0, len(x), size=(RESAMPLES, len(x)))
    a, b = x[drawn] - x[drawn].mean(1, keepdims=True), y[drawn] - y[drawn].mean(1, keepdims=True)
    spread = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    values = np.where(spread > 0, (a * b).sum(1) / np.where(spread > 0, spread, 1.0), 0.0)
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(low), float(high))
