"""Answers as what fine-tuning editors learn: which tokens are predicted, from where, and the loss of each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from posttrain.editing.edits import Row
from posttrain.editing.reading import padded
from posttrain.inference.attention import forward

__all__ = ["Asked", "answers_of", "nats_of", "prompt_last"]


class Asked(NamedTuple):
    """Rows to learn: ids (B, T); places: flat indices of (B, T) of the positions that predict; targets: what they
    predict; share: of each in its row's loss; owner: the row of each; rows: the ids of each row without padding.
    """

    ids: Tensor
    places: Tensor
    targets: Tensor
    share: Tensor
    owner: Tensor
    rows: tuple[tuple[int, ...], ...]


def answers_of(rows: Sequence[Row], device: torch.device) -> Asked:
    """Return rows whose answers are learned token by token, each from the tokens before it."""
    return _asked([row.ids for row in rows], [row.asked for row in rows], [row.targets for row in rows], device)


def prompt_last(rows: Sequence[Row], device: torch.device) -> Asked:
    """Return rows in which all tokens of the answer are predicted from the prompt's last token, as in ROME's baseline
    FT: the answer itself is not read.
    """
    prompts = [row.ids[: row.start] for row in rows]
    positions = [[row.start - 1] * len(row.targets) for row in rows]
    return _asked(prompts, positions, [row.targets for row in rows], device)


def _asked(
    rows: Sequence[Sequence[int]], positions: Sequence[Sequence[int]], targets: Sequence[Sequence[int]],
    device: torch.device,
) -> Asked:  # fmt: skip
    ids = padded(rows, device)
    width = ids.shape[1]
    flat = [(i, i * width + p, t) for i in range(len(ids)) for p, t in zip(positions[i], targets[i], strict=True)]
    share = [1 / len(targets[i]) for i, _, _ in flat]
    index, wanted = (torch.tensor([one[k] for one in flat], device=device) for k in (1, 2))
    owner = torch.tensor([i for i, _, _ in flat], device=device)
    return Asked(ids, index, wanted, torch.tensor(share, device=device), owner, tuple(map(tuple, rows)))


def nats_of(model: Any, asked: Asked) -> Tensor:
    """Return each row's mean loss per token of its answer, (B,), in nats."""
    logits = forward(model, asked.ids, asked.places)
    logps = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    nats = -logps.gather(1, asked.targets[:, None])[:, 0] * asked.share.to(logps)
    return nats.new_zeros(len(asked.ids)).index_add(0, asked.owner, nats)
