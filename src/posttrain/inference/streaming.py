"""An answer shown while it is made: only what later tokens will not change.

A character of Chinese or an emoji may be three or four tokens of a byte-level vocabulary, a word half of one; decoded
too early they are question marks. So after each token the whole answer is decoded anew, and its end is held back as
long as it may still become something else: torn characters, spaces (an answer's last ones are cut off), and what a
tokenizer that tidies spaces (`do n't` -> `don't`) would draw together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from posttrain.inference.encoding import spoken
from posttrain.inference.stops import BROKEN

__all__ = ["TextStream", "settled"]

OPEN, CLOSE = "<think>", "</think>"
TIDIED = 4
"""The longest end of a word that tidying draws to the word before: ` 've`."""


def settled(text: str, *, tidies: bool = False) -> str:
    """What of an unfinished answer will stay as it is; nothing while it thinks. tidies: see above."""
    begin = text.lstrip()
    if OPEN.startswith(begin) or (begin.startswith(OPEN) and CLOSE not in begin):
        return ""
    shown = spoken(text).rstrip(BROKEN).rstrip()
    last = shown.rfind(" ")
    return shown[:last] if tidies and last >= 0 and len(shown) - last - 1 <= TIDIED else shown


class TextStream:
    """Told the token ids of one answer as they grow, it puts out its text piece by piece.

    text_of: token ids -> text; put: told each new piece. An answer that is rewritten after all (thoughts of which only
    the end is marked) begins again on a new line.
    """

    def __init__(
        self, text_of: Callable[[list[int]], str], put: Callable[[str], None], *, tidies: bool = False
    ) -> None:
        self.text_of, self.put, self.tidies = text_of, put, tidies
        self.told = ""

    def add(self, ids: Sequence[int]) -> None:
        """The answer so far."""
        text = settled(self.text_of(list(ids)), tidies=self.tidies)
        if len(text) > len(self.told) or not self.told.startswith(text):
            self.end(text)

    def end(self, text: str) -> None:
        """The answer is this: put out what is missing."""
        if not text.startswith(self.told):
            self.put("\n")
            self.told = ""
        if text != self.told:
            self.put(text[len(self.told) :])
        self.told = text
