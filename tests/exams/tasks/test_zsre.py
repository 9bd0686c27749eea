"""zsRE: token accuracy as rome's code counts it, and free answers beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.exams.running import run_task
from posttrain.inference.protocol import Plain
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import load_model
from tests.data.edits.records import EXAMPLES, example, written
from tests.exams.table import BrokeDownError
from tests.exams.tasks.edit_exams import Edited, taken, told
from tests.exams.tasks.told import build

RECORDS = [
    {
        "src": "Who leads Peru?",
        "subject": "Peru",
        "answers": ["Rosa Quispe Mamani", "Quispe"],
        "rephrase": "Peru is led by whom?",
        "loc": "nq question: who wrote emma",
        "loc_ans": "Jane Austen",
    },
    {
        "src": "秘魯的首都是哪裡？",
        "subject": "秘魯",
        "answers": ["庫斯科"],
        "rephrase": "哪座城市是秘魯的首都？",
        "loc": "法國的首都是哪裡？",
        "loc_ans": "巴黎",
    },
]
LIKELIEST = {
    "Who leads Peru?": "Rosa Flores Mamani",
    "Peru is led by whom?": "the old king",
    "nq question: who wrote emma?": "Jane Austen",
    "秘魯的首都是哪裡？": "庫斯科",
    "哪座城市是秘魯的首都？": "利馬",
    "法國的首都是哪裡？": "里昂",
}
SAYS = {
    "Who leads Peru?": " Rosa Quispe Mamani. She was born in",
    "Peru is led by whom?": "\nA: It is Quispe.",
    "nq question: who wrote emma?": " Austen",
    "秘魯的首都是哪裡？": "庫斯科。",
}


def task(tmp_path: Path, **settings: Any) -> Any:
    written(tmp_path / "z.json", RECORDS)
    return build("zsre", tmp_path, path="z.json", **settings)


def test_the_scores_by_hand(tmp_path: Path) -> None:
    respondent = Edited(lambda p, t: told(LIKELIEST[p], t), lambda prompt: SAYS.get(prompt, ""))
    found = taken(task(tmp_path), respondent)
    first, second = found.samples
    assert first.scores == {
        "efficacy.tokens": pytest.approx(2 / 3),
        "efficacy.exact": 1.0,
        "efficacy.says": 1.0,
        "paraphrase.tokens": 0.0,
        "paraphrase.exact": 0.0,  # the sentence has more words than an accepted answer
        "paraphrase.says": 1.0,
        "locality.tokens": 1.0,
        "locality.exact": 0.0,
        "locality.says": 0.0,
    }
    assert (second.scores["efficacy.tokens"], second.scores["locality.tokens"]) == (1.0, 0.0)
    assert second.scores["efficacy.exact"] == 1.0
    means = (found.scores["efficacy.tokens"], found.scores["paraphrase.tokens"], found.scores["locality.tokens"])
    assert means == pytest.approx((5 / 6, 0.0, 0.5))  # over records, not over tokens
    assert found.scores["score"] == 0.0
    respondent.scores = lambda p, t: told("庫斯科" if p == "哪座城市是秘魯的首都？" else LIKELIEST[p], t)
    assert taken(task(tmp_path), respondent).scores["score"] == pytest.approx(3 / (6 / 5 + 2 + 2))
    assert (first.correct, second.correct) == (False, True)


def test_what_is_asked(tmp_path: Path) -> None:
    english, chinese = (
        [(ask.kind, ask.prompt, ask.continuation) for ask in item.asks] for item in task(tmp_path).items
    )
    assert english == [
        ("score", Plain("Who leads Peru?"), " Rosa Quispe Mamani"),  # the first of the answers
        ("say", Plain("Who leads Peru?"), ""),
        ("score", Plain("Peru is led by whom?"), " Rosa Quispe Mamani"),
        ("say", Plain("Peru is led by whom?"), ""),
        ("score", Plain("nq question: who wrote emma?"), " Jane Austen"),
        ("say", Plain("nq question: who wrote emma?"), ""),
    ]
    assert [each for each in chinese if each[0] == "score"] == [
        ("score", Plain("秘魯的首都是哪裡？"), "庫斯科"),
        ("score", Plain("哪座城市是秘魯的首都？"), "庫斯科"),
        ("score", Plain("法國的首都是哪裡？"), "巴黎"),
    ]
    assert task(tmp_path, template="chat").items[0].asks[0].continuation == "Rosa Quispe Mamani"


def test_going_on(tmp_path: Path) -> None:
    respondent = Edited(lambda p, t: told(LIKELIEST[p], t))
    whole, path = taken(task(tmp_path), respondent), tmp_path / "s.jsonl"
    with pytest.raises(BrokeDownError):
        run_task(Edited(respondent.scores, dies_after=8), task(tmp_path), samples_path=path, chunk=1)
    again = run_task(respondent, task(tmp_path), samples_path=path)
    assert (again.earlier, again.scores) == (1, whole.scores)


def rome(model: Any, tokenizer: Any, prompt: str, target: str) -> float:
    """The share of a target's tokens that the likeliest next ones are, as `compute_rewrite_quality_zsre` counts it: token
    after token, each after the text of those before it."""
    ids = tokenizer(f" {target}", add_special_tokens=False)["input_ids"]
    right: list[bool] = []
    for i in range(len(ids)):
        text = prompt + tokenizer.decode(ids[:i])
        with torch.no_grad():
            right.append(int(model(**tokenizer(text, return_tensors="pt")).logits[0, -1].argmax()) == ids[i])
    return sum(right) / len(right)


def test_token_accuracy_is_that_of_romes_code() -> None:
    loaded = load_model("pocket:base", device="cpu")
    found = taken(build("zsre", EXAMPLES, path="zsre.json[:2]"), ModelRespondent(loaded))
    for sample, record in zip(found.samples, example("zsre"), strict=False):
        target, other = record["answers"][0], record["loc_ans"]
        expected = [
            rome(loaded.model, loaded.tokenizer, *pair)
            for pair in ((record["src"], target), (record["rephrase"], target), (f"{record['loc']}?", other))
        ]
        of = [sample.scores[f"{group}.tokens"] for group in ("efficacy", "paraphrase", "locality")]
        assert of == pytest.approx(expected)
