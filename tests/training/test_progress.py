"""What a person sees while a run works."""

from __future__ import annotations

import io
import sys
import time

import pytest
from rich.console import Console

from posttrain.models.meter import Doing
from posttrain.training.progress import LiveProgress, PlainProgress, RunProgress, described, progress_for

STEP = {"loss_nats": 1.25, "loss_new_nats": 1.25, "tokens_per_s": 2048.4, "peak_gib": 0.613}


def test_described() -> None:
    assert described(STEP) == "loss 1.2500  2,048 tokens/s  0.61 GiB"
    assert described({**STEP, "loss_new_nats": 0.5}) == "loss 1.2500  new rows 0.5000  2,048 tokens/s  0.61 GiB"
    assert described({"validation_loss_nats": 2.0}) == "validation loss 2.0000"


def test_plain_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with PlainProgress() as plain:
        plain.start(20, 30)
        for step in range(21, 31):
            now[0] += 4.0
            plain.step({**STEP, "step": step})
            if step == 25:
                plain.step({"step": 25, "validation_loss_nats": 2.0})
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    # the first, one after each ten seconds, the validation (which counts as a line), the last
    assert [line.split("  ")[0] for line in lines] == [f"step {n}/30" for n in (21, 24, 25, 28, 30)]
    assert lines[0].endswith("  36 s left")  # nine more of four seconds
    assert "validation loss 2.0000" in lines[2]


def test_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    live = LiveProgress()
    live.console = live.bar.live.console = Console(file=screen, force_terminal=True, width=120)
    with live:
        live.start(0, 4)
        live.step({**STEP, "step": 3})
        live.step({"step": 3, "validation_loss_nats": 2.0})
        live.say("[not markup] said")
    text = screen.getvalue()
    assert "3/4" in text
    assert "loss 1.2500" in text
    assert "validation loss 2.0000" in text
    assert "[not markup] said" in text


def test_which_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(progress_for(silent=True)) is RunProgress
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert isinstance(progress_for(), PlainProgress)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert isinstance(progress_for(), LiveProgress)


WORK = Doing("answering prompts for replay", 12, 328, "prompts", 30.0, 6300, 790.0)


def test_work_before_the_first_step_in_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    plain = PlainProgress()
    plain.doing(WORK._replace(done=0, tokens=0, left_s=None))  # begins: at once
    for _ in range(30):
        now[0] += 1.0
        plain.doing(WORK)
    plain.doing(WORK._replace(done=328, ends=True))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "answering prompts for replay: 328 prompts"
    assert lines[1:] == ["answering prompts for replay: 12/328 prompts  210 tokens/s  13 min 10 s left"] * 3
    RunProgress().doing(WORK)


def test_work_before_the_first_step_is_one_line_on_a_terminal() -> None:
    screen = io.StringIO()
    live = LiveProgress()
    live.console = live.bar.live.console = Console(file=screen, force_terminal=True, width=60)
    for done in (0, 12, 40):
        live.doing(WORK._replace(done=done))
    assert (
        screen.getvalue().split("\r\x1b[K")[1:]
        == [
            str(WORK)[:59],  # cut to the width: a line that wraps could not be written over
            str(WORK._replace(done=40))[:59],
        ]
    )
    live.doing(WORK._replace(ends=True))
    live.say("said")
    assert screen.getvalue().endswith("\r\x1b[Ksaid\n")
    live.doing(WORK)
    with live:  # the bar begins on a clean line
        assert "\r\x1b[K" in screen.getvalue().split("said")[1]
