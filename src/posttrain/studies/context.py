"""What a study hands to a method, and what it gets back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from posttrain.config.base import Config
from posttrain.config.change import Change
from posttrain.studies.config import Saves, StageConfig

if TYPE_CHECKING:
    from posttrain.data.chat import Encoded
    from posttrain.inference.protocol import Respondent
    from posttrain.inference.respondents import ModelRespondent
    from posttrain.models.load import LoadedModel
    from posttrain.retention.selection import Task

__all__ = ["MethodContext", "MethodResult"]


class MethodResult(NamedTuple):
    """respondent: what takes the exam; cost: train_s, steps, tokens, peak_gib, ... as far as the method knows them;
    metrics: one line per training step; weights: where they were kept; notes: lines for the cell's card; scratch:
    folders that nobody needs once the final exam is over; stages: how the study's stages were learned, where they were
    (`separate`: each stage has a model of its own, all have been examined, and there is no respondent for the end).
    """

    respondent: Respondent
    cost: Mapping[str, float] = {}
    metrics: Sequence[Mapping[str, Any]] = ()
    weights: Path | None = None
    notes: Sequence[str] = ()
    scratch: Sequence[Path] = ()
    stages: Literal["", "sequential", "multitask", "separate"] = ""


@dataclass(frozen=True)
class MethodContext:
    """One cell's surroundings.

    change: None in a study without changes; base: relative paths are relative to it; folder: the cell's;
    before: answers as the untouched model does; working: a fresh copy of that model, free to be changed; lent: the
    same with weights that nobody may write to, in less memory; load: a model
    that this cell has saved, as that one was loaded; replay: makes (once per study) the rows of a replay config for a
    seed and a longest row; forbidden: every prompt of every exam of the study;
    resumable: whether training is long or precious enough to be written down, so that a kill does not lose it;
    saves: the steps after which training is examined; examine: takes the exams then; examined: whether they have been
    taken at a step, by this or an earlier run; forget: that they have, since training begins anew;
    stages: what is to be learned one after another; examine_as, examined_as: as examine and examined, for models that
    have a name and no step; rehearse: a replay's encoded rows as the given model makes them before a task; report_to:
    trackers of its trainings, which write to the cell's folder.
    """

    change: Change | None
    seed: int
    base: Path
    folder: Path
    key: str
    before: ModelRespondent
    working: Callable[[], LoadedModel]
    load: Callable[[Path], LoadedModel]
    replay: Callable[[Config, int, int], list[Encoded]]
    forbidden: frozenset[str]
    lent: Callable[[], LoadedModel] | None = None
    keep: Literal["none", "final", "all"] = "none"
    resumable: bool = False
    saves: Saves = field(default_factory=Saves)
    examine: Callable[[Respondent, int], None] = field(default=lambda respondent, step: None)
    examined: Callable[[int], bool] = field(default=lambda step: False)
    forget: Callable[[], None] = field(default=lambda: None)
    stages: tuple[StageConfig, ...] = ()
    examine_as: Callable[[Respondent, str], None] = field(default=lambda respondent, name: None)
    examined_as: Callable[[str], bool] = field(default=lambda name: False)
    rehearse: Callable[[Config, LoadedModel, int, int, Task, Callable[[str], None]], list[Encoded]] = field(
        default=lambda *_: []
    )
    report_to: tuple[str, ...] = ()
    say: Callable[[str], None] = print
    on_step: Callable[[Mapping[str, Any]], None] = field(default=lambda _: None)

    def name(self, step: int | str | None = None) -> str:
        """What a respondent of this cell is called, in sheets for marking and in files of answers; step: of training,
        or a checkpoint's own name.
        """
        return f"{self.folder.name}--{'final' if step is None else step if isinstance(step, str) else f'step-{step}'}"
