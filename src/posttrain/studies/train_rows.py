"""The rows of a study's training (targets of changes, files, the model's own answers), its progress and its cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from posttrain.config.base import Config
from posttrain.config.change import Change
from posttrain.data.chat import Encoded
from posttrain.data.lengths import with_mends
from posttrain.data.readers import DataSource, read_records
from posttrain.data.records import Conversation, Message, Record, talk_of
from posttrain.errors import DataError, Problem
from posttrain.inference.locations import located
from posttrain.inference.protocol import Prompt
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.meter import Doing, listener
from posttrain.retention.selection import prompts_collide
from posttrain.studies.candidates import CellContext
from posttrain.training.forms import form_of
from posttrain.training.forms.base import EncodeSettings
from posttrain.training.metrics import MetricsLog
from posttrain.training.progress import RunProgress

__all__ = ["Steps", "allowed_rows", "colliding", "cost_of", "encoded_rows", "rows_of", "silent_about", "target_records"]


def target_rows(changes: Sequence[Change]) -> list[Conversation]:
    """Return the changes' targets as conversations in which the answer is learned."""
    rows = []
    for change, i, target in [(each, i, one) for each in changes for i, one in enumerate(each.target)]:
        turns = (
            (Message("user", target.prompt),)
            if isinstance(target.prompt, str)
            else tuple(Message(turn.role, turn.content, train=False) for turn in target.prompt)
        )
        location = f"{change.path or change.name}: target {i + 1}"
        rows.append(Conversation((*turns, Message("assistant", target.answer[0])), location))
    return rows


LONG = "raise max_length"
"""The advice in the error for a row that is too long: a method of a study never drops or cuts rows."""


@lru_cache(maxsize=64)
def _records(source: str, changed_ns: int) -> list[Record]:
    """Return the rows of a source. They are cached, because every cell of a study needs them. source: a DataSource as
    JSON; changed_ns: the file's time of change in nanoseconds, a part of the cache key."""
    with with_mends(LONG):
        return read_records(DataSource.model_validate_json(source)).records


def rows_of(source: DataSource) -> list[Record]:
    """Return the rows of a source."""
    changed_ns = Path(source.path).stat().st_mtime_ns if source.path and Path(source.path).is_file() else 0
    return _records(source.model_dump_json(), changed_ns)


def size_on_disk(sources: Iterable[DataSource]) -> int:
    """Return the sources' size in bytes, a rough count of their characters; it is 0 for sources on the hub."""
    return sum(Path(source.path).stat().st_size for source in sources if source.path)


def colliding(source: DataSource, forbidden: frozenset[str]) -> list[Problem]:
    """Return a problem for each row of a source that asks what an exam asks."""
    talks = [talk for record in rows_of(source) if (talk := talk_of(record)) is not None]
    mend = "training on an exam's question measures nothing: take the row out of the data or the probe out of the exam"
    mend += " (may_train_on names exams that shall measure memory)"
    return [
        Problem(c.location, "this row's question is asked by the exam", mend) for c in prompts_collide(talks, forbidden)
    ]


def allowed_rows(sources: Sequence[DataSource], forbidden: frozenset[str]) -> list[Record]:
    """Return the rows of some sources. Raise DataError if a row asks what an exam of the study asks."""
    asked = [problem for source in sources for problem in colliding(source, forbidden)]
    if asked:
        raise DataError(*asked)
    return [record for source in sources for record in rows_of(source)]


def silent_about(
    changes: Sequence[Change], old: list[Encoded], tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None]
) -> list[Encoded]:
    """Return the replayed rows that do not name a target's subject; the others would teach the old answer again. Tell
    the user how many rows are left out. Raise DataError if none remain.
    """
    named = [target.subject for change in changes for target in change.target if target.subject]
    subjects = [subject.casefold() for subject in named]
    kept = [row for row in old if not any(s in tokenizer.decode(row.input_ids).casefold() for s in subjects)]
    if len(kept) < len(old):
        say(f"replay: {len(old) - len(kept)} of {len(old)} rows name the target's subject and are left out")
    if old and not kept:
        location = changes[0].path or changes[0].name
        raise DataError(Problem(location, f"every replayed row names {', '.join(named)}", "replay other rows"))
    return kept


PRESENT_TOKENS = 128
"""The longest present answer that an objective may learn to avoid, in tokens."""


def target_records(
    objective: Config, changes: Sequence[Change], before: ModelRespondent, say: Callable[[str], None]
) -> list[Record]:
    """Return the changes' targets in the form that the objective needs: the wanted answer, the present one, or both.
    before: the untouched model, which gives the present answers; say: takes a line about targets that are left out.
    """
    targets = target_rows(changes)
    if not targets:
        return []

    def present() -> list[str]:
        prompts: list[Prompt] = [target.messages[:-1] for target in targets]
        with located(lambda number: targets[number].location):
            return [answer.text for answer in before.answers(prompts, max_new_tokens=PRESENT_TOKENS)]

    made = form_of(objective).from_targets(targets, present)
    if made.skipped:
        say(
            f"{made.skipped} of {len(targets)} targets are left out: the model answers as wanted already, or not at all"
        )
    return made.records


def encoded_rows(
    objective: Config, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Any]:
    """Return the rows encoded in the form that the objective needs. max_length: the most tokens of a row."""
    with with_mends(LONG):
        rows: list[Any] = form_of(objective).encode(records, tokenizer, EncodeSettings(objective, max_length)).rows
    return rows


class Steps(RunProgress):
    """Passes training steps to the study, writes them to the cell's metrics.jsonl, and keeps notes for the cell's card.

    notes: the list that gets the lines that training says; before: the number of steps of the cell's earlier trainings;
    more: further fields of each line of metrics.jsonl.
    """

    def __init__(self, cell: CellContext, notes: list[str], *, before: int = 0, **more: str) -> None:
        self.cell = cell
        self.notes = notes
        self.before = cell.steps_before + before
        self.more = {**({"part": cell.part} if cell.part else {}), **more}
        self.metrics = MetricsLog(cell.metrics)
        self.listener = listener()
        self.steps: int | None = 0

    def say(self, text: str) -> None:
        self.notes.append(text)

    def doing(self, work: Doing) -> None:
        if self.listener is not None:
            self.listener(work)

    def start(self, first: int, steps: int | None) -> None:
        self.steps = steps
        self.metrics.take_up(self.before + first)
        if first:  # an earlier run was stopped in this cell
            self.cell.bench.say(f"{self.cell.folder.name}: training goes on after step {first} of {steps}")

    def step(self, entry: Mapping[str, Any]) -> None:
        self.metrics.add({**entry, "step": int(entry["step"]) + self.before, **self.more})
        self.cell.on_step({**entry, "steps": self.steps})


def cost_of(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the cost of some trainings from the fields of their `TrainResult`. Seconds, steps and tokens are summed;
    of peak memory (GiB) and of moved parameters and their share, the largest.
    """
    return {
        "train_s": sum(one["wall_s"] for one in results),
        "steps": float(sum(one["steps"] for one in results)),
        "tokens": float(sum(one["tokens"] for one in results)),
        "peak_gib": max(one["peak_gib"] for one in results),
        "moved": float(max(one["moved"][0] for one in results)),
        "moved_share": max(one["moved"][0] / max(one["moved"][1], 1) for one in results),
    }
