"""The settings that every kind of exam has; a study is read with these alone, without torch."""

from __future__ import annotations

from posttrain.config.base import Config
from posttrain.exams.results import Role

__all__ = ["ExamConfig"]


class ExamConfig(Config):
    """What every kind of exam has; the fields of each kind are in its own file under exams/tasks/."""

    kind: str
    """Which exam: see `posttrain list exams`."""
    name: str = ""
    """The name in tables and score keys; the kind when left out."""
    role: Role = "report"
    """report: its scores are the result; select: it chooses a setting, so that its scores are none."""

    @property
    def label(self) -> str:
        """The exam's name in tables and score keys."""
        return self.name or self.kind

    def files(self) -> list[str]:
        """Return the files that this exam reads, without `builtin:` paths; their bytes are part of its fingerprint."""
        return []
