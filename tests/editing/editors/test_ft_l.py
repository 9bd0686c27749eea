"""FT-L: FT whose weights stay within epsilon of where each edit has found them."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.editing.editors.test_ft import NAME, trained
from tests.editing.lively import EDIT, OTHERS, bits, editor, lively, near, session


def test_the_editor_is_ft_with_a_clamp_after_each_step(tmp_path: Path) -> None:
    ours, plain = lively(), lively()
    before = bits(ours.model)[NAME["llama"]]
    config = editor("ft_l", forms=("raw", "chat"), steps=5, learning_rate=0.01, epsilon=0.004)
    session(ours, tmp_path).apply([EDIT, OTHERS[0]], config)

    def hold(weight: torch.Tensor, start: torch.Tensor) -> None:
        weight.copy_(torch.minimum(torch.maximum(weight, start - 0.004), start + 0.004))

    trained(plain, NAME["llama"], [EDIT, OTHERS[0]], last=True, steps=5, rate=0.01, hold=hold)
    moved = ours.model.get_parameter(NAME["llama"]).detach() - before
    assert near(moved, plain.model.get_parameter(NAME["llama"]).detach() - before, 1e-4)
    assert 0.004 < float(moved.abs().max()) <= 2 * 0.004 + 1e-6  # each edit has its own cube


def test_one_edit_stays_within_epsilon(tmp_path: Path) -> None:
    loaded = lively("gpt2")
    before = bits(loaded.model)[NAME["gpt2"]]
    session(loaded, tmp_path).apply([EDIT], editor("ft_l", learning_rate=0.1, epsilon=1e-3))
    moved = (loaded.model.get_parameter(NAME["gpt2"]).detach() - before).abs()
    assert float(moved.max()) <= 1e-3 + 1e-7
    assert float(moved.median()) > 0.9e-3
