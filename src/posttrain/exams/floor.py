"""Decide whether a loss is real: compare a model with a numerically perturbed copy of the untouched model.

The untouched model in other arithmetic (bfloat16, or weights rounded to int8) is not a different model for its users,
but it already answers some questions differently: a chat model of 135 M parameters loses 10 to 35 % of its prompts.
This is the noise floor: only a result below it is a loss. Both are asked the same probes, so the test is paired.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from posttrain.exams.statistics import FEWEST, SIGNIFICANT, mcnemar, sign_flips

__all__ = ["NOISE_FLOOR", "BesideFloor", "Outcomes", "beside_floor"]

NOISE_FLOOR = "noise floor"
"""The name of the noise floor's row in tables."""

Outcomes = Mapping[str, Sequence[int | None]]
"""Score -> for each of its probes, in the order of the change file: 1 kept, 0 not kept, None not counted."""

MANY_CHANGES = 6
"""With this many changes or more, the test over changes must agree too: 2 * 0.5^6 = 0.031."""
ONE_IN = 10
"""A fall of one probe in this many is substantial (the report calls a group kept if it keeps 90 %)."""


@dataclass(frozen=True)
class BesideFloor:
    """A method's score compared with that of the noise floor, on the probes that were judged for both.

    n: number of probes; score, floor: shares kept; p_value: of McNemar's test, or, with six changes or more, the larger
    one of that and the test over changes; below: it is a loss; testable: whether these probes could show a loss, and
    one of the observed size.
    """

    n: int
    score: float
    floor: float
    p_value: float
    below: bool
    testable: bool

    @property
    def unsure(self) -> bool:
        """Whether the score fell, and there are too few probes to say whether that is a loss."""
        return not self.testable and self.score < self.floor


def beside_floor(method: Mapping[str, Outcomes], floor: Mapping[str, Outcomes]) -> dict[str, BesideFloor]:
    """Return score -> comparison. method, floor: change -> outcomes of its probes.

    `below` is True if fewer probes are kept than on the floor, McNemar's exact test over probes says p < 0.05 (which
    needs six probes that differ), and, with six changes or more, the exact test that flips the signs of the changes'
    differences says so too: one change that went completely wrong is not the same as eight changes that went wrong.

    `testable` is False, so that "not below" means nothing, in two cases. First, when even an outcome with no probe kept
    would not be `below`. Second, when the score fell by one probe in ten or more, and fewer than six probes (or, with
    six changes or more, fewer than six changes) differ: if this share of losses were the true one, so few probes could
    not show it.
    """
    found: dict[str, BesideFloor] = {}
    both = [(method[change], floor[change]) for change in method if change in floor]
    for key in dict.fromkeys(key for own, base in both for key in own if key in base):
        kept = [zip(own[key], base[key], strict=True) for own, base in both if key in own and key in base]
        changes = [[(a, b) for a, b in pairs if a is not None and b is not None] for pairs in kept]
        every = [pair for pairs in changes for pair in pairs]
        if not every:
            continue
        n, (p_value, below) = len(every), _loss(changes)
        shares = (sum(a for a, _ in every) / n, sum(b for _, b in every) / n)
        found[key] = BesideFloor(n, *shares, p_value, below, below or _testable(changes))
    return found


def _testable(changes: Sequence[Sequence[tuple[int, int]]]) -> bool:
    """Return whether (method, floor) pairs by change could show a loss, and one as large as the observed one."""
    if not _loss([[(0, b) for _, b in each] for each in changes])[1]:
        return False
    asked = [each for each in changes if each]
    every = [pair for each in asked for pair in each]
    substantial = sum(b - a for a, b in every) * ONE_IN >= len(every)
    moved = [sum(a - b for a, b in each) for each in asked]
    few = sum(a != b for a, b in every) < FEWEST
    few |= len(asked) >= MANY_CHANGES and sum(each != 0 for each in moved) < MANY_CHANGES
    return not (substantial and few)


def _loss(changes: Iterable[Sequence[tuple[int, int]]]) -> tuple[float, bool]:
    """Return the p-value of (method, floor) pairs by change, and whether it is a loss."""
    asked = [each for each in changes if each]
    every = [pair for each in asked for pair in each]
    only_floor, only_method = sum(b > a for a, b in every), sum(a > b for a, b in every)
    p_value = mcnemar(only_floor, only_method)
    differences = [sum(a - b for a, b in each) / len(each) for each in asked]
    if len(differences) >= MANY_CHANGES:
        p_value = max(p_value, sign_flips(differences))
    enough = only_floor + only_method >= FEWEST
    return p_value, only_floor > only_method and enough and p_value < SIGNIFICANT
