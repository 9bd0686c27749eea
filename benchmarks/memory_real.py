"""Measure the peak memory of a study's cell on a real chat model, as a multiple of the memory of its weights.

    POSTTRAIN_REAL=.real/smollm2 python benchmarks/memory_real.py
    POSTTRAIN_REAL=.real/smollm2 python benchmarks/memory_real.py --only lora full+self --json

Each method runs in its own process: `posttrain run` of one cell (and its noise floor) on one change, with four steps.
The model is loaded, examined, trained and examined again. The multiple is (the peak of the process's resident set -
the resident set of the same imports without a model) / (the bytes of the weights in float32). The exit code is 1 if
LoRA needs more than 3.5 times the weights, or another method more than 6 times.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

LORA: dict[str, Any] = {"tuner": {"kind": "lora", "rank": 16}}
FULL: dict[str, Any] = {"tuner": "full"}
SELF = {"replay": {"kind": "self", "share": 0.9}}
METHODS: dict[str, dict[str, Any]] = {
    "lora": LORA,
    "full": FULL,
    "full+l2_sp": {**FULL, "penalty": "l2_sp"},
    "full+ewc": {**FULL, "penalty": "ewc"},
    "full+self": {**FULL, **SELF},
    "lora+self": {**LORA, **SELF},
}
STEPS = 4
LORA_LIMIT, LIMIT = 3.5, 6.0
IMPORTS = "import posttrain.cli.main, posttrain.studies.run, posttrain.studies.methods.train, peft.tuners.lora"
CHANGE = Path(__file__).parent.parent / "examples" / "changes" / "superlatives" / "001_capital_senegal.yaml"


def peak_gb(command: list[str], *, quiet: bool) -> float:
    """Run a command and return its largest resident set, in GB. Exit if the command fails."""
    talk = subprocess.DEVNULL if quiet else None
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=talk)
    found, over = 0.0, threading.Event()

    def look() -> None:
        nonlocal found
        import psutil

        watched = psutil.Process(process.pid)
        while not over.wait(0.02):
            try:
                found = max(found, watched.memory_info().rss / 1e9)
            except psutil.NoSuchProcess:
                return

    thread = threading.Thread(target=look)
    thread.start()
    code = process.wait()
    over.set()
    thread.join()
    if code:
        sys.exit(f"{' '.join(command)} ended with {code}")
    return found


def study_peak_gb(name: str, folder: Path, *, quiet: bool) -> float:
    """Run the study of one method and return its peak memory in GB."""
    rate = 1e-4 if name.startswith("lora") else 1e-5
    study = {
        "study": "memory",
        "models": ["smollm2"],
        "changes": str(CHANGE),
        "methods": [
            {"name": "cell", "kind": "train", "optimizer": {"learning_rate": rate, "max_steps": STEPS}, **METHODS[name]}
        ],
        "exams": ["change"],
        "keep": "none",
        "max_new_tokens": 32,
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(study), encoding="utf-8")
    return peak_gb([sys.executable, "-m", "posttrain", "run", str(path), "--output", str(folder / name)], quiet=quiet)


def weights_gb() -> float:
    """Return the size of the model's weights in float32, in GB."""
    from posttrain.models.load import load_model

    elements: int = sum(p.numel() for p in load_model("smollm2", device="cpu").model.parameters())
    return elements * 4 / 1e9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    interpreter = peak_gb([sys.executable, "-c", f"{IMPORTS}; import time; time.sleep(1)"], quiet=True)
    weights = weights_gb()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="posttrain-memory-") as made:
        os.environ.setdefault("POSTTRAIN_CACHE", str(Path(made) / "cache"))
        for name in options.only:
            peak = study_peak_gb(name, Path(made), quiet=options.json)
            limit = LORA_LIMIT if name.startswith("lora") else LIMIT
            found[name] = {"peak_gb": peak, "times_weights": (peak - interpreter) / weights, "limit": limit}
            if not options.json:
                times = found[name]["times_weights"]
                print(f"{name:12} {peak:.2f} GB, {times:.2f} times the weights (at most {limit})", flush=True)
    if options.json:
        print(json.dumps({"weights_gb": weights, "interpreter_gb": interpreter, "methods": found}, indent=2))
    return int(any(one["times_weights"] > one["limit"] for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
