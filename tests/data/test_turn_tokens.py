"""Which added tokens begin and end turns, by the templates of the models themselves; others may stand in texts."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from posttrain.data.control import turn_tokens
from tests.pico import tokenizer
from tests.templates import MISTRAL, shipped

TAG = re.compile(r"</?[|｜]?[A-Za-z_▁:]+[|｜]?>|\[/?[A-Z_]{4,}\]|\[gMASK\]")
WORDS = ["user", "assistant", "system", "\n\n", "台積電", "COVID-19"]
"""Added words, some of which templates write into their tags."""


def with_added(template: str | dict[str, str] | None, tokens: list[str]) -> Any:
    """A tokenizer with tokens that are not special."""
    made = copy.deepcopy(tokenizer(None))
    made.chat_template = template
    made.add_tokens(tokens)
    return made


CHATML = {"<|im_start|>", "<|im_end|>"}
LLAMA = {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}
TURNS: dict[str, set[str]] = {
    "cohere": {"<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|SYSTEM_TOKEN|>"},
    "deepseekv3": {"<｜User｜>", "<｜Assistant｜>", "<｜tool▁outputs▁begin｜>", "<｜end▁of▁sentence｜>"},
    "gemma3": {"<start_of_turn>", "<end_of_turn>"},
    "gemma4_v5": {"<|turn>", "<turn|>"},
    "glm4moe": {"<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"},
    "gptoss": {"<|start|>", "<|message|>", "<|end|>", "<|return|>"},
    "lfm2_v2": CHATML,
    "llama3": LLAMA,
    "llama3_1": LLAMA,
    "llama3_2": LLAMA,
    "muse_glimmer": {"<|start|>", "<|message|>", "<|eot|>"},
    "nemotron_3_nano": CHATML,
    "phi3": {"<|system|>", "<|user|>", "<|assistant|>", "<|end|>"},
    "qwen2_5": CHATML,
    "qwen3": CHATML,
    "qwen3_5_think": CHATML,
    "qwen3_8": CHATML,
    "qwen3_instruct_2507": CHATML,
}
"""Of all that looks like a tag in a template, what begins and ends turns."""


@pytest.mark.parametrize("name", TURNS)
def test_tokens_of_turns(name: str) -> None:
    template = shipped(name)
    tags = sorted(set(TAG.findall(template)))
    made = with_added(template, [*tags, *WORDS])
    assert {made.convert_ids_to_tokens(i) for i in turn_tokens(made)} == TURNS[name]
    assert set(tags) >= TURNS[name]


def test_mistral() -> None:
    made = with_added(MISTRAL, sorted(set(TAG.findall(MISTRAL))))
    assert {made.convert_ids_to_tokens(i) for i in turn_tokens(made)} == {"[INST]", "[/INST]", "[TOOL_RESULTS]"}


def test_a_tag_that_is_no_token_is_none() -> None:
    """Llama 2's are plain text."""
    assert turn_tokens(with_added("{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}", WORDS)) == set()


def test_thoughts_that_open_the_turn() -> None:
    template = (
        "{% for m in messages %}{{ '<ask>' if m.role == 'user' else '<think>' + (m.reasoning_content or '') "
        "+ '</think>' }}{{ m.content }}<done>{% endfor %}"
    )
    made = with_added(template, ["<ask>", "<done>", "<think>", "</think>"])
    assert made.convert_ids_to_tokens(sorted(turn_tokens(made))) == ["<ask>", "<done>"]


@pytest.mark.parametrize(
    "template", [None, {"a": shipped("qwen3"), "b": shipped("qwen3")}, "{{ raise_exception('no') }}", "{% if %}"]
)
def test_templates_that_render_nothing_have_none(template: Any) -> None:
    assert turn_tokens(with_added(template, sorted(CHATML))) == set()


def test_special_ones_are_special_anyway() -> None:
    made = with_added(shipped("qwen3"), ["<|im_end|>"])
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    assert made.convert_ids_to_tokens(sorted(turn_tokens(made))) == ["<|im_end|>"]
