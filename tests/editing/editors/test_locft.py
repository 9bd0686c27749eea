"""LocFT: all edits together, in shuffled epochs of mini-batches."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.editing.editors.locft import LocftConfig
from posttrain.editing.edits import RowMaker
from posttrain.errors import PosttrainError
from tests.editing.editors.test_ft import NAME
from tests.editing.editors.test_ft_m import LONG
from tests.editing.editors.test_tuned import plain_nats
from tests.editing.lively import EDIT, OTHERS, bits, changed, editor, lively, near, said, session

ALL = (EDIT, *OTHERS, LONG)


@pytest.mark.parametrize("rows", [100, 3])
def test_the_editor_is_adam_in_shuffled_epochs(rows: int, tmp_path: Path) -> None:
    """Ten rows in mini-batches of three, the last one of a single row; one that is learned is passed over."""
    ours, plain = lively(), lively()
    config = editor("locft", forms=("raw", "chat"), steps=4, rows=rows, stop_loss=4.5, seed=7)
    (made,) = session(ours, tmp_path).apply(ALL, config)
    model: Any = plain.model
    weight = model.get_parameter(NAME["llama"])
    maker = RowMaker(plain.tokenizer)
    laid = [(e, row) for e, edit in enumerate(ALL) for row in maker.rows(edit)]
    optimizer = torch.optim.Adam([weight], lr=0.02)
    draw, nats, passed, epochs = random.Random("locft 7"), [99.0] * len(laid), 0, 0
    for epochs in range(1, 5):
        order = draw.sample(range(len(laid)), len(laid))
        for batch in (order[i : i + rows] for i in range(0, len(order), rows)):
            losses = torch.stack([plain_nats(model, laid[i][1], last=False) for i in batch])
            for i, one in zip(batch, losses.tolist(), strict=True):
                nats[i] = one
            if float(losses.mean().detach()) < 4.5:
                passed += 1
                continue
            model.zero_grad()
            losses.mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if sum(nats) / len(nats) < 4.5:
            break
    assert passed or rows == 100
    assert near(ours.model.get_parameter(NAME["llama"]), weight, 1e-5)
    own = [[n for n, (e, _) in zip(nats, laid, strict=True) if e == i] for i in range(len(ALL))]
    assert [figures.nats for figures in made.figures] == pytest.approx([sum(one) / len(one) for one in own], abs=1e-4)
    assert {figures.steps for figures in made.figures} == {epochs}


def test_all_edits_are_learned_together_and_taken_back_together(tmp_path: Path) -> None:
    loaded = lively()
    before = bits(loaded.model)
    of = session(loaded, tmp_path)
    (made,) = of.apply(ALL[:4], editor("locft", steps=60, stop_loss=0.9))
    assert [said(of, edit) for edit in ALL[:4]] == [edit.answer for edit in ALL[:4]]
    assert made.figures[0].steps < 60
    assert (len(made.deltas), made.deltas[0].owners) == (1, (0, 1, 2, 3))
    after = bits(loaded.model)
    with pytest.raises(PosttrainError, match="undo: edits 0 to 3 were trained together by locft; take them all back"):
        of.undo(1)
    assert not changed(loaded.model, after)
    assert len(of.applied) == 1
    of.undo(0, 1, 2, 3)
    assert not changed(loaded.model, before)


def test_the_layer_is_at_two_thirds_of_the_depth() -> None:
    assert [LocftConfig().layers_of(count) for count in (1, 2, 6, 32)] == [(0,), (1,), (4,), (22,)]
    assert LocftConfig().most_steps == 100
