"""What a template leaves out of the text is refused, by rendering with and without it; what it prints is learned."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from posttrain.data.chat import encode_all, encode_prompt, outcomes, render
from posttrain.data.records import Conversation, Message
from posttrain.errors import Problem, TemplateError
from tests.pico import CHATML, MARKED, tokenizer
from tests.templates import GPT_OSS, LLAMA32, MISTRAL, QWEN3, QWEN25, learned, renderings, shipped, tokenizer_of

QWEN3_INLINE = QWEN3.replace(
    "{{- m.content }}", "{{- (m.content.split('</think>') | last).lstrip() if not loop.last else m.content }}"
).replace("(loop.last or thought)", "((loop.last and '</think>' not in m.content) or thought)")
"""Takes thoughts that stand in the content of an earlier turn out of it."""

ASK, ANSWER = Message("user", "Who?"), Message("assistant", "I.")
NAMED = CHATML.replace("m.role + '\n'", "m.role + (' name=' + m.name if m.name else '') + '\n'")
UPPER = CHATML.replace("m.role + '\n'", "m.role + (' ' + m.name | upper if m.name else '') + '\n'")
LAST_NAME = CHATML.replace("m.role + '\n'", "m.role + (' ' + m.name if m.name and loop.last else '') + '\n'")


def call(name: str = "weather", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": {"city": "Paris"}}, **more}


def said(*turns: Message, tools: tuple[dict[str, Any], ...] | None = None) -> Conversation:
    return Conversation(turns, "a:1", tools)


def result(content: str = "sunny", **more: Any) -> Message:
    return Message("tool", content, **more)


def calling(*calls: dict[str, Any], content: str = "", **more: Any) -> Message:
    return Message("assistant", content, tool_calls=calls, **more)


TOOL = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {}}}

LEFT_OUT: dict[str, tuple[str, Conversation, str]] = {
    "a user's name": (CHATML, said(Message("user", "Who?", name="Ann"), ANSWER), "'name' in turn 0 (user)"),
    "an assistant's name": (QWEN25, said(ASK, Message("assistant", "I.", name="Bo")), "'name' in turn 1 (assistant)"),
    "an earlier name": (
        LAST_NAME,
        said(ASK, Message("assistant", "I.", name="Bo"), ASK, Message("assistant", "I.", name="Bo")),
        "'name' in turn 1 (assistant)",
    ),
    "reasoning": (QWEN25, said(ASK, Message("assistant", "I.", reasoning="Hm")), "'reasoning' in turn 1 (assistant)"),
    "earlier reasoning": (
        QWEN3,
        said(ASK, Message("assistant", "I.", reasoning="Hm"), ASK, Message("assistant", "I.", reasoning="Hm")),
        "'reasoning' in turn 1 (assistant)",
    ),
    "earlier reasoning, not learned": (
        QWEN3,
        said(ASK, Message("assistant", "I.", reasoning="Hm", train=False), ASK, ANSWER),
        "'reasoning' in turn 1 (assistant)",
    ),
    "a tool's reasoning": (
        QWEN3,
        said(ASK, calling(call()), result(reasoning="x"), ANSWER),
        "'reasoning' in turn 2 (tool)",
    ),
    "tools": (CHATML, said(ASK, ANSWER, tools=(TOOL,)), "'tools'"),
    "the second tool": (
        MARKED.replace("tools | tojson", "tools[0] | tojson"),
        said(ASK, ANSWER, tools=(TOOL, {"name": "add"})),
        "'tools'",
    ),
    "calls": (CHATML, said(ASK, calling(call(), content="x")), "'tool_calls' in turn 1 (assistant)"),
    "the second call": (GPT_OSS, said(ASK, calling(call(), call("add"))), "'tool_calls' in turn 1 (assistant)"),
    "words beside a call": (LLAMA32, said(ASK, calling(call(), content="I look.")), "'content' in turn 1 (assistant)"),
    "a developer": (QWEN25, said(Message("developer", "Be nice."), ASK, ANSWER), "'content' in turn 0 (developer)"),
    "a system turn later on": (
        GPT_OSS,
        said(ASK, Message("system", "Be nice."), ANSWER),
        "'content' in turn 1 (system)",
    ),
    "a tool's result": (
        CHATML.replace("%}{{ '<|user|>'", "if m.role != 'tool' %}{{ '<|user|>'", 1),
        said(ASK, ANSWER, result("sunny"), ANSWER),
        "'content' in turn 2 (tool)",
    ),
    "an id that no call has": (
        QWEN25,
        said(ASK, calling(call()), result(tool_call_id="call_1"), ANSWER),
        "'tool_call_id' in turn 2 (tool)",
    ),
    "ids in another order": (
        QWEN3,
        said(
            ASK,
            calling(call(id="a"), call(id="b")),
            result("1", tool_call_id="b"),
            result("2", tool_call_id="a"),
            ANSWER,
        ),
        "'tool_call_id' in turn 2 (tool)",
    ),
    "the name of another tool": (
        QWEN25,
        said(ASK, calling(call()), result(name="add"), ANSWER),
        "'name' in turn 2 (tool)",
    ),
    "an id on a user's turn": (
        QWEN25,
        said(Message("user", "Who?", tool_call_id="a"), ANSWER),
        "'tool_call_id' in turn 0",
    ),
}


@pytest.mark.parametrize("template", [QWEN3_INLINE, shipped("qwen3")])
def test_thoughts_within_what_was_said_earlier(template: str) -> None:
    tok = tokenizer_of(template)
    told = Message("assistant", "<think>\nHm\n</think>\n\nI.", train=False)
    with pytest.raises(TemplateError, match=r"a:1: the chat template drops '<think>' of turn 1 .assistant. silently"):
        render(said(ASK, told, Message("user", "Hm"), ANSWER), tok)
    with pytest.raises(TemplateError, match=r"drops '<think>' of turn 1 .assistant. silently"):
        encode_prompt((ASK, told, ASK), tok)
    last = said(ASK, replace(told, train=None))
    assert learned(render(last, tok), tok) == ["<think>\nHm\n</think>\n\nI.<|im_end|>"]


def using(template: str) -> Any:
    return (
        tokenizer_of(template)
        if "<|im_start|>" in template or "header" in template or "channel" in template
        else tokenizer(template)
    )


@pytest.mark.parametrize("what", LEFT_OUT)
def test_what_is_left_out_is_refused(what: str) -> None:
    template, record, field = LEFT_OUT[what]
    with pytest.raises(TemplateError) as caught:
        render(record, using(template))
    (problem,) = caught.value.problems
    assert problem.location == "a:1"
    assert problem.cause.startswith(f"the chat template has no place for {field}")
    assert problem.mend
    good = said(ASK, ANSWER)
    found = encode_all([record, good], using(template), max_length=300, on_bad_row="skip")
    assert (len(found.rows), len(found.problems)) == (1, 1)


TWO = (calling(call(id="a"), call("add", id="b")),)
KEPT: dict[str, tuple[str, Conversation, list[str]]] = {
    "a name that is printed": (NAMED, said(Message("user", "Who?", name="Ann"), ANSWER), ["I.<|end|>"]),
    "a name that is printed otherwise": (UPPER, said(Message("user", "Who?", name="Ann"), ANSWER), ["I.<|end|>"]),
    "reasoning of the last turn": (
        QWEN3,
        said(ASK, ANSWER, ASK, Message("assistant", "I.", reasoning="Hm")),
        ["I.<|im_end|>", "<think>\nHm\n</think>\n\nI.<|im_end|>"],
    ),
    "reasoning of all turns after the last question": (
        QWEN3,
        said(ASK, calling(call(), reasoning="Hm"), result(), Message("assistant", "I.", reasoning="So")),
        [
            '<think>\nHm\n</think>\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>',
            "<think>\nSo\n</think>\n\nI.<|im_end|>",
        ],
    ),
    "an empty reasoning": (QWEN25, said(ASK, Message("assistant", "I.", reasoning="")), ["I.<|im_end|>"]),
    "ids and names in the order of the calls": (
        QWEN25,
        said(
            ASK, *TWO, result("1", tool_call_id="a", name="weather"), result("2", tool_call_id="b", name="add"), ANSWER
        ),
        [
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "add", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>',
            "I.<|im_end|>",
        ],
    ),
    "ids that are printed, in any order": (
        MISTRAL,
        said(
            ASK,
            calling(call(id="call00001"), call(id="call00002")),
            result("1", tool_call_id="call00002"),
            result("2", tool_call_id="call00001"),
            ANSWER,
        ),
        [
            '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris"}, "id": "call00001"}, '
            '{"name": "weather", "arguments": {"city": "Paris"}, "id": "call00002"}]<|endoftext|>',
            "I.<|endoftext|>",
        ],
    ),
    "a result that is quoted": (
        LLAMA32,
        said(ASK, calling(call()), result('a "b"'), ANSWER),
        ['{"name": "weather", "parameters": {"city": "Paris"}}<|eot_id|>', "I.<|eot_id|>"],
    ),
}


@pytest.mark.parametrize("what", KEPT)
def test_what_is_printed_is_learned(what: str) -> None:
    template, record, said_so = KEPT[what]
    tok = using(template) if template is not MISTRAL else tokenizer_of(MISTRAL)
    assert learned(render(record, tok), tok) == said_so


def test_a_call_without_reasoning_is_learned_with_qwen3() -> None:
    """As the last turn it would have an empty reasoning; where a result follows, it has none."""
    plain = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>'
    record = said(
        ASK, calling(call(), content="I look."), result(), calling(call(), call()), result(), result(), ANSWER
    )
    for template in (QWEN3, shipped("qwen3")):
        tok = tokenizer_of(template)
        runs = learned(render(record, tok), tok)
        assert runs == [
            "I look.\n" + plain,
            plain.removesuffix("<|im_end|>") + "\n" + plain,
            "<think>\n\n</think>\n\nI.<|im_end|>",
        ]
        last = said(ASK, calling(call()))
        assert learned(render(last, tok), tok) == ["<think>\n\n</think>\n\n" + plain]
        row = render(record, tok)
        prompt = encode_prompt((ASK,), tok)
        assert row.input_ids[: len(prompt)] == prompt
        assert row.labels[len(prompt)] == row.input_ids[len(prompt)]


def test_earlier_answers_end_with_their_end_of_turn() -> None:
    tok = tokenizer_of(QWEN3)
    row = render(said(ASK, ANSWER, ASK, ANSWER), tok)
    assert learned(row, tok) == ["I.<|im_end|>", "<think>\n\n</think>\n\nI.<|im_end|>"]


@pytest.mark.parametrize("field", ["name", "developer", "reasoning"])
@pytest.mark.parametrize("name", ["qwen2_5", "llama3_1", "gptoss", "glm4moe", "phi3", "cohere2", "lfm2_v2", "qwen3"])
def test_the_models_own_templates_drop_nothing(name: str, field: str) -> None:
    """Each field is in the text, or the row is refused with its name."""
    tok = tokenizer_of(shipped(name))
    record = {
        "name": said(Message("user", "Who?", name="Zebedee"), ANSWER),
        "developer": said(Message("developer", "Zebedee"), ASK, ANSWER),
        "reasoning": said(ASK, Message("assistant", "I.", reasoning="Zebedee"), ASK, ANSWER),
    }[field]
    (found,) = outcomes([record], tok, "assistant")
    if isinstance(found, Problem):
        wanted = "'content' in turn 0 (developer)" if field == "developer" else f"'{field}' in turn"
        assert f"no place for {wanted}" in found.cause
    else:
        assert "Zebedee" in tok.decode(found.input_ids)


@pytest.mark.parametrize(
    "prompt",
    [
        (Message("user", "Who?", name="Ann"),),
        (Message("developer", "Be nice."), ASK),
        (ASK, Message("assistant", "I.", reasoning="Hm"), ASK),
    ],
)
def test_prompts_are_whole_or_refused(prompt: tuple[Message, ...]) -> None:
    with pytest.raises(TemplateError, match=r"the prompt 'Who\?': the chat template has no place for"):
        encode_prompt(prompt, tokenizer_of(QWEN25))
    with pytest.raises(TemplateError, match=r"no place for 'content' in turn 0 .system."):
        encode_prompt(
            "Who?",
            tokenizer(CHATML.replace("%}{{ '<|user|>'", "if m.role != 'system' %}{{ '<|user|>'", 1)),
            system="Be",
        )


def test_a_turn_that_is_not_learned_is_looked_at_although_one_that_is_was_not() -> None:
    """Of an answer that is learned the words must be in its turn; of another one they are looked for all the same."""
    later = CHATML.replace("m.content", "(m.content if m.content != 'I.' else '')")
    tok = tokenizer(later)
    render(said(ASK, Message("assistant", "You."), ASK, Message("assistant", "We.")), tok)
    with pytest.raises(TemplateError, match=r"drops 'I.' of turn 1|no place for 'content' in turn 1"):
        render(said(ASK, replace(ANSWER, train=False), ASK, Message("assistant", "We.")), tok)


def test_turns_of_a_known_shape_are_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check costs nothing for rows that are like one before."""
    rendered = renderings(monkeypatch)
    tok = copy.deepcopy(tokenizer())
    rows = [said(Message("system", "Be"), Message("user", f"{i}?"), Message("assistant", f"{i}")) for i in range(20)]
    render(rows[0], tok)
    first = rendered()
    for row in rows[1:]:
        render(row, tok)
    assert rendered() == 19
    assert first <= 5
