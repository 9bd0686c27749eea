"""Writes mmlu_pocket.csv beside this file: what pocket:chat has learned, to see what is lost.

    python examples/role/make_mmlu.py

100 four-choice questions in Traditional Chinese, 20 of each of five relations of pocket's fact tables; the wrong
choices are other answers of the same relation. Nothing that facts.yaml asks about is asked.
"""

from __future__ import annotations

import csv
from pathlib import Path
from random import Random

from posttrain.config.change import load_change
from posttrain.data.pocket.skills import curriculum
from posttrain.models.facts import Fact

HERE = Path(__file__).parent
SUBJECTS = {
    "首都": ("capital", "{}的首都是哪裡？"),
    "貨幣": ("currency", "{}的貨幣是什麼？"),
    "大洲": ("continent", "{}在哪個洲？"),
    "化學符號": ("element_symbol", "{}的化學符號是什麼？"),
    "作者": ("work_author", "誰寫了《{}》？"),
}
EACH = 20


def choices(fact: Fact, objects: list[str], rng: Random) -> tuple[list[str], str]:
    """Four answers, in a drawn order, and the letter of the right one."""
    right = {fact.object.zh, *(name.zh for name in fact.also)}
    wrong = rng.sample([name for name in objects if name not in right], 3)
    shown = [fact.object.zh, *wrong]
    rng.shuffle(shown)
    return shown, "ABCD"[shown.index(fact.object.zh)]


def main() -> None:
    """The file, the same every time."""
    rng = Random("examples/role")
    change = load_change(HERE / "facts.yaml")
    asked = [question.question for _, _, question in change.probes()]
    with (HERE / "mmlu_pocket.csv").open("w", encoding="utf-8", newline="\n") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["subject", "question", "A", "B", "C", "D", "answer"])
        for subject, (relation, wording) in SUBJECTS.items():
            facts = list(curriculum()[relation])
            objects = sorted({fact.object.zh for fact in facts})
            free = [fact for fact in facts if not any(fact.subject.zh in question for question in asked)]
            for fact in rng.sample(free, EACH):
                shown, letter = choices(fact, objects, rng)
                table.writerow([subject, wording.format(fact.subject.zh), *shown, letter])


if __name__ == "__main__":
    main()
