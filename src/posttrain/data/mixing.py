"""Mix old rows into every step, so that they have a given share of the step's tokens.

The share counts *tokens of whole rows* (prompt and answer, without padding): these are what a step reads, and unlike
supervised tokens they do not depend on the objective. Since the loss of a step is the mean over its supervised tokens,
an old row counts in proportion to the length of its answer.

To new rows of N tokens in a step, old rows of about N * share / (1 - share) tokens are added: share 0.9 is nine old
tokens per new one, 0.97 about 32. Rows cannot be cut, so the next step compensates for what a step got too much or too
little: the total number of old tokens is never off by more than half the longest old row.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

__all__ = ["OldRows", "old_tokens_for"]


def old_tokens_for(new_tokens: int, share: float) -> float:
    """Old tokens that make old / (old + new) equal to share. ValueError unless 0 <= share < 1."""
    if not 0 <= share < 1:
        raise ValueError(f"share must be at least 0 and below 1, got {share}")
    return new_tokens * share / (1 - share)


class OldRows:
    """Draws the old rows of one step after another; the same seed draws the same rows.

    Rows are drawn without replacement until each was used once, then again in another order; a step that needs more
    rows than there are repeats some.

    lengths: tokens of each old row, at least 1; share: old tokens over all tokens of a step.
    """

    def __init__(self, lengths: Sequence[int], *, share: float, seed: int) -> None:
        if min(lengths, default=1) < 1:
            raise ValueError("an old row has no tokens")
        self.lengths = list(lengths)
        self.share = share
        self.owed = 0.0
        """Old tokens that the steps so far should have had and did not; at most half the longest row, positive or
        negative."""
        self._rng = random.Random(f"replay {seed}")
        self._order: list[int] = []

    def draw(self, new_tokens: int) -> list[int]:
        """The old rows (indices into `lengths`) to add to a step with so many tokens of new rows."""
        self.owed += old_tokens_for(new_tokens, self.share)
        rows: list[int] = []
        while self.lengths and self.share:
            if not self._order:
                self._order = list(range(len(self.lengths)))
                self._rng.shuffle(self._order)
            length = self.lengths[self._order[-1]]
            if length / 2 > self.owed:  # leaving it out is nearer to the share than taking it
                break
            rows.append(self._order.pop())
            self.owed -= length
        return rows
