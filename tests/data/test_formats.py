"""Rows as other programs write them: Alpaca, ShareGPT, content and summary; recognised by their keys, row by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.load import check
from posttrain.data.readers import DataSource, Format, ReadResult, read_records
from posttrain.data.records import Completion, Conversation, Graded, Message, Preference, Record, Text
from posttrain.errors import ConfigError, DataError


def read(tmp_path: Path, *rows: Any, format: Format = "auto", columns: dict[str, str] | None = None) -> ReadResult:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return read_records(DataSource(path=str(path), format=format, columns=columns or {}))


def one(tmp_path: Path, row: Any, **options: Any) -> Record:
    (record,) = read(tmp_path, row, **options).records
    return record


def refused(tmp_path: Path, row: Any, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        read(tmp_path, row, **options)
    assert error.value.problems[0].location == f"{tmp_path}/rows.jsonl:1"
    return str(error.value.problems[0]).split(":1: ", 1)[1]


# ---- Alpaca ----------------------------------------------------------------------------------------------------------


def test_alpaca(tmp_path: Path) -> None:
    result = read(
        tmp_path,
        {"instruction": "Translate.", "input": "night market", "output": "夜市"},
        {"instruction": "Say hi.", "input": "", "output": "Hi."},
        {"instruction": "Say hi.", "output": "Hi.", "text": "Below is an instruction ... Hi."},
        {"instruction": "Say hi.", "input": None, "output": "Hi."},
    )
    assert [(r.prompt, r.completion) for r in result.records if isinstance(r, Completion)] == [
        ("Translate.\n\nnight market", "夜市"),
        *[("Say hi.", "Hi.")] * 3,
    ]
    assert result.recognised() == "Alpaca"


def test_alpaca_with_a_system_prompt_and_a_history(tmp_path: Path) -> None:
    row = {"instruction": "And 3+3?", "input": "", "output": "6", "system": "Count.", "history": [["2+2?", "4"]]}
    assert one(tmp_path, row) == Conversation(
        (
            Message("system", "Count."),
            Message("user", "2+2?"),
            Message("assistant", "4", train=False),
            Message("user", "And 3+3?"),
            Message("assistant", "6"),
        ),
        f"{tmp_path}/rows.jsonl:1",
    )
    assert one(tmp_path, {**row, "history": [], "system": ""}) == Completion(
        "And 3+3?", "6", f"{tmp_path}/rows.jsonl:1"
    )


def test_alpaca_preferences_and_graded_answers(tmp_path: Path) -> None:
    pair = one(tmp_path, {"instruction": "Sum.", "input": "1+1", "chosen": "2", "rejected": "3"}, format="preference")
    assert isinstance(pair, Preference)
    assert (pair.prompt[0].content, pair.chosen[0].content, pair.rejected[0].content) == ("Sum.\n\n1+1", "2", "3")
    graded = one(tmp_path, {"instruction": "Sum.", "input": "1+1", "output": "3", "label": False}, format="graded")
    assert isinstance(graded, Graded)
    assert (graded.prompt[0].content, graded.completion[0].content, graded.label) == ("Sum.\n\n1+1", "3", False)


def test_alpaca_whose_question_is_the_input(tmp_path: Path) -> None:
    row = {"instruction": "", "input": "1+1?", "output": "2"}
    assert one(tmp_path, row) == Completion("1+1?", "2", f"{tmp_path}/rows.jsonl:1")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"instruction": "", "input": "", "output": "b"}, "'instruction' is empty"),
        (
            {"instruction": "a", "context": "b", "response": "c"},
            "but no 'output'; columns: {input: context, output: response}",
        ),
        ({"instruction": "a"}, "a row without an answer: 'instruction' but no 'output'; add"),
        ({"instruction": "a", "ouput": "b"}, "'instruction' but no 'output'; did you mean 'output'? it has 'ouput'"),
        ({"instruction": "a", "output": ""}, "a row without an answer: 'output' is empty"),
        ({"instruction": "a", "input": 5, "output": "b"}, "'input' must be a string, got a number"),
        ({"instruction": ["a"], "output": "b"}, "'instruction' must be a string, got a list"),
        ({"instruction": "a", "output": ["b", "c"]}, "'output' must be a string, got a list"),
        ({"instruction": "a", "output": "b", "history": [["q"]]}, r"history[0] must be a question and its answer"),
        ({"instruction": "a", "output": "b", "history": "[['q'"}, "'history' is not valid JSON"),
    ],
)
def test_alpaca_rows_that_are_wrong(tmp_path: Path, row: Any, words: str) -> None:
    assert words in refused(tmp_path, row)


def test_a_misspelt_key_is_said_once(tmp_path: Path) -> None:
    said = refused(tmp_path, {"massages": []})
    assert said.count("'massages'") == 1
    assert "(or Alpaca's or ShareGPT's fields); did you mean 'messages'? it has 'massages'" in said
    assert "the row has 'a', 'b', 'c'" in refused(tmp_path, {"a": "x", "b": "y", "c": "z"})


def test_an_input_is_not_lost_by_mapping_columns(tmp_path: Path) -> None:
    row = {"instruction": "Translate.", "input": "night market", "output": "夜市"}
    columns = {"prompt": "instruction", "completion": "output"}
    assert "the row's 'input' would be lost; leave columns out" in refused(tmp_path, row, columns=columns)
    assert isinstance(one(tmp_path, {**row, "input": ""}, columns=columns), Completion)
    renamed = one(tmp_path, {"q": "T.", "c": "x", "a": "y"}, columns={"instruction": "q", "input": "c", "output": "a"})
    assert renamed == Completion("T.\n\nx", "y", f"{tmp_path}/rows.jsonl:1")


# ---- ShareGPT --------------------------------------------------------------------------------------------------------

TALK = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]
SAID = (Message("user", "Hi"), Message("assistant", "Hello!"))


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": TALK},
        {"conversation": TALK},
        {"messages": TALK},
        {"conversations": json.dumps(TALK)},
        {"conversations": TALK, "messages": None, "system": "", "tools": "[]", "id": "x_0"},
        {"conversations": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]},
        {"conversations": [{"from": "user", "value": "Hi", "role": None}, {"from": "chatgpt", "text": "Hello!"}]},
        {"conversations": [{"from": "Human", "value": "Hi"}, {"from": "model", "value": "Hello!"}]},
    ],
)
def test_sharegpt(tmp_path: Path, row: Any) -> None:
    assert one(tmp_path, row) == Conversation(SAID, f"{tmp_path}/rows.jsonl:1")
    assert read(tmp_path, row).recognised() == "ShareGPT"


def test_sharegpt_with_a_system_prompt_tools_and_calls(tmp_path: Path) -> None:
    schema = {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {}}}
    row = {
        "system": "Be short.",
        "tools": json.dumps([schema]),
        "conversations": [
            {"from": "human", "value": "Weather?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Paris", "day": null}}'},
            {"from": "observation", "value": "sunny"},
            {"from": "gpt", "value": "Sunny.", "weight": 0},
            {"from": "user", "value": "Thanks"},
            {"from": "assistant", "value": "Bye"},
        ],
    }
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris", "day": None}}}
    assert one(tmp_path, row) == Conversation(
        (
            Message("system", "Be short."),
            Message("user", "Weather?"),
            Message("assistant", "", tool_calls=(call,)),
            Message("tool", "sunny"),
            Message("assistant", "Sunny.", train=False),
            Message("user", "Thanks"),
            Message("assistant", "Bye"),
        ),
        f"{tmp_path}/rows.jsonl:1",
        ({"type": "function", "function": schema},),
    )


def called(tmp_path: Path, value: str) -> Any:
    turns = [{"from": "human", "value": "Weather?"}, {"from": "function_call", "value": value}]
    found = one(tmp_path, {"conversations": turns})
    assert isinstance(found, Conversation)
    return found.messages[1].tool_calls


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('{"name": "f", "parameters": {"city": "Paris"}}', {"city": "Paris"}),
        ('{"name": "f", "parameters": {"city": "Paris"}, "arguments": null}', {"city": "Paris"}),
        ('{"name": "f", "parameters": {"a": 1}, "arguments": {"a": 1}}', {"a": 1}),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', '{"a": 1}'),
        ('{"name": "f", "arguments": {}}', {}),
        ('{"name": "f"}', {}),
    ],
)
def test_sharegpts_arguments(tmp_path: Path, value: str, expected: Any) -> None:
    assert called(tmp_path, value) == ({"type": "function", "function": {"name": "f", "arguments": expected}},)


def test_sharegpts_ids_are_kept(tmp_path: Path) -> None:
    first, second = called(
        tmp_path, '[{"id": "a", "name": "f", "parameters": {"x": 1}}, {"name": "g", "type": "function"}]'
    )
    assert first == {"id": "a", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert second == {"type": "function", "function": {"name": "g", "arguments": {}}}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('{"name": "f", "args": {"city": "Paris"}}', "calls 'f' with the unknown key 'args'"),
        ('{"name": "f", "argument": {"city": "Paris"}}', "did you mean 'arguments'? it has 'argument'"),
        ('[{"name": "g"}, {"name": "f", "input": {}}]', "calls 'f' with the unknown key 'input'"),
        ('{"name": "f", "arguments": {"a": 1}, "parameters": {"a": 2}}', "both 'arguments' and 'parameters'"),
        ('{"name": "f", "arguments": {"a": 1, "a": 2}}', "has the key 'a' twice"),
        ('{"name": "f", "parameters": {"a": NaN}}', "holds nan, which is not JSON"),
        ('{"name": "f", "parameters": "{\\"a\\": 1e400}"}', "holds inf, which is not JSON"),
    ],
)
def test_sharegpts_calls_that_would_lose_something(tmp_path: Path, value: str, words: str) -> None:
    with pytest.raises(DataError) as error:
        called(tmp_path, value)
    assert words in str(error.value)
    assert f"{tmp_path}/rows.jsonl:1" in str(error.value)


def test_sharegpt_preferences(tmp_path: Path) -> None:
    row = {
        "conversations": [{"from": "human", "value": "Hi"}],
        "chosen": {"from": "gpt", "value": "Hello!"},
        "rejected": {"from": "gpt", "value": "What?"},
    }
    expected = Preference(
        (Message("user", "Hi"),),
        (Message("assistant", "Hello!"),),
        (Message("assistant", "What?"),),
        f"{tmp_path}/rows.jsonl:1",
    )
    assert one(tmp_path, row) == one(tmp_path, row, format="preference") == expected
    assert one(tmp_path, {**row, "chosen": "Hello!", "rejected": "What?"}) == expected
    whole = {"chosen": TALK, "rejected": [TALK[0], {"from": "gpt", "value": "What?"}]}
    assert one(tmp_path, whole) == expected


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"conversations": [{"from": "narrator", "value": "Hi"}]},
            "conversations[0] is from 'narrator', which is unkn",
        ),
        ({"conversations": [{"form": "human", "value": "Hi"}]}, "has no 'from'; did you mean 'from'? it has 'form'"),
        ({"conversations": [{"from": "human", "valeu": "Hi"}]}, "has no 'value'; did you mean 'value'? it has 'valeu'"),
        ({"conversations": [{"from": "human", "value": 5}]}, "messages[0].content must be a string, got a number"),
        ({"conversations": ["Hi"]}, "conversations[0] must be an object with 'from' and 'value', got a string"),
        ({"conversations": "Hi"}, "'conversations' must be a list of turns, got a string"),
        ({"conversations": "[{'from': 'human'}]"}, "'conversations' is not valid JSON"),
        ({"conversations": "[{'from': 'human'}]"}, "write it with json.dumps, not str"),
        ({"conversations": TALK[:1]}, "a row without an answer"),
        (
            {"conversations": [*TALK, {"from": "function_call", "value": "weather"}]},
            "(function_call) is not valid JSON",
        ),
        ({"conversations": [*TALK, {"from": "function_call", "value": "{}"}]}, "(function_call) names no function"),
        ({"conversations": [{"from": "system", "value": "a"}, *TALK], "system": "b"}, "two system prompts"),
    ],
)
def test_sharegpt_rows_that_are_wrong(tmp_path: Path, row: Any, words: str) -> None:
    assert words in refused(tmp_path, row)


# ---- content and summary, and all of them together --------------------------------------------------------------------


def test_content_and_summary(tmp_path: Path) -> None:
    row = {"content": "類型#裙*顏色#藍", "summary": "這條藍色的裙子。"}
    assert one(tmp_path, row) == Completion(row["content"], row["summary"], f"{tmp_path}/rows.jsonl:1")
    told = one(tmp_path, {**row, "history": [["a", "b"]]})
    assert isinstance(told, Conversation)
    assert [m.content for m in told.messages] == ["a", "b", row["content"], row["summary"]]
    assert "'summary' must be a string" in refused(tmp_path, {"content": "a", "summary": 5})


def test_positive_and_negative_answers(tmp_path: Path) -> None:
    row = {"prompt": "p", "positive": "yes", "negative": "no"}
    assert one(tmp_path, row) == one(tmp_path, {"prompt": "p", "chosen": "yes", "rejected": "no"})
    assert "a pair without 'negative'" in refused(tmp_path, {"prompt": "p", "positive": "yes", "negative": ""})
    assert "did you mean 'positive'? it has 'positve'" in refused(
        tmp_path, {"prompt": "p", "positve": "yes", "negative": "no"}
    )
    graded = {"prompt": "p", "completion": "c", "positive": "a label of another kind"}
    assert one(tmp_path, graded) == Completion("p", "c", f"{tmp_path}/rows.jsonl:1")


def test_a_file_may_mix_them(tmp_path: Path) -> None:
    result = read(
        tmp_path,
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]},
        {"conversations": TALK},
        {"instruction": "a", "output": "b"},
        {"instruction": "c", "output": "d"},
        {"text": "t"},
        {"prompt": "p", "completion": "c"},
    )
    assert [type(r) for r in result.records] == [Conversation, Conversation, Completion, Completion, Text, Completion]
    assert result.recognised() == (
        "2 rows of Alpaca, 1 row of conversations (messages), 1 row of ShareGPT, 1 row of text, "
        "1 row of prompt and completion"
    )


def test_own_fields_come_first(tmp_path: Path) -> None:
    row = {"prompt": "p", "completion": "c", "instruction": "i", "output": "o"}
    assert one(tmp_path, row) == Completion("p", "c", f"{tmp_path}/rows.jsonl:1")
    assert one(tmp_path, {"text": "t", "content": "c", "summary": "s"}) == Text("t", f"{tmp_path}/rows.jsonl:1")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"mesages": []}, "did you mean 'messages'? it has 'mesages'"),
        ({"promt": "a", "completion": "b"}, "did you mean 'prompt'? it has 'promt'"),
        ({"prompt": "a", "completoin": "b"}, "did you mean 'completion'? it has 'completoin'"),
        ({"prompt": "a", "chosen": "b", "rejcted": "c"}, "did you mean 'rejected'? it has 'rejcted'"),
        ({"converstations": TALK}, "did you mean 'conversations'? it has 'converstations'"),
        ({"instrution": "a", "output": "b"}, "did you mean 'instruction'? it has 'instrution'"),
        ({"txt": "a"}, "did you mean 'text'? it has 'txt'"),
        ({"query": "a", "response": "b"}, "columns: {prompt: query, completion: response}"),
        ({"messages": [{"rol": "user", "content": "a"}]}, "has no 'role'; did you mean 'role'? it has 'rol'"),
        ({"messages": [{"role": "user", "contnet": "a"}]}, "no 'content'; did you mean 'content'? it has 'contnet'"),
    ],
)
def test_a_missing_key_gets_a_suggestion(tmp_path: Path, row: Any, words: str) -> None:
    assert words in refused(tmp_path, row)


@pytest.mark.parametrize(
    ("format", "row", "words"),
    [
        ("labels", {"text": "a", "lable": "b"}, "'label' is missing; did you mean 'label'? it has 'lable'"),
        ("labels", {"txt": "a", "label": "b"}, "'text' is missing; did you mean 'text'? it has 'txt'"),
        ("tags", {"tokens": ["a"], "tag": ["O"]}, "'tags' is missing; did you mean 'tags'? it has 'tag'"),
        ("tags", {"token": ["a"], "tags": ["O"]}, "did you mean 'tokens'? it has 'token'"),
        ("answers", {"question": "a", "context": "b", "answer": []}, "did you mean 'answers'? it has 'answer'"),
        ("answers", {"question": "a", "contex": "b", "answers": []}, "did you mean 'context'? it has 'contex'"),
    ],
)
def test_so_does_one_of_labels_tags_and_answers(tmp_path: Path, format: Format, row: Any, words: str) -> None:
    assert words in refused(tmp_path, row, format=format)


def test_so_does_a_column(tmp_path: Path) -> None:
    words = refused(tmp_path, {"question": "a", "answer": "b"}, columns={"prompt": "qestion"})
    assert words == "no column 'qestion' (columns: prompt); did you mean 'question'?"
    with pytest.raises(ConfigError, match="unknown field 'promt'; did you mean 'prompt'"):
        check({"path": "a", "columns": {"promt": "q"}}, DataSource, "x.yaml")
