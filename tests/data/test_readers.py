from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.base import Config
from posttrain.config.load import load_yaml
from posttrain.data.readers import DataSource, ReadResult, read_records
from posttrain.data.records import Completion, Conversation, Message, Text
from posttrain.errors import ConfigError, DataError, MissingError

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "你好"}]}


def write(path: Path, *rows: Any, end: str = "\n") -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_bytes((end.join(lines) + end).encode())
    return path


def read(path: Path, **options: Any) -> ReadResult:
    skip = options.pop("skip", False)
    return read_records(DataSource(path=str(path), **options), on_bad_row="skip" if skip else "fail")


def problem(tmp_path: Path, row: Any) -> str:
    """The one complaint about a row, without its location."""
    path = write(tmp_path / "rows.jsonl", CHAT, row)
    with pytest.raises(DataError) as error:
        read(path)
    assert error.value.problems[0].location == f"{path}:2"
    assert "1 of 2 rows" in str(error.value)
    return str(error.value.problems[0]).split(":2: ", 1)[1]


def test_messages_with_every_field(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    tool = {"type": "function", "function": {"name": "add"}}
    row = {
        "id": 7,
        "tools": json.dumps([tool]),
        "messages": [
            {"role": "system", "content": ""},
            {
                "role": "user",
                "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}],
                "train": True,
            },
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "easy", "weight": 0},
            {"role": "tool", "content": "2", "tool_call_id": "x", "name": "add"},
            {"role": "assistant", "content": "2", "tool_calls": None, "train": None},
        ],
    }
    path = write(tmp_path / "rows.jsonl", row)
    (record,) = read(path).records
    assert record == Conversation(
        (
            Message("system", ""),
            Message("user", "1+1?", train=True),
            Message("assistant", "", reasoning="easy", tool_calls=(call,), train=False),
            Message("tool", "2", name="add", tool_call_id="x"),
            Message("assistant", "2"),
        ),
        f"{path}:1",
        (tool,),
    )
    assert isinstance(record, Conversation)
    assert [m.supervised for m in record.messages] == [False, True, False, False, True]
    assert record.messages[2].for_template() == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "easy",
        "tool_calls": [call],
    }


def test_completions(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    path = write(
        tmp_path / "rows.jsonl",
        {"prompt": "2+3=", "completion": " 5"},
        {"prompt": said, "completion": [{"role": "assistant", "content": "d"}]},
        {"prompt": "q", "completion": [{"role": "assistant", "content": "d"}]},
    )
    first, second, third = read(path).records
    assert first == Completion("2+3=", " 5", f"{path}:1")
    assert isinstance(second, Conversation)
    assert [m.supervised for m in second.messages] == [False, False, False, True]
    assert third == Conversation((Message("user", "q"), Message("assistant", "d")), f"{path}:3")


def test_bom_crlf_blank_lines_and_odd_separators(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    odd = json.dumps({"text": "one\u2028two\u0085three"}, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(CHAT).encode() + b"\r\n\r\n" + odd.encode() + b"\r\n")
    result = read(path)
    assert result.rows == 2
    assert result.records[1] == Text("one\u2028two\u0085three", f"{path}:3")


def test_plain_text_is_a_document_per_block(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes("\ufeffFirst\r\nline\r\n\r\n \r\n第二段\n\n".encode())
    assert read(path).records == [Text("First\nline", f"{path}:1"), Text("第二段", f"{path}:5")]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("[1, 2]", "an object is expected, got a list"),
        ('{"messages": [{"role": "user", "content": "Hi"}, {"role": "assi', "not valid JSON.*the line seems to be cut"),
        ('{"text": "a"} trailing', "not valid JSON: Extra data at column 15; one JSON object per line"),
        ({"question": "a", "answer": "b"}, "expected 'messages', 'prompt' and.*has 'question', 'answer'.*columns:"),
        ({"messages": []}, "'messages' is empty"),
        ({"messages": "Hi"}, "'messages' must be a list of messages, got a string"),
        ({"messages": ["Hi"]}, r"messages\[0\] must be an object with 'role' and 'content', got a string"),
        ({"messages": [{"from": "human", "value": "Hi"}]}, "a row without an answer: no assistant turn"),
        ({"messages": [{"content": "Hi"}]}, "has no 'role'; roles are system"),
        (
            {"messages": [{"role": "gpt", "content": "Hi"}]},
            r"messages\[0\] has the unknown role 'gpt'; write 'assistant'",
        ),
        ({"messages": [{"role": 3, "content": "Hi"}]}, "unknown role 3; one of system, developer"),
        ({"messages": [CHAT["messages"][0]]}, "a row without an answer: no assistant turn"),
        (
            {"messages": [*CHAT["messages"], CHAT["messages"][0]]},
            "a row without an answer: the last turn is the user's",
        ),
        (
            {"messages": [CHAT["messages"][0], {"role": "assistant", "content": " "}]},
            "without an answer.*empty content",
        ),
        ({"messages": [CHAT["messages"][0], {"role": "assistant"}]}, r"messages\[1\] has no 'content'"),
        ({"messages": [{"role": "user", "content": 5}]}, "content must be a string, got a number"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "parts that are not text"),
        ({"messages": [CHAT["messages"][0], {**CHAT["messages"][1], "train": False}]}, "nothing to learn"),
        ({"messages": [CHAT["messages"][0], {**CHAT["messages"][1], "train": "no"}]}, "train must be true or false"),
        ({"messages": [CHAT["messages"][0], {**CHAT["messages"][1], "weight": 0.5}]}, "weight must be 0 or 1, got 0.5"),
        ({"messages": [CHAT["messages"][0], {**CHAT["messages"][1], "tool_calls": "x"}]}, "tool_calls must be a list"),
        (
            {"messages": [CHAT["messages"][0], {**CHAT["messages"][1], "reasoning": 1}]},
            "reasoning_content must be a str",
        ),
        ({**CHAT, "tools": 5}, "'tools' must be a list of JSON schemas"),
        ({**CHAT, "tools": "[{"}, "'tools' is not valid JSON"),
        ({"prompt": "a"}, "a row without an answer: 'prompt' but no 'completion'"),
        ({"prompt": "a", "completion": ""}, "a row without an answer: 'completion' is empty"),
        ({"prompt": "a", "completion": None}, "a row without an answer: 'completion' is empty"),
        ({"prompt": 1, "completion": "b"}, "'prompt' must be a string, got a number"),
        ({"text": ""}, "'text' is empty"),
        ({"text": True}, "'text' must be a string, got a boolean"),
    ],
)
def test_bad_rows(tmp_path: Path, row: Any, words: str) -> None:
    assert re.search(words, problem(tmp_path, row))


def test_a_supervised_user_turn_needs_no_answer(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "Ask me", "train": True}]}
    assert len(read(write(tmp_path / "rows.jsonl", row)).records) == 1


def test_all_problems_at_once_and_the_list_is_capped(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *({"x": "a", f"k{n}": 1} for n in range(25)), CHAT)
    with pytest.raises(DataError) as error:
        read(path)
    lines = str(error.value).split("\n")
    assert [line.split(": ")[0] for line in lines[:20]] == [f"{path}:{n}" for n in range(1, 21)]
    assert lines[20:] == ["... and 5 more", "25 of 26 rows cannot be used; --on-bad-row skip leaves them out"]
    result = read(path, skip=True)
    assert (len(result.records), result.rows, result.skipped, len(result.problems)) == (1, 26, 25, 25)


def test_no_row_left_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 of 2 rows"):
        read(write(tmp_path / "rows.jsonl", {"prompt": "a"}, {"prompt": "a"}), skip=True)


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.txt"])
def test_an_empty_file_is_an_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: the file is empty"):
        read(tmp_path / name)


def test_files_that_are_not_json_lines(tmp_path: Path) -> None:
    write(tmp_path / "rows.json", json.dumps([CHAT], indent=1))
    with pytest.raises(DataError, match="on a line of its own"):
        read(write(tmp_path / "indented.jsonl", json.dumps(CHAT, indent=1)))
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xe9"}\n')
    with pytest.raises(DataError, match=r"latin.jsonl:2: not UTF-8"):
        read(tmp_path / "latin.jsonl")
    with pytest.raises(DataError, match=r"\.xlsx files are not read; save the table as CSV UTF-8"):
        read(write(tmp_path / "rows.xlsx", "a,b"))
    with pytest.raises(MissingError, match=r"rowz.json: no such file; did you mean '.*rows.json'"):
        read(tmp_path / "rowz.json")


def test_columns_are_mapped(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"question": "a", "answer": "b"})
    assert read(path, columns={"prompt": "question", "completion": "answer"}).records == [
        Completion("a", "b", f"{path}:1")
    ]
    with pytest.raises(DataError, match=r"no column 'querry'.*the row has 'question', 'answer'"):
        read(path, columns={"prompt": "querry"})


def test_a_format_can_be_demanded(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {**CHAT, "text": "plain"})
    assert read(path, format="text").records == [Text("plain", f"{path}:1")]
    assert isinstance(read(path).records[0], Conversation)


class Outer(Config):
    data: DataSource


def test_source_in_yaml(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data: rows.jsonl\n")
    assert load_yaml(tmp_path / "a.yaml", Outer).data.at(tmp_path).path == str(tmp_path / "rows.jsonl")
    for text, words in (
        ("data: {path: a, hub: b}", "give either path or hub"),
        ("data: {split: a}", "give either path or hub"),
        ("data: {path: a, columns: {promt: b}}", "unknown field 'promt'"),
    ):
        (tmp_path / "b.yaml").write_text(text)
        with pytest.raises(ConfigError, match=words):
            load_yaml(tmp_path / "b.yaml", Outer)


def test_hub_data_set_from_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "train.jsonl", {"question": "a", "answer": "b"}, {"question": "c", "answer": None})
    source = DataSource(hub=str(folder), columns={"prompt": "question", "completion": "answer"})
    result = read_records(source, on_bad_row="skip")
    assert result.records == [Completion("a", "b", f"{folder}[train]:0")]
    assert str(result.problems[0]).startswith(f"{folder}[train]:1: a row without an answer: 'completion' is empty")
    with pytest.raises(DataError, match=r"(?i)split"):
        read_records(source.model_copy(update={"split": "nope"}))


def test_hub_data_set_is_not_fetched_unasked() -> None:
    with pytest.raises(MissingError, match="--download allows"):
        read_records(DataSource(hub="posttrain-tests/there-is-none"))


def test_skipping_is_proposed_only_where_it_would_help(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 of 2 rows cannot be used$"):
        read(write(tmp_path / "all.jsonl", {"prompt": "a"}, {"prompt": "a"}))
    with pytest.raises(DataError, match=r"1 of 2 rows cannot be used; --on-bad-row skip leaves them out$"):
        read(write(tmp_path / "some.jsonl", {"prompt": "a"}, CHAT))


HALF = r'{"messages": [{"role": "user", "content": "Hi \ud83d"}, {"role": "assistant", "content": "a"}]}'


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (HALF, r"\ud83d is half of a character"),
        (r'{"text": "\ude00"}', r"\ude00 is half of a character"),
        (r'{"prompt": "a", "completion": "b", "tools": [{"\ud83d": 1}]}', r"\ud83d is half of a character"),
        (r'{"text": "a", "source": {"x": ["\udc00"]}}', r"\udc00 is half of a character"),
        ('{"text": ' + "[" * 3000 + "]" * 3000 + "}", "brackets nested more than 100 levels deep"),
        ('{"text": "a", "id": ' + "9" * 5000 + "}", "a number with too many digits"),
    ],
)
def test_what_no_tokenizer_takes_is_a_bad_row(tmp_path: Path, line: str, cause: str) -> None:
    path = write(tmp_path / "rows.jsonl", CHAT, line, r'{"text": "\ud83d\ude00"}')
    with pytest.raises(DataError) as error:
        read(path)
    assert error.value.problems[0][:2] == (f"{path}:2", cause)
    result = read(path, skip=True)
    assert (result.rows, result.skipped, len(result.records)) == (3, 1, 2)
    assert result.records[1] == Text("😀", f"{path}:3")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_json_has_not(tmp_path: Path, number: str) -> None:
    call = f'{{"type": "function", "function": {{"name": "f", "arguments": {{"a": [{number}]}}}}}}'
    said = f'{{"role": "assistant", "content": "", "tool_calls": [{call}]}}'
    path = write(tmp_path / "rows.jsonl", f'{{"messages": [{{"role": "user", "content": "a"}}, {said}]}}')
    with pytest.raises(DataError, match=r"messages\[1\].tool_calls holds (nan|inf), which is not JSON"):
        read(path)
    # where nobody reads them, they do no harm
    assert len(read(write(tmp_path / "rows.jsonl", f'{{"text": "a", "score": {number}}}')).records) == 1


CALL = {"function": {"name": "f", "arguments": {}}}
SCHEMA = {"type": "function", "function": {"name": "f"}}
LONE = {"role": "assistant", "content": None}


@pytest.mark.parametrize(
    ("more", "near"),
    [
        ({"trian": False}, "train"),
        ({"training": False}, "train"),
        ({"Train": False}, "train"),
        ({"weigth": 0}, "weight"),
        ({"reasoning_contnet": "Hm"}, "reasoning_content"),
        ({"reasoningContent": "Hm"}, "reasoning_content"),
        ({"think": "Hm"}, "thinking"),
        ({"tool_cals": [CALL]}, "tool_calls"),
        ({"tool_call": CALL}, "tool_calls"),
        ({"toolCalls": [CALL]}, "tool_calls"),
        ({"tool_calls": [], "tool_call": [CALL]}, "tool_calls"),
        ({"tool_cal_id": "c"}, "tool_call_id"),
    ],
)
@pytest.mark.parametrize("form", ["messages", "conversations"])
def test_a_misspelt_key_of_a_message_is_not_dropped(tmp_path: Path, form: str, more: Any, near: str) -> None:
    key = list(more)[-1]
    who, words = ("role", "content") if form == "messages" else ("from", "value")
    turns = [{who: "user", words: "Hi"}, {who: "assistant", words: "Yo", **more}]
    expected = f"{form}[1] has the unknown key '{key}'; did you mean '{near}'? else give it another name"
    assert problem(tmp_path, {form: turns}) == expected


def test_a_misspelt_key_is_named_before_what_it_lacks(tmp_path: Path) -> None:
    user = {"role": "user", "content": "Hi"}
    said = problem(tmp_path, {"messages": [user, {**LONE, "tool_call": [CALL]}]})
    assert said.startswith("messages[1] has the unknown key 'tool_call'; did you mean 'tool_calls'?")
    said = problem(tmp_path, {"messages": [user, {"role": "assistant", "tool_calls": [CALL], "contnet": "I look."}]})
    assert said.startswith("messages[1] has the unknown key 'contnet'; did you mean 'content'?")


@pytest.mark.parametrize(
    ("row", "near"),
    [
        ({**CHAT, "tool": [SCHEMA]}, "tools"),
        ({**CHAT, "Tools": json.dumps([SCHEMA])}, "tools"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "tool": [SCHEMA]}, "tools"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margn": 1.5}, "margin"),
        ({"instruction": "a", "output": "b", "inputs": "c"}, "input"),
        ({"instruction": "a", "output": "b", "histroy": [["c", "d"]]}, "history"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "systm": "c"}, "system"),
    ],
)
def test_a_misspelt_key_of_a_row_is_not_dropped(tmp_path: Path, row: dict[str, Any], near: str) -> None:
    key = next(key for key in row if key in {"tool", "Tools", "margn", "inputs", "histroy", "systm"})
    said = problem(tmp_path, row)
    assert said == f"the row has the unknown key '{key}'; did you mean '{near}'? else give it another name"


def test_other_keys_are_left_alone(tmp_path: Path) -> None:
    """What data sets carry: no key that is read is meant, or it is there, or the value is of another kind."""
    more = {"id": "a", "model": "m", "timestamp": 1.5, "score": 1, "tokens": 3, "reasoning_tokens": 5, "lang": "en"}
    more |= {
        "context": "c",
        "contents": None,
        "tool": "search",
        "game": "go",
        "trian": None,
        "weights": [1],
        "names": [],
    }
    turns = [{**turn, **more} for turn in CHAT["messages"]]
    turns[1] |= {"reasoning": "Hm", "reasonning": "Hm"}
    row = {"messages": turns, "tool": "search", "source": "x", "label": "a", "story": "s", "systems": "s", "margins": 1}
    (record,) = read(write(tmp_path / "rows.jsonl", row)).records
    assert record == Conversation(
        (Message("user", "Hi"), Message("assistant", "你好", reasoning="Hm")), f"{tmp_path}/rows.jsonl:1"
    )
