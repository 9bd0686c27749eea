"""The study file: it names models, methods, changes and exams; a run combines them and writes one report.

Relative paths in the file are relative to the file. Reading a study does not need torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from posttrain.config.base import ByKind, Config, spelled
from posttrain.data.readers import DataSource
from posttrain.exams.exam_config import ExamConfig
from posttrain.exams.floor import NOISE_FLOOR
from posttrain.exams.tasks.change import ChangeExamConfig
from posttrain.models.disk import safe_name
from posttrain.models.gguf_header import is_gguf
from posttrain.training.trackers import Trackers

__all__ = [
    "Every",
    "InSequence",
    "MethodConfig",
    "Resources",
    "Saves",
    "StageConfig",
    "Study",
    "find_model",
    "safe_name",
]


def _needs(methods: Mapping[str, MethodConfig], name: str) -> set[str]:
    """Return the names of the methods that must run before a method, directly or through other methods."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        new = {one for one in methods[waiting.pop()].takes if one in methods} - found
        found |= new
        waiting += new
    return found


def _twice(names: Iterable[str]) -> str:
    """Return the names that occur several times, as parts of folder names, joined by commas."""
    return ", ".join(sorted(name for name, times in Counter(map(safe_name, names)).items() if times > 1))


def _listed(value: Any) -> Any:
    return value if value is None or isinstance(value, list | tuple | dict | bool) else (value,)


class MethodConfig(Config):
    """What every method of a study has; the fields of each kind are in its own file under studies/methods/."""

    kind: str
    """Which method: see `posttrain list methods`."""
    name: str = Field(default="", max_length=60)
    """The row's name in the report; the kind when left out."""
    start: str = ""
    """The method whose model this one starts from, by its name; the study's model when left out."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """Models that it takes beside that one, by the names it knows: a method of the study, or a model."""
    input_names: ClassVar[tuple[str, ...] | None] = None
    """The names of the inputs that it knows; None for any."""
    takes_sequence: ClassVar[bool] = False
    """Whether it teaches a sequence of changes by itself; otherwise it is called once per change."""

    @field_validator("inputs")
    @classmethod
    def _known(cls, value: dict[str, str]) -> dict[str, str]:
        if unknown := [name for name in value if cls.input_names is not None and name not in cls.input_names]:
            raise ValueError(f"takes no input '{unknown[0]}'; known: {', '.join(cls.input_names or ()) or 'none'}")
        return value

    @property
    def label(self) -> str:
        """The name shown and used in folder names."""
        return self.name or self.kind

    @property
    def summary(self) -> str:
        """A description of the method in a few words, for the report."""
        return self.kind

    @property
    def parts(self) -> tuple[MethodConfig, ...]:
        """The methods that it consists of: itself, or the steps of a chain."""
        return (self,)

    def as_step(self) -> MethodConfig:
        """The same as a step of a chain."""
        return self

    @property
    def all_inputs(self) -> dict[str, str]:
        """Its inputs. Those of a chain's steps have the method or model as their names: two steps may use one name."""
        return self.inputs

    @property
    def takes(self) -> tuple[str, ...]:
        """The methods and models that it takes: where it starts, and its inputs."""
        return (*filter(None, [self.start]), *self.all_inputs.values())

    @property
    def leaves_product(self) -> bool:
        """Whether it leaves a model on disk that another method can start from."""
        return False

    @property
    def chooses(self) -> str:
        """The setting that it chooses by exams with `role: select`; empty if it chooses none."""
        return ""

    @property
    def needs_change(self) -> bool:
        """Whether the method needs a change to learn."""
        return True

    @property
    def learns_stages(self) -> bool:
        """Whether it learns the study's stages, if the study has stages."""
        return False

    def named_points(self, stages: int) -> int:
        """Return the number of candidates that its settings name, besides the end and those at optimiser steps. stages:
        the number of stages.
        """
        return 0

    def barred(self, change: str, base: Path, forbidden: frozenset[str]) -> list[str]:
        """Return what the exams' prompts keep out of this method's rows. It is a part of the training hash, because it
        decides what is trained. change: the change's name, or empty; forbidden: the exams' prompts.
        """
        return []

    def files(self, change: str) -> list[str]:
        """Return the paths of the files that this method reads for a change; their bytes go into the training hash."""
        return []


class StageConfig(Config):
    """One of several tasks that are learned one after another."""

    name: str = Field(min_length=1, max_length=60)
    """The task's name, in the report and in the tag of `replay: {kind: generative}`."""
    data: DataSource
    """Its rows."""
    exam: str = ""
    """Which of the study's exams measures it: that exam's name; the stage's own name when left out."""

    @property
    def measured_by(self) -> str:
        """The name of the exam that measures this stage."""
        return self.exam or self.name


class Resources(Config):
    """What a cell asks for where cells are handed out to a Ray cluster."""

    gpus: float = Field(default=0, ge=0)
    """GPUs; a part of one is shared."""
    cpus: float = Field(default=1, gt=0)
    """CPU cores."""


class Every(Config):
    """Examine the model not only at the end of training."""

    every: int = Field(gt=0)
    """Steps between two examined checkpoints."""


class Saves(NamedTuple):
    """The steps after which a checkpoint is saved and examined: the multiples of `every`, or the steps in `at`."""

    every: int | None = None
    at: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return self.every is not None or bool(self.at)

    def due(self, last: int) -> list[int]:
        """Return these steps up to and including step `last`, in order."""
        return [*range(self.every, last + 1, self.every)] if self.every else [s for s in self.at if s <= last]


class InSequence(Config):
    """The changes are taught one after another, by one model."""

    sequence: int = Field(gt=0, strict=True)
    """The model is examined after every so many changes, on all that it was taught, and at the end."""


def _changes_as(value: Any) -> Any:
    """Reject anything that is not `each`, `together` or `{sequence: N}`."""
    if value in ("each", "together") or isinstance(value, dict | InSequence):
        return value
    raise ValueError("each, together or {sequence: 10} is expected")


def _checkpoints(value: Any) -> Any:
    """Reject anything that is not `final`, `{every: N}` or a list of steps."""
    whole = isinstance(value, list | tuple) and value and all(type(v) is int and v > 0 for v in value)
    if value == "final" or isinstance(value, dict | Every) or whole:
        return value
    raise ValueError("final, {every: 500} or a list of steps such as [500, 1000] is expected")


Names = Annotated[tuple[str, ...], BeforeValidator(_listed, json_schema_input_type=str | tuple[str, ...])]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Seeds = Annotated[tuple[Seed, ...], BeforeValidator(_listed, json_schema_input_type=int | tuple[int, ...])]
Exam = Annotated[ExamConfig, ByKind("exam")]
IMPLIED = (("steps", "steps"),)
"""(key, kind): a method that has the key needs no `kind`; a method with `steps` is a chain."""
ChangesAs = Annotated[Literal["each", "together"] | InSequence, BeforeValidator(_changes_as)]
Steps = tuple[Annotated[int, Field(gt=0)], ...]
Checkpoints = Annotated[Literal["final"] | Every | Steps, BeforeValidator(_checkpoints)]
OWN_SCORES = (
    *("reliability", "generality", "locality", "kept", "same", "strict", "manner", "leak", "judge", "likelihood"),
    *("drift", "length", "stages"),
)
"""First words of the keys of the change exam's scores and of the scores over stages. Other exams may not use them."""


class Study(Config):
    """One study file."""

    SCHEMA: ClassVar[str] = "study"

    study: str = Field(min_length=1, max_length=80)
    """The study's name, and the name of its run folder."""
    title: str = ""
    """The report's heading; the name when left out."""
    notes: str = ""
    """What the reader of the report should know: paragraphs of text."""
    models: Names = Field(min_length=1)
    """Models to change: hub ids, folders, GGUF files, pocket:base / pocket:chat, or smollm2."""
    changes: Names = ()
    """Change files or editing data sets, perhaps with a slice (`counterfact.json[:200]`): paths or globs; results are
    averaged over them. None where methods only learn from `data`."""
    seeds: Seeds = Field(default=(0,), min_length=1)
    """Each cell is run once per seed."""
    stages: tuple[StageConfig, ...] = ()
    """Tasks that are learned one after another, each with its rows and the exam that measures it."""
    changes_as: ChangesAs = "each"
    """each: a model per change, results are averaged; together: one model is taught all of them at once; {sequence: N}:
    one after another, examined after every N."""
    methods: tuple[Annotated[MethodConfig, ByKind("method", IMPLIED)], ...] = Field(min_length=1)
    """What is compared: a list of {name, kind, ...}, or of {name, steps: [...]} for methods one after another."""
    exams: tuple[Exam, ...] = Field(default=("change",), min_length=1, validate_default=True)
    """Which exams every cell takes: a list of kinds, or of {kind, name, path, ...}."""
    checkpoints: Checkpoints = "final"
    """final, or {every: N}, or a list of steps: training is examined there, too."""
    every: int | None = Field(default=None, gt=0)
    """Short for checkpoints: {every: N}."""
    noise_floor: Annotated[
        Literal["auto", "bf16", "int8", "none"],
        spelled(Literal["auto", "bf16", "bfloat16", "int8", "none"], bfloat16="bf16"),
    ] = "auto"
    """The untouched model in other arithmetic, examined as a row of its own; no locality is called lost that is not
    below it. auto: bf16, int8 where the model is in 16 bits already."""
    reference: str | None = None
    """A CSV or JSON file of scores to stand beside the models, such as people's."""
    may_train_on: Names = ()
    """Exams whose questions the training data may hold, because it is memory that they measure."""
    keep: Literal["none", "final", "all"] = "none"
    """Which weights stay on disk."""
    resources: Resources = Resources()
    """What each cell asks for with `posttrain run --on ray`, such as {gpus: 1}."""
    report_to: Trackers = ()
    """Trackers of every training, as in `posttrain train`; they write to `trackers/` in the cell's folder."""
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
    def _can_be_compared(cls, value: tuple[MethodConfig, ...], info: ValidationInfo) -> tuple[MethodConfig, ...]:
        if twice := _twice(method.label for method in value):
            raise ValueError(f"two methods are called {twice}; give each a 'name' of its own")
        by_name = {method.label: method for method in value}
        for method in value:
            if method.label in (NOISE_FLOOR, "untouched") and method.kind != "noise_floor":
                raise ValueError(f"the report has a row '{method.label}' of its own; give the method another 'name'")
            if method.start and method.start not in by_name:
                known = ", ".join(name for name in by_name if name != method.label) or "none"
                raise ValueError(
                    f"'{method.label}' starts from '{method.start}', which is no method here; known: {known}"
                )
            for name in (n for n in method.takes if n in by_name):
                if not by_name[name].leaves_product:
                    raise ValueError(f"'{method.label}' needs the model of '{name}', which leaves none")
            if method.label in _needs(by_name, method.label):
                raise ValueError(f"'{method.label}' needs its own model, directly or through other methods")
        staged = bool(info.data.get("stages"))
        lacking = [m.label for m in value if m.needs_change and not (staged and m.learns_stages)]
        if lacking and info.data.get("changes") == ():
            raise ValueError(f"'changes' is missing: {', '.join(lacking)} has nothing to learn without a change")
        return value

    @field_validator("exams", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | dict) else value

    @field_validator("exams")
    @classmethod
    def _exams_differ(cls, value: tuple[Any, ...], info: ValidationInfo) -> tuple[Config, ...]:
        if twice := _twice(exam.label for exam in value):
            raise ValueError(f"two exams are called {twice}; give each a 'name' of its own")
        own = [exam for exam in value if isinstance(exam, ChangeExamConfig)]
        if len(own) > 1:
            raise ValueError("there is one change exam; give it once")
        for exam in value:
            taken = safe_name(exam.label) in (*OWN_SCORES, "change") or set(exam.label) & set("./|")
            if taken and not isinstance(exam, ChangeExamConfig):
                raise ValueError(f"an exam cannot be called '{exam.label}'; give it another 'name'")
        if own and info.data.get("changes") == ():
            raise ValueError("'changes' is missing: the exam 'change' asks about them; name them, or give other exams")
        return value

    @field_validator("may_train_on")
    @classmethod
    def _exams_that_are(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        known = [exam.label for exam in info.data.get("exams", ()) if not isinstance(exam, ChangeExamConfig)]
        unknown = [name for name in value if name not in known]
        if unknown and "exams" in info.data:
            raise ValueError(f"no exam is called '{unknown[0]}'; known: {', '.join(known) or 'none but change'}")
        return value

    @field_validator("stages")
    @classmethod
    def _stages_differ(cls, value: tuple[StageConfig, ...], info: ValidationInfo) -> tuple[StageConfig, ...]:
        if twice := _twice(stage.name for stage in value):
            raise ValueError(f"two stages are called {twice}; give each a 'name' of its own")
        if value and info.data.get("changes"):
            raise ValueError("stages and changes exclude each other: what a stage learns are its rows")
        return value

    @field_validator("study")
    @classmethod
    def _study_is_a_folder_name(cls, value: str) -> str:
        if safe_name(value) != value:
            raise ValueError(f"the name becomes a folder; '{safe_name(value)}' would do")
        return value

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Study:
        for method in self.methods:
            chosen = next((part.chooses for part in method.parts if part.chooses), "")
            if chosen and not any(exam.role == "select" for exam in self.exams):
                raise ValueError(f"{chosen} chooses by exams with role: select, and the study has none")
        if self.changes_as != "each" and not self.changes:
            raise ValueError("'changes_as' is about changes, and there are none")
        labels = [exam.label for exam in self.exams if not isinstance(exam, ChangeExamConfig)]
        for stage in self.stages:
            if stage.measured_by not in labels:
                known = ", ".join(labels) or "none"
                raise ValueError(f"stage '{stage.name}': no exam is called '{stage.measured_by}'; known: {known}")
        if self.stages and self.saves:
            raise ValueError("stages are examined after each of them; leave out every and checkpoints")
        if self.every is not None and self.checkpoints != "final":
            raise ValueError("every and checkpoints exclude each other; give one")
        return self

    @property
    def saves(self) -> Saves:
        """The steps at which training is examined, without the end."""
        if isinstance(self.checkpoints, tuple):
            return Saves(at=tuple(sorted(set(self.checkpoints))))
        return Saves(self.checkpoints.every if isinstance(self.checkpoints, Every) else self.every)

    @property
    def change_exam(self) -> ChangeExamConfig | None:
        """The study's change exam, or None."""
        return next((exam for exam in self.exams if isinstance(exam, ChangeExamConfig)), None)

    @property
    def how(self) -> dict[str, Any]:
        """The keywords of `load_model` with which the study's models are loaded."""
        return {
            "offline": not self.download,
            **self.model_dump(include={"trust_remote_code", "allow_template_mismatch"}),
        }

    def folder(self, base: Path) -> Path:
        """Return the run folder: `output` relative to the study file, or runs/<study> in the current folder."""
        return base / self.output if self.output else Path("runs") / self.study


def find_model(name: str, base: Path) -> tuple[str, str]:
    """Return where a study's model is, and a message about it (empty if there is nothing to say).

    A folder or a GGUF file is searched beside the study file, as in `posttrain train`, then in the folder where the
    command runs. Any other name is returned as it is, for the hub or the pocket models. base: the study file's folder.
    """
    path = Path(name).expanduser()
    if name.startswith("pocket:") or path.is_absolute() or not name:
        return name, ""
    if (base / path).is_dir() or is_gguf(base / path):
        return str(base / path), ""
    if (path.is_dir() or is_gguf(path)) and base.resolve() != Path.cwd():
        return name, f"{name}: not beside the study file; taken from the folder where the command runs"
    return name, ""
