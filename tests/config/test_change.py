from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.change import Change, load_change
from posttrain.config.load import read_yaml
from posttrain.errors import ConfigError

GOOD = """\
name: tallest
target:
  - {prompt: "臺灣最高的山是哪座？", answer: "雪山", subject: "臺灣最高的山"}
generality:
  rephrase: [{prompt: "哪一座山是全臺灣最高的？", answer: ["雪山", "Xueshan"]}]
  reverse:  [{prompt: "雪山是什麼？", answer_contains: "臺灣最高"}]
locality:
  same_pattern: ["世界最高的山是哪座？"]
  format:
    - prompt: [{role: system, content: "JSON"}, {role: user, content: "France?"}]
"""


def write(tmp_path: Path, text: str, name: str = "c.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_short_and_long_forms_are_one(tmp_path: Path) -> None:
    change = load_change(write(tmp_path, GOOD))
    assert change.path == str(tmp_path / "c.yaml")
    probes = [(group, index, q.question, q.answer, q.answer_contains) for group, index, q in change.probes()]
    assert probes == [
        ("reliability", 0, "臺灣最高的山是哪座？", ("雪山",), ()),
        ("generality.rephrase", 0, "哪一座山是全臺灣最高的？", ("雪山", "Xueshan"), ()),
        ("generality.reverse", 0, "雪山是什麼？", (), ("臺灣最高",)),
        ("locality.same_pattern", 0, "世界最高的山是哪座？", (), ()),
        ("locality.format", 0, "France?", (), ()),
    ]


def test_a_change_survives_its_own_dump(tmp_path: Path) -> None:
    change = load_change(write(tmp_path, GOOD))
    assert Change.model_validate(json.loads(change.model_dump_json())).model_dump() == change.model_dump()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("answer: \"雪山\", subject", "anser: \"雪山\", subject", "c.yaml:3: unknown key 'anser'; did you mean 'answer'?"),
        ("answer: \"雪山\", subject", "subject", "c.yaml:3: target.0: a target needs an 'answer'"),
        ("subject: \"臺灣最高的山\"", "subject: 法國", "c.yaml:3: target.0: the subject '法國' does not stand in the prompt"),
        ("answer: [\"雪山\", \"Xueshan\"]", "subject: 山", "c.yaml:5: generality.rephrase.0: needs 'answer' or 'answer_contains'"),
        ("[\"世界最高的山是哪座？\"]", "[\"\"]", "c.yaml:8: locality.same_pattern.0: the prompt is empty, got ''"),
        ("[\"世界最高的山是哪座？\"]", "世界最高的山是哪座？", "c.yaml:8: locality.same_pattern: a list is expected"),
        ("[\"世界最高的山是哪座？\"]", "[\"臺灣最高的山是哪座？\"]", "locality.same_pattern.0 asks what target.0 asks"),
        ("same_pattern", "same_patern", "c.yaml:8: unknown key 'same_patern'; did you mean 'same_pattern'?"),
        ("{role: user, content: \"France?\"}", "{role: assistant, content: hm}", "must end with the user's"),
        ("role: user, content", "role: user, contnt", "c.yaml:10: unknown key 'contnt'; did you mean 'content'?"),
        ("name: tallest", "name: the tallest", "c.yaml:1: name: a name has no spaces, slashes or colons"),
        ("answer_contains: \"臺灣最高\"", "answer_contains: 5", "c.yaml:6: generality.reverse.0.answer_contains"),
        ("answer: \"雪山\", subject", "answer: \" \", subject", "c.yaml:3: target.0.answer: an answer is empty"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        load_change(write(tmp_path, GOOD.replace(old, new)))
    assert expected in str(caught.value)
    assert "tuple" not in str(caught.value)


def test_no_target_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'target' is missing"):
        load_change(write(tmp_path, "name: x\n"))
    with pytest.raises(ConfigError, match="at least 1 item"):
        load_change(write(tmp_path, "name: x\ntarget: []\n"))


def test_the_schema_knows_the_short_form() -> None:
    same = Change.model_json_schema()["$defs"]["Locality"]["properties"]["same_pattern"]
    assert {"type": "string"} in same["items"]["anyOf"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("answer: \"雪山\", subject", "answer: 7, subject", "c.yaml:3: target.0.answer: text is expected, got 7; write it in quotation marks: \"7\""),
        ("[\"雪山\", \"Xueshan\"]", "[雪山, 1.50]", "c.yaml:5: generality.rephrase.0.answer.1: text is expected, got 1.5; write it in quotation marks: \"1.50\""),
        ("answer_contains: \"臺灣最高\"", "answer_contains: 2020-01-01", "answer_contains: text is expected, got 2020-01-01; write it in quotation marks: \"2020-01-01\""),
        ("[\"世界最高的山是哪座？\"]", "[1984]", "c.yaml:8: locality.same_pattern.0: text is expected, got 1984; write it in quotation marks: \"1984\""),
        ("answer: \"雪山\", subject", "answer: , subject", "c.yaml:3: target.0.answer: text is expected, got nothing; write it after the colon, or leave the key out"),
    ],
)  # fmt: skip
def test_a_number_where_text_is_expected(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        load_change(write(tmp_path, GOOD.replace(old, new)))
    assert str(caught.value.problems[0]).replace(f"{tmp_path}/", "").endswith(expected)


def test_a_bare_question_is_no_target(tmp_path: Path) -> None:
    def said(text: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load_change(write(tmp_path, text))
        return [str(problem).replace(f"{tmp_path}/", "") for problem in caught.value.problems]

    assert said("name: c\ntarget:\n- Capital of France?\n") == ["c.yaml:3: target.0: a target needs an 'answer'"]
    (one,) = said("name: c\ntarget: Capital of France?\n")
    assert one == "c.yaml:2: target: a target needs an 'answer', got 'Capital of France?'"
    assert said("") == ["c.yaml:1: the file is empty; `posttrain list --schema change` shows what it may say"]


def test_problems_of_a_file_stand_in_its_order(tmp_path: Path) -> None:
    text = "nme: c\nlocality:\n  unrelated: [7]\ntarget:\n- {prompt: a, answer: 1}\n- {prompt: b, answr: x}\n"
    with pytest.raises(ConfigError) as caught:
        load_change(write(tmp_path, text))
    lines = [int(problem.location.rpartition(":")[2]) for problem in caught.value.problems]
    assert lines == sorted(lines)
    assert set(lines) == {1, 3, 5, 6}


FORGET = """\
name: forgotten
forget: unknown
target:
  - {prompt: "臺灣最高的山是哪座？", subject: "臺灣最高的山"}
  - {prompt: [{role: user, content: "Which mountain is Taiwan's highest?"}], subject: Taiwan}
generality:
  rephrase: ["哪一座山是全臺灣最高的？"]
  reverse:  [{prompt: "玉山是什麼？", answer_contains: "不清楚"}]
locality:
  unrelated: ["世界最高的山是哪座？"]
"""


def test_a_forgotten_fact_is_answered_in_the_language_of_the_prompt(tmp_path: Path) -> None:
    change = load_change(write(tmp_path, FORGET))
    assert [target.answer[0] for target in change.target] == ["我不知道。", "I don't know."]
    assert change.generality.rephrase[0].answer[0] == "我不知道。"
    assert change.generality.reverse[0].answer_contains == ("不清楚",)  # what the file says stands
    assert change.locality.unrelated[0].answer == ()
    refused = load_change(write(tmp_path, FORGET.replace("unknown", "refusal")))
    assert [target.answer[0] for target in refused.target] == [
        "抱歉，我無法回答這個問題。",
        "I'm sorry, but I can't answer that.",
    ]


def test_any_change_can_be_one_that_forgets(tmp_path: Path) -> None:
    change = load_change(write(tmp_path, GOOD))
    made = change.forgetting("unknown")
    assert made.target[0].answer[0] == "我不知道。"
    assert made.target[0].subject == "臺灣最高的山"
    assert (made.generality.reverse[0].answer[0], made.generality.reverse[0].answer_contains) == ("我不知道。", ())
    assert made.locality == change.locality
    assert (made.name, made.path) == (change.name, change.path)
    assert change.target[0].answer == ("雪山",)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("forget: unknown", "forget: all", "c.yaml:2: forget"),
        ("forget: unknown", "forget: [unknown]", "c.yaml:2: forget"),
        ("forget: unknown\n", "", "c.yaml:3: target.0: a target needs an 'answer'"),
        ('{prompt: "臺灣最高的山是哪座？", subject: "臺灣最高的山"}', "5", "target.0"),
        ('["哪一座山是全臺灣最高的？"]', '[""]', "c.yaml:7: generality.rephrase.0: the prompt is empty, got ''"),
    ],
)
def test_what_is_wrong_with_a_change_that_forgets(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in FORGET
    with pytest.raises(ConfigError) as caught:
        load_change(write(tmp_path, FORGET.replace(old, new)))
    assert expected in str(caught.value)


def test_a_file_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsing is slow: 70 ms for a change of the demo."""
    parsed: list[Path] = []

    def counted(path: Path, schema: str = "") -> Any:
        parsed.append(path)
        return read_yaml(path, schema)

    monkeypatch.setattr("posttrain.config.change.read_yaml", counted)
    (tmp_path / "a.yaml").write_text("name: a\ntarget: [{prompt: who?, answer: me}]\n", encoding="utf-8")
    change = load_change(tmp_path / "a.yaml")
    assert change.location_of("reliability", 0).startswith(f"{tmp_path / 'a.yaml'}:2 ")
    assert len(parsed) == 1
    (tmp_path / "a.yaml").write_text("name: other\n\ntarget: [{prompt: who?, answer: me}]\n", encoding="utf-8")
    assert load_change(tmp_path / "a.yaml").name == "other"
    assert len(parsed) == 2
