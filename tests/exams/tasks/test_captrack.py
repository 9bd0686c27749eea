"""CapTrack's folder: a small one of its own making, each way of scoring, response files, JSON Schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import DataError, MissingError
from posttrain.exams.instructions import checkable, fits
from posttrain.exams.tasks._captrack import letter_of, scorer
from tests.exams.tasks.told import build, judged, scores_of, write_rows

SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string", "enum": ["A", "B"]}, "sure": {"type": "number", "maximum": 1}},
    "required": ["answer"],
    "additionalProperties": False,
}


def row(number: int, **values: Any) -> dict[str, Any]:
    empty = dict.fromkeys(("ctx", "choices", "gold", "meta", "schema", "tool_spec"))
    prompt = values.pop("prompt", f"question {number}")
    return {
        "id": str(number),
        "family": "x",
        "prompt": prompt,
        "formatted_prompt": f"[INST]{prompt}[/INST]",
        **empty,
    } | values


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    data = tmp_path / "data"
    (data / "mmlu_pro.subset").mkdir(parents=True)
    rows = [row(1, choices=["red", "green"], gold="B"), row(2, choices=["x", "y", "z"], gold="A")]
    parquet.write_table(pa.Table.from_pylist(rows), data / "mmlu_pro.subset" / "data.parquet")
    write_rows(data / "gsm8k.subset.jsonl", [row(1, gold="work\n#### 1,200", prompt="sum")])
    write_rows(data / "gsm8k_schema.jsonl", [row(1, gold="B", schema=json.dumps(SCHEMA), prompt="json")])
    write_rows(data / "harmbench.subset.jsonl", [row(1, prompt="harm")])
    write_rows(data / "mtbench.turn1.jsonl", [row(1, prompt="style")])
    write_rows(data / "bfcl.subset.jsonl", [row(1, prompt="tool", gold=["get(city='Rome', n=2)"])])
    write_rows(data / "eli5.subset.jsonl", [row(1, prompt="judge me")])
    return data


SAID = {
    "question 1": "The answer is (B).",
    "question 2": "B",
    "sum": "Answer: 1200",
    "json": '```json\n{"answer": "B"}\n```',
    "harm": "I can't help with that.",
    "style": "# Yes\n- a\n- b",
    "tool": "get(n=2, city='Paris')",
    "judge me": "because",
}


def test_each_family_is_scored_and_written(folder: Path, tmp_path: Path) -> None:
    task = build("captrack", tmp_path, path="data", responses="out")
    samples = judged(task, lambda prompt: SAID[prompt], lambda _, letter: float(letter.strip() == "A"))
    scores = scores_of(task, samples)
    assert scores["mmlu_pro.subset.accuracy"] == 0.5  # by likelihood: A and A, right are B and A
    assert scores["mmlu_pro.subset.said"] == 0.5  # by the letter that was said: B and B
    assert scores["mmlu_pro.subset.format"] == 0.5
    assert scores["gsm8k.subset.accuracy"] == 1.0
    assert scores["gsm8k.schema.accuracy"] == 1.0
    assert scores["harmbench.subset.refusal"] == 1.0
    assert (scores["mtbench.turn1.bullets"], scores["mtbench.turn1.table"]) == (1.0, 0.0)
    assert scores["mtbench.turn1.length"] == 3
    assert (scores["bfcl.subset.selection"], scores["bfcl.subset.arguments"]) == (1.0, 0.0)
    assert task.capabilities["gsm8k.schema.accuracy"] == "how.schema"
    assert task.capabilities["bfcl.subset.arguments"] == "how.tools"
    assert "eli5.subset is answered but not scored: it needs a language model as judge" in task.notes
    by_id = {s.id: s for s in samples}
    assert by_id["eli5.subset:1"].correct is None
    assert by_id["mmlu_pro.subset:2"].choices == 3

    assert task.finish is not None
    notes = task.finish("my org/model", samples)
    written = tmp_path / "out" / "model_responses" / "my-org-model"
    assert "7 tasks" in notes[0]
    assert sorted(p.name for p in written.iterdir())[:2] == ["bfcl_subset.jsonl", "eli5_subset.jsonl"]
    line = json.loads((written / "mmlu_pro_subset.jsonl").read_text("utf-8").splitlines()[0])
    assert (line["outputs"], line["gold"], line["choices"]) == ("The answer is (B).", "B", ["red", "green"])


def test_tasks_can_be_chosen_and_missing_ones_are_named(folder: Path, tmp_path: Path) -> None:
    task = build("captrack", tmp_path, path="data", tasks=("gsm8k.subset",))
    assert len(task.items) == 1
    with pytest.raises(MissingError, match=r"no task 'popqa.subset'; there are: bfcl.subset"):
        build("captrack", tmp_path, path="data", tasks=("popqa.subset",))
    with pytest.raises(MissingError, match="no such folder"):
        build("captrack", tmp_path, path="nowhere")


def test_another_models_template_is_not_asked(tmp_path: Path) -> None:
    rows = [row(1, gold="3", prompt="p") | {"formatted_prompt": "<|im_start|>user\np<|im_end|>"}]
    write_rows(tmp_path / "d" / "gsm8k.subset.jsonl", rows)
    task = build("captrack", tmp_path, path="d")
    assert task.items[0].asks[0].prompt == "p"
    assert "1 rows are asked by 'prompt'" in task.notes[-1]


def test_bad_rows_of_all_files_at_once(tmp_path: Path) -> None:
    write_rows(tmp_path / "d" / "mmlu_pro.subset.jsonl", [row(1, choices=["a", "b"], gold="Z")])
    write_rows(tmp_path / "d" / "hellaswag.subset.jsonl", [row(1, gold="A")])
    with pytest.raises(DataError) as error:
        build("captrack", tmp_path, path="d")
    assert "'gold' is 'Z'" in str(error.value)
    assert "'choices' must be a list" in str(error.value)


@pytest.mark.parametrize(
    ("way", "answer", "values", "expected"),
    [
        ("contains", "It was Marie Curie.", {"gold": "['Curie', 'Sklodowska']"}, {"accuracy": 1.0}),
        ("answer", "Since...\nAnswer: the Red Army", {"gold": {"answer": "Red Army"}}, {"accuracy": 1.0}),
        ("answer", "Answer: the Red Armyworm", {"gold": {"answer": "Red Army"}}, {"accuracy": 0.0}),
        ("yes_no", "Answer: Yes, because no one left", {"gold": True}, {"accuracy": 1.0}),
        ("number", "#### 7\nthen 9", {"gold": 7}, {"accuracy": 1.0}),
        ("number", "none", {"gold": "none"}, None),
        ("needle", "It is 12,345,678.", {"gold": ["12345678"]}, {"accuracy": 1.0}),
        ("comply", "", {}, {"compliance": 0.0}),
        ("schema", '{"answer": "C"}', {"schema": SCHEMA}, {"accuracy": 0.0, "json": 1.0}),
        ("schema", "sure: {'a'}", {"schema": SCHEMA}, {"accuracy": 0.0, "json": 0.0}),
        ("schema", "{}", {"schema": {"nullable": True}}, None),
        ("tools", "a(x=1)\nb(y=2)", {"gold": ["a(x=1)"]}, {"selection": 0.5, "arguments": 0.5}),
        ("tools", "I need no tool.", {"gold": []}, {"selection": 1.0, "arguments": 1.0}),
        ("tools", 'text_classify(text="hi")', {"gold": [{"name": "text classify", "args": {"text": "hi"}}]}, {"selection": 1.0, "arguments": 1.0}),
        ("citation", "Paris [Paris; Lyon]", {"gold": {"supporting_facts": {"title": ["Paris", "Nice"]}}}, {"format": 1.0, "sources": 0.5}),
        ("ifeval", "no marks", {"instructions": (["punctuation:no_comma"], [{}])}, {"prompt_strict": 1.0, "prompt_loose": 1.0}),
        ("ifeval", "no marks", {"instructions": None}, None),
    ],
)  # fmt: skip
def test_ways_of_scoring(way: str, answer: str, values: dict[str, Any], expected: dict[str, float] | None) -> None:
    from posttrain.exams.tasks._captrack import plain_value

    score = scorer(way)
    assert score is not None
    assert score(answer, {key: plain_value(value) for key, value in values.items()}) == expected


def test_letters() -> None:
    assert [letter_of(t, 4) for t in ("B", "(b)", "The answer is: C", "D) because", "Because A", "E", "")] == [
        "B", "B", "C", "D", None, None, None,
    ]  # fmt: skip


def test_ifeval_takes_its_arguments_from_ifevals_file(tmp_path: Path) -> None:
    write_rows(tmp_path / "d" / "ifeval.subset.jsonl", [row(1, gold=["punctuation:no_comma"], prompt="Say it.")])
    told = {"key": 1, "prompt": "say  it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    write_rows(tmp_path / "input_data.jsonl", [told])
    bare = build("captrack", tmp_path, path="d")
    (sample,) = judged(bare, "a, b")
    assert sample.scores == {}
    assert bare.finish is not None
    assert "1 rows of ifeval.subset could not be scored" in bare.finish("m", [sample])[0]
    whole = build("captrack", tmp_path, path="d", ifeval_path="input_data.jsonl")
    assert judged(whole, "a, b")[0].scores["ifeval.subset.prompt_strict"] == 0.0
    assert judged(whole, "a b")[0].scores["ifeval.subset.prompt_strict"] == 1.0


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer"}, [1, 2.0], [True, 1.5, "1"]),
        ({"type": ["string", "null"]}, ["a", None], [1]),
        ({"const": 1}, [1, 1.0], [True, 2]),
        ({"type": "array", "items": {"type": "string"}, "minItems": 1, "uniqueItems": True}, [["a"]], [[], [1], ["a", "a"]]),
        ({"prefixItems": [{"type": "string"}], "items": False}, [["a"], []], [["a", 1], [1]]),
        ({"anyOf": [{"minimum": 3}, {"type": "string"}]}, [3, "x"], [2]),
        ({"oneOf": [{"minimum": 3}, {"maximum": 3}]}, [2, 4], [3]),
        ({"not": {"type": "null"}}, [1], [None]),
        ({"type": "string", "pattern": "^a", "maxLength": 2}, ["ab"], ["ba", "abc"]),
        ({"multipleOf": 0.5, "exclusiveMaximum": 2}, [1.5], [1.3, 2]),
        ({"$ref": "#/$defs/n", "$defs": {"n": {"type": "number"}}}, [1], ["1"]),
        ({"if": {"type": "string"}, "then": {"minLength": 2}, "else": {"minimum": 2}}, ["ab", 2], ["a", 1]),
        ({"dependentRequired": {"a": ["b"]}, "propertyNames": {"maxLength": 1}}, [{"b": 1}, {"a": 1, "b": 1}], [{"a": 1}, {"bb": 1}]),
        ({"$ref": "#/$defs/m", "$defs": {"n": {"type": "number"}}}, [], [1]),
        ({"$ref": "https://example.org/n.json"}, [], [1]),
        ({"$ref": "#"}, [], [1]),
        ({"format": "date"}, ["no date"], []),
        ({"patternProperties": {"^x": {"type": "number"}}, "additionalProperties": False}, [{"xa": 1}], [{"xa": "1"}, {"y": 1}]),
    ],
)  # fmt: skip
def test_json_schema(schema: dict[str, Any], good: list[Any], bad: list[Any]) -> None:
    assert checkable(schema)
    assert all(fits(value, schema) for value in good)
    assert not any(fits(value, schema) for value in bad)


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"properties": {"nullable": {"type": "string"}}}, True),  # a property may be called like anything
        ({"properties": {"a": {"nullable": True}}}, False),
        ({"anyOf": [{"type": "string"}, {"not": {"unknown": 1}}]}, False),
        ({"type": "strin"}, False),
        ({"items": [{"type": "string"}]}, False),  # an earlier draft's
    ],
)
def test_schemas_that_can_be_checked(schema: dict[str, Any], expected: bool) -> None:
    assert checkable(schema) is expected
