"""Plain edits: one row for each edit, {prompt, subject, answer}, perhaps with a name and probes of its own. A table has
columns of these names, and a text in each cell.

    {"prompt": "The capital of Australia is", "subject": "Australia", "answer": "Melbourne",
     "rephrase": ["Australia's capital city is"], "locality": ["The capital of France is"]}

`target_new` is read for `answer`. `answer` may be a list of accepted answers, of which the first is taught. A
rephrasing is a text, with the same answers, or {prompt, answer}. `locality` is a list of prompts, which are then
`unrelated` ones, or an object with lists by kind, as in a change file.
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from posttrain.data.edits.fields import Fields
from posttrain.data.fields import BadRow, Takes, check_spelling, is_text

__all__ = ["PlainEdit", "fits", "read"]


def _listed(value: Any) -> bool:
    return isinstance(value, str | list)


KEYS: Takes = {
    **dict.fromkeys(("prompt", "subject", "name", "target_new"), is_text),
    **dict.fromkeys(("answer", "rephrase"), _listed),
    "locality": lambda value: isinstance(value, list | dict),
}


class PlainEdit(NamedTuple):
    """One row. probes: the keys `generality` and `locality` of a change file."""

    name: str
    prompt: str
    subject: str | None
    answers: tuple[str, ...]
    probes: Mapping[str, Any]

    def as_change(self) -> dict[str, Any]:
        """Return the keys of a change file."""
        target = {"prompt": self.prompt, "answer": self.answers, "subject": self.subject}
        named = {"name": self.name} if self.name else {}
        return {**named, "target": [target], **self.probes}


def fits(record: Mapping[str, Any]) -> bool:
    """Return whether the fields may be those of a plain edit: a prompt is enough, so that `read` names a missing or
    misspelt answer.
    """
    return "prompt" in record


def read(record: Fields) -> PlainEdit:
    """Return a row. BadRow when a field is missing, wrong or misspelt."""
    check_spelling(record.value, "", KEYS)
    prompt = record.text("prompt")
    subject = record.text("subject") if "subject" in record else None
    if subject is not None and subject not in prompt:
        raise BadRow(f"the subject '{subject}' does not stand in the prompt", "write it as it stands there")
    if "answer" in record and "target_new" in record:
        raise BadRow("the row has 'answer' and 'target_new'", "keep one of them")
    key = "target_new" if "target_new" in record else "answer"
    answers = record.texts(key) or (record.text(key),)
    given = record.value.get("rephrase")
    rephrased = [
        {"prompt": one, "answer": answers} if isinstance(one, str) else one
        for one in ([given] if isinstance(given, str) else given or ())
    ]
    kept = record.value.get("locality") or {}
    locality = {"unrelated": kept} if isinstance(kept, list) else kept
    if not isinstance(locality, Mapping) or not all(isinstance(probes, list) for probes in locality.values()):
        raise BadRow("'locality' must be a list of prompts, or an object with lists by kind")
    return PlainEdit(
        name=record.text("name") if "name" in record else "",
        prompt=prompt,
        subject=subject,
        answers=answers,
        probes={"generality": {"rephrase": rephrased}, "locality": locality},
    )
