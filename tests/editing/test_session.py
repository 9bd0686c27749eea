"""Sessions: apply, measure harm, refuse, take back; every bit is where it was."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.config.base import Config
from posttrain.data.records import Message
from posttrain.editing.contexts import ENDS, write_contexts
from posttrain.editing.editors import memit as memit_editor
from posttrain.editing.edits import Edit
from posttrain.editing.preview import preview
from posttrain.editing.session import (
    HARM_NATS,
    EditSession,
    Refused,
    own_texts,
)
from posttrain.errors import ConfigError, Interrupted, PosttrainError
from posttrain.models.edit_delta import LowRank, added
from posttrain.models.load import LoadedModel, load_model
from tests.editing.lively import EDIT, OTHERS, bits, changed, editor, lively, near, said, session
from tests.editing.test_sites import EXPERTS, model_of
from tests.pico import tokenizer
from tests.talker import talker

ALL = (EDIT, *OTHERS)
QUICK = {"contexts": 0, "target": {"steps": 3, "clamp": 4.0}}
DOWN = "model.layers.{}.mlp.down_proj.weight"


def many(count: int, start: int = 0) -> list[Edit]:
    """Edits of so many subjects."""
    return [
        Edit(f"The capital of Land {i}", f"Land {i}", "title" if i % 2 else "is", location=f"many.yaml:{i + 2}")
        for i in range(start, start + count)
    ]


def same(model: Any, weights: dict[str, Tensor]) -> bool:
    return not changed(model, weights)


# ---- the way back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_undo_after_a_hundred_mixed_edits_restores_every_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    loaded = lively(layers=3, dtype=dtype)
    before = bits(loaded.model)
    of = session(loaded, tmp_path)
    of.apply(many(40), editor("memit", layers=(0, 1), **QUICK), force=True)
    of.apply(many(20, 40), editor("rome", layers=(1,), **QUICK), batch=10, force=True)
    of.apply(many(15, 60), editor("emmet", layers=(0, 2), **QUICK), batch=8, force=True)
    of.apply(many(10, 75), editor("alphaedit", **QUICK), batch=5, force=True)
    of.apply(many(5, 85), editor("ft_m", layers=(2,), steps=1), batch=1, force=True)
    of.apply(many(5, 90), editor("ft_l", steps=1), force=True)
    of.apply(many(5, 95), editor("locft", layers=(1,), steps=1), force=True)
    assert [n for one in of.applied for n in one.numbers] == list(range(100))
    assert changed(loaded.model, before) == {DOWN.format(layer) for layer in range(3)}
    assert dtype != torch.float32 or said(of, many(1, 99)[0]) == "title"
    of.undo()
    assert of.applied == []
    assert same(loaded.model, before)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {dtype}


def rebuilt(before: dict[str, Tensor], of: EditSession) -> dict[str, Tensor]:
    """The untouched weights and the session's deltas in order."""
    made = dict(before)
    for one in of.applied:
        for delta in one.deltas:
            change = delta.change
            whole = change.double() if isinstance(change, Tensor) else change.left.double() @ change.right.double()
            exact = made[delta.weight].double() + (whole.T if delta.transposed else whole)
            made[delta.weight] = exact.to(made[delta.weight].dtype)
    return made


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_undo_of_one_edit_leaves_the_untouched_weights_and_the_other_deltas_in_order(
    family: str, tmp_path: Path
) -> None:
    loaded = lively(family)
    before = bits(loaded.model)
    of = session(loaded, tmp_path)
    of.apply(many(4), editor("memit", **QUICK))
    of.apply(many(2, 4), editor("rome", **QUICK), batch=1)
    of.apply(many(3, 6), editor("ft_m", steps=2))
    assert same(loaded.model, rebuilt(before, of))
    kept = of.applied[0].deltas[0].change
    assert not isinstance(kept, Tensor)
    for number, left in ((1, 8), (4, 7), (7, 6)):
        of.undo(number)
        assert sum(len(one.numbers) for one in of.applied) == left
        assert same(loaded.model, rebuilt(before, of))
    first = of.applied[0]
    assert (first.numbers, first.deltas[0].owners) == ((0, 2, 3), (0, 2, 3))
    assert [edit.subject for edit in first.edits] == ["Land 0", "Land 2", "Land 3"]
    change = first.deltas[0].change
    assert not isinstance(change, Tensor)
    assert torch.equal(change.right, kept.right[[0, 2, 3]])
    assert first.past[0].shape[1] == len(first.figures) == 3
    assert [one.numbers for one in of.applied] == [(0, 2, 3), (5,), (6, 8)]
    assert len(of.applied[-1].deltas) == 2  # what was trained for edit 7 alone is gone
    of.undo(0, 2, 3, 5, 6, 8)
    assert same(loaded.model, before)


def test_undoing_what_is_not_there(tmp_path: Path) -> None:
    of = session(lively(), tmp_path)
    with pytest.raises(PosttrainError, match="undo: there is no edit 0; edits here: none"):
        of.undo(0)
    of.undo()  # nothing to take back
    of.apply(many(2), editor("memit", **QUICK))
    now = bits(of.loaded.model)
    with pytest.raises(PosttrainError, match="undo: there is no edit 5; edits here: 0 to 1"):
        of.undo(0, 5)
    assert same(of.loaded.model, now)
    assert of.applied[0].numbers == (0, 1)


def test_after_undo_an_edit_is_written_as_if_the_other_had_never_been(tmp_path: Path) -> None:
    """Neither the earlier keys nor a factored matrix with them stays behind."""
    config = editor("memit", weight=0.001, norm_anchor=True)
    once = session(lively(), tmp_path)
    once.apply([OTHERS[0]], config)
    of = session(lively(), tmp_path)
    of.apply([EDIT], config)
    of.apply([OTHERS[1]], editor("ft_m"))
    of.undo()
    of.apply([OTHERS[0]], config)
    assert same(of.loaded.model, bits(once.loaded.model))
    assert of.applied[0].numbers == (2,)  # a number is given once


# ---- what an editor needs of the untouched model ---------------------------------------------------------------------


def test_moments_texts_and_forms_are_those_of_the_untouched_model(tmp_path: Path) -> None:
    fresh, of = (session(lively(), tmp_path / name) for name in ("a", "b"))
    of.apply(ALL, editor("ft_m", steps=8, learning_rate=0.05), force=True)
    now = bits(of.loaded.model)
    places = [of.sites.at(0), of.sites.at(1)]
    expected, found = fresh.moments(places), of.moments(places)
    assert all(torch.equal(found[layer].matrix, expected[layer].matrix) for layer in (0, 1))
    assert of.before("en", 3) == fresh.before("en", 3)
    assert of.forms == fresh.forms
    assert of.fingerprint == fresh.fingerprint
    assert of._untouched_loss() == fresh._loss_now()
    assert same(of.loaded.model, now)  # the edits are there again


def test_the_anchor_is_measured_on_the_untouched_model_and_stays(tmp_path: Path) -> None:
    config = editor("rome", norm_anchor=True, **QUICK)
    fresh, of = session(lively(), tmp_path), session(lively(), tmp_path)
    fresh.apply(ALL, config)
    of.apply(ALL, editor("ft_m", learning_rate=0.05), force=True)
    of.apply(ALL, config, force=True)
    assert of.anchors == fresh.anchors == {"rome 0": pytest.approx(fresh.anchors["rome 0"])}
    of.undo(0)
    assert of.anchors == fresh.anchors
    of.undo()
    assert of.anchors == {}


def test_moments_are_measured_once_for_all_sessions(tmp_path: Path) -> None:
    asked: list[int] = []

    def measured() -> list[list[int]]:
        asked.append(1)
        return [[5, 6, 7, 8, 9] * 8] * 20

    of = session(lively(), tmp_path, measured=measured)
    of.apply(ALL[:2], editor("memit", **QUICK), batch=1)
    of.apply([EDIT], editor("emmet", **QUICK), force=True)
    assert len(asked) == 1
    session(lively(), tmp_path, measured=measured).apply([EDIT], editor("rome", **QUICK))
    assert len(asked) == 1  # from the cache
    session(of.loaded, tmp_path, measured=measured).apply([EDIT], editor("rome", **QUICK), force=True)
    assert len(asked) == 2  # a session of the edited model: other weights, other moments


def test_texts_before_prompts_are_the_models_own(tmp_path: Path) -> None:
    of = session(load_model(str(talker()), device="cpu"), tmp_path)
    for language, mark in ENDS.items():
        texts = of.before(language, 7)
        assert len(texts) == 7
        assert all(text.endswith(mark) and "\n" not in text and "<|" not in text for text in texts)
        assert texts == write_contexts(of.respondent, language, 7, 0)
        assert texts[:5] != texts[5:]  # the second turn has another seed
    assert of.before("en", 0) == []
    assert all(text.startswith(("The", "Therefore", "Because", "I", "You")) for text in of.before("en", 7))
    assert of.before("en", 5, 3) == write_contexts(of.respondent, "en", 5, 3) != of.before("en", 5)


def test_the_seed_of_an_editor_is_heard(tmp_path: Path) -> None:
    made = []
    for seed in (0, 0, 1):
        of = session(lively(), tmp_path)
        of.apply([EDIT], editor("rome", seed=seed))
        made.append(bits(of.loaded.model)[DOWN.format(0)])
    assert torch.equal(made[0], made[1])
    assert not near(made[2], made[0], 1e-4)


def test_texts_for_moments_are_the_models_own_answers_without_the_exams_prompts(tmp_path: Path) -> None:
    of = EditSession(load_model(str(talker()), device="cpu"), say=lambda line: None, cache=tmp_path)
    prompt = of._prompts(1)[0]
    rows = of.texts()
    texts = {of.loaded.tokenizer.decode(row) for row in rows}
    assert len(rows) > 100
    assert any(prompt in text for text in texts)
    barred = own_texts(of.respondent, seed=0, forbidden=frozenset({prompt}), say=lambda line: None, cache=tmp_path)
    assert not any(f"<|user|>{prompt}<|end|>" in of.loaded.tokenizer.decode(row) for row in barred)


@pytest.mark.parametrize(
    ("template", "loss", "expected"),
    [(None, 0.0, ("raw",)), ("own", 0.1, ("raw", "chat")), ("own", 2.0, ("chat",))],
)
def test_forms_are_chosen_by_what_raw_prompts_cost(
    template: str | None, loss: float, expected: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    loaded = lively()
    if template is None:
        loaded = loaded._replace(tokenizer=tokenizer(None))
    of = session(loaded, tmp_path, say=lines.append)
    monkeypatch.setattr(of, "_raw_loss", lambda: loss)
    assert of.forms == expected
    assert any("edits are made in the chat template alone" in line for line in lines) == (expected == ("chat",))
    made = of.context(editor("rome", forms="auto"), [EDIT], lambda *_: None)
    assert made.maker.forms == expected
    asked = of.context(editor("rome", forms=("raw",)), [EDIT], lambda *_: None)
    assert asked.maker.forms == ("raw",)


def test_a_model_that_speaks_in_chats_alone_loses_much_after_raw_prompts(tmp_path: Path) -> None:
    of = session(load_model(str(talker()), device="cpu"), tmp_path)
    assert of._raw_loss() > 1.5
    assert of.forms == ("chat",)


# ---- harm ------------------------------------------------------------------------------------------------------------


def test_harm_is_the_mean_loss_of_packaged_prompts(tmp_path: Path) -> None:
    of = session(lively(), tmp_path)
    model: Any = of.loaded.model
    rows = [of.loaded.tokenizer.encode(prompt) for prompt in of._prompts(32)]
    nats, tokens = 0.0, 0
    with torch.no_grad():
        for row in rows:
            logps = model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
            nats -= float(logps[:-1].gather(1, torch.tensor(row)[1:, None]).double().sum())
            tokens += len(row) - 1
    assert len(rows) == 32
    (made,) = of.apply([EDIT], editor("rome", **QUICK))
    assert made.harm.untouched == made.harm.before == pytest.approx(nats / tokens, rel=1e-5)
    (then,) = of.apply([OTHERS[0]], editor("rome", **QUICK))
    assert then.harm == (made.harm.untouched, made.harm.after, of._measured())


def test_an_edit_that_would_break_the_model_is_refused_with_figures_and_taken_back(tmp_path: Path) -> None:
    """Pocket, since a random model knows nothing that could be broken."""
    untouched = load_model("pocket:chat", device="cpu")
    loaded = copy.deepcopy(untouched)
    lines: list[str] = []
    of = session(loaded, tmp_path, say=lines.append)
    gentle = editor("memit", layers=(1,), **QUICK)
    of.apply([OTHERS[0]], gentle)
    before, past = bits(loaded.model), of.applied[0].past[1]
    hard = {"steps": 3, "learning_rate": 50.0, "clamp": 1e3}
    breaking = editor("emmet", layers=(0, 1), contexts=0, target=hard)
    told = (
        r"^changes/france.yaml:2: the edit would break the model: the loss on other texts rises from \d+\.\d\d to "
        r"\d+\.\d\d nats per token, its change is [\d.e+]+ of the weights' norm, key alignment [\d.]+, condition 1; "
        "edit another layer, smaller batches or with another editor; --force writes it all the same$"
    )
    with pytest.raises(Refused, match=told):
        of.apply([EDIT], breaking)
    assert same(loaded.model, before)
    assert [one.numbers for one in of.applied] == [(0,)]
    of.apply([OTHERS[1]], gentle)
    other = session(copy.deepcopy(untouched), tmp_path)
    other.apply([OTHERS[0]], gentle)
    other.apply([OTHERS[1]], gentle)
    assert same(loaded.model, bits(other.loaded.model))  # it goes on as if nothing had been tried
    assert torch.equal(of.applied[0].past[1], past)
    (made,) = of.apply([EDIT], breaking, force=True)
    assert made.harm.after - made.harm.before > HARM_NATS
    assert any("the edit would break the model" in line and "written all the same (force)" in line for line in lines)
    assert not same(loaded.model, bits(other.loaded.model))
    of.undo()
    assert same(loaded.model, bits(untouched.model))


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solve = memit_editor.ridge_update

    def broken(*given: Any) -> Any:
        change, through, condition = solve(*given)
        return LowRank(change.left * float("nan"), change.right), through, condition

    loaded = lively()
    before = bits(loaded.model)
    monkeypatch.setattr(memit_editor, "ridge_update", broken)
    with pytest.raises(Refused, match=r"rises from \d\.\d\d to inf nats per token"):
        session(loaded, tmp_path).apply([EDIT], editor("memit", **QUICK))
    assert same(loaded.model, before)


def test_earlier_batches_stay_where_a_later_one_is_refused(tmp_path: Path) -> None:
    loaded = lively()
    of = session(loaded, tmp_path)
    done: list[int] = []
    config = editor("ft_m", steps=1, learning_rate=0.01)

    def then(count: int) -> None:
        done.append(count)
        with torch.no_grad():  # the second batch finds a model that it will be blamed for
            of._loss = -9.0

    with pytest.raises(Refused):
        of.apply(ALL, config, batch=2, after=then)
    assert done == [2]
    assert [one.numbers for one in of.applied] == [(0,), (0, 1)][1:]
    assert same(loaded.model, rebuilt(bits(lively().model), of))


def test_an_editor_that_fails_leaves_the_model_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails in its second layer, when the first is written, in the second of three batches."""
    loaded = lively(layers=3)
    of = session(loaded, tmp_path)
    config = editor("memit", layers=(0, 1), norm_anchor=True, **QUICK)
    of.apply([EDIT], config)
    before, memory = bits(loaded.model), of.anchors
    solve, calls = memit_editor.ridge_update, [0]

    def fails(*given: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            assert changed(loaded.model, before) == {DOWN.format(0)}
            raise KeyboardInterrupt
        return solve(*given)

    monkeypatch.setattr(memit_editor, "ridge_update", fails)
    with pytest.raises(Interrupted, match="stopped while editing with memit"):
        of.apply(ALL[1:], config, batch=1)
    assert same(loaded.model, before)
    assert (len(of.applied), of.anchors) == (1, memory)
    of.apply(ALL[1:], config, batch=1)
    other = session(lively(layers=3), tmp_path)
    other.apply([EDIT], config)
    other.apply(ALL[1:], config, batch=1)
    assert same(loaded.model, bits(other.loaded.model))
    assert [one.numbers for one in of.applied] == [(0,), (1,), (2,), (3,)]


def test_moments_that_are_no_numbers_are_an_error(tmp_path: Path) -> None:
    """A token with a broken embedding, which only the texts for the moments hold."""
    loaded = lively("qwen3")
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[200] = float("nan")
    before = bits(loaded.model)
    of = session(loaded, tmp_path / "cache", measured=lambda: [[8, 9, 200, 10]])
    with pytest.raises(PosttrainError, match="layer 0: the second moments of keys are not finite"):
        of.apply([EDIT], editor("memit"))
    assert changed(loaded.model, before) == {"model.embed_tokens.weight"}  # NaN is not NaN
    assert not (tmp_path / "cache").exists()  # nothing wrong is kept


# ---- editors and previews --------------------------------------------------------------------------------------------


def test_an_editor_by_name_and_by_its_settings(tmp_path: Path) -> None:
    by_name, by_settings = session(lively(), tmp_path), session(lively(), tmp_path)
    (one,) = by_name.apply([EDIT], "ft_m")
    (other,) = by_settings.apply([EDIT], one.editor)
    assert one.editor.kind == "ft_m"
    assert same(by_name.loaded.model, bits(by_settings.loaded.model))
    assert one.figures == other.figures
    assert by_name.apply([], "ft_m") == []
    with pytest.raises(ConfigError, match="unknown editor 'memitt'; did you mean 'memit'"):
        by_name.apply([EDIT], "memitt")

    class Other(Config):
        pass

    with pytest.raises(ConfigError, match="is no editor; see: posttrain list editors"):
        by_name.apply([EDIT], Other())


def test_edits_of_conversations(tmp_path: Path) -> None:
    turns = (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Yes?"))
    edit = Edit((*turns, Message("user", "The capital of France")), "France", "title")
    of = session(lively(), tmp_path)
    before = bits(of.loaded.model)
    (made,) = of.apply([edit], editor("rome", forms=("chat",)))
    assert changed(of.loaded.model, before) == {DOWN.format(0)}
    assert made.edits == (edit,)


def test_a_preview_writes_nothing(tmp_path: Path) -> None:
    of = session(lively(layers=3), tmp_path)
    before = bits(of.loaded.model)
    config = editor("memit", layers=(0, 1), forms=("raw", "chat"), contexts=3)
    seen = preview(of, config, ALL, 3)
    assert (seen.edits, seen.batches, seen.rows, seen.forms) == (4, 2, 8, ("raw", "chat"))
    assert seen.weights == (DOWN.format(0), DOWN.format(1))
    assert seen.wall_s > 0
    assert preview(of, config, ALL, None).batches == 1
    assert same(of.loaded.model, before)
    assert not list(tmp_path.rglob("*.safetensors"))  # and measures nothing


def test_a_preview_of_a_model_whose_last_layer_has_routed_experts(tmp_path: Path) -> None:
    model = model_of("Qwen3Moe", **EXPERTS, num_experts=4, mlp_only_layers=[0])
    of = session(LoadedModel(model, tokenizer(), "moe"), tmp_path)
    assert preview(of, editor("rome"), [EDIT], None).weights == (DOWN.format(0),)
    with pytest.raises(PosttrainError, match=r"layer 1 cannot be edited: .*routed experts"):
        preview(of, editor("rome", layers=(1,)), [EDIT], None)


def test_what_is_written_is_what_the_deltas_say(tmp_path: Path) -> None:
    """A figure, an edit and a number for each; the deltas add up to the weights, in their order."""
    loaded = lively("gpt2")
    before = bits(loaded.model)
    of = session(loaded, tmp_path)
    made = of.apply(many(5), editor("memit", **QUICK), batch=2)
    assert [len(one.edits) for one in made] == [2, 2, 1]
    assert [len(one.figures) for one in made] == [2, 2, 1]
    name = "transformer.h.0.mlp.c_proj.weight"
    weight = before[name]
    for one in made:
        (delta,) = one.deltas
        assert (delta.rank, delta.transposed, delta.owners) == (len(one.edits), True, one.numbers)
        weight = added(weight, delta)
    assert torch.equal(of.sites.model.get_parameter(name), weight)
    assert dataclasses.asdict(made[0])["numbers"] == (0, 1)
    json.dumps([figures._asdict() for one in made for figures in one.figures])


def test_a_batch_and_one_by_one_both_leave_all_edits_there(tmp_path: Path) -> None:
    config = editor("memit", weight=0.001)
    for batch in (None, 1):
        of = session(lively(), tmp_path)
        of.apply(ALL, config, batch=batch)
        assert [said(of, edit) for edit in ALL] == [edit.answer for edit in ALL]
