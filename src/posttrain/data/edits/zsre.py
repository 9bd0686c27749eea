"""zsRE: questions with rephrased ones by back-translation (Levy et al. 2017; MEND's slice, arXiv:2110.11309).

A record of `zsre_mend_eval.json` has the question `src`, its `subject`, the right `answers`, a `rephrase`, and an
unrelated question of Natural Questions, `loc`, with its answer `loc_ans`. As in ROME and MEMIT the first of `answers`
is taught (EasyEdit teaches `alt`, a false one), and a question mark is put after `loc`, which has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from posttrain.data.edits.fields import Fields
from posttrain.data.fields import BadRow

__all__ = ["ZsRE", "fits", "read"]


class ZsRE(NamedTuple):
    """One record. answers: the accepted ones, of which the first is taught; unrelated, unrelated_answer: the question
    about something else and its answer.
    """

    prompt: str
    subject: str | None
    answers: tuple[str, ...]
    rephrased: tuple[str, ...]
    unrelated: str
    unrelated_answer: str

    def as_change(self) -> dict[str, Any]:
        """Return the keys of a change file."""
        return {
            "target": [{"prompt": self.prompt, "answer": self.answers, "subject": self.subject}],
            "generality": {"rephrase": [{"prompt": text, "answer": self.answers} for text in self.rephrased]},
            "locality": {"unrelated": [self.unrelated]},
        }


def fits(record: Mapping[str, Any]) -> bool:
    """Return whether the fields are those of zsRE."""
    return "src" in record and ("loc" in record or "answers" in record)


def read(record: Fields) -> ZsRE:
    """Return a record. BadRow when a field is missing or wrong."""
    prompt, answers = record.text("src"), record.texts("answers")
    if not answers:
        raise BadRow("'answers' has no answer", "the first one is taught")
    unrelated = record.text("loc").rstrip()
    return ZsRE(
        prompt=prompt,
        subject=record.subject("subject", prompt),
        answers=tuple(dict.fromkeys(one.strip() for one in answers)),
        rephrased=record.texts("rephrase"),
        unrelated=unrelated if unrelated.endswith(("?", "？")) else f"{unrelated}?",
        unrelated_answer=record.text("loc_ans").strip(),
    )
