"""Arguments of tool calls: JSON text of an object is that object, whichever way the template takes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.calls import with_objects, with_texts
from posttrain.data.chat import IGNORED, Encoded, render
from posttrain.data.readers import DataSource, read_records
from posttrain.data.records import Conversation, Message
from posttrain.errors import TemplateError
from tests.templates import DEEPSEEK, GPT_OSS, LLAMA32, MISTRAL, PRINTING, QWEN3, QWEN25, shipped, tokenizer_of

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


def learned(row: Encoded, tok: Any) -> list[str]:
    runs: list[list[int]] = [[]]
    for label in row.labels:
        if label == IGNORED:
            runs.append([])
        else:
            runs[-1].append(label)
    return [tok.decode(run) for run in runs if run]


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


@pytest.mark.parametrize("text", ['"Paris"', "[1, 2]", "7", "null", "{city: Paris}", "", "{" * 5000, '{"a":' * 5000])
def test_a_text_that_is_no_object_stays_a_text(text: str) -> None:
    assert first_call(QWEN25, text) == (
        f'<tool_call>\n{{"name": "weather", "arguments": {json.dumps(text)}}}\n</tool_call><|im_end|>'
    )
    kept = f"<｜tool▁call▁begin｜>weather\n```json\n{text}\n```<｜tool▁call▁end｜><｜end▁of▁sentence｜>"
    assert first_call(DEEPSEEK, text, tools=False) == kept


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
    assert with_objects([{"name": "f"}, {"function": "f"}]) == [{"name": "f"}, {"function": "f"}]


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
