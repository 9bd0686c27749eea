"""Which prompts share a beginning that is worth reading once: few-shot examples, a system message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

__all__ = ["Group", "groups_of"]

COST = 64
"""Tokens that a group must save: its prefix is one forward pass more."""


class Group(NamedTuple):
    """Numbers of prompts whose first `prefix` tokens are equal; 0: they share nothing. Every prompt has more tokens."""

    prefix: int
    rows: list[int]


@dataclass
class _Node:
    """An interval of the sorted prompts whose first `length` tokens are equal, the best way to group it, and what that
    saves: `groups` holds (prefix, places), `alone` the places outside of them.
    """

    length: int
    children: list[_Node] = field(default_factory=list)
    size: int = 0
    saved: int = 0
    alone: list[int] = field(default_factory=list)
    groups: list[tuple[int, list[int]]] = field(default_factory=list)

    def places(self) -> list[int]:
        return [*self.alone, *(place for _, places in self.groups for place in places)]

    def close(self) -> None:
        """Group the children: those that gain more from this prefix than from their own groups make one group."""
        joined = [child for child in self.children if child.saved <= child.size * self.length]
        apart = [child for child in self.children if child.saved > child.size * self.length]
        members = sum(child.size for child in joined)
        together = (members - 1) * self.length - COST if members > 1 else 0
        self.size = sum(child.size for child in self.children)
        if together > sum(child.saved for child in joined):
            self.groups.append((self.length, [place for child in joined for place in child.places()]))
            self.saved = together
        else:
            apart = self.children
        self.saved += sum(child.saved for child in apart)
        for child in apart:
            self.groups += child.groups
            self.alone += child.alone
        self.children = []


def groups_of(prompts: Sequence[Sequence[int]]) -> list[Group]:
    """The prompts in groups that share a prefix, so that one level of sharing saves (nearly) the most tokens.

    Sorted prompts are the leaves of a tree whose inner nodes are common prefixes; each node's children either keep
    their own groups or join one at the node. Longest prompts first, among the groups and within them.
    """
    coded = [np.asarray(prompt, dtype=">u4") for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: coded[i].tobytes())  # bytes compare as the numbers do
    root = _Node(0)
    stack = [root]
    for place, row in enumerate(order):
        common = _common(coded[order[place - 1]], coded[row]) if place else 0
        leaf = _Node(len(coded[row]), size=1, alone=[row])
        last: _Node | None = None
        while stack[-1].length > common:
            last = stack.pop()
            last.close()
            if stack[-1].length >= common:
                stack[-1].children.append(last)
                last = None
        if stack[-1].length < common:  # the last prompt, or what was closed, hangs below a node of this length
            below = last if last is not None else stack[-1].children.pop()
            stack.append(_Node(common, [below]))
        elif last is not None:
            stack[-1].children.append(last)
        stack[-1].children.append(leaf)
    while len(stack) > 1:
        closed = stack.pop()
        closed.close()
        stack[-1].children.append(closed)
    root.close()
    found = [Group(0, root.alone)] if root.alone else []
    for length, rows in root.groups:
        found.append(Group(min(length, *(len(prompts[row]) - 1 for row in rows)), rows))
    for group in found:
        group.rows.sort(key=lambda row: (-len(prompts[row]), row))
    return sorted(found, key=lambda group: (-len(prompts[group.rows[0]]), group.rows[0]))


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """How many first tokens are equal."""
    length = min(len(one), len(other))
    unequal = one[:length] != other[:length]
    return int(unequal.argmax()) if unequal.any() else length
