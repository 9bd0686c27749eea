import json
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.cli.main import main
from posttrain.exams.results import Line, Results, write_results
from posttrain.exams.summary import summarise
from tests.reports.synthetic import make_run


def test_report_writes_the_page_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run", changes=1, methods=("prompt", "full"), fail=(("full", 0),))
    assert main(["report", str(folder)]) == 0
    said = capsys.readouterr()
    assert said.out == f"{folder / 'report.html'}\n"
    assert "2 cells (1 failed)" in said.err
    assert (folder / "report.html").read_text(encoding="utf-8").startswith('<!doctype html>\n<html lang="en">')


def test_checkpoints_and_changes_taught_together_are_one_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = [
        Line(model="m", method="full", change=change, checkpoint=point, hash="h", scores={"reliability": 1.0}, cost={"wall_s": 60})
        for point in ("changes-1", "final") for change in ("a", "b")
    ]  # fmt: skip
    cells = (*done, Line(model="m", method="lora", status="failed", error="no memory", hash="i"))
    write_results(tmp_path, Results(study="s", planned=2, cells=cells, summary=summarise(cells)))
    assert main(["report", str(tmp_path)]) == 0
    assert "2 cells (1 failed)" in capsys.readouterr().err
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "1 of 2 cells failed" in page
    assert "1 min 0 s of work in 1 cells." in page.replace("\u00a0", " ")


def test_report_as_json_elsewhere_in_chinese(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, output = make_run(tmp_path / "run", changes=1, methods=("full",)), tmp_path / "r.html"
    assert main(["report", str(folder), "--language", "zh-TW", "--output", str(output), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["report"] == str(output)
    assert data["bytes"] == output.stat().st_size
    assert (data["cells"], data["failed"], data["answers"], data["problems"]) == (1, 0, 54, [])
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere"], 3, "nowhere: no such folder"),
        (["."], 3, "no results.json in this folder"),
        ([".", "--language", "de"], 2, "unknown language 'de'; known: en, zh-TW"),
    ],
)
def test_what_goes_wrong_has_its_exit_code(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) == code
    assert words in capsys.readouterr().err


def test_making_a_report_imports_no_torch(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", changes=1, methods=("full",))
    code = (
        "import sys; from posttrain.cli.main import main; "
        f"assert main(['report', {str(folder)!r}]) == 0; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=240)
