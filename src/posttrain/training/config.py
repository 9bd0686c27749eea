"""The configuration of a training run: model, data, objective, tuner, optimiser, batches and checkpoints. No torch.

```yaml
# posttrain train sft.yaml
model: pocket:chat
data: rows.jsonl
objective: sft
tuner: {kind: lora, rank: 16}
optimizer: {learning_rate: 1.0e-4, epochs: 3}
output: runs/first
```
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from posttrain.config.base import ByKind, Config, spelled
from posttrain.data.readers import DataSource
from posttrain.training.trackers import Trackers
from posttrain.tuners._virtual import VirtualTokens

__all__ = [
    "Arithmetic",
    "BatchConfig",
    "OptimizerConfig",
    "PenaltiesOf",
    "SaveDtype",
    "TrainConfig",
    "check_recomputable",
    "each_kind_once",
]


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


PenaltiesOf = Annotated[tuple[Annotated[Config, ByKind("penalty")], ...], BeforeValidator(_listed)]
"""The type of a setting that takes one penalty or a list of them."""


def each_kind_once(value: tuple[Config, ...]) -> tuple[Config, ...]:
    """Return the penalties; raise ValueError if two have the same kind, since they would share one state."""
    kinds = [str(part.model_dump()["kind"]) for part in value]
    twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    if twice:
        raise ValueError(f"{twice[0]} is named twice; give each penalty once")
    return value


class OptimizerConfig(Config):
    """The optimiser, its schedule, and when to stop."""

    kind: Literal["adamw", "muon"] = "adamw"
    """`adamw`, or `muon`: orthogonalised steps for the matrices of the blocks and AdamW for the rest; learns faster
    from scratch, single process only."""
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto", "find"] = "auto"
    """Peak learning rate. `auto`: of a table by tuner and size of the model (`posttrain train --dry-run` says it);
    `find`: by a short range test on the run's own rows, in a single process with adamw."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after so many optimiser steps; the data are read again as often as needed. Excludes `epochs`."""
    epochs: float | None = Field(None, gt=0)
    """Stop after so many passes over the data; 3 when neither this nor `max_steps` is given."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes from its peak to the end: it stays, or falls to zero in a line or a cosine."""
    warmup_steps: int | None = Field(None, ge=0)
    """Steps over which the learning rate rises from zero. Excludes `warmup_share`."""
    warmup_share: float = Field(0.0, ge=0, lt=1)
    """The same as a share of all steps."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay, on matrices only (no biases, no norms)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's two decay rates."""
    epsilon: float = Field(1e-8, gt=0)
    """AdamW's denominator term."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients of a step are scaled down to this norm; 0 turns clipping off."""
    stop_at_loss: float | None = Field(None, gt=0)
    """Stop after the step whose loss on the new rows (replayed rows left out) was at most this, in nats per token.
    The loss is that of the weights before the step's update."""

    @model_validator(mode="after")
    def _one_length(self) -> OptimizerConfig:
        if self.max_steps is not None and self.epochs is not None:
            raise ValueError("max_steps and epochs exclude each other; give one")
        if self.warmup_steps is not None and self.warmup_share:
            raise ValueError("warmup_steps and warmup_share exclude each other; give one")
        if self.kind == "muon" and self.learning_rate == "find":
            raise ValueError("learning_rate: find tries adamw's rates; give muon a number")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas must be at least 0 and below 1")
        return self


class BatchConfig(Config):
    """How rows become steps. A step's loss is a mean over its supervised tokens, however the step is cut."""

    tokens: int = Field(4096, ge=1)
    """Padded tokens (rows x longest) of one micro batch, at most; rows of similar length go together."""
    rows: int | None = Field(None, ge=1)
    """Rows of one micro batch, at most."""
    accumulate: int = Field(1, ge=1)
    """Micro batches of one optimiser step. Replayed rows come on top."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""


def check_recomputable(tuner: Config, batch: BatchConfig) -> None:
    """Raise ValueError if the tuner does not work with activation checkpointing and that is switched on."""
    if isinstance(tuner, VirtualTokens) and not tuner.recomputable and batch.activation_checkpointing:
        raise ValueError(
            "batch.activation_checkpointing recomputes layers without the cache that holds a prefix: "
            "switch it off, or use ptuning_v2, prompt_tuning or lora"
        )


Arithmetic = Annotated[
    Literal["auto", "float32", "bf16"],
    spelled(Literal["auto", "float32", "fp32", "bf16", "bfloat16"], bfloat16="bf16", fp32="float32"),
]
SaveDtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    spelled(
        Literal["auto", "float32", "fp32", "bfloat16", "bf16", "float16", "fp16"],
        bf16="bfloat16",
        fp16="float16",
        fp32="float32",
    ),
]


class TrainConfig(Config):
    """One training run."""

    model: str
    """Hub id, local folder, adapter folder, GGUF file, `pocket:base` / `pocket:chat`, or `smollm2`."""
    data: DataSource | None = None
    """Rows to learn from: a file (`rows.jsonl`) or `{hub: name, split: train}`."""
    validation: DataSource | None = None
    """Rows to measure the loss on; excludes `validation_share`."""
    validation_share: float = Field(0.0, ge=0, lt=1)
    """Share of the rows of `data` that is held out for validation, drawn by `seed`."""
    objective: Annotated[Config, ByKind("objective")] = Field(default="sft", validate_default=True)
    """What training minimises: see `posttrain list objectives`."""
    tuner: Annotated[Config, ByKind("tuner")] = Field(default="full", validate_default=True)
    """Which parameters move: see `posttrain list tuners`."""
    replay: Annotated[Config, ByKind("replay")] | None = None
    """Old rows mixed into every step, such as `{kind: self, share: 0.9}`."""
    penalty: PenaltiesOf = ()
    """What holds the old model in place besides: one penalty, such as `{kind: l2_sp}`, or a list of them."""
    earlier: str | None = None
    """Folder of the run of the task before, from which penalties and the replay of earlier tasks go on."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimiser, schedule and stopping."""
    batch: BatchConfig = BatchConfig()
    """Batches."""
    max_length: int = Field(1024, ge=2)
    """Tokens of a row, at most (and at most what the model was made for)."""
    over_long: Literal["drop", "truncate", "raise"] = "raise"
    """What to do with longer rows; counted either way."""
    on_bad_row: Literal["fail", "skip"] = "fail"
    """What to do with rows that cannot be read; counted either way."""
    download: bool = False
    """Allow fetching the model from the hub; without it only the local cache is used."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""
    allow_template_mismatch: bool = False
    """Train although the chat template is not the one the weights were trained with."""
    seed: int = Field(0, ge=0)
    """Seed of the order of the rows, of dropout and of replay's draws."""
    precision: Arithmetic = "auto"
    """Arithmetic of the forward pass. auto: bf16 on a GPU that has it when the model has 1 B parameters or more, and,
    for LoRA, on a processor with AMX or AVX512-BF16 when it has 50 M or more; else float32. The weights that are
    trained are float32 in any case."""
    save_dtype: SaveDtype = "auto"
    """Precision of the saved model; the model that is examined is rounded alike. auto: that of the base's own files.
    Adapters and checkpoints are saved as they are trained, in float32."""
    evaluate_every_steps: int | None = Field(None, ge=1)
    """Steps between two validation losses; with validation rows and without this, once per tenth of the run."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Stop after so many validations without a new best."""
    keep_best: bool = True
    """With validation rows: end with the weights of the best validation, not of the last step."""
    save_every_steps: int | None = Field(None, ge=1)
    """Steps between two checkpoints; none but the one of an interruption when not given."""
    save_at_steps: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Checkpoints at exactly these steps, besides."""
    keep_checkpoints: int | None = Field(1, ge=1)
    """Checkpoints kept, the newest (and the best besides); null keeps all."""
    report_to: Trackers = ()
    """Trackers: `tensorboard`, or a list of `tensorboard`, `mlflow`, `wandb`, `trackio` and what else transformers
    knows; `all`: those that are installed. They write to `trackers/` in the run's folder and send nothing unasked."""
    output: str | None = None
    """Folder of the run."""

    _penalties_differ = field_validator("penalty")(each_kind_once)

    @model_validator(mode="after")
    def _parts_fit(self) -> TrainConfig:
        if self.validation is not None and self.validation_share:
            raise ValueError("validation and validation_share exclude each other; give one")
        check_recomputable(self.tuner, self.batch)
        return self
