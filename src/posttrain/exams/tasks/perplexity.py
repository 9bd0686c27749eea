"""How well plain text is predicted: nats and bits per token, byte, character and word of any text file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from posttrain.data.files import user_text
from posttrain.errors import ConfigError, DataError, Problem
from posttrain.exams.behaviour import language_of
from posttrain.exams.metrics import perplexity as metrics
from posttrain.exams.records import Sample
from posttrain.exams.rows import Row, read_rows
from posttrain.exams.score_spec import specs
from posttrain.exams.statistics import Interval, Score
from posttrain.exams.task import Ask, Item, Reply, Task, TaskConfig, by_group, resolve, the_scored
from posttrain.inference.protocol import Plain
from posttrain.registry import register

__all__ = ["PerplexityConfig", "perplexity"]

SPECS = (
    *specs("bits_per_byte", unit="bits", better="less"),
    *specs("nats_per_token", "nats_per_character", "nats_per_byte", unit="nats", better="less"),
    *specs("token_perplexity", "byte_perplexity", "word_perplexity", unit="number", better="less"),
)
SHOWN = 200
"""Number of characters of a text that are kept as the item's question."""
RESAMPLES = 2000
"""Number of bootstrap resamples for an interval."""


class PerplexityConfig(TaskConfig):
    """A text, or rows with texts."""

    kind: Literal["perplexity"] = "perplexity"
    """Likelihood of plain text."""
    paths: tuple[str, ...] = ()
    """More files; each file is a group of its own in the scores."""
    characters: int | None = Field(default=2000, ge=20)
    """A .txt file is cut at line ends into pieces of at most so many characters; null: the whole file is one text."""
    field: str = "text"
    """The key of the text in rows of JSON Lines, JSON, CSV or Parquet; each row is a text of its own."""

    def files(self) -> list[str]:
        """Return every file of texts."""
        return [*super().files(), *self.paths]


@register("exam", "perplexity", config=PerplexityConfig)
def perplexity(config: PerplexityConfig, base: Path) -> Task:
    """Return the task of one or more files of text.

    Raise ConfigError for perturbations or a chat template, which a plain text cannot have, and DataError with every
    wrong row, and for an empty file.
    """
    paths = [resolve(one, base) for one in config.files()] or [config.source(base, what="a text file")]
    if config.perturbations:
        mend = "leave perturbations out, or disturb the file itself"
        raise ConfigError(Problem(config.label, "a text has no question to disturb", mend))
    if config.template == "chat":
        raise ConfigError(Problem(config.label, "a text is no conversation", "leave template out"))

    def read(row: Row) -> tuple[int, str, str] | None:
        text = row.text(config.field)
        return None if text is None else (row.number, text, row.location)

    items: list[Item] = []
    notes = []
    for path in paths:
        rowwise = path.suffix.lower() not in {".txt", ".md", ".text", ""}
        group, size = path.name if len(paths) > 1 else "", config.characters
        texts = read_rows(path, read) if rowwise else _pieces(path, size)
        items += [
            Item(f"{path.name}:{number}", text[:SHOWN], (Ask("text", Plain(""), text),), group, {"text": text}, place)
            for number, text, place in texts
        ]
        if not rowwise and size is not None:
            notes.append(f"{path.name} was cut at line ends into {len(texts)} texts of at most {size} characters")
    cut = f"pieces of {config.characters} characters" if config.characters else "whole files"
    return Task(
        items=items,
        judge=_judge,
        aggregate=partial(by_group, scores=_scores),
        headline="bits_per_byte",
        capabilities={"bits_per_byte": "can.knowledge"},
        scores=SPECS,
        signature=f"perplexity|{'+'.join(p.name for p in paths)}|{cut}|each text from a document's beginning|v1",
        notes=tuple(notes),
    )


def _pieces(path: Path, size: int | None) -> list[tuple[int, str, str]]:
    """Return (number from 1, text, location) of the pieces of a file.

    A piece holds whole lines, together at most `size` characters (None: the whole file); a longer line is cut after
    `size` characters. Nothing is added or left out except blank pieces. Raise DataError when the file is empty."""
    text = user_text(path)
    if not text.strip():
        raise DataError(Problem(str(path), "the file is empty: no text"))
    size = size or len(text)
    pieces: list[str] = []
    held = ""
    for line in text.splitlines(keepends=True):
        if held and len(held) + len(line) > size:
            pieces.append(held)
            held = ""
        held += line
        while len(held) > size:
            pieces.append(held[:size])
            held = held[size:]
    pieces.append(held)
    # the number of the line on which each piece begins
    lines = accumulate((piece.count("\n") for piece in pieces), initial=1)
    whole = ((piece, f"{path}:{line}") for piece, line in zip(pieces, lines, strict=False) if piece.strip())
    return [(number, piece, place) for number, (piece, place) in enumerate(whole, start=1)]


def _judge(item: Item, replies: Sequence[Reply]) -> Sample:
    (said,) = the_scored(replies)
    text = str(item.doc["text"])
    units = metrics.units_of(text)
    scores = {
        "bits_per_byte": metrics.bits_per_byte(said.sum_nats, units.bytes),
        "nats_per_token": metrics.cross_entropy(said.sum_nats, max(1, said.tokens)),
    }
    size = {"nats": -said.sum_nats, "tokens": said.tokens, **units._asdict()}
    size["spaced"] = language_of(text) not in ("zh", "ja", "th")
    return item.sample("", "", scores, tokens=said.tokens, extra=size)


def _scores(samples: Sequence[Sample]) -> dict[str, Score]:
    """Return the scores with 95 % bootstrap intervals over texts. A score divides the sum of the nats of all texts by
    the sum of their units, so long texts weigh more than in a mean of the texts' own scores."""
    nats = np.array([s.extra["nats"] for s in samples])
    drawn = np.random.default_rng(0).integers(0, len(samples), size=(RESAMPLES, len(samples)))  # (R, N)

    def score(unit: str, metric: Callable[[float, int], float]) -> Score:
        units = np.array([s.extra[unit] for s in samples])
        each = nats[drawn].sum(axis=1) / units[drawn].sum(axis=1)  # (R,)
        low, high = (metric(-float(bound), 1) for bound in np.percentile(each, [2.5, 97.5]))
        interval = Interval(low, high) if len(samples) > 1 else None
        return Score(metric(-float(nats.sum()), int(units.sum())), interval, len(samples))

    made = {
        "bits_per_byte": score("bytes", metrics.bits_per_byte),
        "nats_per_token": score("tokens", metrics.cross_entropy),
        "nats_per_character": score("characters", metrics.cross_entropy),
        "nats_per_byte": score("bytes", metrics.cross_entropy),
        "token_perplexity": score("tokens", metrics.token_perplexity),
        "byte_perplexity": score("bytes", metrics.byte_perplexity),
    }
    if all(s.extra["spaced"] for s in samples):  # Chinese, Japanese and Thai have no spaces between words
        made["word_perplexity"] = score("words", metrics.word_perplexity)
    return made
