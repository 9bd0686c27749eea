"""Taking lm-eval's tasks with `PosttrainLM`, and lm-eval's results as posttrain's: scores, intervals, samples."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from posttrain.exams.lm_eval import PosttrainLM
from posttrain.exams.lm_eval_stages import counted_stages
from posttrain.exams.lm_eval_tasks import Loaded
from posttrain.exams.running import TaskResult
from posttrain.exams.statistics import Interval
from posttrain.exams.task import Sample, Score, mean_score
from posttrain.models.memory import peak_gib

__all__ = ["Evaluated", "evaluate_tasks"]

BOOTSTRAPS = 1000
"""Resamples for the standard errors that lm-eval has no formula for; its own 100,000 take minutes."""
SEEDS = (0, 1234, 1234, 1234)
"""random, NumPy, torch and few-shot, as lm-eval's own defaults."""
HEADLINES = ("acc", "exact_match", "acc_norm", "f1", "word_perplexity", "perplexity")
"""The first of these that a task has stands for it."""


class Evaluated(dict[str, TaskResult]):
    """Results by task, groups after the tasks; `raw`: lm-eval's own document without samples."""

    raw: dict[str, Any]


def evaluate_tasks(
    lm: PosttrainLM,
    loaded: Loaded,
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    fewshot_as_multiturn: bool = True,
    system_instruction: str | None = None,
    gen_kwargs: str | None = None,
) -> Evaluated | None:
    """Every task of `loaded` put to the model; None in the processes of torchrun that are not the first.

    What `lm_eval.simple_evaluate` does, without its report on the machine, which takes seconds.
    """
    from lm_eval.evaluator import evaluate

    start = time.perf_counter()
    before = asdict(lm.usage)
    _configure(loaded, num_fewshot, gen_kwargs)
    random.seed(SEEDS[0])
    np.random.seed(SEEDS[1])
    torch.manual_seed(SEEDS[2])
    with counted_stages(loaded["tasks"], limit, lm.rank, lm.world_size):
        raw = evaluate(
            lm=lm,
            task_dict=loaded,
            limit=limit,
            bootstrap_iters=BOOTSTRAPS,
            log_samples=True,
            system_instruction=system_instruction,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=fewshot_as_multiturn,
        )
    spent = {k: v - before[k] for k, v in asdict(lm.usage).items() if not isinstance(v, str)}
    everywhere = lm.gather_object(spent)
    if raw is None or everywhere is None:
        return None
    cost = {key: float(sum(part[key] for part in everywhere)) for key in spent}
    cost["wall_s"] = time.perf_counter() - start
    cost["forwarded_tokens"] = cost["scored_tokens"] + cost["prompt_tokens"]
    cost["peak_gib"] = peak_gib()
    settings = f"template:{'chat' if apply_chat_template else 'none'}"
    found = Evaluated()
    for name, task in loaded["tasks"].items():
        found[name] = _result(name, task, raw, settings)
    for name in loaded.get("groups", {}):
        if name in raw["results"]:
            found[name] = _group(name, raw, settings)
    found.raw = {key: value for key, value in raw.items() if key != "samples"} | {"cost": cost}
    return found


def _configure(loaded: Loaded, num_fewshot: int | None, gen_kwargs: str | None) -> None:
    """The overrides of `lm_eval.simple_evaluate`: a task that says 0 examples keeps 0."""
    from lm_eval.utils import simple_parse_args_string

    given = simple_parse_args_string(gen_kwargs) if gen_kwargs else None
    for task in loaded["tasks"].values():
        if given and task.get_config("output_type") == "generate_until":
            task.set_config(key="generation_kwargs", value=given, update=True)
        own = task.get_config("num_fewshot")
        if own is None or (num_fewshot is not None and own != 0):
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=SEEDS[3])


# ---- results ---------------------------------------------------------------------------------------------------------


def _metrics(row: Mapping[str, Any]) -> dict[str, tuple[str, str, float, float | None]]:
    """Score name -> (metric, filter, value, standard error): the name has the filter only where it is one."""
    found = {}
    for key, value in row.items():
        metric, comma, filtered = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = row.get(f"{metric}_stderr,{filtered}")
            name = metric if filtered == "none" else key
            found[name] = (metric, filtered, float(value), error if isinstance(error, int | float) else None)
    return found


def _result(name: str, task: Any, raw: Mapping[str, Any], settings: str) -> TaskResult:
    metrics = _metrics(raw["results"][name])
    logged = raw["samples"][name]
    scores: dict[str, Score] = {}
    for score, (metric, filtered, value, error) in metrics.items():
        values = [s[metric] for s in logged if s["filter"] == filtered and metric in s]
        scores[score] = _score(values, value, error)
    kind = str(task.get_config("output_type"))
    samples = _samples(task, kind, metrics, logged)
    choices = [s.choices for s in samples if s.choices]
    headline = _headline(metrics)
    better = raw.get("higher_is_better", {}).get(name, {}).get(metrics[headline][0] if headline else "", True)
    return TaskResult(
        task=name,
        scores={key: score.value for key, score in scores.items()},
        ci95={key: score.ci95 for key, score in scores.items() if score.ci95},
        n={key: score.n for key, score in scores.items()},
        samples=samples,
        cost={},
        notes=[],
        headline=headline,
        capabilities={},
        signature=f"{_version(name, raw)}|shots:{raw['n-shot'].get(name)}|{settings}",
        chance=sum(1 / k for k in choices) / len(choices) if choices and headline.startswith("acc") else None,
        higher_is_better=better is not False,
    )


def _group(name: str, raw: Mapping[str, Any], settings: str) -> TaskResult:
    """A group's averages have lm-eval's standard error and no samples of their own."""
    row = raw["results"][name]
    metrics = _metrics(row)
    n = int(row.get("sample_len", 0))
    found = {score: Score(value, _around(value, error), n) for score, (_, _, value, error) in metrics.items()}
    return TaskResult(
        task=name,
        scores={key: score.value for key, score in found.items()},
        ci95={key: score.ci95 for key, score in found.items() if score.ci95},
        n={key: score.n for key, score in found.items()},
        samples=[],
        cost={},
        notes=[],
        headline=_headline(metrics),
        capabilities={},
        signature=f"{_version(name, raw)}|{settings}",
        chance=None,
    )


def _version(name: str, raw: Mapping[str, Any]) -> str:
    """The task, its version where its YAML has one, and lm-eval's."""
    own = raw["versions"].get(name)
    return f"lm-eval:{version('lm_eval')}|task:{name}" + (f"|version:{own}" if own not in (None, "Yaml") else "")


def _headline(metrics: Mapping[str, Any]) -> str:
    by_metric = {metric: score for score, (metric, *_) in reversed(list(metrics.items()))}
    return next((by_metric[m] for m in HEADLINES if m in by_metric), next(iter(metrics), ""))


def _score(values: Sequence[Any], value: float, error: float | None) -> Score:
    """Wilson or the bootstrap where the score is the samples' mean, else lm-eval's standard error."""
    numbers = [float(v) for v in values if isinstance(v, int | float)]
    if numbers and len(numbers) == len(values):
        mean = mean_score(numbers)
        if math.isclose(mean.value, value, rel_tol=1e-9, abs_tol=1e-12):
            return mean
    return Score(value, _around(value, error), len(values))


def _around(value: float, error: float | None) -> Interval | None:
    if error is None or not math.isfinite(error):
        return None
    return Interval(value - 1.959964 * error, value + 1.959964 * error)


# ---- samples ---------------------------------------------------------------------------------------------------------


def _samples(task: Any, kind: str, metrics: Mapping[str, Any], logged: Sequence[Mapping[str, Any]]) -> list[Sample]:
    """One per document, in order; a task with several filters has their scores on one sample."""
    documents: dict[int, list[Mapping[str, Any]]] = {}
    for row in logged:
        documents.setdefault(row["doc_id"], []).append(row)
    return [_sample(task, kind, metrics, documents[i]) for i in sorted(documents)]


def _sample(task: Any, kind: str, metrics: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Sample:
    row, doc = rows[0], rows[0]["doc"]
    scores = {
        name: float(each[metric])
        for name, (metric, filtered, *_) in metrics.items()
        for each in rows
        if each["filter"] == filtered and isinstance(each.get(metric), int | float)
    }
    judged = scores.get(_headline(metrics))
    answer, target, choices, confidence = _said(task, kind, row)
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
            "doc": _plain(doc),
            "responses": _plain(row["resps"]),
            "filtered": {each["filter"]: _plain(each["filtered_resps"]) for each in rows},
            "prompt_hash": row["prompt_hash"],
        },
    )


def _said(task: Any, kind: str, row: Mapping[str, Any]) -> tuple[str, str, int | None, float | None]:
    """What was chosen or said, what was wanted, how many choices, and the probability given to the choice."""
    target = row["target"]
    if kind == "multiple_choice":
        names = [str(choice) for choice in task.doc_to_choice(row["doc"])]
        nats = [float(resps[0][0]) for resps in row["resps"]][: len(names)]
        best = max(range(len(nats)), key=nats.__getitem__)
        confidence = 1 / sum(math.exp(each - nats[best]) for each in nats) if math.isfinite(nats[best]) else None
        named = isinstance(target, int) and 0 <= target < len(names)
        return names[best], names[target] if named else str(target), len(names), confidence
    if kind == "generate_until":
        said = row["filtered_resps"][0]
        return str(said[0] if isinstance(said, list) and said else said), str(target), None, None
    return "", str(target), None, None


def _plain(value: Any) -> Any:
    """As JSON has it; what JSON has not, as text."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
