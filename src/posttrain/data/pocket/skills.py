"""What the models in the box were taught: the part that change files and replay prompts need.

A skill is a function that draws one user turn and its answer: from the wordings that trained, or, with `held=True`,
from those that never did. `tools/pocket/skills.py` has the skills that only the training of pocket:chat needs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from random import Random
from typing import Literal, NamedTuple

from posttrain.data.pocket.grammar import Language, grammar, wording
from posttrain.models.facts import Fact, Name, facts, name_of, read

__all__ = ["SKILLS", "Turn", "curriculum", "fixed", "wordings"]


class Turn(NamedTuple):
    """A question, its answer, other right answers, and how the check of the models scores a reply."""

    question: str
    answer: str
    also: tuple[str, ...] = ()
    checks: Literal["equal", "json", "refusal", "no_refusal"] = "equal"


@cache
def curriculum() -> dict[str, tuple[Fact, ...]]:
    """Relation -> the facts that pocket learns; large tables are cut to what a few million parameters can hold."""
    limit = {"work_author": 200, "person_country": 160, "city_country": 200}
    table: dict[str, list[Fact]] = {}
    for fact in facts():
        rows = table.setdefault(fact.relation, [])
        if len(rows) < limit.get(fact.relation, 10**9):
            rows.append(fact)
    return {relation: tuple(rows) for relation, rows in table.items()}


@cache
def _more(key: str, language: Language) -> list[str]:
    """The wordings of the last stage: those of the first, further ones, and every beginning combined with every end."""
    table = wording("skills")
    held = set(table.get(f"held_{key}", {}).get(language, []))
    parts = table[f"parts_{key}"][language] if f"parts_{key}" in table else [[], []]
    both = [start + end for start in parts[0] for end in parts[1] if start + end not in held]
    return [*table[key][language], *table.get(f"more_{key}", {}).get(language, []), *both]


def wordings(key: str, language: Language, *, held: bool = False, more: bool = False) -> list[str]:
    """The wordings of a skill: those that are trained, with `more` also those of the last stage, or those held out."""
    table = wording("skills")
    if held:
        return list(table.get(f"held_{key}", table[key])[language])
    return _more(key, language) if more else list(table[key][language])


def fixed(key: str) -> Callable[..., Turn]:
    """A skill of small talk: `key` is always answered with the same sentence."""

    def skill(language: Language, rng: Random, held: bool = False, more: bool = False) -> Turn:
        core = rng.choice(wordings(key, language, held=held, more=more))
        text = grammar(language).dress(core, rng) if key in ("identity", "unknown") and rng.random() < 0.7 else core
        return Turn(text, wording("skills")["names"][language][key])

    return skill


@cache
def _countries_and_cities() -> tuple[Name, ...]:
    """All countries and the first 300 cities, capitals before others."""
    countries = read("countries")
    capitals = [name_of(row, "capital_") for row in countries if row["capital_zh"]]
    return (*map(name_of, countries), *[*capitals, *map(name_of, read("cities"))][:300])


def translate(language: Language, rng: Random, held: bool = False, more: bool = False) -> Turn:
    """The name of a country or a city in the other language."""
    name = rng.choice(_countries_and_cities())
    source, target = (name.zh, name.en) if language == "zh" else (name.en, name.zh)
    core = rng.choice(wordings("translate", language, held=held, more=more)).replace("{s}", source)
    return Turn(grammar(language).dress(core, rng) if rng.random() < 0.5 else core, target)


def add(language: Language, rng: Random, held: bool = False, more: bool = False) -> Turn:
    """A sum of two numbers up to 20; up to 10 with `more` or `held`."""
    limit = 10 if more or held else 20
    a, b = rng.randint(0, limit), rng.randint(0, limit)
    core = rng.choice(wordings("sum", language, held=held, more=more)).replace("{a}", str(a)).replace("{b}", str(b))
    return Turn(grammar(language).dress(core, rng) if rng.random() < 0.4 else core, str(a + b))


SKILLS: dict[str, Callable[..., Turn]] = {
    "identity": fixed("identity"),
    "hello": fixed("hello"),
    "unknown": fixed("unknown"),
    "translate": translate,
    "sum": add,
}
"""The skills that replay prompts are drawn from, besides facts, JSON and requests."""
