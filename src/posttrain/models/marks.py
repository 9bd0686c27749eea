"""Marks on token ids, for parts that change tokens by their place in the prompt.

    marked id = id + 2^24 mark,   mark 0: not said, 1: left alone, 2 + g: changed by the part's group g

A forward pass of ids does not show where a prompt ends: in training the answer follows in the same row, in decoding
rows are padded on the left, and where rows share beginnings, a pass holds pieces of several prompts. So whoever knows
the prompts marks their tokens, and the model takes the marks off before it reads the ids. Two tokens with equal marked
ids after equal tokens are changed alike. Therefore everything that shares beginnings (`inference/tree.py`,
`inference/refill.py`, `models/line.py`) stays right: it compares marked ids. Generated tokens and padding have no mark.

A pass that says of no token where it stands, and that continues no earlier pass, is an error. In a model with a head
for texts the whole text is the prompt, and no marks are needed.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from posttrain.errors import PosttrainError, Problem
from posttrain.models.added import Added, added_to
from posttrain.models.logits import core_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["ALONE", "FIRST", "Marked", "Places", "bare", "mark", "mark_prompts", "marked_part", "whole_prompts"]

SHIFT = 24
"""Number of bits of a token id. `inference/tree.py` holds marked ids in 32 bits, so 8 bits are left for marks."""
ALONE = 1
"""Mark of a token that is left alone."""
FIRST = 2
"""Mark of a token that the part's first group changes."""
MEMORIES = ("past_key_values", "cache_params", "state")
"""Names of the arguments in which models take the memory of earlier passes."""


class Places(NamedTuple):
    """What a forward pass changes. `shape` is (B, T). `at` holds, by group, flat indices in (B, T), in groups that have
    some.
    """

    shape: torch.Size
    at: list[tuple[int, Tensor]]


class Marked(Added):
    """A part that changes tokens by their place in the prompt. A subclass says which mark a place has."""

    def __init__(self, model: PreTrainedModel, settings: Mapping[str, Any]) -> None:
        super().__init__(model, settings)
        self.whole = model.get_output_embeddings() is None
        """Whether all tokens of a pass that continues no other are the prompt."""
        self.places: Places | None = None
        """Those of the pass that runs now; None outside of a pass."""
        self._opened: int | None = None  # id of the module whose pass runs; the base model runs within the model

    @abstractmethod
    def marks(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the marks of tokens. `before` and `after` say how many of the prompt's tokens are before and after a
        token; `after` is negative for tokens that follow the prompt, which are left alone.
        """

    def connect(self, model: PreTrainedModel) -> None:
        """Take the marks off where ids come into the model."""
        for module in {model, model.base_model}:
            module.register_forward_pre_hook(self.enter, with_kwargs=True)
            module.register_forward_hook(self.leave, always_call=True)

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Take the marks off and remember them for the layers. Raise PosttrainError for a pass without marks."""
        if self._opened not in (None, id(module)):
            return None
        self._opened, self.places = id(module), None
        ids = args[0] if args else kwargs.get("input_ids")
        if self.on:
            named = kwargs
            if len(args) > 1:
                named = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
            self.places = _places(self._found(ids, named))
        if not isinstance(ids, Tensor):
            return None
        clean = ids - (ids >> SHIFT << SHIFT)
        return ((clean, *args[1:]), kwargs) if args else (args, kwargs | {"input_ids": clean})

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """End the pass that `enter` began. It runs after an error, too."""
        if self._opened == id(module):
            self._opened = self.places = None

    def _found(self, ids: Any, kwargs: Mapping[str, Any]) -> Tensor:
        """Return the marks (B, T) of a pass. Raise PosttrainError if it does not say where its tokens stand."""
        cause = "a forward pass gets embeddings, and no ids that could be marked"
        if isinstance(ids, Tensor):
            found, goes_on = ids >> SHIFT, _continues(kwargs)
            if self.whole and not goes_on:
                return self._whole(ids, kwargs.get("attention_mask"))
            guesses = self.whole and ids.shape[1] > 1
            if bool(found.any()) or (goes_on and not guesses):
                return found
            cause = "a forward pass does not say where its prompts end"
            if guesses:
                cause = "a prompt is read in pieces, or several tokens of an answer are guessed at once"
        mend = "use posttrain's own verbs and functions, or read whole prompts: models.marks.whole_prompts(model)"
        raise PosttrainError(Problem(self.kind, cause, mend))

    def _whole(self, ids: Tensor, mask: Any) -> Tensor:
        """Return the marks of rows that are prompts and padding."""
        real = mask.bool() if isinstance(mask, Tensor) and mask.shape == ids.shape else torch.ones_like(ids).bool()
        before = real.cumsum(1) - 1
        return torch.where(real, self.marks(before, real.sum(1, keepdim=True) - 1 - before), ALONE)

    def there(self, states: Tensor) -> list[tuple[int, Tensor]]:
        """Return the groups of the pass and their flat indices in states (B, T, d). Raise PosttrainError if the layer
        runs outside of a pass of the model, or on states that are laid out otherwise.
        """
        if not self.on:
            return []
        if self.places is None:
            cause = "a layer runs outside of a forward pass of the model (layers recomputed by the model's own code?)"
            raise PosttrainError(Problem(self.kind, cause, "switch activation checkpointing off"))
        if states.shape[:2] != self.places.shape:
            cause = f"a layer's states are {tuple(states.shape)}, and the ids {tuple(self.places.shape)}"
            raise PosttrainError(Problem(self.kind, cause, "use another tuner for this model"))
        return self.places.at


def _continues(kwargs: Mapping[str, Any]) -> bool:
    """Return whether a pass is given a memory of earlier tokens."""
    from transformers.cache_utils import Cache

    for memory in (kwargs.get(name) for name in MEMORIES):
        if isinstance(memory, Cache):
            try:
                return memory.get_seq_length() > 0
            except ValueError:  # none of its layers counts tokens
                return bool(memory.has_previous_state())
        if memory is not None:
            return True
    return False


def _places(marks: Tensor) -> Places:
    """Turn marks (B, T) into indices by group."""
    flat = marks.flatten()
    at = (flat >= FIRST).nonzero()[:, 0]
    groups = flat[at] - FIRST
    return Places(marks.shape, [(group, at[groups == group]) for group in sorted(set(groups.tolist()))])


def marked_part(model: nn.Module) -> Marked | None:
    """Return the part that needs marks, of a model or of a model in a wrapper; None if there is none."""
    found = added_to(core_of(model))
    return found if isinstance(found, Marked) else None


def mark(model: nn.Module, input_ids: Tensor, prompts: Tensor) -> Tensor:
    """Return rows of ids (B, T), marked if the model has a part that needs it. `prompts` is (B,): the number of tokens
    of each row's prompt, with which the row begins. Raise PosttrainError for a row without a prompt.
    """
    part = marked_part(model)
    if part is None:
        return input_ids
    if bool((prompts < 1).any()):
        cause = "changes tokens of the prompt, and a row has no prompt, or several answers"
        raise PosttrainError(Problem(part.kind, cause, "give rows of a prompt and one answer, or use another tuner"))
    before = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    marks = part.marks(before, prompts.to(input_ids.device)[:, None] - 1 - before)
    return input_ids + (marks << SHIFT)


def mark_prompts(model: nn.Module, prompts: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
    """Return prompts, marked if the model has a part that needs it."""
    part = marked_part(model)
    if part is None:
        return prompts
    made: list[list[int]] = []
    for ids in prompts:
        before = torch.arange(len(ids))
        marks = part.marks(before, len(ids) - 1 - before) << SHIFT
        made.append([token + own for token, own in zip(ids, marks.tolist(), strict=True)])
    return made


@contextmanager
def whole_prompts(model: nn.Module) -> Iterator[None]:
    """Within this block, the ids of a forward pass that continues no other are whole prompts, padded by the attention
    mask. `model.generate` of transformers reads a prompt in this way.
    """
    part = marked_part(model)
    if part is None:
        yield
        return
    was, part.whole = part.whole, True
    try:
        yield
    finally:
        part.whole = was


@contextmanager
def bare(model: nn.Module) -> Iterator[None]:
    """Within this block, a part that needs marks is left out. Trials of what a model can read run so, since marks go
    with the tokens whatever the way of reading is.
    """
    part = marked_part(model)
    if part is None:
        yield
        return
    was, part.on = part.on, False
    try:
        yield
    finally:
        part.on = was
