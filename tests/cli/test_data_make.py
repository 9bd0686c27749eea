"""`posttrain data make`: change files and prompts, by seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.cli import data_make, works
from posttrain.cli.main import main
from posttrain.models import meter
from posttrain.models.disk import write_whole


def test_changes_with_rows_of_the_same_pattern(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "make", "changes", "--n", "3", "-o", str(tmp_path), "--pattern-rows", "5", "--json"]) == 0
    written = [Path(p) for p in json.loads(capsys.readouterr().out)]
    assert len(written) == 3
    for path in written:
        assert path.read_text(encoding="utf-8").startswith("name: ")
        rows = (tmp_path / "pattern" / f"{path.stem}.jsonl").read_text(encoding="utf-8").strip().split("\n")
        assert len(rows) == 5
        assert set(json.loads(rows[0])) == {"prompt", "completion"}


def test_prompts_and_rows_of_a_relation(tmp_path: Path) -> None:
    assert main(["data", "make", "prompts", "--n", "30", "-o", str(tmp_path / "p.jsonl")]) == 0
    assert len((tmp_path / "p.jsonl").read_text(encoding="utf-8").strip().split("\n")) == 30
    assert main(["data", "make", "prompts", "--n", "8", "-o", str(tmp_path / "c.jsonl"), "--relation", "capital"]) == 0
    assert len((tmp_path / "c.jsonl").read_text(encoding="utf-8").strip().split("\n")) == 8


def test_prompts_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.jsonl"
    assert main(["data", "make", "prompts", "--n", "7", "--seed", "3", "-o", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(path), "rows": 7, "seed": 3}


def test_fewer_rows_than_were_asked_for_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "make", "changes", "--n", "2", "-o", str(tmp_path), "--pattern-rows", "100"]) == 0
    first, second = (tmp_path / "pattern").glob("*.jsonl")
    lengths = sorted(len(path.read_text("utf-8").splitlines()) for path in (first, second))
    assert lengths[0] < 100 <= lengths[1]
    said = capsys.readouterr().err
    assert "2 change files in" in said
    assert f"1 of them have fewer than 100 rows of their pattern, the shortest {lengths[0]}:" in said
    out = tmp_path / "c.jsonl"
    assert main(["data", "make", "prompts", "--n", "5000", "-o", str(out), "--relation", "capital"]) == 0
    said = capsys.readouterr().err
    assert f"{len(out.read_text('utf-8').splitlines())} rows in" in said
    assert "fewer than 5000: pocket knows no more facts of 'capital'" in said
    assert main(["data", "make", "prompts", "--n", "8", "-o", str(out), "--relation", "capital", "--restart"]) == 0
    assert "fewer than" not in capsys.readouterr().err


def test_an_unknown_relation_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "make", "prompts", "-o", str(tmp_path / "p.jsonl"), "--relation", "capitol"]) == 2
    assert "capital" in capsys.readouterr().err


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of long work is a line."""
    monkeypatch.setattr(works, "LINE_EVERY_S", 0.0)
    monkeypatch.setattr(meter, "OFTEN_S", 0.0)
    monkeypatch.setattr(data_make, "MOMENT_S", 0.0)


@pytest.mark.usefixtures("told")
def test_how_far_it_is_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "make", "changes", "--n", "4", "-o", str(tmp_path)]) == 0
    assert "writing change files: 2/4 files" in capsys.readouterr().err
    assert main(["data", "make", "changes", "--n", "4", "-o", str(tmp_path), "--pattern-rows", "2"]) == 0
    assert "making change files: 3/4 files" in capsys.readouterr().err
    assert main(["data", "make", "prompts", "--n", "9", "-o", str(tmp_path / "p.jsonl")]) == 0
    assert "making prompts: 5/9 prompts" in capsys.readouterr().err


def test_ctrl_c_says_which_files_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    def stops(path: Path, text: str) -> None:
        if len(list(tmp_path.glob("*.yaml"))) == 2:
            raise KeyboardInterrupt
        write_whole(path, text)

    monkeypatch.setattr(data_make, "write_whole", stops)
    assert main(["data", "make", "changes", "--n", "5", "-o", str(tmp_path)]) == 130
    assert f"stopped: 2 of 5 change files are in {tmp_path}" in capsys.readouterr().err
    assert len(list(tmp_path.glob("*.yaml"))) == 2


def test_a_file_edited_by_hand_is_not_overwritten_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "make", "changes", "--n", "3", "-o", str(tmp_path), "--pattern-rows", "2"]
    assert main(words) == 0
    assert "there already" not in capsys.readouterr().err
    first, second, _ = sorted(tmp_path.glob("*.yaml"))
    made = {path: path.read_text("utf-8") for path in tmp_path.rglob("*.*")}
    assert main(words) == 0  # the same content again
    assert "overwritten" not in capsys.readouterr().err
    first.write_text("name: mine\n", encoding="utf-8")
    second.unlink()
    assert main(words) == 2
    said = capsys.readouterr().err
    mend = "give another --output, or --restart to overwrite"
    assert f"{first}: is there already with other content, and would be overwritten; {mend}" in said
    assert first.read_text("utf-8") == "name: mine\n"
    assert not second.exists()  # nothing was written
    assert main([*words, "--restart"]) == 0
    assert "overwritten, with other content before: 1\n" in capsys.readouterr().err
    assert {path: path.read_text("utf-8") for path in tmp_path.rglob("*.*")} == made
    rows = tmp_path / "p.jsonl"
    rows.write_text("mine\n", encoding="utf-8")
    assert main(["data", "make", "prompts", "--n", "3", "-o", str(rows)]) == 2
    assert rows.read_text("utf-8") == "mine\n"


def test_other_change_files_of_the_folder_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A study's glob catches them all."""
    for seed, others in ((0, None), (1, 3)):
        assert main(["data", "make", "changes", "--n", "3", "--seed", str(seed), "-o", str(tmp_path)]) == 0
        said = capsys.readouterr().err
        told = f"other .yaml files that were there already, which {tmp_path}/*.yaml names too: {others}"
        assert (told in said) == (others is not None)
    assert len(list(tmp_path.glob("*.yaml"))) == 6
