"""Marks of prompts: every way of reading a model gives what one row, alone and without a cache, gives by hand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from posttrain.errors import PosttrainError
from posttrain.inference import one_length
from posttrain.inference.attention import Support
from posttrain.inference.decode import decode
from posttrain.inference.plain import TokenPair
from posttrain.inference.protocol import Scored, Usage
from posttrain.inference.scoring import distributions, score
from posttrain.inference.support import support
from posttrain.models import line
from posttrain.models.curvature import Example, fisher
from posttrain.models.head_loss import plain_head, states_at
from posttrain.models.logits import logits_at
from posttrain.models.marks import bare, mark, mark_prompts, whole_prompts
from posttrain.models.merge_adapter import some_logits
from tests.inference import test_scoring as scored
from tests.inference.test_decode import NO_STOP, TIE
from tests.models.test_bottleneck import encoder
from tests.models.test_loreft import PROMPTS, by_hand, moved, part_of, with_loreft
from tests.models.test_prefix import IDS, made
from tests.pico import FAMILIES, config

USUAL: dict[str, Any] = {"prefix": 2, "suffix": 3, "share": "none"}
"""Positions of their own: an error by one place shows."""
TEXTS = [
    *scored.like_mmlu(40, 3),
    TokenPair([7, 8, 9, 10], [11, 12, 13]),
    TokenPair([7, 8], [9, 10, 11, 12, 13]),  # the same tokens, and the prompt ends elsewhere
    TokenPair([7, 8, 9, 10, 11], [12]),
]


def changed(base: Any, **settings: Any) -> Any:
    return moved(with_loreft(base, **{**USUAL, **settings}), 0.3)


def by_hand_after(base: Any, model: Any, pairs: Sequence[TokenPair]) -> list[Tensor]:
    """Log-probabilities (A, V) of each continuation; what is read alike is read once."""

    @cache
    def read(text: tuple[int, ...], prompt: int) -> Tensor:
        return by_hand(base, part_of(model), list(text), prompt).log_softmax(-1)

    tables = [read((*context, *continuation[:-1]), len(context)) for context, continuation in pairs]
    return [table[len(pair.context) - 1 :][: len(pair.continuation)] for table, pair in zip(tables, pairs, strict=True)]


def close(found: Sequence[Scored], pairs: Sequence[TokenPair], tables: Sequence[Tensor]) -> None:
    for one, pair, table in zip(found, pairs, tables, strict=True):
        ids = torch.tensor(pair.continuation, dtype=torch.long)
        assert one.sum_nats == pytest.approx(float(table.gather(1, ids[:, None]).double().sum()), abs=1e-3)


WAYS = {
    **dict.fromkeys(FAMILIES, "flat"),
    "llama-eager": "flat",
    "gpt_oss": "flat",
    "bloom": "prefix",
    "mamba": "plain",
}


@pytest.mark.filterwarnings("ignore:scored")
@pytest.mark.parametrize("family", WAYS)
def test_scores_are_those_of_each_text_alone(family: str) -> None:
    """In one line with shared beginnings, over a cache, one by one, and however small the batches are."""
    base = scored.made(family)
    model = changed(base)
    tables = by_hand_after(base, model, TEXTS)
    usage = Usage()
    close(score(model, TEXTS, usage=usage), TEXTS, tables)
    assert support(model, 60).kind == WAYS[family]
    assert usage.plain_requests == (55 if WAYS[family] == "plain" else 0)
    assert usage.shared_tokens > 500
    for tokens in (64, 200):
        close(score(model, TEXTS, usage=Usage(), batch_tokens=tokens), TEXTS, tables)
    alone = [score(model, [pair], usage=Usage())[0] for pair in TEXTS]
    close(alone, TEXTS, tables)
    for number, table in distributions(model, TEXTS, usage=Usage()):
        assert torch.allclose(table, tables[number], atol=2e-3)
    without = by_hand_after(base, with_loreft(base, **USUAL), TEXTS[:1])[0]
    assert (without - tables[0]).abs().max() > 0.1  # the changes are not too small to show


@pytest.mark.parametrize("share", ["all", "ends"])
def test_sharing_is_never_between_places_that_are_changed_otherwise(
    share: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups that several positions have; and a model that is said to share always shares rightly."""
    base = made("llama")
    model = changed(base, share=share)
    monkeypatch.setattr("posttrain.inference.scoring.support", lambda *_: Support("flat", brief=True))
    monkeypatch.setattr("posttrain.inference.scoring.WORTH", 0)
    usage = Usage()
    close(score(model, TEXTS[-3:], usage=usage), TEXTS[-3:], by_hand_after(base, model, TEXTS[-3:]))
    # of 7 8 9 10 | 7 8 | 7 8 9 10 11 all are changed alike; else the first and the last share a changed 7
    assert usage.shared_tokens == {"all": 4 + 2, "ends": 1}[share]


@torch.no_grad()
def answer_by_hand(base: Any, model: Any, prompt: list[int], count: int) -> tuple[list[int], bool]:
    """Greedy, the whole text again for every token; and whether no two candidates were as good as equal."""
    ids, clear = list(prompt), True
    for _ in range(count):
        top = by_hand(base, part_of(model), ids, len(prompt))[-1].topk(2)
        clear = clear and float(top.values[0] - top.values[1]) > TIE
        ids.append(int(top.indices[0]))
    return ids[len(prompt) :], clear


SYSTEM = [5 + 11 * t % 300 for t in range(40)]
ASKED = [[*SYSTEM, 40 + i, 41 + 2 * i, *range(60, 60 + i % 4)] for i in range(6)]
ASKED += [[50, 51], [52], [*range(70, 83)], SYSTEM[:30]]
"""Six prompts that begin alike, a short one, the shortest, a long one, and one that lies within others."""


@pytest.mark.filterwarnings("ignore:answers are")
@pytest.mark.parametrize("family", [*FAMILIES, "bloom", "mamba"])
def test_answers_are_those_of_each_prompt_alone(family: str) -> None:
    """With a cache, padding on the left, shared prefixes and refilling."""
    base = made(family) if family in (*FAMILIES, "bloom") else scored.made(family)
    model = changed(base)
    expected = [answer_by_hand(base, model, prompt, 6) for prompt in ASKED]
    assert sum(clear for _, clear in expected) >= 8
    assert len({tuple(ids) for ids, _ in expected}) > 3
    usage = Usage()
    for tokens in (10_000, 120):
        found = decode(model, ASKED, stop=NO_STOP, pad_id=0, max_new_tokens=6, batch_tokens=tokens, usage=usage)
        for answer, (wanted, clear) in zip(found, expected, strict=True):
            assert answer.ids == wanted or not clear
    assert (usage.shared_prefixes > 0) == (family != "mamba")
    for prompt, (wanted, clear) in zip(ASKED, expected, strict=True):
        (answer,) = decode(model, [prompt], stop=NO_STOP, pad_id=0, max_new_tokens=6)
        assert answer.ids == wanted or not clear
    assert ASKED[0][0] == 5  # the caller's ids have no marks


@pytest.mark.filterwarnings("ignore:answers are")
@pytest.mark.parametrize("memory", ["past_key_values", None])
def test_answers_without_padding_and_without_a_memory(memory: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    base = made("llama")
    model = changed(base)
    monkeypatch.setattr("posttrain.inference.decode.why_plain", lambda *_: "asked for")
    monkeypatch.setattr(one_length, "way_of", lambda _: one_length.Way(memory, together=True))
    found = decode(model, ASKED, stop=NO_STOP, pad_id=0, max_new_tokens=4)
    for prompt, answer in zip(ASKED, found, strict=True):
        wanted, clear = answer_by_hand(base, model, prompt, 4)
        assert answer.ids == wanted or not clear


@pytest.mark.parametrize("family", ["llama", "mamba"])
@torch.no_grad()
def test_transformers_own_generation_reads_whole_prompts(family: str) -> None:
    base = scored.made(family)
    model = changed(base)
    prompts = [[5, 6, 7, 8, 9], [30, 31]]
    padded = torch.tensor([prompts[0], [0, 0, 0, *prompts[1]]])
    given: dict[str, Any] = {
        "input_ids": padded, "attention_mask": (padded > 0).long(), "max_new_tokens": 4, "do_sample": False,
        "eos_token_id": None, "pad_token_id": 0,
    }  # fmt: skip
    wanted = [answer_by_hand(base, model, prompt, 4)[0] for prompt in prompts]
    if family == "mamba":
        with whole_prompts(model):
            assert model.generate(**given)[0, -4:].tolist() == wanted[0]
        return
    with pytest.raises(PosttrainError, match=r"does not say where its prompts end; .*whole_prompts"):
        model.generate(**given)
    with whole_prompts(model):
        found = model.generate(**given)[:, -4:].tolist()
        beams = model.generate(**given, num_beams=2)[:, -4:]
        with pytest.raises(PosttrainError, match="a prompt is read in pieces"):
            model.generate(**given, prefill_chunk_size=2)
    assert beams.shape == (2, 4)
    assert found == wanted
    with pytest.raises(PosttrainError, match="does not say where its prompts end"):
        model(padded)
    with pytest.raises(PosttrainError, match="gets embeddings, and no ids"):
        model(inputs_embeds=torch.zeros(1, 2, 32))
    with part_of(model).switched_off():
        assert torch.equal(model.generate(**given), base.generate(**given))


@torch.no_grad()
def test_the_text_of_an_encoder_is_its_prompt_and_padding_is_not() -> None:
    base = encoder("bert")
    model = changed(base)
    mask = torch.tensor([[1] * 9, [1] * 5 + [0] * 4])
    found = model(IDS, attention_mask=mask).logits
    assert torch.allclose(found[:1], model(IDS[:1]).logits, atol=1e-5)
    assert torch.allclose(found[1:], model(IDS[1:, :5]).logits, atol=1e-5)
    assert not torch.allclose(found[1:], model(IDS[1:]).logits, atol=1e-2)
    assert not torch.allclose(found[1:], base(IDS[1:, :5]).logits, atol=1e-2)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_the_text_of_a_decoder_with_a_head_is_its_prompt(family: str) -> None:
    """Its end is found by the padding token in clean ids, also where a real token has the same id."""
    base = transformers.AutoModelForSequenceClassification.from_config(config(family), dtype=torch.float32)
    model = changed(scored.spread(base, 4.0), suffix=1, prefix=0)
    texts = [[20, 21, 0, 22, 23], [30, 31, 32], [40]]
    ids = torch.tensor([text + [0] * (5 - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (5 - len(text)) for text in texts])
    found = model(ids, attention_mask=mask).logits
    if family == "llama":
        assert torch.equal(model(ids, mask).logits, found)
    for text, logits in zip(texts, found, strict=True):
        own = model(torch.tensor([text])).logits[0]
        assert torch.allclose(logits, own, atol=1e-4 * float(own.abs().max()))
    assert (found - base(ids, attention_mask=mask).logits).abs().min() > 1e-3  # all see the change at their ends


# ---- as training reads -----------------------------------------------------------------------------------------------


def rows_that_begin_alike() -> tuple[Tensor, Tensor, Tensor]:
    """ids (4, 14), right-padded; what is asked (4, 14); lengths of prompts. Two rows differ in the prompt's end only."""
    rows = [([5, 6, 7, 8, 9, 10, 11, 12], 4), ([5, 6, 7, 8, 9, 10, 30], 4), ([5, 6, 7, 8, 9, 10, 11, 12, 13], 6)]
    rows.append((list(range(40, 54)), 11))
    ids = torch.zeros(4, 14, dtype=torch.long)
    asked = torch.zeros(4, 14, dtype=torch.bool)
    for i, (row, prompt) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        asked[i, prompt - 1 : len(row)] = True
    return ids, asked, torch.tensor([prompt for _, prompt in rows])


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_training_whole_and_in_one_line(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients; without a line the gradients of the rows, one by one, are the plain reference."""
    base = made(family)
    model = changed(base)
    ids, asked, prompts = rows_that_begin_alike()
    expected = torch.cat(
        [by_hand(base, part_of(model), row.tolist(), int(n))[own] for row, own, n in zip(ids, asked, prompts)]
    )
    found = logits_at(model, mark(model, ids, prompts), None)[asked]
    assert torch.allclose(found, expected, atol=2e-4)

    def gradients(lines: bool) -> list[Tensor]:
        monkeypatch.setattr(line, "LEAST", 0 if lines else 1 << 40)
        monkeypatch.setattr(line, "WORTH", 2.0)
        model.zero_grad()
        head = plain_head(model)
        assert head is not None
        assert (line.line_for(model, ids, asked) is not None) == (lines and family not in ("gemma3",))
        states = states_at(model, mark(model, ids, prompts), asked)
        logits = head.logits(states, torch.float32)
        assert torch.allclose(logits, expected, atol=2e-4)
        weighted = logits.log_softmax(-1)[:, 7] * torch.arange(1, len(logits) + 1)
        weighted.sum().backward()  # type: ignore[no-untyped-call]
        return [p.grad.clone() for p in part_of(model).parameters() if p.grad is not None]

    plain, together = gradients(False), gradients(True)
    assert len(plain) == 6
    for one, other in zip(plain, together, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max()))


def test_fisher_information_reads_prompts_as_training_does() -> None:
    """Against gradients of rows read by hand; curvature processes them one by one."""
    model = changed(made("llama"))
    ids, asked, prompts = rows_that_begin_alike()
    examples, sums = [], {n: torch.zeros_like(p) for n, p in model.named_parameters() if p.requires_grad}
    for row, own, n in zip(ids, asked, prompts, strict=True):
        at = own.nonzero()[:, 0]
        inputs, targets = row[: int(at[-1]) + 1], torch.arange(len(at)) + 3
        examples.append(Example(inputs, at, targets))
        model.zero_grad()
        logits = model(mark(model, inputs[None], n[None])).logits[0, at].log_softmax(-1)
        logits.gather(1, targets[:, None]).sum().backward()
        for name, total in sums.items():
            total += model.get_parameter(name).grad.square()
    moving = {n: model.get_parameter(n) for n in sums}
    for chunk_rows in (1, 8):
        found = fisher(model, moving, examples, kind="empirical", chunk_rows=chunk_rows)
        assert found.reason == "a part of the model looks where each prompt ends"
        for name, total in sums.items():
            assert torch.allclose(found.diagonal[name] * found.positions, total, rtol=1e-3, atol=1e-6)
    whole = [fisher(model, moving, examples, kind=kind, draws=60, seed=1).trace for kind in ("signs", "true")]
    assert whole[0] == pytest.approx(whole[1], rel=0.2)


def test_rows_without_a_prompt_are_refused_and_other_models_need_no_marks() -> None:
    model = changed(made("llama"))
    with pytest.raises(PosttrainError, match="a row has no prompt, or several answers"):
        mark(model, IDS, torch.tensor([0, 5]))
    base = made("llama")
    assert mark(base, IDS, torch.tensor([0, 5])) is IDS
    prompts = [[1, 2], [3]]
    assert mark_prompts(base, prompts) is prompts
    with whole_prompts(base), bare(base):
        base(IDS)


@torch.no_grad()
def test_the_state_of_a_pass_ends_with_it_even_after_an_error() -> None:
    model = changed(made("llama"))
    expected = model(mark(model, IDS, PROMPTS)).logits
    with pytest.raises(IndexError):
        model(mark(model, IDS + 10_000, PROMPTS))
    with pytest.raises(PosttrainError, match="does not say"):
        model(IDS)
    assert part_of(model).places is None
    assert torch.equal(model(mark(model, IDS, PROMPTS)).logits, expected)
    inner = model.model(mark(model, IDS, PROMPTS)).last_hidden_state  # the model without its head
    assert torch.equal(model.lm_head(inner), expected)
    with bare(model):
        assert torch.equal(model(IDS).logits, made("llama")(IDS).logits)
    found = some_logits(model)  # what `model verify` looks at
    assert found is not None
    assert bool(torch.isfinite(found).all())


@torch.no_grad()
def test_states_that_are_laid_out_otherwise_are_an_error() -> None:
    model = changed(made("llama"))
    hook = model.model.layers[0].register_forward_hook(lambda *_: part_of(model).there(torch.zeros(18, 32)) and None)
    with pytest.raises(PosttrainError, match=r"states are \(18, 32\), and the ids \(2, 9\)"):
        model(mark(model, IDS, PROMPTS))
    hook.remove()
