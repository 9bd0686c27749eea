"""MEMIT's normal equation, and the editor against the loop written out with dense solves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from posttrain.editing.editors.memit import MemitConfig, auto_band, ridge_update
from posttrain.editing.edits import RowMaker
from posttrain.editing.reading import look
from posttrain.editing.session import EditSession
from posttrain.editing.solve import Ridge, shrunk
from posttrain.editing.targets import Search, search
from tests.editing.lively import EDIT, OTHERS, bits, drawn, editor, lively, moment, near, said, session

WIDTH, OUT, EDITS = 24, 10, 5


def whole(change: tuple[Tensor, Tensor]) -> Tensor:
    return change[0] @ change[1]


def test_the_normal_equation_holds() -> None:
    """dW (l C + Kp Kp^T + K K^T) = R K^T, with the earlier keys pending."""
    c, keys, wanted = moment(WIDTH), drawn(WIDTH, EDITS, seed=2), drawn(OUT, EDITS, seed=3)
    past = drawn(WIDTH, 7, seed=4)
    ridge = Ridge(3.0 * c)
    ridge.add(past)
    change, through, condition = ridge_update(ridge, keys, wanted)
    system = 3.0 * c + past @ past.T + keys @ keys.T
    assert near(whole(change) @ system, wanted @ keys.T, 1e-9)
    assert near(whole(change), torch.linalg.solve(system, (wanted @ keys.T).T).T, 1e-7)
    assert change.left.shape == (OUT, EDITS)
    assert near((3.0 * c + past @ past.T) @ through, keys, 1e-8)
    inner = torch.eye(EDITS).double() + keys.T @ through
    assert condition == pytest.approx(float(torch.linalg.cond(inner)), rel=1e-6)


@pytest.mark.parametrize("most", [128, 2])
def test_one_by_one_with_the_earlier_keys_is_all_at_once(most: int) -> None:
    """Each edit asks for what its value still lacks; in the end both solve the same normal equation."""
    c, keys, wanted = moment(WIDTH), drawn(WIDTH, EDITS, seed=2), drawn(OUT, EDITS, seed=3)
    together = whole(ridge_update(Ridge(c), keys, wanted)[0])
    ridge, so_far = Ridge(c, most=most), torch.zeros(OUT, WIDTH, dtype=torch.float64)
    for i in range(EDITS):
        key, lacks = keys[:, i : i + 1], wanted[:, i : i + 1] - so_far @ keys[:, i : i + 1]
        so_far = so_far + whole(ridge_update(ridge, key, lacks)[0])
        ridge.add(key)
    assert near(so_far, together, 1e-7)
    assert near(so_far @ (c + keys @ keys.T), wanted @ keys.T, 1e-8)


def test_a_larger_weight_writes_less_and_moves_other_outputs_less() -> None:
    c, keys, wanted = moment(WIDTH), drawn(WIDTH, EDITS, seed=2), drawn(OUT, EDITS, seed=3)
    changes = [whole(ridge_update(Ridge(scale * c), keys, wanted)[0]) for scale in (1e-3, 1.0, 1e3, 1e9)]
    written = [float((change @ keys - wanted).norm() / wanted.norm()) for change in changes]
    moved = [float((change @ c @ change.T).trace()) for change in changes]
    assert written == sorted(written)
    assert written[0] < 0.01 < 0.9 < written[-1]
    assert moved == sorted(moved, reverse=True)


def test_the_published_layers() -> None:
    assert auto_band(32) == (4, 5, 6, 7, 8)
    assert auto_band(28) == (3, 4, 5, 6, 7)
    assert [auto_band(count) for count in (1, 2, 6, 12)] == [(0,), (0,), (1, 2), (1, 2, 3)]
    assert MemitConfig().layers_of(32) == (4, 5, 6, 7, 8)
    assert MemitConfig(layers=(9,)).layers_of(32) == (9,)


# ---- the editor ------------------------------------------------------------------------------------------------------

ALL = (EDIT, *OTHERS)


def by_hand(of: EditSession, before: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    """The weights (D, d) of layers 0 and 1 after the edits, with dense solves. The session has not edited anything.

    Each layer takes an equal share of what the state of the last one still lacks, and keys are read again in between.
    """
    model, places = of.sites.model, [of.sites.at(0), of.sites.at(1)]
    maker = RowMaker(of.loaded.tokenizer, forms=("raw", "chat"))
    rows = [maker.rows(edit, of.before("zh" if edit.subject == "臺灣" else "en", 1), bare=0.5) for edit in ALL]
    config = editor("memit").target
    task = Search(of.sites, maker, lambda line: None, {})
    deltas = search(task, ALL, rows, places[-1], "state", config).deltas.T
    start: Tensor | None = None
    made = {}
    for number, site in enumerate(places):
        seen = [look(of.sites, own, places) for own in rows]
        shares = [torch.tensor([[row.weight] for row in own], dtype=torch.float64) for own in rows]
        keys = torch.stack([(s.keys[site.layer] * w).sum(0) for s, w in zip(seen, shares, strict=True)], dim=1)
        states = torch.stack([(s.states[1] * w).sum(0) for s, w in zip(seen, shares, strict=True)], dim=1)
        start = states if start is None else start
        wanted = (deltas - (states - start)) / (2 - number)
        stored = of.moments([site])[site.layer]
        system = factor * site.inputs * shrunk(stored.matrix, stored.tokens)[0] + keys @ keys.T
        change = torch.linalg.solve(system, (wanted @ keys.T).T).T
        with torch.no_grad():
            of.sites.weight(site).add_(change.T if site.transposed else change)
        made[site.weight] = of.sites.weight(site).detach().clone()
    for name, was in before.items():
        model.get_parameter(name).data.copy_(was)
    return made


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_editor_spreads_over_layers_as_written_out(family: str, tmp_path: Path) -> None:
    loaded = lively(family, layers=3, dtype=torch.float64)
    before = bits(loaded.model)
    of = session(loaded, tmp_path)
    expected = by_hand(of, before, 0.02)
    (made,) = of.apply(ALL, editor("memit", forms=("raw", "chat"), layers=(1, 0), weight=0.02))
    assert [delta.weight for delta in made.deltas] == list(expected)
    for name, weight in expected.items():
        assert not near(before[name], weight, 1e-3)
        assert near(of.sites.model.get_parameter(name) - before[name], weight - before[name], 1e-5)
    for figures in made.figures:
        assert figures.condition is not None
        assert figures.condition > 1
        assert 0.3 < (figures.realised or 0) < 1.05


def test_earlier_keys_are_spared(tmp_path: Path) -> None:
    """Two sessions of one edit after another, with the earlier keys and as published: what was said stays said."""
    moved = {}
    for past in (True, False):
        of = session(lively(), tmp_path)
        config = editor("memit", weight=0.001, past_keys=past)
        of.apply(ALL[:3], config, batch=1)
        keys = torch.cat([one.past[0] for one in of.applied], dim=1)
        assert keys.shape == (64, 3)
        last = of.applied[-1].deltas[0].change
        assert not isinstance(last, Tensor)
        moved[past] = float((last.left.double() @ last.right.double() @ keys[:, :2]).norm())
    assert moved[True] < 0.5 * moved[False]


def test_a_moment_of_few_keys_is_said_to_be_drawn_to_the_identity(tmp_path: Path) -> None:
    lines: list[str] = []
    of = session(lively(), tmp_path, measured=lambda: [[5, 6, 7], [8, 9]], say=lines.append)
    of.apply([EDIT], editor("memit"))
    assert any(line.startswith("layer 0: 3 keys say little of 64 directions; their second moment is") for line in lines)
    assert said(of) == "title"


def test_the_factor_is_made_once_and_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = session(lively(), tmp_path)
    made: list[int] = []
    factor = Ridge._factor

    def counted(self: Ridge) -> None:
        made.append(1)
        factor(self)

    monkeypatch.setattr(Ridge, "_factor", counted)
    of.apply(ALL[:3], editor("memit"), batch=1)
    assert len(made) == 1
    of.apply([EDIT], editor("memit", weight=0.5))  # another system
    assert len(made) == 2
