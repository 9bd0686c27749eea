"""CounterFact: is the new object likelier than the true one, and is it not for the neighbours? (ES, PS, NS, S, GE, RS)

Meng et al. 2022, arXiv:2202.05262, and memit's code. Of each record the prompt (`efficacy`), its paraphrases and its
neighbours are asked. The new object is wanted of the first two, the true one of the neighbours. For each of them:

    success     ES, PS, NS: the wanted object is likelier than the other, by mean log-probability per token
    magnitude   EM, PM, NM: the difference of their probabilities (of the geometric mean over tokens)
    accuracy    every token of the wanted object is the likeliest after the right ones (teacher-forced)
    begins      the model's own answer begins with the wanted object; says: it says it

    score        S, the harmonic mean of ES, PS and NS
    fluency      GE, the weighted n-gram entropy of texts that go on from the generation prompts, in bits
    fluency_x100 the same times 100, as papers print it
    consistency  RS, the tf-idf cosine of these texts with reference texts about subjects that have the new object

Each is a mean over a record's prompts, then over records.
"""  # fmt: skip

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from posttrain.data.edits.counterfact import CounterFact
from posttrain.errors import DataError, Problem
from posttrain.exams.metrics.editing import harmonic_mean, preference
from posttrain.exams.metrics.tfidf import Tfidf
from posttrain.exams.records import Sample
from posttrain.exams.rows import Row, read_rows
from posttrain.exams.score_spec import ScoreSpec, specs
from posttrain.exams.statistics import Score
from posttrain.exams.task import Item, Reply, Task, means, resolve
from posttrain.exams.tasks._editing import GREEDY, Asked, EditSetConfig, Replies, Wording, fluency, item_of, put
from posttrain.registry import register

__all__ = ["CounterfactConfig", "counterfact"]

GROUPS = ("efficacy", "paraphrase", "neighbourhood")
PAPER = {"efficacy": "E", "paraphrase": "P", "neighbourhood": "N"}


class CounterfactConfig(EditSetConfig):
    """CounterFact's records."""

    kind: Literal["counterfact"] = "counterfact"
    """CounterFact."""
    generations: int = Field(default=10, ge=0)
    """How many of a record's generation prompts are continued, for fluency and consistency; 0: neither is measured."""
    references: str | None = None
    """The reference texts for consistency: the official `attribute_snippets.json`, or a file of the same form."""

    def files(self) -> list[str]:
        """Return the file of the records and, if it is named, that of the reference texts."""
        return [*super().files(), *([self.references] if self.references else [])]


SPECS = (
    ScoreSpec("score", "S", "grade"), *(ScoreSpec(f"{group}.success", f"{PAPER[group]}S", group=group) for group in
    GROUPS), *(ScoreSpec(f"{group}.magnitude", f"{PAPER[group]}M", "number", group=group) for group in GROUPS), *(spec
    for group in GROUPS for spec in specs(*(f"{group}.{m}" for m in ("accuracy", "begins", "says")), group=group)),
    ScoreSpec("fluency", "GE", "bits"), ScoreSpec("fluency_x100", "GE x 100", "number"), ScoreSpec("consistency", "RS",
    "grade"),
)  # fmt: skip


class References:
    """Texts about subjects that have an object, by relation and object, and the weights of their terms. digest: a hash
    of all of them.
    """

    def __init__(self, path: Path) -> None:
        found = read_rows(path, _snippets)
        self.texts: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        for key, texts in found:
            self.texts[key] += texts
        self.weights = Tfidf.of(text for _, texts in found for text in texts)
        self.digest = hashlib.sha256(repr(found).encode()).hexdigest()[:8]

    def consistency(self, relation: str, new: str, texts: Sequence[str]) -> float | None:
        """Return RS of generated texts; None without texts, or without reference texts for the relation and object."""
        own = self.texts.get((relation, new), ())
        return self.weights.cosine(" ".join(texts), " ".join(own)) if texts and own else None


def _snippets(row: Row) -> tuple[tuple[str, str], list[str]] | None:
    """Return the texts of a relation and object; None, noted as a problem, when the row is wrong."""
    relation, target, samples = row.text("relation_id"), row.text("target_id"), row.value.get("samples")
    each = samples if isinstance(samples, list) else [None]
    right = all(isinstance(one, Mapping) and isinstance(one.get("text"), str) for one in each)
    if not right:
        row.bad("'samples' must be a list of objects with a 'text'")
    if relation is None or target is None or not isinstance(samples, list) or not right:
        return None
    return (relation, target), [one["text"] for one in samples]


@register("exam", "counterfact", config=CounterfactConfig, paper="arXiv:2202.05262")
def counterfact(config: CounterfactConfig, base: Path) -> Task:
    """Return the task of CounterFact's records. DataError with every wrong record or reference, and when the references
    have no text for any record.
    """
    path, found = config.records(base)
    references = References(resolve(config.references, base)) if config.references and config.generations else None
    items, without, notes = [], 0, list(found.notes)
    for _, name, location, edit in found.records:
        assert isinstance(edit, CounterFact)
        without += references is not None and (edit.relation, edit.new_id) not in references.texts
        items.append(_item(name, edit, config.wording, config.generations, location))
    if without == len(items):
        cause = f"{config.references} has no reference texts for any record"
        mend = "its relation_id and target_id are those of the records' new objects"
        raise DataError(Problem(str(path), cause, mend))
    if config.generations:
        notes.append(GREEDY)
        notes += [] if references else ["consistency is left out: no reference texts are named (references: FILE)"]
        notes += [f"{without} of {len(items)} records have no reference texts, so no consistency"] if without else []
    cited = f"references {Path(str(config.references)).name}#{references.digest}" if references else "no references"
    return Task(
        items=items,
        judge=partial(_judge, config.wording, references),
        aggregate=_scores,
        headline="score",
        capabilities={"neighbourhood.success": "can.knowledge"},
        scores=SPECS,
        signature=config.signed("v1", f"{config.generations} generations, greedy", cited),
        notes=tuple(notes),
    )


def _item(name: str, edit: CounterFact, wording: Wording, generations: int, location: str) -> Item:
    """Return a record as an item. For every prompt it asks the likelihoods of the wanted and of the other object and a
    free answer, and then the generations."""
    asked: list[Asked] = []
    for group, prompts in zip(GROUPS, ((edit.prompt,), edit.paraphrases, edit.neighbours), strict=True):
        pair = (edit.true, edit.new) if group == "neighbourhood" else (edit.new, edit.true)
        for prompt in prompts:
            asked += [Asked(group, wording.score(prompt, one)) for one in pair]
            asked.append(Asked(group, wording.free(prompt)))
    asked += [Asked("generation", wording.long(prompt)) for prompt in edit.generation[:generations]]
    doc = {
        "new": edit.new,
        "true": edit.true,
        "prompts": {"efficacy": [edit.prompt], "paraphrase": edit.paraphrases, "neighbourhood": edit.neighbours},
        "generation": edit.generation[:generations],
        "reference": [edit.relation, edit.new_id],
    }
    return item_of(name, edit.prompt, asked, doc, location)


def _judge(wording: Wording, references: References | None, item: Item, replies: Sequence[Reply]) -> Sample:
    found, doc = Replies(item, replies), item.doc
    scores: dict[str, float] = {}
    likelihoods: dict[str, Any] = {}
    for group in GROUPS:
        wanted = doc["true" if group == "neighbourhood" else "new"]
        scored, said, prompts = found.scored(group), found.said(group), doc["prompts"][group]
        losses = [-one.sum_nats / one.tokens for one in scored]
        likelihoods[group] = losses
        each = [
            {
                **preference(*pair)._asdict(),
                "accuracy": float(best.greedy),
                "begins": wording.begins(answer.text, [wanted]),
                "says": wording.says(answer.text, [wanted], prompt),
            }
            for *pair, best, answer, prompt in zip(losses[::2], losses[1::2], scored[::2], said, prompts, strict=True)
        ]
        for measure in each[0] if each else ():
            put(scores, f"{group}.{measure}", [one[measure] for one in each])
    texts = [wording.text(p, a) for p, a in zip(doc["generation"], found.said("generation"), strict=True)]
    scores |= fluency(texts)
    relation, new = doc["reference"]
    consistency = references.consistency(relation, new, texts) if references is not None else None
    scores |= {"consistency": consistency} if consistency is not None else {}
    answers = {group: [one.text for one in found.said(group)] for group in GROUPS}
    extra = {"nll_nats": likelihoods, "answers": answers, "texts": texts}
    right = scores["efficacy.success"] == 1.0
    return found.sample(answers["efficacy"][0], doc["new"], scores, correct=right, extra=extra)


def _scores(samples: Sequence[Sample]) -> dict[str, Score]:
    """Return the mean of each score, and S from the means of ES, PS and NS."""
    made = means(samples)
    parts = [made[key].value for group in GROUPS if (key := f"{group}.success") in made]
    whole = {"score": Score(harmonic_mean(parts), None, len(samples))} if len(parts) == len(GROUPS) else {}
    order = {spec.key: i for i, spec in enumerate(SPECS)}
    return dict(sorted((whole | made).items(), key=lambda one: order[one[0]]))
