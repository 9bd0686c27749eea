"""Linear algebra that the editors share: means over an edit's rows, ridge systems, low-rank updates. Tensors only.

Everything is computed in float64: the second moments of keys have condition numbers of a million and more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.errors import PosttrainError, Problem

__all__ = ["Ridge", "alignment", "row_means", "shrunk"]


def row_means(values: Tensor, weights: Tensor, owner: Tensor, count: int) -> Tensor:
    """Return the weighted mean of each edit's rows, in float64.

    values: (N, d) of all rows; weights: (N,), which sum to 1 within an edit; owner: (N,), each row's edit; count: E.
    """
    made = torch.zeros(count, values.shape[1], dtype=torch.float64, device=values.device)
    return made.index_add_(0, owner.to(values.device), values.double() * weights.to(values.device)[:, None].double())


def shrunk(moment: Tensor, count: int) -> tuple[Tensor, float]:
    """Return a second moment drawn towards a multiple of the identity, and by how much.

        C' = (1 - rho) C + rho (tr C / d) I

    rho is the oracle-approximating shrinkage of Chen et al. 2010 (arXiv:0907.4698, eq. 23) for n = `count` samples of d
    numbers; it goes to 0 as n grows. Without it, a moment of fewer samples than numbers has no inverse.
    """
    matrix = moment.double()
    size = matrix.shape[0]
    trace, square = matrix.diagonal().sum(), matrix.square().sum()
    top = (1 - 2 / size) * square + trace.square()
    bottom = (count + 1 - 2 / size) * (square - trace.square() / size)
    rho = float((top / bottom).clamp(1e-6, 1.0)) if float(bottom) > 0 else 1.0
    drawn = (1 - rho) * matrix
    drawn.diagonal().add_(rho * trace / size)
    return drawn, rho


class Ridge:
    """A symmetric positive definite matrix A (d, d), factored once, to which columns can be added: A + P P^T.

    Solutions with the added columns use the Woodbury identity; when there are more than `most` of them, the matrix is
    factored again. Raise PosttrainError if A is not positive definite or not finite.
    """

    def __init__(self, matrix: Tensor, *, most: int = 128) -> None:
        self.most = most
        self.matrix = matrix.double()
        self.pending = self.matrix.new_zeros(len(matrix), 0)
        self._factor()

    def _factor(self) -> None:
        if not bool(torch.isfinite(self.matrix).all()):
            mend = "measure them again on other texts, in float32"
            raise PosttrainError(Problem("moments", "the second moments hold numbers that are not finite", mend))
        self.root, wrong = torch.linalg.cholesky_ex(self.matrix)
        if int(wrong):
            mend = "give more texts, or a larger shrinkage"
            raise PosttrainError(Problem("moments", "the second moments have no inverse", mend))

    def add(self, columns: Tensor) -> None:
        """Add the columns P, (d, n)."""
        self.pending = torch.cat([self.pending, columns.double()], dim=1)
        if self.pending.shape[1] > self.most:
            self.matrix = self.matrix + self.pending @ self.pending.T
            self.pending = self.matrix.new_zeros(len(self.matrix), 0)
            self._factor()

    def solve(self, right: Tensor) -> Tensor:
        """Return (A + P P^T)^-1 X for X (d, n)."""
        found = torch.cholesky_solve(right.double(), self.root)
        if not self.pending.shape[1]:
            return found
        through = torch.cholesky_solve(self.pending, self.root)  # (d, p)
        inner = self.pending.T @ through
        inner.diagonal().add_(1.0)
        return found - through @ torch.linalg.solve(inner, self.pending.T @ found)


def alignment(keys: Tensor, directions: Tensor) -> Tensor:
    """Return the cosine between each key and its direction, both (d, E): near 0, an update must be huge to reach it."""
    both = (keys * directions).sum(0)
    return both / (keys.norm(dim=0) * directions.norm(dim=0)).clamp_min(1e-300)
