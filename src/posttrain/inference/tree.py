"""The prefix tree of scored texts, and the order in which a model reads it: every shared token once.

A request asks how likely its continuation is after its context. The model reads `context + continuation[:-1]` as one
row. Rows with equal beginnings share a path from the root of a radix tree, so the nodes' tokens are the fewest that any
arrangement can forward (`least_tokens`). A plan walks the tree depth first:

    Grow    a stretch that many rows share is read once, into the key-value cache (a stack that holds one path)
    Batch   nodes below it are read after that cache
    Crop    the cache is cut back to where the next branch leaves

A `Divide` function decides what a batch holds: `in_lines` of `inference/bins.py` puts whole subtrees into one line of
tokens; `in_rows`, for models that cannot read that, gives every branch its own row.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Asked",
    "Batch",
    "Crop",
    "Grow",
    "Ints",
    "Layout",
    "Limits",
    "Step",
    "Tree",
    "ask",
    "in_rows",
    "lay_out",
    "plan",
]

Ints: TypeAlias = NDArray[np.int64]

TOKEN = np.dtype(">u4")
"""Type of tokens in rows: big-endian, so that comparing bytes compares tokens."""
CACHE_TOKENS = 96
"""A stretch is read into the cache if reading it in every row costs more tokens than this. This takes its own forward
pass.
"""
SIMILAR = 0.9
"""Rows share a batch only down to this share of the longest one's length, once the batch has `FULL_ENOUGH` tokens."""
FULL_ENOUGH = 1024
"""Number of tokens from which on a batch is full enough."""


class Limits(NamedTuple):
    """Limits of a plan.

    `grow` says that prefixes may be read into a cache. `batch_tokens` is the largest number of tokens per batch, which
    counts the prefix's tokens in each row. `answers` is the largest number of tokens with logits per batch.
    """

    grow: bool = True
    batch_tokens: int = 16384
    answers: int = 1 << 30


class Grow(NamedTuple):
    """A step that reads these nodes, one below the other, into the cache."""

    nodes: list[int]


class Crop(NamedTuple):
    """A step that removes what the cache holds after `length` tokens."""

    length: int


class Batch(NamedTuple):
    """A step that reads after the cache: one line of nodes in preorder, or rows of nodes one below the other."""

    rows: list[list[int]]


Step: TypeAlias = Grow | Crop | Batch
Deeper: TypeAlias = list[tuple[int, list[int]]]


class Tree:
    """A radix tree over the rows of (context ids, continuation ids); node 0 is the empty root.

    With `share=False` every distinct row is its own branch. Nodes are numbered in preorder: a parent before its
    children, a subtree in one stretch. Requests without a continuation are in no node.
    """

    def __init__(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, share: bool = True) -> None:
        rows: dict[bytes, list[int]] = {}
        for i, (context, continuation) in enumerate(pairs):
            if len(continuation):
                row = array("I", context)
                row.extend(continuation[:-1] if isinstance(continuation, list) else list(continuation)[:-1])
                rows.setdefault(row.tobytes(), []).append(i)
        keyed = sorted((np.frombuffer(row, np.uint32).astype(TOKEN).tobytes(), row) for row in rows)
        self.rows = [row for row, _ in keyed]
        shared = [0, *(_common(a, b) for a, b in pairwise(self.rows))][: len(self.rows)]
        lengths = [len(row) // TOKEN.itemsize for row in self.rows]
        self.row_tokens = sum(len(rows[key]) * length for (_, key), length in zip(keyed, lengths, strict=True))
        """Tokens of all requests' rows, without sharing."""
        self.least_tokens = sum(lengths) - sum(shared)
        """Tokens that no arrangement can save."""
        own = self._build(lengths, shared if share else [0] * len(shared))
        self.asked: list[list[tuple[int, int, int]]] = [[] for _ in self.start]
        """Per node: (request, from depth, to depth), the tokens after which the request needs a prediction."""
        self.ends = [0] * len(self.start)
        """Per node: number of requests with a row that ends there."""
        self.first: dict[int, int] = {}
        """Per request: the depth of the token that predicts its continuation's first token."""
        for at, (_, key) in enumerate(keyed):
            self.ends[own[at]] = len(rows[key])
            for request in rows[key]:
                self.first[request] = begin = len(pairs[request][0]) - 1
                node, stop = own[at], lengths[at]
                while stop > begin:
                    self.asked[node].append((request, max(begin, self.start[node]), stop))
                    stop, node = self.start[node], self.parent[node]
        self._measure()

    def _build(self, lengths: Sequence[int], shared: Sequence[int]) -> list[int]:
        """Make the nodes of sorted rows, and return the node at the end of each row. `shared` is the number of tokens
        shared with the row before."""
        self.end: list[int] = []
        self.parent: list[int] = []
        self.low: list[int] = []
        """Per node: the index of a row that passes through it."""
        own = [0] * len(lengths)
        waiting = [(0, len(lengths), -1)]  # rows in one branch of a node: first index, end index, node
        while waiting:
            low, high, parent = waiting.pop()
            inside = np.asarray(shared[low + 1 : high])
            end = 0 if parent < 0 else int(inside.min()) if len(inside) else lengths[low]
            node = len(self.end)
            self.end.append(end)
            self.low.append(low)
            self.parent.append(parent)
            cuts = sorted({low, *(low + 1 + np.flatnonzero(inside == end)).tolist(), high})
            if parent >= 0 and lengths[low] == end:  # the first row ends here
                own[low] = node
                del cuts[0]
            waiting += [(first, after, node) for first, after in reversed(list(pairwise(cuts)))]
        self.start = [self.end[p] if p >= 0 else 0 for p in self.parent]
        return own

    def _measure(self) -> None:
        count = len(self.start)
        self.size = [self.end[n] - self.start[n] for n in range(count)]
        """Per node: tokens of its subtree."""
        self.deepest = list(self.end)
        """Per node: depth of its subtree's longest path."""
        self.answers = [_covered(asked) for asked in self.asked]
        """Per node: tokens of its subtree after which logits are needed."""
        self.leaves = [0] * count
        """Per node: branches of its subtree."""
        self.stop = [n + 1 for n in range(count)]
        """Per node: the number after its subtree's last node."""
        self.children: list[list[int]] = [[] for _ in range(count)]
        for node in range(count - 1, -1, -1):
            self.leaves[node] = self.leaves[node] or 1
            above = self.parent[node]
            if above >= 0:
                self.size[above] += self.size[node]
                self.answers[above] += self.answers[node]
                self.leaves[above] += self.leaves[node]
                self.deepest[above] = max(self.deepest[above], self.deepest[node])
                self.stop[above] = max(self.stop[above], self.stop[node])
                self.children[above].append(node)
        for below in self.children:
            below.reverse()

    def edge(self, node: int) -> int:
        """Return how many tokens the node itself has."""
        return self.end[node] - self.start[node]

    def ids(self, node: int) -> Ints:
        """Return the node's tokens."""
        row = np.frombuffer(self.rows[self.low[node]], TOKEN)
        return row[self.start[node] : self.end[node]].astype(np.int64)


def _common(a: bytes, b: bytes) -> int:
    """Return how many tokens two rows have in common at their beginning."""
    length = min(len(a), len(b)) // TOKEN.itemsize
    differ = np.frombuffer(a, TOKEN, length) != np.frombuffer(b, TOKEN, length)
    at = int(differ.argmax()) if length else 0
    return at if length and differ[at] else length


def _covered(ranges: Sequence[tuple[int, int, int]]) -> int:
    covered = reached = 0
    for _, begin, stop in sorted(ranges, key=lambda each: each[1]):
        covered += max(0, stop - max(begin, reached))
        reached = max(reached, stop)
    return covered


Divide: TypeAlias = Callable[[Tree, int, int, Limits, Deeper], Iterator[Batch]]
"""Maps (tree, node, tokens in the cache, limits, deeper) to batches of the nodes below the node.

The cache holds the node's path. Nodes that need a longer cache are added to `deeper`, each as the node that the cache
has to grow by and the nodes between the two.
"""


def plan(tree: Tree, limits: Limits, divide: Divide) -> Iterator[Step]:
    """Yield steps that read every node of the tree, so that each branch sees its own path only."""
    waiting: list[tuple[int, list[int], int] | Crop] = [(0, [], 0)]  # node, nodes to read with it, tokens in the cache
    while waiting:
        task = waiting.pop()
        if isinstance(task, Crop):
            yield task
            continue
        node, path, cached = task
        if node:
            yield Grow([*path, node])
            waiting.append(Crop(cached))
            cached = tree.end[node]
        deeper: Deeper = []
        yield from divide(tree, node, cached, limits, deeper)
        waiting += [(below, above, cached) for below, above in reversed(deeper)]


class _Row(NamedTuple):
    """The nodes of one branch, one below the other."""

    nodes: list[int]
    tokens: int
    answers: int


def in_rows(tree: Tree, top: int, cached: int, limits: Limits, deeper: Deeper) -> Iterator[Batch]:
    """Yield batches with every branch in its own row. Rows of similar length are in one batch, the longest first. A
    node with several branches is read into the cache, or, if that would save little, again in each row.
    """
    rows: list[_Row] = []
    found: list[tuple[int, list[int], int]] = [(child, [], 0) for child in reversed(tree.children[top])]
    while found:
        node, above, length = found.pop()
        tokens = length + tree.size[node]
        straight = tokens == tree.deepest[node] - cached
        if straight and (tree.answers[node] <= limits.answers or not limits.grow):
            rows.append(_Row([*above, *range(node, tree.stop[node])], tokens, tree.answers[node]))
            continue
        length += tree.edge(node)
        repeated = length * (tree.leaves[node] - 1)
        if limits.grow and (repeated > CACHE_TOKENS or tree.answers[node] > limits.answers):
            deeper.append((node, above))
        else:
            found += [(child, [*above, node], length) for child in reversed(tree.children[node])]
    rows.sort(key=lambda row: -row.tokens)
    at = 0
    while at < len(rows):
        longest, answers = rows[at].tokens, 0
        chosen: list[list[int]] = []
        for row in rows[at : at + max(1, limits.batch_tokens // (longest + cached))]:
            answers += row.answers
            unlike = row.tokens < SIMILAR * longest and len(chosen) * longest >= FULL_ENOUGH
            if chosen and (unlike or answers > limits.answers):
                break
            chosen.append(row.nodes)
        at += len(chosen)
        yield Batch(chosen)


class Asked(NamedTuple):
    """The requests of a batch. Token `steps[j]` of the continuation of request `requests[j]` is predicted after the
    batch's token with index `tokens[row[j]]`. `tokens` is sorted and holds no index twice.
    """

    tokens: Ints
    row: Ints
    requests: Ints
    steps: Ints


class Layout(NamedTuple):
    """Rows as an array `ids` (rows, width), each filled with its last token. `lengths` is the number of tokens per row.
    `shared` is the number of nodes read once for several requests.
    """

    ids: Ints
    lengths: Ints
    shared: int
    asked: Asked


def lay_out(tree: Tree, rows: Sequence[Sequence[int]], done: set[int]) -> Layout:
    """Return rows of nodes as an array. Each node's requests are made once: `done` holds the nodes with requests made
    before.
    """
    lengths = np.array([sum(tree.edge(n) for n in row) for row in rows], dtype=np.int64)
    width = int(lengths.max())
    ids = np.zeros((len(rows), width), dtype=np.int64)
    begins: list[tuple[int, int]] = []
    for at, row in enumerate(rows):
        own = np.concatenate([tree.ids(node) for node in row])
        ids[at, : len(own)] = own
        ids[at, len(own) :] = own[-1]
        begin = at * width
        for node in row:
            begins.append((node, begin))
            begin += tree.edge(node)
    shared = sum(tree.ends[node] + (node != row[-1]) > 1 for row in rows for node in row)
    return Layout(ids, lengths, shared, ask(tree, begins, done))


def ask(tree: Tree, begins: Sequence[tuple[int, int]], done: set[int]) -> Asked:
    """Return the requests of nodes, each given with the index of its first token in the batch. Each node's requests are
    made once: `done` holds the nodes with requests made before, and grows.
    """
    tokens: list[Ints] = []
    requests: list[Ints] = []
    steps: list[Ints] = []
    for node, begin in begins:
        if node in done:
            continue
        done.add(node)
        for request, first, stop in tree.asked[node]:
            depths = np.arange(first, stop, dtype=np.int64)
            tokens.append(begin - tree.start[node] + depths)
            requests.append(np.full(stop - first, request, dtype=np.int64))
            steps.append(depths - tree.first[request])
    none = [np.zeros(0, dtype=np.int64)]
    unique, row = np.unique(np.concatenate(tokens or none), return_inverse=True)
    return Asked(unique, row.astype(np.int64), np.concatenate(requests or none), np.concatenate(steps or none))
