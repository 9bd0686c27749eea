"""The prefix tree of what is to be scored, and the order in which a model reads it: every shared token once.

A request asks how likely its continuation is after its context; the model reads `context + continuation[:-1]`, one
row. Rows that begin alike share a path from the root of a radix tree, so the nodes' tokens are the fewest that any
arrangement can forward (`least_tokens`). A plan walks the tree depth first:

    Grow    a stretch that very much hangs on is read once, into the key-value cache (a stack: one path deep)
    Batch   what hangs on it is read over that cache; each row holds one or several whole subtrees
    Crop    back up to where the next branch leaves

A row of several branches is laid out in preorder, so a node's descendants are the places right after it: place k is
seen from place q when k <= q < last(k), `last` being where the subtree of k's node ends. That is the whole tree mask.
Attention costs a row the square of its width: a subtree shares a row only while that costs less than reading apart.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import chain, islice, pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Asked", "Batch", "Crop", "Grow", "Ints", "Layout", "Limits", "Step", "Tree", "ask", "lay_out", "plan"]

Ints: TypeAlias = NDArray[np.int64]

TOKEN = np.dtype(">u4")
"""Big-endian, so that comparing bytes compares tokens."""
CACHE_TOKENS = 96
"""A stretch is read into the cache when reading it again in every row would cost more tokens than this; a forward
pass of its own costs time too."""
LOOSE = 1.5
"""A subtree shares one row while that makes the row at most this much longer than its longest path."""
SIMILAR = 0.9
"""Rows of one branch share a batch only down to this share of the longest one's length, once it is full enough."""
FULL_ENOUGH = 1024


class Limits(NamedTuple):
    """What a plan must keep to.

    pack: branches may share a row (a tree mask); grow: prefixes may be read into a cache; batch_tokens: places per
    batch, the prefix's counted in each row; row_tokens: width of rows shared by small subtrees; answers: places of
    which logits are computed at once; positions: the most places before and in a row.
    """

    pack: bool = True
    grow: bool = True
    batch_tokens: int = 16384
    row_tokens: int = 512
    answers: int = 1 << 30
    positions: int = 1 << 30


class Grow(NamedTuple):
    """Read these nodes, one below the other, into the cache."""

    nodes: list[int]


class Crop(NamedTuple):
    """Forget what the cache holds after `length` tokens."""

    length: int


class Batch(NamedTuple):
    """Read rows over the cache: each the numbers of its nodes in preorder."""

    rows: list[list[int]]


Step: TypeAlias = Grow | Crop | Batch


class Tree:
    """A radix tree over the rows of (context ids, continuation ids); node 0 is the empty root.

    share=False makes every distinct row a branch of its own. Nodes are numbered in preorder: a parent before its
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
        """Tokens of all requests' rows, each for itself."""
        self.least_tokens = sum(lengths) - sum(shared)
        """Tokens that no arrangement can save."""
        own = self._build(lengths, shared if share else [0] * len(shared))
        self.asked: list[list[tuple[int, int, int]]] = [[] for _ in self.start]
        """Per node: (request, from depth, to depth), the places whose next token that request asks for."""
        self.ends = [0] * len(self.start)
        """Per node: requests whose row ends there."""
        self.first: dict[int, int] = {}
        """Per request: the depth at which its continuation's first token is asked for."""
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
        """Make the nodes; for each row, the node at whose end it ends.

        A stack of the nodes on the path of the row before; a row leaves it at the depth that the two share, where a
        node is cut in two if need be.
        """
        end, parent, low = [0], [-1], [0]
        own, open_ = [], [0]
        for at, (length, common) in enumerate(zip(lengths, shared, strict=True)):
            below = -1
            while end[open_[-1]] > common:
                below = open_.pop()
            if end[open_[-1]] < common:  # the edge to `below` is cut where this row leaves it
                end.append(common)
                parent.append(open_[-1])
                low.append(low[below])
                parent[below] = len(end) - 1
                open_.append(len(end) - 1)
            end.append(length)
            parent.append(open_[-1])
            low.append(at)
            open_.append(len(end) - 1)
            own.append(len(end) - 1)
        order = sorted(range(len(end)), key=lambda n: (low[n], end[n]))
        number = {old: new for new, old in enumerate(order)}
        self.end = [end[n] for n in order]
        self.low = [low[n] for n in order]
        """A row that passes through the node."""
        self.parent = [number[parent[n]] if parent[n] >= 0 else -1 for n in order]
        self.start = [self.end[p] if p >= 0 else 0 for p in self.parent]
        return [number[n] for n in own]

    def _measure(self) -> None:
        count = len(self.start)
        self.size = [self.end[n] - self.start[n] for n in range(count)]
        """Tokens of the subtree."""
        self.deepest = list(self.end)
        """Depth of the subtree's longest path."""
        self.answers = [_covered(asked) for asked in self.asked]
        """Places in the subtree of which logits are needed."""
        self.leaves = [0] * count
        self.stop = [n + 1 for n in range(count)]
        """The number after the subtree's last node."""
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
        """Tokens of the node itself."""
        return self.end[node] - self.start[node]

    def ids(self, node: int) -> Ints:
        """The node's tokens."""
        row = np.frombuffer(self.rows[self.low[node]], TOKEN)
        return row[self.start[node] : self.end[node]].astype(np.int64)


def _common(a: bytes, b: bytes) -> int:
    """How many tokens two rows begin with in common."""
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


class _Unit(NamedTuple):
    """A subtree read in one row, below nodes that are read again with it (unless the row has them already)."""

    node: int
    above: tuple[int, ...]
    tokens: int
    answers: int


def plan(tree: Tree, limits: Limits) -> Iterator[Step]:
    """Steps that read every node of the tree, each branch seeing its own path only."""
    waiting: list[tuple[int, tuple[int, ...], int] | Crop] = [(0, (), 0)]  # node, path to read with it, cached tokens
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
        units, deeper = _divide(tree, node, cached, limits)
        waiting += [(below, above, cached) for below, above in reversed(deeper)]
        yield from _batched(tree, units, cached, limits)


def _divide(tree: Tree, top: int, cached: int, limits: Limits) -> tuple[list[_Unit], list[tuple[int, tuple[int, ...]]]]:
    """What is read over a cache that ends at `top`: subtrees that fit a row, and nodes that the cache must grow by.

    A node that is neither (too much hangs on it for one row, too little is saved by a pass of its own) is read again
    in every row that holds something below it.
    """
    units: list[_Unit] = []
    deeper: list[tuple[int, tuple[int, ...]]] = []
    # node, path above it, that path's tokens
    found: list[tuple[int, tuple[int, ...], int]] = [(child, (), 0) for child in reversed(tree.children[top])]
    while found:
        node, above, length = found.pop()
        tokens, depth = length + tree.size[node], tree.deepest[node]
        straight = tokens == depth - cached
        roomy = tokens <= limits.row_tokens or cached + tokens <= LOOSE * depth
        fits = straight or (limits.pack and roomy and cached + tokens <= limits.positions)
        if fits and (tree.answers[node] <= limits.answers or not limits.grow):
            units.append(_Unit(node, above, tokens, tree.answers[node]))
            continue
        edge = tree.edge(node)
        rows = -(-tokens // limits.row_tokens) if limits.pack else tree.leaves[node]
        repeated = (length + edge) * (rows - 1)
        if limits.grow and (repeated > CACHE_TOKENS or tree.answers[node] > limits.answers):
            deeper.append((node, above))
        else:
            found += [(child, (*above, node), length + edge) for child in reversed(tree.children[node])]
    return units, deeper


def _batched(tree: Tree, units: list[_Unit], cached: int, limits: Limits) -> Iterator[Batch]:
    """Subtrees into rows and rows into batches so that little is padded.

    Large ones go by length, the longest first; small ones share rows in the order of the tree, where long and short
    ones stand side by side (which fill rows evenly) and so do those that are read below the same nodes.
    """
    small = [unit for unit in units if limits.pack and unit.tokens <= limits.row_tokens]
    large = [unit for unit in units if not limits.pack or unit.tokens > limits.row_tokens]
    units = [*sorted(large, key=lambda unit: -unit.tokens), *small]
    at = 0
    while at < len(units):
        longest = units[at].tokens
        shared = at >= len(large)
        width = min(limits.row_tokens, limits.positions - cached) if shared else longest
        rows = max(1, limits.batch_tokens // (width + cached))
        chosen: list[_Unit] = []
        tokens, answers = 0, 0
        held: set[int] = set()
        for unit in islice(units, at, len(units) if shared else len(large)):
            own = tree.size[unit.node] + sum(tree.edge(n) for n in unit.above if n not in held)
            full = tokens + own > rows * width if shared else len(chosen) == rows
            unlike = not shared and unit.tokens < SIMILAR * longest and len(chosen) * longest >= FULL_ENOUGH
            if chosen and (full or unlike or answers + unit.answers > limits.answers):
                break
            chosen.append(unit)
            held.update(unit.above)
            tokens, answers = tokens + own, answers + unit.answers
        at += len(chosen)
        bins = _balanced(tree, chosen, -(-tokens // width), rows) if shared else [[unit] for unit in chosen]
        yield Batch([_nodes(tree, each) for each in bins])


def _balanced(tree: Tree, units: list[_Unit], least: int, most: int) -> list[list[_Unit]]:
    """Units in rows of about equal length: the longest unit first, always into the row that stays shortest.

    The number of rows is the one from `least` on that pads least.
    """
    best: list[list[_Unit]] = []
    padded = -1
    for count in range(least, min(len(units), max(least, min(most, least + 3))) + 1):
        bins: list[list[_Unit]] = [[] for _ in range(count)]
        lengths = [0] * count
        held: list[set[int]] = [set() for _ in range(count)]
        for unit in sorted(units, key=lambda unit: -unit.tokens):
            if unit.above:
                costs = [
                    length + unit.tokens - sum(tree.edge(n) for n in unit.above if n in has)
                    for length, has in zip(lengths, held, strict=True)
                ]
                place = min(range(count), key=costs.__getitem__)
                lengths[place] = costs[place]
                held[place].update(unit.above)
            else:
                place = min(range(count), key=lengths.__getitem__)
                lengths[place] += unit.tokens
            bins[place].append(unit)
        cost = count * max(lengths)
        if padded < 0 or cost < padded:
            best, padded = bins, cost
    return best


def _nodes(tree: Tree, units: Sequence[_Unit]) -> list[int]:
    """A row's nodes in preorder."""
    numbers = set(chain.from_iterable(unit.above for unit in units))
    for unit in units:
        numbers.update(range(unit.node, tree.stop[unit.node]))
    return sorted(numbers)


class Asked(NamedTuple):
    """What is asked of a batch: token `steps[j]` of the continuation of request `requests[j]` is predicted at
    `places[row[j]]`; places index the batch's (rows x width) tokens, sorted, none twice.
    """

    places: Ints
    row: Ints
    requests: Ints
    steps: Ints


class Layout(NamedTuple):
    """A batch as arrays of shape (rows, width); places after a row's end repeat its last token and see themselves.

    positions: depth in the text; last: up to which place of the row (not included) this one is seen; lengths: tokens
    per row; straight: no row has branches, so that the usual causal mask is right; shared: nodes read once for
    several requests or branches.
    """

    ids: Ints
    positions: Ints
    last: Ints
    lengths: Ints
    straight: bool
    shared: int
    asked: Asked


def lay_out(tree: Tree, rows: Sequence[Sequence[int]], done: set[int]) -> Layout:
    """Rows of nodes as arrays; what is asked of a node is asked once: `done` holds the nodes whose turn has been."""
    lengths = np.array([sum(tree.edge(n) for n in row) for row in rows], dtype=np.int64)
    width = int(lengths.max())
    ids = np.zeros((len(rows), width), dtype=np.int64)
    positions = np.zeros_like(ids)
    last = np.tile(np.arange(1, width + 1, dtype=np.int64), (len(rows), 1))
    standing: list[tuple[int, int]] = []
    straight, shared = True, 0
    for at, row in enumerate(rows):
        place = 0
        path: list[tuple[int, int]] = []  # nodes above the present one, and where they stand
        held = dict.fromkeys(row, 0)  # how many read each node: requests that end there, and branches in this row
        for node in (*row, -1):
            while path and (node < 0 or node >= tree.stop[path[-1][0]]):
                closed, begin = path.pop()
                last[at, begin : begin + tree.edge(closed)] = place
                if node >= 0:
                    straight = False
            if node < 0:
                break
            held[node] += tree.ends[node]
            if path:
                held[path[-1][0]] += 1
            length = tree.edge(node)
            ids[at, place : place + length] = tree.ids(node)
            positions[at, place : place + length] = np.arange(tree.start[node], tree.end[node])
            standing.append((node, at * width + place))
            path.append((node, place))
            place += length
        ids[at, place:] = ids[at, place - 1]
        shared += sum(readers > 1 for readers in held.values())
    return Layout(ids, positions, last, lengths, straight, shared, ask(tree, standing, done))


def ask(tree: Tree, standing: Sequence[tuple[int, int]], done: set[int]) -> Asked:
    """What is asked of nodes that stand at the given places, of each node once; `done` grows by them."""
    places: list[Ints] = []
    requests: list[Ints] = []
    steps: list[Ints] = []
    for node, place in standing:
        if node in done:
            continue
        done.add(node)
        for request, begin, stop in tree.asked[node]:
            depths = np.arange(begin, stop, dtype=np.int64)
            places.append(place - tree.start[node] + depths)
            requests.append(np.full(stop - begin, request, dtype=np.int64))
            steps.append(depths - tree.first[request])
    flat = np.concatenate(places) if places else np.zeros(0, dtype=np.int64)
    unique, row = np.unique(flat, return_inverse=True)
    return Asked(
        unique,
        row.astype(np.int64),
        np.concatenate(requests) if requests else flat,
        np.concatenate(steps) if steps else flat,
    )
