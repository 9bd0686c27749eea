"""Display the progress of a run: a live line on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, Self

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from posttrain.language import translate
from posttrain.models.meter import Doing, clock

__all__ = ["LiveProgress", "PlainProgress", "RunProgress", "progress_for"]


class RunProgress:
    """The base class of displays: it receives the events of a run and shows nothing. It is used as a context, so that a
    live display is closed however the run ends.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def say(self, text: str) -> None:
        """Show a line: a choice made, a count, a saved file."""

    def doing(self, work: Doing) -> None:
        """Show the progress of work before the first step or after the last."""

    def start(self, first: int, steps: int | None) -> None:
        """Show that training begins. first: steps done so far; steps: in all, None if not known."""

    def step(self, entry: Mapping[str, Any]) -> None:
        """Show an optimiser step or a validation (`validation_loss_nats`). entry: an entry of metrics.jsonl."""


def described(entry: Mapping[str, Any]) -> str:
    """Return the numbers of a step as text, such as `loss 1.234  2,048 tokens/s  0.61 GiB`."""
    if "validation_loss_nats" in entry:
        scores = {k.removeprefix("validation_"): v for k, v in entry.items() if k.startswith("validation_")}
        loss = scores.pop("loss_nats")
        return "  ".join([f"validation loss {loss:.4f}", *(f"{name} {value:.4f}" for name, value in scores.items())])
    parts = [f"loss {entry['loss_nats']:.4f}"]
    if entry["loss_new_nats"] != entry["loss_nats"]:
        parts.append(f"new rows {entry['loss_new_nats']:.4f}")
    return "  ".join([*parts, f"{entry['tokens_per_s']:,.0f} tokens/s", f"{entry['peak_gib']:.2f} GiB"])


class PlainProgress(RunProgress):
    """A display with lines on stderr: the first step, the last, one every `every_s` seconds, and every validation."""

    every_s = 10.0

    def __init__(self) -> None:
        self.steps: int | None = None
        self.first = 0
        self.began = self.last = time.monotonic()

    def say(self, text: str) -> None:
        print(translate(text), file=sys.stderr, flush=True)

    def doing(self, work: Doing) -> None:
        now = time.monotonic()
        if work.begins or (now - self.last >= self.every_s and not work.ends):
            self.last = now
            self.say(f"{work.what}: {work.total:,} {work.unit}" if work.begins else str(work))

    def start(self, first: int, steps: int | None) -> None:
        self.first, self.steps = first, steps
        self.began = self.last = time.monotonic()

    def step(self, entry: Mapping[str, Any]) -> None:
        now = time.monotonic()
        step = int(entry["step"])
        edge = step in (self.first + 1, self.steps) or "validation_loss_nats" in entry
        if not edge and now - self.last < self.every_s:
            return
        self.last = now
        if self.steps is None:
            self.say(f"step {step}  {described(entry)}")
            return
        left_s = (now - self.began) / max(step - self.first, 1) * (self.steps - step)
        self.say(f"step {step}/{self.steps}  {described(entry)}  {clock(left_s)} left")


class LiveProgress(RunProgress):
    """A display that keeps one live line on a terminal."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn(translate("step")),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn(translate("left")),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.task = self.bar.add_task("", total=None, visible=False)
        self.shown = False  # whether a line of `doing` is on the screen

    def __enter__(self) -> Self:
        self._clear()
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        self._clear()
        self.bar.console.print(translate(text), markup=False, highlight=False)

    def doing(self, work: Doing) -> None:
        """Overwrite one line with the progress of the work; remove it when the work is done."""
        self._clear()
        if not work.ends and not self.bar.live.is_started:
            text = translate(str(work))
            self.console.file.write(set_cell_size(text, min(cell_len(text), self.console.width - 1)))
            self.console.file.flush()
            self.shown = True

    def _clear(self) -> None:
        if self.shown:
            self.console.file.write("\r\x1b[K")
            self.console.file.flush()
            self.shown = False

    def start(self, first: int, steps: int | None) -> None:
        self.bar.update(self.task, total=steps, completed=first, visible=True)

    def step(self, entry: Mapping[str, Any]) -> None:
        if "validation_loss_nats" in entry:
            self.say(f"step {entry['step']}  {described(entry)}")
        else:
            self.bar.update(self.task, completed=int(entry["step"]), description=translate(described(entry)))


def progress_for(*, silent: bool = False) -> RunProgress:
    """Return the suitable display: live on a terminal, plain lines elsewhere, none if silent."""
    if silent:
        return RunProgress()
    return LiveProgress() if sys.stderr.isatty() else PlainProgress()
