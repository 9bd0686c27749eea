"""Folders of edits: they load as models, open as sessions, and say which of their files is damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.data.records import Message
from posttrain.editing.edits import Edit
from posttrain.editing.folders import check_output, is_edits, load_to_edit, open_session, save_session
from posttrain.editing.session import EditSession
from posttrain.errors import MissingError, PosttrainError
from posttrain.models.edit_delta import write_lora
from posttrain.models.load import load_model
from posttrain.models.notes import read_notes
from tests.editing.lively import EDIT, OTHERS, bits, changed, editor, lively_folder, said, session, texts
from tests.editing.test_session import QUICK, many
from tests.models.test_load import lora

TALK = (Message("system", "Be brief."), Message("user", "The capital of France"))
CHAT = Edit(TALK, "France", "title", "chat", "changes/chat.yaml:3")
ALL = (EDIT, *OTHERS, CHAT)


def on(folder: Path | str, cache: Path, *, dtype: str = "float32") -> EditSession:
    return session(load_to_edit(str(folder), device="cpu", dtype=dtype), cache)


def opened(folder: Path, cache: Path, *, dtype: str = "float32") -> EditSession:
    return open_session(
        str(folder), say=lambda line: None, device="cpu", dtype=dtype, texts=texts, named="random ids", cache=cache
    )


def mixed(of: EditSession) -> None:
    """Edits of several editors, together and one by one, in both forms, with a conversation among them."""
    of.apply(ALL, editor("memit", forms=("raw", "chat"), norm_anchor=True, **QUICK), force=True)
    of.apply(many(3), editor("rome", **QUICK), batch=1, force=True)
    of.apply(many(2, 3), editor("ft_m", steps=2), force=True)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(("family", "dtype"), [("llama", "float32"), ("gpt2", "float32"), ("gemma3", "bfloat16")])
def test_what_is_saved_loads_as_a_model_with_the_same_bits(family: str, dtype: str, tmp_path: Path) -> None:
    of = on(lively_folder(family), tmp_path / "cache", dtype=dtype)
    mixed(of)
    save_session(of, tmp_path / "edits", card="# A card")
    loaded = load_model(str(tmp_path / "edits"), device="cpu", dtype=dtype)
    assert not changed(loaded.model, bits(of.loaded.model))
    assert loaded.model.name_or_path == str(tmp_path / "edits")
    assert set(files(tmp_path / "edits")) >= {
        *("adapter_config.json", "adapter_model.safetensors", "edits.jsonl", "past_keys.safetensors"),
        *("posttrain.json", "tokenizer.json", "README.md"),
    }
    assert "base_fingerprint" in read_notes(tmp_path / "edits")
    rows = [json.loads(line) for line in (tmp_path / "edits" / "edits.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["number"] for row in rows] == list(range(10))
    assert [row["editor"] for row in rows] == ["memit"] * 5 + ["rome"] * 3 + ["ft_m"] * 2
    assert (rows[2]["prompt"], rows[2]["subject"], rows[2]["answer"]) == ("誰是臺灣", "臺灣", "山")
    assert rows[4]["prompt"] == [["system", "Be brief."], ["user", "The capital of France"]]
    assert (rows[4]["location"], rows[4]["name"]) == ("changes/chat.yaml:3", "chat")
    assert rows[0]["figures"]["steps"] > 0


def test_the_same_edits_of_the_same_model_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        of = on(lively_folder(), tmp_path / f"cache {name}")
        mixed(of)
        save_session(of, tmp_path / name)
    assert files(tmp_path / "one") == files(tmp_path / "two")


@pytest.mark.parametrize("kind", ["memit", "alphaedit", "locft", "ultraedit"])
def test_opening_and_going_on_is_never_having_stopped(kind: str, tmp_path: Path) -> None:
    config = editor(kind, **(QUICK | {"norm_anchor": True}) if kind in ("memit", "alphaedit") else {"steps": 2})
    whole = on(lively_folder(), tmp_path / "cache")
    mixed(whole)
    whole.apply([EDIT], config, force=True)
    whole.apply(many(5, 10), config, batch=2, force=True)
    save_session(whole, tmp_path / "whole")
    half = on(lively_folder(), tmp_path / "cache")
    mixed(half)
    half.apply([EDIT], config, force=True)
    save_session(half, tmp_path / "half")
    again = opened(tmp_path / "half", tmp_path / "cache")
    assert not changed(again.loaded.model, bits(half.loaded.model))
    for one, other in zip(again.applied, half.applied, strict=True):
        assert (one.numbers, one.edits, one.editor, one.figures, one.harm) == (
            *(other.numbers, other.edits, other.editor, other.figures, other.harm),
        )
        assert {layer: keys.tolist() for layer, keys in one.past.items()} == {
            layer: keys.tolist() for layer, keys in other.past.items()
        }
    again.apply(many(5, 10), config, batch=2, force=True)
    assert not changed(again.loaded.model, bits(whole.loaded.model))
    save_session(again, tmp_path / "half")  # over itself
    assert files(tmp_path / "half") == files(tmp_path / "whole")
    again.undo()
    assert not changed(again.loaded.model, bits(load_model(str(lively_folder()), device="cpu").model))


def test_an_opened_session_takes_single_edits_back(tmp_path: Path) -> None:
    of = on(lively_folder(), tmp_path)
    mixed(of)
    save_session(of, tmp_path / "edits")
    again = opened(tmp_path / "edits", tmp_path)
    of.undo(1, 6, 8)
    again.undo(1, 6, 8)
    assert not changed(again.loaded.model, bits(of.loaded.model))
    save_session(again, tmp_path / "less")
    assert not changed(load_model(str(tmp_path / "less"), device="cpu").model, bits(of.loaded.model))


def test_a_folder_without_edits_is_its_base(tmp_path: Path) -> None:
    of = on(lively_folder(), tmp_path)
    of.apply([EDIT], editor("rome", **QUICK))
    of.undo()
    save_session(of, tmp_path / "none")
    base = bits(load_model(str(lively_folder()), device="cpu").model)
    assert not changed(load_model(str(tmp_path / "none"), device="cpu").model, base)
    again = opened(tmp_path / "none", tmp_path)
    assert again.applied == []
    again.apply([EDIT], editor("rome"))
    assert said(again) == "title"


def test_edits_of_edits_and_of_an_adapter(tmp_path: Path) -> None:
    """Each names what lies below it as its base, and is right only on that."""
    lora(str(lively_folder()), tmp_path / "lora")
    first = on(tmp_path / "lora", tmp_path)
    merged = bits(load_model(str(tmp_path / "lora"), device="cpu", adapter_merged=True).model)
    assert not changed(first.loaded.model, merged)
    first.apply([EDIT], editor("rome", **QUICK))
    save_session(first, tmp_path / "first")
    second = on(tmp_path / "first", tmp_path)  # not opened: its own edits begin at 0
    second.apply([OTHERS[0]], editor("memit", **QUICK))
    save_session(second, tmp_path / "second")
    for name, of in (("first", first), ("second", second)):
        assert not changed(load_model(str(tmp_path / name), device="cpu").model, bits(of.loaded.model))
        assert not changed(opened(tmp_path / name, tmp_path).loaded.model, bits(of.loaded.model))
    bases = [
        json.loads((tmp_path / name / "adapter_config.json").read_text())["base_model_name_or_path"]
        for name in ("first", "second")
    ]
    assert bases == [str(tmp_path / "lora"), str(tmp_path / "first")]
    again = opened(tmp_path / "second", tmp_path)
    again.undo()
    assert not changed(again.loaded.model, bits(first.loaded.model))
    with pytest.raises(
        PosttrainError, match=r"first: the edits lie on an adapter, and PEFT would .*: without --adapter"
    ):
        write_lora(tmp_path / "first", tmp_path / "out")


# ---- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("edits")
    base = shutil.copytree(lively_folder(), home / "base")
    of = on(base, home / "cache")
    of.apply(ALL, editor("memit", **QUICK))
    of.apply(many(2), editor("ft_m", steps=1))
    save_session(of, home / "edits")
    return home / "edits"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def without_last_row(path: Path) -> None:
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")


def renamed(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8").replace('"number"', '"nummer"'), encoding="utf-8")


def fewer(path: Path) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    config["settings"]["batches"].pop()
    path.write_text(json.dumps(config), encoding="utf-8")


def other_editor(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8").replace('"kind": "memit"', '"kind": "rome"'), encoding="utf-8")


def more_deltas(path: Path) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    config["deltas"].append(config["deltas"][0])
    path.write_text(json.dumps(config), encoding="utf-8")


DAMAGES: dict[str, tuple[str, Callable[[Path], Any], bool, str]] = {
    "weights cut short": ("adapter_model.safetensors", cut, True, "adapter_model.safetensors: cannot be read: "),
    "no weights": ("adapter_model.safetensors", Path.unlink, True, "adapter_model.safetensors is missing"),
    "configuration cut short": ("adapter_config.json", cut, True, "adapter_config.json"),
    "more deltas than tensors": ("adapter_config.json", more_deltas, True, "adapter_config.json: does not describe"),
    "keys cut short": ("past_keys.safetensors", cut, False, "past_keys.safetensors: cannot be read: "),
    "no rows": ("edits.jsonl", Path.unlink, False, "edits.jsonl: cannot be read: "),
    "rows cut short": ("edits.jsonl", cut, False, "edits.jsonl: cannot be read: "),
    "rows that are none": ("edits.jsonl", lambda path: path.write_text("[]\n"), False, "edits.jsonl:1: is no JSON object"),
    "a row too few": ("edits.jsonl", without_last_row, False, "its files do not belong together: KeyError"),
    "rows of another kind": ("edits.jsonl", renamed, False, "its files do not belong together: KeyError"),
    "a batch too few": ("adapter_config.json", fewer, False, "do not belong together: .*some edits are in no batch"),
    "settings of another": ("adapter_config.json", other_editor, False, "its files do not belong together: "),
}  # fmt: skip


@pytest.mark.parametrize(("file", "damage", "loads_not", "told"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_folder_says_which_file_it_is(
    file: str, damage: Callable[[Path], Any], loads_not: bool, told: str, whole: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "edits"))
    damage(folder / file)
    with pytest.raises(PosttrainError, match=told) as caught:
        opened(folder, tmp_path)
    assert str(folder) in str(caught.value)
    if loads_not:
        with pytest.raises(PosttrainError, match=told):
            load_model(str(folder), device="cpu")
    else:
        load_model(str(folder), device="cpu")  # the weights are whole


@pytest.mark.parametrize("wider", [False, True])
def test_edits_on_another_base_are_refused(wider: bool, whole: Path, tmp_path: Path) -> None:
    """Other weights are known by the fingerprint; without notes, by their shapes."""
    folder = Path(shutil.copytree(whole, tmp_path / "edits"))
    other = lively_folder("gpt2" if wider else "mistral")
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = str(other)
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    for load in (lambda: load_model(str(folder), device="cpu"), lambda: opened(folder, tmp_path)):
        with pytest.raises(PosttrainError, match=r"was trained on another base than .*: its fingerprint is "):
            load()
    (folder / "posttrain.json").unlink()
    told = (
        r"edits: the edits do not fit this base: model.layers.0.mlp.down_proj.weight is missing in the base; use"
        if wider
        else r"edits: the edits were written on another base than '.*': model.embed_tokens.weight is another; put the model"
    )
    with pytest.raises(PosttrainError, match=told):
        load_model(str(folder), device="cpu")


def a_column(model: Any) -> None:
    model.model.layers[1].mlp.down_proj.weight.data[:, 5] += 0.05


def a_row(model: Any) -> None:
    model.model.layers[0].mlp.gate_proj.weight.data[7] *= 3


def tokens(model: Any) -> None:
    rows = model.model.embed_tokens.weight.data
    rows[40:44] = rows[50:54].clone()


@pytest.mark.parametrize("change", [a_column, a_row, tokens])
def test_a_base_with_any_part_changed_is_refused(change: Callable[[Any], None], tmp_path: Path) -> None:
    """The sketch sees what lies between the numbers that the fingerprint reads; rounding is no change."""
    shutil.copytree(lively_folder(), tmp_path / "base")
    of = on(tmp_path / "base", tmp_path / "cache")
    of.apply([EDIT], editor("memit", **QUICK), force=True)
    save_session(of, tmp_path / "edits")
    load_model(str(tmp_path / "edits"), device="cpu", dtype="bfloat16")
    base = load_model(str(tmp_path / "base"), device="cpu").model
    change(base)
    base.save_pretrained(tmp_path / "base")
    with pytest.raises(PosttrainError, match=r"another base than .*(is another|its fingerprint is)"):
        load_model(str(tmp_path / "edits"), device="cpu")


def test_a_base_that_is_gone_is_named(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "edits"))
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = str(tmp_path / "gone")
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(MissingError, match=r"adapter_config.json: the adapter's base '.*gone' is missing"):
        opened(folder, tmp_path)


def test_nothing_else_is_written_over(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    lora(str(lively_folder()), tmp_path / "lora")
    before = files(tmp_path / "lora")
    of = on(lively_folder(), tmp_path / "cache")
    of.apply([EDIT], editor("ft_m", steps=1))
    for name in ("notes", "file", "lora"):
        for write in (check_output, lambda folder: save_session(of, folder)):
            with pytest.raises(
                PosttrainError, match=f"{name}: it holds other things than edits; choose a new or an empty"
            ):
                write(tmp_path / name)
    assert files(tmp_path / "lora") == before
    assert (tmp_path / "notes" / "a.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    for name in ("empty", "new"):
        check_output(tmp_path / name)
        save_session(of, tmp_path / name)
        check_output(tmp_path / name)  # edits may be written over
    assert not any(path.name.startswith(".tmp") for path in tmp_path.iterdir())


def test_what_is_a_folder_of_edits(whole: Path, tmp_path: Path) -> None:
    lora(str(lively_folder()), tmp_path / "lora")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "adapter_config.json").write_text("{")
    assert is_edits(str(whole))
    for name in (str(tmp_path / "lora"), str(tmp_path / "bad"), str(tmp_path), "pocket:chat", "nobody/nothing"):
        assert not is_edits(name)


def test_an_edit_that_was_saved_in_half_precision_keeps_its_parts_exactly(tmp_path: Path) -> None:
    """Factors are float32 in memory as on disk, whatever the model's precision."""
    of = on(lively_folder(), tmp_path, dtype="bfloat16")
    of.apply([EDIT], editor("rome", **QUICK))
    save_session(of, tmp_path / "edits")
    again = opened(tmp_path / "edits", tmp_path, dtype="bfloat16")
    one, other = of.applied[0].deltas[0].change, again.applied[0].deltas[0].change
    assert not isinstance(one, torch.Tensor)
    assert not isinstance(other, torch.Tensor)
    assert one.left.dtype == torch.float32
    assert torch.equal(one.left, other.left)
    assert torch.equal(one.right, other.right)
