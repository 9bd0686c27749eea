from __future__ import annotations

import doctest

import pytest
import torch
from torch import Tensor

from posttrain.merging import magnitude
from posttrain.merging.magnitude import ALL, NONE, Top, cuts


def blocks_of(values: Tensor, size: int = 100) -> list[Tensor]:
    return [one.clone()[None] for one in torch.split(values, size)]


@pytest.mark.parametrize("rank", [1, 2, 333, 999, 1000])
@pytest.mark.parametrize("ties", [False, True])
def test_a_cut_is_the_number_that_a_sort_would_find(rank: int, ties: bool) -> None:
    values = torch.randn(1001, generator=torch.Generator().manual_seed(rank)) * 1e-3
    if ties:
        values = (values * 2000).round() / 2000
    ((cut,),) = cuts(lambda: blocks_of(values), [[rank]], 1001)
    down = values.abs().sort(descending=True).values
    assert cut.value == float(down[rank - 1])
    assert cut.equal == int((values.abs() == cut.value).sum())
    assert cut.rest == rank - int((values.abs() > cut.value).sum())
    exact, loose = Top(cut, exact=True), Top(cut, exact=False)
    kept = torch.cat([exact.keep_(one)[0] for one in blocks_of(values)])
    every = torch.cat([loose.keep_(one)[0] for one in blocks_of(values)])
    assert torch.equal(every, torch.where(values.abs() >= cut.value, values, 0))
    order = values.abs().argsort(descending=True, stable=True)[:rank]
    wanted = torch.zeros(1001)
    wanted[order] = values[order]
    assert torch.equal(kept, wanted)


def test_several_tensors_and_ranks_at_once() -> None:
    values = torch.stack([torch.arange(-5.0, 5), torch.arange(10.0) * 1e-30])
    found = cuts(lambda: [values.clone()], [[0, 10, 3], [2]], 10)
    assert found[0][:2] == [NONE, ALL]
    assert found[0][2].value == 4.0
    assert found[1][0].value == float(values[1, 8])
    assert cuts(lambda: pytest.fail("nothing is to be read"), [[0], [10]], 10) == [[NONE], [ALL]]


def test_no_cut_loses_a_nan() -> None:
    values = torch.tensor([1.0, float("nan"), -2.0, float("inf")])
    assert Top(NONE, exact=True).keep_(values.clone()).isnan().tolist() == [False, True, False, False]
    assert Top(NONE, exact=True).keep_(values.clone()).nan_to_num().tolist() == [0, 0, 0, 0]
    assert torch.equal(Top(ALL, exact=False).keep_(values.clone()), values) is False  # nan differs from itself
    assert Top(ALL, exact=False).keep_(values.clone()).nan_to_num(9, 7).tolist() == [1, 9, -2, 7]


def test_the_examples_in_the_docstrings() -> None:
    assert doctest.testmod(magnitude, extraglobs={"torch": torch}).failed == 0
