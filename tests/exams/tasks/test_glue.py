"""GLUE and SuperGLUE: official formats, lm-eval's wording as lm-eval renders it, official scores by their oracles."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posttrain.errors import ConfigError, DataError
from posttrain.exams.tasks._glue import TASKS
from posttrain.exams.tasks.glue import of_tables
from tests.exams.tasks.told import build, judged, scores_of, text_of, write_rows

ROWS: dict[str, dict[str, Any]] = {
    "cola": {"sentence": "The boy ran.", "label": 1},
    "sst2": {"sentence": "a fine film ", "label": 1},
    "mrpc": {"sentence1": "A b.", "sentence2": "B a.", "label": 0},
    "qqp": {"question1": "Why?", "question2": "How?", "label": 0},
    "mnli": {"premise": "A man eats.", "hypothesis": "Somebody eats", "label": 0},
    "qnli": {"question": "Who?", "sentence": "The man.", "label": 0},
    "rte": {"sentence1": "A man eats.", "sentence2": "Somebody eats.", "label": 0},
    "wnli": {"sentence1": "A man eats.", "sentence2": "Somebody eats.", "label": 1},
    "boolq": {"passage": "Ice is cold.", "question": "is ice cold", "label": 1},
    "cb": {"premise": "It is so.", "hypothesis": "it is so", "label": 2},
    "copa": {"premise": "The glass fell.", "choice1": "It broke.", "choice2": "It flew.", "question": "effect", "label": 0},
    "wic": {"word": "bank", "sentence1": "The bank lends.", "sentence2": "A river bank.", "label": 0, "start1": 4, "end1": 8},
    "wsc": {
        "text": "Mark told Pete many lies about himself.",
        "span1_text": "Mark",
        "span2_text": "himself",
        "span2_index": 6,
        "label": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_wording_is_lm_evals(name: str, tmp_path: Path) -> None:
    """The prompt and the choices equal what lm-eval's own YAML renders from the same row."""
    lm_eval = pytest.importorskip("lm_eval")
    from jinja2 import Environment
    from ruamel.yaml import YAML

    folder = Path(lm_eval.__file__).parent / "tasks"
    found = [*folder.glob(f"glue/{name}/default.yaml"), *folder.glob(f"super_glue/{name}/default.yaml")]
    loader = YAML(typ="rt")
    told = loader.load(found[0].read_text("utf-8"))
    row = ROWS[name]
    text, choices = told["doc_to_text"], told["doc_to_choice"]
    if name in ("mnli", "copa", "wsc"):
        module = {"mnli": "glue.mnli.utils", "copa": "super_glue.copa.utils", "wsc": "super_glue.wsc.preprocess_wsc"}
        functions = __import__(f"lm_eval.tasks.{module[name]}", fromlist=["x"])
        rendered = (functions.default_doc_to_text if name == "wsc" else functions.doc_to_text)(row)
        choices = functions.doc_to_choice(row) if name == "copa" else list(choices)
    else:
        rendered = Environment(keep_trailing_newline=True).from_string(text).render(row)
    write_rows(tmp_path / "a.jsonl", [row])
    (item,) = build("glue", tmp_path, task=name, path="a.jsonl").items
    assert text_of(item.asks[0].prompt) == rendered
    assert [a.continuation for a in item.asks] == [c if c.startswith(" ") else f" {c}" for c in choices]
    assert item.doc["gold"] == row["label"]
    assert item.question in rendered


def test_official_tsv_files(tmp_path: Path) -> None:
    (tmp_path / "cola.tsv").write_text('gj04\t1\t\tThe "boy ran.\ngj04\t0\t*\tBoy the ran.\n', "utf-8")
    (tmp_path / "mrpc.tsv").write_text(
        '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\tHe said "yes.\tHe agreed.\n', "utf-8"
    )
    (tmp_path / "mnli.tsv").write_text(
        "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\tA.\tB.\tx\tneutral\n1\tA.\tB.\tx\t-\n", "utf-8"
    )
    (tmp_path / "rte.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tnot_entailment\n", "utf-8")
    cola = build("glue", tmp_path, task="cola", path="cola.tsv")
    assert [i.doc["gold"] for i in cola.items] == [1, 0]
    assert text_of(cola.items[0].asks[0].prompt).startswith('The "boy ran.\nQuestion:')
    assert build("glue", tmp_path, task="mrpc", path="mrpc.tsv").items[0].doc["gold"] == 1
    mnli = build("glue", tmp_path, task="mnli", path="mnli.tsv")
    assert [i.doc["gold"] for i in mnli.items] == [1]
    assert mnli.notes == ("1 rows without an agreed label are left out",)
    assert build("glue", tmp_path, task="rte", path="rte.tsv").items[0].doc["gold"] == 1


def test_super_glues_nested_rows(tmp_path: Path) -> None:
    record = {
        "passage": {
            "text": "Ann met Bob in Rome.\n@highlight\nAnn is here",
            "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 10}, {"start": 15, "end": 18}],
        },
        "qas": [{"query": "@placeholder is a city.", "answers": [{"text": "Rome", "start": 15, "end": 18}]}],
    }
    multirc = {
        "passage": {
            "text": "Ann met Bob.",
            "questions": [
                {"question": "Who?", "answers": [{"text": "Ann", "label": 1}, {"text": "Eve", "label": 0}]},
                {"question": "Whom?", "answers": [{"text": "Bob", "label": 1}]},
            ],
        }
    }
    wsc = {"text": "A b him.", "target": {"span1_text": "A", "span2_text": "him", "span2_index": 2}, "label": True}
    for name, row in (("record", record), ("multirc", multirc), ("wsc", wsc)):
        write_rows(tmp_path / f"{name}.jsonl", [row])
    task = build("glue", tmp_path, task="record", path="record.jsonl")
    (item,) = task.items
    assert [a.continuation for a in item.asks] == [f"  - {e} is a city." for e in ("Ann", "Bob", "Rome")]
    assert text_of(item.asks[0].prompt) == "Ann met Bob in Rome.\n\n  - Ann is here.\n"
    (sample,) = judged(task, likes=lambda _, text: 0.0 if "Rome" in text else -5.0)
    assert (sample.answer, sample.scores["em"], sample.choices) == ("Rome", 1.0, 3)

    task = build("glue", tmp_path, task="multirc", path="multirc.jsonl")
    assert len(task.items) == 3
    # yes to everything: two of three answers right; F1 2*2/(2*2+1); of two questions only the second is all right
    scores = scores_of(task, judged(task, likes=lambda _, text: 0.0 if "yes" in text else -5.0))
    assert scores["acc"] == pytest.approx(2 / 3)
    assert scores["f1a"] == pytest.approx(4 / 5)
    assert scores["em"] == 0.5
    assert "Passage: A b *him*." in text_of(
        build("glue", tmp_path, task="wsc", path="wsc.jsonl").items[0].asks[0].prompt
    )


def test_stsb_is_the_expected_number(tmp_path: Path) -> None:
    rows = [{"sentence1": "a", "sentence2": str(i), "label": gold} for i, gold in enumerate((0.0, 2.5, 5.0))]
    write_rows(tmp_path / "s.jsonl", rows)
    task = build("glue", tmp_path, task="stsb", path="s.jsonl")
    # the first leans to 0, the last to 5, the one between them is sure of nothing: expected 2.5

    def likes(prompt: str, text: str) -> float:
        lean = {"Sentence 2: 0": -100.0, "Sentence 2: 1": 0.0, "Sentence 2: 2": 100.0}
        return next(v for k, v in lean.items() if k in prompt) * float(text)

    samples = judged(task, likes=likes)
    assert [s.extra["said"] for s in samples] == pytest.approx([0.0, 2.5, 5.0])
    scores = scores_of(task, samples)
    assert scores["pearson"] == pytest.approx(1.0)
    assert scores["spearman"] == pytest.approx(1.0)
    assert samples[0].correct is None


def test_scores_against_scikit_learn(tmp_path: Path) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = random.Random(0)
    rows = [{"premise": f"p{i}", "hypothesis": f"h{i}", "label": rng.randrange(3)} for i in range(60)]
    write_rows(tmp_path / "cb.jsonl", rows)
    task = build("glue", tmp_path, task="cb", path="cb.jsonl")
    picks = {f"h{i}": rng.randrange(3) for i in range(60)}
    names = TASKS["cb"].words
    samples = judged(
        task,
        likes=lambda prompt, text: float(
            names.index(text.strip()) == picks[prompt.split("Question: ")[1].split(".")[0]]
        ),
    )
    gold, said = [r["label"] for r in rows], [picks[f"h{i}"] for i in range(60)]
    scores = task.aggregate(samples)
    assert scores["acc"].value == pytest.approx(metrics.accuracy_score(gold, said))
    assert scores["macro_f1"].value == pytest.approx(metrics.f1_score(gold, said, average="macro"))
    low, high = scores["macro_f1"].ci95 or (1, 0)
    assert low < scores["macro_f1"].value < high


def test_scores_of_tables_equal_those_of_labels() -> None:
    """The interval's formulas are the score's."""
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for size in (2, 3):
        said, gold = rng.integers(0, size, 50), rng.integers(0, size, 50)
        table = np.zeros((1, size, size))
        np.add.at(table[0], (said, gold), 1)
        assert of_tables("mcc", table)[0] == pytest.approx(metrics.matthews_corrcoef(gold, said))
        assert of_tables("macro_f1", table)[0] == pytest.approx(metrics.f1_score(gold, said, average="macro"))
        if size == 2:
            assert of_tables("f1", table)[0] == pytest.approx(metrics.f1_score(gold, said))


def test_gender_parity(tmp_path: Path) -> None:
    rows = [{"premise": f"{who} ate", "hypothesis": f"h{i}", "label": "entailment", "idx": i} for i, who in enumerate(["she", "he"] * 3)]  # fmt: skip
    write_rows(tmp_path / "axg.jsonl", rows)
    task = build("glue", tmp_path, task="axg", path="axg.jsonl")
    # "True" for all but the last: two of three pairs are answered alike
    scores = scores_of(task, judged(task, likes=lambda p, text: float((text == " True") == ("h5" not in p))))
    assert scores["parity"] == pytest.approx(2 / 3)
    assert scores["acc"] == pytest.approx(5 / 6)


def test_what_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    write_rows(tmp_path / "r.jsonl", [{"premise": "a", "hypothesis": "b"}, {"premise": "a", "label": "maybe"}])
    with pytest.raises(DataError) as error:
        build("glue", tmp_path, task="rte", path="r.jsonl")
    for words in ("no label", "test files", "unknown label 'maybe'", "'hypothesis' must be a text"):
        assert words in str(error.value)
    (tmp_path / "t.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\tA.\n", "utf-8")
    with pytest.raises(DataError, match="2 columns, 4 expected"):
        build("glue", tmp_path, task="rte", path="t.tsv")
    with pytest.raises(ConfigError, match="'path' is missing"):
        build("glue", tmp_path, task="rte")


def test_every_task_is_posed_in_both_forms(tmp_path: Path) -> None:
    rows = ROWS | {
        "stsb": {"sentence1": "a", "sentence2": "b", "label": 1.5},
        "axb": {"sentence1": "a", "sentence2": "b", "label": "entailment"},
        "axg": {"premise": "a", "hypothesis": "b", "label": "not_entailment"},
        "multirc": {"passage": "p", "question": "q", "answer": "a", "label": 1},
    }
    assert {*rows, "record"} == set(TASKS)
    for name, row in rows.items():
        write_rows(tmp_path / "x.jsonl", [row])
        for template in ("plain", "chat"):
            task = build("glue", tmp_path, task=name, path="x.jsonl", template=template)
            assert task.items[0].question in text_of(task.items[0].asks[0].prompt)
            assert json.dumps(task.items[0].doc)
            scores_of(task, judged(task))
