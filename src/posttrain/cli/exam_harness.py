"""lm-eval's tasks in `posttrain exam --tasks`: offline, with progress, every response on the disk as it comes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.cli.exam_output import compared_results, cost_line, print_results, results_document, shown
from posttrain.cli.options import debug, talk
from posttrain.errors import ConfigError, PosttrainError, Problem
from posttrain.models.meter import KNOWN
from posttrain.studies.config import safe_name

if TYPE_CHECKING:
    from posttrain.exams.lm_eval import PosttrainLM
    from posttrain.exams.lm_eval_results import Evaluated
    from posttrain.exams.lm_eval_tasks import Loaded
    from posttrain.exams.running import TaskProgress
    from posttrain.inference.protocol import Respondent

__all__ = ["exam_harness", "go_offline"]

OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE")


def go_offline(*, download: bool) -> None:
    """Before anything of Hugging Face is imported: nothing is fetched unless asked, and no bars beside ours."""
    for name in OFFLINE:
        if download:
            os.environ.pop(name, None)
        else:
            os.environ[name] = "1"
    if not debug():
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("LMEVAL_LOG_LEVEL", "ERROR")


def exam_harness(
    model: str,
    load: Callable[[str], Respondent],
    *,
    tasks: str,
    include_path: Sequence[Path] = (),
    before: str | None = None,
    output: Path | None = None,
    table: bool = True,
    by_group: bool = False,
    taken: Collection[str] = (),
    restart: bool = False,
    **settings: Any,
) -> dict[str, Any] | None:
    """Put lm-eval's tasks to the model (and to the model before); the document of results.json.

    tasks: names with commas between; taken: names of exams that this command has taken already, whose samples would be
    overwritten; settings: of `exams.lm_eval_results.evaluate_tasks`. None in the processes of
    torchrun that are not the first.
    """
    from posttrain.exams.lm_eval import join_world
    from posttrain.exams.lm_eval_tasks import load_tasks

    _hush()
    join_world()  # under torchrun, before a model chooses its GPU
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise ConfigError(Problem(f"--tasks {tasks!r}", "no task is named", "posttrain exam MODEL --tasks NAME,NAME"))
    loaded = load_tasks(names, include_path, say=talk)
    unsafe = [name for name, task in loaded["tasks"].items() if task.config.unsafe_code]
    if unsafe:
        cause = "runs code that the model writes, which posttrain does not do"
        raise ConfigError(*(Problem(name, cause, "use lm-eval itself, in a sandbox") for name in unsafe))
    both = [name for name in loaded["tasks"] if safe_name(name) in {safe_name(one) for one in taken}]
    if both:
        mend = "give the one of --exams a `name` of its own, or take them in two commands with two --output"
        raise ConfigError(*(Problem(f"--tasks {name}", "an exam of --exam is called so too", mend) for name in both))
    talk(f"lm-eval: {len(loaded['tasks'])} task{'' if len(loaded['tasks']) == 1 else 's'}")
    runs: dict[str, Evaluated] = {}
    respondents = {name: load(name) for name in dict.fromkeys((model, before)) if name}
    for name in dict.fromkeys([before, model] if before else [model]):
        assert name is not None
        folder = None if output is None else output if name == model else output / "before" / safe_name(name)
        found = _run(respondents[name], loaded, folder, restart=restart, **settings)
        if found is None:
            return None
        runs[name] = found
    after, was = runs[model], runs.get(before or "")
    compared = compared_results(_with_samples(was), _with_samples(after)) if was and before != model else {}
    if table:
        print_results(model, after, before, was, compared, by_group=by_group)
    document = results_document(model, after, before, was, compared)
    document["lm_eval"] = _plain({name: run.raw for name, run in runs.items()})
    return document


def _with_samples(results: Evaluated) -> dict[str, Any]:
    """The tasks; a group's averages are those of its tasks."""
    return {name: result for name, result in results.items() if result.samples}


def _run(
    respondent: Respondent, loaded: Loaded, folder: Path | None, *, restart: bool, **settings: Any
) -> Evaluated | None:
    from posttrain.exams.lm_eval import PosttrainLM
    from posttrain.exams.lm_eval_results import evaluate_tasks
    from posttrain.exams.task import content_id
    from posttrain.exams.task_files import SampleFile, SampleKey
    from posttrain.inference.respondents import ModelRespondent

    if not isinstance(respondent, ModelRespondent):
        mend = "lm-eval itself has backends for servers; --exam takes any respondent"
        raise ConfigError(Problem(respondent.name, "--tasks needs a model on this machine", mend))
    if restart and folder:
        for path in folder.glob("responses*.jsonl"):
            path.unlink()
    lm = PosttrainLM(
        respondent,
        batch_tokens=respondent.batch_tokens,
        responses=folder / "responses.jsonl" if folder else None,
        say=talk,
    )
    if settings.get("apply_chat_template") and not lm.tokenizer.chat_template:
        raise PosttrainError(Problem(respondent.name, "has no chat template", "leave out --apply-chat-template"))
    head = f"{', '.join(list(loaded['tasks'])[:3])}{' ...' if len(loaded['tasks']) > 3 else ''} on {respondent.name}"
    earlier = len(lm.kept.found)
    with shown(head) as tell, _no_prints():
        lm.on_progress = _Meter(lm, tell)
        found = evaluate_tasks(lm, loaded, **settings)
    if found is None:
        return None
    cost = found.raw["cost"]
    for name, result in found.items():  # all tasks are asked together, so the first carries what all cost
        found[name] = replace(result, cost=cost if name == next(iter(found)) else dict.fromkeys(cost, 0.0))
        if folder and result.samples:
            key = SampleKey(lm.kept.key, content_id(result.signature, settings), "")
            keys = dict.fromkeys((sample.key for sample in result.samples), key)
            file = SampleFile(folder / "exams" / f"{safe_name(name)}.jsonl", keys, restart=True)
            file.rewrite(result.samples)
    kept = f", {earlier:,} response{' was' if earlier == 1 else 's were'} there" if earlier else ""
    talk(f"{head}: {cost_line(cost)}{kept}")
    return found


class _Meter:
    """lm-eval's requests as progress, of the kind that runs: scores, texts and answers come one after the other."""

    def __init__(self, lm: PosttrainLM, tell: Callable[[TaskProgress], None]) -> None:
        self.lm = lm
        self.tell = tell
        self.began = time.perf_counter()
        self.kind = ""
        self.kind_began = self.began
        self.there = 0

    def __call__(self, kind: str, done: int, total: int) -> None:
        from posttrain.exams.running import TaskProgress

        now = time.perf_counter()
        if kind != self.kind:
            self.kind, self.kind_began, self.there = kind, now, done
        usage = self.lm.usage
        tokens = usage.scored_tokens + usage.prompt_tokens + usage.generated_tokens
        new = done - self.there
        known = new >= max(1, KNOWN * (total - self.there))  # the first ones come all at once
        left_s = (now - self.kind_began) * (total - done) / new if known else None
        self.tell(TaskProgress(done, total, now - self.began, tokens, left_s))


@contextlib.contextmanager
def _no_prints() -> Iterator[None]:
    """lm-eval prints that it bootstraps, where --json has its document."""
    with contextlib.redirect_stdout(sys.stderr if debug() else io.StringIO()):
        yield


def _hush() -> None:
    """lm-eval's own talk: hundreds of lines about defaults; its errors stay."""
    import logging

    if not debug():
        for name in ("lm_eval", "datasets", "transformers.tokenization_utils_base"):
            logging.getLogger(name).setLevel(logging.ERROR)


def _plain(value: Any) -> Any:
    """What JSON can hold: functions and the like as their names, numbers that are none as null."""
    return json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)
