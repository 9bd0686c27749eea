"""Measure every tuner on pocket: trained parameters, the change exam, training time, memory, as a table in Markdown.

    python benchmarks/tuners.py [--output runs/tuners] [--changes N]
    python benchmarks/tuners.py --choose --output runs/rates [--only METHOD]

The first command runs examples/tuners.yaml (finished cells are not run again). Then it trains each tuner once more, in
a process of its own, to measure memory: the rise of the process's resident memory above its value with the model
loaded. With a GPU it is the peak of the GPU's allocator, without the model's weights.

--choose tries three learning rates of each tuner on four changes that are not in the study (those of `posttrain data
make changes --n 4 --seed 7`). It prints the best rate of each tuner, which has the highest harmonic mean of
reliability, generality and locality (the score of ROME's authors, arXiv:2202.05262). examples/tuners.yaml uses these
rates.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import harmonic_mean, mean
from typing import Any, NamedTuple

from posttrain.cli.main import main as posttrain
from posttrain.config.load import read_yaml

STUDY = Path(__file__).parent.parent / "examples" / "tuners.yaml"
FACTORS = (0.3, 1.0, 3.0)
"""The learning rates that are tried, as multiples of the study's rate."""
SCORES = ("reliability", "generality", "locality")


class Line(NamedTuple):
    """A method of the study, with means over its changes. memory_mib: memory of training without the loaded model."""

    method: str
    moved: float
    share: float
    scores: Mapping[str, float]
    train_s: float
    memory_mib: float


def methods_of(study: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_yaml(study)["methods"]
    return found


def cells_in(folder: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads((folder / "results.json").read_text(encoding="utf-8"))["cells"]
    return cells


def score_of(cells: Sequence[Mapping[str, Any]], group: str) -> float:
    """Return the mean over cells of the mean over a group's kinds of question."""
    each = []
    for cell in cells:
        kinds = [
            v for k, v in cell["scores"].items() if k == group or (k.startswith(f"{group}.") and k.count(".") == 1)
        ]
        each.append(mean(kinds))
    total: float = mean(each)
    return total


def table(folder: Path) -> list[Line]:
    lines = []
    for method in methods_of(STUDY):
        own = [cell for cell in cells_in(folder) if cell["method"] == method["name"] and not cell.get("error")]
        if own:
            cost = {key: mean(cell["cost"][key] for cell in own) for key in ("moved", "moved_share", "train_s")}
            scores = {group: score_of(own, group) for group in SCORES}
            memory = measured(method["name"])
            lines.append(Line(method["name"], cost["moved"], cost["moved_share"], scores, cost["train_s"], memory))
    return lines


def measured(name: str) -> float:
    """Measure the memory of a method in a process of its own, in MiB."""
    told = subprocess.run(
        [sys.executable, __file__, "--measure", name], check=True, capture_output=True, text=True
    ).stdout
    return float(told)


def measure(name: str) -> float:
    """Train one method on the study's first change; return the peak memory above the loaded model, in MiB."""
    import torch

    from posttrain.config.load import check
    from posttrain.data.changes import load_changes
    from posttrain.models.load import load_model
    from posttrain.studies.train_config import TrainMethodConfig
    from posttrain.studies.train_rows import encoded_rows, target_rows
    from posttrain.training.config import TrainConfig
    from posttrain.training.run import train

    method = next(m for m in methods_of(STUDY) if m["name"] == name)
    config = check({k: v for k, v in method.items() if k != "name"}, TrainMethodConfig, name)
    change = load_changes("changes/superlatives/*.yaml", STUDY.parent)[0]
    loaded = load_model("pocket:chat")
    settings = TrainConfig(model="pocket:chat", tuner=config.tuner, optimizer=config.optimizer)
    rows = encoded_rows(settings.objective, target_rows([change]), loaded.tokenizer, 1024)
    loaded.model(input_ids=torch.tensor([rows[0].input_ids], device=loaded.model.device))  # load the libraries first
    if loaded.model.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        train(settings, loaded=loaded, rows=rows)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    watch = Watch()
    train(settings, loaded=loaded, rows=rows)
    return watch.stop()


class Watch(threading.Thread):
    """Reads the process's resident memory up to a thousand times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.peak = resident_mib()
        self.ended = False
        self.start()

    def run(self) -> None:
        while not self.ended:
            self.peak = max(self.peak, resident_mib())
            time.sleep(0.001)

    def stop(self) -> float:
        self.ended = True
        self.join()
        return self.peak - self.before


def resident_mib() -> float:
    """Return the resident memory of this process in MiB, on Linux."""
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


def choose(root: Path, only: Sequence[str]) -> None:
    """Print the best learning rate of each tuner on changes of other facts. only: names of methods; empty: all."""
    posttrain(["data", "make", "changes", "--n", "4", "--seed", "7", "--output", str(root / "changes")])
    study = read_yaml(STUDY)
    methods = [m for m in study["methods"] if not only or m["name"] in only]
    tried = [
        {**m, "name": f"{m['name']} {rate:.2g}", "optimizer": {**m["optimizer"], "learning_rate": rate}}
        for m in methods
        for rate in (round(f * m["optimizer"]["learning_rate"], 9) for f in FACTORS)
    ]
    chosen = {**study, "study": "choose", "changes": "changes/*.yaml", "methods": tried}
    (root / "choose.yaml").write_text(json.dumps(chosen), encoding="utf-8", newline="\n")
    posttrain(["run", str(root / "choose.yaml"), "--output", str(root / "run")])
    cells = cells_in(root / "run")
    for m in methods:
        scored = []
        for each in (t for t in tried if t["name"].rpartition(" ")[0] == m["name"]):
            own = [cell for cell in cells if cell["method"] == each["name"] and not cell.get("error")]
            scores = [score_of(own, group) for group in SCORES]
            scored.append((harmonic_mean(scores), each["optimizer"]["learning_rate"], scores))
        print(f"{m['name']}: {max(scored)[1]:.2g}")
        for score, rate, scores in scored:
            print(f"    {rate:.2g}: {score:.3f} of", *(f"{one:.3f}" for one in scores))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/tuners"))
    parser.add_argument("--changes", type=int, help="only the first so many changes")
    parser.add_argument("--choose", action="store_true")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(measure(given.measure))
        return
    if given.choose:
        choose(given.output, given.only)
        return
    some = ["--changes", str(given.changes)] if given.changes else []
    posttrain(["run", str(STUDY), "--output", str(given.output), *some, *(f"--only={name}" for name in given.only)])
    print("| tuner | parameters moved | share | reliability | generality | locality | training | memory |")
    print("|---|---|---|---|---|---|---|---|")
    for line in table(given.output):
        scores = " | ".join(f"{line.scores[group]:.1%}" for group in SCORES)
        print(
            f"| {line.method} | {line.moved:,.0f} | {line.share:.2%} | {scores} "
            f"| {line.train_s:.2f} s | {line.memory_mib:.0f} MiB |"
        )


if __name__ == "__main__":
    main()
