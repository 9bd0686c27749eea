"""A study file: models, methods, changes and exams, crossed; its run gives one report.

Relative paths in the file are relative to the file. Torch is not needed to read a study.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, field_validator

from posttrain.config.base import ByKind, Config

__all__ = ["Every", "MethodConfig", "Study", "Work", "safe_name"]


def safe_name(name: str) -> str:
    """A name as a part of a folder name: `pocket:chat` -> `pocket-chat`, `Qwen/Qwen3-8B` -> `Qwen-Qwen3-8B`.

    Letters and digits of any script, `.`, `_` and `+` are kept; never `--`, which parts the names in a cell's folder.
    """
    return re.sub(r"-+", "-", re.sub(r"[^\w.+-]", "-", name)).strip("-.") or "x"


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str | int) and not isinstance(value, bool) else value


class Work(NamedTuple):
    """Optimiser steps and the tokens they read."""

    steps: int
    tokens: int


class MethodConfig(Config):
    """What every method of a study has; the fields of each kind are in its own file under studies/methods/."""

    kind: str
    """Which method: see `posttrain list methods`."""
    name: str = ""
    """The column's name in the report; the kind when left out."""

    @property
    def label(self) -> str:
        """The name shown and used in folder names."""
        return self.name or self.kind

    @property
    def brings_rows(self) -> bool:
        """Whether rows other than the change's own take part, which must not ask what an exam asks."""
        return False

    def work(self, new_tokens: int) -> Work:
        """Roughly what training the method does for so many tokens of new rows; for `--dry-run`."""
        return Work(0, 0)

    def files(self, change: str) -> list[str]:
        """Paths of the files that this method reads for a change; their bytes are part of the content hash."""
        return []


class Every(Config):
    """Examine the model not only at the end of training."""

    every: int = Field(gt=0)
    """Steps between two examined checkpoints."""


Names = Annotated[tuple[str, ...], BeforeValidator(_listed, json_schema_input_type=str | tuple[str, ...])]
Seeds = Annotated[tuple[int, ...], BeforeValidator(_listed, json_schema_input_type=int | tuple[int, ...])]
Exam = Literal["change"]
Exams = Annotated[tuple[Exam, ...], BeforeValidator(_listed, json_schema_input_type=Exam | tuple[Exam, ...])]


class Study(Config):
    """One study file."""

    study: str = Field(min_length=1, max_length=80)
    """The study's name, and the name of its run folder."""
    title: str = ""
    """The report's heading; the name when left out."""
    notes: str = ""
    """What the reader of the report should know: paragraphs of text."""
    models: Names = Field(min_length=1)
    """Models to change: hub ids, folders, or pocket:base / pocket:chat."""
    changes: Names = Field(min_length=1)
    """Change files: paths or globs; results are averaged over them."""
    seeds: Seeds = Field(default=(0,), min_length=1)
    """Each cell is run once per seed."""
    methods: tuple[Annotated[MethodConfig, ByKind("method")], ...] = Field(min_length=1)
    """What is compared: a list of {name, kind, ...}."""
    exams: Exams = Field(default=("change",), min_length=1)
    """Which exams every cell takes."""
    checkpoints: Literal["final"] | Every = "final"
    """final, or {every: N}: also examine training every N steps."""
    keep: Literal["none", "final", "all"] = "none"
    """Which weights stay on disk."""
    output: str | None = None
    """The run folder; runs/<study> in the current folder when left out."""
    max_new_tokens: int = Field(default=64, gt=0)
    """The longest answer to a probe, in tokens."""
    download: bool = False
    """Whether models and data sets may be fetched from the Hugging Face hub."""
    trust_remote_code: bool = False
    """Run code that comes with a model."""
    allow_template_mismatch: bool = False
    """Go on although a model was trained with another chat template than its tokenizer's."""

    @field_validator("models", "seeds", "changes")
    @classmethod
    def _each_once(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        twice = sorted({str(item) for item in value if value.count(item) > 1})
        if twice:
            raise ValueError(f"named twice: {', '.join(twice)}")
        return value

    @field_validator("methods")
    @classmethod
    def _names_differ(cls, value: tuple[MethodConfig, ...]) -> tuple[MethodConfig, ...]:
        names = [safe_name(method.label) for method in value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two methods are called {', '.join(twice)}; give each a 'name' of its own")
        return value

    @field_validator("study")
    @classmethod
    def _study_is_a_folder_name(cls, value: str) -> str:
        if safe_name(value) != value:
            raise ValueError(f"the name becomes a folder; '{safe_name(value)}' would do")
        return value

    def folder(self, base: Path) -> Path:
        """The run folder: `output` relative to the study file, else runs/<study> in the current folder."""
        return base / self.output if self.output else Path("runs") / self.study
