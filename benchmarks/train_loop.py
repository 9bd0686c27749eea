"""Compare the CPU time of a PostTrainer step with that of a bare PyTorch loop, on the same 512-token steps of pocket.

    python benchmarks/train_loop.py [--json] [--steps 12] [--repetitions 5]

Both loops use the same rows in the same order, the same model, fused AdamW and a gradient norm clipped at 1.0, and both
read the loss in each step. Before anything is timed, the losses of both are compared: they must agree to 1e-5. The time
is `time.process_time` on one thread, so waiting for other programs does not count. The two loops take turns, and the
median over the repetitions is reported. At the end, the cost of `train()` in addition to its steps is measured, as a
study calls it often. The exit code is 1 when a ratio is above 1.2 or this cost is above 300 ms.

The bare loop is the textbook one: `model(**batch, labels=...)`. `--rows` chooses the 512 tokens: `packed` is one text
of 512 tokens that are all learned (clm), `chat` is 16 rows of 32 tokens, of which 12 are learned (sft).
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from typing import Any, NamedTuple

import torch
from torch.nn.utils import clip_grad_norm_

from posttrain.data.batching import collate, length_batches
from posttrain.data.chat import Encoded
from posttrain.errors import MissingError
from posttrain.models.load import LoadedModel, load_model
from posttrain.training.config import TrainConfig
from posttrain.training.run import train

LIMIT = 1.2
START_LIMIT_MS = 300
TOLERANCE = 1e-5


class Timed(NamedTuple):
    losses: list[float]
    cpu_s_per_step: float


def pocket() -> LoadedModel:
    """Return pocket:chat, or a random Llama of similar shape if the weights are not built."""
    try:
        return load_model("pocket:chat", device="cpu")
    except MissingError:
        from tokenizers import Tokenizer, models
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

        vocabulary = {f"w{i}": i for i in range(4096)}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="w0")), pad_token="w0", eos_token="w1"
        )
        config = LlamaConfig(
            vocab_size=4096, hidden_size=256, num_hidden_layers=6, intermediate_size=688, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=4096, tie_word_embeddings=True,
        )  # fmt: skip
        torch.manual_seed(0)
        return LoadedModel(LlamaForCausalLM(config), tokenizer, "random")


def make_rows(kind: str, vocabulary: int, steps: int) -> list[Encoded]:
    """Return rows of random ids, 512 tokens per step."""
    draw = torch.Generator().manual_seed(0)
    rows, length = (1, 512) if kind == "packed" else (16, 32)
    made = []
    for i in range(rows * steps):
        ids = torch.randint(10, vocabulary, (length,), generator=draw).tolist()
        labels = ids if kind == "packed" else [-100] * 20 + ids[20:]
        made.append(Encoded(ids, labels, f"row:{i}"))
    return made


def bare_loop(loaded: LoadedModel, rows: list[Encoded], steps: int) -> Timed:
    """Train with the usual loop; return its losses and CPU seconds per step."""
    model = copy.deepcopy(loaded.model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    batches = length_batches([len(r.input_ids) for r in rows], tokens=512, seed=0, epoch=0)
    losses = []
    began = time.process_time()
    for batch in batches[:steps]:
        inputs = collate([rows[i] for i in batch], 0)
        loss = model(**inputs).loss
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return Timed(losses, (time.process_time() - began) / steps)


def our_loop(loaded: LoadedModel, rows: list[Encoded], steps: int, kind: str) -> Timed:
    """Train with posttrain; return its losses and CPU seconds per step, the start included."""
    fresh = LoadedModel(copy.deepcopy(loaded.model), loaded.tokenizer, loaded.name)
    config = TrainConfig.model_validate(
        {
            "model": loaded.name,
            "objective": "clm" if kind == "packed" else "sft",
            "optimizer": {"learning_rate": 1e-4, "max_steps": steps},
            "batch": {"tokens": 512},
        }
    )
    began = time.process_time()
    result = train(config, loaded=fresh, rows=rows)
    return Timed([entry["loss_nats"] for entry in result.history], (time.process_time() - began) / steps)


def measure(kind: str, steps: int, repetitions: int) -> dict[str, Any]:
    """Compare the losses, then time both loops in turns. Exit if the losses differ."""
    loaded = pocket()
    rows = make_rows(kind, loaded.model.config.vocab_size, steps)
    bare, ours = bare_loop(loaded, rows, steps), our_loop(loaded, rows, steps, kind)
    apart = max(abs(a - b) for a, b in zip(bare.losses, ours.losses, strict=True))
    if apart > TOLERANCE:
        sys.exit(f"the losses differ by {apart:.2e}: bare {bare.losses}, posttrain {ours.losses}")
    pairs = [(bare_loop(loaded, rows, steps), our_loop(loaded, rows, steps, kind)) for _ in range(repetitions)]
    bare_ms = statistics.median(b.cpu_s_per_step for b, _ in pairs) * 1000
    ours_ms = statistics.median(o.cpu_s_per_step for _, o in pairs) * 1000
    return {
        "rows": kind,
        "model": loaded.name,
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "steps": steps,
        "repetitions": repetitions,
        "losses_apart": apart,
        "bare_ms_per_step": round(bare_ms, 2),
        "posttrain_ms_per_step": round(ours_ms, 2),
        "ratio": round(ours_ms / bare_ms, 3),
        "limit": LIMIT,
    }


def measure_start(repetitions: int) -> dict[str, Any]:
    """Measure the CPU time of `train()` in addition to its steps.

    It trains ten steps on one example with an already loaded model and no output folder.
    """
    loaded = pocket()
    rows = make_rows("chat", loaded.model.config.vocab_size, 1)[:1]

    def bare() -> float:
        model = copy.deepcopy(loaded.model).train()
        inputs = collate(rows, 0)
        began = time.process_time()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
        for _ in range(10):
            loss = model(**inputs).loss
            loss.backward()
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
        return time.process_time() - began

    our_loop(loaded, rows, 10, "chat")  # do the imports before anything is timed
    pairs = [(bare(), our_loop(loaded, rows, 10, "chat").cpu_s_per_step * 10) for _ in range(repetitions)]
    bare_s, ours_s = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "rows": "start",
        "model": loaded.name,
        "bare_ms": round(bare_s * 1000, 1),
        "posttrain_ms": round(ours_s * 1000, 1),
        "overhead_ms": round((ours_s - bare_s) * 1000, 1),
        "limit_ms": START_LIMIT_MS,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--rows", choices=["packed", "chat", "both"], default="both")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    kinds = ["packed", "chat"] if options.rows == "both" else [options.rows]
    results = [measure(kind, options.steps, options.repetitions) for kind in kinds]
    start = measure_start(options.repetitions)
    if options.json:
        print(json.dumps([*results, start], indent=2))
    else:
        print(
            f"start   {start['model']}: ten steps on one example, bare {start['bare_ms']:.0f} ms, posttrain "
            f"{start['posttrain_ms']:.0f} ms, overhead {start['overhead_ms']:.0f} ms (at most {START_LIMIT_MS})"
        )
    for r in results if not options.json else []:
        print(
            f"{r['rows']:<7} {r['model']} ({r['parameters'] / 1e6:.1f} M): bare {r['bare_ms_per_step']:.1f} ms, "
            f"posttrain {r['posttrain_ms_per_step']:.1f} ms per step, ratio {r['ratio']:.3f} "
            f"(at most {LIMIT}); losses equal to {r['losses_apart']:.1e}"
        )
    return int(any(r["ratio"] > LIMIT for r in results) or start["overhead_ms"] > START_LIMIT_MS)


if __name__ == "__main__":
    sys.exit(main())
