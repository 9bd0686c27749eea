"""Losses from the edited layer on are those of whole rows, and lower layers are read once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from posttrain.editing.editors import _above
from posttrain.editing.editors._above import Above
from posttrain.editing.editors._answers import answers_of, nats_of, prompt_last
from posttrain.editing.editors._base import EditContext
from posttrain.editing.editors._tuned import moving
from posttrain.editing.edits import RowMaker
from posttrain.editing.sites import find_sites
from posttrain.editing.targets import Search
from tests.editing.lively import EDIT, OTHERS, lively
from tests.pico import FAMILIES, tokenizer

CPU = torch.device("cpu")


def context_of(model: Any) -> EditContext:
    search = Search(find_sites(model), RowMaker(tokenizer(), forms=("raw", "chat")), lambda line: None, {})
    return EditContext(search, lambda *_: [], lambda *_: {}, lambda *_: {}, lambda *_: None)


def rows_of(context: EditContext) -> list[Any]:
    return [row for edit in (EDIT, *OTHERS) for row in context.maker.rows(edit)]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_whole_rows(family: str, last: bool) -> None:
    model = lively(family, layers=3).model
    context = context_of(model)
    site = context.sites.at(1)
    asked = (prompt_last if last else answers_of)(rows_of(context), CPU)
    runs: list[int] = []
    model.get_submodule(context.sites.linear[0][0]).register_forward_hook(lambda m, a, o: runs.append(len(o)))
    with moving(context, site) as weight, torch.enable_grad():
        read = Above(context, site)
        for step in range(2):
            with torch.no_grad():
                weight.mul_(1 + step / 4)
            found, whole = read.nats(asked), nats_of(model, asked)
            torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)
            slopes = [torch.autograd.grad(nats.sum(), weight)[0] for nats in (found, whole)]
            torch.testing.assert_close(slopes[0], slopes[1], atol=1e-5, rtol=1e-4)
    assert read.useful
    runs.clear()
    with moving(context, site):
        read.nats(asked)
    assert runs == []  # nothing was read below


def test_rows_are_kept_one_by_one_whatever_they_are_read_with() -> None:
    context = context_of(lively().model)
    rows = rows_of(context)
    read = Above(context, context.sites.at(1))
    for part in (rows[:3], rows[2:], rows[::-1]):
        asked = answers_of(part, CPU)
        torch.testing.assert_close(read.nats(asked), nats_of(read.model, asked), atol=1e-5, rtol=1e-5)
    assert len(read.kept) == len({tuple(row.ids) for row in rows})


def test_where_it_would_be_wrong_or_too_much_whole_rows_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of(lively().model)
    asked = answers_of(rows_of(context), CPU)
    whole = nats_of(context.sites.model, asked)
    assert not Above(context, context.sites.at(0)).useful  # there is nothing below
    right = Above._nats
    monkeypatch.setattr(Above, "_nats", lambda self, asked: right(self, asked) + 0.01)
    read = Above(context, context.sites.at(1))
    assert torch.equal(read.nats(asked), whole)
    assert read.useful is False
    assert Above(context, context.sites.at(1)).useful is False  # it is tried once
    monkeypatch.undo()
    context.memory.clear()
    monkeypatch.setattr(_above, "MOST_BYTES", 100)
    read = Above(context, context.sites.at(1))
    assert torch.equal(read.nats(asked), whole)
    assert (read.useful, read.kept) == (False, {})
