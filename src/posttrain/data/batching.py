"""Make batches of rows of similar length within a budget of padded tokens, and mix old rows into every step.

A batch costs (number of rows) x (length of its longest row) tokens, padding included. This product never exceeds the
budget. Rows are shuffled, cut into stretches of about fifty batches, and sorted by length within a stretch. Batches are
filled greedily and then shuffled. So there is little padding, and no two epochs have the same batches. The order
depends on seed and epoch only.

Old rows get a given share of the tokens that a step reads (prompts and answers, without padding). The loss of a step is
the mean over its supervised tokens, so an old row counts in proportion to the length of its answer. About
N * share / (1 - share) old tokens are added to N new tokens: nine per new token when share is 0.9. Rows cannot be cut,
so each step compensates for the old tokens that the steps before had too many or too few. The sum never differs from
the share by more than half the longest old row.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from posttrain.data.chat import IGNORED, Encoded
from posttrain.errors import DataError, Problem

__all__ = ["OldRows", "collate", "length_batches", "padded", "pieces"]

STRETCH_BATCHES = 50
"""Rows are sorted by length within stretches of about this many batches."""


def length_batches(
    lengths: Sequence[int], *, tokens: int, seed: int, epoch: int, max_rows: int | None = None
) -> list[list[int]]:
    """Return the indices of the rows of each batch; each row is in exactly one batch.

    lengths: tokens of each row; tokens: budget for rows x longest row; max_rows: the most rows of a batch. Raise
    DataError when a single row is longer than the budget.
    """
    too_long = [(i, n) for i, n in enumerate(lengths) if n > tokens]
    if too_long:
        index, length = max(too_long, key=lambda pair: pair[1])
        cause = f"{len(too_long)} rows are longer than a batch of {tokens} tokens (row {index} has {length})"
        mend = f"set batch.tokens to {length} or more, or max_length to {tokens} or less"
        raise DataError(Problem("", cause, mend))
    rng = random.Random(f"{seed}/{epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    batches: list[list[int]] = []
    for stretch in _stretches(order, lengths, tokens * STRETCH_BATCHES):
        stretch.sort(key=lambda i: lengths[i], reverse=True)  # stable: equal lengths stay shuffled
        batch: list[int] = []
        for i in stretch:
            longest = lengths[batch[0]] if batch else 0
            if batch and ((len(batch) + 1) * longest > tokens or (max_rows is not None and len(batch) >= max_rows)):
                batches.append(batch)
                batch = []
            batch.append(i)
        batches.append(batch)
    rng.shuffle(batches)
    return batches


def pieces(batch: Sequence[int], lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Cut a batch, in its order, into parts with rows x longest row <= tokens, and return the parts. Only a part of one
    row may exceed the budget. There are as few parts as possible, and the largest one is as small as possible.
    """
    made = _cut(batch, lengths, tokens)
    low, high = 1, tokens
    while 1 < len(made) < len(batch) and low < high:
        middle = (low + high) // 2
        if len(_cut(batch, lengths, middle)) > len(made):
            low = middle + 1
        else:
            high = middle
    return _cut(batch, lengths, high)


def _cut(batch: Sequence[int], lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Put as many rows into each part as fit."""
    made: list[list[int]] = []
    longest = 0
    for i in batch:
        longest = max(longest, lengths[i])
        if not made or (len(made[-1]) + 1) * longest > tokens:
            made.append([])
            longest = lengths[i]
        made[-1].append(i)
    return made


def _stretches(order: Sequence[int], lengths: Sequence[int], size: int) -> list[list[int]]:
    """Cut the order into runs of about `size` tokens."""
    stretches: list[list[int]] = []
    count = size
    for i in order:
        if count >= size:
            stretches.append([])
            count = 0
        stretches[-1].append(i)
        count += lengths[i]
    return stretches


def collate(rows: Sequence[Encoded], pad_id: int) -> dict[str, Tensor]:
    """Return right-padded int64 tensors `input_ids`, `attention_mask` and `labels`, each of shape (B, T)."""
    return {
        "input_ids": padded([row.input_ids for row in rows], pad_id),
        "attention_mask": padded([[1] * len(row.input_ids) for row in rows], 0),
        "labels": padded([row.labels for row in rows], IGNORED),
    }


def padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Return rows of numbers as an int64 tensor of shape (B, T), padded on the right with `fill`."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=fill)


class OldRows:
    """Draws the old rows of one step after another: all of them once, then all of them again in another order.

    The same seed draws the same rows. lengths: tokens of each old row, at least 1; share: old tokens / all tokens of a
    step. Raise ValueError when the share is not in [0, 1) or a length is below 1.
    """

    def __init__(self, lengths: Sequence[int], *, share: float, seed: int) -> None:
        if not 0 <= share < 1:
            raise ValueError(f"share must be at least 0 and below 1, got {share}")
        if min(lengths, default=1) < 1:
            raise ValueError("an old row has no tokens")
        self.lengths = list(lengths)
        self.share = share
        self.owed = 0.0
        """The old tokens that the steps so far lack, or (negative) have too many; at most half the longest row."""
        self._rng = random.Random(f"replay {seed}")
        self._order: list[int] = []

    def draw(self, new_tokens: int) -> list[int]:
        """Return the old rows (indices into `lengths`) to add to a step that has `new_tokens` tokens of new rows."""
        self.owed += new_tokens * self.share / (1 - self.share)
        rows: list[int] = []
        while self.lengths and self.share:
            if not self._order:
                self._order = list(range(len(self.lengths)))
                self._rng.shuffle(self._order)
            length = self.lengths[self._order[-1]]
            if length / 2 > self.owed:  # without this row the sum is nearer to the share
                break
            rows.append(self._order.pop())
            self.owed -= length
        return rows
