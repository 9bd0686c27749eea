"""Which prompts share a beginning that is worth reading once: few-shot examples, a system message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from posttrain.inference.tree import Tree

__all__ = ["Group", "groups_of"]

COST = 64
"""Tokens that a group must save: its prefix is one forward pass more."""


class Group(NamedTuple):
    """Numbers of prompts whose first `prefix` tokens are equal; 0: they share nothing. Every prompt has more tokens."""

    prefix: int
    rows: list[int]


class _Best(NamedTuple):
    """The best way to group the prompts below a node of their prefix tree: the groups, the prompts outside of them, how
    many prompts there are, and the tokens that it saves."""

    groups: list[Group]
    alone: list[int]
    size: int
    saved: int


def groups_of(prompts: Sequence[Sequence[int]]) -> list[Group]:
    """The prompts in groups that share a prefix, so that one level of sharing saves (nearly) the most tokens.

    At each node of the prefix tree, the branches keep their own groups or join one at the node. Longest prompts first,
    among the groups and within them.
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
    """Group branches that share `length` tokens: those that gain more from this prefix than from their own groups make
    one group, where that is worth its cost."""
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
