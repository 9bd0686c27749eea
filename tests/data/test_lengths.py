"""One fault of many rows is one line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.lengths import grouped
from posttrain.data.readers import DataSource, read_records
from posttrain.errors import DataError, Problem


def refused(path: Path, **source: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        read_records(DataSource(path=str(path), **source))
    return str(caught.value).split("\n")


def test_a_table_of_other_columns_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "cook.csv"
    path.write_text("問題,回答\n" + "甲,乙\n" * 60, encoding="utf-8")
    lines = refused(path)
    assert len(lines) == 2
    assert lines[0].startswith(f"{path}:2-61: expected 'messages', ")
    assert "the row has '問題', '回答' (60 rows); rename the fields, or map them: " in lines[0]
    assert (
        "--column prompt=問題 --column completion=回答 (in a file columns: {prompt: 問題, completion: 回答})"
        in lines[0]
    )
    assert lines[1] == "60 of 60 rows cannot be used"


@pytest.mark.parametrize(
    ("columns", "asked", "answered"),
    [
        (["指令", "回應"], "指令", "回應"),
        (["編號", "輸入", "輸出"], "輸入", "輸出"),
        (["回答", "問題"], "問題", "回答"),
        (["Question", "Answer"], "Question", "Answer"),
        (["q", "a"], "q", "a"),
        (["問題", "師父說"], "問題", "師父說"),
        (["a", "b", "c"], "QUESTION", "ANSWER"),
    ],
)
def test_the_mend_names_the_file_s_own_columns(tmp_path: Path, columns: list[str], asked: str, answered: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(dict.fromkeys(columns, "x"), ensure_ascii=False) + "\n", encoding="utf-8")
    assert f"--column prompt={asked} --column completion={answered} " in refused(path)[0]
    if asked in columns:
        mapped = DataSource(path=str(path), columns={"prompt": asked, "completion": answered})
        assert len(read_records(mapped).records) == 1


def test_a_column_with_a_space_is_quoted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"my question": "x", "answer": "y"}\n', encoding="utf-8")
    assert "--column 'prompt=my question' --column completion=answer " in refused(path)[0]


def test_ranges_of_rows_counts_and_other_faults() -> None:
    def at(number: int, cause: str = "empty", mend: str = "fill it", file: str = "r.jsonl") -> Problem:
        return Problem(f"{file}:{number}", cause, mend)

    problems = [at(1), at(2), at(3, "cut off"), at(4), at(9), at(10), Problem("r.jsonl", "x"), Problem("r.jsonl", "x")]
    assert grouped(problems) == [
        (Problem("r.jsonl:1-2, 4, 9-10", "empty (5 rows)", "fill it"), 5),
        (at(3, "cut off"), 1),
        (Problem("r.jsonl", "x"), 1),
        (Problem("r.jsonl", "x"), 1),
    ]
    assert grouped([at(1), at(2)]) == [(at(1), 1), (at(2), 1)]  # two lines are read as they are
    assert grouped([at(1), at(2), at(3, file="s.jsonl")]) == [(at(1), 1), (at(2), 1), (at(3, file="s.jsonl"), 1)]
    array = [Problem(f"r.json[{number}]", "empty") for number in range(1, 14, 2)]
    assert grouped(array) == [(Problem("r.json[1, 3, 5, 7, 9, ...]", "empty (7 rows)"), 7)]


def test_many_faults_are_capped_and_the_rest_is_counted_in_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    kinds = [{"x": "a", f"k{n}": 1} for n in range(22)]
    path.write_text("".join(json.dumps(kind) + "\n" for kind in kinds * 3), encoding="utf-8")
    lines = refused(path)
    assert lines[0].startswith(f"{path}:1, 23, 45: ")
    assert lines[20:] == ["... and 6 more", "66 of 66 rows cannot be used"]


@pytest.mark.parametrize(
    ("name", "said"), [("rows.dat", "the ending '.dat' is not known"), ("rows", "the name has no ending")]
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_file_whose_name_says_nothing_says_how_it_was_read(
    tmp_path: Path, name: str, said: str, packed: bool
) -> None:
    path = tmp_path / (f"{name}.gz" if packed else name)

    def write(text: str) -> None:
        data = text.encode("utf-8")
        path.write_bytes(gzip.compress(data) if packed else data)

    write("prompt,completion\na,b\n")
    lines = refused(path)
    assert f"(read as JSON Lines: {said})" in lines[0]
    assert lines[0].endswith("; end its name in .jsonl, .csv, .tsv, .parquet, .txt or .conll, as what it is")
    write('{"prompt": "a", "completion": "b"}\n')
    read = read_records(DataSource(path=str(path)))
    assert len(read.records) == 1
    assert read.notes == (f"read as JSON Lines: {said}",)
