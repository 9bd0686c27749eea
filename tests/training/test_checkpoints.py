"""Whole or not there; the newest and the best stay; what changed is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.errors import ConfigError, TrainingError
from posttrain.models.disk import whole_folder
from posttrain.training.checkpoints import (
    FINGERPRINT,
    check_fingerprint,
    checkpoints_in,
    differences,
    remove_leftovers,
    rotate,
)


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    final = tmp_path / "step-1"

    def fails() -> None:
        with whole_folder(final) as temporary:
            (temporary / "half").write_text("x", encoding="utf-8")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert not final.exists()
    assert not list(tmp_path.iterdir())  # the half-written folder takes no room
    (tmp_path / ".tmp-step-1").mkdir()  # of a process that was killed
    (tmp_path / ".tmp-step-1" / "half").write_text("x", encoding="utf-8")
    assert remove_leftovers(tmp_path) == [".tmp-step-1"]
    with whole_folder(final) as temporary:
        (temporary / "below").mkdir()
        (temporary / "below" / "file").write_text("x", encoding="utf-8")
        assert not final.exists()
    assert (final / "below" / "file").read_text(encoding="utf-8") == "x"
    assert remove_leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [(1, None, [10]), (2, None, [9, 10]), (1, 2, [2, 10]), (1, 10, [10]), (None, None, [1, 2, 9, 10])],
)
def test_rotation(tmp_path: Path, keep: int | None, best: int | None, left: list[int]) -> None:
    for step in (1, 2, 9, 10):  # by number, not by name
        (tmp_path / f"step-{step}").mkdir()
    (tmp_path / "step-old").mkdir()
    rotate(tmp_path, keep, best)
    assert list(checkpoints_in(tmp_path)) == left
    assert (tmp_path / "step-old").exists()
    assert not list(tmp_path.glob(".tmp-*"))


def test_differences_by_hand() -> None:
    before = {"config": {"seed": 0, "gone": 1, "same": [1, 2]}, "rows": "aa"}
    now = {"config": {"seed": 1, "same": [1, 2], "came": None}, "rows": "aa"}
    assert differences(before, now) == [
        "config.seed: 0 -> 1",
        "config.gone: 1 -> not there",
        "config.came: not there -> None",
    ]


def test_fingerprint(tmp_path: Path) -> None:
    fingerprint = {"config": {"betas": (0.9, 0.99)}}
    (tmp_path / FINGERPRINT).write_text(json.dumps(fingerprint), encoding="utf-8")
    check_fingerprint(tmp_path, fingerprint)  # a tuple comes back as a list and is the same
    with pytest.raises(ConfigError, match="betas"):
        check_fingerprint(tmp_path, {"config": {"betas": (0.9, 0.95)}})
    (tmp_path / FINGERPRINT).write_text("{", encoding="utf-8")
    with pytest.raises(TrainingError, match="cannot be read"):
        check_fingerprint(tmp_path, fingerprint)
