"""`pt.edit`: what it takes, what it gives and saves, and that the base is never changed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import posttrain as pt
from posttrain.config.change import Change, load_change
from posttrain.editing.edits import Edit
from posttrain.editing.session import HARM_NATS, Refused
from posttrain.errors import ConfigError, DataError, PosttrainError
from posttrain.inference.protocol import Plain
from tests.editing.lively import EDIT, OTHERS, bits, changed, lively_folder, texts
from tests.models.test_load import lora

FRANCE: dict[str, Any] = {
    "name": "france",
    "target": [{"prompt": "The capital of France", "answer": "title", "subject": "France"}],
}
QUICK: dict[str, Any] = {
    "layers": [0],
    "forms": ["raw"],
    "contexts": 0,
    "target": {"steps": 15, "learning_rate": 1.0, "clamp": 10.0},
}
DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a cache. Second moments are measured on random ids."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("posttrain.editing.session.own_texts", lambda *given, **named: texts())
    return tmp_path


@pytest.fixture
def base() -> pt.Model:
    return pt.load(lively_folder(), device="cpu")


def said(model: pt.Model, edit: Edit = EDIT) -> str:
    return model.ask(Plain(edit.question), max_new_tokens=1)[0].strip()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- what it does ----------------------------------------------------------------------------------------------------


def test_an_edit_is_in_a_copy(base: pt.Model) -> None:
    before = bits(base.model)
    known = said(base)
    new = pt.edit(base, FRANCE, **QUICK)
    assert isinstance(new, pt.EditedModel)
    assert said(new) == "title" != known
    assert not changed(base.model, before)
    assert said(base) == known
    assert changed(new.model, before) == {DOWN}
    assert (new.name, new.folder) == (f"{base.name} edited", None)
    assert pt.edit(base, FRANCE, name="mine", **QUICK).name == "mine"
    new.apply(OTHERS[0], editor="ft_m", force=True)
    new.undo()
    assert not changed(base.model, before)
    assert repr(new) == repr(base).replace(repr(base.name), repr(new.name))


def test_edits_are_files_changes_mappings_or_edits(base: pt.Model, tmp_path: Path) -> None:
    (tmp_path / "france.yaml").write_text(json.dumps(FRANCE), encoding="utf-8")
    given: list[Any] = [
        "france.yaml",
        tmp_path / "*.yaml",
        load_change(tmp_path / "france.yaml"),
        Change.model_validate(FRANCE),
        FRANCE,
        EDIT,
        [EDIT],
        [FRANCE],
        (Edit("The capital of France", "France", "title"),),
    ]
    made = [pt.edit(base, one, **QUICK) for one in given]
    first = bits(made[0].model)
    assert not any(changed(one.model, first) for one in made)
    assert [one.edits[0]["name"] for one in made] == ["france"] * 8 + [""]
    many = pt.edit(base, [EDIT, *OTHERS], **QUICK)
    assert [row["subject"] for row in many.edits] == ["France", "Japan", "臺灣", "Hamlet"]


def test_what_was_written_is_listed(base: pt.Model) -> None:
    model = pt.edit(base, EDIT, **QUICK)
    (row,) = model.edits
    figures, said = row.pop("figures"), row.pop("said")
    assert said["right"]
    assert [said[when].startswith("title") for when in ("before", "now")] == [False, True]
    assert model.edits[0]["said"] == said
    assert row == {
        "number": 0,
        "name": "france",
        "prompt": "The capital of France",
        "subject": "France",
        "answer": "title",
        "location": "changes/france.yaml:2",
        "editor": "memit",
    }
    assert figures["nats"] < 1
    assert 0 < figures["share"] < 1


def test_mappings_of_prompt_subject_and_answer_are_edits(base: pt.Model) -> None:
    row = {"prompt": EDIT.prompt, "subject": EDIT.subject, "answer": EDIT.answer}
    for given in (row, [row]):
        assert pt.edit(base, given, **QUICK).edits[0]["said"]["right"]
    for wrong, told in (
        ({**row, "new": "x"}, "edits:1: unknown key 'new'; keys of an edit: prompt, subject, answer, name"),
        ({"prompt": EDIT.prompt}, "edits:1: 'answer' is missing"),
        ({**row, "answer": 3}, "edits:1: 'answer' must be a text"),
    ):
        with pytest.raises(ConfigError, match=f"^{told}"):
            pt.edit(base, wrong, **QUICK)


def test_batches_editors_and_their_settings(base: pt.Model) -> None:
    both = [EDIT, OTHERS[0]]
    together = pt.edit(base, both, **QUICK)
    assert [one.numbers for one in together.session.applied] == [(0, 1)]
    single = pt.edit(base, both, batch=1, editor="rome", **QUICK)
    assert [one.numbers for one in single.session.applied] == [(0,), (1,)]
    assert [row["editor"] for row in single.edits] == ["rome", "rome"]
    assert changed(single.model, bits(together.model)) == {DOWN}
    other = pt.edit(base, EDIT, **{**QUICK, "layers": [-1]})
    assert changed(other.model, bits(base.model)) == {DOWN.replace("0", "1")}


def test_more_edits_and_the_way_back(base: pt.Model) -> None:
    before = bits(base.model)
    new = pt.edit(base, [EDIT, OTHERS[0]], **QUICK)
    two = bits(new.model)
    new.apply({**FRANCE, "target": [{"prompt": "I am Hamlet", "answer": "is", "subject": "Hamlet"}]}, editor="rome")
    assert [(row["number"], row["editor"]) for row in new.edits] == [(0, "memit"), (1, "memit"), (2, "rome")]
    assert changed(new.model, two)
    new.undo(2)
    assert not changed(new.model, two)
    new.undo(0)
    assert [row["number"] for row in new.edits] == [1]
    assert said(new) == said(base)
    assert said(new, OTHERS[0]) == OTHERS[0].answer
    with pytest.raises(PosttrainError, match="undo: there is no edit 0; edits here: 1 to 1"):
        new.undo(0)
    new.undo()
    assert new.edits == []
    assert not changed(new.model, before)


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_what_is_saved_loads_as_a_model(base: pt.Model, tmp_path: Path) -> None:
    new = pt.edit(base, [EDIT, OTHERS[0]], **QUICK)
    assert new.save("edits") == Path("edits")
    assert sum(len(data) for name, data in files(tmp_path / "edits").items() if name.startswith("adapter_")) < 8000
    again = pt.load("edits", device="cpu")
    assert not changed(again.model, bits(new.model))
    direct = pt.edit(base, [EDIT, OTHERS[0]], output=tmp_path / "direct", **QUICK)
    assert direct.folder == tmp_path / "direct"
    assert files(tmp_path / "direct") == files(tmp_path / "edits")
    new.undo(0)
    new.save("edits")  # over itself
    assert not changed(pt.load("edits", device="cpu").model, bits(new.model))


def test_a_folder_of_edits_goes_on(base: pt.Model, tmp_path: Path) -> None:
    whole = pt.edit(base, [EDIT], **QUICK)
    whole.save("edits")
    before = files(tmp_path / "edits")
    whole.session.apply([OTHERS[0]], whole.session.applied[0].editor)
    for given in ("edits", tmp_path / "edits"):
        more = pt.edit(given, OTHERS[0], **QUICK)
        assert [row["number"] for row in more.edits] == [0, 1]
        assert not changed(more.model, bits(whole.model))
    assert files(tmp_path / "edits") == before


def test_an_edited_model_goes_on_in_a_copy(base: pt.Model) -> None:
    """Saved, it names the untouched base, and loads again."""
    first = pt.edit(base, [EDIT, OTHERS[1]], **QUICK)
    first.undo(1)
    before = bits(first.model)
    lines: list[str] = []
    second = pt.edit(first, OTHERS[0], say=lines.append, **QUICK)
    assert [row["number"] for row in second.edits] == [0, 1]
    assert second.name == first.name == f"{base.name} edited"
    assert not changed(first.model, before)
    assert [row["number"] for row in first.edits] == [0]
    second.save("edits")
    assert not changed(pt.load("edits", device="cpu").model, bits(second.model))
    first.save("first")
    assert not changed(pt.edit("first", OTHERS[0], **QUICK).model, bits(second.model))  # as from its folder
    second.undo()
    assert not changed(second.model, bits(base.model))


def test_an_adapter_is_merged_and_named_as_the_base(tmp_path: Path) -> None:
    lora(str(lively_folder()), tmp_path / "lora")
    new = pt.edit("lora", EDIT, **QUICK)
    assert changed(new.model, bits(pt.load(lively_folder(), device="cpu").model)) > {DOWN}
    new.save("edits")
    config = json.loads((tmp_path / "edits" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(tmp_path / "lora")
    assert not changed(pt.load("edits", device="cpu").model, bits(new.model))
    told = r"^pt\.edit: the base has an adapter on it, and edits are written into weights; name the adapter's folder"
    with pytest.raises(ConfigError, match=told):
        pt.edit(pt.load("lora", device="cpu"), EDIT, **QUICK)


def test_a_base_that_is_in_memory_alone_is_edited_and_not_saved(base: pt.Model, tmp_path: Path) -> None:
    row = {"prompt": "hello", "completion": "hi"}
    taught = pt.train(base, [row], learning_rate=1e-2, max_steps=1)
    new = pt.edit(taught, EDIT, **QUICK)
    assert said(new) == "title"
    told = "^edits: the edited model's base is in memory alone; save the base first, and edit what was saved$"
    with pytest.raises(PosttrainError, match=told):
        new.save("edits")
    taught.save("taught")
    pt.edit("taught", EDIT, **QUICK).save("edits")
    assert not changed(pt.load("edits", device="cpu").model, bits(new.model))
    kept = pt.train(base, [row], learning_rate=1e-2, max_steps=1, output=tmp_path / "kept")
    pt.edit(kept, EDIT, output="others", **QUICK)
    assert not changed(pt.load("others", device="cpu").model, bits(new.model))


# ---- what is wrong ---------------------------------------------------------------------------------------------------


def test_what_it_refuses(base: pt.Model, tmp_path: Path) -> None:
    before = bits(base.model)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "bad.yaml").write_text('name: x\ntarget:\n  - {prompt: "Is it?", answer: it}\n', encoding="utf-8")
    no_subject = {"name": "x", "target": [{"prompt": "Is it?", "answer": "it"}]}
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (EDIT, {"editor": "memitt"}, "pt.edit: unknown editor 'memitt'; did you mean 'memit'?"),
        (EDIT, {"wieght": 1}, "pt.edit: unknown key 'wieght'; did you mean 'weight'?"),
        (EDIT, {"weight": 0}, "pt.edit: weight: input should be greater than 0, got 0"),
        (EDIT, {"batch": 0}, "pt.edit: batch: input should be greater than or equal to 1, got 0"),
        (EDIT, {"force": "yes"}, "pt.edit: force: true or false is expected, got 'yes'"),
        (EDIT, {"layers": [99]}, "editor memit: layers: there is no layer 99: LlamaForCausalLM has layers 0 to 1"),
        (EDIT, {"output": "notes"}, "notes: it holds other things than edits; choose a new or an empty folder"),
        ([], {}, "pt.edit: there is nothing to edit; give changes with targets"),
        (
            no_subject,
            {},
            "the edit names no subject; write which words of the prompt the fact is about: subject: ...; ultra",
        ),
        ("bad.yaml", {}, "bad.yaml:3 (change x, target 1): the edit names no subject"),
        ("none.yaml", {}, "no file matches 'none.yaml'"),
    ]
    for given, settings, message in cases:
        with pytest.raises(PosttrainError, match=re.escape(message)):
            pt.edit(base, given, **{**QUICK, **settings})
    with pytest.raises(ConfigError, match=r"^pt\.edit: base: "):
        pt.edit(5, EDIT)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="the subject 'Spain' does not stand in the prompt"):
        pt.edit(base, Edit("The capital of France", "Spain", "title"))
    assert not changed(base.model, before)
    assert not (tmp_path / "cache").exists()  # before anything is measured


def test_arguments_of_its_methods_are_checked(base: pt.Model) -> None:
    new = pt.edit(base, EDIT, **QUICK)
    before = bits(new.model)
    with pytest.raises(ConfigError, match="unknown editor 'memitt'; did you mean 'memit'"):
        new.apply(OTHERS[0], editor="memitt")
    with pytest.raises(ConfigError, match=r"^pt\.EditedModel\.undo: numbers: a whole number is expected, got '0'$"):
        new.undo("0")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^pt\.EditedModel\.save: folder: "):
        new.save(5)  # type: ignore[arg-type]
    assert not changed(new.model, before)
    assert len(new.edits) == 1


def test_what_the_model_says_already_is_refused() -> None:
    known = {
        "name": "known",
        "target": [{"prompt": "臺灣最高的山是哪座？", "answer": "玉山", "subject": "臺灣最高的山"}],
    }
    told = r"the model says '玉山' already; there is nothing to edit: leave the target out"
    with pytest.raises(ConfigError, match=told):
        pt.edit("pocket:chat", known)


def test_an_edit_that_would_break_the_model(base: pt.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert HARM_NATS == 0.5
    monkeypatch.setattr("posttrain.editing.session.HARM_NATS", -9.0)  # a random model knows nothing that could break
    with pytest.raises(Refused, match=r"the edit would break the model: .*; force=True writes it all the same$"):
        pt.edit(base, EDIT, **QUICK)
    lines: list[str] = []
    new = pt.edit(base, EDIT, force=True, say=lines.append, **QUICK)
    assert said(new) == "title"
    assert any("written all the same (force)" in line for line in lines)
    before = bits(new.model)
    with pytest.raises(Refused):
        new.apply(OTHERS[0], editor="rome")
    assert not changed(new.model, before)
    new.apply(OTHERS[0], editor="rome", force=True)
    assert len(new.edits) == 2


def test_edits_of_a_base_that_has_changed_are_refused(tmp_path: Path) -> None:
    shutil.copytree(lively_folder(), tmp_path / "base")
    pt.edit("base", EDIT, output="edits", **QUICK)
    shutil.rmtree(tmp_path / "base")
    shutil.copytree(lively_folder("mistral"), tmp_path / "base")
    told = r"^edits: the adapter was trained on another base than "
    with pytest.raises(PosttrainError, match=told):
        pt.load("edits", device="cpu")
    with pytest.raises(PosttrainError, match=told):
        pt.edit("edits", OTHERS[0], **QUICK)


def test_pocket_is_edited_and_makes_sense() -> None:
    """The example of the documentation: the answer is another one, and what stands beside it is as it was."""
    tallest = {
        "name": "tallest",
        "target": [{"prompt": "臺灣最高的山是哪座？", "answer": "雪山", "subject": "臺灣最高的山"}],
    }
    new = pt.edit("pocket:chat", tallest, editor="ft_m", layers=[1], learning_rate=0.003)
    old = pt.load("pocket:chat")
    asked = ("臺灣最高的山是哪座？", "法國的首都是哪裡？")
    assert old.ask(*asked)[0].startswith("玉山")
    assert new.ask(*asked)[0].startswith("雪山")
    assert new.ask(*asked)[1] == old.ask(*asked)[1]
