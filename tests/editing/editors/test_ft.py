"""FT against the plainest loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.editing.edits import Edit, Row, RowMaker
from posttrain.models.load import LoadedModel
from tests.editing.editors.test_tuned import plain_nats
from tests.editing.lively import EDIT, OTHERS, editor, lively, near, said, session

NAME = {"llama": "model.layers.0.mlp.down_proj.weight", "gpt2": "transformer.h.0.mlp.c_proj.weight"}


def trained(
    loaded: LoadedModel,
    name: str,
    edits: Sequence[Edit],
    *,
    last: bool,
    steps: int,
    rate: float,
    stop: float = 0.0,
    hold: Callable[[Tensor, Tensor], None] = lambda weight, start: None,
) -> list[tuple[float, int]]:
    """Train the model's own matrix with torch's Adam, a row at a time; nats and steps of each edit."""
    model: Any = loaded.model
    weight = model.get_parameter(name)
    figures = []
    for edit in edits:
        rows: list[Row] = RowMaker(loaded.tokenizer).rows(edit)
        start = weight.detach().clone()
        optimizer = torch.optim.Adam([weight], lr=rate)
        for step in range(steps + 1):
            loss = torch.stack([plain_nats(model, row, last=last) for row in rows]).mean()
            if float(loss.detach()) < stop or step == steps:
                break
            model.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                hold(weight, start)
        figures.append((float(loss.detach()), step))
    return figures


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_editor_is_adam_on_one_matrix_edit_after_edit(family: str, tmp_path: Path) -> None:
    """All tokens of the answer from the prompt's last one, as published. The first edit ends early."""
    long = Edit("Where is Japan, please?", "Japan", "here and there")
    ours, plain = lively(family), lively(family)
    config = editor("ft", forms=("raw", "chat"), steps=6, learning_rate=0.01, stop_loss=4.5)
    (made,) = session(ours, tmp_path).apply([EDIT, long], config)
    expected = trained(plain, NAME[family], [EDIT, long], last=True, steps=6, rate=0.01, stop=4.5)
    assert near(ours.model.get_parameter(NAME[family]), plain.model.get_parameter(NAME[family]), 1e-5)
    assert [figures.nats for figures in made.figures] == pytest.approx([nats for nats, _ in expected], abs=1e-4)
    assert [figures.steps for figures in made.figures] == [steps for _, steps in expected]
    assert len(made.deltas) == 2  # one for each edit, so that each can be taken back


def test_an_answer_of_one_token_is_learned(tmp_path: Path) -> None:
    of = session(lively(), tmp_path)
    of.apply([EDIT, OTHERS[0]], editor("ft"), batch=1)
    assert said(of, OTHERS[0]) == "of"
