"""An answer shown while it is generated: only text that later tokens do not change.

A Chinese character or an emoji may be three or four tokens of a byte-level vocabulary. So after each token the whole
answer is decoded anew, and its end is held back as long as it may change: torn characters, spaces (the last ones of an
answer are cut off), and what a tokenizer that tidies spaces (`do n't` -> `don't`) would join.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from posttrain.inference.encoding import spoken
from posttrain.inference.stops import BROKEN

__all__ = ["TextStream", "settled"]

OPEN, CLOSE = "<think>", "</think>"
TIDIED = 4
"""The longest part that tidying joins to the word before: ` 've`."""


def settled(text: str, *, tidies: bool = False) -> str:
    """The part of an unfinished answer that does not change any more; nothing while it thinks. tidies: see above."""
    begin = text.lstrip()
    if OPEN.startswith(begin) or (begin.startswith(OPEN) and CLOSE not in begin):
        return ""
    shown = spoken(text).rstrip(BROKEN).rstrip()
    last = shown.rfind(" ")
    return shown[:last] if tidies and last >= 0 and len(shown) - last - 1 <= TIDIED else shown


class TextStream:
    """Takes the token ids of one answer as they grow, and gives `put` each new piece of its text. text_of: token ids ->
    text. An answer whose text changes after all (thoughts of which only the end is marked) begins again on a new line.
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
        """Put out what is missing of the answer's whole text."""
        if not text.startswith(self.told):
            self.put("\n")
            self.told = ""
        if text != self.told:
            self.put(text[len(self.told) :])
        self.told = text
