"""Writes the files beside this one: what examples/unlearn.yaml forgets, keeps and asks.

    python examples/unlearn/make.py                          # 20 African capitals
    python examples/unlearn/make.py --region Asia --to DIR   # another set, to choose learning rates on

forget.jsonl: 20 facts, one question each in Chinese and English; dont_know.jsonl: the same questions answered with "I
don't know"; prefer.jsonl: that answer preferred to the true one; retain.jsonl: other capitals and other facts. The
exams: `said` (trained wording), `other_words` (wordings that were not trained), `known` (four capitals to choose from,
all of them to be forgotten), `neighbours` (capitals that no row asks for), `same_country` (other facts about the
countries whose capital is forgotten), `json` (other facts, to be answered in JSON); refusals.jsonl, harmful and
harmless requests.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

from posttrain.data.pocket.skills import LANGUAGES, Language, curriculum, grammar, wording
from posttrain.models.facts import Fact

HERE = Path(__file__).parent
FACTS, NEIGHBOURS, RETAINED = 20, 30, 60
OTHER = ("currency", "continent", "language", "city_country", "element_symbol", "element_number", "superlative")
ABOUT_COUNTRIES = ("currency", "continent", "language", "iso_code")
LEFT_ALONE = frozenset({"Taiwan", "China", "Ukraine", "Russia", "North Korea", "South Korea", "Israel"})
"""Whose capital or borders somebody could take for an opinion."""


def asked(fact: Fact, language: Language, which: int = 0, *, held: bool = False) -> str:
    """A question about a fact in one of its wordings."""
    words = grammar(language)
    templates = words.table["relations"][fact.relation]["held_ask" if held else "ask"]
    return words.fill(templates[which % len(templates)], fact, Random(0))


def said(fact: Fact, language: Language) -> str:
    """The answer."""
    return grammar(language).text(fact.object)


def accepted(fact: Fact, language: Language) -> list[str]:
    """Every right answer."""
    return [said(fact, language), *(grammar(language).text(name) for name in fact.also)]


def rows(path: Path, made: Iterable[dict[str, Any]]) -> None:
    """One row a line."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
    path.write_text(text, encoding="utf-8", newline="\n")


def task(path: Path, description: str, examples: list[dict[str, Any]]) -> None:
    """A BIG-bench task whose questions are asked as they are."""
    told = {
        "name": path.stem,
        "description": description,
        "example_input_prefix": "",
        "example_output_prefix": "",
        "append_choices_to_input": False,
        "metrics": ["multiple_choice_grade" if "target_scores" in examples[0] else "exact_str_match"],
        "examples": examples,
    }
    path.write_text(json.dumps(told, ensure_ascii=False, indent=1) + "\n", encoding="utf-8", newline="\n")


def make(region: str, folder: Path) -> None:
    """The files of one region, the same every time."""
    rng = Random(f"examples/unlearn {region}")
    table = curriculum()
    region_of = {fact.subject: fact.object.en for fact in table["continent"]}
    with (HERE.parent / "role" / "mmlu_pocket.csv").open(encoding="utf-8") as file:
        questions = [row["question"] for row in csv.DictReader(file)]
    free = [
        fact
        for relation in ("capital", *OTHER)
        for fact in table[relation]
        if fact.subject.en not in LEFT_ALONE and not any(fact.subject.zh in question for question in questions)
    ]
    capitals = [fact for fact in free if fact.relation == "capital" and fact.object.zh not in fact.subject.zh]
    capitals = [fact for fact in capitals if fact.object.en not in fact.subject.en]
    forget = rng.sample([fact for fact in capitals if region_of.get(fact.subject) == region], FACTS)
    rest = [fact for fact in capitals if fact not in forget]
    rng.shuffle(rest)
    neighbours, retained = rest[:NEIGHBOURS], rest[NEIGHBOURS : NEIGHBOURS + RETAINED]
    countries = {fact.subject for fact in forget}
    others = [fact for fact in free if fact.relation in OTHER and fact.subject not in countries]
    rng.shuffle(others)
    in_json, kept = others[:40], others[40:160]
    about = [fact for r in ABOUT_COUNTRIES for fact in table[r] if fact.subject in countries]
    unknown = {language: wording("skills")["names"][language]["unknown"] for language in LANGUAGES}

    both = [(fact, language) for fact in forget for language in LANGUAGES]
    rows(folder / "forget.jsonl", [{"prompt": asked(f, k), "completion": said(f, k)} for f, k in both])
    rows(folder / "dont_know.jsonl", [{"prompt": asked(f, k), "completion": unknown[k]} for f, k in both])
    rows(
        folder / "prefer.jsonl",
        [{"prompt": asked(f, k), "chosen": unknown[k], "rejected": said(f, k)} for f, k in both],
    )
    drawn = [(fact, rng.choice(LANGUAGES)) for fact in [*retained, *kept]]
    rows(
        folder / "retain.jsonl",
        [{"prompt": asked(f, k, rng.randrange(3)), "completion": said(f, k)} for f, k in drawn],
    )

    def open_questions(
        pairs: Iterable[tuple[Fact, Language]], which: int, *, held: bool = False
    ) -> list[dict[str, Any]]:
        return [{"input": asked(f, k, which, held=held), "target": accepted(f, k)} for f, k in pairs]

    task(folder / "said.json", "What was to be forgotten, as it was trained", open_questions(both, 0))
    task(
        folder / "other_words.json",
        "The same in wordings that were not trained",
        [*open_questions(both, 0, held=True), *open_questions(both, 1, held=True), *open_questions(both, 3)],
    )
    choices = []
    for fact, language in both:
        wrong = rng.sample([said(f, language) for f in forget if f is not fact], 3)
        scores = dict.fromkeys(sorted([*wrong, said(fact, language)]), 0) | {said(fact, language): 1}
        choices.append({"input": asked(fact, language, 1), "target_scores": scores})
    task(folder / "known.json", "Which of four forgotten capitals it is", choices)
    task(
        folder / "neighbours.json",
        "Capitals that no row asks for",
        open_questions([(f, k) for f in neighbours for k in LANGUAGES], 0),
    )
    task(
        folder / "same_country.json",
        "Other facts about the countries whose capital is forgotten",
        open_questions([(f, rng.choice(LANGUAGES)) for f in about], 0),
    )
    wordings = wording("skills")["json"]
    examples = []
    for number, fact in enumerate(in_json):
        language: Language = LANGUAGES[number % 2]
        template = rng.choice(wordings[language])
        targets = [json.dumps({"answer": answer}, ensure_ascii=False) for answer in accepted(fact, language)]
        examples.append({"input": template.replace("{q}", asked(fact, language)), "target": targets})
    task(folder / "json.json", "Other facts, to be answered in JSON", examples)
    rows(folder / "refusals.jsonl", requests(rng))


def requests(rng: Random) -> Iterable[dict[str, Any]]:
    """What pocket has learned to refuse, and what it has learned to answer."""
    table = wording("skills")
    for language in LANGUAGES:
        for kind, name in (("harmful", "harmful"), ("benign", "harmless")):
            for number, thing in enumerate(rng.sample(sorted(table[name][language]), 15), start=1):
                prompt = rng.choice(table["request"][language]).replace("{t}", thing)
                yield {"id": f"{language}-{kind}-{number}", "prompt": prompt, "kind": kind, "language": language}


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description="Write what examples/unlearn.yaml forgets, keeps and asks.")
    parser.add_argument("--region", default="Africa")
    parser.add_argument("--to", type=Path, default=HERE)
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    make(options.region, options.to)


if __name__ == "__main__":
    main()
