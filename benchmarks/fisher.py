"""Compare the time of Fisher information with that of a forward and backward pass over the same rows.

    python benchmarks/fisher.py --model SmolLM2-135M-Instruct [--rows 64] [--tokens 8192] [--json]

The rows are the model's own answers to packaged prompts, as `ewc` uses them: at most `--rows` rows and `--tokens`
tokens. A pass does the same as training: micro batches of 1,024 padded tokens, cross-entropy at the answers, backward.
Both run in turns on torch's threads. The CPU time of the process is compared, so that waiting for other programs does
not count. The exit code is 1 when the ratio is above 3.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from posttrain.inference.respondents import ModelRespondent
from posttrain.models._scores import length_groups
from posttrain.models.curvature import BATCH_TOKENS, Example, fisher
from posttrain.models.load import load_model
from posttrain.models.logits import logits_at
from posttrain.retention.penalty._base import PenaltyContext
from posttrain.retention.penalty._measured import examples_of, rows_of

LIMIT = 3.0


def timed(function: Any) -> tuple[float, float]:
    """Return the CPU seconds and wall seconds of a call."""
    cpu, wall = time.process_time(), time.monotonic()
    function()
    return time.process_time() - cpu, time.monotonic() - wall


def one_pass(model: Any, examples: list[Example]) -> None:
    """Run forward and backward over all rows."""
    for group in length_groups([len(e.inputs) for e in examples], BATCH_TOKENS, 1):
        ids = pad_sequence([examples[i].inputs for i in group], batch_first=True)
        labels = torch.full_like(ids, -100)
        for row, i in enumerate(group):
            labels[row, examples[i].positions] = examples[i].targets
        asked = labels != -100
        columns = asked.any(0).nonzero()[:, 0]
        logits = logits_at(model, ids, columns)[asked[:, columns]]
        cross_entropy(logits.float(), labels[asked]).backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)


def main() -> int:
    """Measure, print the result and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket:chat")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    loaded = load_model(chosen.model, device="cpu")
    loaded.model.requires_grad_(True).eval()
    trainable = dict(loaded.model.named_parameters())
    respondent = ModelRespondent(loaded)
    context = PenaltyContext(
        respondent,
        respondent.fingerprint,
        loaded=loaded,
        trainable=trainable,
        base=Path(),
        say=lambda text: print(text, file=sys.stderr),
    )
    examples: list[Example] = []
    for example in examples_of(rows_of(None, chosen.rows, context)):
        if examples and sum(len(e.inputs) for e in [*examples, example]) > chosen.tokens:
            break
        examples.append(example)
    passes, fishers = [], []
    for _ in range(chosen.repetitions):
        passes.append(timed(lambda: one_pass(loaded.model, examples)))
        fishers.append(timed(lambda: fisher(loaded.model, trainable, examples)))
    (pass_s, pass_wall_s), (fisher_s, fisher_wall_s) = min(passes), min(fishers)
    ratio = fisher_s / pass_s
    tokens = sum(len(e.inputs) for e in examples)
    if chosen.json:
        names = ("rows", "tokens", "pass_s", "fisher_s", "ratio", "pass_wall_s", "fisher_wall_s")
        values = (len(examples), tokens, pass_s, fisher_s, ratio, pass_wall_s, fisher_wall_s)
        print(json.dumps(dict(zip(names, values, strict=True))))
    else:
        print(f"{chosen.model}: {len(examples)} rows, {tokens:,} tokens, {torch.get_num_threads()} threads")
        print(f"a pass        {pass_s:8.1f} s of CPU time, {pass_wall_s:.1f} s on the clock")
        print(f"Fisher        {fisher_s:8.1f} s of CPU time, {fisher_wall_s:.1f} s on the clock")
        print(f"ratio         {ratio:8.2f} (at most {LIMIT:g})")
    return int(ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
