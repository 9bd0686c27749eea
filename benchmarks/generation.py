"""Compare the time to answer prompts of posttrain's decoding and of `model.generate` in batches of 8 and 32.

    python benchmarks/generation.py [--json] [--repetitions 3]

The model is a random Llama (hidden 256, 6 layers, vocabulary 4,096). Random weights do not end an answer, so every
twelfth token of the vocabulary ends it: answers are short and of different lengths.

    short     100 prompts of 15 to 45 random tokens, at most 64 new tokens: similar to a study's self test
    few-shot  60 questions of 20 to 40 tokens after 400 tokens that all share, at most 32 new tokens

`generate` gets the prompts sorted by length, longest first. Greedy answers are compared before anything is timed. CPU
seconds of the process and wall seconds are medians over the repetitions; the three ways take turns. Ratios are
generate / here.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from posttrain.inference.decode import decode
from posttrain.inference.protocol import Usage

VOCABULARY = 4096
STOP = frozenset(range(0, VOCABULARY, 12))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    model = shape()
    found = [
        measured(model, "short", *short(), options.repetitions),
        measured(model, "few-shot", *few_shot(), options.repetitions),
    ]
    if options.json:
        print(json.dumps({"threads": torch.get_num_threads(), "cases": found}))
        return
    for case in found:
        usage = case["usage"]
        print(
            f"{case['name']}: {case['prompts']} prompts, {usage['generated_tokens']} tokens generated, "
            f"{case['agree']} answers equal; {usage['prompt_tokens']} prompt positions read, "
            f"{usage['shared_tokens']} saved by sharing"
        )
        for way, (cpu_s, wall_s) in case["seconds"].items():
            ratio = f"  {case['ratios'][way][0]:.2f}x CPU  {case['ratios'][way][1]:.2f}x wall" if way != "here" else ""
            print(f"  {way:12} {cpu_s:7.3f} CPU s {wall_s:7.3f} s{ratio}")


def measured(model: Any, name: str, prompts: list[list[int]], limit: int, repetitions: int) -> dict[str, Any]:
    """Run all ways on the same prompts; return the number of equal answers, seconds and ratios."""
    usage = Usage()

    def here(counted: Usage | None = None) -> list[list[int]]:
        answers = decode(model, prompts, stop=STOP, pad_id=0, max_new_tokens=limit, usage=counted)
        return [answer.ids for answer in answers]

    ways: dict[str, Callable[[], list[list[int]]]] = {
        "here": here,
        "generate 8": lambda: generate(model, prompts, limit, 8),
        "generate 32": lambda: generate(model, prompts, limit, 32),
    }
    ours, theirs = here(usage), ways["generate 8"]()
    agree = sum(one == other for one, other in zip(ours, theirs, strict=True))
    spent: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(repetitions):
        for way, case in ways.items():
            cpu, wall = time.process_time(), time.perf_counter()
            case()
            spent[way].append((time.process_time() - cpu, time.perf_counter() - wall))
    seconds = {way: tuple(map(statistics.median, zip(*each, strict=True))) for way, each in spent.items()}
    own = seconds["here"]
    return {
        "name": name,
        "prompts": len(prompts),
        "agree": agree,
        "seconds": seconds,
        "ratios": {way: (s[0] / own[0], s[1] / own[1]) for way, s in seconds.items() if way != "here"},
        "usage": vars(usage),
    }


def shape() -> Any:
    """Return a small Llama with random weights, scaled so that no two tokens are equally likely."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, num_hidden_layers=6, intermediate_size=688, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=4096, tie_word_embeddings=True, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0) if parameter.dim() > 1 else None
    return model


def some(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(5, VOCABULARY) for _ in range(count)]


def short() -> tuple[list[list[int]], int]:
    draw = random.Random(0)
    return [some(draw, draw.randint(15, 45)) for _ in range(100)], 64


def few_shot() -> tuple[list[list[int]], int]:
    draw = random.Random(1)
    shared = some(draw, 400)
    return [shared + some(draw, draw.randint(20, 40)) for _ in range(60)], 32


def generate(model: Any, prompts: list[list[int]], limit: int, size: int) -> list[list[int]]:
    """Answer with `model.generate` in batches of similar length; return the answers without the end token."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    answers: list[list[int]] = [[]] * len(prompts)
    for first in range(0, len(order), size):
        rows = order[first : first + size]
        width = len(prompts[rows[0]])
        ids = torch.tensor([[0] * (width - len(prompts[i])) + prompts[i] for i in rows])  # no prompt holds a 0
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=(ids > 0).long(),
                max_new_tokens=limit,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=sorted(STOP),
            )
        for i, row in zip(rows, out.tolist(), strict=True):
            new = row[width:]
            answers[i] = new[: next((at for at, token in enumerate(new) if token in STOP), len(new))]
    return answers


if __name__ == "__main__":
    main()
