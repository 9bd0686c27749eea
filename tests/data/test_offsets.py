"""Where a turn begins: the tokens before it are those that generation will see, and none of the tag's is learned."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.data.chat import IGNORED, encode_prompt, outcomes, render
from posttrain.data.offsets import Start, as_prompted
from posttrain.data.records import Message
from posttrain.errors import Problem, TemplateError
from tests.data.test_chat import ANSWER, ASK, GLM_LIKE, PHI_LIKE, talk, using
from tests.pico import CHATML
from tests.templates import learned

TAGS = {  # how the assistant's tag ends: after a special token, after words, in two line breaks, in a space
    "glm": GLM_LIKE,
    "chatml": CHATML,
    "phi": PHI_LIKE,
    "llama": GLM_LIKE.replace("|>\n'", "|>\n\n'"),
    "vicuna": CHATML.replace("assistant\n", "assistant: ").replace("m.role + '\n'", "m.role + ': '"),
}


@pytest.mark.parametrize("loss_on", ["assistant", "all"])
@pytest.mark.parametrize("answer", ["Hello", "你好", "\nHello", "\n\nHello", "\n\n\n", " Hello", "  Hello", "\tHello"])
@pytest.mark.parametrize("tag", TAGS)
def test_a_row_begins_with_its_prompt_or_is_refused(tag: str, answer: str, loss_on: Any) -> None:
    """The tokens that generation sees, and no part of the tag among those that are learned."""
    tok = using(TAGS[tag])
    (row,) = outcomes([talk(ASK, Message("assistant", answer))], tok, loss_on)
    if isinstance(row, Problem):
        assert (
            "the first token of a turn joins the end of the template's tag and the beginning of the turn" in row.cause
        )
        assert answer[0].isspace()  # what is wrong with it can be mended
        return
    prompt = encode_prompt((ASK,), tok)
    assert row.input_ids[: len(prompt)] == prompt
    if loss_on == "all":
        assert row.labels == row.input_ids
    else:
        assert row.labels[: len(prompt)] == [IGNORED] * len(prompt)
        assert learned(row, tok) == [tok.decode([i for i in row.labels if i != IGNORED])]
        assert learned(row, tok)[0].startswith(answer)


@pytest.mark.parametrize("tag", ["glm", "phi"])
def test_a_line_break_that_joins_the_tags_is_refused(tag: str) -> None:
    tok = using(TAGS[tag])
    with pytest.raises(TemplateError, match=r"rows.jsonl:1: the first token of a turn joins"):
        render(talk(ASK, Message("assistant", "\n\nHello")), tok)
    for turns in ((Message("user", "\n\nHi", train=True), ANSWER), (ASK, ANSWER, ASK, Message("assistant", "\n\nHi"))):
        with pytest.raises(TemplateError, match=r"rows.jsonl:1: the first token of a turn joins"):
            render(talk(*turns), tok)


def test_every_answer_of_a_conversation_after_a_tag_that_is_cut() -> None:
    tok = using(TAGS["llama"])
    row = render(talk(ASK, ANSWER, ASK, ANSWER), tok)
    assert learned(row, tok) == ["你好, I.<|user|>", "你好, I.<|user|>"]
    tag = encode_prompt((ASK,), tok)[-2:]
    assert tok.decode(tag) == "<|assistant|>\n\n"
    assert len(tag) == 2  # alone two line breaks are one token, before words two: both turns have the one
    ids = row.input_ids
    assert sum(ids[i : i + 2] == tag for i in range(len(ids))) == 2


def test_by_hand() -> None:
    """Row: bos | tag, break, break | 7 8 end; alone the two breaks are one token, 9."""
    row, labels = [1, 2, 3, 3, 7, 8, 5], [IGNORED] * 4 + [7, 8, 5]
    start = Start(4, 0, True)
    assert as_prompted(row, labels, [(start, [1, 2, 9])]) == ([1, 2, 9, 7, 8, 5], [IGNORED] * 3 + [7, 8, 5])
    assert as_prompted(row, row, [(start, [1, 2, 9])]) == ([1, 2, 9, 7, 8, 5], [1, 2, 9, 7, 8, 5])
    assert as_prompted(row, labels, [(start, [1, 2, 3, 3])]) == (row, labels)
    assert as_prompted(row, labels, [(start, [1, 2, 3, 3, 9])]) == (
        [*row[:4], 9, *row[4:]],
        [*labels[:4], IGNORED, *labels[4:]],
    )
    assert as_prompted(row, labels, [(start._replace(exact=False), [1, 2, 9])]) is None
    # the tokens that differ are learned: they are another turn's, too
    assert as_prompted(row, [IGNORED] * 3 + [3, 7, 8, 5], [(start, [1, 2, 9])]) is None
