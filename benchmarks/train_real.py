"""Compare LoRA on a real chat model of posttrain and TRL's SFTTrainer on the same rows, each in its own process.

    POSTTRAIN_REAL=folder python benchmarks/train_real.py [--tasks self_instruct_seed_tasks.jsonl] [--json]

It trains one pass over 96 instruction rows, with rank 16 on all linear layers. Both sides get the same token ids and
the same supervised positions. Each side runs twice: in float32, and in its default precision. The default is
`precision: auto` for posttrain (bfloat16 on a processor that has it, else float32: the line says which), and bf16=True
for SFTConfig. Before anything is timed, both compute the mean loss of the untrained model over all rows in float32: the
losses must agree to 1e-4. posttrain's steps are 1,024 padded tokens, with rows of similar length together. SFTTrainer's
are its usual batches of 8 rows, padded (`--checkpointing` leaves its activation checkpointing on, which is its default:
less memory, more time). Tokens are counted without padding. Peak memory is the whole resident set of the process. The
exit code is 1 when posttrain in its default precision reads fewer than 2.5 times the tokens per second of SFTTrainer in
its default precision, or needs more than 2.5 GB.

The rows are the seed tasks of Self-Instruct (`{instruction, instances: [{input, output}]}`, one a line) if --tasks
names them, else questions in both languages that this file makes. It needs trl (a development dependency).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.models.processor import wait_politely

ROWS = 96
LONGEST = 512
RANK = 16
RATE = 1e-4
RATIO, PEAK_GB = 2.5, 2.5
ARMS = ("float32", "default")
TOLERANCE = 1e-4


def tasks_in(path: Path | None) -> list[tuple[str, str]]:
    """Return (instruction, answer) pairs from the seed tasks in a file, or made-up ones without a file."""
    if path is not None:
        found = []
        for line in path.read_text(encoding="utf-8").splitlines():
            task = json.loads(line)
            one = task["instances"][0]
            found.append((f"{task['instruction']}\n\n{one['input']}".strip(), one["output"].strip()))
        return [pair for pair in found if pair[1]]
    draw = random.Random(0)
    made = []
    for number in range(4 * ROWS):
        a, b, words = draw.randint(2, 99), draw.randint(2, 99), draw.randint(5, 90)
        chinese = number % 3 == 0
        ask = f"{a} 加 {b} 是多少？請說明。" if chinese else f"What is {a} plus {b}? Explain it in about {words} words."
        step = f"{a} 加 {b} 是 {a + b}。" if chinese else f"Take {a}, count {b} further, and you have {a + b}. "
        made.append((ask, (step * (words // 8 + 1)).strip()))
    return made


def encoded(folder: str, tasks: Path | None, count: int) -> list[Any]:
    """Return the first `count` rows that are short enough, encoded with the model's own template."""
    from posttrain.data.chat import encode_all
    from posttrain.data.records import Conversation, Message
    from posttrain.models.load import load_tokenizer

    pairs = tasks_in(tasks)
    talks = [
        Conversation((Message("user", ask), Message("assistant", answer)), f"row {i}")
        for i, (ask, answer) in enumerate(pairs)
    ]
    rows = encode_all(talks, load_tokenizer(folder), max_length=LONGEST, over_long="drop").rows[:count]
    assert len(rows) == count, f"{len(rows)} rows of at most {LONGEST} tokens; {count} are needed"
    return rows


def measured(
    began: tuple[float, float], rows: list[Any], first_loss: float, last: float, precision: str
) -> dict[str, Any]:
    """Return the result that a worker prints. began: (wall, CPU) seconds at the start of training."""
    wall_s, cpu_s = time.monotonic() - began[0], time.process_time() - began[1]
    tokens = sum(len(row.input_ids) for row in rows)
    supervised = sum(label != -100 for row in rows for label in row.labels[1:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "precision": precision,
        "first_loss": first_loss,
        "last_loss": last,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "tokens_per_s": tokens / wall_s,
        "supervised_per_s": supervised / wall_s,
        "peak_gb": peak / 1e9,
    }


def posttrain_side(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from posttrain.models.load import load_model
    from posttrain.training.assembly import bare_forms
    from posttrain.training.batches import validation_batches
    from posttrain.training.config import TrainConfig
    from posttrain.training.precision import precision_of
    from posttrain.training.run import train

    config = TrainConfig.model_validate(
        {
            "model": args.model,
            "tuner": {"kind": "lora", "rank": RANK},
            "optimizer": {"learning_rate": RATE, "epochs": 1},
            "batch": {"tokens": 1024},
            "precision": "float32" if args.precision == "float32" else "auto",
        }
    )
    loaded, rows = load_model(args.model, device="cpu"), encoded(args.model, args.tasks, args.rows)
    forms = bare_forms(config, loaded.tokenizer)
    forms.new.device = loaded.model.device
    nats = units = 0.0
    with torch.no_grad():
        for micro in validation_batches(config.batch, rows, forms.new, 512):
            loss = forms.new.loss(loaded.model, micro)
            nats, units = nats + float(loss.nats.sum()), units + float(loss.units.sum())
    began = time.monotonic(), time.process_time()
    result = train(config, loaded=loaded, rows=rows)
    chosen = precision_of(config, result.model)
    return measured(began, rows, nats / units, result.loss_nats, "float32" if chosen.dtype is None else "bfloat16")


def trl_side(args: argparse.Namespace) -> dict[str, Any]:
    import tempfile

    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

    rows = encoded(args.model, args.tasks, args.rows)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    data = Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in rows])
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model,
            args=SFTConfig(
                output_dir=folder,
                per_device_train_batch_size=8,
                num_train_epochs=1,
                learning_rate=RATE,
                lr_scheduler_type="constant",
                max_length=LONGEST,
                use_cpu=True,
                bf16=False if args.precision == "float32" else None,  # None: SFTConfig makes it True
                gradient_checkpointing=args.checkpointing,
                report_to="none",
                save_strategy="no",
                logging_steps=1,
                disable_tqdm=True,
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(args.model),
            peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        nats = units = 0.0
        with torch.no_grad():  # LoRA's B is still zero: the untrained model, with SFTTrainer's own collator and labels
            for start in range(0, len(rows), 8):
                batch = trainer.data_collator([data[i] for i in range(start, min(start + 8, len(rows)))])
                asked = int((batch["labels"][:, 1:] != -100).sum())
                out = trainer.model(**{k: batch[k] for k in ("input_ids", "attention_mask", "labels")})
                nats, units = nats + float(out.loss) * asked, units + asked
        began = time.monotonic(), time.process_time()
        trainer.train()
        last = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1]
    return measured(began, rows, nats / units, last, "bfloat16" if trainer.args.bf16 else "float32")


def in_a_process(side: str, precision: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one side in a process of its own and return its result."""
    options = [side, "--model", args.model, "--rows", str(args.rows), "--precision", precision]
    options += ["--tasks", str(args.tasks)] if args.tasks else []
    options += ["--checkpointing"] if args.checkpointing else []
    wait_politely()  # as the command line does
    call = [sys.executable, __file__, *options]
    done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def compared(precision: str, args: argparse.Namespace, talk: Callable[[str], None]) -> dict[str, Any]:
    """Run both sides in one precision; return their results and how many times as fast posttrain is.

    Exit if the losses of the untrained model differ.
    """
    sides = {side: in_a_process(side, precision, args) for side in ("posttrain", "trl")}
    own, other = sides["posttrain"], sides["trl"]
    if abs(own["first_loss"] - other["first_loss"]) > TOLERANCE:
        sys.exit(
            f"the two do not compute the same: {own['first_loss']:.6f} and {other['first_loss']:.6f} nats per token"
        )
    talk(f"{precision}: the untouched model's mean loss {own['first_loss']:.6f} and {other['first_loss']:.6f} nats")
    for side, one in sides.items():
        talk(
            f"  {side:10} {one['precision']:8} {one['tokens_per_s']:7.1f} tokens/s "
            f"({one['supervised_per_s']:.1f} supervised), {one['wall_s']:.1f} s, {one['cpu_s']:.1f} s of processor, "
            f"peak {one['peak_gb']:.2f} GB, last loss {one['last_loss']:.3f}"
        )
    ratio = own["tokens_per_s"] / other["tokens_per_s"]
    talk(f"  ratio {ratio:.2f}, of processor time {other['cpu_s'] / own['cpu_s']:.2f}")
    return {**sides, "ratio": ratio}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("side", nargs="?", choices=("posttrain", "trl"), help="only this side, in this process")
    parser.add_argument("--model", default=os.environ.get("POSTTRAIN_REAL"), help="folder of the real model")
    parser.add_argument("--tasks", type=Path, help="seed tasks of Self-Instruct")
    parser.add_argument("--rows", type=int, default=ROWS, help="fewer for a quick look")
    parser.add_argument(
        "--precision", choices=(*ARMS, "both"), default="both", help="float32, each side's default, or both in turn"
    )
    parser.add_argument("--checkpointing", action="store_true", help="SFTTrainer with activation checkpointing")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not args.model:
        parser.error("name the folder of the real model: --model, or POSTTRAIN_REAL (see `make real`)")
    if args.side:
        if args.precision == "both":
            parser.error("one side runs in one precision: --precision float32, or default")
        print(json.dumps((posttrain_side if args.side == "posttrain" else trl_side)(args)))
        return 0

    def talk(text: str) -> None:
        print(text, file=sys.stderr if args.json else sys.stdout, flush=True)

    arms = ARMS if args.precision == "both" else (args.precision,)
    found = {arm: compared(arm, args, talk) for arm in arms}
    if args.json:
        print(json.dumps(found))
    asked = found[arms[-1]]  # the default precision, if both were measured
    talk(f"{arms[-1]}: a ratio of at least {RATIO} is wanted, and at most {PEAK_GB} GB of posttrain")
    return 0 if asked["ratio"] >= RATIO and asked["posttrain"]["peak_gb"] <= PEAK_GB else 1


if __name__ == "__main__":
    sys.exit(main())
