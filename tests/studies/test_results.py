from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from posttrain.studies.results import CellResult, Examined, read_result, summarise_cells, to_yaml, write_json


def result(change: str, score: float, *, seed: int = 0, status: str = "done", method: str = "full") -> CellResult:
    examined = [Examined("final", {"reliability": score}, {"reliability": (0.1, 0.9)}, {"reliability": 3}, "cells/x")]
    return CellResult("h", "m", method, change, seed, status, examined=examined if status == "done" else ())


def test_means_over_changes_where_seeds_count_once() -> None:
    lines = summarise_cells([result("a", 1.0), result("a", 0.0, seed=1), result("b", 1.0), result("b", 1.0, seed=1)])
    assert len(lines) == 1
    assert lines[0]["scores"] == {"reliability": 0.75}
    low, high = lines[0]["ci95"]["reliability"]
    assert 0.5 <= low < 0.75 < high <= 1.0
    assert lines[0]["n"] == {"reliability": 12}
    assert lines[0]["changes"] == {"reliability": 2}


def test_one_cell_keeps_its_own_interval_and_failed_cells_do_not_count() -> None:
    lines = summarise_cells([result("a", 0.5), result("b", 0.0, status="failed")])
    assert lines[0]["scores"] == {"reliability": 0.5}
    assert lines[0]["ci95"] == {"reliability": (0.1, 0.9)}


def test_methods_are_apart_and_keep_their_order() -> None:
    lines = summarise_cells([result("a", 0.5, method="z"), result("a", 1.0, method="b")])
    assert [(line["method"], line["scores"]["reliability"]) for line in lines] == [("z", 0.5), ("b", 1.0)]


def test_a_result_survives_the_disk(tmp_path: Path) -> None:
    from dataclasses import asdict

    known = result("a", 0.5)
    write_json(tmp_path / "result.json", asdict(known))
    again = read_result(tmp_path)
    assert again is not None
    assert asdict(again) == json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert again.entries()[0]["folder"] == "cells/x"


@pytest.mark.parametrize("text", [None, "", "{", '{"hash": "x"}', "[]", '{"examined": 5}'])
def test_a_torn_result_is_no_result(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "result.json").write_text(text, encoding="utf-8")
    assert read_result(tmp_path) is None


def test_json_has_no_nan_and_no_leftovers(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": math.nan, "y": [math.inf, 1.0], "z": {"臺": (1, 2)}})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {
        "x": None,
        "y": [None, 1.0],
        "z": {"臺": [1, 2]},
    }
    assert "臺" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_yaml_can_be_read_again() -> None:
    from ruamel.yaml import YAML

    data = {"a": None, "b": [1, 2.5, "玉山: x"], "c": {"d": True, "e": "1e-4"}, "f": 1e-08}
    assert YAML(typ="safe").load(to_yaml(data)) == data


def test_a_failed_cell_has_its_error() -> None:
    failed = CellResult("h", "m", "full", "a", 0, "failed", error="no memory")
    assert failed.entries()[0] | {"cost": None} == {
        "model": "m",
        "method": "full",
        "change": "a",
        "seed": 0,
        "checkpoint": "final",
        "status": "failed",
        "cost": None,
        "hash": "h",
        "error": "no memory",
        "scores": {},
        "ci95": {},
        "n": {},
    }
