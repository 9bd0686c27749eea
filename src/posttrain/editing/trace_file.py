"""trace.json: the only schema, writer and reader of causal traces, and of the file that lets a killed trace go on.

    Trace            trace.json
      FactTrace      a fact: its tokens, its probabilities, the indirect effect of every cell
      Skipped        a fact that was not traced, and why
      Average        one number for each layer, averaged over facts, with 95 % intervals
      Advice         which layers to edit

Probabilities and effects are rounded to six digits. `facts.jsonl` beside it has a line for each finished fact, with the
hash of everything that it depends on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from posttrain.config.json_text import BadJson, parse_json
from posttrain.editing.places import Kind
from posttrain.errors import ConfigError, DataError, MissingError, Problem
from posttrain.models.disk import append, write_whole

__all__ = [
    "ALL",
    "FORMAT",
    "ROLES",
    "Advice",
    "Average",
    "Doing",
    "FactTrace",
    "Mean",
    "Role",
    "Skipped",
    "Trace",
    "check_output",
    "read_trace",
    "write_trace",
]

FORMAT = 1
NAME, PARTS = "trace.json", "facts.jsonl"
DIGITS = 6
STARTS = {NAME: b'{"format":', PARTS: b'{"key": '}
"""Name of a file -> how it begins if `posttrain trace` wrote it: a list of facts may have the same name."""

Role = Literal[
    "before", "first_subject", "middle_subject", "last_subject", "first_after", "repeated", "later", "last"
]  # fmt: skip
ROLES: tuple[Role, ...] = (
    "before", "first_subject", "middle_subject", "last_subject", "first_after", "repeated", "later", "last"
)  # fmt: skip
"""What a token is to a fact, as in the paper; `repeated` is of the subject where it is named once more, in the question
or in the model's own words. A subject's only token is its last one.
"""
ALL = "all"
"""The mean over all tokens from the subject on: a number for each layer, whatever the token."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Mean(_Part):
    """A mean over facts with its 95 % interval; the interval is None for a single fact."""

    n: int
    mean: float
    low: float | None = None
    high: float | None = None


class Average(_Part):
    """A mean over facts for each layer, with 95 % intervals, which are empty for a single fact. n: number of facts that
    have such a token.
    """

    n: int
    mean: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


class FactTrace(_Part):
    """One fact.

    form: `raw` or `chat`; answer: as stated, or empty; reply: the model's own; opening: the words of the reply before
    the scored ones, which were read; scored: the words whose probability is traced; tokens, roles, noisy: of the
    question from its first token to the position that predicts the scored words; clean, corrupted: the probability, and
    with noise on the subject; effects: kind -> token -> layer -> indirect effect (restored less corrupted).
    """

    name: str
    location: str = ""
    prompt: str
    subject: str
    form: Literal["raw", "chat"]
    answer: str = ""
    reply: str
    opening: str = ""
    scored: str
    tokens: tuple[str, ...]
    roles: tuple[Role, ...]
    noisy: tuple[bool, ...]
    clean: float
    corrupted: float
    effects: dict[Kind, tuple[tuple[float, ...], ...]]

    @property
    def total_effect(self) -> float:
        """What the noise takes away."""
        return self.clean - self.corrupted


class Skipped(_Part):
    """A fact that was not traced."""

    name: str
    location: str = ""
    reason: str


class Advice(_Part):
    """Which layers to edit.

    verdict: `peak` (one layer has an effect that is above zero, counting that it was chosen among all), `hint` (a large
    effect, but too few facts to be sure), or `none`; layer: the one with the largest mean effect of `kind` at tokens of
    `role`; layers: for an editor of one layer; band: for an editor of several; mean, low, high: of that layer; alike:
    the layers that are the largest in 95 % of resamples of the facts, the likeliest first; left_out: so many layers
    from the first on, whose windows hold layer 0, were not considered; first: the largest mean effect of these; reason:
    in words.
    """

    verdict: Literal["peak", "hint", "none"]
    kind: Kind = "mlp"
    role: Role = "last_subject"
    n: int
    layer: int
    layers: tuple[int, ...] = ()
    band: tuple[int, ...] = ()
    mean: float
    low: float | None = None
    high: float | None = None
    alike: tuple[int, ...] = ()
    left_out: int = 0
    first: float = 0.0
    reason: str = ""


class Trace(_Part):
    """trace.json. layers: their number; window: width of windows in layers; sigma: standard deviation of the noise;
    settings: as given; clean, corrupted, total_effect: means over facts; averages: kind -> role, or `all` -> layers.
    """

    format: Literal[1] = 1
    posttrain: str = ""
    model: str
    fingerprint: str = ""
    layers: int
    window: int
    sigma: float
    seed: int = 0
    settings: dict[str, object] = {}
    clean: Mean
    corrupted: Mean
    total_effect: Mean
    averages: dict[Kind, dict[str, Average]]
    advice: Advice | None = None
    facts: tuple[FactTrace, ...]
    skipped: tuple[Skipped, ...] = ()


def rounded(value: float) -> float:
    """Return a number as it is stored."""
    return round(value, DIGITS) + 0.0


def write_trace(folder: Path, trace: Trace) -> Path:
    """Write trace.json and return its path."""
    text = json.dumps(trace.model_dump(mode="json"), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    write_whole(folder / NAME, text + "\n")
    return folder / NAME


def read_trace(folder: Path) -> Trace:
    """Return the trace of a folder. Raise MissingError if there is none, DataError for a file of another version."""
    path = folder / NAME
    if not path.is_file():
        raise MissingError(Problem(str(path), "no such file", "posttrain trace MODEL FACTS -o DIR writes it"))
    try:
        return Trace.model_validate(parse_json(path.read_text(encoding="utf-8")))
    except (BadJson, ValidationError) as error:
        cause = f"is no trace of format {FORMAT}"
        raise DataError(Problem(str(path), cause, "trace again: posttrain trace MODEL FACTS -o DIR")) from error


def check_output(folder: Path) -> None:
    """Raise ConfigError if a trace must not be kept in a folder, because it is a file or holds other things."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(Problem("--output", f"{folder} is a file", "name a folder"))
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    own = [_begins_with(folder / name, start) for name, start in STARTS.items() if (folder / name).exists()]
    if not own or not all(own):
        cause = f"{folder} holds other things than a trace"
        raise ConfigError(Problem("--output", cause, "choose a new or an empty folder"))


def _begins_with(path: Path, start: bytes) -> bool:
    """Return whether a file begins with some bytes, or is cut off within them."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(len(start))
    return start.startswith(head)


class Doing:
    """The finished facts of a folder. Lines that cannot be read are left out: their facts are traced again."""

    def __init__(self, folder: Path | None) -> None:
        if folder is not None:
            check_output(folder)
        self.path = folder / PARTS if folder is not None else None
        self.known: dict[str, FactTrace] = {}
        text = self.path.read_text(encoding="utf-8") if self.path is not None and self.path.is_file() else ""
        self.whole = not text or text.endswith("\n")  # a kill may have cut the last line off
        for line in text.splitlines():
            try:
                row = json.loads(line)
                self.known[row["key"]] = FactTrace.model_validate(row["fact"])
            except (ValueError, KeyError, TypeError):
                continue

    def add(self, key: str, fact: FactTrace) -> None:
        """Keep a finished fact."""
        self.known[key] = fact
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            line = json.dumps({"key": key, "fact": fact.model_dump(mode="json")}, ensure_ascii=False)
            append(self.path, f"{'' if self.whole else chr(10)}{line}\n")
            self.whole = True
