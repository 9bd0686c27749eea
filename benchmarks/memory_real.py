"""Peak memory of training a real chat model by steps of 1,024 padded tokens, each method in a process of its own.

    python benchmarks/memory_real.py FOLDER DATA.jsonl     (rows `{prompt, completion}`; POSTTRAIN_REAL for the folder)
    python benchmarks/memory_real.py FOLDER DATA.jsonl --only lora lora+self

The peak is the process's resident set with everything in it: the model, replayed answers and importances made for it,
three steps. Exit code 1 where training all weights takes more than 4.5 GB, or LoRA more than 2.5 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from typing import Any

SELF = {"share": 0.7, "n": 16, "max_new_tokens": 48, "loss": "kl"}
FULL: dict[str, Any] = {"tuner": {"kind": "full"}}
LORA: dict[str, Any] = {"tuner": {"kind": "lora", "rank": 16}}
METHODS: dict[str, dict[str, Any]] = {
    "full": FULL,
    "full+l2_sp": {**FULL, "penalty": {"kind": "l2_sp"}},
    "full+ewc": {**FULL, "penalty": {"kind": "ewc"}},
    "full+self": {**FULL, "replay": {"kind": "self", **SELF}},
    "full+ask_self": {**FULL, "replay": {"kind": "ask_self", **SELF}},
    "lora": LORA,
    "lora+self": {**LORA, "replay": {"kind": "self", **SELF}},
}
STEPS, TOKENS = 3, 1024
FULL_GB, LORA_GB = 4.5, 2.5


def trained(name: str, folder: str, data: str) -> dict[str, Any]:
    """Peak in GB and the tokens of each step of one method, in this process."""
    from posttrain.training.config import TrainConfig
    from posttrain.training.run import train

    config = TrainConfig.model_validate(
        {
            "model": folder,
            "data": data,
            "over_long": "drop",
            "optimizer": {"learning_rate": 1e-5, "max_steps": STEPS},
            "batch": {"tokens": TOKENS},
            **METHODS[name],
        }
    )
    result = train(config)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"peak_gb": peak / 1e9, "tokens": [entry["tokens"] for entry in result.history]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=os.environ.get("POSTTRAIN_REAL"), help="the real model's folder")
    parser.add_argument("data", nargs="?", help="training rows")
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--here", action="store_true", help="in this process, for the one method named; prints JSON")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    if not options.model or not options.data:
        parser.error("name the model's folder and a file of training rows")
    if options.here:
        print(json.dumps(trained(options.only[0], options.model, options.data)))
        return 0
    found: dict[str, dict[str, Any]] = {}
    for name in options.only:
        command = [sys.executable, __file__, options.model, options.data, "--here", "--only", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[name] = json.loads(done.stdout.strip().splitlines()[-1])
        if not options.json:
            limit = LORA_GB if name.startswith("lora") else FULL_GB
            print(f"{name:14} {found[name]['peak_gb']:.2f} GB (at most {limit} wanted)", flush=True)
    if options.json:
        print(json.dumps(found))
    return int(any(one["peak_gb"] > (LORA_GB if name.startswith("lora") else FULL_GB) for name, one in found.items()))


if __name__ == "__main__":
    sys.exit(main())
