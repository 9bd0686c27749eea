"""The editors' linear algebra against dense solves and arithmetic written out."""

from __future__ import annotations

import pytest
import torch
from sklearn.covariance import oas

from posttrain.editing.solve import Ridge, alignment, row_means, shrunk
from posttrain.errors import PosttrainError
from tests.editing.lively import drawn, moment, near


def test_row_means_are_weighted_and_in_the_order_of_the_edits() -> None:
    values = torch.tensor([[1.0, 0.0], [3.0, 8.0], [5.0, 5.0], [2.0, 4.0]])
    weights, owner = torch.tensor([0.25, 0.5, 0.75, 0.5]), torch.tensor([1, 0, 1, 0])
    made = row_means(values, weights, owner, 2)
    assert made.dtype == torch.float64
    assert made.tolist() == [[2.5, 6.0], [4.0, 3.75]]


def test_shrinkage_is_that_of_the_paper() -> None:
    """Chen et al. 2010, eq. 23, for C = diag(1, 2, 3, 6) and n = 80: every number by hand."""
    matrix, rho = shrunk(torch.diag(torch.tensor([1.0, 2.0, 3.0, 6.0])), 80)
    # tr C^2 = 50, tr C = 12; above: (1 - 2/4) 50 + 144 = 169; below: (81 - 2/4) (50 - 144/4) = 80.5 * 14
    assert rho == pytest.approx(169 / (80.5 * 14))
    assert matrix.diagonal().tolist() == pytest.approx([(1 - rho) * c + rho * 3 for c in (1, 2, 3, 6)])
    assert shrunk(torch.diag(torch.tensor([1.0, 2.0, 3.0, 6.0])), 8)[1] == 1.0  # 169 / (8.5 * 14) is above 1


def test_shrinkage_agrees_with_scikit_learn_where_its_shortened_formula_does() -> None:
    """scikit-learn leaves out the terms 2 / d, which are small for many directions."""
    samples = drawn(300, 200) @ torch.diag(torch.linspace(0.1, 2.0, 200, dtype=torch.float64))
    matrix, rho = shrunk(samples.T @ samples / 300, 300)
    expected, share = oas(samples.numpy(), assume_centered=True)
    assert rho == pytest.approx(share, rel=0.01)
    assert near(matrix, torch.from_numpy(expected), 0.01)


def test_shrinkage_keeps_trace_and_symmetry_and_goes_to_zero() -> None:
    matrix = moment(12)
    shares = []
    for count in (2, 20, 200, 20_000, 2_000_000_000):
        drawn_near, rho = shrunk(matrix, count)
        shares.append(rho)
        assert torch.equal(drawn_near, drawn_near.T)
        assert float(drawn_near.trace()) == pytest.approx(float(matrix.trace()), rel=1e-12)
        assert float(torch.linalg.eigvalsh(drawn_near)[0]) > float(torch.linalg.eigvalsh(matrix)[0])
    assert shares[0] == 1.0
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == 1e-6  # never nothing: the matrix keeps an inverse
    few = drawn(3, 12)
    Ridge(shrunk(few.T @ few / 3, 3)[0])  # fewer samples than directions


def test_a_multiple_of_the_identity_is_left_alone() -> None:
    matrix, rho = shrunk(3 * torch.eye(5), 10)
    assert rho == 1.0
    assert torch.allclose(matrix, 3 * torch.eye(5, dtype=torch.float64))


def test_a_ridge_with_pending_columns_equals_a_dense_solve() -> None:
    matrix, right = moment(20), drawn(20, 4)
    ridge = Ridge(matrix)
    assert near(matrix @ ridge.solve(right), right, 1e-9)
    whole = matrix.clone()
    for seed, width in enumerate((1, 3, 2)):
        columns = drawn(20, width, seed=10 + seed)
        ridge.add(columns)
        whole += columns @ columns.T
        assert near(whole @ ridge.solve(right), right, 1e-8)
        assert near(ridge.solve(right), torch.linalg.solve(whole, right), 1e-8)
    assert ridge.pending.shape == (20, 6)


def test_many_columns_are_taken_into_the_factor() -> None:
    matrix, columns, right = moment(20), drawn(20, 9, seed=3), drawn(20, 2)
    pending, taken = Ridge(matrix), Ridge(matrix, most=4)
    for i in range(0, 9, 3):
        pending.add(columns[:, i : i + 3])
        taken.add(columns[:, i : i + 3])
    assert (pending.pending.shape[1], taken.pending.shape[1]) == (9, 3)
    assert near(taken.matrix, matrix + columns[:, :6] @ columns[:, :6].T, 1e-12)
    assert near(taken.solve(right), pending.solve(right), 1e-9)


@pytest.mark.parametrize(
    ("matrix", "cause"),
    [
        (torch.diag(torch.tensor([1.0, 0.0])), "have no inverse; give more texts"),
        (torch.diag(torch.tensor([1.0, -1.0])), "have no inverse"),
        (torch.diag(torch.tensor([1.0, float("nan")])), "not finite; measure them again"),
        (torch.diag(torch.tensor([1.0, float("inf")])), "not finite"),
    ],
)
def test_what_has_no_factor_is_an_error(matrix: torch.Tensor, cause: str) -> None:
    with pytest.raises(PosttrainError, match=f"moments: the second moments .*{cause}"):
        Ridge(matrix)


def test_alignment_is_a_cosine_for_each_key() -> None:
    keys = torch.tensor([[3.0, 1.0, 0.0], [4.0, 0.0, 2.0]], dtype=torch.float64)
    directions = torch.tensor([[6.0, 0.0, 0.0], [8.0, 5.0, -1.0]], dtype=torch.float64)
    assert alignment(keys, directions).tolist() == pytest.approx([1.0, 0.0, -1.0])
    assert alignment(torch.zeros(2, 1).double(), torch.ones(2, 1).double()).tolist() == [0.0]
