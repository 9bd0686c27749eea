"""Signals between two steps: a flag; while somebody else works with the model: at once."""

from __future__ import annotations

import os
import signal

import pytest

from posttrain.training.signals import stop_on_signal


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
