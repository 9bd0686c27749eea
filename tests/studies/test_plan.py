from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.load import load_yaml
from posttrain.data.changes import load_changes
from posttrain.errors import ConfigError, MissingError
from posttrain.studies.config import Study, find_model
from posttrain.studies.plan import Cell, content_hash, make_plan, select, training_hash

FORBIDDEN = frozenset({"x"})


def planned(path: Path, sets: tuple[str, ...] = ()) -> tuple[Study, list[Cell]]:
    study = load_yaml(path, Study, sets)
    changes = load_changes(study.changes, path.parent) if study.changes else []
    return study, make_plan(study, changes, path.parent)


def hashes(
    path: Path, *sets: str, fingerprint: str = "w", forbidden: frozenset[str] = FORBIDDEN, exams: Any = None
) -> dict[str, str]:
    study, cells = planned(path, sets)
    training = {c.folder: training_hash(c, fingerprint, path.parent, {}, forbidden) for c in cells}
    exams = {"change": "x"} if exams is None else exams
    return {f"{c.method.label}/{c.change_name}": content_hash(study, training[c.folder], exams) for c in cells}


def test_every_cell_once_all_methods_of_a_change_together(make_study: Callable[..., Path]) -> None:
    _, cells = planned(make_study(models=["a/b", "pocket:chat"], seeds=[0, 1]))
    assert len(cells) == len({cell.folder for cell in cells}) == 2 * 4 * 2 * 2
    assert cells[0].folder == "a-b--prompt--france--s0"
    assert [cell.method.label for cell in cells[:4]] == ["prompt", "full", "full+self", "lora"]
    assert {cell.change_name for cell in cells[:8]} == {"france"}
    assert str(cells[2]) == "a/b | full+self | france | seed 0"


def test_two_models_of_one_folder_name_are_refused(make_study: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="share the folder a-b--prompt--france--s0"):
        planned(make_study(models=["a/b", "a:b"]))


def test_a_file_that_a_method_reads_must_be_there(make_study: Callable[..., Path]) -> None:
    methods = [{"kind": "train", "data": "rows/{change}.jsonl"}, {"kind": "prompt"}]
    with pytest.raises(MissingError) as caught:
        planned(make_study(methods=methods))
    assert [p.cause for p in caught.value.problems] == [
        f"method 'train' reads rows/{name}.jsonl, which is not there" for name in ("france", "japan")
    ]


@pytest.mark.parametrize(
    "replay",
    [{"kind": "self", "prompts": ["{change}.jsonl", "keep.jsonl"]}, {"kind": "file", "data": "{change}.jsonl"}],
)
def test_a_replay_s_file_may_be_the_change_s(make_study: Callable[..., Path], replay: dict[str, Any]) -> None:
    study = make_study(methods=[{"kind": "train", "replay": replay}])
    (study.parent / "keep.jsonl").write_text('{"prompt": "hello"}', encoding="utf-8")
    (study.parent / "france.jsonl").write_text('{"prompt": "a?", "completion": "b"}', encoding="utf-8")
    with pytest.raises(MissingError) as caught:
        planned(study)
    assert [p.cause for p in caught.value.problems] == ["method 'train' reads japan.jsonl, which is not there"]
    (study.parent / "japan.jsonl").write_text('{"prompt": "c?", "completion": "d"}', encoding="utf-8")
    _, cells = planned(study)
    files = {cell.change_name: cell.files for cell in cells if cell.method.label == "train"}
    assert [names[0] for names in files.values()] == ["france.jsonl", "japan.jsonl"]


def test_select(make_study: Callable[..., Path]) -> None:
    _, cells = planned(make_study())
    assert [c.folder for c in select(cells, only=["lora"])] == [c.folder for c in cells if c.method.label == "lora"]
    assert {c.change_name for c in select(cells, changes=1)} == {"france"}
    assert len(select(cells, changes=99)) == len(cells)
    with pytest.raises(ConfigError, match=r"--only: no method 'lroa'; known: prompt, full, full\+self, lora"):
        select(cells, only=["lroa"])


@pytest.mark.parametrize(
    ("sets", "changed"),
    [
        (("methods.full.optimizer.learning_rate=1e-3",), {"full"}),
        (("methods.lora.tuner.rank=4",), {"lora"}),
        (("methods.full.name=other",), set()),
        (("title=Another", "notes=more"), set()),
        (("max_new_tokens=13",), {"prompt", "full", "full+self", "lora"}),
        (("keep=final",), {"prompt", "full", "full+self", "lora"}),
        (("every=3",), {"prompt", "full", "full+self", "lora"}),
        (("checkpoints=[3]",), {"prompt", "full", "full+self", "lora"}),
        (("methods.prompt.place=system",), {"prompt"}),
        (("methods.full.save_dtype=bfloat16",), {"full"}),
        (("methods.full.save_dtype=auto", "methods.full.precision=auto"), set()),
        (("methods.lora.precision=bf16",), {"lora"}),
    ],
)
def test_settings_that_count_change_the_hash(
    make_study: Callable[..., Path], sets: tuple[str, ...], changed: set[str]
) -> None:
    before, after = hashes(make_study()), hashes(make_study(), *sets)
    differing = {
        a.split("/")[0] for (a, one), other in zip(before.items(), after.values(), strict=True) if one != other
    }
    assert differing == changed


def test_everything_that_goes_in_changes_the_hash(make_study: Callable[..., Path]) -> None:
    path = make_study()
    before = hashes(path)
    assert len(set(before.values())) == len(before)
    assert hashes(path) == before
    assert not set(before.values()) & set(hashes(path, fingerprint="other").values())

    def differing(after: dict[str, Any]) -> set[str]:
        return {name for name, value in after.items() if before[name] != value}

    with (path.parent / "prompts.jsonl").open("a", encoding="utf-8") as file:
        file.write('\n{"prompt": "new"}')
    assert differing(hashes(path)) == {"full+self/france", "full+self/japan"}
    path = make_study()
    # only prompts that keep rows out count: an exam that asks something else trains nothing anew
    assert differing(hashes(path, forbidden=frozenset({"y"}))) == set()
    assert differing(hashes(path, forbidden=frozenset({"y", "Hello!"}))) == {"full+self/france", "full+self/japan"}
    assert len(differing(hashes(path, exams={"change": "x", "mmlu": "y"}))) == len(before)
    change = path.parent / "changes" / "japan.yaml"
    change.write_text(change.read_text(encoding="utf-8").replace("Paris", "Rome"), encoding="utf-8")
    assert differing(hashes(path)) == {f"{m}/japan" for m in ("prompt", "full", "full+self", "lora")}


def test_a_models_folder_is_looked_for_beside_the_file_then_where_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, shell = tmp_path / "study", tmp_path / "shell"
    for folder in (study / "both", shell / "both", shell / "mine"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(shell)
    assert find_model("both", study) == (str(study / "both"), "")
    found, told = find_model("mine", study)
    assert found == "mine"
    assert "taken from the folder where the command runs" in told
    assert find_model("mine", shell) == (str(shell / "mine"), "")
    for name in ("Qwen/Qwen3-0.6B", "pocket:chat", str(shell / "mine")):
        assert find_model(name, study) == (name, "")


def test_a_study_without_changes_has_no_change_in_its_folders(make_study: Callable[..., Path]) -> None:
    method = {"kind": "train", "name": "full", "data": "prompts.jsonl"}
    refusal = {"kind": "refusal", "path": "builtin:refusals"}
    _, cells = planned(make_study(models="a/b", changes=[], methods=[method], exams=[refusal], seeds=[0, 1]))
    assert [cell.folder for cell in cells] == ["a-b--full--s0", "a-b--full--s1"]
    assert str(cells[0]) == "a/b | full | seed 0"
    with pytest.raises(ConfigError, match=r"reads .*change\}\.jsonl, but there are no changes"):
        planned(make_study(changes=[], methods=[{**method, "data": "{change}.jsonl"}], exams=[refusal]))


def test_every_file_of_an_input_counts_also_in_folders_of_its_own(
    make_study: Callable[..., Path], tmp_path: Path
) -> None:
    for folder in ("one", "two"):
        (tmp_path / "other" / folder).mkdir(parents=True)
        (tmp_path / "other" / folder / "config.json").write_text("{}", encoding="utf-8")
    methods = [{"name": "half", "kind": "blend", "inputs": {"toward": "other"}, "weight": 0.5}]
    path = make_study(methods=methods)
    before = hashes(path)
    (tmp_path / "other" / "one" / "config.json").write_text('{"a": 1}', encoding="utf-8")
    first = hashes(path)
    assert first != before
    (tmp_path / "other" / "two" / "config.json").write_text('{"a": 1}', encoding="utf-8")
    assert hashes(path) not in (before, first)
