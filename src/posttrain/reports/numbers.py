"""The report's arithmetic: averages with intervals, learned and forgotten shares, columns, and numbers as text."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from posttrain.exams.scores import SPECS
from posttrain.reports.texts import Message, say

__all__ = ["bootstrap", "cell_colour", "columns", "forgotten", "goodness", "group_mean", "kept", "learned", "mean"]

MISSING = "–"
"""The text of an empty cell."""
RESAMPLES = 1000
"""Number of bootstrap resamples for an interval."""

GROUPS: tuple[str, ...] = tuple(dict.fromkeys(spec.group for spec in SPECS))
"""Score groups of the change exam in the order of the report."""
DECLARED = {spec.key: spec for spec in SPECS}
"""Score of the change exam -> its declaration."""
ORDER = {spec.key: number for number, spec in enumerate(SPECS)}
"""Score of the change exam -> its index in the report."""


def group_of(key: str) -> str:
    """Return the group of a score: the part of its name before the first dot."""
    return key.partition(".")[0]


def columns(score_keys: Iterable[str], groups: Sequence[str] = GROUPS) -> list[str]:
    """Return the scores of a table in the order of groups and declarations. With the default groups, scores of unknown
    groups are kept and come last; otherwise only the given groups are kept.
    """
    found = dict.fromkeys(score_keys)
    wanted = [k for k in found if group_of(k) in groups or (groups is GROUPS and group_of(k) not in GROUPS)]
    rank = {group: number for number, group in enumerate(groups)}
    return sorted(wanted, key=lambda key: (rank.get(group_of(key), len(rank)), ORDER.get(key, len(ORDER))))


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean of at least one value."""
    return math.fsum(values) / len(values)


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean of at least two values."""
    draw = random.Random(0)
    means = sorted(mean(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return means[round(0.025 * (RESAMPLES - 1))], means[round(0.975 * (RESAMPLES - 1))]


def probes(n: Mapping[str, int], *groups: str) -> int:
    """Return the number of probes behind the scores of some groups, at least 1. n: score -> number of probes."""
    return max(1, sum(count for key, count in n.items() if group_of(key) in groups))


def group_mean(scores: Mapping[str, float], group: str) -> float | None:
    """Return the mean of a group's scores, with equal weights; None when there are none."""
    own = [value for key, value in scores.items() if group_of(key) == group]
    return mean(own) if own else None


def learned(scores: Mapping[str, float]) -> float | None:
    """Return the learned share: the mean of reliability and the mean of the generality scores. It is reliability alone
    without generality scores, and None without reliability.
    """
    if "reliability" not in scores:
        return None
    general = group_mean(scores, "generality")
    return scores["reliability"] if general is None else mean([scores["reliability"], general])


def forgotten(scores: Mapping[str, float]) -> float | None:
    """Return the forgotten share: one minus the mean of the locality scores; None without any."""
    local = group_mean(scores, "locality")
    return None if local is None else 1.0 - local


def kept(scores: Mapping[str, float]) -> float | None:
    """Return the kept share: one minus the forgotten share; None if unknown."""
    lost = forgotten(scores)
    return None if lost is None else 1.0 - lost


def trade_off(scores: Mapping[str, float]) -> float | None:
    """Return the harmonic mean of the learned and the kept share, which is high only when both are; None if unknown."""
    new, old = learned(scores), kept(scores)
    if new is None or old is None:
        return None
    return 2 * new * old / (new + old) if new + old > 0 else 0.0


def goodness(key: str, value: float) -> float | None:
    """Return 0 (bad) to 1 (good) for the colour of a table cell.

    None for scores that are not declared and for those without a better direction (lengths, drift on the target).
    Scores with `ScoreSpec.ends` (less is better) are 1 at 0, 0.5 at the first end, 0 from the second end on, and linear
    in between. One minus the share would give a leak into half of all answers the pale colour of the middle.
    """
    spec = DECLARED.get(key)
    if spec is None or spec.better == "none":
        return None
    if spec.ends is None:
        return min(max(value, 0.0), 1.0)
    middle, bad = spec.ends
    if value <= middle:
        return 1.0 - 0.5 * max(value, 0.0) / middle
    return max(0.0, 0.5 * (bad - value) / (bad - middle))


BAD, MIDDLE, GOOD = (0xEE, 0x9A, 0x4A), (0xFA, 0xF5, 0xE8), (0x77, 0xB4, 0xDC)
"""Orange, cream and blue as (red, green, blue). They differ for every common kind of colour blindness, and dark text is
readable on them."""


def cell_colour(good: float) -> str:
    """Return a hex colour from orange (0) over cream (0.5) to blue (1)."""
    low, high, share = (BAD, MIDDLE, good * 2) if good < 0.5 else (MIDDLE, GOOD, good * 2 - 1)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(low, high, strict=True))


def is_share(key: str) -> bool:
    """Whether a score is a share, which is written in per cent."""
    return key in DECLARED and DECLARED[key].unit == "share"


def percent(value: float) -> str:
    """Return `12 %` with a no-break space; 0 and 100 are written only when they are exact."""
    return f"{share_text(value)}\u00a0%"


def share_text(value: float) -> str:
    """Return a share in per cent without the sign, as in tables; 0 and 100 are written only when they are exact."""
    shown = round(100 * value)
    if shown == 100 and value < 1:
        return f"{100 * value:.1f}" if value < 0.9995 else ">99.9"
    if shown == 0 and value > 0:
        return f"{100 * value:.1f}" if value >= 0.0005 else "<0.1"
    return str(shown)


def percent_range(shares: Sequence[float]) -> str:
    """Return `12 %`, or `5\u201332 %` if the shares differ as printed."""
    return "\u2013".join(dict.fromkeys(map(share_text, (min(shares), max(shares))))) + "\u00a0%"


def score_text(key: str, value: float) -> str:
    """Return a score as tables show it. A share is in per cent without the sign, a length has one decimal, and other
    scores are written by `amount`.
    """
    if key in DECLARED and DECLARED[key].unit == "tokens":
        return fixed(value, 1)
    return share_text(value) if is_share(key) else amount(value)


def interval_text(key: str, interval: tuple[float, float]) -> str:
    """Return a score's interval as `between` writes it."""
    return between(interval, partial(score_text, key))


def between(interval: tuple[float, float], write: Callable[[float], str] = share_text) -> str:
    """Return `84–97`, or `−0.2 … 1.5` for negative values, where a dash would look like a second minus."""
    return ("–" if min(interval) >= 0 else " … ").join(map(write, interval))


def amount(value: float) -> str:
    """Return a number that is easy to read: 5,210 · 12.1 · 3 · 0.62 · 0.0031 · −0.40."""
    if value < 0:
        return f"\u2212{amount(-value)}" if value <= -0.0001 else ">\u22120.0001"
    if value < 0.0001:
        return "<0.0001" if value else "0"
    if value >= 1000 or value == round(value):
        return f"{value:,.0f}"
    if value >= 100:
        return f"{value:.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def digits(values: Iterable[float]) -> int:
    """Return the number of decimals for a column of exam scores: 3 up to 1 in size, 2 below 1000, else 1."""
    top = max((abs(value) for value in values), default=0.0)
    return 3 if top <= 1 else 2 if top < 1000 else 1


def fixed(value: float, places: int) -> str:
    """Return a number with `places` decimals and a typographic minus: `0.312`, `−1.20`."""
    shown = f"{value:.{places}f}"
    return shown.removeprefix("-") if float(shown) == 0 else shown.replace("-", "\u2212")


def signed(value: float, places: int) -> str:
    """Return a number with `places` decimals and its sign: `+0.041`, `−0.041`, `0.000`."""
    shown = fixed(value, places)
    return f"+{shown}" if value > 0 and float(shown) != 0 else shown


def count_text(counts: Sequence[int], style: str = "") -> str:
    """Return `n = 200`, or `n = 180–200` if the counts differ; empty without counts. style: `,` gives `1,180`."""
    ends = sorted({min(counts), max(counts)}) if counts else ()
    return "n = " + "–".join(f"{n:{style}}" for n in ends) if ends else ""


def p_text(value: float) -> str:
    """Return `p = 0.031` or `p < 0.001`."""
    return "p\u00a0<\u00a00.001" if value < 0.001 else f"p\u00a0=\u00a0{value:.3f}"


def change_text(value: float) -> str:
    """Return a relative change in per cent with its sign: `−12 %`, `+3.4 %`, `0 %`."""
    shown = f"{100 * value:.1f}" if abs(value) < 0.0995 else f"{100 * value:.0f}"
    sign = "+" if float(shown) > 0 else "\u2212" if float(shown) < 0 else ""
    return f"{sign}{shown.lstrip('-') if float(shown) else '0'}\u00a0%"


FEWEST_CHANGES = 5
"""With fewer changes than this no method is called the best: the result of one change says little about the next."""


def has_learned(scores: Mapping[str, float]) -> bool:
    """Whether reliability is above 0.5. Only a method for which this holds can be called the best."""
    return scores.get("reliability", 0.0) > 0.5


def duration(seconds: float) -> Message:
    """Return a duration as `0.4 s`, `12 s`, `3 min 20 s` or `2 h 5 min`."""
    if seconds < 10:
        return say("time.seconds", s=f"{seconds:.1f}")
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    if hours:
        return say("time.hours", h=hours, min=left)
    return say("time.minutes", min=minutes, s=rest) if minutes else say("time.seconds", s=rest)
