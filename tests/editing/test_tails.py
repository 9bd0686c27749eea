"""Fast tails say what plain ones say, and plain ones what every row says by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from posttrain.editing import tails
from posttrain.editing.edits import Edit, Row, RowMaker
from posttrain.editing.sites import Site, Sites, find_sites, first_of, replaced
from posttrain.editing.tails import Known, PlainTails, Tails, Where, tails_for
from posttrain.editing.targets import kl_row
from tests.editing.lively import EDIT, OTHERS, drawn, lively
from tests.editing.test_sites import OPT, model_of
from tests.pico import FAMILIES, tokenizer

PLACES: tuple[Where, ...] = get_args(Where)


def rows_of(*edits: Edit, forms: Any = ("raw", "chat")) -> list[Row]:
    """Rows as a search reads them: with answers, after a text, and those of the KL."""
    maker = RowMaker(tokenizer(), forms=forms)
    return [row for edit in edits for row in (*maker.rows(edit, ["So it was."]), kl_row(edit, maker))]


def asked_of(rows: Sequence[Row]) -> list[list[int]]:
    return [list(row.asked) or [row.at] for row in rows]


def vectors_for(rows: Sequence[Row], *, scale: float = 0.5) -> Tensor:
    return (drawn(len(rows), 32) * scale).float()


def alone(sites: Sites, site: Site, row: Row, asked: Sequence[int], vector: Tensor, where: Where) -> Tensor:
    """Logits of one row, read whole and by itself, with a vector added at its subject."""
    name = site.name if where == "value" else sites.layers[site.layer]

    def add(_: Any, args: Any, output: Any) -> Any:
        states = first_of(output).clone()
        states.view(len(row.ids), -1)[row.at] += vector.to(states.dtype)
        return replaced(output, states)

    model: Any = sites.model
    handle = model.get_submodule(name).register_forward_hook(add)
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.tensor([row.ids])).logits[0, list(asked)]
    handle.remove()
    return logits


CASES = [
    *((family, where, 0) for family in (*FAMILIES, "opt") for where in PLACES),
    *((family, where, 1) for family in ("llama", "gpt2") for where in PLACES),
]


@pytest.mark.parametrize(("family", "where", "layer"), CASES)
def test_fast_tails_say_what_every_row_says_alone(family: str, where: Where, layer: int) -> None:
    """Rows of unequal lengths, with subjects everywhere from position 0 on; Gemma's within its sliding window."""
    sites = find_sites(model_of("OPT", **OPT) if family == "opt" else lively(family).model)
    rows = rows_of(Edit("I am", "I", "here"), OTHERS[1], EDIT)
    rows = [row for row in rows if family != "gemma3" or len(row.ids) <= 16]
    assert (min(row.at for row in rows), len({len(row.ids) for row in rows}) > 4) == (0, True)
    asked, site, vectors = asked_of(rows), sites.at(layer), vectors_for(rows)
    expected = [alone(sites, site, *one, where) for one in zip(rows, asked, vectors, strict=True)]
    without = alone(sites, site, rows[-1], asked[-1], 0 * vectors[0], where)
    assert float((without - expected[-1]).abs().max()) > 0.1
    last = len(rows) - 1
    for kind in (PlainTails, Tails):
        read = kind(sites, site, rows, asked, where)
        for _ in range(2):  # a second reading is the same
            assert torch.allclose(read.logits(vectors), torch.cat(expected), atol=1e-4)
        few = read.narrowed(torch.tensor([1, 2, 4, last]))
        kept = [1, 2, 4, last]
        assert torch.allclose(few.logits(vectors[kept]), torch.cat([expected[i] for i in kept]), atol=1e-4)
        few = few.narrowed(torch.tensor([1, 3]))  # what is narrowed is narrowed again
        assert torch.allclose(few.logits(vectors[[2, last]]), torch.cat([expected[i] for i in (2, last)]), atol=1e-4)


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_same(family: str, where: Where) -> None:
    sites = find_sites(lively(family).model)
    rows = [row for row in rows_of(EDIT, OTHERS[1], forms=("raw",)) if len(row.ids) <= 16]  # Gemma's sliding window
    slopes = []
    for kind in (PlainTails, Tails):
        vectors = vectors_for(rows).requires_grad_(True)
        logits = kind(sites, sites.at(0), rows, asked_of(rows), where).logits(vectors)
        (slope,) = torch.autograd.grad(logits.log_softmax(-1)[:, 7].sum(), vectors)
        slopes.append(slope)
    assert float(slopes[0].abs().max()) > 0.01
    assert torch.allclose(slopes[0], slopes[1], atol=1e-4)


def test_a_vector_moves_nothing_before_the_subject_and_the_model_is_left_as_it_was() -> None:
    sites = find_sites(lively().model)
    (row,) = RowMaker(tokenizer(), forms=("raw",)).rows(EDIT)
    read = Tails(sites, sites.at(1), [row], [list(row.asked)], "state")
    before = [dict(vars(module)) for module in sites.model.modules()]
    read.logits(vectors_for([row]))
    with pytest.raises(ZeroDivisionError), read._above_edited_layer(read.leaving):
        raise ZeroDivisionError  # an error in the middle, too
    assert [vars(module).keys() for module in sites.model.modules()] == [one.keys() for one in before]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in sites.model.modules())


def told(sites: Sites, rows: Sequence[Row], known: Any) -> tuple[PlainTails, list[str]]:
    lines: list[str] = []
    return tails_for(sites, sites.at(0), rows, asked_of(rows), "value", lines.append, known), lines


def test_a_trial_decides_once_for_each_layer_and_place(monkeypatch: pytest.MonkeyPatch) -> None:
    sites = find_sites(lively().model)
    rows = rows_of(EDIT)
    known: Known = {}
    made, lines = told(sites, rows, known)
    assert (type(made), lines, list(known.values())) == (Tails, [], [True])
    monkeypatch.setattr(tails, "_problem", lambda *_: pytest.fail("it was tried already"))
    assert type(told(sites, rows, known)[0]) is Tails
    monkeypatch.undo()
    (key,) = known
    whole, _ = told(sites, rows, {key: False})  # a result of before
    assert (type(whole), whole.brief) == (Tails, False)
    plain, lines = told(sites, rows, {key: None})
    assert (type(plain), lines) == (PlainTails, [])


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (lambda logits: logits + 0.2 * torch.arange(logits.shape[-1]) / 10, "log-probabilities differ by "),
        (lambda logits: logits * float("nan"), "log-probabilities differ by nan"),
        (lambda logits: logits.reshape(7, -1, 5), "RuntimeError: shape"),
    ],
)
def test_a_model_that_is_read_wrongly_is_read_in_the_plain_way(
    wrong: Any, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = find_sites(lively().model)
    right = Tails.logits
    monkeypatch.setattr(Tails, "logits", lambda self, vectors: wrong(right(self, vectors)))
    made, (line,) = told(sites, rows_of(EDIT), {})
    assert type(made) is PlainTails
    assert line.startswith("target vectors are searched over whole rows: ")
    assert why in line


def test_a_sliding_window_is_tried_anew_where_rows_are_longer() -> None:
    """Gemma's layers of 16 tokens: short rows are read fast, long ones in the plain way."""
    sites = find_sites(lively("gemma3", layers=3).model)
    short = [row for row in rows_of(EDIT, *OTHERS) if len(row.ids) <= 16]
    long = rows_of(EDIT.after("So it was, once upon a time, in the land of the rising sun, and is not so any more."))
    known: Known = {}
    assert type(told(sites, short, known)[0]) is Tails
    made, (line,) = told(sites, long, known)
    assert type(made) is PlainTails
    assert "log-probabilities differ" in line
    asked, vectors = asked_of(long), vectors_for(long)
    expected = [alone(sites, sites.at(0), *one, "value") for one in zip(long, asked, vectors, strict=True)]
    assert torch.allclose(made.logits(vectors), torch.cat(expected), atol=1e-4)
    assert type(told(sites, short, known)[0]) is Tails
    assert len(known) == 2
