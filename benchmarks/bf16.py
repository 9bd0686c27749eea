"""Compare float32 with bfloat16 in the same run, on a real chat model: a LoRA step, a full step, answers, scores.

    python benchmarks/bf16.py FOLDER            (or the folder in the environment variable POSTTRAIN_REAL)
    python benchmarks/bf16.py FOLDER --only generation scoring --json

Agreement is checked before anything is timed: the losses of the same steps, and the log-probabilities per token of the
same answers. The share of greedy answers that are exactly equal is reported. Then both arms take turns, and medians are
compared. The training arms call `posttrain.training.run.train` as a user does; the others use `ModelRespondent`.
"""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from posttrain.data.chat import Encoded, encode_all
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import LoadedModel, load_model
from posttrain.models.processor import processor
from posttrain.retention.selection import PACKAGED_PROMPTS, conversation, read_prompts
from posttrain.training.config import TrainConfig
from posttrain.training.run import train

AT_LEAST = {"lora": 2.0, "full": 0.0, "generation": 2.5, "scoring": 2.5}
"""Arm -> the least ratio of times. Full fine-tuning is only measured, without a limit: see docs/training.md."""
LOSSES_APART = 0.05
"""The most nats per token by which the losses of a LoRA step may differ."""
SCORES_APART = 0.05
"""The most nats per token by which log-probabilities may differ, as a mean over the answers."""


class Arms(NamedTuple):
    """The times of one task in float32 and in bfloat16, s. agreement: how far the results differ."""

    float32_s: float
    bfloat16_s: float
    agreement: dict[str, float]

    @property
    def ratio(self) -> float:
        return self.float32_s / self.bfloat16_s


def in_turns(run: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, float]:
    """Return the median time of each call, s. The calls take turns, so that a busy moment affects all of them."""
    times: dict[str, list[float]] = {name: [] for name in run}
    for _ in range(repetitions):
        for name, call in run.items():
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(found) for name, found in times.items()}


def generation(models: dict[str, ModelRespondent], prompts: list[str], tokens: int, repetitions: int) -> Arms:
    """Compare and time greedy answers to all prompts in one call."""
    said = {name: one.generate(prompts, max_new_tokens=tokens) for name, one in models.items()}
    same = sum(a == b for a, b in zip(said["float32"], said["bfloat16"], strict=True)) / len(prompts)
    first = sum(a[:20] == b[:20] for a, b in zip(said["float32"], said["bfloat16"], strict=True)) / len(prompts)

    def call(one: ModelRespondent) -> Callable[[], Any]:
        return lambda: one.generate(prompts, max_new_tokens=tokens)

    took = in_turns({name: call(one) for name, one in models.items()}, repetitions)
    return Arms(took["float32"], took["bfloat16"], {"same_answers": same, "same_first_20_characters": first})


def scoring(models: dict[str, ModelRespondent], pairs: list[tuple[str, str]], repetitions: int) -> Arms:
    """Compare and time the log-probabilities of given answers. Exit if they differ too much."""
    found = {name: one.logprobs(pairs) for name, one in models.items()}
    apart = [
        abs(a.sum_nats - b.sum_nats) / max(a.tokens, 1)
        for a, b in zip(found["float32"], found["bfloat16"], strict=True)
    ]
    if statistics.mean(apart) > SCORES_APART:
        sys.exit(f"log-probabilities differ by {statistics.mean(apart):.3f} nats per token")

    def call(one: ModelRespondent) -> Callable[[], Any]:
        return lambda: one.logprobs(pairs)

    took = in_turns({name: call(one) for name, one in models.items()}, repetitions)
    return Arms(
        took["float32"], took["bfloat16"], {"nats_per_token_apart": statistics.mean(apart), "worst": max(apart)}
    )


def training(loaded: LoadedModel, rows: list[Encoded], tuner: str, steps: int, tokens: int) -> Arms:
    """Compare and time the same training steps in both precisions, twice and in turns. Exit if LoRA's losses differ.

    The time is the median of a step, without the first step of each run.
    """
    losses: dict[str, list[float]] = {}
    took: dict[str, list[float]] = {"float32": [], "bf16": []}
    for name in ("float32", "bf16", "bf16", "float32"):
        config = TrainConfig.model_validate(
            {
                "model": loaded.name,
                "tuner": {"kind": tuner},
                "precision": name,
                "optimizer": {"learning_rate": 1e-4 if tuner == "lora" else 1e-5, "max_steps": steps},
                "batch": {"tokens": tokens},
            }
        )
        result = train(config, loaded=loaded._replace(model=copy.deepcopy(loaded.model)), rows=rows)
        losses[name] = [entry["loss_nats"] for entry in result.history]
        ends = [entry["wall_s"] for entry in result.history]
        took[name] += [b - a for a, b in itertools.pairwise(ends)]
        del result
        gc.collect()
    apart = max(abs(a - b) for a, b in zip(losses["float32"], losses["bf16"], strict=True))
    if apart > LOSSES_APART and tuner == "lora":
        sys.exit(f"{tuner}: losses differ by {apart:.3f} nats per token: {losses}")
    medians = {name: statistics.median(found) for name, found in took.items()}
    return Arms(medians["float32"], medians["bf16"], {"losses_apart": apart, "last_loss": losses["bf16"][-1]})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=os.environ.get("POSTTRAIN_REAL"), help="a model's folder")
    parser.add_argument("--only", nargs="+", choices=list(AT_LEAST), default=list(AT_LEAST))
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--answer-tokens", type=int, default=32)
    parser.add_argument("--batch-tokens", type=int, default=1024, help="tokens of a training step")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    if not options.model:
        parser.error("no model: name a folder, or set POSTTRAIN_REAL")
    loaded = load_model(options.model, device="cpu")
    prompts = [one.text for one in read_prompts(PACKAGED_PROMPTS)[: options.prompts]]
    plain = ModelRespondent(loaded)
    answers = plain.generate(prompts, max_new_tokens=options.answer_tokens)
    found: dict[str, Arms] = {}

    def keep(name: str, arms: Arms) -> None:
        found[name] = arms
        agreement = ", ".join(f"{key} {value:.3g}" for key, value in arms.agreement.items())
        line = f"float32 {arms.float32_s:.2f} s, bfloat16 {arms.bfloat16_s:.2f} s, {arms.ratio:.2f}x"
        talk(f"{name:<11} {line} (at least {AT_LEAST[name]}); {agreement}")

    def talk(text: str) -> None:
        print(text, file=sys.stderr if options.json else sys.stdout, flush=True)

    talk(f"{processor()}; {torch.get_num_threads()} threads; {options.model}")
    if {"generation", "scoring"} & set(options.only):
        low = ModelRespondent(load_model(options.model, device="cpu", dtype="bfloat16"))
        models = {"float32": plain, "bfloat16": low}
        if "generation" in options.only:
            keep("generation", generation(models, prompts, options.answer_tokens, options.repetitions))
        if "scoring" in options.only:
            pairs = list(zip(prompts, answers, strict=True))
            keep("scoring", scoring(models, pairs, options.repetitions))
    talks = [conversation(p, a, f"row {i}") for i, (p, a) in enumerate(zip(prompts, answers, strict=True)) if a]
    rows = encode_all(talks, loaded.tokenizer, max_length=options.batch_tokens).rows
    for tuner in ("lora", "full"):
        if tuner in options.only:
            keep(tuner, training(loaded, rows, tuner, options.steps, options.batch_tokens))
    if options.json:
        print(json.dumps({name: {**arms._asdict(), "ratio": arms.ratio} for name, arms in found.items()}, indent=2))
    return int(any(arms.ratio < AT_LEAST[name] for name, arms in found.items()))


if __name__ == "__main__":
    sys.exit(main())
