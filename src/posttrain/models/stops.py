"""The tokens at which a model's generation stops, kept by its tokenizer, which does not know all of them itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["keep_stops", "stops_of"]

_stops: WeakKeyDictionary[PreTrainedTokenizerBase, frozenset[int]] = WeakKeyDictionary()


def keep_stops(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> None:
    """Remember the ids at which the generation of the tokenizer's model stops."""
    _stops[tokenizer] = frozenset(ids)


def stops_of(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The remembered ids; none for a tokenizer that was loaded without a model."""
    return _stops.get(tokenizer, frozenset())
