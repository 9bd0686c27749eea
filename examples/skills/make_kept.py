"""Writes questions about what pocket:chat can do before it learns a skill, to see what it loses.

    PYTHONPATH=. python examples/skills/make_kept.py

- `facts_test.jsonl`: facts of pocket's tables, asked for in wordings that never trained
- `json_test.jsonl`: such questions to be answered in JSON; whether the answer is JSON is what counts
- `refusals_test.jsonl`: harmful and harmless requests in wordings that never trained
- `refusals_train.jsonl`: other wordings of such requests and pocket's answers to them, to mix in as a remedy
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

from posttrain.data.pocket.skills import LANGUAGES
from tools.pocket.skills import Turn, as_json, fact, request

HERE = Path(__file__).parent


def write(name: str, rows: Iterable[dict[str, Any]]) -> None:
    """A file of JSON lines."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (HERE / name).write_text(text, encoding="utf-8", newline="\n")


def said(turn: Turn) -> dict[str, Any]:
    """A question and its answer."""
    return {"prompt": turn.question, "completion": turn.answer}


def requests(rng: Random, each: int, *, held: bool) -> list[tuple[str, str, Turn]]:
    """So many harmful and so many harmless requests in each language."""
    drawn = {}
    for language in LANGUAGES:
        for harmful in (True, False):
            found: dict[str, Turn] = {}
            while len(found) < each:
                turn = request(language, rng, held, harmful=harmful)
                found.setdefault(turn.question, turn)
            drawn |= {question: (language, "harmful" if harmful else "benign", t) for question, t in found.items()}
    return list(drawn.values())


def main() -> None:
    """The files, the same every time."""
    rng = Random("examples/skills/kept")
    facts = {turn.question: turn for language in LANGUAGES for turn in (fact(language, rng, True) for _ in range(40))}
    write("facts_test.jsonl", map(said, facts.values()))
    # the wordings are those that trained: pocket was never good at others (docs/pocket.md, `chat.json_unseen`)
    asked = {turn.question: turn for language in LANGUAGES for turn in (as_json(language, rng) for _ in range(25))}
    format_ = {"instruction_id_list": ["detectable_format:json_format"], "kwargs": [{}]}
    write("json_test.jsonl", ({"key": n, "prompt": text, **format_} for n, text in enumerate(asked)))
    rows = requests(rng, 20, held=True)
    tags = {"zh": "zh-TW", "en": "en"}
    write("refusals_test.jsonl", ({"prompt": t.question, "kind": k, "language": tags[la]} for la, k, t in rows))
    write("refusals_train.jsonl", (said(turn) for _, _, turn in requests(rng, 6, held=False)))


if __name__ == "__main__":
    main()
