from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from posttrain.data.readers import DataSource
from posttrain.errors import DataError
from posttrain.inference.encoding import PromptReader
from posttrain.retention.replay.file import FileReplayConfig, file
from posttrain.retention.selection import ReplayContext

ROWS = '{"prompt": "a?", "completion": "b"}\n{"messages": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}\n'


def config(**fields: object) -> FileReplayConfig:
    return FileReplayConfig.model_validate({"data": "old.jsonl", **fields})


def test_rows_are_read_beside_the_study(context: ReplayContext, tmp_path: Path, told: list[str]) -> None:
    (tmp_path / "old.jsonl").write_text(ROWS, encoding="utf-8")
    rows = file(config(), context)
    assert [[m.content for m in row.messages] for row in rows] == [["a?", "b"], ["c", "d"]]
    assert rows[1].location.endswith("old.jsonl:2")
    assert told == ["replay from old.jsonl: 2 conversations"]
    assert config().files() == ["old.jsonl"]


def test_the_exams_questions_are_left_out(context: ReplayContext, tmp_path: Path, told: list[str]) -> None:
    (tmp_path / "old.jsonl").write_text(ROWS, encoding="utf-8")
    rows = file(config(), dataclasses.replace(context, forbidden=frozenset({"A"})))
    assert len(rows) == 1
    assert told == ["replay from old.jsonl: 1 conversations (1 asked by the exam left out)"]
    assert len(file(config(n=1), context)) == 1


def test_plain_text_is_no_conversation(context: ReplayContext, tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").write_text('{"text": "once upon a time"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"old\.jsonl:1: replay needs conversations"):
        file(config(), context)


def test_a_bad_row_is_seen_before_any_model_speaks(context: ReplayContext, tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c"}\n', encoding="utf-8")
    reader = PromptReader(context.respondent.tokenizer, None, 512)
    with pytest.raises(DataError, match=r"old.jsonl:2: a row without an answer"):
        FileReplayConfig(data=DataSource(path="old.jsonl")).check(tmp_path, reader, 0)


def test_fewer_rows_than_were_asked_for_are_said(context: ReplayContext, tmp_path: Path, told: list[str]) -> None:
    (tmp_path / "old.jsonl").write_text(ROWS, encoding="utf-8")
    assert len(file(config(n=60), context)) == 2
    assert told[0] == "replay: 60 were asked for (n), 2 are there"
    reader = PromptReader(context.respondent.tokenizer, None, 512)
    assert config(n=3).check(tmp_path, reader, 0) == "replay: 3 were asked for (n), 2 are there"
    assert config(n=2).check(tmp_path, reader, 0) == config().check(tmp_path, reader, 0) == ""
