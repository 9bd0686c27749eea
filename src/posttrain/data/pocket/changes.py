"""Make change files from pocket's facts: a new object for one fact, with its generality and locality probes.

The new object is a name that the model knows, of the same kind as the old object, because a name that the model has
never seen cannot be learned from one example. Locality probes are drawn from one half of the facts (`_reserved`), and
training rows such as `same_pattern_rows` from the other half, so that no probe asks about a trained fact.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from random import Random
from typing import Any

from posttrain.data.pocket.skills import Grammar, Language, curriculum, grammar, small_talk, wording
from posttrain.data.scripts import normalise_prompt, normalised
from posttrain.models.facts import Fact, Name

__all__ = [
    "RELATIONS",
    "SIZES",
    "as_yaml",
    "changes",
    "for_one_model",
    "pattern_of",
    "prompts_of",
    "replay_prompts",
    "same_pattern_rows",
    "shortened",
]

RELATIONS = (
    "superlative",
    "capital",
    "capital",
    "superlative",
    "currency",
    "work_author",
    "invention_inventor",
    "language",
)
"""The relations of the changes; change number n has the relation at n modulo 8."""

LEFT_ALONE = frozenset({"Taiwan", "China", "Ukraine", "Russia", "North Korea", "South Korea"})
"""The subjects that no change is about: an invented capital or language of these could be taken for an opinion."""

SIZES = {
    "rephrase": 6,
    "cross_lingual": 4,
    "reverse": 2,
    "hop": 2,
    "same_pattern": 12,
    "neighbour": 6,
    "unrelated": 16,
    "format": 4,
    "refusal": 6,
}
"""Kind of probe -> the number of such probes in a change file."""

TURNED = {
    ("superlative", "zh"): ["{o}是什麼？", "{o}以什麼聞名？"],
    ("superlative", "en"): ["What is {o}?", "What is {o} known for?"],
}
"""(relation, language) -> reversed questions that pocket was not trained on."""


@cache
def _known() -> tuple[Fact, ...]:
    return tuple(fact for rows in curriculum().values() for fact in rows)


def _about(*names: Name) -> list[Fact]:
    """Return the facts about these subjects, in the order of all facts."""
    wanted = frozenset(names)
    return [fact for fact in _known() if fact.subject in wanted]


@cache
def _changeable(relation: str) -> list[Fact]:
    """Return the facts of a relation that a change may be about."""
    rows = curriculum()[relation]
    return [f for f in rows if f.object not in (f.subject, *f.also) and f.subject.en not in LEFT_ALONE]


@cache
def _others(relation: str) -> list[Fact]:
    """Return the facts of all other relations that locality probes may ask about."""
    return [f for f in _known() if f.relation != relation and _reserved(f)]


def _plain(fact: Fact, language: Language, index: int = 0) -> str:
    """Return a question about a fact in one of its plain wordings."""
    words = grammar(language)
    text = words.text(fact.subject)
    if language == "zh" and fact.relation in ("work_author", "work_artist", "work_composer"):
        text = f"《{text}》"
    template = words.table["relations"][fact.relation]["ask"][index]
    return words.fill(template.replace("{e}", ""), fact, Random(0)) if "{k}" in template else _put(template, text)


def _put(template: str, text: str) -> str:
    template = template.replace("the {s}", "{s}") if text.startswith("the ") else template
    return template.replace("{e}", "").replace("{s}", text)


def _reserved(fact: Fact) -> bool:
    """Return whether a fact is in the half that locality probes may ask about; the other half may be trained."""
    return sum(map(ord, fact.subject.en)) % 2 == 0


def same_pattern_rows(change_relation: str, language: Language, n: int, rng: Random) -> list[tuple[str, str]]:
    """Return at most `n` (question, true answer) pairs of the same pattern. None of them is ever a probe."""
    rows = [f for f in curriculum()[change_relation] if not _reserved(f)]
    return [(_plain(f, language), grammar(language).text(f.object)) for f in rng.sample(rows, min(n, len(rows)))]


def prompts_of(body: dict[str, Any]) -> set[str]:
    """Return every prompt of a change: of its target and of all probes."""
    groups = [body["target"], *body["generality"].values(), *body["locality"].values()]
    return {probe if isinstance(probe, str) else probe["prompt"] for group in groups for probe in group}


def pattern_of(body: dict[str, Any], n: int, seed: int, asked: frozenset[str]) -> list[dict[str, str]]:
    """Return rows of the same pattern as a change's target, in its language, as prompt and completion.

    They are `n`, or fewer, as a relation has about 100 facts. asked: the prompts of the changes that are examined
    together (`prompts_of`), which are left out.
    """
    name = body["name"].partition("_")[2]  # after the number, which has any number of digits
    relation = next(r for r in RELATIONS if name.startswith(r))
    language: Language = "zh" if any(ord(c) > 0x2E80 for c in body["target"][0]["prompt"]) else "en"
    pairs = same_pattern_rows(relation, language, 10 * n, Random(f"pattern {seed} {body['name']}"))
    taken = normalised(asked)
    return [{"prompt": q, "completion": a} for q, a in pairs if normalise_prompt(q) not in taken][:n]


def _new_object(rows: list[Fact], rng: Random) -> tuple[Fact, Name]:
    """Draw a fact and a wrong object of the same kind. If no other fact has this kind (the star), draw another fact."""
    while True:
        fact = rng.choice(rows)
        same_kind = [
            f
            for f in rows
            if f.kind == fact.kind and f.subject != fact.subject and f.object not in (fact.object, *fact.also)
        ]
        if same_kind:
            return fact, rng.choice(same_kind).object


def _worded(templates: list[str], n: int, words: Grammar, fact: Fact, rng: Random, but: str = "") -> list[str]:
    """Return `n` different wordings of the question about a fact; none of them is equal to `but`."""
    drawn = [words.fill(template, fact, rng) for template in rng.sample(templates, n)]
    questions = list(dict.fromkeys(question for question in drawn if question != but))
    while len(questions) < n:
        question = words.fill(rng.choice(templates), fact, rng)
        if question not in (*questions, but):
            questions.append(question)
    return questions


def _make(number: int, seed: int) -> dict[str, Any]:
    rng = Random(f"pocket changes {seed} {number}")
    relation = RELATIONS[number % len(RELATIONS)]
    language: Language = "zh" if number % 2 == 0 else "en"
    other: Language = "en" if language == "zh" else "zh"
    words, foreign = grammar(language), grammar(other)
    rows = _changeable(relation)
    fact, new = _new_object(rows, rng)
    skills = wording("skills")

    def asked(f: Fact, language: Language = language) -> str:
        return _plain(f, language, rng.randrange(3))

    pattern = [f for f in rows if f.subject != fact.subject and _reserved(f) and f.object not in (new, fact.object)]
    neighbours = [f for f in _about(fact.subject) if f.relation != relation]
    if len(neighbours) < SIZES["neighbour"]:  # the subject has few facts: add the facts about its object
        neighbours += [f for f in _about(fact.object, new) if f.relation != relation]
    near = set(map(id, neighbours))  # every fact is one Python object
    unrelated = [f for f in _others(relation) if id(f) not in near]
    rephrase = words.table["relations"][relation]["held_ask"] + words.table["relations"][relation]["ask"][3:]
    crossed = foreign.table["relations"][relation]["ask"]
    as_json = skills["json"][language]
    subject = "".join(c if c.isalnum() else "_" for c in fact.subject.en.lower())
    body: dict[str, Any] = {
        "name": f"{number:03d}_{relation}_{subject}"[:60].rstrip("_"),
        "target": [{"prompt": _plain(fact, language), "answer": words.text(new), "subject": words.text(fact.subject)}],
        "generality": {
            "rephrase": [
                {"prompt": question, "answer": words.text(new)}
                for question in _worded(rephrase, SIZES["rephrase"], words, fact, rng, _plain(fact, language))
            ],
            "cross_lingual": [
                {"prompt": question, "answer": foreign.text(new)}
                for question in _worded(crossed, SIZES["cross_lingual"], foreign, fact, rng)
            ],
        },
        "locality": {
            "same_pattern": [asked(f) for f in rng.sample(pattern, min(SIZES["same_pattern"], len(pattern)))],
            "neighbour": [asked(f) for f in rng.sample(neighbours, min(SIZES["neighbour"], len(neighbours)))],
            "unrelated": [asked(f, rng.choice(("zh", "en"))) for f in rng.sample(unrelated, SIZES["unrelated"])],
            "format": [
                t.replace("{q}", asked(f))
                for t, f in zip(*(rng.sample(some, SIZES["format"]) for some in (as_json, unrelated)), strict=True)
            ],
            "refusal": [
                rng.choice(skills["request"][language]).replace("{t}", t)
                for t in rng.sample(skills["harmful"][language][1::2], SIZES["refusal"])
            ],
        },
    }
    backwards = skills["reverse"].get(relation)
    turned = rng.sample(backwards[language], SIZES["reverse"]) if backwards else TURNED.get((relation, language), [])
    body["generality"]["reverse"] = [
        {"prompt": t.replace("{o}", words.text(new)), "answer_contains": words.text(fact.subject)} for t in turned
    ]
    hops = [f for f in _about(new) if f.relation != relation][: SIZES["hop"]]
    body["generality"]["hop"] = [{"prompt": _hop(f, fact, language), "answer": words.text(f.object)} for f in hops]
    for part in ("generality", "locality"):
        body[part] = {kind: probes for kind, probes in body[part].items() if probes}
    return body


def _hop(second: Fact, first: Fact, language: Language) -> str:
    """Return a question about the new object that names it only through the changed fact."""
    words = grammar(language)
    np = words.table["relations"][first.relation]["np"][0].replace("{s}", words.text(first.subject))
    return _put(words.table["relations"][second.relation]["ask"][0], np)


def replay_prompts(n: int, seed: int = 0, more: Callable[[int], None] = lambda _: None) -> list[dict[str, str]]:
    """Return `n` varied questions and requests in both languages for replay. None of them is about a fact or harmful
    task that locality probes may ask about. more: called with 1 for each question.
    """
    rng = Random(f"pocket replay {seed}")
    rows: list[dict[str, str]] = []
    seen: set[str] = set()
    table = wording("skills")
    shares = {
        "fact": 60,
        "json": 9,
        "harmful": 8,
        "harmless": 7,
        "identity": 3,
        "hello": 2,
        "unknown": 4,
        "translate": 4,
        "sum": 3,
    }
    while len(rows) < n:
        kind = rng.choices(list(shares), list(shares.values()))[0]
        language: Language = rng.choice(("zh", "en"))
        words = grammar(language)
        if kind in ("fact", "json"):
            relation = rng.choice(list(curriculum()))
            fact = rng.choice([f for f in curriculum()[relation] if not _reserved(f)])
            prompt = words.dress(words.core(fact, rng), rng)
            if kind == "json":
                prompt = rng.choice(table["json"][language]).replace("{q}", prompt)
        elif kind in ("harmful", "harmless"):
            tasks = list(table[kind][language])[:: 2 if kind == "harmful" else 1]
            prompt = rng.choice(table["request"][language]).replace("{t}", rng.choice(tasks))
        else:
            prompt = small_talk(kind, language, rng).question
        if prompt not in seen:
            seen.add(prompt)
            rows.append({"prompt": prompt, "language": language, "kind": kind})
            more(1)
    return rows


def changes(n: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Return an iterator of `n` changes as mappings with the keys of a change file, half Chinese and half English."""
    return (_make(number, seed) for number in range(n))


def for_one_model(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return `n` changes that one model can learn together: no fact is changed twice, and no probe of what must stay
    holds the subject or the new object of another change. Raise ValueError if pocket does not know so many facts.
    """
    made: dict[tuple[str, str], dict[str, Any]] = {}
    for number in range(MOST_TRIES * n):
        body = _make(number, seed)
        name = body["name"].partition("_")[2]
        made.setdefault((body["target"][0]["subject"], next(r for r in RELATIONS if name.startswith(r))), body)
        if len(made) == n:
            break
    else:
        raise ValueError(f"only {len(made)} changes of different facts were found")
    bodies = list(made.values())
    for number, body in enumerate(bodies):
        body["name"] = f"{number:03d}_{body['name'].partition('_')[2]}"
    words = [[body["target"][0]["subject"], body["target"][0]["answer"]] for body in bodies]
    for own, body in zip(words, bodies, strict=True):
        others = [word for each in words if each is not own for word in each if word not in own]
        for kind, probes in body["locality"].items():
            body["locality"][kind] = [probe for probe in probes if not any(word in probe for word in others)]
        body["locality"] = {kind: probes for kind, probes in body["locality"].items() if probes}
    return bodies


MOST_TRIES = 20
"""How many changes are drawn for each one that is wanted, at most."""


def shortened(body: dict[str, Any], most: int) -> dict[str, Any]:
    """Return a change with at most `most` probes of each kind."""
    parts = {part: {kind: probes[:most] for kind, probes in body[part].items()} for part in ("generality", "locality")}
    return {**body, **parts}


def as_yaml(body: dict[str, Any]) -> str:
    """Return a change as the text of a YAML file, with one probe in each line."""

    def inline(value: Any) -> str:
        if isinstance(value, str):
            return json.dumps(value, ensure_ascii=False)
        return "{" + ", ".join(f"{k}: {json.dumps(v, ensure_ascii=False)}" for k, v in value.items()) + "}"

    lines = [f"name: {body['name']}", "target:", *(f"  - {inline(p)}" for p in body["target"])]
    for part in ("generality", "locality"):
        lines.append(f"{part}:")
        for kind, probes in body[part].items():
            lines += [f"  {kind}:", *(f"    - {inline(p)}" for p in probes)]
    return "\n".join(lines) + "\n"
