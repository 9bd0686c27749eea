"""Rows of benchmark files in every format, and everything that is wrong with them at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.errors import DataError, MissingError
from posttrain.exams.rows import Rows


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    rows = [{"a": "x, y", "b": "1"}, {"a": "z", "b": "2"}]
    (tmp_path / "r.jsonl").write_text('{"a": "x, y", "b": "1"}\n\n{"a": "z", "b": "2"}\r\n', "utf-8")
    (tmp_path / "r.json").write_text('[{"a": "x, y", "b": "1"},\n {"a": "z", "b": "2"}]', "utf-8")
    (tmp_path / "r.csv").write_text('\ufeffa,b\n"x, y",1\nz,2\n', "utf-8")
    (tmp_path / "r.tsv").write_text("a\tb\nx, y\t1\nz\t2\n", "utf-8")
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "r.parquet")
    for suffix in ("jsonl", "json", "csv", "tsv", "parquet"):
        read = Rows(tmp_path / f"r.{suffix}")
        assert [dict(row.value) for row in read] == rows, suffix
        read.check()
        assert read.count == 2


def test_places_are_lines(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text('a,b\n"two\nlines",1\nz,2\n', "utf-8")
    assert [row.location.rsplit(":", 1)[1] for row in Rows(tmp_path / "r.csv")] == ["2", "4"]
    (tmp_path / "r.jsonl").write_text('\n{"a": "\u2028"}\n', "utf-8")
    assert [row.location.rsplit(":", 1)[1] for row in Rows(tmp_path / "r.jsonl")] == ["2"]


def test_quotation_marks_of_tsv_are_words(tmp_path: Path) -> None:
    (tmp_path / "r.tsv").write_text('a\tb\n"He said\tx\n', "utf-8")
    (row,) = Rows(tmp_path / "r.tsv")
    assert row.value == {"a": '"He said', "b": "x"}


def test_all_problems_at_once(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"a": 1\n[1]\n{"b": "x"}\n{"a": " "}\n{"a": "fine"}\n', "utf-8")
    rows = Rows(path)
    kept = [text for row in rows if (text := row.text("a")) is not None]
    assert kept == ["fine"]
    with pytest.raises(DataError) as error:
        rows.check()
    text = str(error.value)
    for number, words in enumerate(
        ("not valid JSON", "an object is expected", "'a' must be a text", "'a' is empty"), 1
    ):
        assert f"r.jsonl:{number}: " in text
        assert words in text
    assert "4 of 5 rows cannot be used" in text


def test_empty_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text("\n", "utf-8")
    rows = Rows(tmp_path / "r.jsonl")
    assert list(rows) == []
    with pytest.raises(DataError, match="no rows"):
        rows.check()
    for name in ("x.jsonl", "x.parquet"):
        with pytest.raises(MissingError, match="no such file"):
            list(Rows(tmp_path / name))


def test_lists_of_texts(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"a": "x"}\n{"a": ["x", "y"]}\n{"a": []}\n{"a": [1]}\n', "utf-8")
    rows = Rows(tmp_path / "r.jsonl")
    assert [row.texts("a") for row in rows] == [["x"], ["x", "y"], None, None]
    assert len(rows.problems) == 2


def test_a_comma_in_words_does_not_shift_the_columns(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("a,b\nx,1,\nOne, two,2\n", "utf-8")  # an empty column at the end is harmless
    rows = Rows(tmp_path / "r.csv")
    assert [row.value["b"] for row in rows] == ["1"]
    with pytest.raises(DataError, match=r"r.csv:3: 3 columns, 2 expected: a, b; put a text with a comma"):
        rows.check()


def test_long_fields_and_files_that_are_none(tmp_path: Path) -> None:
    long = "x" * 200_000  # more than csv's own limit
    (tmp_path / "r.csv").write_text(f"a,b\n{long},1\n", "utf-8")
    assert [row.value["a"] for row in Rows(tmp_path / "r.csv")] == [long]
    (tmp_path / "r.parquet").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"r.parquet: not a Parquet file"):
        list(Rows(tmp_path / "r.parquet"))


def test_half_a_character_is_told_before_a_tokenizer_meets_it(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"a": "\\ud83d\\ude00"}\n{"a": ["\\ud83d"]}\n', "utf-8")
    rows = Rows(tmp_path / "r.jsonl")
    assert [row.value["a"] for row in rows] == ["😀"]
    with pytest.raises(DataError, match=r"r.jsonl:2: \\ud83d is half of a character"):
        rows.check()


def test_empty_texts_in_a_list_and_rows_with_several_problems(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"a": ["x", " "], "b": []}\n{"a": "x", "b": "y"}\n', "utf-8")
    rows = Rows(tmp_path / "r.jsonl")
    assert [(row.texts("a"), row.texts("b")) for row in rows] == [(None, None), (["x"], ["y"])]
    with pytest.raises(DataError) as error:
        rows.check()
    assert "'a' has an empty text" in str(error.value)
    assert "got an empty list" in str(error.value)
    assert "1 of 2 rows cannot be used" in str(error.value)
