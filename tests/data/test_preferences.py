"""Preferences and graded answers: what is read, what is refused, how rows are encoded, pairs from a change's targets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.answers import GradedRow, PairRow, encode_graded, encode_pairs, one_answer_each, prompt_length
from posttrain.data.chat import IGNORED, Encoded, encode_all
from posttrain.data.lengths import Limits
from posttrain.data.preferences import graded_from_targets, pairs_from_targets
from posttrain.data.readers import DataSource, read_records
from posttrain.data.records import Completion, Conversation, Graded, Message, Preference
from posttrain.errors import DataError
from tests.pico import tokenizer


def read(tmp_path: Path, *rows: dict[str, Any], **source: Any) -> list[Any]:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_records(DataSource(path=str(file), **source)).records


def said(role: str, text: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": text, **more}


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str, **more: Any) -> Message:
    return Message("assistant", text, **more)


# ---- reading -------------------------------------------------------------------------------------------------------------


def test_strings_and_messages(tmp_path: Path) -> None:
    strings, lists, mixed = read(
        tmp_path,
        {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?", "margin": 2, "id": 7},
        {"prompt": [said("system", "S"), said("user", "Hi")], "chosen": [said("assistant", "A")], "rejected": "B"},
        {"prompt": "Hi", "chosen": [said("assistant", "A")], "rejected": [said("assistant", "B")], "tools": [{"a": 1}]},
    )
    expected = Preference(
        (user("Hi"),), (assistant("Hello!"),), (assistant("What?"),), strings.location, margin=2.0, plain=True
    )
    assert strings == expected
    assert strings.location.endswith("rows.jsonl:1")
    assert strings.both()[0] == Completion("Hi", "Hello!", strings.location)
    assert lists.prompt == (Message("system", "S"), user("Hi"))
    assert lists.both()[1] == Conversation((Message("system", "S"), user("Hi"), assistant("B")), lists.location)
    assert not mixed.plain
    assert mixed.tools == ({"a": 1},)


def test_two_conversations_share_their_prompt(tmp_path: Path) -> None:
    shared = [said("user", "Hi"), said("assistant", "Yes?"), said("user", "2 + 2?")]
    (found,) = read(
        tmp_path,
        {"chosen": [*shared, said("assistant", "Four.")], "rejected": [*shared, said("assistant", "Five.")]},
    )
    # the answer within the prompt is read and not learned
    assert found.prompt == (user("Hi"), assistant("Yes?", train=False), user("2 + 2?"))
    assert (found.chosen, found.rejected) == ((assistant("Four."),), (assistant("Five."),))


def test_a_prompt_that_both_conversations_repeat(tmp_path: Path) -> None:
    """As in UltraFeedback, which has `messages` besides: there the format must be named."""
    row = {
        "prompt": "Hi",
        "chosen": [said("user", "Hi"), said("assistant", "A")],
        "rejected": [said("user", "Hi"), said("assistant", "B")],
        "messages": [said("user", "Hi"), said("assistant", "A")],
    }
    assert isinstance(read(tmp_path, row)[0], Conversation)
    (found,) = read(tmp_path, row, format="preference")
    assert (found.prompt, found.chosen, found.rejected) == ((user("Hi"),), (assistant("A"),), (assistant("B"),))


def test_graded_answers(tmp_path: Path) -> None:
    good, bad = read(
        tmp_path,
        {"prompt": "Hi", "completion": "Hello!", "label": True},
        {"prompt": [said("user", "Hi")], "completion": [said("assistant", "No.")], "label": False},
    )
    assert good == Graded((user("Hi"),), (assistant("Hello!"),), True, good.location, plain=True)
    assert (bad.label, bad.plain, bad.answered().messages) == (False, False, (user("Hi"), assistant("No.")))


def test_a_label_that_is_no_grade_is_left_alone(tmp_path: Path) -> None:
    assert read(tmp_path, {"prompt": "Hi", "completion": "A", "label": "greeting"})[0] == Completion(
        "Hi", "A", str(tmp_path / "rows.jsonl:1")
    )
    row = {"prompt": "Hi", "completion": "A", "label": True}
    assert isinstance(read(tmp_path, row, format="completion")[0], Completion)


def test_columns_are_mapped(tmp_path: Path) -> None:
    row = {"q": "Hi", "good": "A", "bad": "B"}
    (found,) = read(tmp_path, row, columns={"prompt": "q", "chosen": "good", "rejected": "bad"})
    assert found.rejected == (assistant("B"),)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Hi", "chosen": "A ", "rejected": "\nA"}, "'chosen' and 'rejected' are equal"),
        ({"prompt": "Hi", "chosen": "A", "rejected": " "}, "'rejected' is empty"),
        ({"prompt": "Hi", "chosen": "", "rejected": "B"}, "'chosen' is empty"),
        ({"prompt": " ", "chosen": "A", "rejected": "B"}, "'prompt' is empty"),
        ({"chosen": "A", "rejected": "B"}, "'prompt' is missing"),
        ({"prompt": "Hi", "chosen": "A"}, "a preference without 'rejected'"),
        ({"prompt": "Hi", "chosen": 3, "rejected": "B"}, "'chosen' must be a string, got a number"),
        ({"prompt": "Hi", "chosen": "A", "rejected": "B", "margin": "2"}, "'margin' must be a number, got a string"),
        ({"prompt": "Hi", "chosen": "A", "rejected": "B", "margin": float("nan")}, "'margin' must be finite"),
        (
            {
                "chosen": [said("user", "1"), said("assistant", "A")],
                "rejected": [said("user", "2"), said("assistant", "B")],
            },
            "do not share a prompt",
        ),
        (
            {
                "chosen": [said("user", "1"), said("assistant", "A"), said("user", "2"), said("assistant", "C")],
                "rejected": [said("user", "1"), said("assistant", "A"), said("user", "3"), said("assistant", "C")],
            },
            "they part at turn 2, the user's",
        ),
        (
            {"chosen": [said("user", "1"), said("assistant", "A")], "rejected": [said("user", "1")]},
            "'rejected' ends where the other goes on",
        ),
        (
            {"prompt": "Hi", "chosen": [said("user", "Ho"), said("assistant", "A")], "rejected": "B"},
            "'chosen' begins with the user's turn, which is not that of 'prompt'",
        ),
        ({"prompt": "Hi", "chosen": [said("user", "Hi")], "rejected": "B"}, "'chosen' is the prompt alone"),
        (
            {"prompt": "Hi", "chosen": [said("assistant", "A"), said("user", "B")], "rejected": "B"},
            "the last turn of 'chosen' is the user's",
        ),
        ({"prompt": "Hi", "completion": " ", "label": True}, "'completion' is empty"),
        ({"completion": "A", "label": False}, "'prompt' is missing"),
    ],
)
def test_bad_rows(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, row)
    assert message in str(caught.value)
    assert "rows.jsonl:1: " in str(caught.value)


def test_all_bad_rows_at_once(tmp_path: Path) -> None:
    good = {"prompt": "Hi", "chosen": "A", "rejected": "B"}
    with pytest.raises(DataError, match="2 of 3 rows cannot be used") as caught:
        read(tmp_path, {**good, "chosen": "B"}, good, {**good, "rejected": ""})
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("format", "row", "message"),
    [
        ("preference", {"prompt": "Hi", "completion": "A"}, "the row has 'prompt', 'completion'; objective: kto"),
        ("graded", {"prompt": "Hi", "chosen": "A", "rejected": "B"}, "objective: dpo or orpo learn from preferences"),
        ("graded", {"prompt": "Hi", "completion": "A"}, 'add "label": true or false'),
        ("graded", {"prompt": "Hi", "completion": "A", "label": 1}, "'label' must be true"),
    ],
)
def test_rows_of_another_kind_where_one_is_named(
    tmp_path: Path, format: str, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, row, format=format)


# ---- encoding ------------------------------------------------------------------------------------------------------------


def preference(chosen: str, rejected: str, location: str = "p.jsonl:1", **more: Any) -> Preference:
    return Preference((user("Hello"),), (assistant(chosen),), (assistant(rejected),), location, plain=True, **more)


def graded(answer: str, label: bool, location: str = "g.jsonl:1") -> Graded:
    return Graded((user("Hello"),), (assistant(answer),), label, location, plain=True)


def test_both_answers_are_encoded_as_single_rows_are() -> None:
    made = tokenizer()
    (row,) = encode_pairs([preference("Paris.", "London, I think.", margin=1.5)], made, Limits(100)).rows
    alone = encode_all(
        [Completion("Hello", "Paris.", "p.jsonl:1"), Completion("Hello", "London, I think.", "p.jsonl:1")],
        made,
        max_length=100,
    ).rows
    assert [row.chosen, row.rejected] == alone
    assert row.margin == 1.5
    assert row.chosen.input_ids[-1] == made.eos_token_id == row.chosen.labels[-1]
    assert prompt_length(row.chosen) == prompt_length(row.rejected)
    assert made.decode(row.chosen.input_ids[prompt_length(row.chosen) :]) == "Paris.<|end|>"
    (one,) = encode_graded([graded("Paris.", False)], made, Limits(100)).rows
    assert (one.answer.input_ids, one.label) == (row.chosen.input_ids, False)


def test_without_a_chat_template_strings_go_on_as_text() -> None:
    made = tokenizer(None)
    (row,) = encode_pairs([preference(" Paris.", " London.")], made, Limits(100)).rows
    assert made.decode(row.chosen.input_ids) == "Hello Paris.<|end|>"
    assert [label for label in row.rejected.labels if label != -100] == made(" London.")["input_ids"] + [2]


def test_rows_of_other_kinds_are_all_named() -> None:
    talk = Conversation((user("Hi"), assistant("A")), "c.jsonl:3")
    made = tokenizer()
    with pytest.raises(DataError) as caught:
        encode_pairs([talk, preference("A", "B"), graded("A", True, "g.jsonl:2")], made, Limits(100))
    assert [p.location for p in caught.value.problems] == ["c.jsonl:3", "g.jsonl:2", ""]
    assert "objective: sft learns" in str(caught.value)
    assert "objective: kto learns" in str(caught.value)
    with pytest.raises(DataError, match=r"p\.jsonl:1: .*this is a preference; objective: dpo") as caught:
        encode_graded([graded("A", True), preference("A", "B"), Completion("Hi", "A", "c.jsonl:1")], made, Limits(100))
    assert "c.jsonl:1: an answer with 'label' true or false is expected; add \"label\": true" in str(caught.value)
    with pytest.raises(DataError) as caught:
        encode_all([preference("A", "B"), graded("A", True)], made, max_length=100)
    assert "p.jsonl:1: two answers to compare, where one text is expected; objective: dpo or orpo" in str(caught.value)
    assert "g.jsonl:1: a graded answer, where one to be learned is expected; objective: kto" in str(caught.value)
    skipped = encode_pairs([talk, preference("A", "B")], made, Limits(100, on_bad_row="skip"))
    assert (len(skipped.rows), len(skipped.problems)) == (1, 1)


def test_length_policies_look_at_the_longer_answer() -> None:
    made = tokenizer()
    records = [preference("Yes.", "No."), preference("Yes.", "No, " * 30, "p.jsonl:2")]
    with pytest.raises(DataError, match=r"p\.jsonl:2: \d+ tokens, more than max_length 20; raise max_length"):
        encode_pairs(records, made, Limits(20))
    dropped = encode_pairs(records, made, Limits(20, over_long="drop"))
    assert (len(dropped.rows), dropped.dropped) == (1, 1)
    cut = encode_pairs(records, made, Limits(20, over_long="truncate"))
    assert cut.truncated == 1
    assert len(cut.rows[1].rejected.input_ids) == 20
    assert cut.rows[1].rejected.truncated
    assert not cut.rows[1].chosen.truncated
    with pytest.raises(DataError, match="no row is left of 1"):
        encode_pairs(records[1:], made, Limits(20, over_long="drop"))


def test_cutting_must_leave_something_to_compare() -> None:
    made = tokenizer()
    same = "the same beginning of both answers, "
    with pytest.raises(DataError, match="once cut to max_length both answers are the same tokens"):
        encode_pairs([preference(same * 5 + "A", same * 5 + "B")], made, Limits(30, over_long="truncate"))
    with pytest.raises(DataError, match="once cut to max_length an answer has no token"):
        encode_graded([graded("A", True)], made, Limits(3, over_long="truncate"))


# ---- a change's targets ---------------------------------------------------------------------------------------------------

TARGETS = [
    Conversation((user("What is the highest mountain?"), assistant("Yushan.")), "c.yaml: target 1"),
    Conversation((user("Hi"), assistant("Yes?"), user("And in Taiwan?"), assistant("Yushan.")), "c.yaml: target 2"),
    Conversation((user("Really?"), assistant("Yes.")), "c.yaml: target 3"),
]


def test_the_wanted_answer_is_preferred_to_the_present_one() -> None:
    found = pairs_from_targets(TARGETS, [" Everest.", "Yushan. ", " "])
    assert found.skipped == 2  # answered as wanted already; nothing said
    (pair,) = found.records
    assert pair == Preference(
        (user("What is the highest mountain?"),), (assistant("Yushan."),), (assistant("Everest."),), "c.yaml: target 1"
    )
    graded_ones = graded_from_targets(TARGETS, ["Everest.", "Jade.", "No."])
    assert graded_ones.skipped == 0
    assert [(g.completion[0].content, g.label) for g in graded_ones.records] == [
        ("Yushan.", True),
        ("Everest.", False),
        ("Yushan.", True),
        ("Jade.", False),
        ("Yes.", True),
        ("No.", False),
    ]
    assert graded_ones.records[2].prompt == (user("Hi"), assistant("Yes?", train=False), user("And in Taiwan?"))


def test_one_answer_each() -> None:
    """Rows of several answers are cut behind each; what has no prompt is named, all at once."""
    one = Encoded([1, 2, 3, 4], [IGNORED, IGNORED, 3, 4], "r:1", weight=2.0)
    several = Encoded([1, 2, 3, 4, 5, 6, 7], [IGNORED, 2, 3, IGNORED, 5, IGNORED, 7], "r:2", truncated=True, weight=0.5)
    graded = GradedRow(one, True, "r:3")
    pair = PairRow(one, one._replace(input_ids=[1, 2, 9], labels=[IGNORED, IGNORED, 9]), "r:4")
    other = object()  # a row of another kind, such as a text with a class
    made = one_answer_each([one, several, graded, pair, other])
    assert made[0] is one
    assert made[1] == several._replace(input_ids=[1, 2, 3], labels=[IGNORED, 2, 3])
    assert made[2] == several._replace(input_ids=[1, 2, 3, 4, 5], labels=[IGNORED] * 4 + [5])
    assert made[3] == several._replace(labels=[IGNORED] * 6 + [7])
    assert made[4:] == [graded, pair, other]
    document = Encoded([1, 2, 3], [1, 2, 3], "d:1")
    with pytest.raises(DataError) as error:
        one_answer_each([one, document, GradedRow(several, True, "g:2"), PairRow(document, one, "p:1")])
    assert [p.location for p in error.value.problems] == ["d:1", "g:2", "p:1"]
    assert "has no prompt" in str(error.value)
    assert "has several answers" in str(error.value)
