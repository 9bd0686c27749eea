"""zsRE: are the target's tokens the likeliest, asked as taught and in other words, and is something else still known?

MEND's slice of zsRE (arXiv:2110.11309) with the scores of rome and memit (`eval_utils_zsre.py`). The prompt
(`efficacy`) and its rephrasing (`paraphrase`) are asked for the first of `answers`; an unrelated question of Natural
Questions (`locality`) for `loc_ans`:

    tokens   the share of the answer's tokens that are the likeliest after the right ones (teacher-forced): the papers'
             efficacy, paraphrase and specificity
    exact    the model's own answer, up to the end of its first sentence or line, is an accepted one
    says     its first line says an accepted one (in a chat: its answer does)

    score    the harmonic mean of the three `tokens`, as memit prints it

Teacher forcing flatters: the papers' numbers are `tokens`; `exact` is what a user sees (arXiv:2502.11177).
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from posttrain.data.edits.zsre import ZsRE
from posttrain.exams.metrics.editing import harmonic_mean, token_accuracy
from posttrain.exams.records import Sample
from posttrain.exams.score_spec import ScoreSpec, specs
from posttrain.exams.statistics import Score
from posttrain.exams.task import Item, Reply, Task, means
from posttrain.exams.tasks._editing import Asked, EditSetConfig, Replies, Wording, item_of, put
from posttrain.registry import register

__all__ = ["ZsreConfig", "zsre"]

GROUPS = ("efficacy", "paraphrase", "locality")


class ZsreConfig(EditSetConfig):
    """zsRE's records."""

    kind: Literal["zsre"] = "zsre"
    """zsRE."""


SPECS = (
    ScoreSpec("score", "score", "grade"),
    *(ScoreSpec(f"{group}.tokens", "tokens", "grade", group=group) for group in GROUPS),
    *(spec for group in GROUPS for spec in specs(f"{group}.exact", f"{group}.says", group=group)),
)


@register("exam", "zsre", config=ZsreConfig, paper="arXiv:2110.11309")
def zsre(config: ZsreConfig, base: Path) -> Task:
    """Return the task of zsRE's records. DataError with every wrong record."""
    _, found = config.records(base)
    items = [
        _item(name, edit, config.wording, location)
        for _, name, location, edit in found.records
        if isinstance(edit, ZsRE)
    ]
    return Task(
        items=items,
        judge=partial(_judge, config.wording),
        aggregate=_scores,
        headline="score",
        capabilities={"locality.tokens": "can.knowledge"},
        scores=SPECS,
        signature=config.signed("v1", "target: answers[0]", "locality: loc_ans, teacher-forced"),
        notes=found.notes,
    )


def _item(name: str, edit: ZsRE, wording: Wording, location: str) -> Item:
    """Return a record as an item. For every prompt it asks the likelihood of the answer and a free answer."""
    asked: list[Asked] = []
    prompts = {"efficacy": (edit.prompt,), "paraphrase": edit.rephrased, "locality": (edit.unrelated,)}
    for group, own in prompts.items():
        target = edit.unrelated_answer if group == "locality" else edit.answers[0]
        for prompt in own:
            asked += [Asked(group, wording.score(prompt, target)), Asked(group, wording.free(prompt))]
    doc = {"prompts": prompts, "answers": edit.answers, "unrelated": edit.unrelated_answer}
    return item_of(name, edit.prompt, asked, doc, location)


def _judge(wording: Wording, item: Item, replies: Sequence[Reply]) -> Sample:
    found, doc = Replies(item, replies), item.doc
    scores: dict[str, float] = {}
    for group in GROUPS:
        accepted = [doc["unrelated"]] if group == "locality" else list(doc["answers"])
        said = [one.text for one in found.said(group)]
        measured = {
            "tokens": [token_accuracy(one.hits, one.tokens) for one in found.scored(group)],
            "exact": [wording.is_(text, accepted) for text in said],
            "says": [wording.says(t, accepted, p) for t, p in zip(said, doc["prompts"][group], strict=True)],
        }
        for measure, each in measured.items():
            put(scores, f"{group}.{measure}", each)
    answers = {group: [one.text for one in found.said(group)] for group in GROUPS}
    extra = {"answers": answers}
    right = scores["efficacy.tokens"] == 1.0
    return found.sample(answers["efficacy"][0], doc["answers"][0], scores, correct=right, extra=extra)


def _scores(samples: Sequence[Sample]) -> dict[str, Score]:
    """Return the mean of each score, and the harmonic mean of the three by tokens."""
    made = means(samples)
    parts = [made[key].value for group in GROUPS if (key := f"{group}.tokens") in made]
    whole = {"score": Score(harmonic_mean(parts), None, len(samples))} if len(parts) == len(GROUPS) else {}
    order = {spec.key: i for i, spec in enumerate(SPECS)}
    return dict(sorted((whole | made).items(), key=lambda one: order[one[0]]))
