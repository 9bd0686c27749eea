"""The text of an answer: where it stops, what it says, and which part can be shown while it is generated.

A stop string may be split over tokens, begin inside one, or hold a character with bytes that come one by one, so texts
are compared. `StopWatch` decodes a window of the last tokens after each new one, and the whole answer only if the
window shows a stop string.

Only text that later tokens do not change is shown: a Chinese character or an emoji may be three or four tokens of a
byte-level vocabulary. So after each token the whole answer is decoded again, and its end is held back as long as it may
change. This concerns incomplete characters, spaces (the last ones of an answer are cut off), and words that a tokenizer
that tidies spaces (`do n't` -> `don't`) would join.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["StopWatch", "TextStream", "cut_at_stop", "settled", "spoken"]

MARGIN = 8
"""Number of characters at a window's beginning that may differ from the whole text. The reason is a missing space or an
incomplete character.
"""
BROKEN = "\ufffd"
"""Character that a decoder writes for bytes that are not (yet) a character."""
OPEN, CLOSE = "<think>", "</think>"
TIDIED = 4
"""Number of characters in the longest part that tidying joins to the word before it: ` 've`."""


def cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Return the text before the first stop string, and whether there was one. Empty strings stop nothing."""
    found = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
    return (text[: min(found)], True) if found else (text, False)


class StopWatch:
    """Looks for stop strings in one answer while it grows. `text_of` turns token ids into text."""

    def __init__(self, stops: Sequence[str], text_of: Callable[[list[int]], str]) -> None:
        self.stops = tuple(stop for stop in stops if stop)
        self.text_of = text_of
        self.begin = 0
        """Index of the window's first token."""
        self.reach = max(map(len, self.stops), default=0) + MARGIN
        """Smallest number of characters in the window before a new token, unless it is the whole answer."""

    def met(self, ids: list[int]) -> bool:
        """Return whether the decoded answer holds a stop string. Call it after each new token."""
        if not self.stops:
            return False
        window = self.text_of(ids[self.begin :])
        if any(stop in window for stop in self.stops) and cut_at_stop(self.text_of(ids), self.stops)[1]:
            return True
        if len(window) > 4 * self.reach:
            self._move(ids, window)
        return False

    def _move(self, ids: list[int], window: str) -> None:
        """Move the window's beginning forward, to where the window reads as the end of the longer one.

        No character is broken there. Later tokens change the last characters only, and at least `reach` characters
        stay, so no stop string can appear before the window."""
        for begin in range(len(ids) - 1, self.begin, -1):
            text = self.text_of(ids[begin:])
            if len(text) >= self.reach and not text.startswith(BROKEN) and window.endswith(text):
                self.begin = begin
                return
            if len(text) > 3 * self.reach:
                return


def spoken(text: str) -> str:
    """Return a reply without the thoughts before it and the spaces around it."""
    return text.rsplit(CLOSE, 1)[-1].strip()


def settled(text: str, *, tidies: bool = False) -> str:
    """Return the part of an unfinished answer that does not change any more; "" during a thought. `tidies` says that
    the tokenizer tidies spaces (see above).
    """
    begin = text.lstrip()
    if OPEN.startswith(begin) or (begin.startswith(OPEN) and CLOSE not in begin):
        return ""
    shown = spoken(text).rstrip(BROKEN).rstrip()
    last = shown.rfind(" ")
    return shown[:last] if tidies and last >= 0 and len(shown) - last - 1 <= TIDIED else shown


class TextStream:
    """Takes the token ids of one answer as they grow, and calls `put` with each new piece of its text.

    `text_of` turns token ids into text. An answer with text that changes after all (thoughts with only their end
    marked) begins again on a new line.
    """

    def __init__(
        self, text_of: Callable[[list[int]], str], put: Callable[[str], None], *, tidies: bool = False
    ) -> None:
        self.text_of, self.put, self.tidies = text_of, put, tidies
        self.told = ""

    def add(self, ids: Sequence[int]) -> None:
        """Take the answer so far, as ids, and put out its new settled text."""
        text = settled(self.text_of(list(ids)), tidies=self.tidies)
        if len(text) > len(self.told) or not self.told.startswith(text):
            self.end(text)

    def end(self, text: str) -> None:
        """Put out the missing part of the answer's whole text."""
        if not text.startswith(self.told):
            self.put("\n")
            self.told = ""
        if text != self.told:
            self.put(text[len(self.told) :])
        self.told = text
