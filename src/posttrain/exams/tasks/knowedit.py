"""KnowEdit: edit success, portability and locality, token by token, as EasyEdit measures them.

Zhang et al. 2024, arXiv:2401.01286, and EasyEdit's `evaluate_utils.py` (its metric `token_em`):

    edit                     the share of the target's tokens that are the likeliest after the right ones ("Edit Succ.")
    rephrase                 the same after the rephrased prompts, where a record has them
    portability.<group>      the same of the first answer to each prompt, by group: subject_aliasing, reasoning,
                             logical_generalization; `portability`: the mean over a record's groups
    locality.<group>         the share of the first answer's positions whose likeliest token is that of the model
                             before, right or wrong: relation_specificity, forgetfulness; `locality`: the mean over
                             groups
    fluency, fluency_x100    weighted n-gram entropy of a text that goes on from the prompt, in bits, and times 100

Beside them, of free answers: `edit.exact` and `edit.says`, and `portability.says` (any alias). Locality needs the model
before the change: in a study it is the untouched one, in `posttrain exam` that of `--before`. EasyEdit prints four
things as locality, by its settings; this is the first of them (the likeliest tokens under teacher forcing).
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from posttrain.data.edits.knowedit import LOCALITY, PORTABILITY, KnowEdit
from posttrain.exams.metrics.editing import token_accuracy, unchanged
from posttrain.exams.records import Sample
from posttrain.exams.score_spec import ScoreSpec, specs
from posttrain.exams.statistics import Score
from posttrain.exams.task import Item, Reply, Task, means
from posttrain.exams.tasks._editing import GREEDY, Asked, EditSetConfig, Replies, Wording, fluency, item_of, put
from posttrain.registry import register

__all__ = ["KnoweditConfig", "knowedit"]

PORTABLE = {group: f"portability.{group.lower()}" for group in PORTABILITY}
LOCAL = {group: f"locality.{group.lower()}" for group in LOCALITY}


class KnoweditConfig(EditSetConfig):
    """KnowEdit's records."""

    kind: Literal["knowedit"] = "knowedit"
    """KnowEdit."""
    fluency: bool = True
    """Whether a text of 100 tokens goes on from each prompt, for fluency."""


SPECS = (
    *(ScoreSpec(key, key, "grade") for key in ("edit", "rephrase", "portability", "locality")),
    *specs("edit.exact", "edit.says", group="edit"),
    *(ScoreSpec(key, key.partition(".")[2], "grade", group="portability") for key in PORTABLE.values()),
    *specs("portability.says", unit="grade", group="portability"),
    *(ScoreSpec(key, key.partition(".")[2], "grade", group="locality") for key in LOCAL.values()),
    ScoreSpec("fluency", "fluency", "bits"),
    ScoreSpec("fluency_x100", "fluency x 100", "number"),
)


@register("exam", "knowedit", config=KnoweditConfig, paper="arXiv:2401.01286")
def knowedit(config: KnoweditConfig, base: Path) -> Task:
    """Return the task of KnowEdit's records. DataError with every wrong record."""
    _, found = config.records(base)
    items = [
        _item(name, edit, config, location) for _, name, location, edit in found.records if isinstance(edit, KnowEdit)
    ]
    return Task(
        items=items,
        judge=partial(_judge, config.wording),
        aggregate=_scores,
        headline="edit",
        capabilities={"locality": "can.knowledge"},
        scores=SPECS,
        signature=config.signed(
            "v1",
            "teacher-forced, first alias",
            "locality: likeliest tokens as before",
            f"fluency {'greedy' if config.fluency else 'left out'}",
        ),
        notes=(*found.notes, *([GREEDY] if config.fluency else [])),
        finish=_finish,
    )


def _item(name: str, edit: KnowEdit, config: KnoweditConfig, location: str) -> Item:
    """Return a record as an item. It asks the target's likelihood and a free answer of the prompt, the likelihood after
    each rephrasing, both of each portability probe, and the likelihood of each locality probe of both models."""
    wording = config.wording
    asked = [Asked("edit", wording.score(edit.prompt, edit.new)), Asked("edit", wording.free(edit.prompt))]
    asked += [Asked("rephrase", wording.score(prompt, edit.new)) for prompt in edit.rephrased]
    portable: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for group, probes in edit.portability.items():
        portable[PORTABLE[group]] = [(probe.prompt, probe.aliases) for probe in probes]
        for probe in probes:
            asked.append(Asked(PORTABLE[group], wording.score(probe.prompt, probe.first)))
            asked.append(Asked(PORTABLE[group], wording.free(probe.prompt)))
    for group, probes in edit.locality.items():
        for probe in probes:
            ask = wording.score(probe.prompt, probe.first)
            asked += [Asked(LOCAL[group], ask), Asked(LOCAL[group], ask._replace(of="before"))]
    asked += [Asked("fluency", wording.long(edit.prompt))] if config.fluency else []
    return item_of(name, edit.prompt, asked, {"new": edit.new, "portable": portable}, location)


def _judge(wording: Wording, item: Item, replies: Sequence[Reply]) -> Sample:
    found, doc = Replies(item, replies), item.doc
    scores: dict[str, float] = {}
    answers: dict[str, list[str]] = {}
    says: list[float] = []
    for key in ("edit", "rephrase", *doc["portable"]):
        put(scores, key, [token_accuracy(one.hits, one.tokens) for one in found.scored(key)])
    for key, probes in doc["portable"].items():
        answers[key] = [one.text for one in found.said(key)]
        says += [wording.says(text, known, prompt) for text, (prompt, known) in zip(answers[key], probes, strict=True)]
    put(scores, "portability", [scores[key] for key in doc["portable"]])
    put(scores, "portability.says", says)
    for key in LOCAL.values():
        pairs = zip(found.scored(f"before.{key}"), found.scored(key), strict=False)  # without a model before: no pairs
        same = [unchanged(before.likeliest, after.likeliest) for before, after in pairs]
        put(scores, key, [one for one in same if one is not None])
    put(scores, "locality", [scores[key] for key in LOCAL.values() if key in scores])
    (said,) = found.said("edit")
    scores["edit.exact"] = wording.is_(said.text, [doc["new"]])
    scores["edit.says"] = wording.says(said.text, [doc["new"]], item.question)
    texts = [wording.text(item.question, one) for one in found.said("fluency")]
    scores |= fluency(texts)
    extra = {"answers": answers, "texts": texts, "local": any(found.scored(key) for key in LOCAL.values())}
    return found.sample(said.text, doc["new"], scores, correct=scores["edit"] == 1.0, extra=extra)


def _scores(samples: Sequence[Sample]) -> dict[str, Score]:
    """Return the mean of each score, in the order of their declaration."""
    made = means(samples)
    return {spec.key: made[spec.key] for spec in SPECS if spec.key in made}


def _finish(respondent: str, samples: Sequence[Sample]) -> list[str]:
    """Return a note when locality could not be measured."""
    local = [sample for sample in samples if sample.extra["local"]]
    lacking = sum("locality" not in sample.scores for sample in local)
    if not lacking:
        return []
    which = (
        "locality is left out"
        if lacking == len(local)
        else f"locality of {lacking} of {len(local)} records is left out"
    )
    why = "it compares with the likeliest tokens of the model before (--before MODEL), of the same tokenizer"
    return [f"{which}: {why}"]
