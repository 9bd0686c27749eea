"""What the others in the batch do to an answer: nothing. Shared prefixes, refilling, budgets, the plain path, counts.

The oracle is `model.generate` of transformers, one prompt at a time.
"""

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import pytest
import torch
import transformers

from posttrain.errors import PosttrainError
from posttrain.inference.decode import Decoded, decode
from posttrain.inference.one_length import way_of
from posttrain.inference.protocol import Usage
from posttrain.inference.refill import groups_of
from posttrain.inference.sampling import Sampling, pick
from tests.pico import POSITIONS, VOCABULARY, config

NEVER = frozenset({VOCABULARY})
STOP = frozenset(range(3, VOCABULARY, 17))
NEW = 14
SMALL: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
CONFIGS: dict[str, Callable[[], Any]] = {
    **{family: partial(config, family) for family in ("llama", "qwen3", "gemma3", "glm", "gpt2")},
    "mistral": lambda: transformers.MistralConfig(
        **SMALL, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=POSITIONS, sliding_window=16,
    ),
    "bloom": lambda: transformers.BloomConfig(**SMALL, hidden_size=32, n_layer=2, n_head=4),
    "mamba": lambda: transformers.MambaConfig(**SMALL, hidden_size=32, num_hidden_layers=2, state_size=4),
    "rwkv": lambda: transformers.RwkvConfig(**SMALL, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32),
    "openai-gpt": lambda: transformers.OpenAIGPTConfig(
        vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=32, n_layer=2, n_head=4
    ),
}  # fmt: skip
SHARED = ("llama", "qwen3", "gemma3", "glm", "mistral", "gpt2", "bloom")
SPREAD = {"rwkv": 1.0, "bloom": 12.0}
PLAIN = ("mamba", "rwkv", "openai-gpt")


def tokens(start: int, step: int, count: int) -> list[int]:
    return [5 + (start + step * k) % 370 for k in range(count)]


LONG, OTHER = tokens(1, 11, 90), tokens(2, 7, 40)
PROMPTS = [
    *(LONG + tokens(3 * i, 5, 1 + 4 * i) for i in range(4)),  # one prefix of 90 tokens,
    *(OTHER + tokens(5 * i, 3, 9 - 4 * i) for i in range(3)),  # another of 40,
    *(tokens(7 * i, 13, 3 + 9 * i) for i in range(4)),  # and none
]


@cache
def model_of(name: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.float32).eval()
    with torch.no_grad():  # untrained logits are nearly equal: spread them, so that rounding decides nothing
        for parameter in model.parameters():
            parameter.mul_(SPREAD.get(name, 4.0)) if parameter.dim() > 1 else None
    return model


@cache
def generated(name: str) -> list[tuple[list[int], bool]]:
    """Each prompt's greedy answer alone, by `model.generate`, and whether no two candidates were as good as equal."""
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        out = model_of(name).generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=0,
            eos_token_id=sorted(STOP), output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
        new = out.sequences[0, len(prompt) :].tolist()
        best = torch.cat(out.scores).topk(2).values
        found.append((new, bool((best[:, 0] - best[:, 1] > 1e-4 * best.abs().max()).all())))
    return found


def wanted(name: str, row: int, limit: int) -> Decoded | None:
    """The oracle's answer to a prompt within a limit; None when rounding may decide."""
    ids, clear = generated(name)[row]
    if not clear:
        return None
    ended = bool(ids) and ids[-1] in STOP and len(ids) <= limit
    return Decoded(ids[:-1] if ended else ids[:limit], ended)


@contextmanager
def seen(model: Any) -> Iterator[list[tuple[int, int, int]]]:
    """Rows, tokens and columns of each forward pass."""
    passes: list[tuple[int, int, int]] = []

    def note(_: Any, args: Any, given: dict[str, Any]) -> None:
        passes.append((*given["input_ids"].shape, given["attention_mask"].shape[1]))

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()


@pytest.mark.parametrize("name", [*SHARED, *PLAIN])
@pytest.mark.filterwarnings("ignore:answers are generated")
def test_an_answer_is_the_same_whoever_else_is_in_the_batch(name: str) -> None:
    """Any prompts in any order, some twice, with limits of their own and any budget: what `generate` gives alone."""
    draw = random.Random(name)
    assert sum(clear for _, clear in generated(name)) >= 9
    everything = list(range(len(PROMPTS)))
    for budget in (30_000, 700, 1, *(draw.randrange(100, 2000) for _ in range(2))):
        rows = everything if budget in (30_000, 700, 1) else draw.choices(everything, k=draw.randint(1, 18))
        limits = [NEW if budget in (30_000, 1) else draw.randint(1, NEW) for _ in rows]
        usage = Usage()
        answers = decode(
            model_of(name), [PROMPTS[row] for row in rows], stop=STOP, pad_id=0, max_new_tokens=limits,
            batch_tokens=budget, usage=usage,
        )  # fmt: skip
        for row, limit, answer in zip(rows, limits, answers, strict=True):
            expected = wanted(name, row, limit)
            assert expected is None or answer == expected, (budget, row)
        assert usage.requests == len(rows)
        assert usage.generated_tokens == sum(len(answer.ids) for answer in answers)
        assert usage.plain_requests == (len(rows) if name in PLAIN else 0)
        if rows is everything:
            assert usage.shared_prefixes == (2 if name in SHARED else 0)


def test_a_shared_prefix_is_read_once() -> None:
    """By hand: 90 tokens for four prompts, whose tails of 1, 5, 9 and 13 tokens are read as 13 each."""
    usage = Usage()
    with seen(model_of("llama")) as passes:
        decode(model_of("llama"), PROMPTS[:4], stop=NEVER, pad_id=0, max_new_tokens=3, usage=usage)
    assert passes == [(1, 90, 90), (4, 13, 103), (4, 1, 104), (4, 1, 105)]
    assert usage.prompt_tokens == 90 + 4 * 13
    assert usage.shared_prefixes == 1
    assert usage.shared_tokens == (90 + 86 + 82 + 78) - 90


def test_the_batch_is_refilled_within_its_budget() -> None:
    """One long answer and eleven short ones, four rows at a time: the short ones pass by while the long one is written."""
    prompts = [tokens(7 * i, 13, 10) for i in range(12)]
    limits = [40, *[4] * 11]
    order: list[int] = []
    with seen(model_of("llama")) as passes:
        answers = decode(
            model_of("llama"), prompts, stop=NEVER, pad_id=0, max_new_tokens=limits, batch_tokens=200,
            on_done=lambda row, _: order.append(row),
        )  # fmt: skip
    assert [len(answer.ids) for answer in answers] == limits
    assert all(rows * columns <= 200 for rows, _, columns in passes)
    assert max(rows for rows, _, _ in passes) == 4
    assert order[-1] == 0
    assert sorted(order) == list(range(12))
    reading = [(rows, width) for rows, width, _ in passes if width > 1]
    assert reading == [(4, 10), (3, 10), (3, 10), (2, 10)]  # the three beside the long one leave together
    assert len(passes) - len(reading) == 39  # no step but the long answer's own


def test_columns_that_no_row_needs_are_cut() -> None:
    prompts = [tokens(1, 3, 100), tokens(2, 5, 4), tokens(3, 7, 4)]
    with seen(model_of("llama")) as passes:
        decode(model_of("llama"), prompts, stop=NEVER, pad_id=0, max_new_tokens=[2, 20, 20])
    assert max(columns for _, _, columns in passes[:2]) >= 100
    assert passes[-1] == (2, 1, 4 + 19)


def test_answers_longer_than_the_room_of_a_buffer() -> None:
    from posttrain.inference.refill import ROOM

    model, prompt = model_of("gpt2"), tokens(1, 3, 5)
    long = decode(model, [prompt, prompt[:3]], stop=NEVER, pad_id=0, max_new_tokens=2 * ROOM + 9)
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2 * ROOM + 9, do_sample=False,
                         pad_token_id=0, eos_token_id=None)  # fmt: skip
    assert long[0].ids[:60] == out[0, 5:65].tolist()
    assert len(long[0].ids) == len(long[1].ids) == 2 * ROOM + 9


def test_each_row_ends_where_its_own_positions_end() -> None:
    prompts = [[7] * (POSITIONS - 3), [8] * (POSITIONS - 9), [9]]
    answers = decode(model_of("llama"), prompts, stop=NEVER, pad_id=0, max_new_tokens=[50, 50, 5])
    assert [len(answer.ids) for answer in answers] == [3, 9, 5]


def test_nothing_asked_and_no_room_given() -> None:
    assert decode(model_of("llama"), [], stop=NEVER, pad_id=0, max_new_tokens=5) == []
    done: dict[int, Decoded] = {}
    found = decode(
        model_of("llama"), PROMPTS[:2], stop=NEVER, pad_id=0, max_new_tokens=[0, 2], on_done=done.__setitem__
    )
    assert found[0] == Decoded([], False)
    assert len(found[1].ids) == 2
    assert [done[0], done[1]] == found


def test_stop_strings_end_rows_while_others_go_on() -> None:
    """A token's text is its number between brackets, so that a stop string spans tokens."""

    def text_of(ids: Sequence[int]) -> str:
        return "".join(f"<{i}>" for i in ids)

    free = decode(model_of("llama"), PROMPTS, stop=NEVER, pad_id=0, max_new_tokens=NEW)
    stop = f"{free[0].ids[4]}><{free[0].ids[5]}"
    answers = decode(
        model_of("llama"), PROMPTS, stop=NEVER, pad_id=0, max_new_tokens=NEW, stop_texts=[stop], text_of=text_of
    )
    for answer, whole in zip(answers, free, strict=True):
        assert answer.ids == whole.ids[: len(answer.ids)]
        assert answer.ended == (stop in text_of(whole.ids))
        assert stop not in text_of(answer.ids[:-1])
        assert answer.ended or len(answer.ids) == NEW
    assert len(answers[0].ids) <= 6


def test_sampled_answers_depend_on_seed_and_place_alone() -> None:
    def sample(prompts: Sequence[list[int]], **given: Any) -> list[Decoded]:
        settings = {"max_new_tokens": 8, "temperature": 1.0, "seed": 5} | given
        return decode(model_of("llama"), prompts, stop=STOP, pad_id=0, **settings)

    whole = sample(PROMPTS)
    assert sample(PROMPTS, batch_tokens=150) == whole
    assert sample(PROMPTS[:3]) == whole[:3]
    longer = sample(PROMPTS, max_new_tokens=12)
    assert [answer.ids[:8] for answer in longer] == [answer.ids for answer in whole]
    assert sample(PROMPTS, seed=6) != whole
    assert len({tuple(answer.ids) for answer in sample([PROMPTS[0]] * 5)}) > 1
    assert sample(PROMPTS, top_k=1) == decode(model_of("llama"), PROMPTS, stop=STOP, pad_id=0, max_new_tokens=8)


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(0.7, 0, 1.0), (1.3, 5, 1.0), (0.9, 0, 0.6), (1, 20, 0.4)])
def test_what_may_be_drawn_is_what_transformers_would_draw(temperature: float, top_k: int, top_p: float) -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(2)) * 2
    warped = TemperatureLogitsWarper(temperature)(None, logits) if temperature != 1 else logits
    warped = TopKLogitsWarper(top_k)(None, warped) if top_k else warped
    warped = TopPLogitsWarper(top_p)(None, warped) if top_p < 1 else warped
    count = 4000
    for row, chances in enumerate(warped.softmax(-1)):
        uniforms = [(i + 0.5) / count for i in range(count)]
        drawn = pick(logits[row].expand(count, -1), Sampling(temperature, 0, top_p, top_k), uniforms)
        shares = torch.bincount(drawn, minlength=40) / count
        torch.testing.assert_close(shares, chances, atol=2 / count, rtol=0)
    edge = pick(logits, Sampling(temperature, 0, top_p, top_k), [1 - 1e-16] * 3)
    assert (warped.softmax(-1).gather(1, edge[:, None]) > 0).all()


def test_partly_broken_logits_are_an_error() -> None:
    with pytest.raises(PosttrainError, match="no finite logits"):
        pick(torch.tensor([[1.0, 2.0], [1.0, float("nan")]]), Sampling(), [0.0, 0.0])


def test_models_that_remember_otherwise_are_said_once() -> None:
    model, usage = transformers.AutoModelForCausalLM.from_config(CONFIGS["mamba"]()).eval(), Usage()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            decode(model, PROMPTS[-2:], stop=NEVER, pad_id=0, max_new_tokens=1, usage=usage)
    assert sum("recurrent" in str(each.message) for each in said) == 1
    assert usage.plain_requests == 4
    assert "recurrent" in usage.plain_reason
    assert (way_of(model).memory, way_of(model).together) == ("cache_params", True)
    assert not way_of(model_of("rwkv")).together  # transformers 5.23 mixes the rows of a batch there
    assert way_of(model_of("openai-gpt")).memory is None


@pytest.mark.filterwarnings("ignore:answers are generated")
def test_positions_scaled_by_the_longest_row_take_the_plain_path_beyond_their_first_length() -> None:
    settings = transformers.Phi3Config(
        **SMALL, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=POSITIONS, original_max_position_embeddings=32,
        rope_scaling={"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.float32).eval()
    usage = Usage()
    decode(model, [[7] * 20, [8] * 25], stop=NEVER, pad_id=0, max_new_tokens=7, usage=usage)
    assert usage.plain_requests == 0
    decode(model, [[7] * 20, [8] * 26], stop=NEVER, pad_id=0, max_new_tokens=7, usage=usage)
    assert usage.plain_requests == 2


@pytest.mark.filterwarnings("ignore:answers are generated")
def test_virtual_tokens_stand_in_front_once() -> None:
    import peft

    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = peft.get_peft_model(
            transformers.AutoModelForCausalLM.from_config(config("llama"), dtype=torch.float32),
            peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        ).eval()
    answers = decode(model, PROMPTS[-2:], stop=NEVER, pad_id=0, max_new_tokens=5)
    for prompt, answer in zip(PROMPTS[-2:], answers, strict=True):
        ids = list(prompt)
        for _ in range(5):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert answer.ids == ids[len(prompt) :]


def test_groups_by_hand() -> None:
    """Two few-shot prompts behind one system message: each group keeps its own, longer prefix; short ones join none."""
    system, one, two = tokens(1, 3, 20), tokens(2, 5, 300), tokens(3, 7, 200)
    prompts = [
        system + one + [9], system + two + [8, 8], system + one + [7, 7], system + two + [6], [5, 5], system + one,
    ]  # fmt: skip
    groups = {(group.prefix, tuple(group.rows)) for group in groups_of(prompts)}
    assert groups == {(319, (2, 0, 5)), (220, (1, 3)), (0, (4,))}  # row 5 must have a token left to read
    assert [group.prefix for group in groups_of([[*system, i] for i in range(9)])] == [20]
    few = groups_of([[*system[:5], i] for i in range(9)])
    assert [group.prefix for group in few] == [0]  # it would save less than it costs


def test_groups_hold_every_prompt_once_and_share_what_they_say() -> None:
    draw = random.Random(0)
    for _ in range(100):
        stems = [[draw.randint(0, 2) for _ in range(draw.randint(0, 150))] for _ in range(3)]
        prompts = [draw.choice(stems) + [draw.randint(0, 2) for _ in range(draw.randint(1, 4))] for _ in range(20)]
        groups = groups_of(prompts)
        assert sorted(row for group in groups for row in group.rows) == list(range(20))
        for group in groups:
            assert len({tuple(prompts[row][: group.prefix]) for row in group.rows}) == 1
            assert all(len(prompts[row]) > group.prefix for row in group.rows)
