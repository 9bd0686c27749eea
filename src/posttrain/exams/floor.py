"""Is a loss a loss? A model beside its own numerically perturbed copy.

The untouched model in other arithmetic (bfloat16, or weights rounded to int8) is what nobody would call another model,
and it already answers some questions differently: a chat model of 135 M parameters loses 10 to 35 % of its prompts.
That is the noise floor: only what falls below it is a loss. The same probes are asked of both, so the test is paired.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from posttrain.exams.statistics import FEWEST, SIGNIFICANT, mcnemar, sign_flips

__all__ = ["NOISE_FLOOR", "BesideFloor", "Outcomes", "beside_floor"]

NOISE_FLOOR = "noise floor"
"""The name of the floor's row in tables."""

Outcomes = Mapping[str, Sequence[int | None]]
"""Score -> for each of its probes, in the order of the change file: 1 kept, 0 not, None not counted."""

MANY_CHANGES = 6
"""From so many changes on, they have to agree as well: 2 * 0.5^6 = 0.031."""
ONE_IN = 10
"""A fall of one probe in so many is a substantial one (the report calls kept what keeps 90 %)."""


@dataclass(frozen=True)
class BesideFloor:
    """A method's score beside the floor's, on the probes that both could be judged on.

    n: probes; score, floor: shares kept; p_value: McNemar's, and the changes' where there are six or more (the larger
    of the two); below: a loss; testable: whether these probes could show one at all, and one of the size that is seen.
    """

    n: int
    score: float
    floor: float
    p_value: float
    below: bool
    testable: bool

    @property
    def unsure(self) -> bool:
        """Whether it fell, and nobody can say whether that is a loss: too few probes."""
        return not self.testable and self.score < self.floor


def beside_floor(method: Mapping[str, Outcomes], floor: Mapping[str, Outcomes]) -> dict[str, BesideFloor]:
    """Score -> comparison. method, floor: change -> outcomes of its probes.

    `below` when fewer probes are kept than on the floor, McNemar's exact test over probes says p < 0.05 (which needs
    six that differ), and, with six changes or more, so does the exact test that flips the signs of the changes'
    differences: one change that went wrong altogether is not eight that did.

    Not `testable`, so that "not below" says nothing, when even an outcome with no probe kept would not be `below`; or
    when it fell by one probe in ten or more, and fewer than six probes (or, with six changes or more, fewer than six
    changes) differ: were this share of losses the true one, so few probes could not show it.
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
    """Whether (method, floor) pairs by change could show a loss, and one as large as theirs."""
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
    """The p-value of (method, floor) pairs by change, and whether it is a loss."""
    asked = [each for each in changes if each]
    every = [pair for each in asked for pair in each]
    only_floor, only_method = sum(b > a for a, b in every), sum(a > b for a, b in every)
    p_value = mcnemar(only_floor, only_method)
    differences = [sum(a - b for a, b in each) / len(each) for each in asked]
    if len(differences) >= MANY_CHANGES:
        p_value = max(p_value, sign_flips(differences))
    enough = only_floor + only_method >= FEWEST
    return p_value, only_floor > only_method and enough and p_value < SIGNIFICANT
