"""Word questions in zh and en about the facts and skills that the built-in models were trained on.

This module makes the questions that change files and prompts need; `tools/pocket/skills.py` makes those that only the
training of pocket:chat needs. A fact has openings x frames x noun phrases + whole questions. The wordings are data
(`wording/*.yaml`). Wordings under a `held_` key were never trained: they are used to check the models. All draws come
from the `random.Random` that is passed in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any, Literal, NamedTuple

from ruamel.yaml import YAML

from posttrain.models.facts import Fact, Name, facts, name_of, read

__all__ = ["LANGUAGES", "Grammar", "Language", "curriculum", "grammar", "small_talk", "wording"]

Language = Literal["zh", "en"]
LANGUAGES: tuple[Language, ...] = ("zh", "en")

ARTICLE = frozenset(
    [
        *("United States", "United Kingdom", "Netherlands", "Philippines", "Bahamas", "Gambia", "Maldives", "Comoros"),
        *("Czech Republic", "Dominican Republic", "Central African Republic", "Democratic Republic of the Congo"),
        *("Republic of the Congo", "United Arab Emirates", "Marshall Islands", "Solomon Islands", "Seychelles"),
    ]
)
"""The English country names that usually have an article."""

ALIASES: dict[str, tuple[str, ...]] = {
    "United States": ("the US", "the USA", "America", "USA"),
    "United Kingdom": ("the UK", "Britain", "UK"),
    "United Arab Emirates": ("the UAE",),
    "Czech Republic": ("Czechia",),
    "臺灣": ("台灣",),
    "南韓": ("韓國",),
}
TITLED = frozenset({"work_author", "work_artist", "work_composer"})
COUNTERS = {
    "mountain": "座山",
    "river": "條河",
    "city": "座城市",
    "country": "個國家",
    "lake": "個湖",
    "island": "個島",
    "animal": "種動物",
    "planet": "顆行星",
    "element": "個元素",
    "building": "棟建築",
    "ocean": "個洋",
    "county": "個縣",
}
LOWER_FIRST = re.compile(r"^(What|Which|Who|Where|How|Do|Can|Could|Tell|Name|Give|In|On|By|Is|If|I'd|Please|The)\b")


@cache
def wording(name: str) -> Any:
    """Return a wording file (`zh`, `en` or `skills`) as plain data."""
    return YAML(typ="safe").load(files("posttrain.data.pocket").joinpath("wording", f"{name}.yaml").read_text("utf-8"))


@dataclass(frozen=True)
class Grammar:
    """The questions of one language. Methods take a Random and are otherwise pure functions."""

    language: Language

    @property
    def table(self) -> Any:
        """Return the wording file of the language."""
        return wording(self.language)

    def text(self, name: Name) -> str:
        """Return the name in this language."""
        return name.zh if self.language == "zh" else name.en

    def subject(self, fact: Fact, rng: Random) -> str:
        """Return the subject as a person may write it: with article, alias, quotation or title marks at random."""
        text = self.text(fact.subject)
        if text in ALIASES and rng.random() < 0.3:
            return rng.choice(ALIASES[text])
        if self.language == "en":
            if text in ARTICLE and rng.random() < 0.8:
                return f"the {text}"
            if fact.relation in TITLED and rng.random() < 0.5:
                return rng.choice(['"{}"', "'{}'"]).format(text)
            return text
        if fact.relation in TITLED and rng.random() < 0.6:
            return rng.choice(["《{}》", "《{}》", "「{}」"]).format(text)
        return text

    def core(self, fact: Fact, rng: Random, *, held: bool = False) -> str:
        """Return a question about a fact without opening and closing: half are whole questions, half filled frames."""
        part = self.table["relations"][fact.relation]
        if rng.random() < 0.5:
            template = rng.choice(part["held_ask"] if held else part["ask"] + part.get("extra", []))
        else:
            np = rng.choice(part["np"])
            template = rng.choice(self.table["held_frames" if held else "frames"])
            template = template.replace("{wh}", rng.choice(part["wh"]))
            template = template.replace("{np}", np).replace("{Np}", np[0].upper() + np[1:])
        return self.fill(template, fact, rng)

    def fill(self, template: str, fact: Fact, rng: Random) -> str:
        """Return a template, filled with the subject of the fact."""
        subject = self.subject(fact, rng)
        text = template.replace("{e}", rng.choice(["", "呢", "啊"])).replace("{k}", COUNTERS.get(fact.kind, "個"))
        text = text.replace("the {s}", "{s}") if subject.startswith("the ") else text
        text = text.replace("{s}", subject).replace("{S}", subject)
        return text[0].upper() + text[1:] if self.language == "en" and rng.random() < 0.9 else text

    def dress(self, core: str, rng: Random, *, held: bool = False) -> str:
        """Add an opening and a closing to a question at random; vary case, punctuation and script."""
        opening = rng.choice(self.table["held_openings" if held else "openings"]) if rng.random() < 0.55 else ""
        closing = rng.choice(self.table["held_closings" if held else "closings"]) if rng.random() < 0.45 else ""
        asks_itself = self.language == "zh" and core.startswith(("請", "你知道", "能", "可"))
        if asks_itself and not opening.endswith(("，", "：", "！", "。")):
            opening = ""
        if opening.endswith(", ") and LOWER_FIRST.match(core):
            core = core[0].lower() + core[1:]
        if not closing and rng.random() < 0.2:
            core = core.rstrip("?？。.")
        text = opening + core + closing
        if self.language == "en":
            return text.lower() if rng.random() < 0.1 else text
        if rng.random() < 0.1:
            text = text.replace("？", "?").replace("，", ",")
        if rng.random() < 0.3:
            text = text.replace("臺", "台")
        return text


@cache
def grammar(language: Language) -> Grammar:
    """Return the grammar of a language."""
    return Grammar(language)


@cache
def curriculum() -> dict[str, tuple[Fact, ...]]:
    """Return relation -> the facts that pocket learns. Large tables are cut to what a few million parameters hold."""
    limit = {"work_author": 200, "person_country": 160, "city_country": 200}
    table: dict[str, list[Fact]] = {}
    for fact in facts():
        rows = table.setdefault(fact.relation, [])
        if len(rows) < limit.get(fact.relation, 10**9):
            rows.append(fact)
    return {relation: tuple(rows) for relation, rows in table.items()}


@cache
def _countries_and_cities() -> tuple[Name, ...]:
    """Return all countries and the first 300 cities, capitals before other cities."""
    countries = read("countries")
    capitals = [name_of(row, "capital_") for row in countries if row["capital_zh"]]
    return (*map(name_of, countries), *[*capitals, *map(name_of, read("cities"))][:300])


class Said(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str


DRESSED = {"identity": 0.7, "unknown": 0.7, "translate": 0.5, "sum": 0.4}
"""Kind of question -> the share of such questions that get an opening and a closing."""


def small_talk(kind: str, language: Language, rng: Random, cores: Sequence[str] = (), largest: int = 20) -> Said:
    """Return a question that is not about a fact of the curriculum, with its answer.

    It asks for a name in the other language (`translate`), for a `sum`, or for one fixed sentence (`identity`, `hello`,
    ...). cores: its wordings; if empty, the wordings that were trained; largest: the largest number in a sum.
    """
    filled: dict[str, str] = {}
    if kind == "translate":
        name = rng.choice(_countries_and_cities())
        filled["{s}"], answer = (name.zh, name.en) if language == "zh" else (name.en, name.zh)
    elif kind == "sum":
        a, b = rng.randint(0, largest), rng.randint(0, largest)
        filled, answer = {"{a}": str(a), "{b}": str(b)}, str(a + b)
    else:
        answer = wording("skills")["names"][language][kind]
    question = rng.choice(cores or wording("skills")[kind][language])
    for hole, text in filled.items():
        question = question.replace(hole, text)
    if kind in DRESSED and rng.random() < DRESSED[kind]:
        question = grammar(language).dress(question, rng)
    return Said(question, answer)
