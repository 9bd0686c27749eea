"""KnowEdit: a `ground_truth` in its three forms, WikiBio's fields, what EasyEdit leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.data.edits.fields import Skipped, answers_of
from posttrain.data.edits.files import read_edit_set
from posttrain.data.edits.knowedit import KnowEdit
from posttrain.errors import DataError
from tests.data.edits.records import example, written


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Asia", (("Asia",),)),
        (["Asia", "the Orient", "Asia"], (("Asia", "the Orient"),)),
        ([["Asia", "the Orient"]], (("Asia", "the Orient"),)),
        ([["no"], ["false", "untrue"]], (("no",), ("false", "untrue"))),
        ([["", "Asia"], [" "], []], (("Asia",),)),
        ([1998, "1998"], (("1998",),)),
        ([None, "Asia"], (("Asia",),)),
        (["Asia", ["Africa"]], (("Asia",), ("Africa",))),
        (" Asia ", (("Asia",),)),
    ],
)
def test_answers(value: Any, expected: tuple[tuple[str, ...], ...]) -> None:
    assert answers_of(value, "ground_truth") == expected


@pytest.mark.parametrize("value", ["", [], [[]], [""], [[" "], []], None])
def test_no_answer(value: Any) -> None:
    with pytest.raises(Skipped):
        answers_of(value, "ground_truth")


def edits(path: Path, records: list[dict[str, Any]]) -> list[KnowEdit]:
    return [one.edit for one in read_edit_set(written(path, records)).records if isinstance(one.edit, KnowEdit)]


def test_the_fields(tmp_path: Path) -> None:
    first, second, third = edits(tmp_path / "k.json", example("knowedit"))
    assert first[:4] == ("The capital of Vietnam is", "Vietnam", "Hue", ("The capital city of Vietnam is",))
    assert list(first.portability) == ["Subject_Aliasing", "Reasoning", "Logical_Generalization"]
    (no,) = first.portability["Logical_Generalization"]
    assert (no.first, no.aliases) == ("no", ("no", "incorrect", "false"))
    assert [probe.first for probe in first.locality["Relation_Specificity"]] == ["Vietnamese dong", "Asia"]
    assert second.rephrased == ()
    assert third.portability["Subject_Aliasing"][0].aliases == ("雪山", "Xueshan")


def test_wikibio_has_other_names(tmp_path: Path) -> None:
    record = {
        "text": "This is a passage about rosa quispe. She was born in Cusco.",
        "labels": "She studied the stars.",
        "concept": "rosa quispe",
        "locality": {"Relation_Specificity": [{"prompt": ["rosa quispe lives in"], "ground_truth": ["Cusco"]}]},
    }
    (edit,) = edits(tmp_path / "w.json", [record])
    assert edit[:3] == (record["text"], "rosa quispe", "She studied the stars.")
    assert edit.locality["Relation_Specificity"][0].prompt == "rosa quispe lives in"
    assert edit.portability == {}


def test_what_easyedit_leaves_out_is_counted(tmp_path: Path) -> None:
    records = example("knowedit")
    records[1]["target_new"] = ""
    records[2]["portability"]["Subject_Aliasing"][0]["ground_truth"] = [[""]]
    found = read_edit_set(written(tmp_path / "k.json", records))
    assert [one.name for one in found.records] == ["k-00000", "k-00002"]  # names do not move
    assert found.notes == (
        "left out: 1 of 3 records (an empty target)",
        "left out: 1 of the probes (no answer)",
    )
    with pytest.raises(DataError, match="every record is left out: an empty target"):
        read_edit_set(written(tmp_path / "k.json", records[1:2]))
