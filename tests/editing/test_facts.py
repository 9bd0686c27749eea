"""Facts from change files and rows, and their subjects among the tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.change import Change
from posttrain.data.records import Message
from posttrain.editing.facts import Fact, FactReader, facts_of, mentions, read_facts
from posttrain.errors import ConfigError, DataError, MissingError, PosttrainError
from posttrain.models.load import load_tokenizer
from tests.pico import tokenizer

CHANGE = """\
name: tallest
target:
  - {prompt: "臺灣最高的山是哪座？", answer: "雪山", subject: "臺灣"}
  - {prompt: "What is the highest mountain in Taiwan?", answer: "Xueshan", subject: "Taiwan"}
"""


def write(path: Path, *rows: Any) -> Path:
    path.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)}\n" for row in rows),
        encoding="utf-8",
    )
    return path


def test_rows_and_change_files_are_facts(tmp_path: Path) -> None:
    (tmp_path / "tallest.yaml").write_text(CHANGE, encoding="utf-8")
    rows = write(
        tmp_path / "rows.jsonl",
        {"prompt": "The capital of Australia is", "subject": "Australia", "answer": " Canberra "},
        {"prompt": "Who wrote Hamlet?", "subject": "Hamlet", "name": "hamlet", "year": 1603},
    )
    facts = read_facts(["rows.jsonl", "*.yaml"], tmp_path)
    assert [fact.name for fact in facts] == ["rows 1", "hamlet", "tallest 1", "tallest 2"]
    assert [fact.answer for fact in facts] == ["Canberra", "", "", ""]  # the new answer is not what is traced
    assert facts[0].location == f"{rows}:1"
    assert facts[3].location.startswith(f"{tmp_path / 'tallest.yaml'}:4 ")
    assert [fact.name for fact in read_facts(["rows.jsonl[1:]"], tmp_path)] == ["hamlet"]


def test_counterfact_says_what_is_true(tmp_path: Path) -> None:
    rewrite = {
        "prompt": "{} is in the city of", "subject": "The Space Needle", "relation_id": "P131",
        "target_new": {"str": "Paris", "id": "Q90"}, "target_true": {"str": "Seattle", "id": "Q5083"},
    }  # fmt: skip
    record = {
        "requested_rewrite": rewrite, "paraphrase_prompts": ["It stands. The Space Needle is in"],
        "neighborhood_prompts": ["Pike Place is in"], "attribute_prompts": ["The Louvre is in"], "generation_prompts": [],
    }  # fmt: skip
    (tmp_path / "counterfact.json").write_text(json.dumps([record, record]), encoding="utf-8")
    first, _ = read_facts(["counterfact.json"], tmp_path)
    (second,) = read_facts(["counterfact.json[1:2]"], tmp_path)
    assert (first.question, first.subject) == ("The Space Needle is in the city of", "The Space Needle")
    assert (first.answer, second.name) == ("Seattle", "counterfact-00001")
    with pytest.raises(DataError, match="is no slice of records"):
        read_facts(["counterfact.json[x]"], tmp_path)


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        ({"prompt": "Who wrote it?", "subject": "Hamlet"}, "the subject 'Hamlet' does not stand in the prompt"),
        ({"prompt": "Who wrote it?"}, "'subject' is missing"),
        ({"prompt": "", "subject": "x"}, "'prompt' must be a text"),
        ({"prompt": "Who wrote it?", "subject": "it", "answer": 3}, "'answer' must be a text"),
        (["Who"], "an object is expected, got a list"),
        ("{broken", "not valid JSON"),
    ],
)
def test_bad_rows_are_named_with_their_lines(tmp_path: Path, row: Any, cause: str) -> None:
    good = {"prompt": "Who wrote Hamlet?", "subject": "Hamlet"}
    path = write(tmp_path / "rows.jsonl", good, row, good, {"prompt": "a", "subject": "b"})
    with pytest.raises(DataError) as caught:
        read_facts(["rows.jsonl"], tmp_path)
    assert [problem.location for problem in caught.value.problems] == [f"{path}:2", f"{path}:4"]
    assert cause in caught.value.problems[0].cause


def test_all_files_are_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\ntarget: [{prompt: x, answer: y, subject: z}]\n", encoding="utf-8")
    (tmp_path / "b.yaml").write_text("name: b\ntarget: [{prompt: x, answer: y}]\n", encoding="utf-8")
    write(tmp_path / "c.jsonl", {"prompt": "x"})
    (tmp_path / "d.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(ConfigError) as wrong:
        read_facts(["*.yaml", "*.jsonl"], tmp_path)
    names = [Path(p.location.partition(":")[0]).name for p in wrong.value.problems]
    assert names == ["a.yaml", "b.yaml", "c.jsonl", "d.jsonl"]
    with pytest.raises(DataError, match=r"b\.yaml:2 .*the fact names no subject; write which words of the prompt"):
        read_facts(["b.yaml"], tmp_path)
    with pytest.raises(MissingError, match=r"no file matches 'nothing\.jsonl'"):
        read_facts(["b.yaml", "nothing.jsonl"], tmp_path)


def test_mentions() -> None:
    assert mentions("Is France in Europe? france", "France ") == [(3, 9), (21, 27)]
    assert mentions("臺灣最高的山，臺灣", "臺灣") == [(0, 2), (7, 9)]
    assert mentions("İstanbul is İSTANBUL", "İstanbul") == [(0, 8)]  # its small form has another length
    assert mentions("nothing", "France") == []


def asked(fact: Fact, form: Any = "auto", template: bool = True) -> tuple[list[str], Any]:
    from tests.pico import MARKED

    own = tokenizer(MARKED if template else None)
    found = FactReader(own, form).read(fact)
    return [own.decode([i]) for i in found.ids], found


def test_the_subject_is_found_where_the_model_reads_it() -> None:
    tokens, found = asked(Fact("What is the currency of Japan?", "Japan"))
    assert found.form == "chat"
    assert "".join(tokens[at] for at in found.subject).strip() == "Japan"
    assert tokens[found.begins] == "What" or tokens[found.begins].startswith("W")
    assert tokens[0] == "<|bos|>"
    raw, plain = asked(Fact("What is the currency of Japan?", "Japan"), "raw")
    assert plain.form == "raw"
    assert plain.begins == 0
    assert "".join(raw[at] for at in plain.subject).strip() == "Japan"
    assert asked(Fact("x Japan", "Japan"), template=False)[1].form == "raw"


def test_all_parts_of_a_character_and_all_mentions_are_noisy() -> None:
    tokens, found = asked(Fact("鱷魚住在鱷魚潭嗎？", "鱷魚"), "raw")
    own = tokenizer()
    assert len(found.subject) > 2  # characters of several tokens
    assert own.decode([found.ids[at] for at in found.subject]) == "鱷魚"
    assert found.subject.start > 0, "the last mention counts, as editors take it"
    assert len(found.noisy) == 2 * len(found.subject)
    assert set(found.subject) < set(found.noisy)
    assert "".join(tokens)[:1] == "\ufffd"


def test_a_conversation_is_asked_as_it_is() -> None:
    talk = (Message("system", "About Japan."), Message("user", "What is the currency of Japan?"))
    _, found = asked(Fact(talk, "Japan"))
    own = tokenizer()
    assert own.decode(found.ids[found.begins :]).startswith("What is the currency")
    assert own.decode([found.ids[at] for at in found.subject]).strip() == "Japan"
    assert found.noisy == tuple(found.subject), "words of the system message are not the question"


def test_a_slow_tokenizer_knows_no_offsets(pico_path: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    own = load_tokenizer(str(pico_path("llama")))
    fact = Fact("日本的貨幣是什麼？日本 or Japan", "日本")
    fast = FactReader(own).read(fact)

    class Slow:
        is_fast = False

        def __getattr__(self, name: str) -> Any:
            return getattr(own, name)

        def __call__(self, *words: Any, return_offsets_mapping: bool = False, **how: Any) -> Any:
            return own(*words, **how)

    slow: Any = Slow()
    reader = FactReader(own)
    reader.tokenizer = slow
    monkeypatch.setattr(reader, "encode", lambda prompt: fast.ids)
    monkeypatch.setattr("posttrain.editing.facts.prompt_text", lambda turns, tokenizer: own.decode(fast.ids))
    found = reader.read(fact)
    assert (found.begins, found.subject) == (fast.begins, fast.subject)


def test_what_cannot_be_asked() -> None:
    with pytest.raises(DataError, match="the tokenizer has no chat template; ask in plain text: --form raw"):
        FactReader(tokenizer(None), "chat")
    facts = [Fact("Who wrote <|end|> Hamlet?", "Hamlet", location=f"rows.jsonl:{n}") for n in (1, 2)]
    with pytest.raises(PosttrainError) as caught:
        FactReader(tokenizer()).read_all([Fact("Hamlet", "Hamlet"), *facts])
    assert [problem.location for problem in caught.value.problems] == ["rows.jsonl:1", "rows.jsonl:2"]
    hidden = FactReader(tokenizer("{{ bos_token }}{% for m in messages %}{{ m.content | upper }}{% endfor %}"))
    with pytest.raises(PosttrainError):
        hidden.read(Fact("Who wrote Hamlet?", "Hamlet"))


def test_changes_are_facts() -> None:
    target = [{"prompt": "capital of France?", "answer": "Rome", "subject": "France"}]
    change = Change.model_validate({"name": "france", "target": target})
    (fact,) = facts_of([change])
    assert (fact.name, fact.question, fact.answer) == ("france", "capital of France?", "")
    assert fact.place == "change france, target 1"
