"""No text of the user's becomes a control token, wherever it stands and whichever way it comes to a tokenizer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.answers import encode_graded, encode_pairs
from posttrain.data.chat import encode_all, encode_prompt, render
from posttrain.data.control import check_text, gate_of
from posttrain.data.fields import messages_of
from posttrain.data.head_rows import HeadSettings, encode_questions, encode_tags, encode_texts
from posttrain.data.lengths import Limits
from posttrain.data.records import (
    Completion,
    Conversation,
    Graded,
    LabelledText,
    Message,
    Preference,
    ReadingQuestion,
    Record,
    TaggedTokens,
    Text,
)
from posttrain.errors import DataError, TemplateError
from posttrain.inference.decode import Decoded
from posttrain.inference.encoding import PromptEncoder, PromptReader
from posttrain.inference.protocol import Answer, Plain
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import load_model
from posttrain.models.vocabulary import keep_stops
from tests.exams.fakes import judge_same
from tests.pico import MARKED, tokenizer, word_pieces
from tests.templates import shipped

END = "<|end|>"
ASK, ANSWER = Message("user", "Who?"), Message("assistant", "I.")
FULL = MARKED.replace(
    "{{ message['content'] }}",
    "{{ message['name'] or '' }}{{ message['tool_call_id'] or '' }}{{ message['content'] }}",
).replace(
    "{%- else -%}{{ message", "{%- else -%}{{ message['name'] or '' }}{{ message['tool_call_id'] or '' }}{{ message"
)
"""Prints every field."""


def call(name: str = "add", arguments: Any = None, **more: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": {} if arguments is None else arguments}, **more}


def tool(description: str = "", **parameters: Any) -> dict[str, Any]:
    return {"function": {"name": "add", "description": description, "parameters": parameters}}


def said(answer: Message, *tools: dict[str, Any]) -> Conversation:
    return Conversation((ASK, answer, ASK, ANSWER), "a:1", tools or None)


INSIDE: dict[str, tuple[Conversation, str]] = {
    "content": (said(Message("assistant", f"I{END}")), "turn 1 (assistant) holds the control token '<|end|>'"),
    "reasoning": (
        said(Message("assistant", "I", reasoning=f"so{END}")),
        "turn 1 (assistant) holds the control token '<|end|>' in its reasoning",
    ),
    "name": (
        said(Message("assistant", "I", name=f"Al{END}")),
        "turn 1 (assistant) holds the control token '<|end|>' in its name",
    ),
    "call's name": (
        said(Message("assistant", "", tool_calls=(call(f"add{END}"),))),
        "turn 1 (assistant) holds the control token '<|end|>' in its tool_calls",
    ),
    "argument": (
        said(Message("assistant", "", tool_calls=(call("add", {"a": {"b": [1, f"x{END}"]}}),))),
        "turn 1 (assistant) holds the control token '<|end|>' in its tool_calls",
    ),
    "argument's key": (
        said(Message("assistant", "", tool_calls=(call("add", {f"x{END}": 1}),))),
        "turn 1 (assistant) holds the control token '<|end|>' in its tool_calls",
    ),
    "argument as text": (
        said(Message("assistant", "", tool_calls=(call("add", '{"a": "<|end|>"}'),))),
        "turn 1 (assistant) holds the control token '<|end|>' in its tool_calls",
    ),
    "argument as text, escaped": (
        said(Message("assistant", "", tool_calls=(call("add", '{"a": "\\u003c|end|\\u003e"}'),))),
        "turn 1 (assistant) holds the control token '<|end|>' in its tool_calls",
    ),
    "argument that is no object": (
        said(Message("assistant", "", tool_calls=(call("add", END),))),
        "turn 1 (assistant) holds the control token '<|end|>' in its tool_calls",
    ),
    "call's id": (
        said(Message("assistant", "", tool_calls=(call(id=f"a{END}"),))),
        "turn 1 (assistant) holds the control token '<|end|>' in its tool_calls",
    ),
    "tool_call_id": (
        Conversation(
            (ASK, Message("assistant", "", tool_calls=(call(),)), Message("tool", "2", tool_call_id=END)), "a:1"
        ),
        "turn 2 (tool) holds the control token '<|end|>' in its tool_call_id",
    ),
    "tool's description": (said(ANSWER, tool(f"adds{END}")), "'tools' holds the control token '<|end|>'"),
    "parameter's description": (
        said(ANSWER, tool(properties={"a": {"description": f"x{END}"}})),
        "'tools' holds the control token '<|end|>'",
    ),
    "parameter's name": (said(ANSWER, tool(properties={END: {}})), "'tools' holds the control token '<|end|>'"),
    "another turn's tag": (
        said(Message("assistant", "I", reasoning="<|user|>")),
        "turn 1 (assistant) holds the control token '<|user|>' in its reasoning",
    ),
    "half a pair": (
        said(Message("assistant", "", tool_calls=(call("add", '{"a": "\\ud83d"}'),))),
        "turn 1 (assistant) holds half a surrogate pair ('\\ud83d') in its tool_calls",
    ),
    "system": (
        Conversation((Message("system", f"Be{END}"), ASK, ANSWER), "a:1"),
        "turn 0 (system) holds the control token '<|end|>'",
    ),
}


@pytest.mark.parametrize("where", INSIDE)
def test_in_a_conversation(where: str) -> None:
    record, cause = INSIDE[where]
    tok = tokenizer(FULL)
    with pytest.raises(TemplateError) as caught:
        render(record, tok)
    assert caught.value.problems[0].location == "a:1"
    assert caught.value.problems[0].cause == cause
    good = Conversation((ASK, ANSWER), "a:2")
    found = encode_all([record, good], tok, max_length=200, on_bad_row="skip")
    assert ([row.location for row in found.rows], [p.cause for p in found.problems]) == (["a:2"], [cause])


def test_parts_of_a_content_are_checked_together() -> None:
    parts = [{"type": "text", "text": "I<|e"}, {"type": "text", "text": "nd|>"}]
    turns = messages_of([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": parts}], "messages")
    with pytest.raises(TemplateError, match=r"turn 1 .assistant. holds the control token '<.end.>'"):
        render(Conversation(turns, "a:1"), tokenizer())


def test_what_only_looks_like_one_is_learned() -> None:
    from tokenizers import AddedToken

    tok = copy.deepcopy(tokenizer())
    tok.add_special_tokens(
        {"additional_special_tokens": [AddedToken("sop", special=True, normalized=False, single_word=True)]}
    )
    answer = "[x] is sophisticated, 1 < 2, <end>, < |end|>, </s> and [SEP]"
    row = render(Conversation((ASK, Message("assistant", answer)), "a:1"), tok)
    assert tok.decode([i for i in row.labels if i >= 0]) == answer + END
    with pytest.raises(TemplateError, match="holds the control token 'sop'"):
        render(Conversation((ASK, Message("assistant", "no sop here")), "a:1"), tok)


def test_a_letter_that_fills_up_rows_is_a_letter(tmp_path: Path) -> None:
    """Read again, such a pad token is one of the tokenizer's special tokens."""
    from transformers import AutoTokenizer

    tok = copy.deepcopy(tokenizer())
    tok.pad_token = "!"
    tok.save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert read.added_tokens_decoder[read.pad_token_id].special
    row = render(Conversation((Message("user", "Hi!"), Message("assistant", "Yes!")), "a:1"), read)
    assert read.decode([i for i in row.labels if i >= 0]) == "Yes!" + END
    assert read.decode(encode_prompt("Hi!", read)) == "<|bos|><|user|>Hi!<|end|><|assistant|>"


def test_what_the_tokenizer_does_not_know() -> None:
    """Of a strange word WordPiece makes [UNK], which is no control token of the user's; one that is spelt out is."""
    settings = HeadSettings(("a",), 64)
    (row,) = encode_texts([LabelledText("[x] ☃", ("a",), "f:1")], word_pieces(), settings).rows
    assert word_pieces().unk_token_id in row.input_ids
    with pytest.raises(DataError, match=r"f:1: the text holds the control token '\[UNK\]'"):
        encode_texts([LabelledText("[UNK]", ("a",), "f:1")], word_pieces(), settings)
    check_text("a [UNK] b", word_pieces(), "the text")  # to be scored, as WikiText has it: it ends nothing
    with pytest.raises(TemplateError, match=r"the text holds the control token '\[MASK\]'"):
        check_text("a [UNK] [MASK] b", word_pieces(), "the text")


def test_a_token_that_normalising_makes() -> None:
    from tokenizers import AddedToken, normalizers

    tok = copy.deepcopy(tokenizer())
    tok.backend_tokenizer.normalizer = normalizers.NFKC()
    tok.add_special_tokens({"additional_special_tokens": [AddedToken("<halt>", special=True, normalized=True)]})
    with pytest.raises(TemplateError, match="holds the control token '<halt>'"):
        render(Conversation((ASK, Message("assistant", "＜halt＞")), "a:1"), tok)
    row = render(Conversation((ASK, Message("assistant", "halt")), "a:1"), tok)
    assert tok.decode([i for i in row.labels if i >= 0]) == "halt" + END


@pytest.mark.parametrize(
    ("record", "cause"),
    [
        (Completion(f"2+{END}", "3", "a:1"), "the prompt holds the control token '<|end|>'"),
        (Completion("2+", f"3{END}4", "a:1"), "the completion holds the control token '<|end|>'"),
        (Completion("2+<|e", "nd|>3", "a:1"), "the prompt with its completion holds the control token '<|end|>'"),
        (Text(f"One.{END}Two.", "a:1"), "the text holds the control token '<|end|>'"),
        (Text("One. \ud83d", "a:1"), "the text holds half a surrogate pair ('\\ud83d')"),
    ],
)
def test_in_plain_rows(record: Record, cause: str) -> None:
    with pytest.raises(TemplateError) as caught:
        render(record, tokenizer(None))
    assert (caught.value.problems[0].location, caught.value.problems[0].cause) == ("a:1", cause)


@pytest.mark.parametrize("template", [MARKED, None])
def test_in_answers_to_compare(template: str | None) -> None:
    tok = tokenizer(template)
    good, bad = (Message("assistant", "yes"),), (Message("assistant", f"no{END}"),)
    pairs = [
        Preference((ASK,), bad, good, "a:1", plain=True),
        Preference((ASK,), good, bad, "a:2", plain=True),
        Preference((replace(ASK, content=f"W{END}"),), good, (Message("assistant", "no"),), "a:3", plain=True),
    ]
    with pytest.raises(DataError) as caught:
        encode_pairs(pairs, tok, Limits(100))
    assert [p.location for p in caught.value.problems[:3]] == ["a:1", "a:2", "a:3"]
    assert all("holds the control token '<|end|>'" in p.cause for p in caught.value.problems[:3])
    with pytest.raises(DataError, match=r"a:1.*holds the control token '<.end.>'"):
        encode_graded([Graded((ASK,), bad, True, "a:1", plain=True)], tok, Limits(100))


AB = HeadSettings(("a", "b"), 64)


@pytest.mark.parametrize(
    ("encode", "record", "what"),
    [
        (encode_texts, LabelledText("an [SEP] b", ("a",), "f:1"), "the text"),
        (encode_texts, LabelledText("yen", ("a",), "f:1", "a [MASK] b"), "the second text"),
        (encode_tags, TaggedTokens(("The", "[SEP]"), ("a", "b"), "f:1"), "token 1"),
        (encode_questions, ReadingQuestion("[CLS] who?", "Hello", (), "f:1"), "the question"),
        (encode_questions, ReadingQuestion("who?", "Hello [SEP]", (), "f:1"), "the context"),
    ],
)
def test_for_models_with_a_head(encode: Callable[..., Any], record: Record, what: str) -> None:
    with pytest.raises(DataError, match=rf"f:1: {what} holds the control token '\[(SEP|MASK|CLS)\]'; remove it"):
        encode([record], word_pieces(), AB)
    for gold in (False, True):  # what is to be labelled, too
        found = AB._replace(gold=gold, on_bad_row="skip")
        with pytest.raises(DataError, match="no row is left of 1"):
            encode([record], word_pieces(), found)


def test_in_prompts() -> None:
    tok = tokenizer()
    for prompt in (f"Hi{END}", (ASK, Message("assistant", f"a{END}"), ASK)):
        with pytest.raises(TemplateError, match=r"the prompt '.*holds the control token '<.end.>'"):
            encode_prompt(prompt, tok)
    with pytest.raises(TemplateError, match=r"turn 0 .system. holds the control token"):
        encode_prompt("Hi", tok, system=f"Be{END}")
    with pytest.raises(TemplateError, match=r"holds the control token '<.end.>'"):
        encode_prompt(f"Hi{END}", tokenizer(None))


class Encoder(PromptEncoder):
    def __init__(self, tok: Any, system_prefix: str | None = None) -> None:
        self.tokenizer, self.system_prefix = tok, system_prefix


def test_in_what_exams_ask() -> None:
    asks = Encoder(tokenizer())
    for prompt in (f"Hi{END}", Plain(f"Hi{END}"), Plain(f"{END}Hi")):
        with pytest.raises(TemplateError, match="holds the control token"):
            asks.encode(prompt)
        with pytest.raises(TemplateError, match="holds the control token"):
            asks.encode_pair(prompt, "yes")
    with pytest.raises(TemplateError, match="holds the control token"):
        Encoder(tokenizer(), f"Be{END}").encode("Hi")
    with pytest.raises(TemplateError, match="the text holds the control token"):
        PromptReader(tokenizer(), None, 20).check_documents([f"One{END}"])
    # what begins a document may be there already
    assert asks.encode(Plain("<|bos|>Hi")) == [1, *tokenizer().encode("Hi", add_special_tokens=False)]


@pytest.mark.parametrize("prompt", ["Hi", Plain("Hi")])
@pytest.mark.parametrize("template", [MARKED, None])
def test_in_an_answer_to_be_scored_it_is_its_letters(template: str | None, prompt: Any) -> None:
    tok = tokenizer(template)
    pair = Encoder(tok).encode_pair(prompt, f"a{END} b")
    assert pair.prompt == Encoder(tok).encode(prompt)
    assert tok.decode(pair.answer) == f"a{END} b"
    assert not gate_of(tok).special & set(pair.answer)


@pytest.mark.parametrize("at", range(1, len(END)))
def test_one_that_an_answer_makes_with_the_end_of_its_prompt(at: int) -> None:
    tok = tokenizer(None)
    for prompt in (Plain(f"Hi{END[:at]}"), f"Hi{END[:at]}"):
        pair = Encoder(tok).encode_pair(prompt, f"{END[at:]} b")
        assert pair.prompt == Encoder(tok).encode(prompt)
        assert tok.decode(pair.answer) == f"{END[at:]} b"
        assert not gate_of(tok).special & {*pair.prompt[1:], *pair.answer}


def test_scores_of_such_an_answer(pico_path: Callable[[str], Path]) -> None:
    llama = ModelRespondent(load_model(str(pico_path("llama"))))
    letters = llama.tokenizer.encode(f"a{END}", add_special_tokens=False, split_special_tokens=True)
    assert [s.tokens for s in llama.logprobs([("Hi", f"a{END}"), (Plain("Hi"), f"a{END}")])] == [len(letters)] * 2
    with pytest.raises(TemplateError, match="holds the control token"):
        llama.logprobs([(Plain(f"Hi{END}"), "a")])


def test_an_answer_that_spells_one_can_be_asked_about(pico_path: Callable[[str], Path]) -> None:
    """As decoding leaves out real ones; else the next turn of a conversation would be refused."""
    llama = ModelRespondent(load_model(str(pico_path("llama"))))
    spelt = llama.tokenizer.encode(f"So<|e{END}nd|>.", add_special_tokens=False, split_special_tokens=True)
    assert llama.tokenizer.decode(spelt) == f"So<|e{END}nd|>."
    answer = llama._answer("Hi", Decoded(spelt, True), ())
    assert answer.text == "So."
    assert llama.encode((ASK, Message("assistant", answer.text), ASK))


class Judge(PromptEncoder):
    """A judge of this machine whose tokenizer reads `[SEP]` as a control token."""

    name = fingerprint = "judge"
    system_prefix = None

    def __init__(self) -> None:
        self.tokenizer = word_pieces()

    def answers(self, prompts: Any, **settings: Any) -> list[Answer]:
        for prompt in prompts:
            self.encode(prompt)
        return [Answer("yes", 1, True)] * len(prompts)

    def generate(self, prompts: Any, **settings: Any) -> list[str]:
        return [answer.text for answer in self.answers(prompts, **settings)]


def test_a_judge_is_asked_about_what_another_model_said() -> None:
    judge: Any = Judge()
    assert judge_same(judge, [("Who?", "Bob [SEP] Ann", "Bob and Ann")]) == [True]


def with_added(template: str | None, *tokens: str) -> Any:
    """A tokenizer with tokens that are not special."""
    tok = copy.deepcopy(tokenizer(None))
    tok.chat_template = template
    tok.add_tokens(list(tokens))
    return tok


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>"])
def test_tags_of_turns_that_were_added_and_are_not_special(token: str) -> None:
    tok = with_added(CHATML, "<|im_start|>", "<|im_end|>", "user")
    assert not gate_of(tok).special & {tok.convert_tokens_to_ids(token)}
    cause = f"turn 0 (user) holds the control token '{token}'"
    with pytest.raises(TemplateError) as caught:
        render(Conversation((replace(ASK, content=f"Who{token}?"), ANSWER), "a:1"), tok)
    assert caught.value.problems[0].cause == cause
    with pytest.raises(TemplateError) as caught:
        encode_prompt(f"Who{token}?", tok)
    assert caught.value.problems[0].cause == cause
    with pytest.raises(TemplateError, match="the text holds the control token"):
        render(Text(f"One.{token}Two.", "a:1"), tok)
    assert gate_of(tok).without(f"I.{token}", tok) == "I."
    asked = "<|im_start|>user\nWho is the user?<|im_end|>\n<|im_start|>assistant\n"
    assert tok.decode(encode_prompt("Who is the user?", tok)) == asked


@pytest.mark.parametrize("words", ["<think>\nHm\n</think>\n\nI.", '<tool_call>\n{"name": "f"}\n</tool_call>', "台積電"])
def test_added_tokens_that_belong_into_texts(words: str) -> None:
    tok = with_added(shipped("qwen3"), "<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_start|>", "台積電")
    tok.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    row = render(Conversation((ASK, Message("assistant", words)), "a:1"), tok)
    said = words if "think" in words else f"<think>\n\n</think>\n\n{words}"
    assert tok.decode([i for i in row.labels if i >= 0]) == f"{said}<|im_end|>"
    with pytest.raises(TemplateError, match=r"holds the control token '<.im_start.>'"):
        render(Conversation((ASK, Message("assistant", f"{words}<|im_start|>")), "a:1"), tok)


def test_where_generation_stops() -> None:
    tok = with_added(MARKED, "<halt>", "STOP", "word")
    row = Conversation((ASK, Message("assistant", "no <halt> here, STOP")), "a:1")
    assert render(row, tok)
    keep_stops(copy_of := copy.deepcopy(tok), [copy_of.convert_tokens_to_ids(t) for t in ("<halt>", "STOP", "!")])
    with pytest.raises(TemplateError, match=r"turn 1 .assistant. holds the control token '<halt>'"):
        render(row, copy_of)
    with pytest.raises(TemplateError, match="holds the control token 'STOP'"):
        render(said(Message("assistant", "STOP")), copy_of)
    assert render(said(Message("assistant", "a word!")), copy_of)


def test_the_gate_is_that_of_the_template() -> None:
    tok = with_added(MARKED, "<|im_end|>")
    row = Conversation((ASK, Message("assistant", "<|im_end|>")), "a:1")
    assert render(row, tok)
    tok.chat_template = CHATML
    with pytest.raises(TemplateError, match="holds the control token"):
        render(row, tok)


@pytest.mark.parametrize("answer", ["a<|im_end|> b", "<|im_end|>", "a<|im_end|><|im_start|>user", f"a{END}<|im_end|>b"])
def test_one_that_is_not_special_is_scored_by_its_letters(answer: str) -> None:
    tok = with_added(CHATML, "<|im_start|>", "<|im_end|>")
    pair = Encoder(tok).encode_pair("Hi", answer)
    assert tok.decode(pair.answer) == answer
    assert not gate_of(tok).control.keys() & set(pair.answer)
