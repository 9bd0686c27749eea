"""Where an answer begins: after what the template adds for generation, whether it marks the words or not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from posttrain.data.chat import render
from posttrain.data.records import Conversation, Message
from posttrain.errors import TemplateError
from tests.templates import learned, shipped, tokenizer_of


def said(*messages: Message) -> Conversation:
    return Conversation(messages, "rows.jsonl:1")


PROMPT_MEND = (
    "give the turn its reasoning_content where generation begins with reasoning; or correct chat_template.jinja: before "
    "an answer it must write what it writes for add_generation_prompt; or leave the turn out of the loss with "
    '"train": false'
)


@pytest.mark.parametrize(
    ("name", "prompt", "written"),
    [
        ("deepseek_r1_distill", "<think>\n", "Yo<｜end▁of▁sentence｜>"),
        ("deepseekv3", "<think>\n", "Yo<｜end▁of▁sentence｜>"),
        ("nemotron_3_nano", "\n", "</think>Yo<|im_end|>\n"),
        ("nemotron_3_5_lightning", "\n", "</think>Yo<|im_end|>\n"),
    ],
)
def test_generation_begins_otherwise_than_the_text_that_is_learned(name: str, prompt: str, written: str) -> None:
    """Marked or not: an answer would be learned after words that no prompt ends with."""
    for template in (name, f"{name}_training"):
        with pytest.raises(TemplateError) as caught:
            render(said(Message("user", "Hi"), Message("assistant", "Yo")), tokenizer_of(shipped(template)))
        problem = caught.value.problems[0]
        assert (problem.location, problem.mend) == ("rows.jsonl:1", PROMPT_MEND)
        assert problem.cause == (
            "the words of turn 1 (assistant) cannot be told apart in this chat template: "
            f"generation would begin with {prompt!r} where the text has {written!r}"
        )


@pytest.mark.parametrize(
    ("name", "expected"),
    [("nemotron_3_nano", "Hm\n</think>\nYo<|im_end|>"), ("nemotron_3_5_lightning", "Hm</think>Yo<|im_end|>")],
)
def test_reasoning_that_the_prompt_begins(name: str, expected: str) -> None:
    for template in (name, f"{name}_training"):
        tok = tokenizer_of(shipped(template))
        thinking = said(Message("user", "Hi"), Message("assistant", "Yo", reasoning="Hm"))
        assert learned(render(thinking, tok), tok) == [expected]


def test_what_a_prompt_ends_otherwise_is_refused_in_the_turn_where_it_does() -> None:
    tok = tokenizer_of(shipped("qwen3_5_nothink_training"))  # a prompt ends with an empty reasoning
    asked, told = Message("user", "Hi"), Message("assistant", "Yo")
    assert learned(render(said(asked, told), tok), tok) == ["Yo<|im_end|>"]
    with pytest.raises(TemplateError, match=r"turn 3 \(assistant\).*</think>.* where the text has .Hm") as caught:
        render(said(asked, told, asked, replace(told, reasoning="Hm")), tok)
    assert caught.value.problems[0].mend == PROMPT_MEND
