"""One change: did the target change, did the rest follow, did everything else stay? (in studies, and `--change`)

The exam compares two models probe by probe (`exams/change.py`). In a study it gets the change of each cell and the
untouched model. On the command line, `posttrain exam M --change FILE --before B` runs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from posttrain.exams.exam_config import ExamConfig
from posttrain.registry import register

if TYPE_CHECKING:
    from posttrain.exams.change import ChangeExam

__all__ = ["ChangeExamConfig", "change"]


class ChangeExamConfig(ExamConfig):
    """The change exam of a study: each cell's own change file. Its scores stand without the exam's name."""

    kind: Literal["change"] = "change"
    """The exam of the cell's change."""
    max_new_tokens: int | None = Field(default=None, gt=0)
    """The longest answer to a probe, in tokens; the study's `max_new_tokens` when left out."""
    mode: Literal["says", "first_sentence", "exact"] = "says"
    """An answer is right when it says an accepted one in whatever sentence, when its first sentence is short and says
    one, or only when it equals one."""
    judge: str = ""
    """A model or endpoint (a folder, api:MODEL@URL, a respondent's YAML) that is asked whether two answers say the
    same; shown apart, with its agreement with the measure."""

    def files(self) -> list[str]:
        """Return the judge's YAML file, if one is named. The change files belong to the study."""
        return [self.judge] if self.judge.endswith((".yaml", ".yml")) else []


@register("exam", "change", config=ChangeExamConfig)
def change(config: ChangeExamConfig, base: Path) -> ChangeExam:
    """Return the exam of the cell's changes."""
    from posttrain.exams.change import ChangeExam

    return ChangeExam(config, config.max_new_tokens or 64, config.mode, config.judge)
