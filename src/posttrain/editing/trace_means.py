"""Averages of causal traces over facts, with intervals, and what they say about the layers to edit.

A fact gives one number for each layer and role: the mean of the indirect effects at its tokens of that role. Over N
facts the interval is Student's, mean +- t s / sqrt(N). The largest of many layers is chosen because it is large, so its
own interval says too much; whether it is above zero is decided by a band that holds for all layers at once:

    mean_l - q s_l / sqrt(N) > 0,   q: the 95 % point over resamples of the facts of max_l |mean*_l - mean_l| / se_l

(a bootstrap of the largest deviation, Romano & Wolf 2005, Econometrica 73:1237, widened for few facts by t / 1.96). The
same resamples say which layers would have been the largest.

Fewer than five facts have no such band. They give a hint at most, and only for a large effect: at least a tenth of what
the noise took away, and from two facts on with Student's interval above zero. An effect of less than a twentieth of
it is never recommended, however sure it is.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from posttrain.editing.places import Kind, window_of
from posttrain.editing.trace_file import ALL, ROLES, Advice, Average, FactTrace, Mean, Role, rounded

__all__ = ["advise", "averages", "band_around", "mean_of", "roles_of"]

T975 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448,
    2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484,
    2.0452, 2.0423,
)  # fmt: skip
"""The 97.5 % points of Student's t with 1 to 30 degrees of freedom."""
Z975 = 1.96
RESAMPLES = 4000
FEWEST = 5
"""With fewer facts nothing is said about all layers at once."""
HINTS = 0.1
"""With fewer facts, an effect is a hint from this share of the total effect on."""
LEAST = 0.05
"""A smaller share of the total effect is no reason to edit a layer, whatever its interval."""
BAND = 6
"""A band of layers has a sixth of the depth, as published bands have (4 to 8 of 32, 3 to 8 of 28)."""
WIDEST = 5

Array = NDArray[np.float64]


def roles_of(begins: int, subject: range, last: int, noisy: Collection[int] = ()) -> tuple[Role, ...]:
    """Return the role of each token from the question's first to the last one that is read. noisy: the tokens that
    mention the subject.

    >>> roles_of(3, range(4, 7), 9)
    ('before', 'first_subject', 'middle_subject', 'last_subject', 'first_after', 'later', 'last')
    >>> roles_of(0, range(1, 2), 5, noisy=(1, 3, 4))
    ('before', 'last_subject', 'first_after', 'repeated', 'repeated', 'last')
    """

    def role(at: int) -> Role:
        if at in subject:
            if at == subject[-1]:
                return "last_subject"
            return "first_subject" if at == subject.start else "middle_subject"
        if at == last:
            return "last"
        if at in noisy:
            return "repeated"
        if at < subject.start:
            return "before"
        return "first_after" if at == subject.stop else "later"

    return tuple(role(at) for at in range(begins, last + 1))


def mean_of(values: Sequence[float], least: float = 0.0) -> Mean:
    """Return the mean of a number between `least` and 1 over facts, with its interval."""
    made = _average(np.asarray(values, dtype=np.float64)[:, None], least)
    return Mean(n=made.n, mean=made.mean[0], low=made.low[0] if made.low else None, high=_first(made.high))


def _first(values: Sequence[float]) -> float | None:
    return values[0] if values else None


def averages(facts: Sequence[FactTrace], kinds: Sequence[Kind]) -> dict[Kind, dict[str, Average]]:
    """Return the mean effect over facts: kind -> role (and `all`) -> layers. A role that no fact has is left out."""
    found: dict[Kind, dict[str, Average]] = {}
    for kind in kinds:
        found[kind] = {}
        for role in (*ROLES, ALL):
            rows = [row for fact in facts if (row := _of_role(fact, kind, role)) is not None]
            if rows:
                found[kind][role] = _average(np.stack(rows))
    return found


def _of_role(fact: FactTrace, kind: Kind, role: str) -> Array | None:
    """Return a fact's mean effect at its tokens of a role, (L,); None if it has none."""
    effects = np.asarray(fact.effects[kind], dtype=np.float64)  # (T, L)
    if role == ALL:
        return effects[fact.noisy.index(True) :].mean(0)
    at = [i for i, own in enumerate(fact.roles) if own == role]
    return effects[at].mean(0) if at else None


def student(n: int) -> float:
    """Return the 97.5 % point of Student's t for n values."""
    return T975[n - 2] if n - 2 < len(T975) else Z975 + 2.45 / (n - 1)


def _average(values: Array, least: float = -1.0) -> Average:
    """Return the means of values (N, L), between `least` and 1, over N facts, with intervals."""
    n, mean = len(values), values.mean(0)
    if n < 2:
        return Average(n=n, mean=tuple(map(rounded, mean.tolist())))
    half = student(n) * values.std(0, ddof=1) / math.sqrt(n)
    low, high = ((mean + sign * half).clip(least, 1.0).tolist() for sign in (-1, 1))
    numbers = {"mean": mean.tolist(), "low": low, "high": high}
    return Average(n=n, **{key: tuple(map(rounded, each)) for key, each in numbers.items()})


# ---- which layers to edit --------------------------------------------------------------------------------------------


def advise(facts: Sequence[FactTrace], width: int, *, seed: int = 0) -> Advice | None:
    """Return which layers to edit, by the windows of feed-forward parts at the subject's last token; None if these were
    not traced. width: of the windows.

    Windows with layer 0 are left out: its feed-forward part sees hardly more than the token, whose embedding got the
    noise, so that restoring it tells the model who the subject is, and not what is known of it. If all windows have
    layer 0, the advice is `none`, with the largest of them.
    """
    rows = [
        row for fact in facts if "mlp" in fact.effects and (row := _of_role(fact, "mlp", "last_subject")) is not None
    ]
    if not rows:
        return None
    values = np.stack(rows)  # (N, L)
    n, count = values.shape
    begins = next((at for at in range(count) if 0 not in window_of(at, width, count)), count)
    average, mean = _average(values), values.mean(0)
    layer = begins + int(mean[begins:].argmax()) if begins < count else int(mean.argmax())
    found = {
        "n": n, "layer": layer, "mean": average.mean[layer],
        "low": average.low[layer] if average.low else None, "high": average.high[layer] if average.high else None,
        "left_out": begins, "first": rounded(float(mean[:begins].max())) if begins else 0.0,
    }  # fmt: skip
    if begins == count:
        reason = "every window holds layer 0, and none is counted: trace with a smaller one, --set window=1"
        return Advice(verdict="none", reason=reason if count > 1 else "the model has no layer above layer 0", **found)
    total = float(np.mean([fact.total_effect for fact in facts]))
    layers, band = (layer,), band_around(layer, count)
    if n < FEWEST:
        if why := _no_hint(average, layer, total):
            return Advice(verdict="none", reason=why, **found)
        reason = "one fact says nothing for sure" if n == 1 else f"fewer than {FEWEST} facts say nothing for sure"
        return Advice(verdict="hint", layers=layers, band=band, reason=reason, **found)
    lowest, wins = _surely(values[:, begins:], layer - begins, seed)
    alike = tuple(begins + at for at in wins)
    if lowest <= 0:
        reason = "no layer's effect is above zero once it counts that the largest was chosen among all"
        return Advice(verdict="none", alike=alike, reason=reason, **found)
    if mean[layer] < LEAST * total:
        share = f"{100 * LEAST:.0f} %"
        reason = f"that is less than {share} of the total effect of {total:.3f}: too little to choose a layer by"
        return Advice(verdict="none", alike=alike, reason=reason, **found)
    return Advice(verdict="peak", layers=layers, band=band, alike=alike, **found)


def _no_hint(average: Average, layer: int, total: float) -> str:
    """Return why the mean effect of a few facts at a layer is not even a hint, or ""."""
    if average.mean[layer] <= 0:
        return "no layer that is counted brings anything back"
    if average.mean[layer] < HINTS * total:
        share = f"{100 * HINTS:.0f} %"
        if average.n == 1:
            return f"that is less than {share} of the total effect of {total:.3f}: too little to go by one fact"
        return f"that is less than {share} of the total effect of {total:.3f}: too little for fewer than {FEWEST} facts"
    if average.low and average.low[layer] <= 0:
        return f"the interval over {average.n} facts contains 0"
    return ""


def band_around(layer: int, count: int) -> tuple[int, ...]:
    """Return the layers in a row with a layer in their middle: a sixth of all, five at most.

    >>> band_around(6, 30), band_around(1, 30), band_around(23, 24), band_around(2, 6)
    ((4, 5, 6, 7, 8), (0, 1, 2, 3, 4), (20, 21, 22, 23), (2,))
    """
    width = max(1, min(WIDEST, round(count / BAND)))
    start = min(max(0, layer - width // 2), count - width)
    return tuple(range(start, start + width))


def _surely(values: Array, layer: int, seed: int) -> tuple[float, tuple[int, ...]]:
    """Return the lower end, for all layers at once, of the mean at a layer, and the layers that are the largest in 95 %
    of resamples of the facts. values: (N, L).
    """
    n, count = values.shape
    mean, error = values.mean(0), values.std(0, ddof=1) / math.sqrt(n)
    drawn = np.random.default_rng(seed).multinomial(n, [1 / n] * n, size=RESAMPLES) / n  # (R, N)
    means = drawn @ values  # (R, L)
    moves = error > 1e-12
    if moves.any():
        deviations = np.abs(means[:, moves] - mean[moves]) / error[moves]
        width = float(np.percentile(deviations.max(1), 95)) * student(n) / Z975
    else:
        width = 0.0
    wins = np.bincount(means.argmax(1), minlength=count) / RESAMPLES
    alike: list[int] = []
    for at in np.argsort(-wins, kind="stable").tolist():
        if sum(float(wins[i]) for i in alike) >= 0.95:
            break
        alike.append(at)
    return float(mean[layer] - width * error[layer]), tuple(alike)
