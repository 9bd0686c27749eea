"""Causal tracing as a whole, on a pico model that knows six facts: what is found, kept, skipped and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config.load import check
from posttrain.editing.facts import Fact, FactReader
from posttrain.editing.restoring import run_of
from posttrain.editing.trace import TraceConfig, noise_for, noise_scale, trace
from posttrain.editing.trace_file import ROLES, Trace, check_output, read_trace, write_trace
from posttrain.errors import ConfigError, DataError, MissingError, PosttrainError
from posttrain.models.load import LoadedModel, load_model
from tests.talker import talker

FACTS = [
    Fact("capital of France?", "France", "Paris", "france", "rows.jsonl:1"),
    Fact("臺灣最高的山？", "臺灣最高", "玉山", "taiwan", "rows.jsonl:2"),
    Fact("who wrote Hamlet?", "Hamlet", "", "hamlet", "rows.jsonl:3"),
]
LESS = TraceConfig(samples=2, least_fall=0)
"""The answers of this model survive the noise: it has six questions by heart."""


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(str(talker()), device="cpu")


@pytest.fixture(scope="module")
def traced(loaded: LoadedModel) -> Trace:
    return trace(loaded, FACTS, LESS, say=lambda line: None)


def same(one: Trace, other: Trace) -> bool:
    return one.model_dump_json() == other.model_dump_json()


def test_what_is_found(loaded: LoadedModel, traced: Trace) -> None:
    assert (traced.layers, traced.window, len(traced.facts), traced.skipped) == (2, 1, 3, ())
    for fact in traced.facts:
        assert set(fact.effects) == {"state", "mlp", "attn"}
        for effects in fact.effects.values():
            assert len(effects) == len(fact.tokens) == len(fact.roles) == len(fact.noisy)
            assert {len(own) for own in effects} == {2}
        first = fact.noisy.index(True)
        assert all(value == 0 for effects in fact.effects.values() for own in effects[:first] for value in own)
        last = fact.effects["state"][-1][-1]
        assert last == pytest.approx(fact.total_effect, abs=2e-6), "the last state of all is the whole answer"
        assert fact.clean > 0.5
    france = traced.facts[0]
    assert france.total_effect > 0.1
    assert (france.form, france.reply, france.opening) == ("chat", "Paris", "")
    assert "Paris".startswith(france.scored)
    assert traced.facts[2].answer == ""
    assert "".join(france.tokens).startswith("capital")
    twice = trace(loaded, [Fact("Hamlet? who wrote Hamlet?", "Hamlet")], LESS, say=print).facts[0]
    assert next(role for role, noisy in zip(twice.roles, twice.noisy, strict=True) if noisy) == "repeated"
    assert traced.facts[1].roles[0] == "last_subject", "one token holds the whole subject"


def test_averages_are_those_of_the_facts(traced: Trace) -> None:
    own = traced.averages["mlp"]
    expected = [
        [
            value
            for fact in traced.facts
            for at, value in enumerate(column(fact, layer))
            if fact.roles[at] == "last_subject"
        ]
        for layer in (0, 1)
    ]
    assert own["last_subject"].n == 3
    assert own["last_subject"].mean == pytest.approx([sum(values) / 3 for values in expected], abs=1e-6)
    assert set(own) == {*(role for fact in traced.facts for role in fact.roles), "all"}
    assert [role for role in ROLES if role in own] == [role for role in own if role != "all"]
    clean = [fact.clean for fact in traced.facts]
    assert traced.clean.mean == pytest.approx(sum(clean) / 3, abs=1e-6)
    assert traced.total_effect.mean == pytest.approx(traced.clean.mean - traced.corrupted.mean, abs=2e-6)


def column(fact: Any, layer: int) -> list[float]:
    return [own[layer] for own in fact.effects["mlp"]]


def test_the_seed_decides(loaded: LoadedModel, traced: Trace) -> None:
    assert same(trace(loaded, FACTS, LESS, say=print), traced)
    other = trace(loaded, FACTS, LESS, seed=1, say=print)
    assert [fact.clean for fact in other.facts] == [fact.clean for fact in traced.facts]
    assert other.facts[0].corrupted != traced.facts[0].corrupted
    assert other.sigma == traced.sigma


def test_a_repeated_fact_is_counted_once(loaded: LoadedModel, traced: Trace) -> None:
    again = [replace(FACTS[0], name=f"again {n}", location=f"rows.jsonl:{n}") for n in (4, 5)]
    other = replace(FACTS[0], answer="Par", name="other", location="")
    wrong = replace(FACTS[1], answer="Rome", name="wrong", location="")
    made = trace(loaded, [wrong, *FACTS, *again, other], LESS, say=print)
    assert made.facts == traced.facts, "the noise is the same, too"
    assert (made.advice, made.averages) == (traced.advice, traced.averages)
    assert [one.name for one in made.skipped] == ["wrong", "again 4", "again 5", "other"]
    once = "it has the prompt and the subject of rows.jsonl:1: they are counted once"
    assert [one.reason for one in made.skipped[1:]] == [once] * 3
    assert made.skipped[0].reason == "the model says '玉山', not 'Rome'"


def test_the_batch_does_not_matter(loaded: LoadedModel, traced: Trace) -> None:
    one = trace(loaded, FACTS, TraceConfig(samples=2, least_fall=0, batch_tokens=1), say=print)
    for fact, expected in zip(one.facts, traced.facts, strict=True):
        for kind, effects in fact.effects.items():
            assert torch.allclose(torch.tensor(effects), torch.tensor(expected.effects[kind]), atol=2e-6)


def test_without_noise_there_is_no_effect(loaded: LoadedModel) -> None:
    made = trace(loaded, FACTS[:1], TraceConfig(samples=1, least_fall=0, noise=0), say=print)
    (fact,) = made.facts
    assert made.sigma == 0
    assert fact.corrupted == pytest.approx(fact.clean, abs=2e-6)
    assert all(abs(value) <= 2e-6 for effects in fact.effects.values() for own in effects for value in own)


def test_the_noise_is_three_deviations_of_all_subjects_embeddings(loaded: LoadedModel, traced: Trace) -> None:
    weights = loaded.model.get_input_embeddings().weight.detach()
    asked = FactReader(loaded.tokenizer).read_all(FACTS)
    ids = [one.ids[at] for one in asked for at in one.subject]
    assert traced.sigma == pytest.approx(3 * float(weights[ids].std()), rel=1e-4)
    assert noise_scale(loaded.model, [[5, 6], [7]]) == pytest.approx(float(weights[[5, 6, 7]].std()), rel=1e-5)


def test_noise_belongs_to_the_text_and_the_seed() -> None:
    one = noise_for([1, 2, 3], 2, 3, 4, seed=0)
    assert one.shape == (2, 3, 4)
    assert torch.equal(one, noise_for([1, 2, 3], 3, 3, 4, seed=0)[:2]), "further tokens do not change the first"
    assert not torch.equal(one, noise_for([1, 2, 3], 2, 3, 4, seed=1))
    assert not torch.equal(one, noise_for([1, 2, 4], 2, 3, 4, seed=0))


def test_some_kinds_alone(loaded: LoadedModel, traced: Trace) -> None:
    made = trace(loaded, FACTS, TraceConfig(samples=2, least_fall=0, kinds=("attn",), window=2), say=print)
    assert set(made.facts[0].effects) == {"attn"}
    assert (made.window, made.advice) == (2, None)
    assert traced.advice is not None
    with pytest.raises(ConfigError, match="kinds: name each of state, mlp, attn once"):
        check({"kinds": ["mlp", "mlp"]}, TraceConfig, "trace")


def test_the_whole_answer_and_plain_text(loaded: LoadedModel, traced: Trace) -> None:
    whole = trace(loaded, FACTS[:2], TraceConfig(samples=2, least_fall=0, score="whole"), say=print)
    assert [fact.scored for fact in whole.facts] == ["Paris", "玉山"]
    assert all(w.clean < t.clean for w, t in zip(whole.facts, traced.facts, strict=False))


def test_plain_text(pico_path: Callable[[str], Path]) -> None:
    """A model that was not trained says something after any text."""
    own = load_model(str(pico_path("gpt2")), device="cpu")
    made = trace(
        own,
        [Fact("The capital of France", "France")],
        TraceConfig(samples=2, least_fall=0, form="raw", score="first"),
        say=print,
    )
    (fact,) = made.facts
    assert (fact.form, len(fact.tokens)) == ("raw", len(own.tokenizer.encode("The capital of France")))
    assert fact.roles[-1] == "last_subject", "the subject is the last that is read"
    assert fact.effects["state"][-1][-1] == pytest.approx(fact.total_effect, abs=2e-6)


def test_a_fact_that_the_model_does_not_know_is_skipped_and_named(loaded: LoadedModel) -> None:
    wrong = Fact("capital of Japan?", "Japan", "Kyoto", "japan", "rows.jsonl:9")
    made = trace(loaded, [wrong, FACTS[0]], LESS, say=print)
    assert [fact.name for fact in made.facts] == ["france"]
    (skipped,) = made.skipped
    assert (skipped.name, skipped.location) == ("japan", "rows.jsonl:9")
    assert skipped.reason == "the model says 'Tokyo', not 'Kyoto'"
    with pytest.raises(PosttrainError) as caught:
        trace(loaded, [wrong, wrong], LESS, say=print)
    assert "none of 2 facts can be traced" in str(caught.value)
    assert "rows.jsonl:9: the model says 'Tokyo', not 'Kyoto'" in str(caught.value)
    with pytest.raises(ConfigError, match="there is nothing to trace"):
        trace(loaded, [], LESS, say=print)


def test_facts_whose_answers_survive_the_noise_are_left_out(loaded: LoadedModel, traced: Trace, tmp_path: Path) -> None:
    falls = {fact.name: fact.total_effect / fact.clean for fact in traced.facts}
    assert min(falls.values()) < 0.1 < max(falls.values())
    made = trace(loaded, FACTS, TraceConfig(samples=2), folder=tmp_path, say=print)
    assert [fact.name for fact in made.facts] == [name for name, fall in falls.items() if fall >= 0.1]
    assert made.facts == tuple(fact for fact in traced.facts if falls[fact.name] >= 0.1)
    assert made.clean.n == made.averages["mlp"]["last"].n == len(made.facts)
    left = {one.name: one.reason for one in made.skipped}
    assert list(left) == [name for name, fall in falls.items() if fall < 0.1]
    fact = next(fact for fact in traced.facts if fact.name == "hamlet")
    now = f"{fact.clean:.3f}, with noise on the subject {fact.corrupted:.3f}"
    assert left["hamlet"] == f"the probability of '{fact.scored}' is {now}: it falls by less than 10 %"
    said: list[str] = []
    assert same(trace(loaded, FACTS, TraceConfig(samples=2), folder=tmp_path, say=said.append), made)
    every = trace(loaded, FACTS, LESS, folder=tmp_path, say=said.append)
    assert (every.facts, every.skipped) == (traced.facts, ())
    assert said == [f"{len(made.facts)} of {n} facts were traced before and are kept" for n in (len(made.facts), 3)]
    with pytest.raises(PosttrainError, match=r"least_fall: 0 keeps .*\n.*rows.jsonl:3: the probability of 'Sh' is"):
        trace(loaded, FACTS[2:], TraceConfig(samples=2), say=print)


def test_finished_facts_are_kept(
    loaded: LoadedModel, traced: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    right, count = run_of, [0]

    def stops(*given: Any, **how: Any) -> Any:
        count[0] += 1
        if count[0] == 3:
            raise KeyboardInterrupt
        return right(*given, **how)

    monkeypatch.setattr("posttrain.editing.trace.run_of", stops)
    with pytest.raises(PosttrainError, match=r"stopped while tracing facts .* cells\); finished facts are kept"):
        trace(loaded, FACTS, LESS, folder=tmp_path, say=said.append)
    assert len((tmp_path / "facts.jsonl").read_text("utf-8").splitlines()) == 2
    assert not (tmp_path / "trace.json").exists()
    with (tmp_path / "facts.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"key": "cut off')  # as after a kill
    assert same(trace(loaded, FACTS, LESS, folder=tmp_path, say=said.append), traced)
    assert (said, count[0]) == (["2 of 3 facts were traced before and are kept"], 4)
    assert same(read_trace(tmp_path), traced)
    assert same(trace(loaded, FACTS, LESS, folder=tmp_path, say=said.append), traced)
    assert count[0] == 4
    again = trace(
        loaded, FACTS, TraceConfig(samples=2, least_fall=0, batch_tokens=64), folder=tmp_path, say=said.append
    )
    assert (count[0], again.facts) == (4, traced.facts)
    trace(loaded, FACTS, TraceConfig(samples=1, least_fall=0), folder=tmp_path, say=said.append)
    assert count[0] == 7, "other settings are another trace"
    assert said[-1] == "what was traced here before had other facts, settings or weights: every fact is traced anew"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("model.safetensors", "x"),
        ("facts.jsonl", '{"prompt": "who wrote Hamlet?", "subject": "Hamlet"}\n'),  # a list of facts
        ("trace.json", '{"traceEvents": []}'),
    ],
)
def test_a_folder_with_other_things_is_left_alone(
    name: str, text: str, loaded: LoadedModel, traced: Trace, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="holds other things than a trace; choose a new or an empty folder"):
        trace(loaded, FACTS, LESS, folder=tmp_path)
    assert [path.read_text(encoding="utf-8") for path in tmp_path.iterdir()] == [text]
    if name == "facts.jsonl":
        write_trace(tmp_path, traced)
        with pytest.raises(ConfigError, match="holds other things than a trace"):
            check_output(tmp_path)


def test_a_folder_of_a_trace_is_taken_again(traced: Trace, tmp_path: Path) -> None:
    check_output(tmp_path / "new")
    check_output(tmp_path)
    (tmp_path / "facts.jsonl").write_text('{"ke', encoding="utf-8")  # as after a kill in the first fact
    check_output(tmp_path)
    (tmp_path / "facts.jsonl").unlink()
    write_trace(tmp_path, traced)
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    check_output(tmp_path)


def test_the_file(traced: Trace, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"trace\.json: no such file"):
        read_trace(tmp_path)
    (tmp_path / "trace.json").write_text(json.dumps({**traced.model_dump(mode="json"), "format": 2}))
    with pytest.raises(DataError, match="is no trace of format 1"):
        read_trace(tmp_path)
    (tmp_path / "trace.json").write_text("{")
    with pytest.raises(DataError, match="is no trace of format 1"):
        read_trace(tmp_path)


def test_numbers_that_are_none_name_the_fact(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    right = run_of

    def broken(*given: Any, **how: Any) -> Any:
        run = right(*given, **how)
        run.clean = run.clean * float("nan")
        return run

    monkeypatch.setattr("posttrain.editing.trace.run_of", broken)
    with pytest.raises(
        PosttrainError, match=r"rows\.jsonl:1: its probabilities are not finite; load the model in float32"
    ):
        trace(loaded, FACTS[:1], LESS, say=print)


def test_virtual_tokens_have_no_place(loaded: LoadedModel) -> None:
    import copy

    from peft import PromptTuningConfig, TaskType, get_peft_model

    adapted = get_peft_model(
        copy.deepcopy(loaded.model), PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3)
    )
    with pytest.raises(PosttrainError, match="has virtual tokens before the text"):
        trace(LoadedModel(adapted, loaded.tokenizer, "soft"), FACTS, LESS, say=print)
