"""Probes that are not counted: why, and how a note of an exam says so.

What had to stay was not there before, so nothing can be lost. Such a probe is in no score of locality and in none of
`kept`, `same`, `strict` and `judge`, which ask the same thing; leak, manner, drift and lengths ask other things of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = ["NO_FORM", "NO_REFUSAL", "Uncounted", "kind_of", "lacking", "uncounted", "uncounted_note"]

NO_REFUSAL = "the answer before is no refusal"
NO_FORM = "the answer before has no form: no JSON, list, table or code"

_NOTE = re.compile(r"(\d+) of (\d+) probes of (\S+) are not counted: (.*)", re.DOTALL)


class Uncounted(NamedTuple):
    """So many of a group's probes are not counted, for this reason."""

    k: int
    n: int
    group: str
    reason: str


def lacking(words: Sequence[str]) -> str:
    """Why a probe with `keeps` is not counted."""
    if len(words) == 1:
        return f"'{words[0]}' is not in the answer before: check `keeps`"
    named = ", ".join(f"'{word}'" for word in words)
    return f"{named} are not in the answer before: check `keeps`"


def kind_of(reason: str) -> str:
    """refusal, form or keeps."""
    return {NO_REFUSAL: "refusal", NO_FORM: "form"}.get(reason, "keeps")


def uncounted_note(left_out: int, total: int, group: str, note: str) -> str:
    """The note of an exam."""
    return f"{left_out} of {total} probes of {group} are not counted: {note}"


def uncounted(notes: Iterable[str]) -> list[Uncounted]:
    """What an exam's notes say of it; other notes are passed over."""
    found = (_NOTE.fullmatch(note) for note in notes)
    return [Uncounted(int(one[1]), int(one[2]), one[3], one[4]) for one in found if one is not None]
