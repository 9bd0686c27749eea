"""`posttrain predict`: print the predictions of a classifier, a tagger or a reader for the rows of a file."""

from __future__ import annotations

import json as _json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from posttrain.cli.options import DownloadOption, JsonOption, TrustOption, emit, talk
from posttrain.cli.stopping import NOT_WRITTEN, when_stopped
from posttrain.cli.works import shown_works
from posttrain.errors import DataError, PosttrainError, Problem
from posttrain.models.disk import starting_anew, write_whole

if TYPE_CHECKING:
    from posttrain.data.records import Record
    from posttrain.models.load import LoadedModel
    from posttrain.models.notes import HeadNotes


FORMATS = {"sequence": "labels", "token": "tags", "answer": "answers"}
"""Kind of head -> format of the rows."""
PROBABILITY_DIGITS = 6
"""Decimal places of printed probabilities."""


class Predicted(NamedTuple):
    """The predictions for a file. rows: one per row of the file; scores: over the rows with labels, empty without
    such rows; gold: their number.
    """

    rows: list[dict[str, Any]]
    scores: dict[str, float]
    gold: int


def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model with a head: a folder, an adapter, a hub id.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Rows: .jsonl, .csv, .parquet, .conll, SQuAD's .json.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where the rows go; stdout when not given.")
    ] = None,
    json: JsonOption = False,
    download: DownloadOption = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Say what a trained classifier, tagger or reader makes of each row; scores too, where the rows have labels.

    Rows are as for training: {"text": ...}, {"tokens": [...]}, or {"question": ..., "context": ...}.
    """
    from posttrain.data.readers import DataSource, read_records
    from posttrain.models.heads import load_any
    from posttrain.models.load import check_folder
    from posttrain.models.names import say_taken
    from posttrain.models.notes import saved_head

    check_folder(model)
    say_taken(model, talk)
    when_stopped(lambda: NOT_WRITTEN)
    notes = saved_head(model, offline=not download)
    if notes is None:
        mend = "train one with text_classification, token_classification or extractive_qa; or: posttrain chat MODEL"
        raise PosttrainError(Problem(model, "has no head for classes, tags or answers", mend))
    source = DataSource.model_validate({"path": str(file), "format": FORMATS[notes.head]})
    read = read_records(source)
    with shown_works():
        loaded = load_any(model, say=talk, offline=not download, trust_remote_code=trust_remote_code)
        found = predicted(loaded, notes, read.records)
    lines = "".join(_json.dumps(row, ensure_ascii=False) + "\n" for row in found.rows)
    if output is not None:
        with starting_anew():
            write_whole(output, lines)
    if json:
        where = {"output": str(output)} if output is not None else {"predictions": found.rows}
        emit({"rows": len(found.rows), "gold": found.gold, "scores": found.scores, **where})
    elif output is None:
        print(lines, end="")
    if found.scores and not json:
        scores = "  ".join(f"{name} {value:.4f}" for name, value in found.scores.items())
        talk(f"{found.gold} of {len(found.rows)} rows have labels: {scores}")
    if output is not None and not json:
        print(output)


Pairs = list[tuple[Any, Any]]
"""For each row with labels: the prediction and the right answer."""
Scored = tuple[list[dict[str, Any]], Pairs, Callable[[list[Any], list[Any]], dict[str, float]]]
"""The rows, the pairs, and a function that computes scores from all predictions and all right answers."""


def predicted(loaded: LoadedModel, notes: HeadNotes, records: Sequence[Record]) -> Predicted:
    """Predict every record and compute the scores over the records with labels."""
    rows, pairs, score = {"sequence": _classes, "token": _tags, "answer": _answers}[notes.head](loaded, notes, records)
    scores = score([ours for ours, _ in pairs], [right for _, right in pairs]) if pairs else {}
    return Predicted(rows, scores, len(pairs))


def _classes(loaded: LoadedModel, notes: HeadNotes, records: Sequence[Any]) -> Scored:
    from posttrain.data.metrics.labelled import scores_of_classes
    from posttrain.inference.heads import classify_records

    said = classify_records(loaded, records)
    several = bool(notes.settings.get("multi_label", False))
    rows = []
    pairs: Pairs = []
    for record, one in zip(records, said, strict=True):
        named = {"labels": list(one.labels)} if several else {"label": one.labels[0]}
        second = {"text2": record.text2} if record.text2 is not None else {}
        if record.gold and not several and len(record.labels) != 1:
            cause = f"{len(record.labels)} labels, where the model gives each text one"
            raise DataError(Problem(record.location, cause))
        gold = {"gold": list(record.labels) if several else record.labels[0]} if record.gold else {}
        pairs += [(one.labels, record.labels)] if record.gold else []
        chances = {label: round(p, PROBABILITY_DIGITS) for label, p in one.probabilities.items()}
        cut = {"truncated": True} if one.truncated else {}
        rows.append({"text": record.text, **second, **named, "probabilities": chances, **gold, **cut})
    if any(one.truncated for one in said):
        talk(f"{sum(one.truncated for one in said)} texts are longer than the model reads: their ends were left out")
    return rows, pairs, partial(scores_of_classes, labels=notes.labels, multi_label=several)


def _tags(loaded: LoadedModel, notes: HeadNotes, records: Sequence[Any]) -> Scored:
    from posttrain.data.metrics.labelled import scores_of_tags
    from posttrain.inference.heads import tag_records

    said = list(zip(records, tag_records(loaded, records), strict=True))
    rows = [
        {"tokens": list(r.tokens), "tags": list(one.tags), **({"gold": list(r.tags)} if r.gold else {})}
        for r, one in said
    ]
    return rows, [(one.tags, r.tags) for r, one in said if r.gold], partial(scores_of_tags, labels=notes.labels)


def _answers(loaded: LoadedModel, notes: HeadNotes, records: Sequence[Any]) -> Scored:
    from posttrain.data.metrics.labelled import scores_of_answers
    from posttrain.inference.heads import answer_records

    rows = []
    pairs: Pairs = []
    for record, one in zip(records, answer_records(loaded, records), strict=True):
        named = {"id": record.id} if record.id else {}
        right = [answer.text for answer in record.answers]
        pairs += [(one.text, right)] if record.gold else []
        scores = {"score": one.score, "null_score": one.null_score, **({"gold": right} if record.gold else {})}
        rows.append({**named, "question": record.question, "answer": one.text, "answer_start": one.start, **scores})
    return rows, pairs, scores_of_answers
