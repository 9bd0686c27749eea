"""Stop strings: an answer ends before the first of them, wherever tokens and characters are cut.

A string may be split over tokens, begin inside one, or hold a character whose bytes come one by one, so texts are
compared. `StopWatch` decodes a window of the last tokens after each new one, and the whole answer only when the window
shows a stop string.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["StopWatch", "cut_at_stop"]

MARGIN = 8
"""Characters at a window's beginning that may be different in the whole: a space that is left out, a torn character."""
BROKEN = "\ufffd"
"""What a decoder writes for bytes that are no character (yet)."""


def cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string, and whether there was one. Empty strings stop nothing."""
    found = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
    return (text[: min(found)], True) if found else (text, False)


class StopWatch:
    """Looks for stop strings in one answer as it grows. text_of: token ids -> text."""

    def __init__(self, stops: Sequence[str], text_of: Callable[[list[int]], str]) -> None:
        self.stops = tuple(stop for stop in stops if stop)
        self.text_of = text_of
        self.begin = 0
        """The window's first token."""
        self.reach = max(map(len, self.stops), default=0) + MARGIN
        """Characters that the window holds at least before a new token, unless it is the whole answer."""

    def met(self, ids: list[int]) -> bool:
        """Whether the decoded answer holds a stop string; to be asked after each new token."""
        if not self.stops:
            return False
        window = self.text_of(ids[self.begin :])
        if any(stop in window for stop in self.stops) and cut_at_stop(self.text_of(ids), self.stops)[1]:
            return True
        if len(window) > 4 * self.reach:
            self._move(ids, window)
        return False

    def _move(self, ids: list[int], window: str) -> None:
        """Begin the window later: where it reads as the end of the longer window and no character is torn. Later tokens
        change the last characters only, and at least `reach` of them stay, so no stop string can appear before the
        window."""
        for begin in range(len(ids) - 1, self.begin, -1):
            text = self.text_of(ids[begin:])
            if len(text) >= self.reach and not text.startswith(BROKEN) and window.endswith(text):
                self.begin = begin
                return
            if len(text) > 3 * self.reach:
                return
