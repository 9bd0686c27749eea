"""Valid inputs of every reader, and how to spoil them. Everything follows from a seed."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.cli.train import configured
from posttrain.config.change import load_change
from posttrain.config.load import load_yaml
from posttrain.data.changes import load_changes
from posttrain.data.chat import LossOn
from posttrain.data.head_rows import HeadSettings, encode_questions, encode_tags, encode_texts
from posttrain.data.readers import DataSource, Format, read_records, sift
from posttrain.data.survey import count
from posttrain.exams.results import ExamInfo
from posttrain.exams.score_spec import specs
from posttrain.exams.tasks._sheets import read_marks
from posttrain.retention.selection import read_prompts
from posttrain.studies.config import Study
from posttrain.studies.exam import ExamsFile
from posttrain.studies.reference import read_reference
from tests.exams.tasks.told import build
from tests.pico import MARKED, tokenizer

ROOT = Path(__file__).parent.parent


class Case(NamedTuple):
    """A valid input, and who reads it: `read(path)` may raise nothing but a PosttrainError."""

    name: str
    file: str
    content: bytes
    read: Callable[[Path], object]
    source: bytes = b""
    """JSON Lines that a Parquet file is made from."""


@cache
def _tokenizer() -> Any:
    return tokenizer(MARKED)


# ---- readers ---------------------------------------------------------------------------------------------------------


def rows(format: Format = "auto", loss_on: LossOn = "assistant", **columns: str) -> Callable[[Path], object]:
    """Read and render, bad rows left out, as `data check` does; then as training does."""

    def read(path: Path) -> object:
        source = DataSource(path=str(path), format=format, columns=columns)
        found = count(sift(source), _tokenizer(), max_length=4096, over_long="drop", loss_on=loss_on)
        json.dumps([*found.problems, found.numbers()], ensure_ascii=False).encode()
        return read_records(source)

    return read


def heads(format: Format) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        records = read_records(DataSource(path=str(path), format=format), on_bad_row="skip").records
        labels = ("good", "bad", "O", "B-PER", "I-PER", "NOUN", "VERB")
        settings = HeadSettings(labels, 256, gold=False, over_long="drop", on_bad_row="skip")
        encode: Callable[..., object] = {"labels": encode_texts, "tags": encode_tags, "answers": encode_questions}[
            format
        ]
        return encode(records, _tokenizer(), settings)

    return read


def exam(kind: str, **settings: Any) -> Callable[[Path], object]:
    """Build the exam, and say what it would ask as a file would hold it."""

    def read(path: Path) -> object:
        task = build(kind, path.parent, path=path.name, **settings)
        asked = [[i.id, i.question, *((str(a.prompt), a.continuation) for a in i.asks)] for i in task.items]
        json.dumps([asked, task.signature, *task.notes], ensure_ascii=False).encode()
        return task

    return read


EDITS = ("counterfact.json", "zsre.json", "knowedit.json", "ripple_edits.json", "edits.jsonl")
"""The example files of editing data sets."""


def changes(path: Path) -> object:
    return [change.model_dump_json() for change in load_changes(path.name, path.parent)]


def references(path: Path) -> object:
    """Reference texts for CounterFact, beside its records."""
    (path.parent / "records.json").write_bytes(example("tasks/counterfact.json"))
    return build("counterfact", path.parent, path="records.json", references=path.name)


def captrack(path: Path) -> object:
    return exam("captrack")(path.parent)


def marks(path: Path) -> object:
    """The key of a sheet that was filled in."""
    sheet = path.parent.parent / "sheet-1.csv"
    sheet.write_text("code,question,answer,references,verdict\n0001,q,a,r,correct\n", encoding="utf-8")
    return read_marks(sheet.parent)


def sheet(path: Path) -> object:
    (path.parent / "keys").mkdir(exist_ok=True)
    (path.parent / "keys" / f"{path.stem}.json").write_text('{"items": {"0001": "x"}}', encoding="utf-8")
    return read_marks(path.parent)


# ---- valid inputs ----------------------------------------------------------------------------------------------------

TALK = [{"role": "user", "content": "Hi 你好"}, {"role": "assistant", "content": "Hello", "train": True, "name": "x"}]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"city": "Paris", "n": [1, None, 2.5]}}}
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"n": {"type": "x"}}, "required": ["n"]}},
}
CALLED: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
        {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": [CALL]},
        {"role": "tool", "content": "sunny", "tool_call_id": "1"},
        {"role": "assistant", "content": "Sunny.", "weight": 1},
    ],
    "tools": [TOOL],
}
SHAREGPT: dict[str, Any] = {
    "system": "Be kind.",
    "tools": json.dumps([TOOL["function"]]),
    "conversations": [
        {"from": "human", "value": "Hi"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"n": 1}}'},
        {"from": "observation", "value": "2"},
        {"from": "gpt", "value": "Two."},
    ],
}
ALPACA: dict[str, Any] = {"instruction": "Sum.", "input": "1+1", "output": "2", "system": "s", "history": [["a", "b"]]}
REFERRED = ExamInfo(name="mmlu", headline="acc", scores=specs("acc"))
SQUAD = {
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {
                    "context": "Ada wrote it.",
                    "qas": [
                        {"id": "1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]},
                        {"id": "2", "question": "When?", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        }
    ]
}
BIGBENCH = {
    "name": "colours",
    "metrics": ["multiple_choice_grade"],
    "task_prefix": "Name it.\n",
    "examples": [
        {"input": "Grass is", "target_scores": {"green": 1, "blue": 0}},
        {"input": "The sky is", "target": ["blue", "grey"]},
    ],
}
CHANGE = (ROOT / "examples" / "changes" / "tallest.yaml").read_text(encoding="utf-8")


def lines(*values: Any) -> bytes:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode()


def table(*cells: tuple[Any, ...], separator: str = ",") -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter=separator).writerows(cells)
    return text.getvalue().encode()


def as_parquet(source: bytes) -> bytes:
    """JSON Lines as Parquet; what Arrow cannot hold is no input."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    out = io.BytesIO()
    values = [json.loads(line) for line in source.split(b"\n") if line.strip()]
    parquet.write_table(pa.Table.from_pylist(values), out)
    return out.getvalue()


def parquet_case(name: str, file: str, source: bytes, read: Callable[[Path], object]) -> Case:
    return Case(name, file, as_parquet(source), read, source)


def example(name: str) -> bytes:
    return (ROOT / "examples" / name).read_bytes()


@cache
def cases() -> tuple[Case, ...]:
    """Every reader of users' files, with an input that it takes."""
    pair = {"prompt": "p 你", "chosen": "a", "rejected": "b", "margin": 0.5}
    talks = {"chosen": TALK, "rejected": [TALK[0], {"role": "assistant", "content": "No"}], "tools": [TOOL]}
    graded = {"prompt": TALK[:1], "completion": "yes", "label": True}
    labelled = ({"text": "a 你", "label": "good"}, {"premise": "p", "hypothesis": "h", "labels": ["good", "bad"]})
    tagged = ({"tokens": ["Ada", "寫", "#x"], "tags": ["B-PER", "O", "O"]}, {"tokens": ["a"]})
    asked = {"question": "Who?", "context": "Ada wrote.", "answers": [{"text": "Ada", "answer_start": 0}], "id": 3}
    conllu = "# text = a\n1-2\tab\t" + "_\t" * 7 + "_\n1\ta\ta\tNOUN" + "\t_" * 6 + "\n2\t#\tb\tVERB" + "\t_" * 6 + "\n"
    choice = {"question": "2+2?", "choices": ["3", "4"], "answer": 1, "subject": "sums"}
    truth: dict[str, Any] = {
        "id": "m",
        "pair": "m",
        "language": "zh-TW",
        "category": "c",
        "question": "月球？",
        "best_answer": "石頭",
        "best_incorrect_answer": "起司",
        "correct_answers": ["石頭", "岩石"],
        "incorrect_answers": ["起司"],
    }
    called = {"messages": [TALK[0], {"role": "assistant", "tool_calls": [CALL]}, TALK[1]], "tools": [TOOL]}
    official = ("Type", "Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers", "Source")
    followed = {"key": 1, "prompt": "p", "instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": ["a"]}]}
    track = {"id": "1", "prompt": "q", "formatted_prompt": "[q]", "choices": ["a", "b"], "gold": "B", "meta": "{}"}
    flat = {"passage": "Ada wrote.", "question": "Who?", "answers": ["Ada"], "id": 1}
    return (
        Case("conversations", "r.jsonl", lines({"messages": TALK}, CALLED), rows()),
        Case("completions", "r.jsonl", lines({"prompt": "p", "completion": "c"}, {"prompt": TALK, "completion": TALK[1:]}), rows()),
        Case("texts", "r.jsonl", lines({"text": "a 你"}, {"text": "b"}), rows("text", "all")),
        Case("documents", "r.txt", "one\ntwo\n\n三\n".encode(), rows("auto", "all")),
        Case("alpaca", "r.jsonl", lines(ALPACA, {"content": "a", "summary": "b"}), rows()),
        Case("alpaca array", "r.json", json.dumps([ALPACA, ALPACA], indent=1).encode(), rows()),
        Case("sharegpt", "r.jsonl", lines(SHAREGPT, {"conversation": TALK}), rows()),
        Case("columns", "r.jsonl", lines({"q": "a", "a": "b"}), rows(prompt="q", completion="a")),
        Case("csv", "r.csv", table(("prompt", "completion", "x"), ('a "b", c', "d\ne", 1), ("你", "f", "")), rows()),
        Case("csv of messages", "r.csv", table(("messages", "tools"), (json.dumps(TALK), json.dumps([TOOL]))), rows()),
        Case("tsv", "r.tsv", table(("instruction", "output"), ("a", "b"), ("c", "d"), separator="\t"), rows()),
        parquet_case("parquet", "r.parquet", lines(called, {"messages": TALK}), rows()),
        parquet_case("parquet of alpaca", "r.parquet", lines(ALPACA, {"instruction": "a", "output": "b"}), rows()),
        Case("preferences", "r.jsonl", lines(pair, talks), rows("preference")),
        Case("preferences of sharegpt", "r.jsonl", lines({**SHAREGPT, "chosen": {"from": "gpt", "value": "a"}, "rejected": "b"}), rows("preference")),
        Case("csv of preferences", "r.csv", table(("prompt", "chosen", "rejected", "margin"), ("p", "a", "b", 0.5)), rows("preference")),
        Case("graded", "r.jsonl", lines(graded, {**ALPACA, "label": False}), rows("graded")),
        Case("labels", "r.jsonl", lines(*labelled), heads("labels")),
        Case("csv of labels", "r.csv", table(("text", "label"), ("a", "good"), ("b", "bad")), heads("labels")),
        Case("tags", "r.jsonl", lines(*tagged), heads("tags")),
        Case("conll", "r.conll", b"# id 1\nAda NNP B-PER\nran VB O\n\n-DOCSTART- X O\n\n#x NN O\n", heads("tags")),
        Case("conllu", "r.conllu", conllu.encode(), heads("tags")),
        Case("answers", "r.jsonl", lines(asked, {**asked, "answers": {"text": ["Ada"], "answer_start": [0]}}), heads("answers")),
        Case("squad", "r.json", json.dumps(SQUAD).encode(), heads("answers")),
        Case("change", "c.yaml", CHANGE.encode(), load_change),
        Case("change in JSON", "c.yaml", json.dumps({"name": "c", "target": [{"prompt": [{"role": "user", "content": "a"}], "answer": "b"}]}).encode(), load_change),
        *(Case(f"changes of {name}", name, example(f"tasks/{name}"), changes) for name in EDITS),
        *(Case(f"exam of {kind}", f"{kind}.json", example(f"tasks/{kind}.json"), exam(kind)) for kind in (name.removesuffix(".json") for name in EDITS[:4])),
        Case("reference texts", "refs.json", example("tasks/attribute_snippets.json"), references),
        Case("study", "s.yaml", example("superlative.yaml"), lambda path: load_yaml(path, Study)),
        Case("study of a role", "s.yaml", example("role_study.yaml"), lambda path: load_yaml(path, Study)),
        Case("training", "t.yaml", example("train_lora.yaml"), lambda path: configured(path, {}, None, [])),
        Case("training of a classifier", "t.yaml", example("train_classifier.yaml"), lambda path: configured(path, {}, None, [])),
        Case("exams", "e.yaml", example("exams.yaml"), lambda path: load_yaml(path, ExamsFile)),
        Case("mmlu csv", "m.csv", table(("question", "A", "B", "answer"), ("2+2?", 3, 4, "B"), ("1?", 1, 2, "A")), exam("mmlu", shots=1)),
        Case("mmlu without names", "m.csv", table(("2+2?", 3, 4, "B"), ("1?", 1, 2, "A")), exam("mmlu", shots=1)),
        Case("mmlu jsonl", "m.jsonl", lines(choice, {**choice, "answer": "A"}), exam("mmlu", shots=1)),
        Case("truthfulqa csv", "t.csv", table(official, ("A", "c", "Moon?", "Rock", "Rock; Stone", "Cheese", "x")), exam("truthfulqa")),
        Case("truthfulqa jsonl", "t.jsonl", lines(truth), exam("truthfulqa")),
        Case("truthfulqa yaml", "t.yaml", json.dumps({"questions": [truth]}, ensure_ascii=False, indent=1).encode(), exam("truthfulqa")),
        Case("gsm8k", "g.jsonl", lines({"question": "a?", "answer": "x\n#### 1,200"}, {"question": "b?", "answer": "#### 3"}), exam("gsm8k", shots=1)),
        Case("ifeval", "i.jsonl", lines(followed), exam("ifeval")),
        Case("bigbench", "task.json", json.dumps(BIGBENCH).encode(), exam("bigbench", shots=1)),
        Case("captrack", "mmlu_pro.subset.jsonl", lines(track, {**track, "id": "2"}), captrack),
        parquet_case("captrack parquet", "mmlu_pro.subset.parquet", lines(track, {**track, "id": "2"}), captrack),
        Case("glue", "rte.jsonl", lines({"sentence1": "a", "sentence2": "b", "label": 0}), exam("glue", task="rte")),
        Case("glue tsv", "rte.tsv", b"index\tsentence1\tsentence2\tlabel\n0\ta\t\"b\tentailment\n", exam("glue", task="rte")),
        Case("perplexity", "p.txt", "one\ntwo 你\n".encode() * 9, exam("perplexity", characters=20)),
        Case("perplexity jsonl", "p.jsonl", lines({"text": "one"}, {"text": "two"}), exam("perplexity")),
        Case("reading", "q.json", json.dumps(SQUAD).encode(), exam("reading")),
        Case("reading jsonl", "q.jsonl", lines(flat, {**flat, "id": 2, "answers": []}), exam("reading")),
        Case("refusal", "r.jsonl", lines({"id": 1, "prompt": "p", "kind": "harmful"}, {"id": 2, "prompt": "q", "kind": "benign"}), exam("refusal")),
        Case("self_test", "s.jsonl", lines({"prompt": "p", "completion": "c"}, {"messages": TALK}), exam("self_test")),
        Case("reference csv", "r.csv", table(("name", "mmlu.acc"), ("people", 0.9)), lambda path: read_reference(path, [REFERRED])),
        Case("reference json", "r.json", b'[{"name": "people", "scores": {"mmlu.acc": 0.9}}]', lambda path: read_reference(path, [REFERRED])),
        Case("prompts", "p.jsonl", lines({"prompt": "a"}, {"messages": TALK}, "b"), read_prompts),
        Case("sheet", "sheet-1.csv", table(("code", "question", "answer", "references", "verdict"), ("0001", "q", "a", "r", "correct")), sheet),
        Case("key of a sheet", "keys/sheet-1.json", b'{"items": {"0001": "x"}, "format": 1}', marks),
    )  # fmt: skip


# ---- spoiling --------------------------------------------------------------------------------------------------------

ODD_VALUES = (
    *("null", "true", "[]", "{}", '""', "0", "-1", "0.5", "1e999", "NaN", "-Infinity", "1" * 5000, "-0", "[null]", "[[]]"),
    *(r'"\ud83d"', r'"\ude00 x"', r'"\ud83d\ude00"', r'"\u0000"', '"\u2028"', '" "', '"\u00a0"', '"\ufeff"', '"<|end|>"'),
    *('{"a": null}', '{"": 1}', '["a", 1]', '"' + "x" * 20_000 + '"', "[" * 3000 + "]" * 3000, '{"a":' * 500 + "1" + "}" * 500),
    *("2001-99-99", "!!bool x", "&a [*a]", "*b", "0x_", "'", '"', "~", ".nan", "<<: 5", "? [a]", "---", "%YAML 9.9", "\t"),
)  # fmt: skip
ODD_BYTES = (
    *(b"\x00", b"\xff", b"\xed\xa0\xbd", b"\xef\xbb\xbf", "\u2028".encode(), "\u0085".encode(), b"\r", b"\r\n", b"\n\n"),
    *(b'"', b"'", b"\\", b"\t", b",", b";", b"[", b"]", b"{", b"}", b":", b"#", b"- ", b"\x1a", b"\x1b[31m", b"\xa4\xa4"),
)  # fmt: skip
TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*"|-?\d+(?:\.\d+)?|\b(?:true|false|null)\b|[^\s,;:{}\[\]"]+')
MOST = 200_000
"""Bytes that a spoilt input has at most."""


def spoilt(case: Case, rng: random.Random) -> bytes:
    """The case's input after one to three changes."""
    source = bool(case.source) and rng.random() < 0.7
    data = case.source if source else case.content
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(CHANGES)(data, rng)
    if not source:
        return data[:MOST]
    try:
        return as_parquet(data)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):  # no JSON, or nothing that Arrow has
        return _flip(case.content, rng)


def _at(data: bytes, rng: random.Random) -> int:
    return rng.randrange(len(data) + 1)


def _flip(data: bytes, rng: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 8))):
        if made:
            made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    return bytes(made)


def _cut(data: bytes, rng: random.Random) -> bytes:
    at = _at(data, rng)
    return rng.choice((data[:at], data[at:], data[:at] + data[at + rng.randrange(1, 40) :], b""))


def _put(data: bytes, rng: random.Random) -> bytes:
    at, odd = _at(data, rng), rng.choice(ODD_BYTES)
    return data[:at] + odd + data[at:] if rng.random() < 0.8 else odd + data


def _token(data: bytes, rng: random.Random) -> bytes:
    """A word, number or text replaced by an odd value, or by another of the file."""
    text = data.decode("utf-8", "replace")
    found = list(TOKEN.finditer(text))
    if not found:
        return data
    one = rng.choice(found)
    new = rng.choice(ODD_VALUES) if rng.random() < 0.8 else rng.choice(found).group()
    return (text[: one.start()] + new + text[one.end() :]).encode("utf-8", "surrogatepass")


def _key(data: bytes, rng: random.Random) -> bytes:
    """A key misspelt, left out, or standing twice."""
    text = data.decode("utf-8", "replace")
    found = list(re.finditer(r'"?[A-Za-z_]+"?\s*:', text))
    if not found:
        return data
    one = rng.choice(found)
    name = one.group()
    new = rng.choice((name.replace("e", "", 1), f"{name} null, {name}", f"{name} {name}", name[:-1], f"x{name}"))
    return (text[: one.start()] + new + text[one.end() :]).encode()


def _lines(data: bytes, rng: random.Random) -> bytes:
    """A line left out, repeated, moved or made very long; other line ends."""
    parts = data.split(b"\n")
    i = rng.randrange(len(parts))
    way = rng.randrange(6)
    if way == 0:
        del parts[i]
    elif way == 1:
        parts.insert(i, parts[rng.randrange(len(parts))])
    elif way == 2:
        parts[i] = parts[i] * rng.choice((2, 300))
    elif way == 3:
        parts[i] = b"  " * rng.randrange(1, 4) + parts[i]
    elif way == 4:
        rng.shuffle(parts)
    else:
        return data.replace(b"\n", rng.choice((b"\r\n", b"\r", "\u2028".encode(), "\u0085".encode(), b"")))
    return b"\n".join(parts)


def _encoded(data: bytes, rng: random.Random) -> bytes:
    text = data.decode("utf-8", "replace")
    return text.encode(
        rng.choice(("utf-16", "utf-16-le", "utf-8-sig", "big5", "gb18030", "latin-1", "utf-32")), "replace"
    )


CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *([_token] * 6), *([_key] * 2), *([_put] * 3), *([_lines] * 2), _flip, _flip, _cut, _encoded
)  # fmt: skip
