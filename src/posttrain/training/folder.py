"""The folder of a run: config.yaml, env.json, metrics.jsonl, checkpoints/, model/, card.md, result.json.

`result.json` is written last. A run that has it in its folder is finished, and its result can be read again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from ruamel.yaml import YAML
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.errors import ConfigError, Problem
from posttrain.models.disk import write_whole
from posttrain.models.load import LoadedModel
from posttrain.models.save import is_saved, save_model
from posttrain.training.checkpoints import ASIDE, FINGERPRINT, check_fingerprint, checkpoints_in, put_aside, remove
from posttrain.training.config import TrainConfig
from posttrain.training.environment import DATE, environment
from posttrain.training.forms import form_of
from posttrain.training.lock import LOCK
from posttrain.training.metrics import MetricsLog, hardly_learned, learned_of
from posttrain.tuners._moved import Moved

__all__ = ["OURS", "RunFolder", "TrainResult", "card_of", "check_ours", "finished_run"]

OURS = [
    *("config.yaml", "env.json", "metrics.jsonl", "checkpoints", "model", "card.md", "result.json", FINGERPRINT),
    *("penalties", "reservoir.json", "tasks.json", "learning_rate.json", DATE),
]
"""Names of all files and folders that runs write into their folder."""
RESULT_KEYS = ("steps", "loss_nats", "tokens", "wall_s", "peak_gib", "moved", "stopped", "best_step")
"""Keys of `result.json`."""


class TrainResult(NamedTuple):
    """A trained model and the numbers of its training.

    loss_nats: loss of the last step in nats per supervised token; tokens: all tokens read, without padding; history:
    the entries of metrics.jsonl; stopped: the reason why the run ended before its last step, else ""; best_step: the
    step that these weights are from, if validation chose them.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    steps: int
    loss_nats: float
    tokens: int
    wall_s: float
    peak_gib: float
    history: list[dict[str, Any]]
    moved: Moved
    stopped: str = ""
    best_step: int | None = None


class RunFolder:
    """The paths of a run. It writes and reads all files except metrics and checkpoints."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checkpoints = root / "checkpoints"
        self.metrics = root / "metrics.jsonl"
        self.model = root / "model"
        self.result = root / "result.json"

    def rate(self) -> float | None:
        """Return the learning rate that the range test at the start of the run found; None if there was no test."""
        path = self.root / "learning_rate.json"
        return float(json.loads(path.read_text(encoding="utf-8"))["rate"]) if path.is_file() else None

    def keep_rate(self, found: Mapping[str, Any]) -> None:
        """Write the result of a range test, for a resumed run and for the user."""
        write_whole(self.root / "learning_rate.json", as_json(found), flush=True)

    def result_in(self) -> dict[str, Any] | None:
        """Return the result of the finished run in this folder, with any fingerprint; None if no run has finished."""
        try:
            done: Any = json.loads(self.result.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # there is none, or it is damaged
            return None
        whole = isinstance(done, dict) and isinstance(done.get("steps"), int) and is_saved(self.model)
        return done if whole else None

    def finished(self, fingerprint: dict[str, Any]) -> dict[str, Any] | None:
        """Return the result like `result_in`; raise ConfigError with the differences if the fingerprint is another."""
        done = self.result_in()
        if done is not None:
            check_fingerprint(self.root, fingerprint)
        return done

    def open(
        self, config: TrainConfig, fingerprint: dict[str, Any], *, resume: bool, say: Callable[[str], None] = print
    ) -> None:
        """Make the folder and write settings, environment and fingerprint.

        With resume=False, or if another run began here and left no checkpoint, the files of the earlier run are first
        put aside (see `put_aside`), and `say` reports it. Raise ConfigError, and write nothing, if the folder holds
        files that no run of ours writes, or a checkpoint of another run.
        """
        check_ours(self.root)
        saved = checkpoints_in(self.checkpoints) if resume else {}
        if saved:
            check_fingerprint(saved[max(saved)], fingerprint)
        elif not (resume and self._began_as(fingerprint)) and put_aside(self.root, OURS):
            say(f"what the earlier run has left is kept in {self.root / ASIDE} until the new model is saved")
            if self.model.is_dir():
                say(f"{self.model} is the earlier run's until then")
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        text = io.StringIO()
        YAML().dump(config.model_dump(mode="json"), text)
        write_whole(self.root / "config.yaml", text.getvalue(), flush=True)
        write_whole(self.root / "env.json", as_json(environment()), flush=True)
        write_whole(self.root / FINGERPRINT, as_json(fingerprint), flush=True)

    def _began_as(self, fingerprint: dict[str, Any]) -> bool:
        """Return whether the run that began here had this fingerprint; False if no fingerprint can be read."""
        try:
            before = json.loads((self.root / FINGERPRINT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(before == json.loads(json.dumps(fingerprint)))

    def finish(
        self,
        config: TrainConfig,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        result: Mapping[str, Any],
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Write the trained weights (or the adapter) with tokenizer and notes, then the card, then the result. dtype:
        precision of the saved model; None saves it in the precision it has in memory.
        """
        card = card_of(config, result)
        save_model(model, tokenizer, self.model, card=card, dtype=dtype)
        remove(self.root / ASIDE)
        write_whole(self.root / "card.md", card, flush=True)
        write_whole(self.result, as_json({key: result[key] for key in RESULT_KEYS}), flush=True)


def finished_run(output: Path, load: Callable[[Path], LoadedModel]) -> TrainResult | None:
    """Return the result of the finished run in this folder, whatever its fingerprint; None if no run has finished."""
    folder = RunFolder(output)
    done = folder.result_in()
    if done is None:
        return None
    loaded = load(folder.model)
    log = MetricsLog(folder.metrics)
    log.read(int(done["steps"]))
    told = {**done, "moved": Moved(*done["moved"]), "history": log.history}
    return TrainResult(loaded.model, loaded.tokenizer, **told)


def check_ours(root: Path) -> None:
    """Raise ConfigError if the folder holds files that no run of ours writes."""
    if not root.exists():
        return
    ours = any((root / name).exists() for name in (*OURS, ASIDE))
    if not root.is_dir() or (any(path.name != LOCK for path in root.iterdir()) and not ours):
        raise ConfigError(Problem(str(root), "is not the folder of a run", "choose a new or an empty folder"))


def as_json(value: Any) -> str:
    """Return the value as JSON with indentation and a newline at the end."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def told(whole: Any, chosen: Any) -> Any:
    """Return a configuration without its defaults, but with every `kind`, which names the part. whole, chosen: the
    configuration dumped with and without defaults.
    """
    if isinstance(whole, list) and isinstance(chosen, list):
        return [told(one, other) for one, other in zip(whole, chosen, strict=True)]
    if not isinstance(whole, dict) or not isinstance(chosen, dict):
        return chosen
    kind = {"kind": whole["kind"]} if "kind" in whole else {}
    parts = {key for key, value in whole.items() if isinstance(value, dict) and "kind" in value}
    return kind | {key: told(whole[key], chosen.get(key, {})) for key in whole if key in chosen or key in parts}


def card_of(config: TrainConfig, result: Mapping[str, Any]) -> str:
    """Return a Markdown page that says how the model was trained."""
    text = io.StringIO()
    YAML().dump(told(config.model_dump(mode="json"), config.model_dump(mode="json", exclude_defaults=True)), text)
    form = form_of(config.objective)
    losses = [e for e in result["history"] if "loss_nats" in e]
    validations = [e for e in result["history"] if "validation_loss_nats" in e]
    lines = [
        f"# {Path(config.model).name or config.model}, trained with posttrain",
        "",
        f"From `{config.model}`: {result['moved']}.",
        "",
        "| | |",
        "|---|---|",
        f"| optimiser steps | {result['steps']:,} |",
        f"| tokens read | {result['tokens']:,} |",
        f"| wall time | {result['wall_s']:.1f} s |",
        f"| peak memory | {result['peak_gib']:.2f} GiB |",
    ]
    rates = [e["learning_rate"] for e in losses if "learning_rate" in e]
    if rates:
        chosen = config.optimizer.learning_rate
        how = f" ({chosen})" if isinstance(chosen, str) else ""
        lines.append(f"| learning rate at its peak | {max(rates):g}{how} |")
    if losses:
        first, last = losses[0]["loss_nats"], losses[-1]["loss_nats"]
        lines.append(f"| training loss, first and last step | {first:.4f}, {last:.4f} nats per {form.unit} |")
    if learned := learned_of(result["history"]):
        lines.append(f"| loss on your rows | {learned.first:.2f} -> {learned.last:.2f} nats per {form.unit} |")
    if validations:
        best = min(validations, key=lambda e: float(e["validation_loss_nats"]))
        lines.append(f"| best validation loss | {best['validation_loss_nats']:.4f} at step {best['step']} |")
    if result["best_step"]:
        lines.append(f"| weights kept | of step {result['best_step']} |")
    if result["stopped"]:
        lines.append(f"| stopped early | {result['stopped']} |")
    use = "What this did to everything else is not known until an exam was run: `posttrain exam`."
    if form.head != "causal":
        use = "It has a head in place of the language model's: `posttrain predict` uses it."
    hardly = hardly_learned(config, result["history"])
    lines += ["", *([f"{hardly[0].upper()}{hardly[1:]}.", ""] if hardly else []), use, ""]
    return "\n".join([*lines, "```yaml", text.getvalue().rstrip(), "```", ""])
