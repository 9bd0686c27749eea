"""Define penalties that measure which parameters matter: at the start for the model, at the end for the task.

At the start of a first task they measure what matters for all that the model can do, on given conversations or on the
model's own answers. At the end of a task they measure what matters for the task.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file

from posttrain.data.answers import one_answer_each
from posttrain.data.chat import IGNORED, Encoded, encode_all
from posttrain.data.readers import DataSource, read_records
from posttrain.data.records import Conversation
from posttrain.errors import ConfigError, DataError, Interrupted, PosttrainError, Problem
from posttrain.inference.decode import context_limit
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.curvature import Curvature, Example
from posttrain.models.disk import whole_file
from posttrain.models.marks import marked_part
from posttrain.models.memory import set_aside
from posttrain.models.notes import head_of_model
from posttrain.retention.penalty._base import PenaltyContext, Trainable, copies, whole
from posttrain.retention.penalty._kept import Kept, MemoryConfig, Quadratic, earlier_of, joined, leave, take_up
from posttrain.retention.replay._answers import answered, answered_once
from posttrain.retention.selection import (
    NoAnswers,
    conversations_in,
    default_cache,
    packaged_prompts,
    read_prompts,
    select,
)

T = TypeVar("T")

MAX_NEW_TOKENS = 128
"""Maximum length of own answers, equal to that of `replay: self`, so that both find the same answers in the cache."""
FORMAT = 2
"""Version of the cached measurements. A new number makes older files unused."""
CACHED_PARAMETERS = 1_000_000_000
"""Maximum number of parameters for which the measurement at the start is kept on disk, for other cells of a study."""
CACHED_BYTES = 4 * 2**30
"""Maximum bytes of all these files together. The files that were used longest ago are removed."""
COARSE_PARAMETERS = 50_000_000
"""Number of parameters from which importances are rounded to bfloat16, in memory and on disk.

Rounding changes an importance by at most 1 part in 256, while an estimate from n squares is off by one part in
sqrt(n / 2). Both copies are rounded so that a cell that measures and a cell that reads use equal importances.
"""


class MeasuredConfig(MemoryConfig):
    """The settings of penalties that measure which parameters matter."""

    data: DataSource | None = None
    """Conversations that show what shall be kept; the model's own answers to the packaged prompts when left out."""
    rows: int = Field(default=64, gt=0)
    """On how many rows it is measured at most, drawn by the seed: of `data` (or own answers) at the start, of the
    task's own rows at its end."""
    tokens: int = Field(default=8192, gt=0)
    """Of these rows, as many as have so many tokens together, but one at least."""
    hold_start: bool = True
    """In a first task, hold what the model can do before it. `false`: the first task trains freely, and only what it
    has learned is held in the next ones."""

    def files(self) -> list[str]:
        """Return the paths of the rows and of the earlier run."""
        return [*super().files(), *([self.data.path] if self.data is not None and self.data.path else [])]

    def settings(self) -> dict[str, object]:
        """Return the settings that affect a measurement, in addition to model, rows and seed."""
        return {"kind": self.kind}

    @abstractmethod
    def measure(self, context: PenaltyContext, examples: Sequence[Example]) -> Curvature:
        """Measure how much each parameter matters for these rows."""


class Measured(Quadratic):
    """A penalty that holds each parameter according to how much it matters.

    decay: None keeps the penalty of every task, each with its own centre; with a number only one importance is kept,
    decay x old + new, with the centre at the end of the last task. Raise ConfigError for a model with a head.
    """

    def __init__(
        self, config: MeasuredConfig, context: PenaltyContext, *, decay: float | None, unit: float = 1.0
    ) -> None:
        head = head_of_model(context.loaded.model)
        if head is not None and head.head != "causal":
            cause = f"{config.kind} measures what a language model says, and this model has a head for something else"
            raise ConfigError(Problem("penalty", cause, "use l2_sp, or si over stages"))
        self.config = config
        self.context = context
        self.decay = decay
        earlier = earlier_of(config, context)
        kept = None
        if earlier is not None:
            kept = take_up(earlier, config.kind, context.trainable)
            context.say(f"{config.kind}: holds what {kept.tasks} earlier tasks have left in {earlier}")
        elif config.hold_start:
            examples = self._within(examples_of(rows_of(config.data, config.rows, context)))
            kept = Kept(self._cached(examples).diagonal, copies(context.trainable, context.held))
        else:
            context.say(f"{config.kind}: a first task; nothing is held yet, what it learns is left for the next one")
        super().__init__(config.strength, kept, unit)

    def save(self, trainable: Trainable, path: Path) -> None:
        """Measure the importances of this task, and write them together with the ones that were held."""
        new = Kept(self._measured(self._within(examples_of(self._task_rows()))).diagonal, copies(trainable))
        if self.kept is not None and self.decay is None:
            old = self.kept._replace(
                importance={k: whole(t) for k, t in self.kept.importance.items()},
                center={k: whole(t) for k, t in self.kept.center.items()},
            )
            new = joined(old, new._replace(end=new.center))
        elif self.kept is not None and self.decay is not None:
            decay, old_importance = self.decay, self.kept.importance
            importance = {k: t + decay * whole(old_importance[k]).to(t) for k, t in new.importance.items()}
            new = new._replace(importance=importance, tasks=self.kept.tasks + 1)
        leave(path, self.config.kind, new)

    def _task_rows(self) -> Sequence[Encoded]:
        """Return rows of this task; if its rows are not rows of tokens, own answers of the model as it is now."""
        rows, count = list(self.context.rows), self.config.rows
        if rows:
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.context.seed)).tolist()
            return [rows[i] for i in order[:count]]
        return own_answers(count, self.context, ModelRespondent(self.context.loaded), None)

    def _within(self, examples: list[Example]) -> list[Example]:
        """Return the first examples with at most `tokens` tokens together, but at least one example."""
        ends = list(accumulate(len(e.inputs) for e in examples))
        kept = examples[: max(sum(end <= self.config.tokens for end in ends), 1)]
        if len(kept) < len(examples):
            self.context.say(
                f"{self.config.kind}: {len(kept)} of {len(examples)} rows are looked at, {ends[len(kept) - 1]:,} of "
                f"{ends[-1]:,} tokens (tokens: {self.config.tokens})"
            )
        return kept

    def _measured(self, examples: Sequence[Example]) -> Curvature:
        began = time.monotonic()
        set_aside(self.context.held.values())
        found = self.config.measure(self.context, examples)
        how = "" if found.chunked else f" ({found.reason})" if found.reason else ""
        self.context.say(
            f"{self.config.kind}: {len(found.diagonal)} tensors measured on {found.rows} rows with {found.positions:,} "
            f"tokens in {time.monotonic() - began:.1f} s{how}; trace {found.trace:.4g}"
        )
        if sum(t.numel() for t in found.diagonal.values()) < COARSE_PARAMETERS:
            return found
        return found._replace(diagonal={k: t.to(torch.bfloat16) for k, t in found.diagonal.items()})

    def _cached(self, examples: Sequence[Example]) -> Curvature:
        """Measure at the start, or read the measurement from disk for the same model, parameters, rows and settings."""
        trainable = self.context.trainable
        if sum(p.numel() for p in trainable.values()) > CACHED_PARAMETERS:
            return self._measured(examples)
        digest = hashlib.sha256(json.dumps([FORMAT, self.context.fingerprint, self.context.seed]).encode())
        digest.update(json.dumps(self.config.settings(), sort_keys=True).encode())
        for name, parameter in trainable.items():
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
            digest.update(parameter.detach().cpu().float().numpy().tobytes())
        for example in examples:
            digest.update(torch.cat([*example]).numpy().tobytes())
        path = (self.context.cache or default_cache()) / "curvature" / f"{digest.hexdigest()[:24]}.safetensors"

        def stored() -> Curvature:
            found = load_file(path)
            return Curvature({name: found[name] for name in trainable}, len(examples), 0, chunked=True)

        if path.is_file():
            os.utime(path)
            found = stored()
            self.context.say(f"{self.config.kind}: importances read from the cache ({path}), trace {found.trace:.4g}")
            return found
        made = self._measured(examples)
        with whole_file(path) as temporary:
            save_file({k: t.cpu().contiguous() for k, t in made.diagonal.items()}, temporary)
        for old in outgrown(path.parent, CACHED_BYTES):
            self.context.say(f"{self.config.kind}: {old.name} leaves the cache of importances, which has grown too big")
            old.unlink(missing_ok=True)
        return stored()  # tensors that are read from the file need not stay in memory, see `set_aside`


def rows_of(data: DataSource | None, count: int, context: PenaltyContext) -> list[Encoded]:
    """Return `count` rows that show what the model can do at the start: rows of `data`, else its own answers. Raise
    DataError for rows of `data` that are not conversations.
    """
    if data is None:
        with context.untouched():
            return own_answers(count, context, context.respondent, context.fingerprint)
    source = data.at(context.base)
    name = source.path or str(source.hub)
    talks, strange = conversations_in(read_records(source).records)
    if strange:
        mend = "give conversations, or prompts with completions"
        raise DataError(*(Problem(one, "not a conversation", mend) for one in strange[:20]))
    selection = select(talks, context.forbidden, name)
    context.say(f"{name}: {selection}")
    return _encoded(_drawn(selection.conversations, count, context.seed), context)


def own_answers(
    count: int, context: PenaltyContext, respondent: ModelRespondent, fingerprint: str | None
) -> list[Encoded]:
    """Return the respondent's greedy answers to packaged prompts. They are cached if a fingerprint is given. Raise
    DataError if there are no usable answers.
    """
    packaged = [prompt.text for prompt in read_prompts(packaged_prompts(context.loaded.tokenizer))]
    prompts = _drawn(list(dict.fromkeys(packaged)), count, context.seed)
    asking = replace(context, respondent=respondent, fingerprint=fingerprint or "")
    try:
        made = (answered_once if fingerprint is not None else answered)(prompts, asking, MAX_NEW_TOKENS)
        return _encoded(select(made, context.forbidden, "the packaged prompts").conversations, context)
    except Interrupted:
        raise
    except PosttrainError as error:
        cause = "own answers cannot show what shall be kept"
        mend = "give data: a file of conversations; or hold_start: false"
        problems = error.without_mend() if isinstance(error, NoAnswers) else error.problems
        raise DataError(*problems, Problem("penalty", cause, mend)) from error


def _drawn(items: Sequence[T], count: int, seed: int) -> list[T]:
    return random.Random(f"rows {seed}").sample(items, count) if count < len(items) else list(items)


def _encoded(conversations: Sequence[Conversation], context: PenaltyContext) -> list[Encoded]:
    loaded = context.loaded
    limit = min(context_limit(loaded.model), context.batch_tokens)
    found = encode_all(conversations, loaded.tokenizer, max_length=limit, over_long="drop", on_bad_row="skip")
    left_out = found.dropped + len(found.problems)
    if left_out:
        context.say(f"{left_out} of {len(conversations)} rows are longer than {limit} tokens or bad, and left out")
    return found.rows if marked_part(loaded.model) is None else one_answer_each(found.rows)


def examples_of(rows: Sequence[Encoded]) -> list[Example]:
    """Return rows as tensors: position t predicts token t + 1, if that token is supervised."""
    made = []
    for row in rows:
        ids, targets = torch.tensor(row.input_ids[:-1]), torch.tensor(row.labels[1:])
        positions = (targets != IGNORED).nonzero()[:, 0]
        made.append(Example(ids, positions, targets[positions]))
    return made


def outgrown(folder: Path, most: int) -> list[Path]:
    """Return the files that exceed `most` bytes together with all files used later; never the newest one."""
    files = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    ends = accumulate(path.stat().st_size for path in files)
    return [path for path, end in list(zip(files, ends, strict=True))[1:] if end > most]
