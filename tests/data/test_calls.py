"""Arguments of tool calls: JSON text of an object is that object, whichever way the template takes it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.calls import with_objects, with_texts
from posttrain.data.chat import render
from posttrain.data.readers import DataSource, read_records
from posttrain.data.records import Conversation, Message
from posttrain.errors import DataError, TemplateError
from tests.templates import DEEPSEEK, GPT_OSS, LLAMA32, MISTRAL, PRINTING, QWEN3, QWEN25, learned, shipped, tokenizer_of

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "which"}}},
    },
}


def called(arguments: Any, *, tools: bool = True, flat: bool = False) -> Conversation:
    """OpenAI's form: a question, a call with an id, its result, an answer."""
    call = {"name": "weather", "arguments": arguments}
    whole = call if flat else {"id": "call00001", "type": "function", "function": call}
    turns = (
        Message("user", "And today?"),
        Message("assistant", "", tool_calls=(whole,)),
        Message("tool", "sunny", tool_call_id=None if flat else "call00001"),
        Message("assistant", "Sunny."),
    )
    return Conversation(turns, "rows.jsonl:1", (TOOL,) if tools else None)


def first_call(template: str, arguments: Any, *, tools: bool = True, flat: bool = False) -> str:
    tok = tokenizer_of(template)
    return learned(render(called(arguments, tools=tools, flat=flat), tok), tok)[0]


SAID = {
    "qwen2.5": (QWEN25, '<tool_call>\n{"name": "weather", "arguments": {"city": "臺北"}}\n</tool_call><|im_end|>'),
    "qwen3": (QWEN3, '<tool_call>\n{"name": "weather", "arguments": {"city": "臺北"}}\n</tool_call><|im_end|>'),
    "llama3.2": (LLAMA32, '{"name": "weather", "parameters": {"city": "臺北"}}<|eot_id|>'),
    "gpt-oss": (GPT_OSS, ' to=functions.weather<|channel|>commentary json<|message|>{"city": "臺北"}<|call|>'),
    "mistral": (
        MISTRAL,
        '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "臺北"}, "id": "call00001"}]<|endoftext|>',
    ),
    "deepseek": (
        DEEPSEEK,
        '<｜tool▁call▁begin｜>weather\n```json\n{"city": "臺北"}\n```<｜tool▁call▁end｜><｜end▁of▁sentence｜>',
    ),
    "printing": (
        PRINTING,
        '<｜tool▁call▁begin｜>weather\n```json\n{"city": "臺北"}\n```<｜tool▁call▁end｜><｜end▁of▁sentence｜>',
    ),
}
NO_TOOLS = {"deepseek", "printing"}


@pytest.mark.parametrize("arguments", [{"city": "臺北"}, '{"city": "臺北"}', ' {"city":"\\u81fa\\u5317"}\n'])
@pytest.mark.parametrize("name", SAID)
def test_the_object_is_learned(name: str, arguments: Any) -> None:
    template, said = SAID[name]
    assert first_call(template, arguments, tools=name not in NO_TOOLS) == said


OWN = ["qwen2_5", "qwen3", "qwen3_instruct_2507", "llama3_1", "llama3_2", "gptoss", "glm4moe", "lfm2_v2", "qwen3_6"]


@pytest.mark.parametrize("name", OWN)
def test_with_the_models_own_templates(name: str) -> None:
    template = shipped(name)
    text = first_call(template, '{"city": "Paris"}')
    assert text == first_call(template, {"city": "Paris"})
    assert "Paris" in text
    assert "\\" not in text
    assert "weather" in text


@pytest.mark.parametrize("text", ['"Paris"', "[1, 2]", "7", "null", "{city: Paris}", "{" * 5000, '{"a":' * 5000])
def test_a_text_that_is_no_object_stays_a_text(text: str) -> None:
    assert first_call(QWEN25, text) == (
        f'<tool_call>\n{{"name": "weather", "arguments": {json.dumps(text)}}}\n</tool_call><|im_end|>'
    )


@pytest.mark.parametrize("text", ['"Paris"', "[1, 2]", "7", "null"])
def test_json_that_is_no_object_is_printed_as_it_is(text: str) -> None:
    assert f'"arguments": {text}}}\n</tool_call>' in first_call(QWEN3, text)
    kept = f"<｜tool▁call▁begin｜>weather\n```json\n{text}\n```<｜tool▁call▁end｜><｜end▁of▁sentence｜>"
    assert first_call(DEEPSEEK, text, tools=False) == kept


@pytest.mark.parametrize("template", [QWEN3, DEEPSEEK, shipped("qwen3"), shipped("glm4moe")])
@pytest.mark.parametrize(
    "text", ["{city: Paris}", "Paris", "{'city': 'Paris'}", '{"a": 1', "NaN", "[1e400]", "{" * 5000]
)
def test_a_text_that_would_be_learned_as_broken_json_is_refused(template: str, text: str) -> None:
    with pytest.raises(TemplateError) as error:
        first_call(template, text, tools=template != DEEPSEEK)
    problem = error.value.problems[0]
    assert problem.location == "rows.jsonl:1"
    if template != shipped("glm4moe"):  # which takes nothing but objects, and says so itself
        assert "turn 1's call to 'weather' are a text that is no JSON" in problem.cause
        assert repr(text[:40]) in problem.cause
        assert "json.dumps" in problem.mend


@pytest.mark.parametrize("name", SAID)
@pytest.mark.parametrize("text", ["", "  ", "\n\t"])
def test_no_text_is_a_call_without_parameters(name: str, text: str) -> None:
    template, said = SAID[name]
    assert first_call(template, text, tools=name not in NO_TOOLS) == said.replace('{"city": "臺北"}', "{}")


def row_with(arguments: Any, *, flat: bool = False) -> dict[str, Any]:
    call = {"name": "f", "arguments": arguments}
    said = {
        "role": "assistant",
        "content": "",
        "tool_calls": [call if flat else {"type": "function", "function": call}],
    }
    return {"messages": [{"role": "user", "content": "Hi"}, said]}


NOT_LEARNED = {
    '{"a": NaN}': "holds nan, which is not JSON",
    '{"a": [{"b": -Infinity}]}': "holds -inf, which is not JSON",
    '{"a": 1e400}': "holds inf, which is not JSON",
    ' {"city": "Paris", "city": "Rome"} ': "an object that has the key 'city' twice",
    '{"at": [{"x": 1, "y": 2, "x": 1}]}': "an object that has the key 'x' twice",
    '{"a":' * 200 + "1" + "}" * 200: "brackets nested more than 100 levels deep",
    '{"a":' * 5000 + "1" + "}" * 5000: "brackets nested more than 100 levels deep",
    '{"a": "\\ud83d"}': "half of a character",
    '{"a": ' + "1" * 5000 + "}": "a number with too many digits",
}


@pytest.mark.parametrize("text", NOT_LEARNED, ids=range(len(NOT_LEARNED)))
@pytest.mark.parametrize("flat", [False, True])
def test_json_texts_pass_the_same_gate_as_objects(tmp_path: Path, text: str, flat: bool) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row_with(text, flat=flat)) + "\n", encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_records(DataSource(path=str(file)))
    problem = error.value.problems[0]
    assert problem.location == f"{file}:1"
    assert problem.cause.startswith("messages[1].tool_calls has arguments whose JSON text ")
    assert NOT_LEARNED[text] in problem.cause
    with pytest.raises(TemplateError) as from_library:
        render(called(text, flat=flat), tokenizer_of(QWEN25))
    words = "half a surrogate pair" if "half" in NOT_LEARNED[text] else NOT_LEARNED[text]
    assert words in from_library.value.problems[0].cause


@pytest.mark.parametrize("template", [QWEN25, DEEPSEEK])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (date(2024, 1, 1), "a value of the type date"),
        (b"x", "a value of the type bytes"),
        (Decimal("1.5"), "a value of the type Decimal"),
        (float("nan"), "holds nan"),
        ({1: 2}, "the key 1"),
    ],
)
def test_values_that_json_has_not_are_refused(template: str, value: Any, words: str) -> None:
    with pytest.raises(TemplateError) as error:
        first_call(template, {"v": [value]}, tools=template != DEEPSEEK)
    assert error.value.problems[0].location == "rows.jsonl:1"
    assert words in error.value.problems[0].cause
    assert "turn 1 (assistant): its call to 'weather'" in error.value.problems[0].cause


def test_what_is_in_the_object_stays() -> None:
    text = '{"a": null, "b": {"c": [true, 1.5, "\\"x\\" \\\\ y"]}, "d": ""}'
    assert first_call(QWEN25, text) == (
        f'<tool_call>\n{{"name": "weather", "arguments": {text}}}\n</tool_call><|im_end|>'
    )
    assert first_call(QWEN3, "{}", flat=True).endswith('"arguments": {}}\n</tool_call><|im_end|>')


def test_both_calls_of_a_turn_and_rows_from_a_file(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    messages = [
        {"role": "user", "content": "And today?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "a", **call}, {"id": "b", **call}]},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": messages, "tools": [TOOL]}) + "\n", encoding="utf-8")
    (record,) = read_records(DataSource(path=str(file))).records
    tok = tokenizer_of(QWEN25)
    one = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    assert learned(render(record, tok), tok) == [f"{one}\n{one}<|im_end|>"]


def test_the_row_itself_is_not_changed() -> None:
    call = {"function": {"name": "f", "arguments": '{"a": 1}'}}
    assert with_objects([call]) == [{"function": {"name": "f", "arguments": {"a": 1}}}]
    assert with_texts(with_objects([call])) == [call]
    assert call == {"function": {"name": "f", "arguments": '{"a": 1}'}}
    bare = {"name": "f"}
    assert with_objects([bare]) == [{"name": "f", "arguments": {}}]
    assert bare == {"name": "f"}


def test_objects_within_objects_without_end_name_the_row() -> None:
    deep: dict[str, Any] = {}
    for _ in range(3000):
        deep = {"a": deep}
    with pytest.raises(TemplateError, match=r"rows.jsonl:1: objects within objects without end"):
        render(called(deep), tokenizer_of(QWEN25))


def test_openais_older_form_of_a_call_is_not_dropped(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    said = {"role": "assistant", "content": "I look.", "function_call": {"name": "weather", "arguments": "{}"}}
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}, said]}) + "\n", encoding="utf-8")
    with pytest.raises(Exception, match=r"rows.jsonl:1: messages\[1\] has 'function_call'.*tool_calls"):
        read_records(DataSource(path=str(file)))


LLAMAS = {"parameters": {"city": "Paris"}}


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    "given",
    [
        LLAMAS,
        {"parameters": '{"city": "Paris"}'},
        {"arguments": None, **LLAMAS},
        {"arguments": {"city": "Paris"}, **LLAMAS},
    ],
)
@pytest.mark.parametrize("form", ["messages", "conversations"])
def test_parameters_are_arguments(tmp_path: Path, form: str, given: dict[str, Any], flat: bool) -> None:
    call = {"name": "weather", **given}
    whole = call if flat else {"type": "function", "function": call}
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [whole]},
    ]
    if form == "conversations":
        turns = [{"from": turn.pop("role"), "value": turn.pop("content"), **turn} for turn in turns]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({form: turns}) + "\n", encoding="utf-8")
    (record,) = read_records(DataSource(path=str(file))).records
    assert isinstance(record, Conversation)
    library = Conversation((Message("user", "Hi"), Message("assistant", "", tool_calls=(whole,))), "a:1")
    tok = tokenizer_of(QWEN25)
    for one in (record, library):
        assert learned(render(one, tok), tok) == [
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>'
        ]
    (read,) = record.messages[1].tool_calls or ()
    assert "parameters" not in (read if flat else read["function"])


def test_two_sets_of_arguments_are_refused(tmp_path: Path) -> None:
    call = {"name": "weather", "arguments": {"city": "Rome"}, **LLAMAS}
    file = tmp_path / "rows.jsonl"
    said = {"role": "assistant", "content": "", "tool_calls": [{"function": call}]}
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}, said]}) + "\n", encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_records(DataSource(path=str(file)))
    problem = error.value.problems[0]
    assert (problem.location, problem.mend) == (f"{file}:1", "keep one of them")
    assert problem.cause == "messages[1].tool_calls has both 'arguments' and 'parameters'"
    both = Conversation((Message("user", "Hi"), Message("assistant", "", tool_calls=({"function": call},))), "a:1")
    with pytest.raises(TemplateError, match="its call to 'weather' has both 'arguments' and 'parameters'"):
        render(both, tokenizer_of(QWEN25))


def test_what_is_wrong_with_parameters_is_found(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    call = {"name": "weather", "parameters": '{"city": "Paris", "city": "Rome"}'}
    said = {"role": "assistant", "content": "", "tool_calls": [{"function": call}]}
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}, said]}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"messages\[1\].tool_calls has arguments .* the key 'city' twice"):
        read_records(DataSource(path=str(file)))


def with_call(tmp_path: Path, function: Any, *, flat: bool = False) -> DataSource:
    said = {"role": "assistant", "content": "", "tool_calls": [function if flat else {"function": function}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}, said]}) + "\n")
    return DataSource(path=str(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize(
    ("template", "flat"),
    [(QWEN25, False), (QWEN25, True), (DEEPSEEK, False), (MISTRAL, False)],
    ids=["qwen2.5", "qwen2.5 flat", "deepseek", "mistral"],
)
@pytest.mark.parametrize(
    "given", [{}, {"arguments": None}, {"arguments": ""}, {"parameters": None}, {"arguments": None, "parameters": None}]
)
def test_no_arguments_are_an_empty_object(tmp_path: Path, given: dict[str, Any], template: str, flat: bool) -> None:
    call = {"name": "now", **given}
    (record,) = read_records(with_call(tmp_path, call, flat=flat)).records
    whole = call if flat else {"function": call}
    library = Conversation((Message("user", "Hi"), Message("assistant", "", tool_calls=(whole,))), "a:1")
    tok = tokenizer_of(template)
    for one in (record, library):
        assert isinstance(one, Conversation)
        calls = tuple(one_call | ({} if flat else {"id": "call00001"}) for one_call in one.messages[1].tool_calls or ())
        (said,) = learned(
            render(replace(one, messages=(one.messages[0], Message("assistant", "", tool_calls=calls))), tok), tok
        )
        assert "{}" in said
        assert "null" not in said
        if template == QWEN25:
            assert said == '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call><|im_end|>'


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("call", [{}, {"name": None}, {"name": ""}, {"name": " "}, {"name": 5}, {"nam": "now"}])
def test_a_call_without_a_name_is_refused(tmp_path: Path, call: dict[str, Any], flat: bool) -> None:
    with pytest.raises(DataError) as error:
        read_records(with_call(tmp_path, {**call, "arguments": {}}, flat=flat))
    problem = error.value.problems[0]
    assert (problem.location, problem.cause) == (f"{tmp_path}/rows.jsonl:1", "messages[1].tool_calls names no function")
    assert problem.mend == 'write it as {"function": {"name": "...", "arguments": {...}}}'
    library = Conversation((Message("user", "Hi"), Message("assistant", "", tool_calls=(call,))), "a:1")
    with pytest.raises(TemplateError, match=r"a:1: turn 1 .assistant.: its call to .* names no function"):
        render(library, tokenizer_of(QWEN25))


def test_arguments_under_another_key_are_not_dropped(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        read_records(with_call(tmp_path, {"name": "weather", "args": {"city": "Paris"}}))
    problem = error.value.problems[0]
    assert problem.cause == "messages[1].tool_calls has no 'arguments', but the unknown key 'args'"
    assert problem.mend == "did you mean 'arguments'? or remove the key"
