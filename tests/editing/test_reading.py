"""What is read at the subjects, against whole forward passes of every row by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.editing.edits import Edit, Row, RowMaker
from posttrain.editing.reading import batches, look, padded, stopping_after
from posttrain.editing.sites import Sites, find_sites, first_of
from tests.editing.lively import EDIT, OTHERS, lively
from tests.editing.test_sites import OPT, model_of
from tests.pico import FAMILIES, tokenizer


def rows_of_all() -> list[Row]:
    """Rows of several edits, of unequal lengths, one with its subject at position 0."""
    maker = RowMaker(tokenizer())
    edits = (EDIT, OTHERS[1], Edit("I am", "I", "here"))
    return [row for edit in edits for row in maker.rows(edit, ["So it was, once upon a time."])]


def plain(sites: Sites, row: Row, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """The key, the value and the state of a row at its subject, read with its answer and nothing else."""
    site = sites.at(layer)
    found: list[Tensor] = []

    def read(_: Any, args: Any, output: Any) -> None:
        for states in (args[0], output):
            found.append(states.reshape(len(row.ids), -1)[row.at].double())

    handles = [
        sites.module(site).register_forward_hook(read),
        sites.model.get_submodule(sites.layers[layer]).register_forward_hook(
            lambda m, args, output: found.append(first_of(output)[0, row.at].double())
        ),
    ]
    with torch.no_grad():
        sites.model(input_ids=torch.tensor([row.ids]))
    for handle in handles:
        handle.remove()
    key, value, state = found
    return key, value, state


@pytest.mark.parametrize("family", [*FAMILIES, "opt"])
def test_rows_are_read_at_their_subjects_for_several_layers_at_once(family: str) -> None:
    sites = find_sites(model_of("OPT", **OPT) if family == "opt" else lively(family).model)
    rows = rows_of_all()
    assert len({len(row.ids) for row in rows}) > 4
    assert min(row.at for row in rows) == 0
    whole = look(sites, rows, [sites.at(0), sites.at(1)])
    few = look(sites, rows, [sites.at(1)], batch_tokens=24)
    for layer in (0, 1):
        for i, row in enumerate(rows):
            for found, expected in zip((part[layer][i] for part in whole), plain(sites, row, layer), strict=True):
                assert torch.allclose(found.double(), expected, atol=2e-5)
    for one, other in zip(whole, few, strict=True):
        assert list(other) == [1]
        assert torch.allclose(one[1], other[1], atol=2e-5)


def test_half_precision_is_raised_and_double_kept() -> None:
    for given, kept in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        sites = find_sites(lively(dtype=given).model)
        seen = look(sites, rows_of_all()[:3], [sites.at(0)])
        assert {part[0].dtype for part in seen} == {kept}


def test_a_pass_ends_at_the_last_layer_that_is_read() -> None:
    sites = find_sites(lively().model)
    places = [sites.at(0)]
    blocks = [sites.model.get_submodule(name) for name in sites.layers]
    ran: list[int] = []
    for number, block in enumerate(blocks):
        block.register_forward_hook(lambda m, a, o, at=number: ran.append(at))
    look(sites, rows_of_all()[:2], places)
    assert set(ran) == {0}
    with stopping_after(blocks[0]):
        sites.model(input_ids=torch.tensor([[5, 6]]))
        ran.append(2)  # it is not reached
    assert 2 not in ran
    with pytest.raises(IndexError), stopping_after(blocks[0]):  # other errors go through
        sites.model(input_ids=torch.tensor([[5, 9999]]))
    sites.model(input_ids=torch.tensor([[5, 6]]))
    assert ran[-2:] == [0, 1]  # nothing stops any more


def test_batches_hold_as_many_padded_tokens_as_they_may() -> None:
    assert list(batches([3, 9, 1, 4, 4], 9)) == [[1], [3, 4], [0, 2]]
    assert list(batches([3, 9], 1)) == [[1], [0]]  # one row at least
    assert list(batches([], 9)) == []


def test_rows_are_filled_up_with_their_last_token() -> None:
    assert padded([[1, 2, 3], [4]], torch.device("cpu")).tolist() == [[1, 2, 3], [4, 4, 4]]
