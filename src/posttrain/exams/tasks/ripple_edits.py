"""RippleEdits: does what follows from an edit follow, and does the rest stay? Six criteria, with test conditions.

Cohen et al. 2023, arXiv:2307.12976, and its code (`testrunner.py`, `queryexecutor.py`, `evaluation.py`). A model goes
on greedily from each query's prompt; it answers rightly when its text has every answer of the query, each by one of its
aliases, letter by letter. A test passes when one of its queries (OR) or all of them (AND) are answered rightly.

    logical_generalization, compositionality_i, compositionality_ii, subject_aliasing, preservation (the file's
    Forgetfulness), relation_specificity
                    the share of a record's tests that pass, of those whose condition queries the model *before* the
                    change answered rightly; then the mean over records
    mean            the mean of the six
    edited.<score>  the same over the records whose edit succeeded, as the official code averages
    all.<score>     the same with every test, whatever the model before knew
    edit            the share of records whose new fact is said
    conditions      the share of tests whose conditions hold

Only `edit` and `all.<score>` are there without a model before: in a study it is the untouched one, in `posttrain exam`
that of `--before`. Unlike the official code the prompt itself is not searched for the answers, and an answer has at
most `max_new_tokens` tokens.
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from posttrain.data.edits.ripple_edits import RippleEdit, RippleTest
from posttrain.exams.metrics.editing import all_said
from posttrain.exams.records import Sample
from posttrain.exams.score_spec import ScoreSpec, specs
from posttrain.exams.statistics import Score
from posttrain.exams.task import Item, Reply, Task, means
from posttrain.exams.tasks._editing import Asked, EditSetConfig, Replies, Wording, item_of, put
from posttrain.registry import register

__all__ = ["RippleEditsConfig", "ripple_edits"]

CRITERIA = {
    "Logical_Generalization": "logical_generalization",
    "Compositionality_I": "compositionality_i",
    "Compositionality_II": "compositionality_ii",
    "Subject_Aliasing": "subject_aliasing",
    "Forgetfulness": "preservation",
    "Relation_Specificity": "relation_specificity",
}
SIX = (*CRITERIA.values(),)


class RippleEditsConfig(EditSetConfig):
    """RippleEdits' records."""

    kind: Literal["ripple_edits"] = "ripple_edits"
    """RippleEdits."""
    max_new_tokens: int = Field(default=30, gt=0)
    """The longest answer to a query, in tokens."""


SPECS = (
    *specs("mean", *SIX, unit="grade"),
    *specs("edit", "conditions"),
    *(ScoreSpec(f"edited.{key}", key, "grade", group="edited") for key in ("mean", *SIX)),
    *(ScoreSpec(f"all.{key}", key, "grade", group="all") for key in ("mean", *SIX)),
)


@register("exam", "ripple_edits", config=RippleEditsConfig, paper="arXiv:2307.12976")
def ripple_edits(config: RippleEditsConfig, base: Path) -> Task:
    """Return the task of RippleEdits' records. DataError with every wrong record."""
    _, found = config.records(base)
    items = [
        _item(name, edit, config.wording, location)
        for _, name, location, edit in found.records
        if isinstance(edit, RippleEdit)
    ]
    return Task(
        items=items,
        judge=_judge,
        aggregate=_scores,
        headline="mean",
        capabilities=dict.fromkeys(("preservation", "relation_specificity"), "can.knowledge"),
        scores=SPECS,
        signature=config.signed("v1", "greedy, every answer by an alias", "conditions asked of the model before"),
        notes=found.notes,
        finish=_finish,
    )


def _item(name: str, edit: RippleEdit, wording: Wording, location: str) -> Item:
    """Return a record as an item. It asks the new fact, and of each test its queries, and its condition queries of the
    model before."""
    asked = [Asked("edit", wording.free(edit.prompt))]
    tests: list[dict[str, Any]] = []
    for criterion, test in ((CRITERIA[name], test) for name, own in edit.tests.items() for test in own):
        of = f"test {len(tests)}"
        asked += [Asked(of, wording.free(query.prompt)) for query in test.queries]
        asked += [Asked(of, wording.free(query.prompt)._replace(of="before")) for query in test.conditions]
        tests.append({"criterion": criterion, "passes": test.passes, **_answers(test)})
    return item_of(name, edit.prompt, asked, {"new": edit.new, "tests": tests}, location)


def _answers(test: RippleTest) -> Mapping[str, list[tuple[tuple[str, ...], ...]]]:
    return {
        "queries": [query.answers for query in test.queries],
        "conditions": [query.answers for query in test.conditions],
    }


def _judge(item: Item, replies: Sequence[Reply]) -> Sample:
    found, doc = Replies(item, replies), item.doc
    (said,) = found.said("edit")
    edited = all_said(said.text, [[doc["new"]]])
    before = len(replies) == len(item.asks)
    tests = []
    for i, test in enumerate(doc["tests"]):
        texts = [one.text for one in found.said(f"test {i}")]
        right = [all_said(text, answers) for text, answers in zip(texts, test["queries"], strict=True)]
        held = zip(found.said(f"before.test {i}"), test["conditions"], strict=before)
        tests.append(
            {
                "criterion": test["criterion"],
                "passed": (all if test["passes"] == "AND" else any)(right),
                "counts": all(all_said(one.text, answers) for one, answers in held) if before else None,
                "answers": texts,
            }
        )
    scores: dict[str, float] = {"edit": float(edited)}
    for key in SIX:
        own = [test for test in tests if test["criterion"] == key]
        chosen = {key: [test for test in own if test["counts"]], f"all.{key}": own}
        for name, some in chosen.items():
            put(scores, name, [float(test["passed"]) for test in some])
    if before and tests:
        scores["conditions"] = sum(test["counts"] for test in tests) / len(tests)
    return found.sample(said.text, doc["new"], scores, correct=edited, extra={"tests": tests})


def _scores(samples: Sequence[Sample]) -> dict[str, Score]:
    """Return the mean of each score over records, and the means of the six criteria."""
    made = means(samples)
    edited = means([sample for sample in samples if sample.scores["edit"] == 1.0])
    made |= {f"edited.{key}": edited[key] for key in SIX if key in edited}
    for group in ("", "edited.", "all."):
        own = [made[f"{group}{key}"].value for key in SIX if f"{group}{key}" in made]
        made |= {f"{group}mean": Score(sum(own) / len(own), None, len(own))} if own else {}
    return {spec.key: made[spec.key] for spec in SPECS if spec.key in made}


def _finish(respondent: str, samples: Sequence[Sample]) -> list[str]:
    """Return notes about conditions: not asked, or met by no test of a criterion."""
    tests = [test for sample in samples for test in sample.extra["tests"]]
    if all(test["counts"] is None for test in tests):
        why = "they are asked of the model before (--before MODEL)"
        return [f"test conditions are not checked: {why}; only `all` scores are there"] if tests else []
    met = {test["criterion"] for test in tests if test["counts"]}
    unmet = [key for key in SIX if key not in met and any(test["criterion"] == key for test in tests)]
    return [f"no test of {', '.join(unmet)} has its conditions met by the model before"] if unmet else []
