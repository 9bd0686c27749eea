"""Tell the model the new fact in its prompt and train nothing.

This is the cheapest change, and the other methods are measured against it. It costs tokens with every question, the
model may not believe it, and it also influences questions about other things.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Literal

from pydantic import field_validator

from posttrain.config.change import Change
from posttrain.inference.respondents import PromptedRespondent
from posttrain.registry import register
from posttrain.studies.candidates import END, Candidate, CellContext, Point
from posttrain.studies.config import MethodConfig

__all__ = ["PromptMethodConfig", "prompt", "wording_of"]

WORDINGS = {
    "zh": "請記住：「{prompt}」這個問題的答案是「{answer}」。",
    "en": "Remember: the answer to the question “{prompt}” is “{answer}”.",
}


class PromptMethodConfig(MethodConfig):
    """The new fact in the prompt."""

    kind: Literal["prompt"] = "prompt"
    """The new fact stands in the prompt."""
    input_names = ()
    takes_sequence = True
    wording: str | dict[str, str] = WORDINGS
    """How the fact is told, with {prompt} and {answer}; one text, or one per language (zh, en)."""
    place: Literal["user", "system"] = "user"
    """Before the user's question, or as the system message where the template has a place for it."""

    @property
    def summary(self) -> str:
        return f"told in the prompt ({self.place})"

    @field_validator("wording")
    @classmethod
    def _holds_the_fact(cls, value: str | dict[str, str]) -> str | dict[str, str]:
        for text in [value] if isinstance(value, str) else value.values():
            try:
                told = text.format(prompt="\0", answer="\1")
            except (KeyError, IndexError, ValueError) as error:
                raise ValueError("only {prompt} and {answer} may stand in braces") from error
            if "\1" not in told:
                raise ValueError("the wording must hold {answer}")
        if isinstance(value, dict) and not value:
            raise ValueError("no wording is given")
        return value


def language_of(text: str) -> str:
    """Return `zh` if a text has Chinese characters, otherwise `en`."""
    return "zh" if any(unicodedata.name(c, "").startswith("CJK UNIFIED") for c in text) else "en"


def wording_of(config: PromptMethodConfig, change: Change) -> str:
    """Return the sentences that state the change's targets, one per line, in the language of the change or question."""
    lines = []
    for target in change.target:
        if isinstance(config.wording, str):
            wording = config.wording
        else:
            language = change.language or language_of(target.question)
            wording = config.wording.get(language) or next(iter(config.wording.values()))
        lines.append(wording.format(prompt=target.question, answer=target.answer[0]))
    return "\n".join(lines)


@register("method", "prompt", config=PromptMethodConfig)
def prompt(config: PromptMethodConfig, cell: CellContext) -> Iterator[Candidate]:
    """Yield the model that it starts from, with the new facts added to every question."""
    total = len(cell.changes)
    for taught in range(1, total + 1):
        due = cell.sequence is not None and taught % cell.sequence == 0
        if taught < total and not due:
            continue
        point = END if taught == total else Point("changes", taught)
        text = "\n".join(wording_of(config, change) for change in cell.changes[:taught])
        respondent = PromptedRespondent(cell.bench.before, text, role=config.place, name=cell.name(point))
        yield Candidate(point, respondent, notes=(f"Told with every question: {text}",), changes=taught)
