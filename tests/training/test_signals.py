"""Signals between two steps: a flag; while somebody else works with the model: at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain.errors import Interrupted, Problem, Terminated
from posttrain.training.signals import stop_on_signal, tells_what_is_kept


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


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as at a terminal; what a shell starts in the background is deaf to it."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.usefixtures("interruptible")
def test_what_is_kept_is_said_outside_of_the_steps(tmp_path: Path, number: signal.Signals, code: int) -> None:
    former = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        with stop_on_signal(Target()):
            pass  # the steps have handlers of their own, and leave ours
        os.kill(os.getpid(), number)

    def stopped(*, resume: bool = True) -> str:
        with pytest.raises(Interrupted) as caught, tells_what_is_kept(tmp_path, resume=resume):
            work()
        assert caught.value.exit_code == code
        assert signal.getsignal(signal.SIGTERM) is former
        return str(caught.value)

    assert stopped() == "stopped before the first step: nothing is kept"
    (tmp_path / "metrics.jsonl").write_text("{}\n", encoding="utf-8")
    assert stopped() == "stopped before a step was saved: nothing is kept"
    for step in (5, 10):
        (tmp_path / f"checkpoints/step-{step}").mkdir(parents=True)
    saved = tmp_path / "checkpoints/step-10"
    assert stopped() == f"stopped; step 10 is saved in {saved}; run the same command to go on"
    assert stopped(resume=False).endswith("run the same command without --restart to go on")
    (tmp_path / "result.json").write_text("{}", encoding="utf-8")
    assert stopped() == f"stopped: the finished run in {tmp_path} is as it was"


def test_sigterm_in_work_that_says_itself_what_is_lost(tmp_path: Path) -> None:
    def replay() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt as stop:
            raise Interrupted(Problem("", "replay is not kept")) from stop

    with pytest.raises(Terminated, match=r"^replay is not kept$"), tells_what_is_kept(tmp_path):
        replay()
