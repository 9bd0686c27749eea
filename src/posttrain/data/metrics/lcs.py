"""Measure what two token sequences share: as bags, by the longest common subsequence, by the longest common substring.

`f_measure` computes F from what they share. The longest common subsequence (LCS) is found with integers as bit vectors.
The usual table holds, in row i and column j, the length of the LCS of the first i tokens of `rows` and the first j
tokens of `columns`. A row of it grows by 0 or 1 from one column to the next, so one bit per column holds the row
(Crochemore et al. 2001, Inf. Process. Lett. 80:279). A row costs a few operations on integers of len(columns) bits
instead of a loop over the columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

__all__ = ["bag_f1", "f_measure", "lcs_indices", "lcs_length", "substring_length"]


def f_measure(shared: int, wanted: int, predicted: int, beta: float = 1.0) -> float:
    """Return F = (1 + β²) R P / (R + β² P), 0 to 1, with R = shared / wanted and P = shared / predicted. It is 0 when
    `shared` is 0.
    """
    if not shared:
        return 0.0
    recall, precision = shared / wanted, shared / predicted
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def bag_f1(predicted: Sequence[Hashable], wanted: Sequence[Hashable]) -> float:
    """Return F of the shared tokens, 0 to 1; a token counts as often as both sequences have it."""
    return f_measure((Counter(predicted) & Counter(wanted)).total(), len(wanted), len(predicted))


def lcs_length(rows: Sequence[Hashable], columns: Sequence[Hashable]) -> int:
    """Return the length of the longest common subsequence (gaps allowed), in tokens."""
    return len(columns) - _bit_rows(rows, columns)[-1].bit_count()


def lcs_indices(rows: Sequence[Hashable], columns: Sequence[Hashable]) -> list[int]:
    """Return the indices in `rows` of one longest common subsequence, in rising order.

    If there are several, it is the one that rouge-score 0.1.2 finds by walking back from the end of the table: one row
    and one column back if the tokens are equal; else one column back if the value there is larger than the value one
    row back; else one row back.
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
    """Return the table as len(rows) + 1 integers; bit j of integer i is 0 when row i grows from column j to j + 1."""
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
    """Return the table's value in column j of a row that is given as an integer."""
    return j - (row & ((1 << j) - 1)).bit_count()


def substring_length(rows: Sequence[Hashable], columns: Sequence[Hashable]) -> int:
    """Return the length of the longest common substring (no gaps), in tokens."""
    best = 0
    last = [0] * (len(columns) + 1)
    for token in rows:
        last = [0, *(last[j] + 1 if token == other else 0 for j, other in enumerate(columns))]
        best = max(best, *last)
    return best
