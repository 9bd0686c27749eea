"""Parts of tool schemas and of calls: what a template leaves out of them is refused with its path."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from posttrain.data.chat import encode_prompt, outcomes, render
from posttrain.data.records import Conversation, Message
from posttrain.data.template_parts import Part, call_parts, schema_parts, with_values
from posttrain.errors import Problem, TemplateError
from tests.pico import MARKED, tokenizer
from tests.templates import GPT_OSS, QWEN25, renderings, shipped, tokenizer_of

ASK, ANSWER = Message("user", "Who?"), Message("assistant", "I.")
PROPERTIES: dict[str, Any] = {
    "city": {"type": "string", "description": "which"},
    "unit": {"type": "string", "description": "in what", "enum": ["C", "F"]},
    "days": {"type": "integer", "description": "how many"},
    "exact": {"type": "boolean", "description": "or roughly"},
    "share": {"type": "number", "description": "of all"},
    "hours": {"type": "array", "description": "at what time", "items": {"type": "integer"}},
}


def tool(parameters: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """The usual schema, as OpenAI's own pages have it; parameters: others beside its own; more: of the function."""
    schema = {
        "type": "object",
        "properties": {**PROPERTIES, **(parameters or {})},
        "required": ["city"],
        "additionalProperties": False,
    }
    told = {"name": "weather", "description": "The weather", "strict": True, "parameters": schema, **more}
    return {"type": "function", "function": told}


WITH_TOOLS = [
    "diffusion_gemma",
    "gemma4",
    "gemma4_v2",
    "gemma4_v3",
    "gemma4_v4",
    "gemma4_v5",
    "glm4moe",
    "gptoss",
    "lfm2",
    "lfm2_2_5",
    "lfm2_2_5_v2",
    "lfm2_2_5_vl",
    "lfm2_v2",
    "llama3_1",
    "llama3_2",
    "muse_glimmer",
    "nemotron_3_5_lightning",
    "nemotron_3_nano",
    "nemotron_3_super",
    "nemotron_3_ultra",
    "qwen2_5",
    "qwen3",
    "qwen3_5_nothink",
    "qwen3_5_think",
    "qwen3_6",
    "qwen3_8",
    "qwen3_instruct_2507",
    "qwen3_vl",
]


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_the_usual_schema_passes_whole(name: str) -> None:
    tok = tokenizer_of(shipped(name))
    text = tok.decode(encode_prompt((ASK,), tok, tools=[tool()]))
    for said in ("weather", "The weather", *PROPERTIES, *(one["description"] for one in PROPERTIES.values()), "C", "F"):
        assert said in text


T = "tools[0].function.parameters.properties.x"
OBJECT = {"type": "object", "description": "d", "properties": {"a": {"type": "string", "description": "inner"}}}
LEFT_OUT: dict[str, tuple[str, dict[str, Any], str]] = {
    "a pattern": ("gptoss", tool({"x": {"type": "string", "pattern": "[A-Z]"}}), f"{T}.pattern"),
    "a format": ("gptoss", tool({"x": {"type": "string", "format": "date"}}), f"{T}.format"),
    "a least number": ("gptoss", tool({"x": {"type": "integer", "minimum": 0}}), f"{T}.minimum"),
    "numbers to choose from": ("gptoss", tool({"x": {"type": "integer", "enum": [1, 2]}}), f"{T}.enum[0]"),
    "what a list may hold": (
        "gptoss",
        tool({"x": {"type": "array", "items": {"type": "string", "enum": ["p"]}}}),
        f"{T}.items.enum[0]",
    ),
    "a description within": ("gptoss", tool({"x": OBJECT}), f"{T}.properties.a.description"),
    "one of two types": (
        "gptoss",
        tool({"x": {"anyOf": [{"type": "string"}, {"type": "null"}]}}),
        f"{T}.anyOf[0].type",
    ),
    "a reference": ("gptoss", tool({"x": {"$ref": "#/$defs/X"}}), f"{T}.$ref"),
    "what is given back": ("gptoss", tool(**{"return": {"type": "string"}}), "tools[0].function.return.type"),
    "what is given back, described": (
        "muse_glimmer",
        tool(**{"return": {"description": "the weather"}}),
        "tools[0].function.return.description",
    ),
    "a key of another program": ("gptoss", tool(examples=["weather()"]), "tools[0].function.examples[0]"),
    "a key beside the function": ("gptoss", {**tool(), "cost": 3}, "tools[0].cost"),
    "a default": ("gemma4_v5", tool({"x": {"type": "string", "default": "p"}}), f"{T}.default"),
    "a default that is false": ("gemma4_v5", tool({"x": {"type": "boolean", "default": False}}), f"{T}.default"),
    "a default in an object": ("gemma4_v5", tool({"x": {"type": "string", "default": {"k": 1}}}), f"{T}.default.k"),
}


@pytest.mark.parametrize("what", LEFT_OUT)
def test_a_part_that_is_left_out_is_refused_with_its_path(what: str) -> None:
    template, schema, path = LEFT_OUT[what]
    tok = copy.deepcopy(tokenizer_of(shipped(template)))
    with pytest.raises(TemplateError) as caught:
        encode_prompt((ASK,), tok, tools=[schema])
    problem = caught.value.problems[0]
    assert problem.cause == f"the chat template has no place for '{path}': it would be dropped silently"
    assert problem.mend == "take it out of the schema, or write it into a description that the template prints"
    first, again, good = outcomes(
        [Conversation((ASK, ANSWER), f"a:{i}", (one,)) for i, one in enumerate([schema, schema, tool()])], tok, "all"
    )
    assert isinstance(first, Problem)
    assert (first.location, first.cause) == ("a:0", problem.cause)
    assert again == first._replace(location="a:1")
    assert not isinstance(good, Problem) or template == "gemma4_v5"  # whose turns end with no special token here
    # where schemas are printed whole, nothing is left out
    whole = tokenizer_of(shipped("qwen3"))
    assert encode_prompt((ASK,), whole, tools=[schema])


@pytest.mark.parametrize(
    ("own", "of_parameters"),
    [
        ({"title": "City"}, {"title": "Arguments", "$schema": "x", "$comment": "y"}),
        ({"nullable": False, "deprecated": False, "pattern": None, "format": ""}, {"additionalProperties": True}),
        ({"default": None, "enum": None, "examples": []}, {"$defs": {}, "required": ["city", "not one"]}),
    ],
)
def test_bookkeeping_may_be_left_out(own: dict[str, Any], of_parameters: dict[str, Any]) -> None:
    tok = tokenizer_of(shipped("gptoss"))
    made = tool({"x": {"type": "string", **own}})
    made["function"]["parameters"] |= of_parameters
    assert encode_prompt((ASK,), tok, tools=[made])


def test_names_like_words_of_schemas_are_names() -> None:
    """A parameter may be called `title`, or `type`; its schema is one all the same."""
    named = tool(
        {name: {"type": "string", "description": f"D{name}"} for name in ("title", "type", "properties", "enum")}
    )
    for template in ("gptoss", "qwen3"):
        tok = tokenizer_of(shipped(template))
        assert "Dproperties" in tok.decode(encode_prompt((ASK,), tok, tools=[named]))
    named["function"]["parameters"]["properties"]["title"]["pattern"] = "x"
    with pytest.raises(TemplateError, match=r"parameters.properties.title.pattern"):
        encode_prompt((ASK,), tokenizer_of(shipped("gptoss")), tools=[named])


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("'' if name in (t.function.parameters.required or []) else '?'", "''", "parameters.required[0]"),
        (
            "(spec.enum | join(' | ') if spec.enum and spec.type == 'string' else (spec['items'] or spec).type ~ spec.type)",
            "'any'",
            "parameters.properties.city.type",
        ),
        ("t.function.description + '", "'", "description"),
        ("'\n' + name }}", "'\n' }}", "parameters.properties.unit"),
    ],
)
def test_other_parts_that_a_template_may_leave_out(old: str, new: str, path: str) -> None:
    assert GPT_OSS.count(old) == 1
    with pytest.raises(TemplateError) as caught:
        encode_prompt((ASK,), tokenizer_of(GPT_OSS.replace(old, new)), tools=[tool()])
    assert f"no place for 'tools[0].function.{path}'" in caught.value.problems[0].cause


def test_a_schema_without_function_around_it() -> None:
    (problem,) = outcomes(
        [Conversation((ASK, ANSWER), "a:1", ({**tool()["function"], "type": "function"},))],
        tokenizer(MARKED.replace("tools | tojson", "tools[0].name")),
        "assistant",
    )
    assert isinstance(problem, Problem)
    assert "no place for 'tools[0].description'" in problem.cause


# ---- calls -----------------------------------------------------------------------------------------------------------


def called(arguments: Any, **more: Any) -> Conversation:
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}, **more}
    return Conversation((ASK, Message("assistant", "", tool_calls=(call,)), Message("tool", "sunny"), ANSWER), "a:1")


OF_CALLS = {
    "values only": "{% for k, v in call.arguments.items() %}{{- v }}{% endfor %}",
    "keys only": "{% for k in call.arguments %}{{- k }}{% endfor %}",
    "texts only": "{% for k, v in call.arguments.items() if v is string %}{{- k + '=' + v }}{% endfor %}",
    "the first": "{% for k, v in call.arguments.items() %}{% if loop.first %}{{- k ~ '=' ~ v | tojson }}{% endif %}{% endfor %}",
    "no truth": "{% for k, v in call.arguments.items() %}{{- k }}{% if v is not boolean %}{{- v | tojson }}{% endif %}"
    "{% endfor %}",
}


@pytest.mark.parametrize(
    ("template", "arguments", "path"),
    [
        ("values only", {"city": "Paris"}, "arguments.city"),
        ("keys only", {"city": "Paris"}, "arguments.city"),
        ("keys only", '{"city": 3}', "arguments.city"),
        ("texts only", {"city": "Paris", "days": 3}, "arguments.days"),
        ("texts only", {"city": "Paris", "at": {"x": ["y"]}}, "arguments.at"),
        ("the first", {"city": "Paris", "exact": True}, "arguments.exact"),
        ("no truth", {"city": "Paris", "exact": True}, "arguments.exact"),
        ("no truth", {"exact": False}, "arguments.exact"),
    ],
)
def test_an_argument_that_is_left_out(template: str, arguments: Any, path: str) -> None:
    old = "{{- call.arguments | tojson }}"
    assert old in QWEN25
    tok = tokenizer_of(QWEN25.replace(old, OF_CALLS[template]))
    with pytest.raises(TemplateError) as caught:
        render(called(arguments), tok)
    problem = caught.value.problems[0]
    assert problem.cause == (
        f"the chat template has no place for 'tool_calls[0].function.{path}' in turn 1 (assistant): "
        "it would be dropped silently"
    )
    assert problem.mend == "remove it from the call, or take a template that has a place for it"
    assert render(called(arguments), tokenizer_of(QWEN25))


@pytest.mark.parametrize(
    "name", ["qwen2_5", "qwen3", "qwen3_6", "llama3_1", "gptoss", "glm4moe", "lfm2_v2", "muse_glimmer"]
)
@pytest.mark.parametrize(
    "arguments", [{}, {"a": None, "b": [True, {"c": []}], "d": "", "e": 0, "f": 1.5, "type": "x"}, '{"a": {"a": "a"}}']
)
def test_real_templates_print_arguments_whole(name: str, arguments: Any) -> None:
    tok = tokenizer_of(shipped(name))
    assert render(called(arguments, id="call00001", index=0), tok)


def test_a_call_with_another_key() -> None:
    with pytest.raises(TemplateError, match=r"no place for 'tool_calls\[0\].thought' in turn 1 .assistant."):
        render(called({}, thought="Hm"), tokenizer_of(QWEN25))
    render(called({}, thought="Hm"), tokenizer(MARKED))  # which prints calls whole


def test_schemas_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows with tools like those before cost no rendering more; what is new in them is looked at."""
    rendered = renderings(monkeypatch)
    tok = copy.deepcopy(tokenizer_of(shipped("gptoss")))

    def of(schema: dict[str, Any]) -> int:
        rendered()
        list(outcomes([Conversation((ASK, ANSWER), "a:1", (schema,))], tok, "assistant"))
        return rendered()

    named = {
        f"{name}2": {**spec, "description": f"{spec['description']}?" if "items" not in spec else "at what time"}
        for name, spec in PROPERTIES.items()
    }
    first = of(tool())
    assert of(tool()) == 3  # the row, its prompt, and the tool's name
    assert of(tool(named)) == 3 < first
    assert of(tool({"x": {"type": "string", "pattern": "a"}})) == 4  # and another type
    assert of(tool({"x": {"type": "string", "pattern": "b"}})) == 3  # refused: the row, words, another pattern


def test_parts() -> None:
    schema = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": ["string", "null"]}}}}
    parts = [part for part, _ in schema_parts([schema])]
    assert parts == [
        Part((0, "parameters", "properties", "a"), "a", key=True),
        Part((0, "parameters", "properties", "a", "type", 0), "string", type=True),
        Part((0, "parameters", "properties", "a", "type", 1), "null", type=True),
    ]
    assert str(parts[1]) == "[0].parameters.properties.a.type[0]"
    changes = {(parts[0].path, True): "b", (parts[2].path, False): "integer"}
    changed = {"name": "f", "parameters": {"type": "object", "properties": {"b": {"type": ["string", "integer"]}}}}
    assert with_values([schema], changes) == [changed]
    assert with_values([schema], {}) == [schema]
    call = {"id": "a", "name": "f", "arguments": {"x": [{"y": None}]}}
    assert list(call_parts([call])) == [
        Part((0, "arguments", "x"), "x", key=True),
        Part((0, "arguments", "x", 0, "y"), "y", key=True),
        Part((0, "arguments", "x", 0, "y"), None),
    ]


@pytest.mark.parametrize("names", [[{"city": 1}, "city"], [["city"], None, "city"], [3, "city", "nobody"]])
@pytest.mark.parametrize("properties", [{"city": {"type": "string"}}, "city", 3, ["city"], None])
def test_required_names_what_there_is(names: list[Any], properties: Any) -> None:
    """Of a spoilt list, only names of parameters count; a list of no parameters has none."""
    tools = [{"name": "f", "parameters": {"properties": properties, "required": names}}]
    found = [str(part) for part, _ in schema_parts(tools) if "required" in part.path]
    known = isinstance(properties, dict)
    assert found == ([f"[0].parameters.required[{names.index('city')}]"] if known else [])
