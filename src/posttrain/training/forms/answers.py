"""Shared by the forms with answers: the log-probability of an answer, now and before training.

The log-probabilities before training are computed once, before the first step, and kept in the run's folder; or the
model is asked for them in every step with its adapter switched off.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from posttrain.data.batching import length_batches
from posttrain.data.chat import IGNORED, Encoded
from posttrain.models.added import ADDED
from posttrain.models.disk import whole_file
from posttrain.models.head_loss import chunked_nll, plain_head, states_at
from posttrain.models.logits import logits_at
from posttrain.models.meter import Meter
from posttrain.objectives._loss import token_cross_entropy
from posttrain.training.forms.base import Preparation
from posttrain.training.forms.tokens import TokenBatch, token_batch

__all__ = ["answer_logps", "reference_logps", "without_dropout"]

REFERENCE_FILE = "reference.safetensors"


def answer_logps(model: nn.Module, batch: TokenBatch, device: torch.device) -> tuple[Tensor, Tensor]:
    """(log-probabilities, tokens) of each row's labelled tokens: nats summed over them, (B,), and their number, (B,).

    Only positions that some row labels go through the output head, and in chunks where the head can be cut.
    """
    targets = batch.targets.to(device)
    head = plain_head(model)
    if head is not None:
        asked = targets != IGNORED  # (B, T)
        nats = chunked_nll(states_at(model, batch.input_ids.to(device), asked), head, targets[asked])  # (N,)
        return -nats.new_zeros(len(targets)).index_add(0, asked.nonzero()[:, 0], nats), asked.sum(1)
    input_ids, columns, targets = batch.asked(device)
    loss = token_cross_entropy(logits_at(model, input_ids, columns), targets)
    return -loss.nats, loss.units


def reference_logps(
    pairs: Sequence[tuple[Encoded, Encoded]], preparation: Preparation, *, pad_id: int, device: torch.device
) -> list[tuple[float, float]]:
    """Log-probabilities of the labelled tokens of both sequences of each pair under the model before training.

    They are read from the run's folder where the same model was asked about the same sequences before.
    """
    sequences = [one for pair in pairs for one in pair]
    file = preparation.folder / REFERENCE_FILE if preparation.folder is not None else None
    fingerprint = _fingerprint(sequences, preparation.fingerprint)
    if file is not None and (kept := _read(file, fingerprint, len(sequences))) is not None:
        preparation.say(f"reference: log-probabilities of {len(sequences)} answers taken from {file}")
        return _paired(kept)
    found = torch.zeros(len(sequences), dtype=torch.float64)
    batches = length_batches([len(s.input_ids) for s in sequences], tokens=preparation.tokens, seed=0, epoch=0)
    work = Meter("asking the model before training", len(sequences), "answers")
    with preparation.reference.model() as reference, work as meter:
        for numbers in batches:
            batch = token_batch([sequences[i] for i in numbers], pad_id=pad_id)
            found[numbers] = answer_logps(reference, batch, device)[0].double().cpu()
            meter.more(len(numbers), tokens=sum(len(sequences[i].input_ids) for i in numbers))
    if file is not None:
        _write(file, fingerprint, found)
    preparation.say(f"reference: log-probabilities of {len(sequences)} answers computed once")
    return _paired(found)


def _paired(logps: Tensor) -> list[tuple[float, float]]:
    return [(one, other) for one, other in logps.view(-1, 2).tolist()]


def _fingerprint(sequences: Sequence[Encoded], model: str) -> str:
    digest = hashlib.sha256(model.encode())
    for row in sequences:
        digest.update(array("q", [len(row.input_ids), *row.input_ids, *row.labels]).tobytes())
    return digest.hexdigest()


def _read(file: Path, fingerprint: str, count: int) -> Tensor | None:
    if not file.is_file():
        return None
    with safe_open(str(file), "pt") as kept:
        if (kept.metadata() or {}).get("fingerprint") != fingerprint:
            return None  # another model or other rows: computed anew
        logps: Tensor = kept.get_tensor("logps")
    return logps if logps.shape == (count,) else None


def _write(file: Path, fingerprint: str, logps: Tensor) -> None:
    """Only the first process writes."""
    if os.environ.get("RANK", "0") != "0":  # set by torchrun; the process group comes later than this
        return
    with whole_file(file) as temporary:
        save_file({"logps": logps}, str(temporary), metadata={"fingerprint": fingerprint})


def without_dropout(model: nn.Module, say: Callable[[str], None]) -> None:
    """Switch off the model's own dropout, which would add noise to the ratio to the reference from the first step on.
    The dropout of a tuner stays as the user wants it.
    """
    own = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Dropout) and module.p > 0 and "lora_" not in name and ADDED not in name
    ]
    for module in own:
        module.p = 0.0
    if own:
        say(f"dropout of the model is switched off ({len(own)} modules): answers are compared without noise")
