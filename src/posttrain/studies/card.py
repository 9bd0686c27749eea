"""A cell's card: what was done to which model, with which configuration, and what the exam found."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain import __version__
from posttrain.studies.plan import Cell
from posttrain.studies.results import CellResult, to_yaml

__all__ = ["card"]


def card(cell: Cell, result: CellResult, notes: Sequence[str]) -> str:
    """Markdown for a person who finds the folder."""
    told: list[str] = []
    if cell.change is not None:
        targets = [f"- {t.question} → {t.answer[0]}" for t in cell.change.target]
        told = ["", cell.change.description, "", "What was to change:", "", *targets]
    lines = [
        f"# {cell.method.label}" + (f": {cell.change_name}" if cell.change is not None else ""),
        "",
        f"`{cell.model}`, changed with the method `{cell.method.kind}` of posttrain {__version__}, seed {cell.seed}.",
        *told,
        "",
        "## Scores",
        "",
        "| score | " + " | ".join(one.checkpoint for one in result.examined) + " |",
        "|---|" + "---:|" * len(result.examined),
    ]
    for name in dict.fromkeys(name for one in result.examined for name in one.scores):
        lines.append(f"| {name} | " + " | ".join(_shown(one.scores.get(name)) for one in result.examined) + " |")
    lines += ["", *(f"- {note}" for note in notes)]
    lines += ["", "## Cost", "", *(f"- {name}: {value:.6g}" for name, value in result.cost.items())]
    lines += ["", "## Configuration", "", "```yaml", to_yaml(cell.method.model_dump(mode="json")).rstrip(), "```", ""]
    text = "\n".join(lines)
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
