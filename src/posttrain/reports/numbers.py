"""The report's arithmetic: averages with intervals, learned against forgotten, columns, how numbers are written."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from posttrain.exams.scores import SPECS
from posttrain.reports.texts import Message, say

__all__ = ["bootstrap", "cell_colour", "columns", "forgotten", "goodness", "group_mean", "kept", "learned", "mean"]

MISSING = "–"
RESAMPLES = 1000

GROUPS: tuple[str, ...] = tuple(dict.fromkeys(spec.group for spec in SPECS))
"""Score groups of the change exam in the order of the report."""
DECLARED = {spec.key: spec for spec in SPECS}
ORDER = {spec.key: number for number, spec in enumerate(SPECS)}


def group_of(key: str) -> str:
    """The group of a score: what stands before the first dot."""
    return key.partition(".")[0]


def columns(score_keys: Iterable[str], groups: Sequence[str] = GROUPS) -> list[str]:
    """The scores of a table, ordered and grouped; a score of an unknown group comes last, never lost."""
    found = dict.fromkeys(score_keys)
    wanted = [k for k in found if group_of(k) in groups or (groups is GROUPS and group_of(k) not in GROUPS)]
    rank = {group: number for number, group in enumerate(groups)}
    return sorted(wanted, key=lambda key: (rank.get(group_of(key), len(rank)), ORDER.get(key, len(ORDER))))


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one value."""
    return math.fsum(values) / len(values)


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """95 % percentile interval of the mean, resampling the values with replacement, of which there are two at least."""
    draw = random.Random(0)
    means = sorted(mean(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return means[round(0.025 * (RESAMPLES - 1))], means[round(0.975 * (RESAMPLES - 1))]


def probes(n: Mapping[str, int], *groups: str) -> int:
    """How many probes the scores of some groups are of, one at least."""
    return max(1, sum(count for key, count in n.items() if group_of(key) in groups))


def group_mean(scores: Mapping[str, float], group: str) -> float | None:
    """Mean of a group's scores, each kind counting the same; None where there are none."""
    own = [value for key, value in scores.items() if group_of(key) == group]
    return mean(own) if own else None


def learned(scores: Mapping[str, float]) -> float | None:
    """Mean of reliability and the mean of the generality scores; reliability alone where no generality was asked."""
    if "reliability" not in scores:
        return None
    general = group_mean(scores, "generality")
    return scores["reliability"] if general is None else mean([scores["reliability"], general])


def forgotten(scores: Mapping[str, float]) -> float | None:
    """One minus the mean of the locality scores."""
    local = group_mean(scores, "locality")
    return None if local is None else 1.0 - local


def kept(scores: Mapping[str, float]) -> float | None:
    """One minus what was forgotten."""
    lost = forgotten(scores)
    return None if lost is None else 1.0 - lost


def trade_off(scores: Mapping[str, float]) -> float | None:
    """Harmonic mean of learned and kept: high only when both are."""
    new, old = learned(scores), kept(scores)
    if new is None or old is None:
        return None
    return 2 * new * old / (new + old) if new + old > 0 else 0.0


def goodness(key: str, value: float) -> float | None:
    """0 (bad) to 1 (good) for the cell's colour; None where neither end is better (lengths, drift on the target).

    Where less is better: 1 at 0, 0.5 at the middle of `ScoreSpec.ends`, 0 from their bad end on, straight between. One
    minus the share would paint a leak of half of all answers in the pale colour of the middle.
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
"""Orange, cream, blue: apart for every common kind of colour blindness, and light enough for dark text."""


def cell_colour(good: float) -> str:
    """Hex colour from orange (0) over cream (0.5) to blue (1)."""
    low, high, share = (BAD, MIDDLE, good * 2) if good < 0.5 else (MIDDLE, GOOD, good * 2 - 1)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(low, high, strict=True))


def is_share(key: str) -> bool:
    """Whether a score is a share, written in per cent."""
    return key in DECLARED and DECLARED[key].unit == "share"


def percent(value: float) -> str:
    """`12 %` with a space that does not break; 0 and 100 only when they are exact."""
    return f"{share_text(value)}\u00a0%"


def share_text(value: float) -> str:
    """A share in per cent without the sign, as tables have it; 0 and 100 only when they are exact."""
    shown = round(100 * value)
    if shown == 100 and value < 1:
        return f"{100 * value:.1f}" if value < 0.9995 else ">99.9"
    if shown == 0 and value > 0:
        return f"{100 * value:.1f}" if value >= 0.0005 else "<0.1"
    return str(shown)


def percent_range(shares: Sequence[float]) -> str:
    """`12 %`, or `5\u201332 %` where they differ as printed."""
    return "\u2013".join(dict.fromkeys(map(share_text, (min(shares), max(shares))))) + "\u00a0%"


def score_text(key: str, value: float) -> str:
    """A score as its table shows it: shares in per cent without the sign, the rest with two significant digits."""
    if key in DECLARED and DECLARED[key].unit == "tokens":
        return fixed(value, 1)
    return share_text(value) if is_share(key) else amount(value)


def interval_text(key: str, interval: tuple[float, float]) -> str:
    """A score's interval, as `between` writes it."""
    return between(interval, partial(score_text, key))


def between(interval: tuple[float, float], write: Callable[[float], str] = share_text) -> str:
    """`84–97`; `−0.2 … 1.5` where a dash would look like another minus."""
    return ("–" if min(interval) >= 0 else " … ").join(map(write, interval))


def amount(value: float) -> str:
    """A number for reading: 5,210 · 12.1 · 3 · 0.62 · 0.0031 · −0.4."""
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
    """Decimals of a column of exam scores: 3 where none is above 1 in size, 2 below 1000, else 1."""
    top = max((abs(value) for value in values), default=0.0)
    return 3 if top <= 1 else 2 if top < 1000 else 1


def fixed(value: float, places: int) -> str:
    """A number with so many decimals and a real minus: `0.312`, `−1.20`."""
    shown = f"{value:.{places}f}"
    return shown.removeprefix("-") if float(shown) == 0 else shown.replace("-", "\u2212")


def signed(value: float, places: int) -> str:
    """The same with its sign: `+0.041`, `−0.041`, `0.000`."""
    shown = fixed(value, places)
    return f"+{shown}" if value > 0 and float(shown) != 0 else shown


def count_text(counts: Sequence[int], style: str = "") -> str:
    """`n = 200`, `n = 180–200` where they differ; empty where there are none. style: `,` for `1,180`."""
    ends = sorted({min(counts), max(counts)}) if counts else ()
    return "n = " + "–".join(f"{n:{style}}" for n in ends) if ends else ""


def p_text(value: float) -> str:
    """`p = 0.031`, `p < 0.001`."""
    return "p\u00a0<\u00a00.001" if value < 0.001 else f"p\u00a0=\u00a0{value:.3f}"


def change_text(value: float) -> str:
    """A relative change in per cent with its sign: `−12 %`, `+3.4 %`, `0 %`."""
    shown = f"{100 * value:.1f}" if abs(value) < 0.0995 else f"{100 * value:.0f}"
    sign = "+" if float(shown) > 0 else "\u2212" if float(shown) < 0 else ""
    return f"{sign}{shown.lstrip('-') if float(shown) else '0'}\u00a0%"


FEWEST_CHANGES = 5
"""With fewer changes no method is called the best: what one change does says little about the next."""


def has_learned(scores: Mapping[str, float]) -> bool:
    """Whether the new answer is given to more than half of the target questions: no other method is called best."""
    return scores.get("reliability", 0.0) > 0.5


def duration(seconds: float) -> Message:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return say("time.seconds", s=f"{seconds:.1f}")
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    if hours:
        return say("time.hours", h=hours, min=left)
    return say("time.minutes", min=minutes, s=rest) if minutes else say("time.seconds", s=rest)
