"""What two token sequences share: bags, the longest common subsequence, the longest common substring; and F of it.

The subsequence is found with integers as bit vectors. A row of the usual table (length of the LCS of the first i of
`rows` and the first j of `columns`) grows by 0 or 1 from one column to the next, so one bit per column holds it
(Crochemore et al. 2001, Inf. Process. Lett. 80:279). A row costs a few operations on integers of len(columns) bits
instead of a loop over the columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

__all__ = ["bag_f1", "f_measure", "lcs_indices", "lcs_length", "substring_length"]


def f_measure(shared: int, wanted: int, predicted: int, beta: float = 1.0) -> float:
    """F = (1 + β²) R P / (R + β² P), 0 to 1, with R = shared / wanted and P = shared / predicted; 0 where shared is."""
    if not shared:
        return 0.0
    recall, precision = shared / wanted, shared / predicted
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def bag_f1(predicted: Sequence[Hashable], wanted: Sequence[Hashable]) -> float:
    """F of the tokens that both have, each as often as both have it."""
    return f_measure((Counter(predicted) & Counter(wanted)).total(), len(wanted), len(predicted))


def lcs_length(rows: Sequence[Hashable], columns: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence (gaps allowed)."""
    return len(columns) - _bit_rows(rows, columns)[-1].bit_count()


def lcs_indices(rows: Sequence[Hashable], columns: Sequence[Hashable]) -> list[int]:
    """Positions in `rows` of one longest common subsequence, rising.

    Of several it is the one found by walking back from the end as rouge-score 0.1.2 does: along both if the tokens are
    equal; else to the column before if the value there is larger than in the row before; else to the row before.
    """
    bits = _bit_rows(rows, columns)
    i, j = len(rows), len(columns)
    found: list[int] = []
    while i and j:
        if rows[i - 1] == columns[j - 1]:
            found.append(i - 1)
            i, j = i - 1, j - 1
        elif _cell(bits[i], j - 1) > _cell(bits[i - 1], j):
            j -= 1
        else:
            i -= 1
    return found[::-1]


def _bit_rows(rows: Sequence[Hashable], columns: Sequence[Hashable]) -> list[int]:
    """len(rows) + 1 integers; a zero at bit j of integer i: the table grows from column j to j + 1 in row i."""
    positions: dict[Hashable, int] = {}
    for j, token in enumerate(columns):
        positions[token] = positions.get(token, 0) | 1 << j
    full = (1 << len(columns)) - 1
    bits = [full]
    for token in rows:
        last = bits[-1]
        match = last & positions.get(token, 0)
        bits.append(((last + match) | (last - match)) & full)
    return bits


def _cell(row: int, j: int) -> int:
    return j - (row & ((1 << j) - 1)).bit_count()


def substring_length(rows: Sequence[Hashable], columns: Sequence[Hashable]) -> int:
    """Length of the longest common substring (no gaps)."""
    best = 0
    last = [0] * (len(columns) + 1)
    for token in rows:
        last = [0, *(last[j] + 1 if token == other else 0 for j, other in enumerate(columns))]
        best = max(best, *last)
    return best
