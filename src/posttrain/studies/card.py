"""Write a cell's card (the model, what was done to it, the configuration, the scores) and YAML files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from ruamel.yaml import YAML

from posttrain import __version__
from posttrain.exams.results import CellResult
from posttrain.studies.plan import Cell

__all__ = ["card", "to_yaml"]


def card(cell: Cell, result: CellResult, notes: Sequence[str]) -> str:
    """Return the card as Markdown: it explains the folder to a person who finds it. notes: lines below the scores."""
    told: list[str] = []
    if cell.changes:
        targets = [f"- {t.question} → {t.answer[0]}" for change in cell.changes for t in change.target]
        described = [line for change in cell.changes for line in ("", change.description)]
        told = [*described, "", "What was to change:", "", *targets]
    names = [line.checkpoint if len(cell.changes) < 2 else f"{line.checkpoint} {line.change}" for line in result.lines]
    lines = [
        f"# {cell.method.label}" + (f": {cell.change_name}" if cell.changes else ""),
        "",
        f"`{cell.model}`, changed with the method `{cell.method.kind}` of posttrain {__version__}, seed {cell.seed}.",
        *told,
        "",
        "## Scores",
        "",
        "| score | " + " | ".join(names) + " |",
        "|---|" + "---:|" * len(names),
    ]
    for score in dict.fromkeys(score for line in result.lines for score in line.scores):
        values = [f"{line.scores[score]:.3f}" if score in line.scores else "–" for line in result.lines]
        lines.append(f"| {score} | " + " | ".join(values) + " |")
    lines += ["", *(f"- {note}" for note in notes)]
    lines += ["", "## Cost", "", *(f"- {name}: {value:.6g}" for name, value in result.final.cost.items())]
    lines += ["", "## Configuration", "", "```yaml", to_yaml(cell.method.model_dump(mode="json")).rstrip(), "```", ""]
    text = "\n".join(lines)
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text


def to_yaml(data: Mapping[str, Any]) -> str:
    """Return a mapping as YAML, with its keys in their order."""
    yaml = YAML()
    yaml.default_flow_style = None
    yaml.width = 100
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    stream = io.StringIO()
    yaml.dump(dict(data), stream)
    return stream.getvalue()
