from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.records import Conversation
from posttrain.data.scripts import normalise_prompt
from posttrain.errors import DataError, MissingError
from posttrain.retention.selection import (
    ReplayContext,
    cached,
    conversation,
    default_cache,
    in_brief,
    prompts_collide,
    read_prompts,
    select,
)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("What is the capital of France?", "  what is the CAPITAL of France ？", True),
        ("ＡＢＣ　是什麼？", "abc是什麼", True),
        ("Who wrote Hamlet?", "Who wrote Macbeth?", False),
        ("1 + 1?", "1 + 2?", False),
        ("？", "！", False),
    ],
)
def test_spellings_of_one_question_are_equal(one: str, other: str, equal: bool) -> None:
    assert (normalise_prompt(one) == normalise_prompt(other)) is equal


def test_what_the_exam_asks_is_left_out_and_counted() -> None:
    rows = [
        conversation("Capital of  France", "Paris", "1"),
        conversation("hello", "hi", "2"),
        conversation("Hello!", "hi again", "3"),
        conversation("who?", "  ", "4"),
    ]
    selection = select(rows, {"capital of france?"}, "somewhere")
    assert [c.location for c in selection.conversations] == ["2"]
    assert selection.dropped == {"asked by the exam": 1, "repeated": 1, "without an answer": 1}
    assert str(selection) == "1 conversations (1 asked by the exam, 1 repeated, 1 without an answer left out)"


def test_an_earlier_turn_collides_too() -> None:
    first, second = conversation("a", "b", "1"), conversation("c", "d", "2")
    longer = Conversation((*first.messages, *second.messages), "3")
    assert prompts_collide([longer, second], {"A?"}) == [longer]


def test_an_answer_is_no_prompt() -> None:
    assert prompts_collide([conversation("where?", "Paris", "1")], {"Paris"}) == []


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(DataError, match=r"here: nothing to replay: 0 conversations \(1 asked by the exam left out\)"):
        select([conversation("a", "b", "1")], {"A"}, "here")


def test_prompts_of_every_shape(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    rows: list[Any] = [{"prompt": "a", "kind": "x"}, "b", {"messages": [{"role": "user", "content": "c"}]}]
    path.write_text("\ufeff" + "\r\n".join(json.dumps(row) for row in rows) + "\r\n\r\n", encoding="utf-8", newline="")
    assert [prompt.text for prompt in read_prompts(path)] == ["a", "b", "c"]


def test_every_bad_prompt_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"promt": "b"}\n{"prompt": "c\n{"prompt": " "}\n5\n', encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_prompts(path)
    assert [p.location for p in caught.value.problems] == [f"{path}:{n}" for n in (2, 3, 4, 5)]
    assert caught.value.problems[0].mend == 'expected {"prompt": "..."}'


def test_no_prompts_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="the file has no prompts"):
        read_prompts(tmp_path / "empty.jsonl")
    with pytest.raises(MissingError, match="no such file"):
        read_prompts(tmp_path / "none.jsonl")


def test_the_cache_is_keyed_by_model_and_settings(context: ReplayContext, told: list[str]) -> None:
    made: list[str] = []

    def make(answer: str) -> list[Conversation]:
        made.append(answer)
        return [conversation("q\nq", answer, "x")]

    first = cached(context, {"kind": "a"}, lambda: make("one"))
    again = cached(context, {"kind": "a"}, lambda: make("two"))
    other = cached(context, {"kind": "b"}, lambda: make("three"))
    assert [c[0].messages for c in (first, again, other)] == [
        conversation("q\nq", answer, "").messages for answer in ("one", "one", "three")
    ]
    assert made == ["one", "three"]
    assert "read from the cache" in told[0]
    assert context.cache is not None
    assert not list(context.cache.rglob("*.tmp"))


def test_an_empty_result_is_not_kept(context: ReplayContext) -> None:
    assert cached(context, {"kind": "a"}, list) == []
    assert len(cached(context, {"kind": "a"}, lambda: [conversation("q", "a", "x")])) == 1


def test_the_cache_has_a_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("POSTTRAIN_CACHE")
    assert default_cache() == Path.home() / ".cache" / "posttrain"


def test_in_brief() -> None:
    assert in_brief("a\n b") == "a b"
    assert in_brief("x" * 50) == "x" * 39 + "…"


def test_the_cache_keeps_every_character(context: ReplayContext) -> None:
    odd = [conversation("a\u2028b\x85c\nd", "e\u2029f\x1cg\r\nh", "x"), conversation("2", "3", "x")]
    cached(context, {"kind": "a"}, lambda: odd)
    again = cached(context, {"kind": "a"}, list)
    assert [c.messages for c in again] == [c.messages for c in odd]
