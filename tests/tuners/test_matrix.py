"""Every tuner on every family: it learns, moves what it says and nothing else, saves, reloads, resumes, generates.

Every tuner on two families, and every family with a third of the tuners, are tried with `make test`; the other pairs with
`make test-slow`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.inference.decode import decode
from posttrain.inference.plain import TokenPair
from posttrain.inference.protocol import Usage
from posttrain.inference.scoring import score
from posttrain.models.load import load_model
from posttrain.models.logits import core_of
from posttrain.models.marks import mark, whole_prompts
from posttrain.training.run import TrainResult, train
from tests.pico import FAMILIES
from tests.training.tiny import PicoPath, config, load, rows, weights
from tests.tuners.matrix import KINDS, VARIANTS, Tried, tried

PROMPTS = [[40, 41, 42], [50, 51, 52, 53, 54, 55, 56], [60, 61, 62, 63, 64]]
ROWS = rows(4)
CASES = [
    pytest.param(family, kind, tried(kind), marks=[pytest.mark.slow] if (i + j) % 3 else [], id=f"{family}-{kind}")
    for i, family in enumerate(FAMILIES)
    for j, kind in enumerate(KINDS)
]
CASES += [pytest.param("llama", kind, how, id=f"llama-{name}") for name, (kind, how) in VARIANTS.items()]


def logits(model: Any, ids: list[int], prompt: int | None = None) -> torch.Tensor:
    """Of all tokens, of which the first `prompt` are the prompt (all when left out)."""
    with torch.no_grad():
        marked = mark(model, torch.tensor([ids]), torch.tensor([prompt or len(ids)]))
        found: torch.Tensor = model(input_ids=marked).logits[0, -len(ids) :]
    return found


def run(pico_path: PicoPath, family: str, kind: str, how: Tried, output: Path) -> TrainResult:
    chosen = config(
        tuner={"kind": kind, **how.settings},
        optimizer={"max_steps": 3, "learning_rate": how.rate, "schedule": "constant"},
        save_at_steps=[2],
    )
    return train(chosen, loaded=load(pico_path, family), rows=ROWS, output=output)


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore:answers are", "ignore:scored", "ignore:Position ids are not"
)
@pytest.mark.parametrize(("family", "kind", "how"), CASES)
def test_a_tuner_on_a_family(pico_path: PicoPath, tmp_path: Path, family: str, kind: str, how: Tried) -> None:
    before = weights(load(pico_path, family).model)
    result = run(pico_path, family, kind, how, tmp_path / "run")

    # it learns, and only what should moves
    losses = [entry["loss_nats"] for entry in result.history]
    assert losses[2] < losses[0]
    moving = {n for n, p in result.model.named_parameters() if p.requires_grad}
    assert result.moved.trainable == sum(p.numel() for p in result.model.parameters() if p.requires_grad) > 0
    assert all(how.moved in n for n in moving)
    after = {n.replace(".base_layer", ""): p for n, p in core_of(result.model).named_parameters()}
    if "pissa" not in str(how.settings.get("init")):
        changed = {n for n in before if not torch.equal(before[n], after[n])}
        assert changed == ({n for n in before if n in moving} if not how.adapter else set())

    # saved and loaded
    saved = tmp_path / "run" / "model"
    assert (saved / "adapter_config.json").is_file() == how.adapter
    loaded = load_model(str(saved), device="cpu").model
    for prompt in PROMPTS:
        torch.testing.assert_close(logits(loaded, prompt), logits(result.model, prompt), atol=1e-6, rtol=0)
    base = load(pico_path, family).model
    assert (logits(loaded, PROMPTS[1]) - logits(base, PROMPTS[1])).abs().max() > 1e-3

    # generated with a cache, in a batch and alone, scored: as plain forward passes have it
    expected = [greedy(loaded, prompt, 4) for prompt in PROMPTS]
    never: frozenset[int] = frozenset()
    together = decode(loaded, PROMPTS, stop=never, pad_id=0, max_new_tokens=4)
    assert [answer.ids for answer in together] == expected
    with whole_prompts(loaded):
        generated = loaded.generate(
            input_ids=torch.tensor([PROMPTS[0]]), attention_mask=torch.ones(1, 3, dtype=torch.long),
            max_new_tokens=4, do_sample=False, eos_token_id=None, use_cache=True,
        )  # fmt: skip
    assert generated[0, -4:].tolist() == expected[0]
    pairs = [TokenPair(prompt, answer) for prompt, answer in zip(PROMPTS, expected, strict=True)]
    for pair, scored in zip(pairs, score(loaded, pairs, usage=Usage()), strict=True):
        context, whole = len(pair.context), [*pair.context, *pair.continuation]
        table = torch.log_softmax(logits(loaded, whole, context)[context - 1 : -1], -1)
        by_hand = table[range(len(pair.continuation)), pair.continuation].sum()
        assert scored.sum_nats == pytest.approx(float(by_hand), abs=1e-4)

    # interrupted after step 2 and taken up again
    shutil.rmtree(saved)
    (tmp_path / "run" / "result.json").unlink()
    resumed = run(pico_path, family, kind, how, tmp_path / "run")
    assert len(resumed.history) == 3
    one, two = weights(result.model), weights(resumed.model)
    assert all(torch.equal(one[n], two[n]) for n in one)


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(logits(model, ids, len(prompt))[-1].argmax()))
    return ids[len(prompt) :]
