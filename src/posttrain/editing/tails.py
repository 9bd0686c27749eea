"""Forward passes that begin at the edited layer and at the subject, where a target vector first makes a difference.

A target vector is searched in some 25 steps. In every step the model reads, for each edit, its prompt after several
texts. Nothing below the edited layer depends on the vector, and no token before the subject's last one does, because
attention looks back only. So these are read once: the hidden states that leave the edited layer, to which the vector is
added, and the keys and values of the tokens before in the layers above.

    layers    tokens before the subject's last      subject's last token, rest of the prompt, answer
    upper     keys and values, read once            read in every step
    edited    -                                     its output was read once
    lower     -                                     -

Logits are computed at the answer's positions alone. A trial compares the result with the plain way, in which every row
is read as a whole; models of which it is not true (recurrent layers) are read in the plain way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from posttrain.editing.edits import Row
from posttrain.editing.reading import padded, replaced_forwards
from posttrain.editing.sites import Site, Sites, first_of, replaced
from posttrain.inference.attention import forward, numbers_of
from posttrain.inference.support import reach_of
from posttrain.models.logits import UNFIT

__all__ = ["Known", "PlainTails", "Tails", "Where", "tails_for"]

Where = Literal["value", "state"]
"""Where a vector is added: `value`, the output of the edited matrix, or `state`, the output of its layer."""
Known = dict[tuple[int, Where, int], bool | None]
"""Results of trials, by layer, place and reach: None if rows are read whole, else whether the last layer is `brief`."""

TOLERANCE = 2e-3
"""Largest difference of log-probabilities in the trial, in float32."""
COARSE = 0.25
"""The same limit in half precision."""


class PlainTails:
    """Reads every row as a whole, with a vector added at its subject.

    rows: the texts; asked: for each row, the positions whose logits are wanted; where: `value` or `state`. brief:
    whether the last layer's feed-forward part is computed at these positions only.
    """

    brief = False

    def __init__(self, sites: Sites, site: Site, rows: Sequence[Row], asked: Sequence[Sequence[int]], where: Where):
        self.sites, self.site, self.where = sites, site, where
        self.model: Any = sites.model
        self.ids = padded([row.ids for row in rows], self.model.device)
        width = self.ids.shape[1]
        flat = [i * width + p for i, positions in enumerate(asked) for p in positions]
        self.index = torch.tensor(flat, device=self.model.device)
        self.at = torch.tensor([row.at for row in rows], device=self.model.device)

    @property
    def target(self) -> nn.Module:
        """The module to whose output the vector is added."""
        name = self.site.name if self.where == "value" else self.sites.layers[self.site.layer]
        return self.sites.model.get_submodule(name)

    @contextmanager
    def adding(self, vectors: Tensor, at: Tensor, shape: tuple[int, ...]) -> Iterator[None]:
        """Within this block, vectors (B, D) are added to the module's output at the columns `at` (B,)."""

        def add(_: nn.Module, args: Any, output: Any) -> Any:
            states = first_of(output)
            whole = states.reshape(*shape, states.shape[-1])
            added = torch.zeros_like(whole)
            added[torch.arange(len(at), device=at.device), at] = vectors.to(whole.dtype)
            return replaced(output, (whole + added).reshape(states.shape))

        handle = self.target.register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()

    def logits(self, vectors: Tensor) -> Tensor:
        """Return the logits (N, V) of the asked positions, row by row, with vectors (B, D) added."""
        with self.adding(vectors, self.at, tuple(self.ids.shape)):
            return forward(self.model, self.ids, self.index)

    def narrowed(self, rows: Tensor) -> Self:
        """Return the reading of some of the rows only. rows: their indices, in ascending order."""
        made = copy(self)
        made.ids, made.at = self.ids[rows], self.at[rows]
        made.index = _narrowed(self.index, self.ids.shape[1], rows)
        return made


def _narrowed(index: Tensor, width: int, rows: Tensor) -> Tensor:
    """Return those flat indices of (B, width) that are in some rows, as indices of these rows alone."""
    new = torch.full((int(index.max()) // width + 1,), -1, device=index.device)
    kept = rows[rows < len(new)]
    new[kept] = torch.arange(len(kept), device=index.device)
    at = new[index // width]
    return (at * width + index % width)[at >= 0]


class Tails(PlainTails):
    """Reads each row from its subject's last token on, and in the layers above the edited one alone."""

    def __init__(self, sites: Sites, site: Site, rows: Sequence[Row], asked: Sequence[Sequence[int]], where: Where):
        super().__init__(sites, site, rows, asked, where)
        model, device = self.model, self.model.device
        blocks = [model.get_submodule(name) for name in sites.layers]
        self.block, self.lower = blocks[site.layer], blocks[: site.layer]
        left: list[Any] = []
        values: list[Tensor] = []
        cache = DynamicCache()
        with ExitStack() as stack, torch.no_grad():
            stack.enter_context(self.block.register_forward_hook(lambda m, args, out: left.append(out)))
            stack.enter_context(sites.module(site).register_forward_hook(lambda m, args, out: values.append(out)))
            forward(model, self.ids, torch.zeros(1, dtype=torch.long), past_key_values=cache)
        self.alone = not isinstance(left[0], tuple | list)
        starts = self.at.tolist()
        width = max(1, *starts)
        longest = max(len(row.ids) - start for row, start in zip(rows, starts, strict=True))
        columns = torch.arange(width, device=device)[None] - (width - self.at[:, None])  # (B, P), below 0: padding
        before = columns.clamp_min(0)
        every = torch.arange(len(rows), device=device)[:, None]
        self.past: list[tuple[Tensor, Tensor]] = []
        for number, layer in enumerate(cache.layers):
            if number <= site.layer:  # only its length is looked at
                empty = torch.zeros(1, device=device, dtype=model.dtype).expand(len(rows), 1, width, 1)
                self.past.append((empty, empty))
                continue
            parts = [part.transpose(1, 2)[every, before].transpose(1, 2).clone() for part in (layer.keys, layer.values)]
            self.past.append((parts[0], parts[1]))
        after = self.at[:, None] + torch.arange(longest, device=device)  # (B, Q)
        self.positions = after
        own = after.clamp_max(self.ids.shape[1] - 1)
        self.leaving = first_of(left[0])[every, own].clone()  # (B, Q, D), what leaves the edited layer
        self.value = values[0].reshape(*self.ids.shape, -1)[every[:, 0], self.at].clone()  # (B, D), at the subject
        self.rest = self.ids[every, own]
        causal = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
        seen = [(columns >= 0)[:, None].expand(-1, longest, -1), causal.expand(len(rows), -1, -1)]  # (B, Q, P + Q)
        lowest = torch.finfo(model.dtype).min
        whole = torch.cat(seen, dim=-1)
        self.mask = torch.zeros(whole.shape, dtype=model.dtype, device=device).masked_fill_(~whole, lowest)[:, None]
        flat = [i * longest + p - starts[i] for i, positions in enumerate(asked) for p in positions]
        self.index = torch.tensor(flat, device=device)

    def logits(self, vectors: Tensor) -> Tensor:
        with self._above_edited_layer(self._changed(vectors)):
            return forward(
                self.model,
                self.rest,
                self.index,
                brief=self.brief,
                past_key_values=self._cache(),
                attention_mask=self.mask,
                position_ids=self.positions,
            )

    def _changed(self, vectors: Tensor) -> Tensor:
        """Return what leaves the edited layer with vectors (B, D) added at the subjects, (B, Q, D)."""
        change = vectors.to(self.leaving.dtype)
        if self.where == "value" and self.site.norm:
            norm = self.sites.model.get_submodule(self.site.norm)
            change = norm(self.value + change) - norm(self.value)
        if self.where == "value":
            change = change * self.site.factor
        return torch.cat([self.leaving[:, :1] + change[:, None], self.leaving[:, 1:]], dim=1)

    def narrowed(self, rows: Tensor) -> Self:
        made = copy(self)
        made.at, made.positions, made.mask = self.at[rows], self.positions[rows], self.mask[rows]
        made.leaving, made.value, made.rest = self.leaving[rows], self.value[rows], self.rest[rows]
        made.past = [(keys[rows], values[rows]) for keys, values in self.past]
        made.index = _narrowed(self.index, self.rest.shape[1], rows)
        return made

    def _cache(self) -> DynamicCache:
        """Return a new cache with the keys and values of the tokens before; a forward pass adds to it."""
        cache = DynamicCache()
        for keys, values in self.past:
            layer = DynamicLayer()
            layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
            layer.keys, layer.values = keys, values
            cache.layers.append(layer)
        return cache

    @contextmanager
    def _above_edited_layer(self, leaving: Tensor) -> Iterator[None]:
        """Within this block, the layers below the edited one do nothing, and that one gives `leaving`."""

        def nothing(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return hidden_states if self.alone else (hidden_states,)

        def give(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return leaving if self.alone else (leaving,)

        with replaced_forwards({**dict.fromkeys(self.lower, nothing), self.block: give}):
            yield


def tails_for(
    sites: Sites,
    site: Site,
    rows: Sequence[Row],
    asked: Sequence[Sequence[int]],
    where: Where,
    say: Callable[[str], None],
    known: Known,
) -> PlainTails:
    """Return the fast reading of rows if a trial has shown that it is right, else the plain one.

    known: results of trials, for the greatest length below the rows' at which the configuration changes something (a
    sliding window), too; a new result is added.
    """
    reach = reach_of(numbers_of(sites.model), max(len(row.ids) for row in rows))
    key = (site.layer, where, reach)
    if key not in known:
        why = _problem(sites, site, rows, asked, where, brief=True)
        brief = not why
        if why:
            why = _problem(sites, site, rows, asked, where, brief=False)
        known[key] = None if why else brief
        if why:
            say(f"target vectors are searched over whole rows: {why}")
    brief_or_not = known[key]
    if brief_or_not is None:
        return PlainTails(sites, site, rows, asked, where)
    made = Tails(sites, site, rows, asked, where)
    made.brief = brief_or_not
    return made


def _problem(
    sites: Sites, site: Site, rows: Sequence[Row], asked: Sequence[Sequence[int]], where: Where, *, brief: bool
) -> str:
    """Read the longest rows in both ways with random vectors; return why the fast way is wrong, or ""."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].ids))[:4]  # the longest
    few, some = [rows[i] for i in order], [asked[i] for i in order]
    model: Any = sites.model
    width = model.get_input_embeddings().weight.shape[1]
    try:
        with torch.no_grad():
            plain, fast = (kind(sites, site, few, some, where) for kind in (PlainTails, Tails))
            fast.brief = brief
            draw = torch.Generator().manual_seed(0)
            vectors = torch.randn(len(few), width, generator=draw).to(model.device) * 0.1
            expected, found = (way.logits(vectors).float().log_softmax(-1) for way in (plain, fast))
    except torch.OutOfMemoryError:
        raise
    except UNFIT as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    gap = float((found - expected).abs().max())
    limit = TOLERANCE if model.dtype in (torch.float32, torch.float64) else COARSE
    return "" if gap <= limit * max(1.0, float(expected.std())) else f"log-probabilities differ by {gap:.2g}"
