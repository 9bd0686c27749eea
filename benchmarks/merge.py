"""Merging: posttrain against mergekit and against a plain copy of the same bytes.

    python benchmarks/merge.py                          # three models of 374 M parameters in bfloat16
    python benchmarks/merge.py --layers 48 --width 1536 # 1.5 B
    python benchmarks/merge.py --methods task_arithmetic --no-mergekit --json

Makes a base and two models of it (random weights, changes of 5 %), and merges them by each method. Every merge runs in
a process of its own; imports are not counted. Printed are CPU seconds, wall seconds and the peak memory of the process,
medians of the repetitions. Outputs are compared first: nearly all numbers must agree within the rounding of mergekit,
which computes in bfloat16 (so many changes have the very same size, and TIES keeps others of them). mergekit (0.1.5) is
used if it is installed. The copy reads all inputs and writes as many bytes as a merge.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

METHODS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"weight": 0.7},
    "slerp": {"t": 0.4},
    "ties": {"weight": 0.7, "density": 0.5},
}
NEAR = {"ties": 0.1}
"""Method -> the share of numbers that may differ by more than two roundings to bfloat16; 0.001 for others."""


def make(folder: Path, layers: int, width: int, vocabulary: int) -> int:
    """Write a base and two models of it, in three files each as hubs have them, and return their parameters."""
    import torch
    from safetensors.torch import save_file

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": width * 43 // 16,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64,
        "vocab_size": vocabulary,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for layer in range(layers):
        at, inner = f"model.layers.{layer}.", width * 43 // 16
        shapes |= {f"{at}self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        shapes |= {f"{at}mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes |= {f"{at}mlp.down_proj.weight": (width, inner)}
        shapes |= {f"{at}{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (width,), "lm_head.weight": (vocabulary, width)}
    names = list(shapes)
    thirds = [names[: len(names) // 3], names[len(names) // 3 : 2 * len(names) // 3], names[2 * len(names) // 3 :]]
    for number, model in enumerate(("base", "a", "b")):
        (folder / model).mkdir(parents=True)
        (folder / model / "config.json").write_text(json.dumps(config), encoding="utf-8")
        where = {}
        for part, group in enumerate(thirds, 1):
            file = f"model-{part:05d}-of-00003.safetensors"
            tensors = {}
            for name in group:
                start = torch.Generator().manual_seed(hash_of(name))
                values = torch.randn(shapes[name], generator=start) * 0.02
                if number:
                    values += torch.randn(shapes[name], generator=start.manual_seed(hash_of(name) + number)) * 0.001
                tensors[name] = values.bfloat16()
                where[name] = file
            save_file(tensors, folder / model / file, metadata={"format": "pt"})
        index = {"metadata": {"total_size": 0}, "weight_map": where}
        (folder / model / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def hash_of(name: str) -> int:
    """Return a number for a name, the same in every run."""
    import zlib

    return zlib.crc32(name.encode())


def one(tool: str, method: str, folder: Path, output: Path) -> dict[str, float]:
    """Merge (or copy) once in this process, and return what it cost."""
    settings = METHODS.get(method, {})
    if tool == "posttrain":
        from posttrain.cli.merge import _recipe
        from posttrain.merging.recipe import planned
        from posttrain.merging.write import write_merge

        def work() -> None:
            names = ("a", "b") if method == "slerp" else ("base", "a", "b")
            words = [f"{name}={folder / name}" for name in names]
            sets = [f"method.{key}={value}" for key, value in settings.items()]
            sets += ["method.compat=mergekit"] if method == "ties" else []
            recipe, location = _recipe(words, method, None, sets)
            write_merge(planned(recipe, location=location), output, recipe={}, say=lambda line: None)

    elif tool == "mergekit":
        from mergekit.config import MergeConfiguration
        from mergekit.merge import MergeOptions, run_merge

        def work() -> None:
            models: list[dict[str, Any]] = [{"model": str(folder / name)} for name in ("a", "b")]
            node: dict[str, Any] = {"merge_method": method, "dtype": "bfloat16"}
            if method == "slerp":
                node |= {"base_model": str(folder / "a"), "models": models, "parameters": {"t": settings["t"]}}
            else:
                models = [{**model, "parameters": settings} for model in models]
                node |= {"base_model": str(folder / "base"), "models": models}
            config = MergeConfiguration.model_validate(node)
            run_merge(config, str(output), MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False))

    else:

        def work() -> None:
            output.mkdir()
            for name in ("a", "b", "base"):
                for path in sorted((folder / name).glob("*.safetensors")):
                    with path.open("rb", buffering=0) as file, (output / path.name).open("wb", buffering=0) as target:
                        while part := file.read(4 << 20):
                            if name == "base":
                                target.write(part)

    before, began = time.process_time(), time.perf_counter()
    work()
    status = Path("/proc/self/status").read_text(encoding="utf-8")  # getrusage would tell the peak of the parent, too
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return {"cpu_s": time.process_time() - before, "wall_s": time.perf_counter() - began, "peak_bytes": float(peak)}


def far(folder: Path, one_output: Path, other_output: Path) -> float:
    """Return the share of numbers, in some tensors, that differ by more than two roundings of the number and of its
    change to bfloat16.
    """
    import torch
    from safetensors import safe_open

    def tensor(at: Path, name: str) -> Any:
        for path in sorted(at.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                if name in file.keys():  # noqa: SIM118
                    return file.get_tensor(name).float()
        raise KeyError(name)

    names = ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight")
    wrong = total = 0
    for name in names:
        first, second = tensor(one_output, name), tensor(other_output, name)
        change = (tensor(folder / "a", name) - tensor(folder / "b", name)).abs().max()
        step = (torch.maximum(first.abs(), second.abs()) + change) * 2**-7
        wrong += int(((first - second).abs() > step).sum())
        total += first.numel()
    return wrong / total


def main() -> None:
    """Make the models, run every tool in processes of its own, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--no-mergekit", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=4, metavar=("TOOL", "METHOD", "FOLDER", "OUTPUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        tool, method, folder, output = given.one
        print(json.dumps(one(tool, method, Path(folder), Path(output))))
        return
    tools = ["copy", "posttrain", *(["mergekit"] if find_spec("mergekit") and not given.no_mergekit else [])]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        parameters = make(folder, given.layers, given.width, given.vocabulary)
        found: dict[str, dict[str, Any]] = {}
        for method in given.methods:
            runs: dict[str, list[dict[str, float]]] = {}
            apart = None
            for number in range(given.repeat):
                for tool in tools:
                    output = folder / f"out-{tool}"
                    shutil.rmtree(output, ignore_errors=True)
                    words = [sys.executable, __file__, "--one", tool, method, str(folder), str(output)]
                    told = subprocess.run(words, check=True, capture_output=True, text=True).stdout
                    runs.setdefault(tool, []).append(json.loads(told.splitlines()[-1]))
                if number == 0 and "mergekit" in tools:
                    apart = far(folder, folder / "out-posttrain", folder / "out-mergekit")
                    if apart > NEAR.get(method, 0.001):
                        raise SystemExit(f"{method}: the tools disagree on {apart:.2%} of the numbers")
            medians = {
                tool: {key: statistics.median(run[key] for run in each) for key in each[0]}
                for tool, each in runs.items()
            }
            found[method] = {"apart": apart, **medians}
    if given.json:
        print(json.dumps({"parameters": parameters, "methods": found}, indent=2))
        return
    print(f"{parameters / 1e6:,.0f} M parameters, three models in bfloat16; medians of {given.repeat}")
    for method, each in found.items():
        for tool in tools:
            own = each[tool]
            ratio = ""
            if tool == "mergekit":
                ratio = f"   posttrain: {own['cpu_s'] / each['posttrain']['cpu_s']:.1f}x fewer CPU seconds"
            peak = own["peak_bytes"] / 1e6
            print(f"{method:16} {tool:10} {own['cpu_s']:7.2f} CPU s {own['wall_s']:7.2f} s {peak:7.0f} MB{ratio}")


if __name__ == "__main__":
    main()
