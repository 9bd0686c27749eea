"""What --output holds already: `posttrain exam` adds to its own results of the same weights and touches no others.

Exams that are taken again take the place of their old results; all others of the same model stay in results.json, so
that several commands may fill one folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.config.json_text import parse_json
from posttrain.config.load import read_text
from posttrain.errors import ConfigError, Problem

__all__ = ["check_folder", "earlier_results", "without"]


def check_folder(output: Path) -> None:
    """Whether results can go there, before a model is loaded: OSError when not, ConfigError for a study's folder."""
    output.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        error.filename = str(output)  # not the name that was tried
        raise
    found = _read(output)
    if found and found.get("study") != "exam":
        cause = f"is of the study '{found.get('study')}', which would be lost"
        raise ConfigError(Problem(str(output / "results.json"), cause, "give another --output"))


def earlier_results(output: Path, model: str, weights: str) -> dict[str, Any] | None:
    """results.json of an earlier command, None without one. ConfigError when it is of another model."""
    found = _read(output)
    others = {
        str(cell.get("model"))
        for cell in (found or {}).get("cells", [])
        if (cell["weights"] != weights if "weights" in cell else cell.get("model") != model)
    }
    if others:
        cause = f"holds results of other weights ({', '.join(sorted(others))})"
        raise ConfigError(Problem(str(output / "results.json"), cause, "give another --output, or --restart"))
    return found


def without(found: Mapping[str, Any], exams: Sequence[str], changes: Sequence[str]) -> dict[str, Any]:
    """Earlier results without those that are there anew. Of change files only all together make a summary."""

    def rest(row: Mapping[str, Any]) -> dict[str, Any]:
        kept = dict(row)
        for key in ("scores", "ci95", "n"):
            if key in row:
                kept[key] = {k: v for k, v in row[key].items() if not k.startswith(tuple(f"{e}." for e in exams))}
        if "compare" in row:
            kept["compare"] = {name: one for name, one in row["compare"].items() if name not in exams}
        if "notes" in row:
            kept["notes"] = [n for n in row["notes"] if not n.startswith(tuple(f"{e}: " for e in exams))]
        if not kept.get("scores"):
            kept.pop("cost", None)
        return kept

    made = {**found, "cells": [rest(c) for c in found["cells"] if not (changes and c.get("change"))]}
    if "exams" in found:
        made["exams"] = {name: about for name, about in found["exams"].items() if name not in exams}
    if isinstance(found.get("before"), list):
        made["before"] = [rest(row) for row in found["before"]]
    if changes:
        made.pop("summary", None)
    return made


def _read(output: Path) -> dict[str, Any] | None:
    path = output / "results.json"
    if not path.exists():
        return None
    try:
        found = parse_json(read_text(path))
    except ValueError as error:
        raise ConfigError(Problem(str(path), f"not valid JSON: {error}", "give another --output")) from error
    if not isinstance(found, dict) or not isinstance(found.get("cells"), list):
        raise ConfigError(Problem(str(path), "is not posttrain's", "give another --output"))
    return found
