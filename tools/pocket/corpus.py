"""The texts pocket learns from: documents for pocket:base, conversations for pocket:chat; by seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from random import Random

from posttrain.data.pocket.skills import LANGUAGES, Language, curriculum, grammar, small_talk
from posttrain.data.records import Conversation, Message
from posttrain.models.facts import Fact, Name
from tools.pocket.skills import Turn, draw, statement, users_turn

__all__ = ["about", "conversations", "documents", "review"]

USER_SHARE = 0.15
"""Share of conversations whose user turns are learned too, so that the model can make up questions."""


@cache
def _about() -> dict[Name, tuple[Fact, ...]]:
    """Subject -> all facts about it."""
    table: dict[Name, list[Fact]] = defaultdict(list)
    for rows in curriculum().values():
        for fact in rows:
            table[fact.subject].append(fact)
    return {name: tuple(rows) for name, rows in table.items()}


def about(subject: Name) -> tuple[Fact, ...]:
    """All facts of the curriculum about a subject."""
    return _about()[subject]


def _pick(rng: Random) -> Fact:
    table = curriculum()
    relations = list(table)
    relation = rng.choices(relations, [len(table[r]) ** 0.9 for r in relations])[0]
    return rng.choice(table[relation])


def document(rng: Random) -> str:
    """One document: a statement, a paragraph about one subject, a question with its answer, or a translation."""
    language: Language = rng.choice(LANGUAGES)
    words = grammar(language)
    space = "" if language == "zh" else " "
    roll = rng.random()
    if roll < 0.40:
        return statement(words, _pick(rng), rng)
    if roll < 0.65:
        known = about(_pick(rng).subject)
        chosen = rng.sample(known, min(len(known), rng.randint(2, 4)))
        return space.join(statement(words, fact, rng) for fact in chosen)
    if roll < 0.95:
        turn = users_turn(_pick(rng), language, rng)
        return (
            f"問：{turn.question}\n答：{turn.answer}" if language == "zh" else f"Q: {turn.question}\nA: {turn.answer}"
        )
    said = small_talk("translate", language, rng)
    return f"{said.question} {said.answer}"


def documents(seed: int) -> Iterator[str]:
    """Documents without end."""
    rng = Random(f"pocket documents {seed}")
    while True:
        yield document(rng)


HARD = {"element_number": 1.8, "element_symbol": 1.4, "work_author": 1.5, "invention_inventor": 1.6, "work_artist": 1.4}
"""Relations whose objects follow no pattern, repeated more often."""


def review(seed: int) -> Iterator[str]:
    """Statements without end, one to three about one subject: what pocket:base reads last."""
    rng = Random(f"pocket review {seed}")
    table = curriculum()
    weights = [len(rows) * HARD.get(relation, 1.0) for relation, rows in table.items()]
    while True:
        words = grammar(rng.choice(LANGUAGES))
        fact = rng.choice(table[rng.choices(list(table), weights)[0]])
        sentences = [statement(words, fact, rng)]
        known = about(fact.subject)
        if rng.random() < 0.3:
            sentences += [statement(words, f, rng) for f in rng.sample(known, min(len(known), 2))]
        yield ("" if words.language == "zh" else " ").join(sentences)


def _hard(rng: Random) -> Turn:
    """A question about a relation that needs repeating."""
    table = curriculum()
    relation = rng.choices(list(HARD), [len(table[r]) for r in HARD])[0]
    return users_turn(rng.choice(table[relation]), rng.choice(LANGUAGES), rng)


def conversations(seed: int, *, repeat: float = 0.0, last: bool = False) -> Iterator[Conversation]:
    """Conversations without end: mostly one turn, sometimes two or three, a share with the user's words learned.

    repeat: share of the turns that ask about the hard relations, beyond what their size gives them; last: the mixture
    of the last stage.
    """
    rng = Random(f"pocket {'last ' if last else ''}conversations {seed}")
    number = 0
    while True:
        number += 1
        turns = [
            _hard(rng) if repeat and rng.random() < repeat else draw(rng)
            for _ in range(rng.choices([1, 2, 3], [92, 6, 2])[0])
        ]
        learn = True if rng.random() < USER_SHARE else None
        messages: list[Message] = []
        for turn in turns:
            messages += [Message("user", turn.question, train=learn), Message("assistant", turn.answer)]
        yield Conversation(tuple(messages), f"pocket:{seed}:{number}")
