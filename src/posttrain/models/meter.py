"""Progress of long work: the code that does the work counts with a `Meter`; the code that shows progress listens.

Generating replay, measuring Fisher information and searching a learning rate happen deep below the function that a user
has called. A training or a study calls `listening` and shows the reports that it gets. Without a listener nothing
happens.

    with Meter("measuring Fisher information", rows, "rows") as meter:
        for row in ...:
            meter.more(1, tokens=len(row))

Ctrl-C in such work becomes Interrupted, which names the work and says that nothing of it is kept. Within
`counting_tensors` a Meter replaces the bar on which transformers counts the tensors that it loads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, NamedTuple

from posttrain.errors import Interrupted, Problem

__all__ = [
    "KNOWN",
    "MOMENT_S",
    "Doing",
    "Listener",
    "Meter",
    "clock",
    "counted",
    "counting_tensors",
    "listener",
    "listening",
    "tick",
]

MOMENT_S = 1.0
"""Seconds. Frequent work that ends sooner is not reported."""
OFTEN_S = 0.1
"""Smallest number of seconds between two reports."""
KNOWN = 0.05
"""Smallest share of the pieces that must be done before the remaining time is estimated from pieces."""
KNOWN_PIECES = 8
"""Smallest number of pieces that must be done before this estimate, if pieces end at different times."""
SURE_S = 3.0
"""Seconds of work before the remaining time is estimated; for the estimate from tokens, seconds since the first one."""
BAR = "Loading weights"
"""Name of the bar on which transformers counts tensors (core_model_loading.py)."""


class Doing(NamedTuple):
    """Progress of one piece of work.

    `done` and `total` count pieces, which are called `unit`. `wall_s` is the time so far in seconds. `tokens` counts
    tokens that were read or written. `left_s` is the remaining time in seconds, None while unknown; `at_most` says that
    it is an upper bound. `ends` says that the work has ended or failed.
    """

    what: str
    done: int
    total: int
    unit: str
    wall_s: float = 0.0
    tokens: int = 0
    left_s: float | None = None
    at_most: bool = False
    ends: bool = False

    @property
    def begins(self) -> bool:
        """Whether nothing is done yet."""
        return not self.done and not self.tokens and not self.ends

    def __str__(self) -> str:
        columns = [f"{self.what}: {self.done:,}/{self.total:,} {self.unit}"]
        if self.tokens and self.wall_s > 0:
            columns.append(f"{self.tokens / self.wall_s:,.0f} tokens/s")
        if self.left_s is not None and not self.ends:
            columns.append(f"{'at most ' if self.at_most else ''}{clock(self.left_s)} left")
        return "  ".join(columns)


Listener = Callable[[Doing], None]

_listener: ContextVar[Listener | None] = ContextVar("posttrain_listener", default=None)
_running: ContextVar[Meter | None] = ContextVar("posttrain_meter", default=None)


def listener() -> Listener | None:
    """Return the current listener; None if there is none."""
    return _listener.get()


def tick() -> Callable[[int, Sequence[int]], None] | None:
    """Return the function that decoding calls for each token; None if no Meter is running."""
    meter = _running.get()
    return meter.token if meter is not None else None


@contextmanager
def listening(to: Listener | None) -> Iterator[None]:
    """Within this block, `to` gets the reports of progress instead of any other listener."""
    before = _listener.set(to)
    try:
        yield
    finally:
        _listener.reset(before)


class Meter:
    """A counter for one piece of work.

    `most_tokens` is an upper bound of the tokens, for pieces that end at different times. `kept` states what is kept
    after an interruption; None leaves KeyboardInterrupt unchanged. Work that takes fewer seconds than `after_s` is not
    reported. `already` pieces were done before.
    """

    def __init__(
        self,
        what: str,
        total: int,
        unit: str,
        *,
        most_tokens: int | None = None,
        kept: str | None = "nothing of it is kept, the same command begins it anew",
        after_s: float = 0.0,
        already: int = 0,
    ) -> None:
        self.what, self.total, self.unit, self.most_tokens, self.kept = what, total, unit, most_tokens, kept
        self.after_s = after_s
        self.already = self.done = already
        self.tokens = 0
        self.began = self.told = time.monotonic()
        self.first = (self.began, 0)  # time of the first tokens, and their number

    def __enter__(self) -> Meter:
        self._before = _running.set(self)
        try:
            self._tell()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _running.reset(self._before)
        self.done = self.total if error is None else self.done
        try:
            self._tell(ends=True)
        finally:
            if isinstance(error, KeyboardInterrupt) and self.kept is not None:
                where = f"{self.done:,} of {self.total:,} {self.unit}"
                raise Interrupted(Problem("", f"stopped while {self.what} ({where})", self.kept)) from error

    def more(self, done: int = 0, *, tokens: int = 0) -> None:
        """Count pieces that are done, and tokens that were read or written."""
        self.done += done
        if tokens and not self.tokens:
            self.first = (time.monotonic(), tokens)
        self.tokens += tokens
        if self.done < self.total and time.monotonic() - self.told >= OFTEN_S:
            self._tell()

    def piece(self, index: int, piece: object) -> None:
        """Count one piece: for `on_done` and `on_answer` of decoding."""
        self.more(1)

    def token(self, index: int, ids: Sequence[int]) -> None:
        """Count one token: for `on_token` of decoding."""
        self.more(tokens=1)

    def again(self) -> None:
        """Start again at zero, because the work done so far is of no use."""
        self.done, self.tokens = self.already, 0
        self.began = time.monotonic()
        self.first = (self.began, 0)

    def _tell(self, *, ends: bool = False) -> None:
        told = _listener.get()
        now = time.monotonic()
        if told is None or now - self.began < self.after_s:
            return
        self.told = now
        wall_s = now - self.began
        left_s, at_most = None, False
        many = KNOWN_PIECES if self.most_tokens is not None else 1
        now_done = self.done - self.already
        if wall_s >= SURE_S and now_done >= max(many, KNOWN * (self.total - self.already)):
            left_s = wall_s / now_done * (self.total - self.done)
        since, before = self.first
        if self.most_tokens is not None and self.told - since >= SURE_S and self.tokens > before:
            most_s = (self.told - since) / (self.tokens - before) * max(self.most_tokens - self.tokens, 0)
            left_s, at_most = (left_s, False) if left_s is not None and left_s < most_s else (most_s, True)
        told(Doing(self.what, self.done, self.total, self.unit, wall_s, self.tokens, left_s, at_most, ends))


def clock(seconds: float) -> str:
    """Return seconds as text: 42 s, 3 min 05 s or 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


@contextmanager
def counting_tensors() -> Iterator[None]:
    """Within this block, transformers shows no bars, and the listener gets the number of loaded tensors."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    before = logging.set_tqdm_hook(_hook)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


def _hook(factory: Callable[..., Any], args: tuple[Any, ...], settings: dict[str, Any]) -> Any:
    return counted(*args) if settings.get("desc") == BAR else factory(*args, **settings)


def counted(tensors: Collection[Any], desc: str = "") -> Iterator[Any]:
    """Yield the tensors of a model one by one, counted by a Meter. `desc` is not used; tqdm takes the name of a bar in
    its position.
    """
    with Meter("loading weights", len(tensors), "tensors", after_s=MOMENT_S, kept=None) as meter:
        for tensor in tensors:
            yield tensor
            meter.more(1)
