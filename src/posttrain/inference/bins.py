"""A batch of the prefix tree as one line of tokens, without repeats and padding, and which tokens attend to which.

Tokens stand in preorder, so a node's descendants come directly after it: token q sees token k if k <= q < last(k),
where the subtree of k's node ends at `last`. That is the whole tree mask. Attention is split into two kinds of parts:

    dense    tokens below a long stretch attend to all of it and to all above it: no mask, keys read once for all
    bins     small subtrees attend within themselves (and to short stretches above): many at once, with a mask

The parts are joined by their log-sum-exp, as flash attention does with its blocks (arXiv:2205.14135, section 3.1), so
attention costs only what the tree needs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from posttrain.inference.tree import Asked, Batch, Deeper, Ints, Limits, Tree, ask

__all__ = ["Bins", "Dense", "Line", "in_lines", "lay_line", "straight"]

TIP = 32
"""From this number of tokens on, everything below a stretch attends to it at once."""
BIN = 96
"""Largest number of tokens in a subtree that is one bin, and in small neighbours that are joined into one bin."""
LOOSE = 1.5
"""A larger subtree is one bin if it is at most this many times as long as its longest path."""
FILLED = 0.8
"""Share that must be filled when bins of unequal length are padded to one shape; padding costs attention only."""
REPEATED = 0.01
"""A stretch that several batches need is read into the cache if it is longer than this share of a batch."""


class Dense(NamedTuple):
    """Tokens `queries` of the line attend to all of `keys`. `keys` is a whole path from the root, so a key's position
    in the text is its index here. Keys are counted from the cache's first token.
    """

    queries: Ints
    keys: Ints


class Bins(NamedTuple):
    """Tokens `queries` of the line, (bins, t), attend to `keys`, (bins, s), where `mask`, (bins, t, s), is True.
    Without a mask the two arrays are the same and attention is causal. `real` is (bins, t); it is False for padding.
    """

    queries: Ints
    keys: Ints
    mask: NDArray[np.bool_] | None
    real: NDArray[np.bool_]


class Line(NamedTuple):
    """A batch as one line. It has the ids and the positions in the text (N,), the parts of attention, the number of
    nodes that are read once for several requests or branches, and the requests.
    """

    ids: Ints
    positions: Ints
    dense: list[Dense]
    bins: list[Bins]
    shared: int
    asked: Asked


def in_lines(tree: Tree, top: int, cached: int, limits: Limits, deeper: Deeper) -> Iterator[Batch]:
    """Yield batches of up to `batch_tokens` tokens, one line each. A stretch that several batches need is read into the
    cache once, or, if it is short, again with each batch.
    """
    line: list[int] = []
    held: set[int] = set()
    tokens = answers = 0
    found: list[tuple[int, list[int]]] = [(child, []) for child in reversed(tree.children[top])]
    while found:
        node, above = found.pop()
        missing = [n for n in above if n not in held]
        again = sum(tree.edge(n) for n in missing)
        path = sum(tree.edge(n) for n in above)
        size, asked = tree.size[node], tree.answers[node]
        whole = size + path <= limits.batch_tokens and asked <= limits.answers
        if not whole:
            edge = tree.edge(node)
            own = tree.answers[node] - sum(tree.answers[child] for child in tree.children[node])
            long = path + edge > max(TIP, REPEATED * limits.batch_tokens)
            if long or own > limits.answers or not tree.children[node]:
                deeper.append((node, above))
                continue
            size, asked = edge, own
            found += [(child, [*above, node]) for child in reversed(tree.children[node])]
        if line and (tokens + again + size > limits.batch_tokens or answers + asked > limits.answers):
            yield Batch([sorted(line)])
            line, held, tokens, answers = [], set(), 0, 0
            missing, again = above, path
        line += missing
        line += range(node, tree.stop[node]) if whole else [node]
        held.update(missing)
        held.add(node)
        tokens += again + size
        answers += asked
    if line:
        yield Batch([sorted(line)])


class _Bin(NamedTuple):
    """Nodes that will become one bin.

    `nodes` are the nodes with tokens that attend. `besides` are nodes above that these tokens also see; both are in
    preorder. `tips` are nodes with a path that the tokens already see by a dense part. `tokens` counts the tokens that
    attend."""

    nodes: list[int]
    besides: list[int]
    tips: list[int]
    tokens: int

    def sees_twice(self, other: _Bin, tree: Tree) -> bool:
        """Return whether the other bin's tokens see some of this bin's nodes by a dense part."""
        return any(n <= tip < tree.stop[n] for tip in other.tips for n in (*self.nodes, *self.besides))


def straight(ids: Ints, cached: int, asked: Asked) -> Line:
    """Return a line of tokens that follow each other, after a cache of `cached` tokens."""
    numbers = np.arange(len(ids))
    dense = [Dense(numbers, np.arange(cached))] if cached else []
    own = Bins(numbers[None], numbers[None], None, np.ones((1, len(ids)), dtype=np.bool_))
    return Line(ids, cached + numbers, dense, [own], 0, asked)


def lay_line(tree: Tree, nodes: Sequence[int], cached: int, done: set[int]) -> Line:
    """Return a batch's nodes as a line. Each node's requests are made once: `done` holds the nodes with requests made
    before.
    """
    edges = np.array([tree.edge(n) for n in nodes])
    begins = np.cumsum(edges) - edges
    inside = dict(zip(nodes, edges.tolist(), strict=True))  # tokens of the subtree in this line
    deepest = {n: tree.end[n] for n in nodes}
    readers = {n: tree.ends[n] for n in nodes}
    for node in reversed(nodes):
        above = tree.parent[node]
        if above in inside:
            inside[above] += inside[node]
            deepest[above] = max(deepest[above], deepest[node])
            readers[above] += 1
    spans = {n: np.arange(begin, begin + tree.edge(n)) for n, begin in zip(nodes, begins, strict=True)}
    below, units = _split(tree, nodes, cached, inside, deepest)
    dense = []
    for tip, members in below.items():
        path: list[Ints] = []
        while tip in spans:
            path.append(cached + spans[tip])
            tip = tree.parent[tip]
        keys = np.concatenate([np.arange(cached), *reversed(path)])
        dense.append(Dense(np.concatenate([spans[node] for node in members]), keys))
    ids = np.concatenate([tree.ids(node) for node in nodes])
    positions = np.concatenate([np.arange(tree.start[node], tree.end[node]) for node in nodes])
    bins = list(_shaped(_joined(tree, units), spans, np.repeat(begins + [inside[n] for n in nodes], edges)))
    shared, asked = sum(count > 1 for count in readers.values()), list(zip(nodes, begins.tolist(), strict=True))
    return Line(ids, positions, dense, bins, shared, ask(tree, asked, done))


def _split(
    tree: Tree, nodes: Sequence[int], cached: int, inside: dict[int, int], deepest: dict[int, int]
) -> tuple[dict[int, list[int]], list[_Bin]]:
    """Split attention: return the nodes that attend to a tip's whole path, by tip, and subtrees as bins.

    Tip -1 is the cache alone. A subtree that is small, or hardly longer than one path, becomes a bin. For any other
    subtree the first node becomes a bin, and the nodes below attend to it: by a dense part if it is long, together with
    the nodes between it and the tip."""
    below: dict[int, list[int]] = {}
    units: list[_Bin] = []
    tips: dict[int, tuple[int, list[int]]] = {}  # node -> the tip above its subtree, and the nodes between the two
    at = 0
    while at < len(nodes):
        node = nodes[at]
        tip, since = tips.get(tree.parent[node], (-1, []))
        members = [node]
        if inside[node] <= BIN or inside[node] <= LOOSE * (deepest[node] - tree.start[node]):
            members = list(nodes[at : bisect_left(nodes, tree.stop[node], at)])
        else:
            long = sum(tree.edge(n) for n in (*since, node)) >= TIP
            tips[node] = (node, []) if long else (tip, [*since, node])
        if tip >= 0 or cached:
            below.setdefault(tip, []).extend(members)
        units.append(_Bin(members, since, [tip] if tip >= 0 else [], sum(tree.edge(n) for n in members)))
        at += len(members)
    return below, units


def _joined(tree: Tree, units: Sequence[_Bin]) -> list[_Bin]:
    """Join small neighbours into one bin where no token would see another token twice."""
    joined: list[_Bin] = []
    for unit in units:
        last = joined[-1] if joined else None
        small = last is not None and last.tokens + unit.tokens <= BIN
        if last is None or not small or last.sees_twice(unit, tree) or unit.sees_twice(last, tree):
            joined.append(unit)
            continue
        nodes = last.nodes + unit.nodes
        besides = sorted({*last.besides, *unit.besides} - set(nodes))
        joined[-1] = _Bin(nodes, besides, sorted({*last.tips, *unit.tips}), last.tokens + unit.tokens)
    return joined


def _shaped(units: list[_Bin], spans: dict[int, Ints], last: Ints) -> Iterator[Bins]:
    """Yield bins of similar length as arrays of one shape."""
    queries = [np.concatenate([spans[n] for n in unit.nodes]) for unit in units]
    keys = [
        np.concatenate([spans[n] for n in sorted([*unit.nodes, *unit.besides])]) if unit.besides else own
        for unit, own in zip(units, queries, strict=True)
    ]
    order = sorted(range(len(units)), key=lambda i: (-len(queries[i]), -len(keys[i])))
    at = 0
    while at < len(order):
        t = s = real = 0
        stop = at
        while stop < len(order):
            i = order[stop]
            t, s, more = max(t, len(queries[i])), max(s, len(keys[i])), real + len(queries[i]) * len(keys[i])
            if stop > at and more < FILLED * (stop + 1 - at) * t * s and real > TIP * TIP * 64:
                break
            real, stop = more, stop + 1
        chosen = order[at:stop]
        at = stop
        q, has_q = _padded([queries[i] for i in chosen])
        k, has_k = _padded([keys[i] for i in chosen])
        if all(keys[i] is queries[i] and (last[queries[i]] > queries[i][-1]).all() for i in chosen):  # no branches
            yield Bins(q, q, None, has_q)
        else:
            seen = (k[:, None, :] <= q[:, :, None]) & (q[:, :, None] < last[k][:, None, :]) & has_k[:, None, :]
            yield Bins(q, k, seen, has_q)


def _padded(rows: Sequence[Ints]) -> tuple[Ints, NDArray[np.bool_]]:
    """Return rows of unequal length as one array, filled with each row's first number, and a mask of real numbers."""
    lengths = np.array([len(row) for row in rows])
    real = np.arange(lengths.max())[None] < lengths[:, None]
    filled = np.repeat(np.array([row[0] for row in rows], dtype=np.int64), lengths.max()).reshape(real.shape)
    filled[real] = np.concatenate(rows)
    return filled, real
