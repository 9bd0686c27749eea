"""Find out by trial how a model can read: random tokens are read in the shared ways and by plain forward passes.

The first way that gives the plain passes' log-probabilities is used. A model that none suits is read by plain passes,
with one warning. In float32 the two may differ as far as rounding makes the model differ from itself: some trained
models turn into 4e-4 nats what is 1e-6 in others. If a request is longer than a length at which the configuration
changes something (a sliding window, a chunk, another scale of the positions), the trial is longer too.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from posttrain.inference.attention import Support, forward, numbers_of, read
from posttrain.inference.decode import context_limit
from posttrain.inference.plain import TokenPair
from posttrain.inference.tree import Batch, Grow, Step, Tree
from posttrain.models.adapters import virtual_positions
from posttrain.models.added import added_to
from posttrain.models.logits import UNFIT, core_of
from posttrain.models.marks import bare
from posttrain.models.memory import give_back, is_large
from posttrain.models.prefix import NAMES as PREFIXED

__all__ = ["alike", "reach_of", "support", "taking_masks", "warn"]

TOLERANCE = 1e-4
"""Largest difference in nats of a shared reading in float32, if log-probabilities have a standard deviation of 1."""
NOISE = 4.0
"""Largest difference of a shared reading, as a multiple of the model's own noise; every layer adds rounding."""
ROUNDING = 2.0**-22
"""Relative noise on a model's inputs that measures the model's own noise: one or two roundings of float32."""
LOUDEST = 1e-2
"""Largest difference that noise can allow, as a share of the spread; a noisier model is read by plain passes."""
COARSE = 0.08
"""The same limit in half precision: root mean square, as a share of the spread of the plain log-probabilities."""
ROUNDED = 0.5
"""The limit in half precision if a float32 copy has passed the strict trial.

Then only errors of half precision itself are searched for. Rounding alone gives 2 to 9 % over SmolLM2's 30 layers, and
up to 25 % at one of its positions.
"""
COPIED = 1_000_000_000
"""Largest number of parameters for which a float32 copy is made for trials."""
SHARING: tuple[Literal["flat", "prefix"], ...] = ("flat", "prefix")
"""Ways to share, the cheaper one first."""
CHANGES = ("window", "chunk", "block", "local", "original_max_position")
"""Parts of names in a configuration: such numbers may be lengths at which attention or positions change."""
NO_LENGTHS = ("layers", "pattern", "every", "num_")


def warn(text: str) -> None:
    """Give a Python warning. It is the default way to report something once."""
    warnings.warn(text, stacklevel=2)


@contextmanager
def taking_masks(model: Any, say: Callable[[str], None]) -> Iterator[None]:
    """Within this block, the model's attention takes any mask. Flash and flex attention accept their own
    shapes only.
    """
    inner = core_of(model)
    was = inner.config.get_text_config()._attn_implementation
    if was in ("sdpa", "eager", None, *PREFIXED):
        yield
        return
    try:
        inner.set_attn_implementation("sdpa")
    except ValueError:
        inner.set_attn_implementation("eager")
    _once(
        model,
        f"scoring uses {inner.config.get_text_config()._attn_implementation} attention: {was} takes no tree mask",
        say,
    )
    try:
        yield
    finally:
        inner.set_attn_implementation(was)


@dataclass
class _Known:
    """Results of a model's trials by their lengths, and the sentences already reported about the model."""

    support: dict[tuple[Any, ...], Support] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)


_known: WeakKeyDictionary[Any, _Known] = WeakKeyDictionary()


def _once(model: Any, text: str, say: Callable[[str], None]) -> None:
    known = _known.setdefault(core_of(model), _Known())
    if text not in known.said:
        known.said.add(text)
        say(text)


def alike(model: Any, other: Any) -> None:
    """Make a copy of a model be read as the model is read, without a trial. Readings that are compared must
    not differ in this. Nothing is done if the copy is of another class.
    """
    inner, first = core_of(model), core_of(other)
    if type(inner) is type(first):
        _known[inner] = _known.setdefault(first, _Known())


def support(model: Any, longest: int, say: Callable[[str], None] = warn) -> Support:
    """Return what the model can read for rows of up to `longest` tokens. A trial finds it once. The result
    also holds for adapters on the model (LoRA) and for its copies (`alike`).
    """
    part = added_to(core_of(model))
    if part is not None and part.why_alone():
        found = Support("plain", reason=part.why_alone())
    else:
        found = _tried_once(model, longest, say)
    if found.reason:
        how = "scored one by one" if found.kind == "plain" else "scored over shared prefixes, one to a row"
        _once(model, f"{how}: {found.reason}", say)
    return found


def _tried_once(model: Any, longest: int, say: Callable[[str], None]) -> Support:
    inner = core_of(model)
    known = _known.setdefault(inner, _Known())
    reach = reach_of(numbers_of(model), longest)
    with taking_masks(model, say):
        attention = inner.config.get_text_config()._attn_implementation
        key = (reach, attention, virtual_positions(model), inner.dtype, inner.device.type)
        found = known.support.get(key)
        if found is None:
            with bare(model):
                found = known.support[key] = _tried_exactly(model, reach) or _tried(model, reach)
    return found


def reach_of(config: dict[str, Any], widest: int) -> int:
    """Return the longest text below `widest` tokens beyond which the configuration changes something; 0 if
    none. Such a change is a window, a chunk, or another scale of the positions."""
    longest = 0
    for key, value in config.items():
        named = any(w in str(key) for w in CHANGES) and not any(w in str(key) for w in NO_LENGTHS)
        if isinstance(value, dict):
            longest = max(longest, reach_of(value, widest))
        elif named and isinstance(value, int) and 1 < value < widest:
            longest = max(longest, value)
    return longest


def _tried_exactly(model: Any, reach: int) -> Support | None:
    """Return what a float32 copy of a half-precision model can read, if the model itself can read it in this way.

    In a float32 copy, a wrong mask is not confused with rounding. Return None if there is nothing to copy (float32, a
    GPU, a large model) and if the two disagree."""
    inner = core_of(model)
    large = sum(p.numel() for p in inner.parameters()) > COPIED
    if inner.device.type != "cpu" or inner.dtype.itemsize >= 4 or large:
        return None
    found = _tried(copy.deepcopy(model).float(), reach)
    if is_large(inner):
        give_back()  # frees the copy
    return None if _problem(model, reach, found, coarse=ROUNDED) else found


def _tried(model: Any, reach: int) -> Support:
    """Read random tokens in the shared ways, compare with plain passes, and return the first way that agrees."""
    why = "it has recurrent layers"
    if not core_of(model)._is_stateful:
        line = ""
        for kind in SHARING:
            for brief in (True, False):
                way = Support(kind, brief=brief, reason=line)
                why = _problem(model, reach, way)
                if not why:
                    return way
            line = f"a tree mask does not suit it ({why})"
        why = f"sharing would be wrong for it ({why})"
    return Support("plain", batched=not _problem(model, reach, Support("plain")), reason=why)


def _problem(model: Any, reach: int, way: Support, *, coarse: float = COARSE) -> str:
    """Return what is wrong with this way of reading, or "". `coarse` is the largest difference from plain
    passes in half precision."""
    pairs = _trial(model, reach)
    tree, expected = Tree(pairs, share=way.kind != "plain"), _expected(model, pairs)
    dtype: torch.dtype = core_of(model).dtype
    p, a, b, c, d, other = range(1, 7)
    plans: dict[str, list[list[Step]]] = {
        "flat": [[Batch([[p, a, b, c, d, other]])], [Grow([p]), Batch([[a, b, c, d]])]],
        "prefix": [[Batch([[p, a], [other]])], [Grow([p]), Batch([[a], [b, c], [b, d]])]],
        "plain": [[Batch([[n] for n in range(1, 5)])]],
    }
    noise: float | None = None
    try:
        for steps in plans[way.kind]:
            for reading in read(model, tree, steps, way, answers=1 << 30, tokens=1 << 30):
                asked = reading.asked
                found = torch.log_softmax(reading.logits.float(), -1)
                for i, t, row in zip(asked.requests.tolist(), asked.steps.tolist(), asked.row.tolist(), strict=True):
                    problem = _differ(found[row], expected[i][t], dtype, coarse)
                    if problem and noise is None:
                        noise = _noise(model, pairs, expected)
                    if problem and _differ(found[row], expected[i][t], dtype, coarse, noise=noise or 0.0):
                        return problem
    except torch.OutOfMemoryError:
        raise
    except UNFIT as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""


def _trial(model: Any, reach: int) -> list[TokenPair]:
    """Return rows p+a, p+b+c, p+b+d and another row, of random tokens. With `reach`, p is so long that its
    branches go beyond this length."""
    config, limit = numbers_of(model), context_limit(model)
    special = {
        number
        for key, value in config.items()
        if key.endswith(("token_id", "token_index"))
        for number in (value if isinstance(value, list) else [value])
    }
    choose = random.Random(0)
    allowed = [
        i for i in choose.sample(range(config["vocab_size"]), min(config["vocab_size"], 256)) if i not in special
    ]
    start, *first, after = sorted(choose.sample(allowed, 4))  # the order of first tokens is the order of branches

    def some(length: int) -> list[int]:
        return choose.choices(allowed, k=length)

    length = max(1, min(max(6, reach - 3), limit - 24))
    shared = [start, *some(length - 1)]
    a, b = [first[0], *some(4)], [first[1], *some(3)]
    c, d = ([token, *some(more)] for token, more in ((first[0], 2), (first[1], 5)))
    rows = [shared + a, shared + b + c, shared + b + d, [after, *some(8)]]
    cut = [length - 1 or 1] * 3 + [4]
    return [TokenPair(row[:at], row[at:] + some(1)) for row, at in zip(rows, cut, strict=True)]


@torch.inference_mode()
def _expected(model: Any, pairs: list[TokenPair]) -> list[Tensor]:
    """Return log-probabilities (A, V) of each pair, from its own forward pass."""
    found = []
    for context, continuation in pairs:
        ids = torch.tensor([[*context, *continuation][:-1]], device=core_of(model).device)
        index = torch.arange(len(context) - 1, ids.shape[1])
        found.append(torch.log_softmax(forward(model, ids, index).float(), -1))
    return found


def _noise(model: Any, pairs: list[TokenPair], expected: list[Tensor]) -> float:
    """Return by how many nats a float32 model differs from itself if its inputs are rounded differently.
    Return 0 in half precision."""
    if core_of(model).dtype.itemsize < 4:
        return 0.0
    draw = torch.Generator().manual_seed(0)

    def rounded(_: Any, __: Any, out: Tensor) -> Tensor:
        signs = torch.randint(0, 2, out.shape, generator=draw).to(out) * 2 - 1
        return out * (1 + ROUNDING * signs)

    with core_of(model).get_input_embeddings().register_forward_hook(rounded):
        again = _expected(model, pairs)
    return max(float((a - b).abs().max()) for a, b in zip(again, expected, strict=True))


def _differ(found: Tensor, expected: Tensor, dtype: torch.dtype, coarse: float = COARSE, *, noise: float = 0.0) -> str:
    """Return what is wrong with log-probabilities (V,), or "" if they are equal up to rounding. `noise` is
    the model's own noise in nats."""
    gap = found - expected
    spread = float(expected.std())
    if dtype in (torch.float32, torch.float64):
        worst = float(gap.abs().max())
        allowed = max(TOLERANCE * max(1.0, spread), min(NOISE * noise, LOUDEST * spread))
        return "" if worst <= allowed else f"log-probabilities differ by {worst:.2g}"
    share = float(gap.square().mean().sqrt()) / max(spread, 1e-6)
    return "" if share <= coarse else f"log-probabilities differ by {share:.0%} of their spread"
