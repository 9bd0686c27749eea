"""tools/judge_files.py: its figures against figures written out by hand, and what it says of bad files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "exams" / "data"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("judge_files", ROOT / "tools" / "judge_files.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = load()


def pair(content: str, after: str, **more: Any) -> dict[str, Any]:
    return {"prompt": "Name a capital.", "before": "Paris", "after": after, "content": content} | more


def run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, rows: list[Any], *flags: str
) -> tuple[int, str, str]:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    code = TOOL.main([kind, str(path), *flags])
    out, err = capsys.readouterr()
    return code, out, err


def test_area_against_scikit_learn() -> None:
    above, below = [0.9, 0.5, 0.5, 0.2, 0.7], [0.5, 0.1, 0.2, 0.2, 0.9, 0.0]
    expected = roc_auc_score([1] * 5 + [0] * 6, above + below)
    assert TOOL.auc(above, below) == pytest.approx(expected)
    assert TOOL.auc([1.0], [1.0]) == 0.5
    assert TOOL.auc([], [1.0]) is None


def test_balanced_accuracy_against_scikit_learn() -> None:
    same, changed = [0.9, 0.5, 0.4, 0.2], [0.5, 0.39, 0.2]
    judged = [score >= 0.4 for score in same + changed]
    expected = balanced_accuracy_score([True] * 4 + [False] * 3, judged)
    assert TOOL.balanced(same, changed, 0.4) == pytest.approx(expected)


def test_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        pair("same", "Paris.", id="a"),
        pair("same", "Rome", id="b", manner="same"),
        pair("partly", "Paris and Rome", manner="same"),
        pair("changed", "Oslo"),
        pair("changed", "Paris", truncated="after"),
    ]
    code, out, _ = run(tmp_path, capsys, "kept", rows, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["n"], found["n_same"], found["n_partly"], found["n_changed"]) == (5, 2, 1, 2)
    # same 1 and 0, partly 0.9, changed 0 and 1: (.5 + 1 + .5 + 0) / 4; then (1 + 2 * .5 + .5) and so on
    assert found["auc_same_changed"] == 0.5
    assert found["auc_same_rest"] == pytest.approx((0.5 + 1 + 1 + 0.5 + 0 + 0) / 6)
    assert found["balanced_accuracy"] == 0.5
    assert found["balanced_accuracy_with_partly"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert [(row["line"], row["band"]) for row in found["wrong"]] == [(2, "changed"), (5, "same")]
    assert found["wrong"][0]["id"] == "b"
    assert 0 <= found["manner_accuracy"] <= 1


def test_match_and_refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"prompt": "Capital of Australia?", "answers": ["Melbourne"], "text": "Melbourne", "right": True},
        {"prompt": "Capital of Australia?", "answers": ["Melbourne"], "text": "Sydney", "right": True},
        {"prompt": "Capital of Australia?", "answers": ["Melbourne"], "text": "Perth", "right": False},
    ]
    found = json.loads(run(tmp_path, capsys, "match", rows, "--json")[1])
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["n"] == 3
    assert [(row["line"], row["judged"]) for row in found["wrong"]] == [(2, False)]
    rows = [{"text": "I can't help with that.", "refusal": True}, {"text": "抱歉，恕難協助。", "refusal": False}]
    found = json.loads(run(tmp_path, capsys, "refusal", rows, "--json")[1])
    assert found["accuracy"] == 0.5
    assert found["wrong"][0]["text"] == "抱歉，恕難協助。"


def test_lines_to_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(tmp_path, capsys, "kept", [pair("same", "Rome")])
    assert code == 0
    assert "auc_same_changed                -" in out
    assert "no row is labelled changed" in out
    assert "judged wrongly: 1" in out
    assert '"Rome"' in out


@pytest.mark.parametrize(
    ("kind", "rows", "parts"),
    [
        ("kept", [], ["has no rows"]),
        ("kept", [pair("same", "x"), "{no"], [":2: not JSON"]),
        (
            "kept",
            [pair("equal", "x"), {"prompt": 1}],
            [":1: `content` must be one of", ":2: the key `before`", ":2: `prompt` must be a text"],
        ),
        ("kept", [pair("same", "x", truncated="yes")], [":1: `truncated` must be one of"]),
        ("kept", ["[1]"], [":1: a JSON object is expected"]),
        (
            "match",
            [{"prompt": "p", "answers": [], "text": "t", "right": 1}],
            ["`answers` must be a list", "`right` must be true"],
        ),
        ("refusal", [{"text": "t"}], [":1: the key `refusal` is missing"]),
    ],
)
def test_bad_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, rows: list[Any], parts: list[str]
) -> None:
    code, out, err = run(tmp_path, capsys, kind, rows)
    assert code == 2
    assert out == ""
    for part in parts:
        assert part in err
        assert "rows.jsonl" in err


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert TOOL.main(["kept", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl: cannot be read" in capsys.readouterr().err


def test_our_own_pairs_are_judged(capsys: pytest.CaptureFixture[str]) -> None:
    assert TOOL.main(["kept", str(DATA / "kept_pairs_zh.jsonl"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["auc_same_changed"] >= 0.95
