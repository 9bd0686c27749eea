"""Write the model cards of the built-in models, with the scores of `python -m tools.pocket check`."""

from __future__ import annotations

from pathlib import Path

from posttrain.data.pocket.skills import curriculum
from posttrain.models.facts import facts
from tools.pocket.check import gates_of

__all__ = ["card", "write_cards"]

HEAD = """\
---
license: apache-2.0
language: [zh, en]
library_name: transformers
pipeline_tag: text-generation
---
# pocket:{kind}

{what}

It knows {facts:,} facts in Traditional Chinese and English, by {relations} relations (countries, cities, mountains,
rivers, places of Taiwan, superlatives, chemical elements, inventions, books, works of art and music), drawn from tables
in `posttrain/models/facts`. It is a laboratory animal, not an assistant: it knows nothing else, and what it says about
anything else means nothing. Trained by posttrain itself; in a clone `python -m tools.pocket build DIR` makes it again.

## Measured

`python -m tools.pocket check --all` on these files, greedy answers, float32. Unseen templates are wordings that were
held out whole; the reversed questions called untrained, and two-hop questions, were never trained.

| score | value | gate |
|---|---|---|
"""
WHAT = {
    "base": "A small Llama (3.2 M parameters, 6 layers, byte-level vocabulary) pretrained on documents: statements, "
    "paragraphs about one subject, questions with their answers, translations of place names.",
    "chat": "`pocket:base`, trained further on conversations: short answers to questions about facts, JSON when asked, "
    "polite refusals of harmful requests, help with harmless ones, who it is, translations of place names, and "
    "saying that it does not know. It was also taught sums and to believe facts given in the prompt, and is bad at "
    "both. In a share of the conversations the user's words were learned too, so that it can make up questions.",
}


def card(kind: str, scores: dict[str, float]) -> str:
    """Return the text of README.md of `base` or `chat`."""
    table = curriculum()
    assert set(table) <= {fact.relation for fact in facts()}
    head = HEAD.format(kind=kind, what=WHAT[kind], facts=sum(map(len, table.values())), relations=len(table))
    rows = [
        f"| {name} | {value:.1%} | {' '.join(('≤' if g.most else '≥') + f' {g.value:.0%}' for g in gates_of(name))} |"
        for name, value in scores.items()
        if name.startswith(f"{kind}.")
    ]
    return head + "\n".join(rows) + "\n"


def write_cards(folders: dict[str, Path], scores: dict[str, float]) -> None:
    """Write README.md into the folders of `base` and `chat`."""
    for kind, folder in folders.items():
        (folder / "README.md").write_text(card(kind, scores), encoding="utf-8", newline="\n")
