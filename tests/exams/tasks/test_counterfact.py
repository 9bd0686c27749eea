"""CounterFact: ES, PS, NS, their magnitudes, S, GE and RS by hand, and as memit's code has them of a real model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.errors import ConfigError, DataError
from posttrain.exams.metrics.fluency import ngram_entropy, words
from posttrain.exams.running import run_task
from posttrain.inference.protocol import Plain, Scored
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import load_model
from tests.data.edits.records import EXAMPLES, example, written
from tests.exams.table import BrokeDownError
from tests.exams.tasks.edit_exams import Edited, taken, told
from tests.exams.tasks.told import build, write_rows

RECORD: dict[str, Any] = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "{} lies in",
        "relation_id": "P30",
        "target_new": {"str": "Asia", "id": "Q48"},
        "target_true": {"str": "North Africa", "id": "Q15"},
        "subject": "Kenya",
    },
    "paraphrase_prompts": ["It rained. Kenya is in", "So be it. Kenya is part of"],
    "neighborhood_prompts": ["Ghana lies in"],
    "attribute_prompts": [],
    "generation_prompts": ["Kenya is", "In Kenya"],
}
NATS = {  # of the whole object; two tokens for the true one
    ("Kenya lies in", " Asia"): -1.0,
    ("Kenya lies in", " North Africa"): -4.0,
    ("It rained. Kenya is in", " Asia"): -3.0,
    ("It rained. Kenya is in", " North Africa"): -4.0,  # less in all, and more per token
    ("So be it. Kenya is part of", " Asia"): -0.5,
    ("So be it. Kenya is part of", " North Africa"): -8.0,
    ("Ghana lies in", " Asia"): -5.0,
    ("Ghana lies in", " North Africa"): -2.0,
}


def scored(prompt: str, text: str) -> Scored:
    tokens = len(text.split())
    wanted = " North Africa" if prompt.startswith("Ghana") else " Asia"
    return Scored(
        NATS[prompt, text], tokens, tokens if text == wanted and prompt != "So be it. Kenya is part of" else 0
    )


def task(tmp_path: Path, records: Any, **settings: Any) -> Any:
    written(tmp_path / "cf.json", records)
    return build("counterfact", tmp_path, path="cf.json", **settings)


def test_the_scores_by_hand(tmp_path: Path) -> None:
    says = {"Kenya lies in": " Asia.", "Ghana lies in": " West Africa", "Kenya is": " a a a", "In Kenya": " b c d"}
    found = taken(task(tmp_path, [RECORD]), Edited(scored, lambda prompt: says.get(prompt, " in Asia")))
    scores = found.scores
    assert (scores["efficacy.success"], scores["paraphrase.success"], scores["neighbourhood.success"]) == (
        1.0,
        0.5,
        1.0,
    )
    assert scores["score"] == pytest.approx(3 / (1 + 2 + 1))
    assert scores["efficacy.magnitude"] == pytest.approx(math.exp(-1) - math.exp(-2))
    both = (math.exp(-3) - math.exp(-2), math.exp(-0.5) - math.exp(-4))
    assert scores["paraphrase.magnitude"] == pytest.approx(sum(both) / 2)
    assert scores["neighbourhood.magnitude"] == pytest.approx(math.exp(-1) - math.exp(-5))
    assert (scores["efficacy.accuracy"], scores["paraphrase.accuracy"], scores["neighbourhood.accuracy"]) == (1, 0.5, 1)
    assert (scores["efficacy.begins"], scores["efficacy.says"]) == (1, 1)
    assert (scores["paraphrase.begins"], scores["paraphrase.says"]) == (0, 1)
    assert (scores["neighbourhood.begins"], scores["neighbourhood.says"]) == (0, 0)
    bits = [ngram_entropy(text.split()) for text in ("Kenya is a a a", "In Kenya b c d")]
    assert scores["fluency"] == pytest.approx(sum(bits) / 2)
    assert scores["fluency_x100"] == pytest.approx(50 * sum(bits))
    assert "consistency" not in scores
    assert any("consistency is left out: no reference texts are named" in note for note in found.notes)
    (sample,) = found.samples
    assert (sample.id, sample.answer, sample.target, sample.correct) == ("cf-00000", " Asia.", "Asia", True)
    assert list(scores)[:4] == ["score", "efficacy.success", "paraphrase.success", "neighbourhood.success"]


def test_s_is_of_the_means_and_not_the_mean_of_harmonic_means(tmp_path: Path) -> None:
    other = json.loads(json.dumps(RECORD).replace("Kenya", "Peru"))
    lost = {(p.replace("Kenya", "Peru"), t): -9.0 if t == " Asia" else -2.0 for p, t in NATS if "Kenya" in p}
    of = dict(NATS) | lost
    respondent = Edited(lambda p, t: Scored(of[p, t], len(t.split()), 0))
    scores = taken(task(tmp_path, [RECORD, other]), respondent).scores
    assert (scores["efficacy.success"], scores["paraphrase.success"], scores["neighbourhood.success"]) == (0.5, 0.25, 1)
    assert scores["score"] == pytest.approx(3 / (2 + 4 + 1))
    of["Ghana lies in", " North Africa"] = -90.0
    assert taken(task(tmp_path, [RECORD, other]), respondent).scores["score"] == 0.0


def test_consistency_with_reference_texts(tmp_path: Path) -> None:
    rows = [
        {
            "relation_id": "P30",
            "target_id": "Q48",
            "samples": [{"name": "a", "text": "aa bb"}, {"name": "b", "text": "cc"}],
        },
        {"relation_id": "P30", "target_id": "Q15", "samples": [{"name": "c", "text": "dd aa"}]},
    ]
    written(tmp_path / "refs.json", rows)
    one = {**RECORD, "generation_prompts": ["aa", "zz"]}
    made = task(tmp_path, [one], references="refs.json")
    respondent = Edited(scored, lambda prompt: " dd" if prompt == "aa" else "")
    idf_aa, idf_rare = math.log(4 / 3) + 1, math.log(4 / 2) + 1  # of 3 texts, aa is in 2
    # the generations "aa dd zz" beside "aa bb cc"
    length = math.hypot(idf_aa, idf_rare) * math.sqrt(idf_aa**2 + 2 * idf_rare**2)
    assert taken(made, respondent).scores["consistency"] == pytest.approx(idf_aa**2 / length)
    assert "references refs.json#" in made.signature
    without = task(
        tmp_path,
        [one, {**one, "requested_rewrite": {**one["requested_rewrite"], "relation_id": "P1"}}],
        references="refs.json",
    )
    found = taken(without, respondent)
    assert found.n["consistency"] == 1
    assert "1 of 2 records have no reference texts, so no consistency" in found.notes
    written(tmp_path / "refs.json", rows[1:])
    with pytest.raises(DataError, match=r"refs\.json has no reference texts for any record"):
        task(tmp_path, [one], references="refs.json")
    written(tmp_path / "refs.json", [{"relation_id": "P30", "target_id": "Q48", "samples": ["text"]}])
    with pytest.raises(DataError, match=r"refs\.json\[1\]: 'samples' must be a list of objects with a 'text'"):
        task(tmp_path, [one], references="refs.json")


def test_a_target_has_one_space_in_english_and_none_in_chinese(tmp_path: Path) -> None:
    records = example("counterfact")
    records[0]["requested_rewrite"]["target_new"]["str"] = " Asia"  # as some copies have it
    records[0]["paraphrase_prompts"] = ["Kenya is in "]
    made = task(tmp_path, records)
    asks = [[(ask.prompt, ask.continuation) for ask in item.asks if ask.kind == "score"] for item in made.items]
    assert asks[0][:2] == [(Plain("Kenya lies in"), " Asia"), (Plain("Kenya lies in"), " Africa")]
    assert asks[0][2] == (Plain("Kenya is in"), " Asia")
    assert asks[3][:2] == [(Plain("越南的首都是"), "順化"), (Plain("越南的首都是"), "河內")]
    chat = task(tmp_path, records, template="chat")
    assert [(a.prompt, a.continuation) for a in chat.items[0].asks[:2]] == [
        ("Kenya lies in", "Asia"),
        ("Kenya lies in", "Africa"),
    ]
    assert chat.chat
    assert "|chat|" in chat.signature
    assert "|plain|" in made.signature


def test_in_a_chat_an_answer_says_it_in_a_sentence(tmp_path: Path) -> None:
    made = task(tmp_path, [RECORD], template="chat", max_new_tokens=60)
    respondent = Edited(lambda p, t: told(t, t), lambda prompt: "Well.\nKenya lies in Asia, not in North Africa.")
    scores = taken(made, respondent).scores
    assert (scores["efficacy.begins"], scores["efficacy.says"], scores["neighbourhood.says"]) == (0, 1, 0)


def test_no_generations_slices_and_limits(tmp_path: Path) -> None:
    written(tmp_path / "cf.json", example("counterfact"))
    silent = build("counterfact", tmp_path, path="cf.json[1:3]", generations=0)
    assert [item.id for item in silent.items] == ["cf-00001", "cf-00002"]
    assert all(ask.max_new_tokens == 20 for item in silent.items for ask in item.asks if ask.kind == "say")
    assert "fluency" not in taken(silent, Edited()).scores
    one = build("counterfact", tmp_path, path="cf.json", generations=1)
    assert sum(ask.max_new_tokens == 100 for item in one.items for ask in item.asks) == 4
    few = build("counterfact", tmp_path, path="cf.json", limit=2)
    assert {item.id for item in few.items} < {f"cf-0000{i}" for i in range(4)}
    assert len(few.items) == 2


def test_a_record_without_paraphrases_or_neighbours(tmp_path: Path) -> None:
    bare = {"requested_rewrite": RECORD["requested_rewrite"]}
    scores = taken(task(tmp_path, [bare]), Edited(scored)).scores
    assert set(scores) == {f"efficacy.{m}" for m in ("success", "magnitude", "accuracy", "begins", "says")}


def test_wrong_files_and_settings(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cf\.json\[1:2\]: 'requested_rewrite' is missing|is not of CounterFact"):
        task(tmp_path, [RECORD, {"case_id": 8}])
    with pytest.raises(DataError, match="this is not CounterFact"):
        task(tmp_path, example("zsre"))
    with pytest.raises(ConfigError, match="'path' is missing"):
        build("counterfact", tmp_path)
    with pytest.raises(ConfigError, match="a record asks several prompts"):
        task(tmp_path, [RECORD], perturbations=["typos"])
    with pytest.raises(DataError, match="is no slice of records"):
        build("counterfact", tmp_path, path="cf.json[1]")


def test_going_on_and_more_records(tmp_path: Path) -> None:
    records = example("counterfact")
    written(tmp_path / "cf.json", records)
    made = build("counterfact", tmp_path, path="cf.json[:3]")
    whole = taken(made, Edited())
    path = tmp_path / "s.jsonl"
    with pytest.raises(BrokeDownError):
        run_task(Edited(dies_after=25), made, samples_path=path, chunk=1)
    left = len(path.read_text().splitlines())
    assert 0 < left < 3
    again = run_task(Edited(), made, samples_path=path)
    assert (again.earlier, again.samples, again.scores) == (left, whole.samples, whole.scores)
    more = run_task(Edited(), build("counterfact", tmp_path, path="cf.json"), samples_path=path)
    assert (more.earlier, len(more.samples)) == (3, 4)  # a larger slice goes on


# ---- beside a plain reference ----------------------------------------------------------------------------------------


def memit(model: Any, tokenizer: Any, prompt: str, target: str, space: str = " ") -> tuple[float, bool]:
    """Mean negative log-probability per token and whether all are the likeliest: as `test_batch_prediction` of memit,
    one text at a time, with no padding; the target's ids are what the whole has beyond the prompt's."""
    head = tokenizer(prompt)["input_ids"]
    ids = tokenizer(f"{prompt}{space}{target}")["input_ids"]
    assert ids[: len(head)] == head
    with torch.no_grad():
        table = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    own = ids[len(head) :]
    rows = table[len(head) - 1 : len(ids) - 1]
    return -float(rows[range(len(own)), own].mean()), bool((rows.argmax(-1) == torch.tensor(own)).all())


def test_likelihoods_are_those_of_memits_code() -> None:
    loaded = load_model("pocket:base", device="cpu")
    made = build("counterfact", EXAMPLES, path="counterfact.json", generations=2)
    found = taken(made, ModelRespondent(loaded))
    for sample, record in zip(found.samples, example("counterfact"), strict=True):
        rewrite = record["requested_rewrite"]
        prompts = {
            "efficacy": [rewrite["prompt"].replace("{}", rewrite["subject"])],
            "paraphrase": record["paraphrase_prompts"],
            "neighbourhood": record["neighborhood_prompts"],
        }
        for group, own in prompts.items():
            pair = [rewrite["target_new"]["str"], rewrite["target_true"]["str"]]
            pair = pair[::-1] if group == "neighbourhood" else pair
            space = "" if "首都" in rewrite["prompt"] else " "
            by_hand = [[memit(loaded.model, loaded.tokenizer, p, target, space) for target in pair] for p in own]
            losses = [loss for each in by_hand for loss, _ in each]
            assert sample.extra["nll_nats"][group] == pytest.approx(losses, abs=1e-4)
            wins = [wanted < other for (wanted, _), (other, _) in by_hand]
            assert sample.scores[f"{group}.success"] == pytest.approx(sum(wins) / len(wins))
            greedy = [right for (_, right), _ in by_hand]
            assert sample.scores[f"{group}.accuracy"] == pytest.approx(sum(greedy) / len(greedy))
    first = found.samples[0].extra["texts"]
    assert first[0].startswith("Travellers who visit Kenya")
    assert found.samples[0].scores["fluency"] == pytest.approx(sum(ngram_entropy(words(t)) for t in first) / 2)
    assert found.scores["neighbourhood.success"] > 0.7  # pocket:base knows these facts
    assert found.scores["efficacy.success"] == 0.0


def test_a_row_of_another_kind_is_said(tmp_path: Path) -> None:
    write_rows(tmp_path / "e.jsonl", [{"prompt": "Kenya lies in", "answer": "Asia"}])
    with pytest.raises(DataError, match="it is plain edits"):
        build("counterfact", tmp_path, path="e.jsonl")
