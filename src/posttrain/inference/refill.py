"""A running batch that is refilled: finished rows leave, waiting prompts join, shared prefixes are read once.

Rows are padded on the left, so every row's last token is in the last column and one slice of logits serves all rows.

    budget     Rows x (the largest final number of tokens in one of the rows) stays within `tokens`. One row may always
               run.
    leaving    An answer is reported when it ends. Its row leaves when a quarter of the rows have ended (or all), or
               when the room for new columns is used up, because leaving copies the rows that stay.
    joining    At the same moments as many waiting prompts join as the budget allows, with prompts of one group and of
               similar length in one forward pass. Then all parts are copied once into a new buffer, without unused
               columns.
    prefixes   A group's prefix is read once, in a batch of one row, and kept until the last prompt of the group has
               joined.

A row that is n tokens shorter than the longest one in its forward pass reads the last n tokens of the prefix again,
instead of padding, so rows have no holes.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache

from posttrain.inference.kv_cache import Part, RunningCache, expanded
from posttrain.inference.protocol import Usage
from posttrain.inference.sampling import Sampling, pick
from posttrain.inference.tree import Tree
from posttrain.models.logits import core_of
from posttrain.models.memory import is_large, trim

__all__ = ["Answers", "Group", "RefilledBatch", "groups_of"]

LEAVE = 0.25
"""Ended rows leave when they are at least this share of the batch."""
ROOM = 64
"""Largest number of columns for new tokens in a new buffer, which takes memory for them."""
EVEN = 0.75
"""A prompt with less than this share of the longest prompt's tokens waits for the next forward pass. This holds only if
the forward pass already has `PASS` tokens.
"""
PASS = 512
"""Number of tokens in a forward pass from which on short prompts wait. For fewer tokens, padding costs less than
another forward pass.
"""
COST = 64
"""Number of tokens that a group must save, because its prefix needs one more forward pass."""


class Group(NamedTuple):
    """Indices of prompts with equal first `prefix` tokens; 0 if they share nothing. Every prompt has more tokens."""

    prefix: int
    rows: list[int]


class _Best(NamedTuple):
    """The best grouping of prompts below a node: the groups, the other prompts, their number, and the saved tokens."""

    groups: list[Group]
    alone: list[int]
    size: int
    saved: int


def groups_of(prompts: Sequence[Sequence[int]]) -> list[Group]:
    """Return the prompts in groups that share a prefix, so that one level of sharing saves (nearly) the most tokens.

    Longest prompts come first, among the groups and within them. At each node of the prefix tree, the branches keep
    their own groups or join one group at the node.
    """
    tree = Tree([(prompt, (0,)) for prompt in prompts])
    best: list[_Best] = [_Best([], [], 0, 0)] * len(tree.end)
    for node in range(len(tree.end) - 1, -1, -1):
        ending = [_Best([], [row], 1, 0) for row, _, _ in tree.asked[node]]
        best[node] = _joined(tree.end[node], [*ending, *(best[child] for child in tree.children[node])])
    found = [Group(min(length, *(len(prompts[row]) - 1 for row in rows)), rows) for length, rows in best[0].groups]
    for rows in (best[0].alone, *(group.rows for group in found)):
        rows.sort(key=lambda row: (-len(prompts[row]), row))
    found += [Group(0, best[0].alone)] if best[0].alone else []
    return sorted(found, key=lambda group: (-len(prompts[group.rows[0]]), group.rows[0]))


def _joined(length: int, branches: Sequence[_Best]) -> _Best:
    """Group branches that share `length` tokens and gain more from this prefix than from their own groups."""
    joined = [branch for branch in branches if branch.saved <= branch.size * length]
    apart = [branch for branch in branches if branch.saved > branch.size * length]
    members = sum(branch.size for branch in joined)
    together = (members - 1) * length - COST if members > 1 else 0
    groups: list[Group] = []
    if together > sum(branch.saved for branch in joined):
        rows = [row for branch in joined for _, rows in [(0, branch.alone), *branch.groups] for row in rows]
        groups = [Group(length, rows)]
    else:
        apart, together = list(branches), 0
    return _Best(
        groups + [group for branch in apart for group in branch.groups],
        [row for branch in apart for row in branch.alone],
        sum(branch.size for branch in branches),
        together + sum(branch.saved for branch in apart),
    )


class Answers:
    """The answers so far. `limits` is the largest number of tokens of each answer. `met` returns whether an answer's
    tokens end it. `on_done` gets each prompt's index, its tokens and whether the answer stopped by itself.
    """

    def __init__(
        self,
        limits: Sequence[int],
        stop: frozenset[int],
        sampling: Sampling,
        *,
        met: Callable[[int, list[int]], bool],
        on_done: Callable[[int, list[int], bool], None],
    ) -> None:
        self.limits, self.stop, self.sampling = limits, stop, sampling
        self.met, self.on_done = met, on_done
        self.said: dict[int, list[int]] = {}
        self._draws: dict[int, list[float]] = {}

    def _uniform(self, row: int) -> float:
        """Return the number that decides the row's next token."""
        if self.sampling.temperature == 0:
            return 0.0
        if row not in self._draws:
            self._draws[row] = self.sampling.draws(row, self.limits[row])
        return self._draws[row][len(self.said.get(row, ()))]

    def next(self, rows: Sequence[int], alive: Sequence[bool], logits: Tensor) -> tuple[Tensor, list[bool]]:
        """Pick the next tokens from logits (B, V), add them to unfinished answers, and return which answers go on."""
        numbers = [self._uniform(row) if live else 0.0 for row, live in zip(rows, alive, strict=True)]
        tokens = pick(logits, self.sampling, numbers)
        taken = zip(rows, tokens.tolist(), alive, strict=True)
        return tokens, [live and self._take(row, token) for row, token, live in taken]

    def _take(self, row: int, token: int) -> bool:
        """Add a token to a row's answer. Return False if that ended the answer."""
        said = self.said.setdefault(row, [])
        ended = token in self.stop
        if not ended:
            said.append(token)
            ended = self.met(row, said)
        if not ended and len(said) < self.limits[row]:
            return True
        self._draws.pop(row, None)
        self.on_done(row, self.said.pop(row), ended)
        return False


class Rows(NamedTuple):
    """Rows of a batch. They have a cache, the indices of prompts, the numbers of tokens in the cache, the tokens to
    read next (B,), and whether each row goes on.
    """

    cache: Cache
    numbers: list[int]
    lengths: list[int]
    tokens: Tensor
    alive: list[bool]

    def part(self) -> Part:
        """Return the rows that go on, for a joint cache."""
        keep = None if all(self.alive) else torch.tensor([i for i, live in enumerate(self.alive) if live])
        return Part(self.cache, keep)


class RefilledBatch:
    """Answers prompts in a batch that is refilled. The model's cache must be of a kind that can be cut and joined."""

    def __init__(
        self, model: Any, prompts: Sequence[Sequence[int]], answers: Answers, *, pad_id: int, tokens: int, usage: Usage
    ) -> None:
        self.model, self.prompts, self.answers = model, prompts, answers
        self.pad_id, self.budget, self.usage = pad_id, tokens, usage
        self.device: torch.device = core_of(model).device
        parameters = inspect.signature(core_of(model).forward).parameters
        self.takes_positions = "position_ids" in parameters
        self.keep = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        self.large = self.device.type == "cpu" and is_large(model)
        self.prefix: Cache | None = None

    def run(self, groups: Sequence[Group]) -> None:
        """Answer the prompts of all groups, which begin in this order."""
        waiting = deque((group, row) for group in groups for row in group.rows)
        rows: Rows | None = None
        mask, room = torch.empty(0), 0
        while waiting or rows is not None:
            if rows is None or not room or rows.alive.count(False) >= LEAVE * len(rows.alive):
                rows, mask, room = self._reshaped(rows, waiting)
            if rows is not None:
                room -= 1
                logits = self._forward(rows.tokens[:, None], mask[:, : mask.shape[1] - room], rows.cache)
                rows = self._next(rows._replace(lengths=[length + 1 for length in rows.lengths]), logits)

    def _final(self, row: int) -> int:
        """Return the largest number of tokens that a row may finally have."""
        return len(self.prompts[row]) + self.answers.limits[row]

    def _reshaped(self, rows: Rows | None, waiting: deque[tuple[Group, int]]) -> tuple[Rows | None, Tensor, int]:
        """Return the rows that go on and the rows that join in one cache, its mask, and the number of new columns. The
        mask has columns for new tokens."""
        parts = [rows] if rows is not None and any(rows.alive) else []
        running = [n for part in parts for n, live in zip(part.numbers, part.alive, strict=True) if live]
        while waiting:
            taken = self._taken(running, waiting)
            if not taken:
                break
            part = self._prefilled(waiting[0][0], taken)
            for _ in taken:
                waiting.popleft()
            if any(part.alive):
                parts.append(part)
                running += [n for n, live in zip(part.numbers, part.alive, strict=True) if live]
        if not parts:
            return None, torch.empty(0), 0
        lengths = [n for part in parts for n, live in zip(part.lengths, part.alive, strict=True) if live]
        width = max(lengths)
        room = min(ROOM, max(self._final(row) - length for row, length in zip(running, lengths, strict=True)))
        held = [part.part() for part in parts]
        tokens = torch.cat(
            [p.tokens if h.rows is None else p.tokens[h.rows.to(self.device)] for p, h in zip(parts, held, strict=True)]
        )
        cache = RunningCache(held, width, room)
        if self.large:
            trim()  # the parts' small blocks fragment the heap
        column = torch.arange(width + room, device=self.device)
        mask = (column >= width - torch.tensor(lengths, device=self.device)[:, None]).long()  # (B, width + room)
        return Rows(cache, running, lengths, tokens, [True] * len(running)), mask, room

    def _taken(self, running: list[int], waiting: deque[tuple[Group, int]]) -> list[int]:
        """Return as many waiting prompts of one group, from the front, as the budget allows with the running rows."""
        group, first = waiting[0]
        most = max((self._final(row) for row in running), default=0)
        widest = len(self.prompts[first]) - group.prefix
        taken: list[int] = []
        for other, row in waiting:
            most = max(most, self._final(row))
            short = len(self.prompts[row]) - group.prefix < EVEN * widest and len(taken) * widest >= PASS
            if other is not group or short or (len(running) + len(taken) + 1) * most > self.budget:
                break
            taken.append(row)
        return taken or ([] if running else [waiting[0][1]])

    def _prefilled(self, group: Group, numbers: list[int]) -> Rows:
        """Read prompts of one group and pick their first tokens. Before the first prompt, read the group's prefix."""
        if group.prefix and numbers[0] == group.rows[0]:
            self._read_prefix(group)
        lengths = [len(self.prompts[n]) for n in numbers]
        width = max(lengths)
        whole = [[self.pad_id] * (width - len(self.prompts[n])) + list(self.prompts[n]) for n in numbers]
        padded = torch.tensor(whole, device=self.device)
        pads = width - torch.tensor(lengths)
        mask = (torch.arange(width) >= pads[:, None]).long().to(self.device)  # (B, T)
        cache = DynamicCache()
        if self.prefix is not None:
            cache = expanded(self.prefix, pads)
            self.usage.shared_tokens += int((group.prefix - pads).clamp_min(0).sum())
        if numbers[-1] == group.rows[-1]:
            self.prefix = None
        logits = self._forward(padded[:, group.prefix :], mask, cache)
        self.usage.prompt_tokens += len(numbers) * (width - group.prefix)
        return self._next(Rows(cache, numbers, lengths, padded[:, -1], [True] * len(numbers)), logits)

    def _read_prefix(self, group: Group) -> None:
        ids = torch.tensor([list(self.prompts[group.rows[0]][: group.prefix])], device=self.device)
        self.prefix = DynamicCache()
        self._forward(ids, torch.ones_like(ids), self.prefix)
        self.usage.prompt_tokens += group.prefix
        self.usage.shared_prefixes += 1
        self.usage.shared_tokens -= group.prefix

    def _next(self, rows: Rows, logits: Tensor) -> Rows:
        tokens, alive = self.answers.next(rows.numbers, rows.alive, logits)
        return rows._replace(tokens=tokens, alive=alive)

    def _forward(self, ids: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        """Return logits (B, V) after the last of `ids` (B, T), which are the last columns of `mask`."""
        positions = {}
        if self.takes_positions:
            positions["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        out = self.model(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **positions, **self.keep
        )
        return out.logits[:, -1]
