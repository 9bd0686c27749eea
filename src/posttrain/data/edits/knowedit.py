"""KnowEdit: six editing tasks in one form (Zhang et al. 2024, arXiv:2401.01286), without ConvSent and Sanitation.

A record has `prompt`, `subject` and `target_new` (WikiBio: `text`, `concept` and `labels`), perhaps `rephrase_prompt`
(or `rephrase`), and under `portability` and `locality` lists of {prompt, ground_truth} by group. A `ground_truth` is a
text, a list of texts that mean the same, or a list of such lists. As in EasyEdit's code a record with an empty target
and a probe without an answer are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from posttrain.data.edits.fields import Fields, Probe, Skipped, answers_of
from posttrain.data.fields import BadRow, kind_of

__all__ = ["LOCALITY", "PORTABILITY", "KnowEdit", "fits", "read"]

PORTABILITY = ("Subject_Aliasing", "Reasoning", "Logical_Generalization")
LOCALITY = ("Relation_Specificity", "Forgetfulness")


class KnowEdit(NamedTuple):
    """One record. portability, locality: group -> its probes; unanswered: the number of probes left out."""

    prompt: str
    subject: str | None
    new: str
    rephrased: tuple[str, ...]
    portability: Mapping[str, tuple[Probe, ...]]
    locality: Mapping[str, tuple[Probe, ...]]
    unanswered: int

    def as_change(self) -> dict[str, Any]:
        """Return the keys of a change file."""
        rephrased = [{"prompt": text, "answer": self.new} for text in self.rephrased]
        return {
            "target": [{"prompt": self.prompt, "answer": self.new, "subject": self.subject}],
            "generality": {
                "rephrase": [*rephrased, *map(_expected, self.portability.get(PORTABILITY[0], ()))],
                "hop": [_expected(probe) for group in PORTABILITY[1:] for probe in self.portability.get(group, ())],
            },
            "locality": {"neighbour": [probe.prompt for group in LOCALITY for probe in self.locality.get(group, ())]},
        }


def _expected(probe: Probe) -> dict[str, Any]:
    return {"prompt": probe.prompt, "answer": probe.aliases}


def fits(record: Mapping[str, Any]) -> bool:
    """Return whether the fields are those of KnowEdit."""
    if {"text", "labels", "concept"} <= record.keys() or "portability" in record:
        return True
    groups = record.get("locality")
    grouped = isinstance(groups, Mapping) and any(name in groups for name in LOCALITY)
    return "target_new" in record and (grouped or "rephrase_prompt" in record or "ground_truth" in record)


def read(record: Fields) -> KnowEdit:
    """Return a record. Skipped for an empty target, BadRow when a field is missing or wrong."""
    prompt_key, target_key, subject_key = (
        own if own in record.value or other not in record.value else other
        for own, other in (("prompt", "text"), ("target_new", "labels"), ("subject", "concept"))
    )
    prompt, target = record.text(prompt_key), record.value.get(target_key)
    if target in ("", [], [""]):
        raise Skipped("an empty target")
    new = record.text(target_key) if target is None else answers_of(target, target_key)[0][0]
    portability, left = _groups(record, "portability", PORTABILITY)
    locality, more = _groups(record, "locality", LOCALITY)
    return KnowEdit(
        prompt=prompt,
        subject=record.subject(subject_key, prompt),
        new=new,
        rephrased=record.texts("rephrase_prompt") or record.texts("rephrase"),
        portability=portability,
        locality=locality,
        unanswered=left + more,
    )


def _groups(record: Fields, key: str, known: tuple[str, ...]) -> tuple[dict[str, tuple[Probe, ...]], int]:
    """Return the probes by group, and the number of probes without an answer."""
    if record.value.get(key) in (None, [], {}):
        return {}, 0
    groups = record.part(key)
    found: dict[str, tuple[Probe, ...]] = {}
    left = 0
    for name in groups.value:
        if name not in known:
            raise BadRow(f"'{key}' has the unknown group '{name}'", f"KnowEdit has {', '.join(known)}")
        probes = []
        for one in groups.parts(name):
            try:
                probes.append(Probe(_prompt(one), answers_of(one.value.get("ground_truth"), one.name("ground_truth"))))
            except Skipped:
                left += 1
        if probes:
            found[name] = tuple(probes)
    return found, left


def _prompt(probe: Fields) -> str:
    """Return the prompt of a probe, which some copies of the data have as a list of one."""
    value = probe.value.get("prompt")
    if isinstance(value, list) and len(value) == 1:
        return Fields({"prompt": value[0]}, probe.at).text("prompt")
    if isinstance(value, list):
        raise BadRow(f"'{probe.name('prompt')}' must be one text, got {kind_of(value)} of {len(value)}")
    return probe.text("prompt")
