"""Time to answer 100 short probes on pocket's shape: posttrain's decoding loop against `model.generate`.

    python benchmarks/generation.py [--json] [--repetitions 5]

A random Llama of pocket's shape (hidden 256, 6 layers, vocabulary 4,096), 100 prompts of 15 to 45 random tokens. Random
weights end nowhere, so `here` and `generate` both write 8 tokens per answer; `early` stops at ids that end most answers
within a few tokens and has a limit of 64: what a study's exams look like. CPU seconds of the process and wall seconds,
the median over the repetitions; the answers of both are compared first.
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

from posttrain.inference.decode import decode, left_pad

NEVER = frozenset({1 << 30})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    model, prompts = shape(), draw_prompts()
    answers = decode(model, prompts, stop=NEVER, pad_id=0, max_new_tokens=8)
    agree = sum(ours.ids == theirs for ours, theirs in zip(answers, generate(model, prompts, 8), strict=True))
    often = frozenset(range(0, 4096, 6))  # about one token in six ends the answer
    cases: dict[str, Callable[[], Any]] = {
        "here": lambda: decode(model, prompts, stop=NEVER, pad_id=0, max_new_tokens=8),
        "generate": lambda: generate(model, prompts, 8),
        "early": lambda: decode(
            model, prompts, stop=often, pad_id=0, max_new_tokens=64, temperature=1.0, batch_tokens=16384
        ),
    }
    times = {name: timed(case, options.repetitions) for name, case in cases.items()}
    if options.json:
        print(json.dumps({"agree": agree, "prompts": len(prompts), **times}))
        return
    print(f"{agree} of {len(prompts)} answers agree (rounding may decide between equals)")
    for name, (cpu_s, wall_s) in times.items():
        print(f"{name:9} {cpu_s:.3f} CPU s  {wall_s:.3f} s")


def shape() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=256, num_hidden_layers=6, intermediate_size=688, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=4096, tie_word_embeddings=True, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def draw_prompts() -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(5, 4096) for _ in range(draw.randint(15, 45))] for _ in range(100)]


def generate(model: Any, prompts: list[list[int]], steps: int) -> list[list[int]]:
    batch = left_pad(prompts, 0)
    with torch.inference_mode():
        out = model.generate(
            input_ids=batch.ids, attention_mask=batch.mask, max_new_tokens=steps, do_sample=False, pad_token_id=0
        )
    return [row[batch.ids.shape[1] :] for row in out.tolist()]


def timed(case: Callable[[], Any], repetitions: int) -> tuple[float, float]:
    spent = []
    for _ in range(repetitions):
        cpu, wall = time.process_time(), time.perf_counter()
        case()
        spent.append((time.process_time() - cpu, time.perf_counter() - wall))
    return statistics.median(cpu for cpu, _ in spent), statistics.median(wall for _, wall in spent)


if __name__ == "__main__":
    main()
