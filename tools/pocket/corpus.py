"""Make the texts that pocket learns, from a seed: documents for pocket:base, conversations for pocket:chat."""

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
"""The share of conversations with user turns that are learned too, so that the model can make up questions."""


@cache
def _about() -> dict[Name, tuple[Fact, ...]]:
    """Return subject -> all facts about it."""
    table: dict[Name, list[Fact]] = defaultdict(list)
    for rows in curriculum().values():
        for fact in rows:
            table[fact.subject].append(fact)
    return {name: tuple(rows) for name, rows in table.items()}


def about(subject: Name) -> tuple[Fact, ...]:
    """Return all facts of the curriculum about a subject."""
    return _about()[subject]


def _pick(rng: Random) -> Fact:
    table = curriculum()
    relations = list(table)
    relation = rng.choices(relations, [len(table[r]) ** 0.9 for r in relations])[0]
    return rng.choice(table[relation])


def document(rng: Random) -> str:
    """Return a document: a statement, a paragraph about one subject, a question with its answer, or a translation."""
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
    """Yield documents without end."""
    rng = Random(f"pocket documents {seed}")
    while True:
        yield document(rng)


HARD = {"element_number": 1.8, "element_symbol": 1.4, "work_author": 1.5, "invention_inventor": 1.6, "work_artist": 1.4}
"""Relation with objects that follow no pattern -> the factor by which its statements are repeated more often."""


def review(seed: int) -> Iterator[str]:
    """Yield texts without end, of one to three statements about one subject. pocket:base reads them last."""
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
    """Return a question about one of the hard relations (HARD)."""
    table = curriculum()
    relation = rng.choices(list(HARD), [len(table[r]) for r in HARD])[0]
    return users_turn(rng.choice(table[relation]), rng.choice(LANGUAGES), rng)


def conversations(seed: int, *, repeat: float = 0.0, last: bool = False) -> Iterator[Conversation]:
    """Yield conversations without end, mostly of one question and answer, sometimes of two or three.

    In a share of them the user's words are learned too. repeat: share of the turns that ask about the hard relations,
    in addition to their usual share; last: changes the seed of the draws for the last stage.
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
