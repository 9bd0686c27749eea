"""What lm-eval does before and after the model's answers, which takes a while and is silent: every question is written
out with its examples, every answer is judged, scores are computed with their bootstraps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from posttrain.models.meter import Meter

__all__ = ["counted_stages"]

WATCHED = ("build_all_requests", "construct_requests", "process_results", "aggregation")
"""Methods of lm-eval's `Task` (0.4.13) by whose calls the stages are told."""
KEPT = "answers that --output keeps stay, the same command goes on from them"


@contextmanager
def counted_stages(tasks: Mapping[str, Any], limit: int | None, rank: int = 0, processes: int = 1) -> Iterator[None]:
    """While lm-eval evaluates these tasks, its own work is counted by Meters."""
    asked = {name: len(range(rank, _asked(task, limit), processes)) for name, task in tasks.items()}
    answers = sum(asked[name] * max(len(task.config.filter_list or ()), 1) for name, task in tasks.items())
    writing = Meter("writing out the questions of lm-eval", sum(asked.values()), "questions", kept=KEPT)
    judging = Meter("judging the answers", answers, "answers", kept=KEPT)
    scoring = Meter("computing the scores", len(tasks), "tasks", kept=KEPT)
    with ExitStack() as restored, ExitStack() as stage:
        now: Meter | None = None
        left = len(tasks)

        def count(meter: Meter) -> None:
            """One more begins: those before it are done."""
            nonlocal now
            if now is meter:
                meter.more(1)
            else:
                stage.close()
                meter.again()
                now = stage.enter_context(meter)

        def watch(task: Any) -> None:
            own = {name: vars(task)[name] for name in WATCHED if name in vars(task)}
            restored.callback(vars(task).update, own)
            for name in WATCHED:
                restored.callback(vars(task).pop, name, None)
            build, construct = task.build_all_requests, task.construct_requests
            process, aggregation = task.process_results, task.aggregation
            scored = False

            def build_all_requests(**settings: Any) -> None:
                nonlocal left
                build(**settings)
                left -= 1
                if not left:  # what the model then does is told of by its own count
                    stage.close()

            def construct_requests(*arguments: Any, **settings: Any) -> Any:
                count(writing)
                return construct(*arguments, **settings)

            def process_results(*arguments: Any, **settings: Any) -> Any:
                count(judging)
                return process(*arguments, **settings)

            def aggregated() -> Any:
                nonlocal scored
                if not scored:
                    count(scoring)
                scored = True
                return aggregation()

            vars(task).update(
                build_all_requests=build_all_requests,
                construct_requests=construct_requests,
                process_results=process_results,
                aggregation=aggregated,
            )

        for task in tasks.values():
            watch(task)
        yield


def _asked(task: Any, limit: int | None) -> int:
    """Documents of a task that are asked."""
    there = len(task.eval_docs)
    return there if limit is None else min(limit, there)
