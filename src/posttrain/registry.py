"""From names in YAML (`kind: lora`) to code, which is imported only when it is used.

A seam is a package, and a kind is a module in it with the same name: `kind: lora` of the seam `tuner` is in
`tuners/lora.py`. To add a method, add a file. The module registers its function with its config class::

    @register("tuner", "lora", config=LoraConfig, paper="arXiv:2106.09685")
    def lora(model, config): ...

`listed` reads module names and docstrings without importing the modules.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from posttrain.errors import ConfigError, Problem

__all__ = ["SEAMS", "Entry", "Listed", "kinds", "listed", "load", "register"]

SEAMS: dict[str, str] = {
    "method": "posttrain.studies.methods",
    "objective": "posttrain.objectives",
    "tuner": "posttrain.tuners",
    "replay": "posttrain.retention.replay",
    "penalty": "posttrain.retention.penalty",
    "exam": "posttrain.exams.tasks",
    "respondent": "posttrain.inference.kinds",
}
"""Seam -> the package whose public modules are its kinds."""


@dataclass(frozen=True)
class Entry:
    """What a module registered: its function (or class), its config class, and its source."""

    seam: str
    kind: str
    function: Callable[..., Any]
    config: type[Any]
    paper: str = ""


@dataclass(frozen=True)
class Listed:
    """One line of `posttrain list`, read without importing the module."""

    seam: str
    kind: str
    module: str
    summary: str


F = TypeVar("F", bound=Callable[..., Any])
_entries: dict[tuple[str, str], Entry] = {}


def register(seam: str, kind: str, *, config: type[Any], paper: str = "") -> Callable[[F], F]:
    """Register the decorated function as `kind` of `seam`; the module must be named like the kind."""

    def decorate(function: F) -> F:
        assert function.__module__ == f"{SEAMS[seam]}.{kind}", f"{kind} must live in {SEAMS[seam]}.{kind}"
        _entries[seam, kind] = Entry(seam, kind, function, config, paper)
        return function

    return decorate


def kinds(seam: str) -> list[str]:
    """The kinds of a seam: the public modules of its package, by name."""
    package = importlib.import_module(SEAMS[seam])
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def load(seam: str, kind: str, location: str = "") -> Entry:
    """Import the module of a kind and return its entry; ConfigError with a suggestion when there is none."""
    if (seam, kind) not in _entries:
        known = kinds(seam)
        if kind not in known:
            close = get_close_matches(kind, known, n=1)
            mend = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
            raise ConfigError(Problem(location, f"unknown {seam} '{kind}'", mend))
        importlib.import_module(f"{SEAMS[seam]}.{kind}")
    return _entries[seam, kind]


def listed(seam: str) -> list[Listed]:
    """Every kind of a seam with the first line of its module docstring."""
    package = importlib.import_module(SEAMS[seam])
    rows = []
    for kind in kinds(seam):
        path = Path(next(iter(package.__path__))) / f"{kind}.py"
        path = path if path.exists() else path.with_suffix("") / "__init__.py"
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        rows.append(Listed(seam, kind, f"{SEAMS[seam]}.{kind}", doc.split("\n", 1)[0]))
    return rows
