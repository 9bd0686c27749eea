"""Signals between two steps: a flag; while somebody else works with the model: at once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from posttrain.training.signals import stop_on_signal, what_is_kept


class Target:
    stop_asked = False
    resting = False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_flag_in_training_and_stops_an_exam_at_once(number: signal.Signals) -> None:
    former = signal.getsignal(number)
    target = Target()
    with stop_on_signal(target):
        os.kill(os.getpid(), number)
        assert target.stop_asked
    target = Target()
    target.resting = True
    with pytest.raises(KeyboardInterrupt), stop_on_signal(target):
        os.kill(os.getpid(), number)
    assert not target.stop_asked
    assert signal.getsignal(number) is former


def test_what_is_kept_is_said_outside_of_the_steps(tmp_path: Path) -> None:
    def kept(*, resume: bool = True) -> str:
        return str(what_is_kept(tmp_path, resume=resume))

    assert kept() == "stopped before the first step: nothing is kept"
    (tmp_path / "metrics.jsonl").write_text("{}\n", encoding="utf-8")
    assert kept() == "stopped before a step was saved: nothing is kept"
    for step in (5, 10):
        (tmp_path / f"checkpoints/step-{step}").mkdir(parents=True)
    saved = tmp_path / "checkpoints/step-10"
    assert kept() == f"stopped; step 10 is saved in {saved}; run the same command to go on"
    assert kept(resume=False).endswith("run the same command without --restart to go on")
    (tmp_path / "result.json").write_text("{}", encoding="utf-8")
    assert kept() == f"stopped: the finished run in {tmp_path} is as it was"
