"""What every respondent does, whatever it is: one suite, which a new kind joins by a line in `RESPONDENTS`.

Behind each stands a pico model of this machine, whose answers and likelihoods must be the respondent's own.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from posttrain.data.records import Message
from posttrain.inference.opening import open_respondent
from posttrain.inference.protocol import Answer, Plain, Prompt, Respondent, Scored, State
from posttrain.inference.respondents import ModelRespondent, PromptedRespondent
from posttrain.inference.shards import ShardedRespondent, sharing
from posttrain.models.load import load_model
from tests.inference.adapting import Adapting
from tests.inference.kinds.stand_ins import as_vllm, served
from tests.pico import FAMILIES


class Case(NamedTuple):
    """A respondent; the model behind it; what it makes of a prompt. chats: it scores answers of a chat; first: and
    the first token of a document; shows: it shows distributions; draws: sampled answers go by the seed."""

    respondent: Respondent
    behind: ModelRespondent
    told: Callable[[Prompt], Prompt] = lambda prompt: prompt
    chats: bool = True
    first: bool = True
    shows: bool = True
    draws: bool = True


PicoPath = Callable[[str], Path]


def local(path: PicoPath, family: str = "llama") -> ModelRespondent:
    return ModelRespondent(load_model(str(path(family)), device="cpu"))


@contextmanager
def a_model(path: PicoPath, family: str) -> Iterator[Case]:
    yield Case(local(path, family), local(path, family))


@contextmanager
def prompted(path: PicoPath, role: str) -> Iterator[Case]:
    told = PromptedRespondent(local(path), "Be brief.", role="system" if role == "system" else "user")
    yield Case(told, local(path), told.told)


@contextmanager
def an_api(path: PicoPath, _: str) -> Iterator[Case]:
    behind = local(path)
    with served(behind) as address:
        yield Case(open_respondent(f"api:pico@{address}"), behind, chats=False, first=False, shows=False, draws=False)


@contextmanager
def in_vllm(path: PicoPath, _: str) -> Iterator[Case]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "vllm", as_vllm())
        yield Case(open_respondent(f"vllm:{path('llama')}"), local(path), shows=False, draws=False)


@contextmanager
def shared_out(path: PicoPath, _: str) -> Iterator[Case]:
    """Over one process; two are in `test_shards.py`."""
    with socket.socket() as free, pytest.MonkeyPatch.context() as patch:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        for name, value in (("RANK", 0), ("WORLD_SIZE", 1), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port)):
            patch.setenv(name, str(value))
        with sharing(), ShardedRespondent(local(path)) as respondent:
            yield Case(respondent, local(path))


@contextmanager
def adapting(path: PicoPath, _: str) -> Iterator[Case]:
    """At rest: it takes steps of no length."""
    yield Case(Adapting(load_model(str(path("llama")), device="cpu"), rate=0.0), local(path))


RESPONDENTS = {
    **{family: (a_model, family) for family in FAMILIES},
    "told by the user": (prompted, "user"),
    "told by the system": (prompted, "system"),
    "api": (an_api, ""),
    "vllm": (in_vllm, ""),
    "shared out": (shared_out, ""),
    "adapting": (adapting, ""),
}


@pytest.fixture(scope="module", params=RESPONDENTS)
def case(request: pytest.FixtureRequest, pico_path: PicoPath) -> Iterator[Case]:
    make, which = RESPONDENTS[request.param]
    with make(pico_path, which) as made:
        yield made


PROMPTS: list[Prompt] = [
    "臺灣最高的山是哪座？",
    (Message("user", "hi"), Message("assistant", "yes"), Message("user", "What is the capital of France?")),
    Plain("The cap"),
    "Hi",
]
PAIRS: list[tuple[Prompt, str]] = [
    (Plain("The capital of France is"), " Paris."),
    (Plain("The capital of France is "), "Rome."),  # its space belongs to what follows
    (Plain("臺灣最高的山是"), "玉山"),
    (Plain("Hello"), ""),
]
CHATS: list[tuple[Prompt, str]] = [("Hi", "Hello, who are you?"), ("臺灣最高的山是哪座？", "玉山"), ("Hi", "")]


def test_a_name_and_a_fingerprint(case: Case) -> None:
    assert case.respondent.name
    assert case.respondent.fingerprint
    assert case.respondent.fingerprint == case.respondent.fingerprint


def test_answers_are_those_of_the_model_behind_in_order_and_each_told_once(case: Case) -> None:
    told: list[tuple[int, Answer]] = []
    said = case.respondent.answers(PROMPTS, max_new_tokens=6, on_answer=lambda i, answer: told.append((i, answer)))
    expected = case.behind.answers([case.told(prompt) for prompt in PROMPTS], max_new_tokens=6)
    assert [(a.text, a.ended) for a in said] == [(a.text, a.ended) for a in expected]
    assert sorted(told, key=lambda one: one[0]) == list(enumerate(said))
    assert case.respondent.generate(PROMPTS, max_new_tokens=6) == [a.text for a in said]


def test_an_answer_keeps_to_its_limit_and_to_stop_strings(case: Case) -> None:
    (whole,) = case.respondent.answers([Plain("The cap")], max_new_tokens=8)
    assert whole.tokens == 8 or whole.ended
    middle = whole.text[2:4]
    (cut,) = case.respondent.answers([Plain("The cap")], max_new_tokens=8, stop=["", middle, "QZ"])
    assert (cut.text, cut.ended) == (whole.text[: whole.text.find(middle)], True)
    (one,) = case.respondent.answers(["Hi"], max_new_tokens=1)
    assert one.ended or one.text == case.behind.generate([case.told("Hi")], max_new_tokens=1)[0]


def test_what_else_is_asked_changes_nothing(case: Case) -> None:
    said = case.respondent.generate(PROMPTS, max_new_tokens=4)
    assert case.respondent.generate(PROMPTS[::-1], max_new_tokens=4) == said[::-1]


def test_sampled_answers_go_by_the_seed(case: Case) -> None:
    if not case.draws:
        pytest.skip("what stands in for it draws nothing")
    draw = [case.respondent.generate(PROMPTS, max_new_tokens=6, temperature=1.5, seed=seed) for seed in (1, 1, 2)]
    assert draw[0] == draw[1] != draw[2]


def test_nothing_asked_is_nothing_answered(case: Case) -> None:
    assert case.respondent.answers([]) == []
    assert case.respondent.logprobs([]) == []
    assert case.respondent.rolling([]) == []


def test_likelihoods_are_those_of_the_model_behind(case: Case) -> None:
    pairs = PAIRS + CHATS if case.chats else PAIRS
    told: list[tuple[int, Scored]] = []
    found = case.respondent.logprobs(pairs, on_scored=lambda i, one: told.append((i, one)))
    for one, other in zip(found, case.behind.logprobs([(case.told(p), text) for p, text in pairs]), strict=True):
        assert one.sum_nats == pytest.approx(other.sum_nats, abs=1e-4)
        assert (one.tokens, one.hits, one.greedy) == (other.tokens, other.hits, other.greedy)
    assert all(one.sum_nats < 0 < one.tokens for one, (_, text) in zip(found, pairs, strict=True) if text)
    assert found[3] == Scored(0.0, 0, 0)
    assert found[3].greedy
    assert sorted(told, key=lambda one: one[0]) == list(enumerate(found))


def test_the_likeliest_tokens_are_those_of_the_model_behind(case: Case) -> None:
    """By their ids, or by their texts where only these are known; hits are the positions where they are the text's."""
    pairs = PAIRS + CHATS if case.chats else PAIRS
    found = case.respondent.logprobs(pairs)
    for one, other in zip(found, case.behind.logprobs([(case.told(p), text) for p, text in pairs]), strict=True):
        assert len(one.likeliest) == one.tokens
        spelt = tuple(case.behind.tokenizer.decode(token) for token in other.likeliest)
        assert one.likeliest == (other.likeliest if case.first else spelt)
    assert all(not one.likeliest for one in case.respondent.rolling(["Hello, who are you?"]))


def test_whole_texts_are_as_likely_as_to_the_model_behind(case: Case) -> None:
    told: list[int] = []
    texts = ["Hello, who are you?", "臺灣最高的山是玉山。"]
    found = case.respondent.rolling(texts, on_scored=lambda i, _: told.append(i))
    expected = case.behind.rolling(texts)
    if not case.first:
        tokens = [case.behind.tokenizer.tokenize(text)[0] for text in texts]
        heads = [case.behind.tokenizer.convert_tokens_to_string([token]) for token in tokens]
        expected = case.behind.logprobs(
            [(Plain(head), text[len(head) :]) for head, text in zip(heads, texts, strict=True)]
        )
    for one, other in zip(found, expected, strict=True):
        assert one.sum_nats == pytest.approx(other.sum_nats, abs=1e-4)
        assert one.tokens == other.tokens > 3
    assert sorted(told) == [0, 1]


def test_distributions_or_none(case: Case) -> None:
    shown = case.respondent.next_token_logprobs(["Hi", "臺灣？"], ["玉山", ""])
    assert (shown is not None) == case.shows
    if shown is not None:
        expected = case.behind.next_token_logprobs([case.told("Hi"), case.told("臺灣？")], ["玉山", ""])
        for one, other in zip(shown, expected, strict=True):
            assert one.ids == other.ids
            torch.testing.assert_close(one.logprobs, other.logprobs, atol=1e-4, rtol=0)
            torch.testing.assert_close(one.logprobs.exp().sum(-1), torch.ones(len(one.ids)), atol=1e-5, rtol=0)


def test_what_is_spent_only_grows(case: Case) -> None:
    before = vars(case.respondent.usage).copy()
    case.respondent.answers(["Hi"], max_new_tokens=2)
    case.respondent.logprobs(PAIRS[:1])
    after = vars(case.respondent.usage)
    assert after["requests"] >= before["requests"] + 2
    assert after["generated_tokens"] > before["generated_tokens"]
    assert all(after[name] >= before[name] for name in before)


def test_a_state_is_had_or_refused(case: Case) -> None:
    state = case.respondent.state()
    case.respondent.restore(state)
    case.respondent.reset()
    if not case.respondent.stateful:
        assert state == State({}, {})
        with pytest.raises(ValueError, match="has no state"):
            case.respondent.restore(State({"seen": 1}, {}))
    with case.respondent.held():
        expected = case.behind.generate([case.told("Hi")], max_new_tokens=3)
        assert case.respondent.generate(["Hi"], max_new_tokens=3) == expected
