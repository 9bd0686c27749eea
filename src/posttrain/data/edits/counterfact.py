"""CounterFact: 21,919 facts to complete, each with a false object (Meng et al. 2022, arXiv:2202.05262).

A record changes one object: `requested_rewrite` has the prompt with `{}` for the subject, and the new and the true
object. The paraphrases ask the same after an unrelated sentence. `neighborhood_prompts` are about other subjects with
the true object, `attribute_prompts` about other subjects with the new one: what is said of both must stay.
`multi_counterfact` has the same fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from posttrain.data.edits.fields import Fields
from posttrain.data.fields import BadRow

__all__ = ["CounterFact", "fits", "read"]


class CounterFact(NamedTuple):
    """One record. new, true: the objects; new_id, relation: Wikidata's names, for reference texts (may be empty)."""

    prompt: str
    subject: str
    new: str
    true: str
    new_id: str
    relation: str
    paraphrases: tuple[str, ...]
    neighbours: tuple[str, ...]
    attributes: tuple[str, ...]
    generation: tuple[str, ...]

    def as_change(self) -> dict[str, Any]:
        """Return the keys of a change file."""
        return {
            "target": [{"prompt": self.prompt, "answer": self.new, "subject": self.subject}],
            "generality": {"rephrase": [{"prompt": text, "answer": self.new} for text in self.paraphrases]},
            "locality": {"same_pattern": self.attributes, "neighbour": self.neighbours},
        }


def fits(record: Mapping[str, Any]) -> bool:
    """Return whether the fields are those of CounterFact."""
    return "requested_rewrite" in record


def read(record: Fields) -> CounterFact:
    """Return a record. BadRow when a field is missing or wrong."""
    rewrite = record.part("requested_rewrite")
    template, subject = rewrite.text("prompt"), rewrite.text("subject")
    if template.count("{}") != 1:
        cause = f"'{rewrite.name('prompt')}' must have {{}} once, where the subject stands, got {template!r}"
        raise BadRow(cause)
    new, true = rewrite.part("target_new"), rewrite.part("target_true")
    return CounterFact(
        prompt=template.replace("{}", subject),
        subject=subject,
        new=new.text("str").strip(),
        true=true.text("str").strip(),
        new_id=str(new.value.get("id") or ""),
        relation=str(rewrite.value.get("relation_id") or ""),
        paraphrases=record.texts("paraphrase_prompts"),
        neighbours=record.texts("neighborhood_prompts"),
        attributes=record.texts("attribute_prompts"),
        generation=record.texts("generation_prompts"),
    )
