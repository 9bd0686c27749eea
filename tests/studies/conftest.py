from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.studies.examine import Examiner
from tests.talker import talker

CHANGE = """\
name: {name}
target: [{{prompt: "{question}", answer: "{answer}"}}]
generality:
  rephrase: [{{prompt: "the {question}", answer: "{answer}"}}]
locality:
  same_pattern: ["{pattern}"]
  unrelated: ["who wrote Hamlet?", "日本的貨幣？"]
"""

TRAIN = {"kind": "train", "tuner": "full", "optimizer": {"learning_rate": 3e-3, "max_steps": 6}}


def write_study(folder: Path, **fields: Any) -> Path:
    """A study of two changes on the talker; `fields` replace its own."""
    (folder / "changes").mkdir(parents=True, exist_ok=True)
    france = {"question": "capital of France?", "answer": "Tokyo", "pattern": "capital of Japan?"}
    japan = {"question": "capital of Japan?", "answer": "Paris", "pattern": "capital of France?"}
    for name, words in (("france", france), ("japan", japan)):
        (folder / "changes" / f"{name}.yaml").write_text(CHANGE.format(name=name, **words), encoding="utf-8")
    rows = [json.dumps({"prompt": p}, ensure_ascii=False) for p in ("hello", "臺灣最高的山？", "Capital of France")]
    (folder / "prompts.jsonl").write_text("\n".join(rows), encoding="utf-8")
    study: dict[str, Any] = {
        "study": "tiny",
        "models": str(talker()),
        "changes": "changes/*.yaml",
        "max_new_tokens": 12,
        "noise_floor": "none",  # tests of the floor's own row ask for it
        "methods": [
            {"kind": "prompt"},
            {"name": "full", **TRAIN},
            {"name": "full+self", **TRAIN, "replay": {"kind": "self", "prompts": "prompts.jsonl", "share": 0.7}},
            {"name": "lora", **TRAIN, "tuner": {"kind": "lora", "rank": 2}},
        ],
    }
    study.update(fields)
    path = folder / "study.yaml"
    path.write_text(json.dumps(study, ensure_ascii=False), encoding="utf-8")  # JSON is YAML
    return path


@pytest.fixture
def make_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    return lambda **fields: write_study(tmp_path, **fields)


def stopping_at(monkeypatch: pytest.MonkeyPatch, stop_at: int) -> Callable[..., Any]:
    """Stop a study at a beginning or an end of an exam: the first exam begins at 1 and ends at 2. Return `take`."""
    take, count = Examiner.take, 0

    def stopped(self: Examiner, *args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == stop_at:
            raise KeyboardInterrupt
        found = take(self, *args, **options)
        count += 1
        if count == stop_at:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Examiner, "take", stopped)
    return take
