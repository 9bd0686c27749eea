"""The page of a folder that `posttrain exam` wrote: one model or two, and no study, method or training.

The rows of its tables are the models. Its messages do not speak of a study: where the catalogue has a message's key
also with the prefix `pair.` (two models), `single.` (one model) or `alone.` (either), that message takes its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from posttrain.reports.folder import Run
from posttrain.reports.texts import Message, known, say

__all__ = ["COSTS", "Voice", "costs", "intro", "voice_of"]

COSTS: tuple[str, ...] = (
    *("wall_s", "peak_gib", "forwarded_tokens", "scored_tokens", "least_tokens", "generated_tokens"),
    *("shared_prefixes", "plain_requests", "cost_usd"),
)
"""What the page shows of an exam's cost, where any of it was spent; the rest is in results.json."""


class Voice(NamedTuple):
    """How the page words its messages. names: arguments that every message may use."""

    prefixes: tuple[str, ...]
    names: Mapping[str, object]

    def key(self, key: str) -> str:
        """Return the key of the message that takes another's place."""
        return next((f"{prefix}{key}" for prefix in self.prefixes if known(f"{prefix}{key}")), key)

    def message(self, message: Message) -> Message:
        """Return a message in the page's wording; so are the messages among its arguments."""
        if not self.prefixes:
            return message
        args = {k: self.message(v) if isinstance(v, Message) else v for k, v in message.args.items()}
        return Message(self.key(message.key), {**self.names, **args})


def voice_of(run: Run) -> Voice:
    """Return the wording of a run's page; a study's page uses the catalogue as it is."""
    if not run.alone:
        return Voice((), {})
    names = {"before": run.before_name, "after": ", ".join(run.models)}
    return Voice(("pair." if run.before_name else "single.", "alone."), names)


def intro(run: Run, changes: Message | None) -> Message:
    """Return who took which exams. changes: how many changes were examined, None where none was."""
    names = {"before": run.before_name, "after": ", ".join(run.models)}
    exams = " · ".join(f"`{exam.name}`" for exam in run.exams)
    if changes is None:
        one = "_one" if len(run.exams) == 1 else ""
        return say(f"intro.{'pair' if run.before_name else 'single'}_exams{one}", names=exams, **names)
    what = say("intro.pair_changes", changes=changes, **names)
    return say("intro.with_exams", what=what, exams=say("intro.exam_names", names=exams)) if exams else what


def costs(run: Run) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Yield (model, its cost): the model before, then the one examined."""
    for one in run.before:
        yield one.model, one.cost
    for row in run.final:
        yield row.method, row.cost
