"""Convert lm-eval's results into posttrain's: declarations of scores, their values and intervals, and samples."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from posttrain.errors import PosttrainError, Problem
from posttrain.exams.records import Sample
from posttrain.exams.results import ExamInfo
from posttrain.exams.running import TaskResult, result_of
from posttrain.exams.score_spec import Better, ScoreSpec, Unit, find_spec
from posttrain.exams.statistics import Interval, Score
from posttrain.exams.task import Ask, Item, mean_score
from posttrain.inference.protocol import Plain

__all__ = ["group_info", "group_result", "items_of", "plain", "task_info", "task_result"]

HEADLINES = ("acc", "exact_match", "acc_norm", "f1", "word_perplexity", "perplexity")
"""The first of these metrics that a task has is its headline."""
UNITS: Mapping[str, Unit] = {
    **dict.fromkeys(("acc", "acc_norm", "acc_mutual_info", "acc_bytes", "acc_all", "exact_match", "em"), "share"),
    **dict.fromkeys(("f1", "mcc", "brier_score"), "grade"),
    **dict.fromkeys(("bleu", "chrf", "ter"), "points"),
    "bits_per_byte": "bits",
}
"""The units of lm-eval's metrics; other metrics have the unit `number`."""


# ---- what is known before --------------------------------------------------------------------------------------------


def task_info(head: ExamInfo, task: Any, docs: Sequence[Any]) -> ExamInfo:
    """Return the description of a configured task. head: what is known of it; docs: documents that are asked."""
    better: Mapping[str, bool | None] = task.higher_is_better() or {}
    sides: Mapping[bool | None, Better] = {None: "none", True: "more", False: "less"}
    specs = tuple(
        ScoreSpec(key, key, UNITS.get(metric, "number"), sides[better.get(metric)])
        for filtered in task._filters
        for metric in task.aggregation()
        for key in (metric if filtered.name == "none" else f"{metric},{filtered.name}",)
    )
    headline = _headline([spec.key for spec in specs])
    choices = [len(task.doc_to_choice(doc)) for doc in docs] if task.OUTPUT_TYPE == "multiple_choice" else []
    chance = sum(1 / k for k in choices) / len(choices) if choices and headline.startswith("acc") else None
    shots = task.get_config("num_fewshot")
    signature = f"{_version(task.task_name, task.VERSION)}|shots:{shots}|{head.signature}"
    return head.model_copy(update={"headline": headline, "signature": signature, "chance": chance, "scores": specs})


def group_info(head: ExamInfo, group: Any, members: Sequence[ExamInfo]) -> ExamInfo:
    """Return the description of a group: its scores are averages of its tasks' scores."""
    known = {spec.key: spec for one in members for spec in one.scores}
    signature = f"{_version(group.name, group.version)}|{head.signature}"
    scores = tuple(known.values())
    return head.model_copy(update={"headline": _headline(list(known)), "signature": signature, "scores": scores})


def items_of(task: Any, docs: Sequence[Any]) -> list[Item]:
    """Return what a task asks, without few-shot examples."""
    most = int((task.get_config("generation_kwargs") or {}).get("max_gen_toks") or 256)
    items = []
    for i, doc in enumerate(docs):
        prompt = Plain(str(task.doc_to_text(doc)))
        if task.OUTPUT_TYPE == "generate_until":
            asks = [Ask("say", prompt, max_new_tokens=most)]
        else:
            texts = task.doc_to_choice(doc) if task.OUTPUT_TYPE == "multiple_choice" else [task.doc_to_target(doc)]
            rolling = task.OUTPUT_TYPE == "loglikelihood_rolling"
            asks = [Ask("text" if rolling else "score", prompt, str(one)) for one in texts]
        items.append(Item(str(i), prompt.text, tuple(asks)))
    return items


def _version(name: str, own: Any) -> str:
    """Return a text with lm-eval's version, the task, and the task's version if its YAML has one."""
    return f"lm-eval:{version('lm_eval')}|task:{name}" + (f"|version:{own}" if own not in (None, "Yaml") else "")


def _headline(keys: Sequence[str]) -> str:
    by_metric = {key.partition(",")[0]: key for key in reversed(keys)}
    return next((by_metric[metric] for metric in HEADLINES if metric in by_metric), next(iter(keys), ""))


# ---- results ---------------------------------------------------------------------------------------------------------


def _metrics(row: Mapping[str, Any]) -> dict[str, tuple[str, str, float, float | None]]:
    """Return score name -> (metric, filter, value, standard error). The name has the filter unless that is `none`."""
    found = {}
    for key, value in row.items():
        metric, comma, filtered = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = row.get(f"{metric}_stderr,{filtered}")
            name = metric if filtered == "none" else key
            found[name] = (metric, filtered, float(value), error if isinstance(error, int | float) else None)
    return found


def task_result(info: ExamInfo, task: Any, raw: Mapping[str, Any], cost: dict[str, float]) -> TaskResult:
    """Return the result of a task from lm-eval's results."""
    metrics = _metrics(raw["results"][task.task_name])
    logged = raw["samples"][task.task_name]
    scores: dict[str, Score] = {}
    for score, (metric, filtered, value, error) in metrics.items():
        values = [s[metric] for s in logged if s["filter"] == filtered and metric in s]
        scores[score] = _score(value, error, len(values), values)
    documents: dict[int, list[Mapping[str, Any]]] = {}  # one sample has the scores of all filters of the task
    for row in logged:
        documents.setdefault(row["doc_id"], []).append(row)
    samples = [_sample(info.headline, task, metrics, documents[i]) for i in sorted(documents)]
    return _result(info, scores, samples, cost)


def group_result(info: ExamInfo, row: Mapping[str, Any], cost: dict[str, float]) -> TaskResult:
    """Return the result of a group: its averages have lm-eval's standard error, and it has no samples of its own."""
    n = int(row.get("sample_len", 0))
    scores = {name: _score(value, error, n) for name, (_, _, value, error) in _metrics(row).items()}
    return _result(info, scores, [], cost)


def _result(info: ExamInfo, scores: Mapping[str, Score], samples: list[Sample], cost: dict[str, float]) -> TaskResult:
    undeclared = [name for name in scores if find_spec(name, info.scores) is None]
    if undeclared:
        cause = f"the kind 'lm_eval' makes the score '{undeclared[0]}' and does not declare it"
        raise PosttrainError(Problem(f"exam {info.name}", cause, "name the metric in `metric_list` of the task"))
    return result_of(info, scores, samples, cost, [])


def _score(value: float, error: float | None, n: int, values: Sequence[Any] = ()) -> Score:
    """Return a score with its interval. Wilson's or the bootstrap's if the score is the mean of the samples, else by
    lm-eval's standard error (None without)."""
    numbers = [float(v) for v in values if isinstance(v, int | float)]
    if numbers and len(numbers) == len(values):
        mean = mean_score(numbers)
        if math.isclose(mean.value, value, rel_tol=1e-9, abs_tol=1e-12):
            return mean
    if error is None or not math.isfinite(error):
        return Score(value, None, n)
    return Score(value, Interval(value - 1.959964 * error, value + 1.959964 * error), n)


def _sample(headline: str, task: Any, metrics: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Sample:
    """Return the sample of one document. rows: what lm-eval logged about it, one row for each filter."""
    row, doc = rows[0], rows[0]["doc"]
    scores = {
        name: float(each[metric])
        for name, (metric, filtered, *_) in metrics.items()
        for each in rows
        if each["filter"] == filtered and isinstance(each.get(metric), int | float)
    }
    judged = scores.get(headline)
    answer, target, choices, confidence = _said(task, row)
    return Sample(
        id=str(row["doc_id"]),
        group="",
        question=str(task.doc_to_text(doc)),
        answer=answer,
        target=target,
        scores=scores,
        correct=bool(judged) if judged in (0.0, 1.0) else None,
        choices=choices,
        confidence=confidence,
        extra={
            "doc": plain(doc),
            "responses": plain(row["resps"]),
            "filtered": {each["filter"]: plain(each["filtered_resps"]) for each in rows},
            "prompt_hash": row["prompt_hash"],
        },
    )


def _said(task: Any, row: Mapping[str, Any]) -> tuple[str, str, int | None, float | None]:
    """Return the answer or choice, the expected one, the number of choices, and the probability given to the choice."""
    target = row["target"]
    if task.OUTPUT_TYPE == "multiple_choice":
        names = [str(choice) for choice in task.doc_to_choice(row["doc"])]
        nats = [float(resps[0][0]) for resps in row["resps"]][: len(names)]
        best = max(range(len(nats)), key=nats.__getitem__)
        confidence = 1 / sum(math.exp(each - nats[best]) for each in nats) if math.isfinite(nats[best]) else None
        named = isinstance(target, int) and 0 <= target < len(names)
        return names[best], names[target] if named else str(target), len(names), confidence
    if task.OUTPUT_TYPE == "generate_until":
        said = row["filtered_resps"][0]
        return str(said[0] if isinstance(said, list) and said else said), str(target), None, None
    return "", str(target), None, None


def plain(value: Any) -> Any:
    """Return a value as JSON represents it; what JSON cannot represent becomes text."""
    return json.loads(json.dumps(value, default=str))
