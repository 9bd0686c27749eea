"""Second moments of keys: what else the edited matrix is asked for, so that an edit can leave it alone.

    C = 1/n sum_t k_t k_t^T        k_t: the input of a layer's output matrix at token t, (d,)

It is the statistics of ROME and MEMIT (Meng et al. 2022, arXiv:2202.05262, eq. 2). They took 100,000 articles of
Wikipedia and a forward pass per layer; a few times d tokens do as well (arXiv:2506.04226), and one pass serves all
layers. By default the texts are the packaged replay prompts with the model's own answers: what it says now
shall stay. The first token of a text, and tokens with keys of more than `OUTLIER` times the median length, are
attention sinks: they say nothing of facts, and a single one can outweigh all others.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from posttrain.editing.reading import batches, padded, stopping_after
from posttrain.editing.sites import Site, Sites
from posttrain.errors import DataError, PosttrainError, Problem
from posttrain.models.disk import whole_file
from posttrain.models.meter import Meter
from posttrain.retention.selection import NoAnswers

__all__ = ["FORMAT", "Measure", "Moment", "cached_moments", "measure_moments", "outer"]

FORMAT = 1
"""Version of cached moments; a new number makes older files unused."""
OUTLIER = 10.0
"""Tokens with keys of more than so many times the median length of their batch are left out."""
BATCH_TOKENS = 4096
BLOCK = 384
"""Width of the blocks of columns whose products are computed on a CPU: only those at and above the diagonal are."""


class Moment(NamedTuple):
    """The second moment of a layer's keys (d, d), in float32 or finer; the number of tokens, and of those left out."""

    matrix: Tensor
    tokens: int
    left_out: int = 0


def outer(keys: Tensor, into: Tensor) -> None:
    """Add K^T K to `into` (d, d), in place; on a CPU only its blocks at and above the diagonal. keys: (n, d)."""
    width = keys.shape[1]
    if keys.device.type != "cpu" or width <= BLOCK:
        into.addmm_(keys.T, keys)
        return
    for first in range(0, width, BLOCK):
        into[first : first + BLOCK, first:].addmm_(keys[:, first : first + BLOCK].T, keys[:, first:])


def _mirrored(matrix: Tensor) -> Tensor:
    """Return the symmetric matrix with this upper triangle."""
    upper = matrix.triu()
    return upper + upper.T - torch.diag(upper.diagonal())


class _Sums:
    """The sums of one layer's keys."""

    def __init__(self, site: Site, device: torch.device, dtype: torch.dtype) -> None:
        self.total = torch.zeros(site.inputs, site.inputs, device=device, dtype=dtype)
        self.count = self.left_out = 0
        self.kept = torch.empty(0)  # (B, T) bool, which tokens of the batch are tokens of texts, without the first

    def read(self, _: nn.Module, args: Any, output: Any) -> None:
        """Add the keys of a batch: a forward hook of the edited module."""
        keys = args[0].reshape(-1, args[0].shape[-1])[self.kept.view(-1)].to(self.total.dtype)
        lengths = keys.norm(dim=1)
        usual = (lengths <= OUTLIER * lengths.median()) | ~lengths.isfinite()  # what is no number stays, for the error
        whole = bool(usual.all())
        outer(keys if whole else keys[usual], self.total)
        self.count += len(keys) if whole else int(usual.sum())
        self.left_out += 0 if whole else int((~usual).sum())


@torch.no_grad()
def measure_moments(
    sites: Sites, texts: Sequence[Sequence[int]], layers: Sequence[Site], *, batch_tokens: int = BATCH_TOKENS
) -> dict[int, Moment]:
    """Return the second moments of the keys of several layers, by layer, from one pass over texts of token ids.

    Raise DataError if the texts have no token but their first ones, and PosttrainError if a number is not finite.
    """
    model: Any = sites.model
    rows = [list(text) for text in texts if len(text) > 1]
    if not rows:
        raise DataError(Problem("moments", "the texts have no tokens to measure keys on", "give longer texts"))
    precise = torch.promote_types(model.dtype, torch.float32)
    sums = {site.layer: _Sums(site, model.device, precise) for site in layers}
    last = model.get_submodule(sites.layers[max(sums)])
    with ExitStack() as stack, Meter("measuring second moments of keys", sum(map(len, rows)), "tokens") as meter:
        for site in layers:
            stack.enter_context(sites.module(site).register_forward_hook(sums[site.layer].read))
        for batch in batches([len(row) for row in rows], batch_tokens):
            ids = padded([rows[i] for i in batch], model.device)
            lengths = torch.tensor([len(rows[i]) for i in batch], device=model.device)
            columns = torch.arange(ids.shape[1], device=model.device)[None]
            for each in sums.values():
                each.kept = (columns > 0) & (columns < lengths[:, None])
            with stopping_after(last):
                model(input_ids=ids, use_cache=False)
            meter.more(int(lengths.sum()))
    made = {}
    for layer, each in sums.items():
        matrix = _mirrored(each.total) / max(each.count, 1)
        if not bool(torch.isfinite(matrix).all()):
            mend = "load the model in float32 or bfloat16"
            raise PosttrainError(Problem(f"layer {layer}", "the second moments of keys are not finite", mend))
        made[layer] = Moment(matrix, each.count, each.left_out)
    return made


Measure = Callable[[Sites, Sequence[Sequence[int]], Sequence[Site]], dict[int, Moment]]
"""Maps (the places, texts of token ids, layers) to second moments by layer."""


def cached_moments(
    sites: Sites,
    layers: Sequence[Site],
    texts: Callable[[], Sequence[Sequence[int]]],
    *,
    key: str,
    folder: Path,
    say: Callable[[str], None],
    measure: Measure = measure_moments,
    of: str = "moments",
) -> dict[int, Moment]:
    """Return second moments, from files of the cache where they are there, else measured and put there.

    key: what they depend on besides the layer: the fingerprint of the model and of the texts; texts: makes the texts,
    called only if a layer is missing; say: takes a line about cost and sample size; measure: how they are measured; of:
    the folder within the cache. Raise DataError if the model answers nothing, so that there are no texts.
    """
    names = {site.layer: folder / of / f"{_digest(key, site.layer)}.safetensors" for site in layers}
    known = {site.layer: _read(names[site.layer], sites.weight(site).shape) for site in layers}
    found = {layer: moment for layer, moment in known.items() if moment is not None}
    device = sites.model.device
    missing = [site for site in layers if site.layer not in found]
    if missing:
        began = time.monotonic()
        rows = _gathered(texts)
        gathered = time.monotonic() - began
        made = measure(sites, rows, missing)
        one = next(iter(made.values()))
        spent = time.monotonic() - began - gathered
        say(
            f"second moments (layers: {len(made)}) from {one.tokens} tokens of {len(rows)} texts: {spent:.1f} s"
            + (f" after {gathered:.1f} s for the texts" if gathered > 1 else "")
        )
        left_out = sum(moment.left_out for moment in made.values())
        if left_out:
            say(f"{left_out} keys of attention sinks are left out of the second moments")
        for site in missing:
            _write(names[site.layer], made[site.layer])
        found |= made
    return {site.layer: found[site.layer]._replace(matrix=found[site.layer].matrix.to(device)) for site in layers}


def _gathered(texts: Callable[[], Sequence[Sequence[int]]]) -> Sequence[Sequence[int]]:
    """Return the texts. Raise DataError, with a mend that editing has, if the model answers nothing."""
    try:
        return texts()
    except NoAnswers as error:
        cause = "this editor measures second moments on the model's own answers"
        mend = "choose one that needs none: locft, ft_l or ultraedit"
        raise DataError(*error.without_mend(), Problem("editor", cause, mend)) from error


def _digest(key: str, layer: int) -> str:
    return hashlib.sha256(f"{FORMAT} {key} {layer}".encode()).hexdigest()[:32]


def _read(path: Path, widths: Sequence[int]) -> Moment | None:
    """Return what a file holds; None if it is not there, or not whole. widths: of the layer's matrix."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        return None
    try:
        tensors = load_file(path)
        matrix, (tokens, left_out) = tensors["matrix"], tensors["counts"].tolist()
    except (SafetensorError, OSError, KeyError, ValueError):  # a damaged file is measured again
        return None
    whole = matrix.shape in [(width, width) for width in widths] and bool(torch.isfinite(matrix).all())
    return Moment(matrix, int(tokens), int(left_out)) if whole else None


def _write(path: Path, moment: Moment) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    counts = torch.tensor([moment.tokens, moment.left_out])
    with whole_file(path) as temporary:
        save_file({"matrix": moment.matrix.cpu().contiguous(), "counts": counts}, temporary)
