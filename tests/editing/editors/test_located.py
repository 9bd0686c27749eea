"""The common course of locate-then-edit methods: norms behind matrices, factors, the norm anchor, what is asked first."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config.load import check
from posttrain.editing.editors._located import _after_norm, _before_norm
from posttrain.editing.sites import find_sites
from posttrain.errors import ConfigError
from posttrain.models.load import LoadedModel
from tests.editing.lively import EDIT, LOCATED, OTHERS, bits, changed, drawn, editor, lively, said, session
from tests.editing.test_sites import LLAMA, model_of
from tests.pico import tokenizer

ALL = (EDIT, *OTHERS)


@pytest.mark.parametrize("name", ["Gemma2", "Olmo2", "Glm4"])
def test_what_a_norm_makes_of_a_change_is_turned_round(name: str) -> None:
    """The layer's output gains a multiple of what is wanted on top of what was there: the norm sets the length."""
    model = model_of(name, **LLAMA, **({} if name == "Olmo2" else {"head_dim": 8})).double()
    for parameter in model.parameters():
        parameter.data += 0.1 * drawn(*parameter.shape)  # norms have weights of their own
    sites = find_sites(model)
    site = sites.at(0)
    assert site.norm
    norm: Any = model.get_submodule(site.norm)
    values, wanted = drawn(32, 4, seed=5), 0.3 * drawn(32, 4, seed=6)
    with torch.no_grad():
        before = norm(values.T).T
        after = norm((values + _before_norm(sites, site, values, wanted)).T).T
    goal = before + wanted
    assert torch.allclose(after / after.norm(dim=0), goal / goal.norm(dim=0), atol=1e-4)
    gained = _after_norm(sites, site, values, _before_norm(sites, site, values, wanted))
    assert torch.allclose(gained, after - before, atol=1e-9)
    shorter = _before_norm(sites, site, values, 0 * wanted)
    assert float(shorter.abs().max()) < 1e-4  # nothing wanted, nothing done


def test_a_factor_of_the_layer_is_divided_out(tmp_path: Path) -> None:
    """Granite adds 0.22 times the feed-forward part's output: the matrix must write 1 / 0.22 times as much."""
    model = model_of("Granite", **LLAMA, residual_multiplier=0.22)
    sites = find_sites(model)
    wanted = drawn(32, 2)
    made = _before_norm(sites, sites.at(0), drawn(32, 2, seed=2), wanted)
    assert torch.allclose(made * 0.22, wanted, rtol=1e-5)
    assert torch.allclose(_after_norm(sites, sites.at(0), drawn(32, 2), made), wanted, rtol=1e-6)
    of = session(LoadedModel(model, tokenizer(), "granite"), tmp_path)
    (made_of,) = of.apply([EDIT], editor("emmet", target={"steps": 40, "clamp": 10.0}))
    assert made_of.figures[0].realised == pytest.approx(1.0, abs=1e-5)
    assert said(of) == EDIT.answer


def test_flattened_tokens_and_shared_experts_are_edited(tmp_path: Path) -> None:
    from tests.editing.test_sites import EXPERTS, GLM4_MOE, OPT

    for name, settings, layer in (("OPT", OPT, 0), ("Glm4Moe", {**EXPERTS, **GLM4_MOE}, 1)):
        model = model_of(name, **settings)
        before = bits(model)
        of = session(LoadedModel(model, tokenizer(), name), tmp_path)
        (made,) = of.apply([EDIT], editor("rome", layers=(layer,), target={"steps": 40, "clamp": 20.0}))
        assert changed(model, before) == {of.sites.at(layer).weight}
        assert made.figures[0].realised == pytest.approx(1.0, abs=1e-4)
        assert said(of) == EDIT.answer


@pytest.mark.parametrize("kind", LOCATED)
def test_a_layer_that_does_not_exist_is_named_before_anything_is_done(kind: str, tmp_path: Path) -> None:
    loaded = lively()
    before = bits(loaded.model)

    def never() -> Any:
        raise AssertionError("nothing is measured for it")

    of = session(loaded, tmp_path, measured=never)
    with pytest.raises(ConfigError, match=f"editor {kind}: layers: there is no layer 7: LlamaForCausalLM has layers 0"):
        of.apply([EDIT], editor(kind, layers=(0, 7)))
    assert not changed(loaded.model, before)


def test_layers_count_from_the_end_and_are_written_in_their_order(tmp_path: Path) -> None:
    of = session(lively(layers=3), tmp_path)
    (made,) = of.apply([EDIT], editor("memit", layers=(-2, 0)))
    assert [delta.weight for delta in made.deltas] == [f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)]


@pytest.mark.parametrize("kind", ["memit", "ft"])
def test_a_layer_that_is_named_twice_is_refused(kind: str, tmp_path: Path) -> None:
    of = session(lively(layers=3), tmp_path)
    before = bits(of.loaded.model)
    with pytest.raises(ConfigError, match=f"editor {kind}: layers: 1 and -2 are the same layer of 3; name each layer"):
        of.apply([EDIT], editor(kind, layers=(1, -2)))
    assert not changed(of.loaded.model, before)
    for wrong, cause in (
        ([1, 1], "layer 1 is named twice"),
        ([-1, 0, -1], "layer -1 is named twice"),
        ([True], "whole numbers are expected, not true or false"),
        ([0, False], "whole numbers are expected, not true or false"),
    ):
        with pytest.raises(ConfigError, match=f"^x: layers: {cause}$"):
            check({"kind": kind, "layers": wrong}, type(editor(kind)), "x")


@pytest.mark.parametrize("kind", LOCATED)
def test_texts_before_a_prompt_are_a_hundred_at_most(kind: str) -> None:
    assert check({"kind": kind, "contexts": 100}, type(editor(kind)), "x").contexts == 100
    with pytest.raises(ConfigError, match="x: contexts: input should be less than or equal to 100, got 1000"):
        check({"kind": kind, "contexts": 1000}, type(editor(kind)), "x")


def test_the_norm_anchor_gives_every_vector_one_length(tmp_path: Path) -> None:
    """v* = v + delta is drawn to the mean length of such vectors in the untouched model."""
    lines: list[str] = []
    loaded = lively()
    of = session(loaded, tmp_path, say=lines.append)
    site = of.sites.at(0)
    config = editor("rome", contexts=0, norm_anchor=True, target={"steps": 8, "clamp": 4.0})
    plain = session(lively(), tmp_path)
    plain.apply(ALL, editor("rome", contexts=0, target={"steps": 8, "clamp": 4.0}), batch=1)
    lengths = []
    for one in plain.applied:  # v of the untouched model and delta, which is written exactly
        fresh = session(lively(), tmp_path)
        fresh.apply(one.edits, one.editor)
        key = fresh.applied[0].past[0]
        weight: Any = fresh.sites.weight(site).detach().double()
        lengths.append(float((weight @ key).norm()))
    mean = sum(sorted(lengths)[:4]) / 4
    (made,) = of.apply(ALL, config)
    assert any(
        line.startswith(f"norm anchor: target vectors of 4 edits have a mean length of {mean:.3g}") for line in lines
    )
    assert all(not figures.skipped for figures in made.figures)
    last = of.applied[0].past[0][:, -1:]
    written = of.sites.weight(site).detach().double() @ last
    assert float(written.norm()) == pytest.approx(mean, rel=1e-3)


def test_a_vector_of_twice_the_anchors_length_is_left_out_and_told(tmp_path: Path) -> None:
    loaded = lively()
    of = session(loaded, tmp_path)
    short = editor("rome", contexts=0, norm_anchor=True, target={"steps": 2, "learning_rate": 1e-4})
    long = editor("rome", contexts=0, norm_anchor=True, target={"steps": 15, "learning_rate": 1.0, "clamp": 20.0})
    of.apply([OTHERS[0]], short)
    now = bits(loaded.model)
    (made,) = of.apply([EDIT], long)
    assert made.figures[0].skipped == "its target vector is more than twice as long as the anchor"
    assert not changed(loaded.model, now)
    assert made.figures[0].share == 0


def test_the_same_edits_of_the_same_model_give_the_same_bits(tmp_path: Path) -> None:
    made: list[Any] = []
    for _ in range(2):
        loaded = copy.deepcopy(lively())
        session(loaded, tmp_path / str(len(made))).apply(ALL, editor("memit", forms=("raw", "chat")), batch=2)
        made.append(bits(loaded.model))
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
