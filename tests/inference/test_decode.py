"""The decoding loop against a plain loop: one prompt at a time, the whole text through the model for every token."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.errors import PosttrainError
from posttrain.inference.decode import Decoded, decode
from tests.pico import FAMILIES, POSITIONS

TIE = 1e-4
PROMPTS = [[5 + (7 * i + 13 * t) % 370 for t in range(3 + 5 * (i % 5))] for i in range(12)]
NO_STOP = frozenset({POSITIONS * 10})


def load(path: Path) -> Any:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():  # untrained logits are nearly equal: spread them, so that rounding decides nothing
        for parameter in model.parameters():
            parameter.mul_(4.0) if parameter.dim() > 1 else None
    return model


@torch.no_grad()
def reference(model: Any, prompt: Sequence[int], stop: frozenset[int], limit: int) -> tuple[Decoded, bool]:
    """Greedy, no cache, no batch; and whether no two candidates were as good as equal."""
    ids, clear = list(prompt), True
    said: list[int] = []
    for _ in range(limit):
        top = model(torch.tensor([ids]), use_cache=False).logits[0, -1].topk(2)
        clear = clear and float(top.values[0] - top.values[1]) > TIE
        token = int(top.indices[0])
        if token in stop:
            return Decoded(said, True), clear
        said.append(token)
        ids.append(token)
    return Decoded(said, False), clear


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_with_cache_equals_one_by_one_without(family: str, pico_path: Callable[[str], Path]) -> None:
    model = load(pico_path(family))
    free = [reference(model, p, NO_STOP, 12) for p in PROMPTS]
    common = max({t for d, _ in free for t in d.ids[4:]}, key=lambda t: sum(t in d.ids for d, _ in free))
    stop = frozenset({common})  # a token that ends some answers early and others never
    expected = [reference(model, p, stop, 12) for p in PROMPTS]
    assert any(d.ended for d, _ in expected)
    assert sum(clear for _, clear in expected) >= 10
    for tokens in (10_000, 150):  # one batch, then several
        answers = decode(model, PROMPTS, stop=stop, pad_id=0, max_new_tokens=12, batch_tokens=tokens)
        for answer, (wanted, clear) in zip(answers, expected, strict=True):
            assert answer == wanted or not clear


def test_garbage_is_cut_and_says_so(pico_path: Callable[[str], Path]) -> None:
    model = load(pico_path("llama"))
    answers = decode(model, PROMPTS[:3], stop=NO_STOP, pad_id=0, max_new_tokens=7)
    assert [(len(a.ids), a.ended) for a in answers] == [(7, False)] * 3


def test_answers_end_where_the_positions_end(pico_path: Callable[[str], Path]) -> None:
    model = load(pico_path("gpt2"))
    answers = decode(model, [[7] * (POSITIONS - 4)], stop=NO_STOP, pad_id=0, max_new_tokens=50)
    assert len(answers[0].ids) == 4
    assert not answers[0].ended


def test_prompts_that_do_not_fit_are_all_named(pico_path: Callable[[str], Path]) -> None:
    model = load(pico_path("gpt2"))
    with pytest.raises(PosttrainError) as error:
        decode(model, [[5], [], [7] * POSITIONS], stop=NO_STOP, pad_id=0, max_new_tokens=1)
    assert [p.location for p in error.value.problems] == ["prompt 2", "prompt 3"]


def test_broken_weights_are_an_error(pico_path: Callable[[str], Path]) -> None:
    model = load(pico_path("llama"))
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(PosttrainError, match="no finite logits"):
        decode(model, PROMPTS, stop=NO_STOP, pad_id=0, max_new_tokens=2)


def test_sampling_depends_on_seed_and_place_not_on_batching(pico_path: Callable[[str], Path]) -> None:
    model = load(pico_path("llama"))

    def sample(seed: int, tokens: int) -> list[Decoded]:
        return decode(
            model, PROMPTS, stop=NO_STOP, pad_id=0, max_new_tokens=6, temperature=1.0, seed=seed, batch_tokens=tokens
        )

    assert sample(1, 10_000) == sample(1, 60)
    assert sample(1, 10_000) != sample(2, 10_000)


def test_sampling_follows_the_distribution(pico_path: Callable[[str], Path]) -> None:
    model = load(pico_path("llama"))
    prompt = PROMPTS[1]
    with torch.no_grad():
        chances = model(torch.tensor([prompt])).logits[0, -1].div(0.7).softmax(-1)
    drawn = decode(model, [prompt] * 2000, stop=NO_STOP, pad_id=0, max_new_tokens=1, temperature=0.7, seed=3)
    counts = torch.bincount(torch.tensor([d.ids[0] for d in drawn]), minlength=len(chances))
    top = int(chances.argmax())
    share, chance = float(counts[top]) / 2000, float(chances[top])
    assert abs(share - chance) < 4 * (chance * (1 - chance) / 2000) ** 0.5
