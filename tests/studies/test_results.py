from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from posttrain.exams.statistics import share_over_changes
from posttrain.studies.results import CellResult, Examined, read_result, summarise_cells, to_yaml, write_json


def result(change: str, score: float, *, seed: int = 0, status: str = "done", method: str = "full") -> CellResult:
    examined = [Examined("final", {"reliability": score}, {"reliability": (0.1, 0.9)}, {"reliability": 3}, "cells/x")]
    return CellResult("h", "m", method, change, seed, status, examined=examined if status == "done" else ())


def test_means_over_changes_where_seeds_count_once() -> None:
    lines = summarise_cells([result("a", 1.0), result("a", 0.0, seed=1), result("b", 1.0), result("b", 1.0, seed=1)])
    assert len(lines) == 1
    assert lines[0]["scores"] == {"reliability": 0.75}
    low, high = lines[0]["ci95"]["reliability"]
    assert (low, high) == share_over_changes([0.5, 1.0], [6, 6])
    assert 0.2 < low < 0.3
    assert 0.95 < high < 1.0
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


def beside(change: str, kept: list[int | None], *, method: str = "full", seed: int = 0) -> CellResult:
    counted = [k for k in kept if k is not None]
    score = {"locality.unrelated": sum(counted) / len(counted)}
    one = Examined("final", score, {}, {"locality.unrelated": len(counted)}, "x", outcomes={"locality.unrelated": kept})
    return CellResult("h", "m", method, change, seed, "done", examined=[one])


def test_a_loss_is_below_the_noise_floor_by_a_paired_test() -> None:
    """Eight changes of four probes: the floor keeps all but one; a method that loses two of each is below it, one that
    loses what the floor loses is not, nor is one that loses everything of a single change.
    """
    names = [f"c{i}" for i in range(8)]
    floor = [beside(n, [1, 1, 1, 0 if n == "c0" else 1], method="noise floor") for n in names]
    bad = [beside(n, [0, 0, 1, 1]) for n in names]
    equal = [beside(n, [1, 1, 1, 0 if n == "c0" else 1], method="good") for n in names]
    once = [beside(n, [0, 0, 0, 0] if n == "c1" else [1, 1, 1, None], method="once") for n in names]
    found = {line["method"]: line["floor"] for line in summarise_cells([*floor, *bad, *equal, *once])}
    assert found["noise floor"] == {}
    loss = found["full"]["locality.unrelated"]
    assert (loss["n"], loss["score"], loss["floor"], loss["below"]) == (32, 0.5, 31 / 32, True)
    assert loss["p_value"] == pytest.approx(2 / 2**8)  # every change fell: the sign flips, above McNemar's
    assert found["good"]["locality.unrelated"]["p_value"] == 1.0
    assert not found["good"]["locality.unrelated"]["below"]
    assert not found["once"]["locality.unrelated"]["below"]


def test_each_seed_is_paired_with_the_floor() -> None:
    floor = [beside("a", [1] * 6, method="noise floor")]
    seeds = [beside("a", [0, 0, 0, 1, 1, 1], seed=s) for s in (0, 1)]
    (line,) = [line for line in summarise_cells([*floor, *seeds]) if line["method"] == "full"]
    beside_it = line["floor"]["locality.unrelated"]
    assert (beside_it["n"], beside_it["below"]) == (12, True)
    assert beside_it["p_value"] == pytest.approx(2 / 2**6)
