"""Files that rows come from: tables, Parquet, JSON arrays, packed files, and what is no text at all."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from posttrain.data.readers import DataSource, ReadResult, read_records
from posttrain.data.records import (
    Completion,
    Conversation,
    Graded,
    LabelledText,
    Message,
    Preference,
    TaggedTokens,
    Text,
)
from posttrain.errors import DataError

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "你好"}]
PAIR = ("prompt", "completion")


def read(path: Path, content: bytes | str, **options: Any) -> ReadResult:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    skip = options.pop("skip", False)
    return read_records(DataSource(path=str(path), **options), on_bad_row="skip" if skip else "fail")


def refused(path: Path, content: bytes | str, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        read(path, content, **options)
    return str(error.value).replace(str(path), path.name)


def pairs(result: ReadResult) -> list[tuple[str, str, str]]:
    """(prompt, completion, location without the folder)."""
    found = [r for r in result.records if isinstance(r, Completion)]
    assert len(found) == len(result.records)
    return [(r.prompt, r.completion, Path(r.location).name) for r in found]


def as_csv(rows: Sequence[Sequence[str]], **options: Any) -> str:
    text = io.StringIO()
    csv.writer(text, **options).writerows(rows)
    return text.getvalue()


# ---- tables ----------------------------------------------------------------------------------------------------------


def test_a_csv_file(tmp_path: Path) -> None:
    rows = [PAIR, ("a, b", 'say "hi"'), ("two\nlines", "x"), ("", ""), ("c", " d")]
    expected = [("a, b", 'say "hi"', "r.csv:2"), ("two\nlines", "x", "r.csv:3"), ("c", " d", "r.csv:6")]
    for end in ("\r\n", "\n"):
        text = as_csv(rows, lineterminator=end)
        for start in ("", "\ufeff"):
            assert pairs(read(tmp_path / "r.csv", start + text)) == expected
    assert read(tmp_path / "r.csv", text).recognised() == "prompt and completion"
    odd = read(tmp_path / "r.csv", as_csv([PAIR, ("one\u2028two\x85three", "x")]))
    assert pairs(odd)[0][0] == "one\u2028two\x85three"


@pytest.mark.parametrize(
    ("name", "separator", "note"),
    [
        ("r.csv", ";", "the columns are separated by semicolons"),
        ("r.csv", "\t", "the columns are separated by tabs"),
        ("r.tsv", "\t", ""),
        ("r.tsv", ",", "the columns are separated by commas"),
    ],
)
def test_what_separates_columns(tmp_path: Path, name: str, separator: str, note: str) -> None:
    result = read(tmp_path / name, as_csv([PAIR, ("a;\t,b", "c")], delimiter=separator))
    assert pairs(result) == [("a;\t,b", "c", f"{name}:2")]
    assert result.notes == ((note,) if note else ())


def test_excels_own_first_line(tmp_path: Path) -> None:
    assert pairs(read(tmp_path / "r.csv", "sep=;\r\nprompt;completion\r\na;b\r\n")) == [("a", "b", "r.csv:3")]


def test_other_formats_in_tables(tmp_path: Path) -> None:
    header = ("instruction", "input", "output", "system")
    alpaca = read(tmp_path / "r.csv", as_csv([header, ("Sum.", "1+1", "2", ""), ("Hi", "", "Ho", "")]))
    assert pairs(alpaca) == [("Sum.\n\n1+1", "2", "r.csv:2"), ("Hi", "Ho", "r.csv:3")]
    talk = json.dumps([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "你好"}], ensure_ascii=False)
    for column, cell in (("messages", json.dumps(CHAT)), ("conversations", talk)):
        (record,) = read(tmp_path / "r.csv", as_csv([(column, "id"), (cell, "7")])).records
        assert isinstance(record, Conversation)
        assert record.messages == (Message("user", "Hi"), Message("assistant", "你好"))
    # an index that pandas wrote, without a name
    assert pairs(read(tmp_path / "r.csv", ",prompt,completion\n0,a,b\n")) == [("a", "b", "r.csv:2")]
    mapped = read(tmp_path / "r.csv", "q,a\nx,y\n", columns={"prompt": "q", "completion": "a"})
    assert pairs(mapped) == [("x", "y", "r.csv:2")]
    # an answer that is JSON stays a text
    assert pairs(read(tmp_path / "r.csv", as_csv([PAIR, ("a", '[{"x": 1}]')]))) == [("a", '[{"x": 1}]', "r.csv:2")]


def test_preferences_and_graded_answers_in_tables(tmp_path: Path) -> None:
    header = ("prompt", "chosen", "rejected", "margin")
    first, second = read(tmp_path / "r.csv", as_csv([header, ("p", "a", "b", "0.5"), ("p", "a", "b", "")])).records
    assert isinstance(first, Preference)
    assert isinstance(second, Preference)
    assert (first.margin, second.margin, first.plain) == (0.5, None, True)
    told = [json.dumps([CHAT[0], {"role": "assistant", "content": word}]) for word in ("yes", "no")]
    (pair,) = read(tmp_path / "r.csv", as_csv([("chosen", "rejected"), told])).records
    assert isinstance(pair, Preference)
    assert (pair.prompt, pair.chosen[0].content) == ((Message("user", "Hi"),), "yes")
    assert "'margin' must be a number, got a string" in refused(
        tmp_path / "r.csv", as_csv([header, ("p", "a", "b", "much")])
    )
    graded = read(tmp_path / "r.csv", "prompt,completion,label\np,a,True\np,a,false\np,a,0\n", format="graded").records
    assert [record.label for record in graded if isinstance(record, Graded)] == [True, False, False]
    assert isinstance(read(tmp_path / "r.csv", "prompt,completion,label\np,a,TRUE\n").records[0], Graded)


def test_labels_and_tags_in_tables(tmp_path: Path) -> None:
    (found,) = read(tmp_path / "r.csv", "text,label\ngood,1\n", format="labels").records
    assert isinstance(found, LabelledText)
    assert found.labels == ("1",)
    row = (json.dumps(["Ada", "b"]), json.dumps(["B-PER", "O"]))
    (tagged,) = read(tmp_path / "r.csv", as_csv([("tokens", "tags"), row]), format="tags").records
    assert isinstance(tagged, TaggedTokens)
    assert (tagged.tokens, tagged.tags) == (("Ada", "b"), ("B-PER", "O"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prompt,completion\na\n", "r.csv:2: 1 columns, 2 expected: prompt, completion; put a text with a comma"),
        ("prompt,completion\na,b,c\n", "r.csv:2: 3 columns, 2 expected"),
        ('prompt,completion\na,b\n"c,d\ne,f\n', "r.csv:3: not valid CSV: a quotation mark is opened and never closed"),
        ('prompt,completion\n"a"b,c\n', "r.csv:2: not valid CSV: ',' expected after '\"'"),
        ("prompt,prompt\na,b\n", "r.csv:1: two columns are called 'prompt'"),
        ("prompt,completion\n", "r.csv: the table has no rows"),
        ("prompt,completion\na,\n", "r.csv:2: a row without an answer: 'completion' is empty"),
        ("promt,completion\na,b\n", "r.csv:2: expected 'messages'"),
        ("promt,completion\na,b\n", "did you mean 'prompt'? it has 'promt'"),
        ("messages\n\"[{'role': 'user'}]\"\n", "'messages' is not valid JSON"),
    ],
)
def test_tables_that_are_wrong(tmp_path: Path, text: str, words: str) -> None:
    assert words in refused(tmp_path / "r.csv", text)


def test_bad_rows_of_a_table_can_be_skipped(tmp_path: Path) -> None:
    result = read(tmp_path / "r.csv", "prompt,completion\na\nb,c\nd,e,f\n", skip=True)
    assert pairs(result) == [("b", "c", "r.csv:3")]
    assert (result.rows, result.skipped) == (3, 2)


# ---- encodings -------------------------------------------------------------------------------------------------------

CHINESE = "prompt,completion\n臺灣最高的山是哪一座？,玉山是臺灣最高的山。\n"
SIMPLE = "prompt,completion\n中国最长的河是哪一条？,长江是中国最长的河。\n"


@pytest.mark.parametrize(
    ("text", "codec", "words"),
    [
        (CHINESE, "big5", "r.csv:2: not UTF-8; it looks like Big5; save it as UTF-8 (in Excel, 'CSV UTF-8'; or: iconv"),
        (SIMPLE, "gb18030", "r.csv:2: not UTF-8; it looks like GB18030; save it as UTF-8 (in Excel, 'CSV UTF-8'"),
        (CHINESE, "utf-16", "r.csv:1: not UTF-8 but UTF-16; save it as UTF-8"),
        (CHINESE, "utf-32", "r.csv:1: not UTF-8 but UTF-32; save it as UTF-8"),
        ("prompt,completion\nGrüße,é\n", "latin-1", "r.csv:2: not UTF-8; save the file as UTF-8"),
    ],
)
def test_other_encodings_are_refused_by_name(tmp_path: Path, text: str, codec: str, words: str) -> None:
    assert words in refused(tmp_path / "r.csv", text.encode(codec))


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_refused_too(tmp_path: Path, codec: str) -> None:
    text = "prompt,completion\nabc,d\n"
    for name in ("r.csv", "r.jsonl", "r.txt"):
        expected = f"{name}:1: not UTF-8 but {codec.upper().replace('16-', '16')}; save it as UTF-8: iconv -f UTF-16"
        assert expected in refused(tmp_path / name, text.encode(codec))


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"PAR1\xff", "not UTF-8 but a Parquet file; call it .parquet"),
        (b"\x1f\x8b\xff", "not UTF-8 but compressed by gzip; end its name in .gz"),
        (b"PK\x03\x04\xff", "not UTF-8 but an Excel or ZIP file"),
    ],
)
def test_files_of_another_kind_under_a_wrong_name(tmp_path: Path, start: bytes, words: str) -> None:
    assert words in refused(tmp_path / "r.jsonl", start)


# ---- JSON arrays, packed files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["r.json", "r.jsonl"])
def test_a_json_array(tmp_path: Path, name: str, indent: int | None) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"instruction": "c", "output": "d"}]
    result = read(tmp_path / name, "\ufeff" + json.dumps(rows, indent=indent) + "\n")
    assert pairs(result) == [("a", "b", f"{name}[1]"), ("c", "d", f"{name}[2]")]
    bad = refused(tmp_path / name, json.dumps([*rows, {"prompt": "a"}], indent=indent))
    assert f"{name}[3]: a row without an answer" in bad


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "r.jsonl",
            '{"prompt": "a", "completion": "b"}\n{"prompt": "a", "prompt": "b", "completion": "c"}\n',
            "r.jsonl:2: an object that has the key 'prompt' twice at column 17; keep one of them",
        ),
        (
            "r.jsonl",
            '{"messages": [{"role": "user", "content": "a", "content": "b"}]}\n',
            "r.jsonl:1: an object that has the key 'content' twice at column 48; keep one of them",
        ),
        (
            "r.json",
            '[{"prompt": "a", "completion": "b"},\n {"prompt": "a", "completion": "b", "prompt": "c"}]',
            "r.json:2: an object that has the key 'prompt' twice; keep one of them",
        ),
        (
            "r.json",
            '{"data": [{"paragraphs":\n [{"context": "a", "context": "b", "qas": []}]}]}',
            "r.json:2: an object that has the key 'context' twice; keep one of them",
        ),
        (
            "r.jsonl",
            '{"prompt": [{"role": "user", "content": "a"}], "completion": "b", "tools": "[{\\"name\\": 1, \\"name\\": 2}]"}',
            "r.jsonl:1: 'tools' is an object that has the key 'name' twice; keep one of them",
        ),
        (
            "r.jsonl",
            '{"messages": "[{\\"role\\": \\"user\\", \\"role\\": \\"user\\"}]"}',
            "r.jsonl:1: the text of 'messages' is an object that has the key 'role' twice; keep one of them",
        ),
        (
            "r.csv",
            'messages\n"[{""role"": ""user"", ""content"": ""a"", ""content"": ""b""}]"\n',
            "r.csv:2: the text of 'messages' is an object that has the key 'content' twice; keep one of them",
        ),
    ],
)
def test_no_key_stands_twice(tmp_path: Path, name: str, text: str, words: str) -> None:
    assert words in refused(tmp_path / name, text)


def test_json_arrays_that_are_wrong(tmp_path: Path) -> None:
    assert "r.json:2: not valid JSON" in refused(tmp_path / "r.json", '[{"prompt": "a"},\n{"prompt": "b"')
    assert "the file seems to be cut off" in refused(tmp_path / "r.json", '[{"prompt": "a"},\n{"prompt": "b"')
    assert "r.json: the file is empty" in refused(tmp_path / "r.json", "[]")
    assert "r.json[1]: an object is expected, got a list" in refused(tmp_path / "r.json", "[[1]]")
    assert "r.jsonl:2: an object is expected, got a list" in refused(tmp_path / "r.jsonl", "[1]\n[2]\n")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.jsonl.gz", '{"prompt": "a", "completion": "b"}\n'),
        ("r.csv.gz", "prompt,completion\na,b\n"),
        ("r.json.gz", '[{"prompt": "a", "completion": "b"}]'),
    ],
)
def test_packed_files(tmp_path: Path, name: str, text: str) -> None:
    packed = gzip.compress(text.encode())
    assert [pair[:2] for pair in pairs(read(tmp_path / name, packed))] == [("a", "b")]
    assert "not a gzip file, or cut off" in refused(tmp_path / name, packed[:-9])
    assert "not a gzip file, or cut off" in refused(tmp_path / name, text)


# ---- Parquet ---------------------------------------------------------------------------------------------------------


def test_a_parquet_file(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": CHAT, "prompt": None, "text": None},
        {"messages": None, "prompt": "a", "completion": "b"},
        {"messages": None, "text": "t"},
    ]
    parquet.write_table(
        pa.Table.from_pylist(
            rows,
            schema=pa.schema(
                [
                    ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
                    ("prompt", pa.string()),
                    ("completion", pa.string()),
                    ("text", pa.string()),
                ]
            ),
        ),
        tmp_path / "r.parquet",
    )
    result = read_records(DataSource(path=str(tmp_path / "r.parquet")))
    at = tmp_path / "r.parquet"
    assert result.records == [
        Conversation((Message("user", "Hi"), Message("assistant", "你好")), f"{at}[1]"),
        Completion("a", "b", f"{at}[2]"),
        Text("t", f"{at}[3]"),
    ]


def test_preferences_in_parquet(tmp_path: Path) -> None:
    rows = [
        {
            "chosen": [CHAT[0], {"role": "assistant", "content": a}],
            "rejected": [CHAT[0], {"role": "assistant", "content": b}],
        }
        for a, b in (("yes", "no"), ("one", "two"))
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "r.parquet")
    found = read_records(DataSource(path=str(tmp_path / "r.parquet"), format="preference")).records
    assert [
        (r.prompt[0].content, r.chosen[0].content, r.rejected[0].content) for r in found if isinstance(r, Preference)
    ] == [
        ("Hi", "yes", "no"),
        ("Hi", "one", "two"),
    ]


def test_parquet_files_that_are_wrong(tmp_path: Path) -> None:
    assert "not a Parquet file that can be read" in refused(tmp_path / "r.parquet", b"PAR1 no")
    assert "not a Parquet file that can be read" in refused(tmp_path / "r.parquet", b"")
    parquet.write_table(pa.table({"prompt": ["a"]}), tmp_path / "r.parquet")
    with pytest.raises(DataError, match=r"r\.parquet\[1\]: a row without an answer"):
        read_records(DataSource(path=str(tmp_path / "r.parquet")))
    # a text that is not UTF-8, which Parquet does not notice
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xed\xa0")]
    )
    parquet.write_table(pa.table({"text": broken}), tmp_path / "r.parquet")
    with pytest.raises(DataError, match="not a Parquet file that can be read"):
        read_records(DataSource(path=str(tmp_path / "r.parquet")))


ROW = '{"prompt": "a", "completion": "b"}'


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "r.jsonl",
            f"{ROW}\n{ROW},\n",
            "r.jsonl:2: not valid JSON: Extra data at column 35; remove the comma at the end",
        ),
        ("r.jsonl", f"{ROW[:-1]},}}\n", "; remove the comma before '}'"),
        ("r.json", f"[{ROW},\n{ROW},\n]", "; remove the comma before ']'"),
        ("r.jsonl", f"{ROW}\n{ROW[:20]}\n", "; the line seems to be cut off"),
        ("r.jsonl", f"{ROW}}}\n", "; one JSON object per line is expected"),
    ],
)
def test_commas_too_much_and_lines_that_break_off(tmp_path: Path, name: str, text: str, said: str) -> None:
    assert said in refused(tmp_path / name, text)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "r.csv",
            "prompt,completion\n\n",
            "r.csv: the table has no rows: its only line names the columns 'prompt', 'completion'; the first line names "
            "the columns, each line after it is a row",
        ),
        ("r.tsv", "text\n", "r.tsv: the table has no rows: its only line names the columns 'text'; the first line"),
        (
            "r.csv",
            "\n",
            "r.csv: the file is empty: no rows; the first line names the columns, each line after it is a row",
        ),
        (
            "r.txt",
            "\n",
            "r.txt: the file is empty: no rows; write a document, or several with blank lines between them",
        ),
        ("r.bio", "# a\n", "r.bio: the file is empty: no rows; a token and its tag in each line, blank lines between"),
        ("r.jsonl", "\n", "r.jsonl: the file is empty: no rows; one JSON object per line is expected"),
    ],
)
def test_files_without_rows(tmp_path: Path, name: str, text: str, said: str) -> None:
    assert said in refused(tmp_path / name, text)


def test_a_table_of_one_bad_row_is_not_without_rows(tmp_path: Path) -> None:
    assert "r.csv:2: 1 columns, 2 expected" in refused(tmp_path / "r.csv", "prompt,completion\na\n")
