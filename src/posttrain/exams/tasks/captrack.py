"""CapTrack's own data folder: what post-training moved, capability by capability, with its response files."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from string import ascii_uppercase as LETTERS
from typing import Any, Literal

from pydantic import Field

from posttrain.data.lengths import listed
from posttrain.errors import DataError, MissingError, Problem
from posttrain.exams.records import Sample
from posttrain.exams.rows import Row, Rows, read_rows
from posttrain.exams.score_spec import specs
from posttrain.exams.task import Ask, Item, Reply, Task, TaskConfig, choice_asks, chosen, resolve, the_answer
from posttrain.exams.tasks._captrack import declared, letter_of, plain_value, scorer, spec_of
from posttrain.inference.protocol import Plain, Prompt
from posttrain.registry import register

__all__ = ["CaptrackConfig", "captrack"]

SUFFIXES = (".parquet", ".pq", ".jsonl", ".json", ".csv")
TEMPLATE_MARKS = ("<|", "<start_of_turn>", "<s>[INST]")
"""Texts that show that a prompt was written with the chat template of some model."""
WHY = {  # way of scoring that is not available -> the reason, for the notes
    "judge": "needs a language model as judge",
    "code": "would have to run what the model wrote",
    "unknown": "is not a task that CapTrack's suite knows",
}


class CaptrackConfig(TaskConfig):
    """A folder of CapTrack's data."""

    kind: Literal["captrack"] = "captrack"
    """CapTrack's data."""
    tasks: tuple[str, ...] = ()
    """Only these tasks, such as gsm8k.subset; all that the folder has by default."""
    prompt: Literal["formatted_prompt", "prompt"] = "formatted_prompt"
    """Which column is asked; where the formatted one carries another model's template, the other one is taken."""
    responses: str | None = None
    """Write model_responses/<model>/<task>.jsonl below this folder, for CapTrack's own compute_metrics.py."""
    ifeval_path: str | None = None
    """IFEval's input file: CapTrack's rows lack the arguments of their instructions."""
    max_new_tokens: int = Field(default=512, gt=0)
    """Tokens of an answer."""

    def files(self) -> list[str]:
        """Return the data folder and, if it is named, IFEval's file."""
        return [*super().files(), *([self.ifeval_path] if self.ifeval_path else [])]


@register("exam", "captrack", config=CaptrackConfig, paper="arXiv:2603.06610")
def captrack(config: CaptrackConfig, base: Path) -> Task:
    """Return the task of a folder with `<task>/data.parquet` or `<task>.jsonl`.

    Tasks that need a judge are answered but not scored. Raise MissingError for a missing folder, file or task, and
    DataError with every wrong row.
    """
    files = _files(config.source(base, what="the folder of CapTrack's data"), config.tasks)
    told = _instructions(resolve(config.ifeval_path, base)) if config.ifeval_path else {}
    items: list[Item] = []
    sources: dict[str, tuple[str, Mapping[str, Any]]] = {}
    problems: list[Problem] = []
    other = 0
    for task, path in files.items():
        rows = Rows(path)
        for row in rows:
            made = _item(task, row, config, told)
            if made is not None:
                item, replaced = made
                items.append(item)
                other += replaced
                sources[item.id] = (task, row.value)
        problems += rows.problems
    if problems:
        raise DataError(*listed(problems))
    notes = [f"{task} is answered but not scored: it {WHY[way]}" for task in files if (way := spec_of(task).way) in WHY]
    if other:
        notes.append(f"{other} rows are asked by 'prompt': their formatted_prompt carries another model's template")
    return Task(
        items=items,
        judge=_judge,
        headline="score",
        capabilities={f"{task}.{name}": group for task in files for name, group in spec_of(task).capabilities.items()},
        scores=specs("score", unit="grade") + tuple(spec for task in files for spec in declared(task)),
        signature=f"captrack|{'+'.join(files)}|{config.prompt}|{config.max_new_tokens} tokens|no judge|v2",
        notes=tuple(notes),
        finish=partial(_finish, None if config.responses is None else base / config.responses, sources),
    )


def _files(folder: Path, wanted: Sequence[str]) -> dict[str, Path]:
    """Return the file of each task: `gsm8k.subset/data.parquet`, `gsm8k.subset.jsonl` or `gsm8k_subset.jsonl`. wanted:
    names of tasks; empty for all. Raise MissingError for a missing folder, no files, or a missing task."""
    if not folder.is_dir():
        raise MissingError(Problem(str(folder), "no such folder", "name the folder of CapTrack's data"))
    found: dict[str, Path] = {}
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()):
        name = path.parent.name if path.stem == "data" or re.match(r"(train|test)\b", path.stem) else path.stem
        if "." not in name and spec_of(name).way == "unknown":
            name = re.sub(r"_(?=(?:subset|core|full|rephrased|schema|table_schema|citation|turn\d|\d+k)$)", ".", name)
        found.setdefault(name, path)
    missing = [name for name in wanted if name not in found]
    if missing:
        there = ", ".join(found) or "none"
        raise MissingError(*(Problem(str(folder), f"no task '{name}'", f"there are: {there}") for name in missing))
    if not found:
        raise MissingError(Problem(str(folder), "no .parquet, .jsonl, .json or .csv files"))
    return {name: found[name] for name in (wanted or found)}


def _instructions(path: Path) -> dict[str, tuple[list[str], list[dict[str, Any]]]]:
    """Return prompt -> (ids, arguments) of IFEval's instructions; the prompts are in lower case with single spaces."""

    def read(row: Row) -> tuple[str, tuple[list[str], list[dict[str, Any]]]] | None:
        prompt, ids = row.text("prompt"), row.texts("instruction_id_list")
        if prompt is None or ids is None:
            return None
        kwargs = [{k: v for k, v in one.items() if v is not None} for one in row.value.get("kwargs") or []]
        return _squeezed(prompt), (ids, kwargs)

    return dict(read_rows(path, read))


def _squeezed(text: str) -> str:
    """Return a text in lower case with single spaces between words."""
    return " ".join(text.lower().split())


def _item(task: str, row: Row, config: CaptrackConfig, told: Mapping[str, Any]) -> tuple[Item, bool] | None:
    """Return the item of a row, and whether `prompt` was used because `formatted_prompt` has a foreign template. None
    when the row is wrong, which is then noted as a problem of the row."""
    way, column = spec_of(task).way, config.prompt if config.prompt in row else "prompt"
    asked = row.text(column)
    if asked is None:
        return None
    foreign = column == "formatted_prompt" and any(mark in asked for mark in TEMPLATE_MARKS) and "prompt" in row
    if foreign:
        asked = row.text("prompt") or asked
    asked = re.sub(r"^\s*\[INST\]\s*|\s*\[/INST\]\s*$", "", asked)
    prompt: Prompt = Plain(asked) if config.template == "plain" else asked
    gold, choices = plain_value(row.value.get("gold")), plain_value(row.value.get("choices"))
    doc: dict[str, Any] = {"task": task, "way": way, "gold": gold, "schema": plain_value(row.value.get("schema"))}
    asks: tuple[Ask, ...] = (Ask("say", prompt, max_new_tokens=config.max_new_tokens),)
    if way == "choice":
        if not isinstance(choices, list) or len(choices) < 2 or len(choices) > len(LETTERS):
            row.bad("'choices' must be a list of 2 to 26 texts")
            return None
        gold = _letter(gold, choices)
        if gold is None:
            row.bad(f"'gold' is {row.value.get('gold')!r}", "a letter of the choices, its number from 0, or its text")
            return None
        doc |= {"gold": gold, "count": len(choices)}
        asks += choice_asks(prompt, LETTERS[: len(choices)])
    if way == "ifeval":
        doc["instructions"] = _found(row, asked, told)
    words = str(row.value.get("prompt") or asked)
    name, words = f"{task}:{row.value.get('id', row.number)}", words if words in asked else asked
    return Item(name, words, asks, doc=doc, location=row.location), foreign


def _letter(gold: Any, choices: Sequence[Any]) -> str | None:
    """Return the letter of the right choice, from its index (from 0), its letter or its text; None when it is none."""
    letters = LETTERS[: len(choices)]
    if isinstance(gold, int) and not isinstance(gold, bool) and 0 <= gold < len(choices):
        return letters[gold]
    if isinstance(gold, str) and len(gold.strip()) == 1 and gold.strip().upper() in letters:
        return gold.strip().upper()
    return letters[choices.index(gold)] if gold in choices else None


def _found(row: Row, asked: str, told: Mapping[str, Any]) -> Any:
    """Return (ids, kwargs) of an IFEval row: its own, or those of the same prompt in IFEval's file; else None."""
    meta = plain_value(row.value.get("meta"))
    if isinstance(meta, Mapping) and "instruction_id_list" in meta and "kwargs" in meta:
        return meta["instruction_id_list"], meta["kwargs"]
    text = _squeezed(asked)
    return next((list(value) for prompt, value in told.items() if prompt in text), None)


def _judge(item: Item, replies: Sequence[Reply]) -> Sample:
    said = the_answer(replies)
    doc, task = item.doc, item.doc["task"]
    confidence = None
    scores: dict[str, float] | None
    if doc["way"] == "choice":
        letters = LETTERS[: doc["count"]]
        choice, letter = chosen(replies, letters), letter_of(said.text, doc["count"])
        scores = {
            "accuracy": float(letters[choice.best] == doc["gold"]),
            "said": float(letter == doc["gold"]),
            "format": float(len(said.text.strip()) == 1),
        }
        confidence = max(choice.shares)
    else:
        score = scorer(doc["way"])
        scores = None if score is None else score(said.text, doc)
    own = None if scores is None or doc["way"] == "style" else next(iter(scores.values()))
    named = {f"{task}.{name}": value for name, value in (scores or {}).items()}
    target = doc["gold"] if isinstance(doc["gold"], str) else json.dumps(doc["gold"], ensure_ascii=False)
    right, judged = (None, named) if own is None else (own == 1.0, {"score": own, **named})
    extra, count = {"task": task, "unscored": scores is None}, doc.get("count")
    return item.sample(
        said.text, target, judged, said, correct=right, choices=count, confidence=confidence, extra=extra
    )


def _finish(
    folder: Path | None, sources: Mapping[str, tuple[str, Mapping[str, Any]]], model: str, samples: Sequence[Sample]
) -> list[str]:
    """Write the response files if the config names a folder, and return notes on them and on rows without a score."""
    asked = [sample for sample in samples if not sample.perturbation]
    notes = [] if folder is None else [_written(folder, model, asked, sources)]
    lost = Counter(sample.extra["task"] for sample in asked if sample.extra["unscored"])
    for task, count in lost.items():
        if spec_of(task).way not in WHY:
            notes.append(
                f"{count} rows of {task} could not be scored: no gold, or a schema or instruction that is not known"
            )
    return notes


def _written(
    folder: Path, model: str, samples: Sequence[Sample], sources: Mapping[str, tuple[str, Mapping[str, Any]]]
) -> str:
    """Write one response file for each task, and return a note with their folder. Each line has the columns of the row
    and `outputs`, in the layout that CapTrack's compute_metrics.py expects."""
    own = folder / "model_responses" / (re.sub(r"[^\w.-]+", "-", model).strip("-.") or "model")
    own.mkdir(parents=True, exist_ok=True)
    texts: dict[str, list[str]] = {}
    for sample in samples:
        task, row = sources[sample.id]
        line = {**row, "outputs": sample.answer}
        texts.setdefault(task, []).append(json.dumps(line, ensure_ascii=False, default=str))
    for task, lines in texts.items():
        (own / f"{task.replace('.', '_')}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"responses of {len(texts)} tasks are in {own}"
