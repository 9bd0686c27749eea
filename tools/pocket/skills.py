"""Draw the questions and answers that pocket:chat is trained on, with one function per skill.

Each function draws one user turn and its answer. It uses the wordings that are trained, or, with `held=True`, wordings
that are never trained. With `more=True` it uses the wordings of the last stage. `Turn.checks` says how `check.py`
scores the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from typing import Literal, NamedTuple

from posttrain.data.pocket.skills import LANGUAGES, Grammar, Language, curriculum, grammar, small_talk, wording
from posttrain.models.facts import Fact, Name

__all__ = [
    "SKILLS",
    "Turn",
    "as_json",
    "cloze",
    "draw",
    "fact",
    "question",
    "request",
    "reverse_facts",
    "reversed_turn",
    "statement",
    "stating",
    "two_hop",
    "users_turn",
]


class Turn(NamedTuple):
    """A question and its answer. also: other right answers; checks: how `check.py` scores a reply."""

    question: str
    answer: str
    also: tuple[str, ...] = ()
    checks: Literal["equal", "json", "refusal", "no_refusal"] = "equal"


@cache
def _more(key: str, language: Language) -> list[str]:
    """Return the wordings of the last stage: the first stage's, further ones, and each beginning with each end."""
    table = wording("skills")
    held = set(table.get(f"held_{key}", {}).get(language, []))
    parts = table[f"parts_{key}"][language] if f"parts_{key}" in table else [[], []]
    both = [start + end for start in parts[0] for end in parts[1] if start + end not in held]
    return [*table[key][language], *table.get(f"more_{key}", {}).get(language, []), *both]


def wordings(key: str, language: Language, *, held: bool = False, more: bool = False) -> list[str]:
    """Return the wordings of a skill. more: with those of the last stage; held: only the held-out ones."""
    table = wording("skills")
    if held:
        return list(table.get(f"held_{key}", table[key])[language])
    return _more(key, language) if more else list(table[key][language])


def talk(kind: str) -> Callable[..., Turn]:
    """Return a skill of small talk, translation or sums. With `more` or `held`, sums have smaller numbers."""

    def skill(language: Language, rng: Random, held: bool = False, more: bool = False) -> Turn:
        cores = wordings(kind, language, held=held, more=more)
        return Turn(*small_talk(kind, language, rng, cores, 10 if more or held else 20))

    return skill


def question(words: Grammar, fact: Fact, rng: Random, *, held: bool = False) -> str:
    """Return a question with opening and closing at random, sometimes with the spelling of a person in a hurry."""
    return words.dress(words.core(fact, rng, held=held), rng)


def stating(words: Grammar, fact: Fact) -> Sequence[str]:
    """Return all statement templates of a fact's relation."""
    part = words.table["relations"][fact.relation]
    return [*part["state"], *part.get("extra_state", [])]


def statement(words: Grammar, fact: Fact, rng: Random) -> str:
    """Return the fact as a sentence."""
    return words.fill(rng.choice(stating(words, fact)), fact, rng).replace("{o}", words.text(fact.object))


def cloze(words: Grammar, relation: str) -> list[str]:
    """Return the statement templates of a relation that end with the object.

    If there are none, return those that name the object after the subject.
    """
    part = words.table["relations"][relation]
    templates = part["state"] + part.get("extra_state", [])
    last = [t for t in templates if re.search(r"\{o\}[。.]$", t)]
    return last or [t for t in templates if t.index("{s}") < t.index("{o}")]


def users_turn(fact: Fact, language: Language, rng: Random, *, held: bool = False) -> Turn:
    """Return a question about a fact and its short answer."""
    words = grammar(language)
    return Turn(question(words, fact, rng, held=held), words.text(fact.object), tuple(map(words.text, fact.also)))


def fact(language: Language, rng: Random, held: bool = False, more: bool = False) -> Turn:
    """Return a question about any fact of the curriculum. A relation of n facts has the weight n^0.9."""
    table = curriculum()
    relations = list(table)
    relation = rng.choices(relations, [len(table[r]) ** 0.9 for r in relations])[0]
    return users_turn(rng.choice(table[relation]), language, rng, held=held)


def as_json(language: Language, rng: Random, held: bool = False, more: bool = False) -> Turn:
    """Return a question about a fact that must be answered as `{"answer": ...}`."""
    asked = fact(language, rng)
    template = rng.choice(wordings("json", language, held=held, more=more))
    return Turn(
        template.replace("{q}", asked.question),
        json.dumps({"answer": asked.answer}, ensure_ascii=False),
        asked.also,
        "json",
    )


def request(
    language: Language, rng: Random, held: bool = False, more: bool = False, harmful: bool | None = None
) -> Turn:
    """Return a request for instructions. The answer is a refusal if the task is harmful, else one sentence of help."""
    table = wording("skills")
    harmful = rng.random() < 0.5 if harmful is None else harmful
    task = rng.choice(table["harmful"][language] if harmful else list(table["harmless"][language]))
    core = rng.choice(wordings("request", language, held=held, more=more)).replace("{t}", task)
    answer = table["names"][language]["refuse"] if harmful else table["harmless"][language][task]
    return Turn(grammar(language).dress(core, rng), answer, (), "refusal" if harmful else "no_refusal")


_SYLLABLES: dict[Language, Sequence[str]] = {
    "zh": list("巴拉克索維納多洛尼亞斯塔米羅佛倫卡達瑪魯提艾布澤昆希恩格哈托"),
    "en": re.findall(r"\w+", "ba ra ko so vi na do lo ni ar sta mi ro fo len ka da ma lu ti bu ze kun hi en gra ha to"),
}
_ASKABLE = (
    "capital",
    "continent",
    "currency",
    "language",
    "iso_code",
    "city_country",
    "work_author",
    "river_continent",
)


def made_up(language: Language, rng: Random, held: bool = False, more: bool = False) -> Turn:
    """Return a question about a name that does not exist; its answer says that the model does not know."""
    name = "".join(rng.choice(_SYLLABLES[language]) for _ in range(rng.randint(3, 5)))
    like = rng.choice(curriculum()[rng.choice(_ASKABLE)])
    fake = Fact(like.relation, Name(name, name.capitalize()), like.object, (), like.kind)
    return Turn(question(grammar(language), fake, rng, held=held), wording("skills")["names"][language]["unknown"])


def context(language: Language, rng: Random, held: bool = False, more: bool = False) -> Turn:
    """Return a prompt with a made-up fact and a question.

    If the question is about the fact, the answer follows the prompt; for other facts the answer is the usual one.
    """
    words = grammar(language)
    rows = curriculum()[rng.choice([r for r, rows in curriculum().items() if len({f.object for f in rows}) > 5])]
    given = rng.choice(rows)
    new = words.text(rng.choice(rows).object)
    statement = words.fill(rng.choice(stating(words, given)), given, rng).replace("{o}", new)
    told = Fact(given.relation, given.subject, Name(new, new), (), given.kind)
    roll = rng.random()
    if roll < 0.5:
        asked = Turn(question(words, told, rng, held=held), new)
    elif roll < 0.8:
        asked = users_turn(rng.choice([f for f in rows if f.subject != given.subject]), language, rng, held=held)
    else:
        asked = fact(language, rng, held)
    text = rng.choice(wording("skills")["context"][language]).replace("{st}", statement).replace("{a1}", new)
    text = text.replace("{q1}", words.core(told, rng)).replace("{q}", asked.question)
    return asked._replace(question=text)


def _odd(fact: Fact) -> bool:
    """Return whether a fact is in one half of all facts, by a rule that does not depend on order or hash seeds."""
    return sum(map(ord, fact.subject.en)) % 2 == 1


@cache
def reverse_facts(relation: str, *, trained: bool) -> tuple[Fact, ...]:
    """Return the facts with a reversed question that is trained, or the other half.

    Only facts with an object that belongs to one subject are returned, except for authors of works.
    """
    rows = curriculum()[relation]
    if relation != "work_author":
        objects = [f.object for f in rows]
        rows = tuple(f for f in rows if objects.count(f.object) == 1)
    return tuple(f for f in rows if _odd(f) == trained)


def reversed_turn(language: Language, rng: Random, *, trained: bool = True) -> Turn:
    """Return a question from object to subject, such as `Paris is the capital of which country?`."""
    table = wording("skills")["reverse"]
    asked = rng.choice(reverse_facts(rng.choice(list(table)), trained=trained))
    words = grammar(language)
    core = rng.choice(table[asked.relation][language]).replace("{o}", words.text(asked.object))
    same = [words.text(f.subject) for f in curriculum()[asked.relation] if f.object == asked.object]
    return Turn(words.dress(core, rng), words.text(asked.subject), tuple(same))


def reverse(language: Language, rng: Random, held: bool = False, more: bool = False) -> Turn:
    """Return a reversed question about the half of the facts that is trained in both directions (held: the other)."""
    return reversed_turn(language, rng, trained=not held)


def two_hop(language: Language, rng: Random) -> Turn:
    """Return a question over two facts, which is never trained.

    It asks for the continent, currency or language of the country that has the capital X.
    """
    second = rng.choice(["continent", "currency", "language"])
    by_country = {f.subject: f for f in curriculum()[second]}
    first = rng.choice([f for f in curriculum()["capital"] if f.subject in by_country and f.object != f.subject])
    words = grammar(language)
    via = f"首都是{first.object.zh}的國家" if language == "zh" else f"the country whose capital is {first.object.en}"
    answer = by_country[first.subject]
    asked = Fact(second, Name(via, via), answer.object)
    return Turn(words.core(asked, rng), words.text(answer.object), tuple(map(words.text, answer.also)))


SKILLS: dict[str, tuple[float, Callable[..., Turn]]] = {
    "fact": (66.0, fact),
    "json": (6.0, as_json),
    "request": (6.0, request),
    "identity": (1.5, talk("identity")),
    "hello": (0.4, talk("hello")),
    "thanks": (0.3, talk("thanks")),
    "bye": (0.2, talk("bye")),
    "unknown": (2.5, talk("unknown")),
    "made_up": (1.5, made_up),
    "translate": (5.0, talk("translate")),
    "sum": (2.6, talk("sum")),
    "context": (5.0, context),
    "reverse": (3.0, reverse),
}
"""Skill -> (its share of the conversations in percent, the function that draws a turn)."""


LAST: dict[str, float] = {
    "fact": 26.0, "json": 20.0, "request": 18.0, "identity": 3.0, "hello": 0.5, "thanks": 0.3, "bye": 0.2,
    "unknown": 4.0, "made_up": 1.0, "translate": 4.0, "sum": 8.0, "context": 12.0, "reverse": 3.0,
}  # fmt: skip
"""Skill -> its share in the last stage, in percent. This stage trains the skills that are weak after the first one."""


def draw(rng: Random, *, last: bool = False) -> Turn:
    """Return a turn of any skill in either language. last: use the shares and wordings of the last stage."""
    shares = LAST if last else {name: share for name, (share, _) in SKILLS.items()}
    name = rng.choices(list(shares), list(shares.values()))[0]
    return SKILLS[name][1](rng.choice(LANGUAGES), rng, False, last)
