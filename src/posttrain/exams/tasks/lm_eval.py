"""Tasks and groups of lm-eval (the extra `lm-eval`), on posttrain's scorer: same requests, same answers.

A folder gets the samples of each task (`exams/<task>.jsonl`), lm-eval's own document (`<exam>.json`), and
`responses.jsonl`. The latter holds every response as soon as it arrives, so that a second start does not ask again.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field

from posttrain.config.change import Change
from posttrain.errors import ConfigError, Problem
from posttrain.exams.exam import Exam, Part, Sitting
from posttrain.exams.exam_config import ExamConfig
from posttrain.exams.lm_eval_results import group_info, group_result, items_of, plain, task_info, task_result
from posttrain.exams.results import ExamInfo, write_json
from posttrain.exams.running import TaskProgress, TaskResult
from posttrain.exams.sample_log import SampleKey, write_samples
from posttrain.exams.task import Task, content_id
from posttrain.inference.protocol import Respondent
from posttrain.inference.respondents import ModelRespondent, PromptedRespondent
from posttrain.models.disk import safe_name
from posttrain.models.memory import peak_gib
from posttrain.models.meter import KNOWN
from posttrain.registry import register

if TYPE_CHECKING:  # the imported module needs the extra `lm-eval`
    from posttrain.exams.lm_eval import PosttrainLM

__all__ = ["LmEvalConfig", "LmEvalExam", "go_offline"]

_logger = logging.getLogger(__name__)

BOOTSTRAPS = 1000
"""Resamples for the standard errors for which lm-eval has no formula. lm-eval's own 100,000 take minutes."""
SEEDS = (0, 1234, 1234, 1234)
"""Seeds of `random`, NumPy, torch and the few-shot examples: lm-eval's own defaults."""
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE")
"""Environment variables that forbid downloads."""


def _listed(value: Any) -> Any:
    """Return a single text as a tuple of one, and anything else as it is."""
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_listed, json_schema_input_type=str | tuple[str, ...])]


class LmEvalConfig(ExamConfig):
    """Tasks of lm-eval by name, each an exam of its own in results."""

    kind: Literal["lm_eval"] = "lm_eval"
    """lm-eval's tasks."""
    name: str = ""
    """What the task is called in tables and score keys, its own name when left out; of several, what stands before."""
    tasks: Names = Field(min_length=1)
    """Tasks, groups, tags, globs (`mmlu_*`) or YAML files."""
    include_path: Names = ()
    """Folders of task files, looked at before lm-eval's own."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """So many examples instead of the task's number; a task that says 0 keeps 0."""
    apply_chat_template: bool = False
    """Put questions as a user of the model's chat template."""
    fewshot_as_multiturn: bool = True
    """With a template, examples are earlier turns; false: all in one turn."""
    system_instruction: str | None = None
    """Stands before every question."""
    gen_kwargs: str | None = None
    """Settings of generation, `K=V,...`, over the task's own."""
    limit: int | None = Field(default=None, gt=0)
    """Only the first so many questions of each task, to try things out."""


def go_offline(*, download: bool) -> None:
    """Forbid the libraries of Hugging Face to download anything, or permit it when `download` is true."""
    for name in OFFLINE:
        if download:
            os.environ.pop(name, None)
        else:
            os.environ[name] = "1"
    for module in ("huggingface_hub.constants", "datasets.config"):
        if module in sys.modules:
            vars(sys.modules[module])["HF_HUB_OFFLINE"] = not download


@register("exam", "lm_eval", config=LmEvalConfig)
class LmEvalExam(Exam):
    """Tasks and groups of lm-eval, which are asked together. Each of them is an exam in results.json."""

    config: LmEvalConfig

    def __init__(self, config: LmEvalConfig, base: Path) -> None:
        """Load the tasks. Raise the errors of `load_tasks`, and ConfigError for tasks that run code of the model."""
        from posttrain.exams.lm_eval_tasks import load_tasks

        self.config = config
        _hush()
        self.loaded = load_tasks(config.tasks, [base / one for one in config.include_path], say=_logger.warning)
        tasks = self.loaded["tasks"]
        unsafe = [name for name, task in tasks.items() if task.config.unsafe_code]
        if unsafe:
            cause = "runs code that the model writes, which posttrain does not do"
            raise ConfigError(*(Problem(name, cause, "use lm-eval itself, in a sandbox") for name in unsafe))
        for task in tasks.values():
            self._configure(task)
        self.docs = {name: [doc for _, doc in task.doc_iterator(limit=config.limit)] for name, task in tasks.items()}
        self.infos = {name: task_info(self._head(name), task, self.docs[name]) for name, task in tasks.items()}
        for name, group in self.loaded.get("groups", {}).items():
            members = [self.infos[task.task_name] for task in group.get_all_tasks()]
            if group.aggregate_metric_list:
                self.infos[name] = group_info(self._head(name), group, members)

    def _head(self, name: str) -> ExamInfo:
        """Return the information on a task or group that does not come from lm-eval: its name, role and template."""
        own, template = self.config.name, "chat" if self.config.apply_chat_template else "none"
        called = name if not own else own if len(self.loaded["tasks"]) == 1 else f"{own}-{name}"
        return ExamInfo(name=called, kind="lm_eval", role=self.config.role, signature=f"template:{template}")

    def _configure(self, task: Any) -> None:
        """Apply the config to a task as `lm_eval.simple_evaluate` does: a task that says 0 examples keeps 0."""
        from lm_eval.utils import simple_parse_args_string

        shots, own = self.config.num_fewshot, task.get_config("num_fewshot")
        if self.config.gen_kwargs and task.get_config("output_type") == "generate_until":
            given = simple_parse_args_string(self.config.gen_kwargs)
            task.set_config(key="generation_kwargs", value=given, update=True)
        if own is None or (shots is not None and own != 0):
            task.set_config(key="num_fewshot", value=shots or 0)
        task.set_fewshot_seed(seed=SEEDS[3])

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Return every task with its questions, and every group, which has no questions of its own."""
        tasks = self.loaded["tasks"]
        return tuple(
            Part(info, items_of(tasks[name], self.docs[name]) if name in tasks else ())
            for name, info in self.infos.items()
        )

    @cached_property
    def fingerprint(self) -> str:
        """Return the hash of the config (without name and role), of every task as configured, and of its questions."""
        configured = [[task.dump_config(), self.docs[name]] for name, task in self.loaded["tasks"].items()]
        return content_id(self.config.model_dump(mode="json", exclude={"name", "role"}), configured)

    def tasks(self, changes: Sequence[Change]) -> list[Task[Any]]:
        """Return no tasks, because lm-eval asks in its own way."""
        return []

    def take(self, sitting: Sitting) -> list[TaskResult[Any]]:
        """Run lm-eval's evaluation and return a result for each task and group. Under torchrun only the first process
        returns results. Raise ConfigError when the respondent is not a model on this machine.
        """
        from posttrain.exams.lm_eval import PosttrainLM, join_world

        join_world()
        respondent, told = _told(sitting.respondent)
        folder = sitting.folder
        if sitting.restart and folder is not None:
            for path in folder.glob("responses*.jsonl"):
                path.unlink()
        lm = PosttrainLM(
            respondent,
            batch_tokens=respondent.batch_tokens,
            responses=folder / "responses.jsonl" if folder else None,
            discard=sitting.discard,
            say=sitting.say,
        )
        there = len(lm.kept.found)
        lm.on_progress = _progress(lm, sitting.telling(next(iter(self.infos.values())).name))
        raw, cost = self._evaluated(lm, told)
        if raw is None:
            return []
        found: list[TaskResult[Any]] = []
        for name, info in self.infos.items():
            # all are asked together: the first result holds the cost of all
            own = cost if not found else dict.fromkeys(cost, 0.0)
            if name in self.loaded["tasks"]:
                found.append(task_result(info, self.loaded["tasks"][name], raw, own))
            elif name in raw["results"]:
                found.append(group_result(info, raw["results"][name], own))
        if there:
            sitting.say(f"{there:,} response{' was' if there == 1 else 's were'} there")
        if folder is not None:
            document = {key: value for key, value in raw.items() if key != "samples"} | {"cost": cost}
            write_json(folder / f"{safe_name(self.name)}.json", plain(document))
        for one in found:
            file = sitting.file(one.info.name)
            if file is not None and one.samples:
                settings = content_id(one.info.signature, self.fingerprint)
                write_samples(file, one.samples, SampleKey(lm.kept.key, settings, ""))
        sitting.done(sitting.respondent, found)
        return found

    def _evaluated(self, lm: PosttrainLM, told: str) -> tuple[dict[str, Any] | None, dict[str, float]]:
        """Evaluate as `lm_eval.simple_evaluate` does, and return (results, cost); the results may be None (see `take`).

        The report on the machine is left out, because it takes seconds. cost: tokens and seconds, summed over the
        processes, `wall_s` (seconds) and `peak_gib` (GiB)."""
        from lm_eval.evaluator import evaluate

        from posttrain.exams.lm_eval_tasks import counted_stages

        config, start, before = self.config, time.perf_counter(), asdict(lm.usage)
        random.seed(SEEDS[0])
        np.random.seed(SEEDS[1])
        torch.manual_seed(SEEDS[2])
        with _silent(), counted_stages(self.loaded["tasks"], config.limit, lm.rank, lm.world_size):
            raw = evaluate(
                lm=lm,
                task_dict=self.loaded,
                limit=config.limit,
                bootstrap_iters=BOOTSTRAPS,
                log_samples=True,
                system_instruction="\n\n".join(one for one in (told, config.system_instruction) if one) or None,
                apply_chat_template=config.apply_chat_template,
                fewshot_as_multiturn=config.fewshot_as_multiturn,
            )
        spent = {k: v - before[k] for k, v in asdict(lm.usage).items() if not isinstance(v, str)}
        everywhere = lm.gather_object(spent) or []
        cost = {key: float(sum(part[key] for part in everywhere)) for key in spent}
        cost["wall_s"] = time.perf_counter() - start
        cost["forwarded_tokens"] = cost["scored_tokens"] + cost["prompt_tokens"]
        cost["peak_gib"] = peak_gib()
        return raw, cost


def _told(respondent: Respondent) -> tuple[ModelRespondent, str]:
    """Return the model behind a respondent, and the text that goes before every question ('' without one). Raise
    ConfigError for a respondent that is not a model on this machine."""
    told = ""
    if isinstance(respondent, PromptedRespondent):
        told, respondent = respondent.text, respondent.inner
    if not isinstance(respondent, ModelRespondent):
        mend = "lm-eval itself has backends for servers; --exam takes any respondent"
        raise ConfigError(Problem(respondent.name, "--tasks needs a model on this machine", mend))
    return respondent, told


def _progress(lm: PosttrainLM, tell: Callable[[TaskProgress], None]) -> Callable[[str, int, int], None]:
    """Return a function that reports the progress of lm-eval's requests to `tell`. lm-eval sends one kind of request
    after another (scores, texts, answers), so the progress and the remaining time are those of the kind that runs."""
    began = time.perf_counter()
    # kind -> its start in seconds, and how many of its requests were done then
    kinds: dict[str, tuple[float, int]] = {}

    def told(kind: str, done: int, total: int) -> None:
        now, usage = time.perf_counter(), lm.usage
        since, there = kinds.setdefault(kind, (now, done))
        new = done - there
        known = new >= max(1, KNOWN * (total - there))  # the first ones arrive all at once, so their rate says nothing
        left_s = (now - since) * (total - done) / new if known else None
        tokens = usage.scored_tokens + usage.prompt_tokens + usage.generated_tokens
        tell(TaskProgress(done, total, now - began, tokens, left_s))

    return told


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Suppress lm-eval's progress bars, since we show our own, and its output on stdout, which --json needs."""
    with contextlib.ExitStack() as restored:
        for module in map(import_module, ("tqdm", "lm_eval.api.model", "lm_eval.api.task")):
            restored.callback(vars(module).update, tqdm=module.tqdm)
            vars(module).update(tqdm=lambda items, *_, **__: items)
        restored.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield


def _hush() -> None:
    """Suppress lm-eval's log (hundreds of lines about defaults) and the bars of `datasets`; errors are still shown."""
    from datasets import disable_progress_bars

    disable_progress_bars()
    for name in ("lm_eval", "datasets", "transformers.tokenization_utils_base"):
        logging.getLogger(name).setLevel(logging.ERROR)
