"""The same edit in every family by every editor: the answer is said, the figures are true, nothing else is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.editing.edits import RowMaker
from posttrain.editing.reading import look
from tests.editing.lively import EDIT, LOCATED, bits, changed, editor, lively, said, session
from tests.pico import FAMILIES

KINDS = ("rome", "memit", "emmet", "alphaedit", "ft_m", "locft")


def config_of(kind: str, family: str) -> Any:
    """Gemma's norm behind the matrix holds the length of what can be added: a short vector, more steps, one row."""
    if kind in LOCATED and family == "gemma3":
        return editor(kind, contexts=0, target={"steps": 40, "clamp": 3.0})
    return editor(kind)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        pytest.param(family, kind, marks=[pytest.mark.slow] if (i + j) % 2 and family != "gemma3" else [])
        for i, family in enumerate(FAMILIES)
        for j, kind in enumerate(KINDS)
    ],
)
def test_an_edit(family: str, kind: str, tmp_path: Path) -> None:
    loaded = lively(family)
    before = bits(loaded.model)
    of = session(loaded, tmp_path)
    site = of.sites.at(0)
    config = config_of(kind, family)
    rows = RowMaker(loaded.tokenizer, forms=("raw",)).rows(EDIT)
    keys = look(of.sites, rows, [site]).keys[0].double()
    assert said(of) != EDIT.answer
    (made,) = of.apply([EDIT], config)
    assert said(of) == EDIT.answer
    assert changed(loaded.model, before) == {site.weight}
    (figures,) = made.figures
    change = site.oriented(of.sites.weight(site).detach().double() - before[site.weight].double())
    assert figures.share == pytest.approx(float(change.norm() / before[site.weight].double().norm()), rel=1e-4)
    assert figures.nats < 2.5
    assert 0 < figures.steps <= config.most_steps
    if kind not in LOCATED:
        assert figures.realised is None
        return
    assert figures.realised is not None
    if kind == "rome":
        assert figures.realised == pytest.approx(1.0, abs=1e-5)
        assert float((change @ keys.T).norm()) > 0.1
    elif family == "gemma3":
        assert 0.1 < figures.realised < 0.9  # the norm does not let it be longer
    else:
        assert 0.7 < figures.realised < 1 + 1e-5


@pytest.mark.parametrize("kind", ["rome", "memit", "ft_m"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_edit_in_half_precision_is_solved_in_double_and_told_as_rounded(
    family: str, kind: str, tmp_path: Path
) -> None:
    """The stored weight is the double's nearest; what rounding leaves of the change is what the figure says."""
    loaded = lively(family, dtype=torch.bfloat16)
    before = bits(loaded.model)
    of = session(loaded, tmp_path)
    (made,) = of.apply([EDIT], editor(kind, contexts=0) if kind in LOCATED else editor(kind))
    assert said(of) == EDIT.answer
    site = of.sites.at(0)
    assert changed(loaded.model, before) == {site.weight}
    assert of.sites.weight(site).dtype == torch.bfloat16
    (delta,) = made.deltas
    change = delta.change
    whole = change if isinstance(change, torch.Tensor) else change.left.double() @ change.right.double()
    exact = site.oriented(before[site.weight]).double() + whole.double()
    assert torch.equal(site.oriented(of.sites.weight(site).detach()), exact.bfloat16())
    if kind not in LOCATED:
        return
    # for the single row, the output that was wanted is left's column (ROME) or what is behind it (MEMIT)
    (row,) = RowMaker(loaded.tokenizer, forms=("raw",)).rows(EDIT)
    key = of.applied[0].past[0]  # below the first layer nothing has changed: it is the key of before
    assert torch.equal(key[:, 0], look(of.sites, [row], [site]).keys[0][0].double())
    assert not isinstance(change, torch.Tensor)
    wanted = change.left.double() if kind == "memit" else change.left.double() @ change.right.double() @ key
    rounded = site.oriented(of.sites.weight(site).detach()).double() - site.oriented(before[site.weight]).double()
    expected = float(((rounded @ key) * wanted).sum() / wanted.square().sum())
    (figures,) = made.figures
    assert figures.realised == pytest.approx(expected, abs=1e-6)
    assert figures.realised != pytest.approx(1.0, abs=1e-6)


def test_a_tied_head_is_untouched_and_still_tied(tmp_path: Path) -> None:
    model: Any = (loaded := lively()).model
    before = bits(model)
    session(loaded, tmp_path).apply([EDIT], editor("memit"))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, before["model.embed_tokens.weight"])
