"""Find the code for a name in YAML (`kind: lora`), and import it only when it is used.

A seam is a sort of part that is chosen by name, such as `tuner`, and has one or several packages. A kind is a module in
one of them: `kind: lora` of the seam `tuner` is `tuners/lora.py`. To add a method, add a file. The module registers its
function with its config class::

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

SEAMS: dict[str, tuple[str, ...]] = {
    "method": ("posttrain.studies.methods",),
    "objective": ("posttrain.objectives",),
    "tuner": ("posttrain.tuners",),
    "replay": ("posttrain.retention.replay",),
    "penalty": ("posttrain.retention.penalty",),
    "editor": ("posttrain.editing.editors",),
    "merger": ("posttrain.merging.methods",),
    "exam": ("posttrain.exams.tasks",),
    "respondent": ("posttrain.inference.kinds",),
}
"""Seam -> the packages that contain its kinds, one public module each. A package may belong to a higher layer than the
code that loads a kind, as it is imported only when the kind is loaded."""


@dataclass(frozen=True)
class Entry:
    """What a module has registered: its function (or class), its config class and its paper."""

    seam: str
    kind: str
    function: Callable[..., Any]
    config: type[Any]
    paper: str = ""


@dataclass(frozen=True)
class Listed:
    """One line of `posttrain list`, which is read without importing the module."""

    seam: str
    kind: str
    module: str
    summary: str


F = TypeVar("F", bound=Callable[..., Any])
_entries: dict[tuple[str, str], Entry] = {}


def register(seam: str, kind: str, *, config: type[Any], paper: str = "") -> Callable[[F], F]:
    """Return a decorator that registers a function as `kind` of `seam`; the module must have the name of the kind."""

    def decorate(function: F) -> F:
        known = [f"{package}.{kind}" for package in SEAMS[seam]]
        assert function.__module__ in known, f"{kind} must live in {' or '.join(known)}"
        _entries[seam, kind] = Entry(seam, kind, function, config, paper)
        return function

    return decorate


def _files(seam: str) -> dict[str, tuple[str, Path]]:
    """Return the module name and the file of each kind of a seam, sorted by kind."""
    found: dict[str, tuple[str, Path]] = {}
    for name in SEAMS[seam]:
        for folder in importlib.import_module(name).__path__:
            for module in pkgutil.iter_modules([folder]):
                if not module.name.startswith("_"):
                    path = Path(folder) / (f"{module.name}/__init__.py" if module.ispkg else f"{module.name}.py")
                    found[module.name] = f"{name}.{module.name}", path
    return dict(sorted(found.items()))


def kinds(seam: str) -> list[str]:
    """Return the kinds of a seam, which are the public modules of its packages, sorted by name."""
    return list(_files(seam))


def load(seam: str, kind: str, location: str = "") -> Entry:
    """Import the module of a kind and return its entry. Raise ConfigError with a suggestion for an unknown kind."""
    if (seam, kind) not in _entries:
        known = _files(seam)
        if kind not in known:
            close = get_close_matches(kind, known, n=1)
            mend = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
            raise ConfigError(Problem(location, f"unknown {seam} '{kind}'", mend))
        importlib.import_module(known[kind][0])
    return _entries[seam, kind]


def listed(seam: str) -> list[Listed]:
    """Return every kind of a seam with the first line of its module docstring."""
    rows = []
    for kind, (module, path) in _files(seam).items():
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        rows.append(Listed(seam, kind, module, doc.split("\n", 1)[0]))
    return rows
