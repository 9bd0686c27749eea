"""Perplexity: sums over sums by hand, pieces that lose nothing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from posttrain.errors import ConfigError, DataError
from tests.exams.tasks.told import build, judged, scores_of, write_rows


def test_scores_by_hand(tmp_path: Path) -> None:
    write_rows(tmp_path / "t.jsonl", [{"text": "one two"}, {"text": "three four five six"}])
    task = build("perplexity", tmp_path, path="t.jsonl")
    # 7 bytes cost 14 nats, 19 bytes cost 19 nats; a token is a character here
    samples = judged(task, likes=lambda _, text: -14.0 if text == "one two" else -19.0)
    scores = scores_of(task, samples)
    assert scores["bits_per_byte"] == pytest.approx(33 / 26 / math.log(2))  # not the mean of 2 and 1
    assert scores["nats_per_token"] == pytest.approx(33 / 26)
    assert scores["byte_perplexity"] == pytest.approx(math.exp(33 / 26))
    assert scores["word_perplexity"] == pytest.approx(math.exp(33 / 6))
    assert samples[0].scores["nats_per_token"] == pytest.approx(2.0)
    assert task.spec.better == "less"


def test_chinese_has_no_words_between_spaces(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("今天天氣很好。\n我們去公園。\n", "utf-8")
    task = build("perplexity", tmp_path, path="t.txt")
    scores = scores_of(task, judged(task))
    assert "word_perplexity" not in scores
    assert scores["nats_per_character"] == pytest.approx(1.0)  # told.judged: a nat for each character
    assert scores["nats_per_byte"] < 0.5


def test_pieces_joined_are_the_file(tmp_path: Path) -> None:
    text = "".join(f"line {i} {'x' * (i % 70)}\n" for i in range(300)) + "y" * 5000 + "\nend"
    (tmp_path / "t.txt").write_text(text, "utf-8")
    task = build("perplexity", tmp_path, path="t.txt", characters=500)
    pieces = [item.asks[0].continuation for item in task.items]
    assert "".join(pieces) == text
    assert all(len(p) <= 500 for p in pieces)
    assert len({item.id for item in task.items}) == len(pieces)
    assert f"{len(pieces)} texts of at most 500 characters" in task.notes[0]
    (whole,) = build("perplexity", tmp_path, path="t.txt", characters=None).items
    assert whole.asks[0].continuation == text


def test_several_files_are_groups(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("aaaa", "utf-8")
    (tmp_path / "b.txt").write_text("bb", "utf-8")
    task = build("perplexity", tmp_path, path="a.txt", paths=("b.txt",))
    scores = scores_of(task, judged(task, likes=lambda _, text: -2.0))
    assert scores["nats_per_byte/a.txt"] == pytest.approx(0.5)
    assert scores["nats_per_byte/b.txt"] == pytest.approx(1.0)
    assert scores["nats_per_byte"] == pytest.approx(4 / 6)


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(" \n", "utf-8")
    with pytest.raises(DataError, match="empty"):
        build("perplexity", tmp_path, path="t.txt")
    with pytest.raises(ConfigError, match="no question to disturb"):
        build("perplexity", tmp_path, path="t.txt", perturbations=("typos",))
    with pytest.raises(ConfigError, match="'path' is missing"):
        build("perplexity", tmp_path)
