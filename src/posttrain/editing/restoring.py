"""The three runs of causal tracing: clean, corrupted, and corrupted with one thing restored (arXiv:2202.05262, sec. 2).

    clean       the text as it is                                                                    1 row
    corrupted   noise is added to the embeddings of the subject's tokens                             S rows
    restored    the same noise, and the output of a part at one token is what it was in the clean run    S rows a cell

A cell is a part, a layer and a token; there are thousands, and each would be a forward pass of S whole rows. Two things
do not change: tokens before the restored one, because attention looks back only, and layers below the first restored
one. So a cell is read from its own token and its own layer on: its rows get the hidden states that enter that layer in
the corrupted run, and the keys and values of the tokens before. Many cells of one token go through the model at once,
ordered by layer; the pass begins at the lowest of them. The output head reads the answer's positions alone.

`PlainRun` reads every row as a whole; a trial compares the two ways, and models of which the fast one is not true
(recurrent layers) are read in the plain way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from posttrain.editing.beginning import Before, beginning_at
from posttrain.editing.places import Kind, Places
from posttrain.editing.sites import first_of, hooked, replaced
from posttrain.inference.attention import forward, numbers_of
from posttrain.inference.support import reach_of
from posttrain.models.logits import UNFIT, raised

__all__ = ["Cell", "PlainRun", "Run", "TracedRow", "run_of"]

LOGITS = 1 << 26
"""Largest number of logits at once."""
FEWEST = 4
"""A row counts as at least so many tokens in a batch: a cell of one token has its share of other work."""
TOLERANCE = 1e-4
"""Largest difference of log-probabilities, in nats, between the two ways of reading: in float32."""
COARSE = 0.1
"""The same limit in half precision."""


class Cell(NamedTuple):
    """What is restored: a part of a layer (for `mlp` and `attn`: of the layers of the window around it) at a token."""

    kind: Kind
    layer: int
    token: int


class TracedRow(NamedTuple):
    """A text and what is asked of it.

    ids: token ids; noisy: the indices of the tokens that get noise, in ascending order; asked: the positions whose
    logits predict the answer, which is the last token when only its first one counts; targets: the answer's ids.
    """

    ids: list[int]
    noisy: tuple[int, ...]
    asked: range
    targets: list[int]


class Put(NamedTuple):
    """What a module's output is replaced by: for cells (n,) of the batch, at columns (n,), values (n, D)."""

    cells: Tensor
    columns: Tensor
    values: Tensor


class PlainRun:
    """The runs of one row. Each reading of cells is a pass over whole rows.

    noise: (P, S, D), what is added to the embeddings of the P noisy tokens in each of S samples; batch_tokens: the
    largest number of tokens in a forward pass. clean (m,), corrupted (S, m): log-probabilities of the answer's tokens,
    in nats.
    """

    def __init__(self, model: Any, places: Places, row: TracedRow, noise: Tensor, batch_tokens: int) -> None:
        self.model, self.places, self.row, self.batch_tokens = model, places, row, batch_tokens
        self.device = model.device
        self.noise = noise.to(model.device, model.dtype).transpose(0, 1)  # (S, P, D)
        self.ids = torch.tensor(row.ids, device=self.device)
        self.targets = torch.tensor(row.targets, device=self.device)
        self.outputs: dict[str, Tensor] = {}  # of the clean run: module -> (T, D)
        self.inputs: list[Tensor] = []  # layer -> (T, D)
        with torch.no_grad(), ExitStack() as stack:
            for name in dict.fromkeys(places.every):
                stack.enter_context(model.get_submodule(name).register_forward_hook(self._keeping(name)))
            for block in self.blocks:
                stack.enter_context(block.register_forward_pre_hook(self._entering(self.inputs, 0), with_kwargs=True))
            self.clean = self._whole(1)[0]
        with torch.no_grad():
            self.corrupted = self._corrupted()

    @property
    def samples(self) -> int:
        """The number S of samples of noise."""
        return self.noise.shape[0]

    @property
    def probability(self) -> tuple[float, float]:
        """The answer's probability in the clean run, and its mean over the samples of the corrupted one."""
        return float(self.clean.double().sum().exp()), float(self.corrupted.double().sum(-1).exp().mean())

    @property
    def blocks(self) -> list[nn.Module]:
        """The layers."""
        return [self.model.get_submodule(name) for name in self.places.layers]

    def _keeping(self, name: str) -> Any:
        def keep(_: nn.Module, args: Any, output: Any) -> None:
            states = first_of(output)
            self.outputs[name] = states.reshape(-1, states.shape[-1]).clone()

        return keep

    @staticmethod
    def _entering(into: list[Tensor], begin: int) -> Any:
        """Return a hook that keeps what enters a layer, from a column on; of one row without the first dimension."""

        def keep(_: nn.Module, args: Any, keywords: Any) -> None:
            states: Tensor = args[0] if args else keywords["hidden_states"]
            into.append((states[0] if len(states) == 1 else states)[..., begin:, :].clone())

        return keep

    def _corrupted(self) -> Tensor:
        with self._noise(1):
            return self._whole(self.samples)

    def _whole(self, rows: int, **inputs: Any) -> Tensor:
        """Return log-probabilities (rows, m) of the answer, read over whole rows."""
        return self._logps(self.ids.expand(rows, -1), 0, **inputs)

    def _logps(self, ids: Tensor, begin: int, **inputs: Any) -> Tensor:
        """Return log-probabilities (B, m) of the answer, of rows of ids (B, Q) that begin at a position of the text."""
        count, width = ids.shape
        index = torch.arange(count)[:, None] * width + torch.tensor([p - begin for p in self.row.asked])
        logits = raised(forward(self.model, ids, index.flatten(), **inputs)).view(count, len(self.targets), -1)
        chosen = logits.gather(-1, self.targets.expand(count, -1)[..., None])[..., 0]
        return chosen - logits.logsumexp(-1)

    @contextmanager
    def _noise(self, cells: int) -> Iterator[None]:
        """Within this block, the embeddings of the noisy tokens get the noise, in all rows of a number of cells."""
        at = torch.tensor(self.row.noisy, device=self.device)

        def add(_: nn.Module, args: Any, output: Tensor) -> Tensor:
            changed = output.clone()
            changed[:, at] += self.noise.repeat(cells, 1, 1)
            return changed

        with hooked(self.model.get_input_embeddings().register_forward_hook(add)):
            yield

    # ---- cells -------------------------------------------------------------------------------------------------------

    def probabilities(
        self, cells: Sequence[Cell], done: Callable[[int, int], None] = lambda cells, tokens: None
    ) -> list[float]:
        """Return the answer's probability with each of the cells restored: the mean over the samples of noise. done:
        called with the numbers of cells and tokens after each forward pass.
        """
        found = [0.0] * len(cells)
        for batch in self._batches(cells):
            logps, tokens = self._restored([(cells[i],) for i in batch])
            means = logps.double().sum(-1).exp().view(len(batch), -1).mean(-1)
            for i, mean in zip(batch, means.tolist(), strict=True):
                found[i] = mean
            done(len(batch), tokens)
        return found

    def _batches(self, cells: Sequence[Cell]) -> Iterator[list[int]]:
        """Yield indices of cells that are read together."""
        count = self._fitting(len(self.row.ids))
        yield from (list(range(first, min(first + count, len(cells)))) for first in range(0, len(cells), count))

    def _fitting(self, width: int) -> int:
        """Return how many cells of rows of a width go through the model at once."""
        rows = min(self.batch_tokens // max(width, FEWEST), LOGITS // (self._vocabulary * len(self.targets)))
        return max(1, rows // self.samples)

    @property
    def _vocabulary(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[0])

    def _restored(self, groups: Sequence[Sequence[Cell]]) -> tuple[Tensor, int]:
        """Return log-probabilities (C S, m) with everything of each group restored, and the number of tokens read."""
        ids = self.ids.expand(len(groups) * self.samples, -1)
        with self._noise(len(groups)), self._putting(self._puts(groups, 0), ids.shape):
            return self._logps(ids, 0), ids.numel()

    def together(self, cells: Sequence[Cell]) -> float:
        """Return the answer's probability with all of some cells restored at once."""
        with torch.no_grad():
            logps, _ = PlainRun._restored(self, [cells])
        return float(logps.double().sum(-1).exp().mean())

    def _puts(self, groups: Sequence[Sequence[Cell]], begin: int) -> Mapping[str, Put]:
        """Return what is put into the output of each module. begin: the position of the rows' first column."""
        found: dict[str, list[tuple[int, int]]] = {}
        for number, group in enumerate(groups):
            for cell in group:
                for name in self.places.names(cell.kind, cell.layer):
                    found.setdefault(name, []).append((number, cell.token))
        puts = {}
        for name, pairs in found.items():
            cells, tokens = torch.tensor(pairs, device=self.device).unbind(1)
            puts[name] = Put(cells, tokens - begin, self.outputs[name][tokens])
        return puts

    @contextmanager
    def _putting(self, puts: Mapping[str, Put], shape: tuple[int, ...]) -> Iterator[None]:
        """Within this block, the outputs of modules are replaced. shape: (C S, Q) of the rows."""

        def hook(put: Put) -> Any:
            def change(_: nn.Module, args: Any, output: Any) -> Any:
                states = first_of(output)
                whole = states.reshape(-1, self.samples, shape[1], states.shape[-1]).clone()  # (C, S, Q, D)
                whole[put.cells, :, put.columns] = put.values[:, None].to(whole.dtype)
                return replaced(output, whole.reshape(states.shape))

            return change

        with hooked(*(self.model.get_submodule(n).register_forward_hook(hook(put)) for n, put in puts.items())):
            yield


class Run(PlainRun):
    """Reads each cell from its token and its layer on."""

    def _corrupted(self) -> Tensor:
        self.begin = self.row.noisy[0]
        self.noised: list[Tensor] = []  # what enters each layer, (S, T - begin, D)
        outputs: list[Any] = []
        cache = DynamicCache()
        hooks = [
            b.register_forward_pre_hook(self._entering(self.noised, self.begin), with_kwargs=True) for b in self.blocks
        ]
        hooks.append(self.blocks[0].register_forward_hook(lambda m, a, out: outputs.append(out)))
        with hooked(*hooks), self._noise(1):
            logps = self._whole(self.samples, past_key_values=cache)
        if self.samples == 1:
            self.noised = [states[None] for states in self.noised]
        self.alone = not isinstance(outputs[0], tuple)
        self.keys = [(layer.keys, layer.values) for layer in cache.layers]
        return logps

    def start_of(self, cell: Cell) -> int:
        """Return the layer at which the reading of a cell begins; a layer's output is put into the next one's input."""
        last = len(self.places.layers) - 1
        return min(cell.layer + 1, last) if cell.kind == "state" else self.places.reach(cell.kind, cell.layer)[0]

    def _batches(self, cells: Sequence[Cell]) -> Iterator[list[int]]:
        """Yield indices of cells of one token, those that begin at like layers beside each other."""
        order = sorted(range(len(cells)), key=lambda i: (cells[i].token, self.start_of(cells[i])))
        while order:
            token = cells[order[0]].token
            own = [i for i in order if cells[i].token == token]
            count = self._fitting(len(self.row.ids) - token)
            yield from (own[first : first + count] for first in range(0, len(own), count))
            order = order[len(own) :]

    def _restored(self, groups: Sequence[Sequence[Cell]]) -> tuple[Tensor, int]:
        cells = [cell for (cell,) in groups]
        token, start = cells[0].token, min(map(self.start_of, cells))
        rows = len(cells) * self.samples
        ids = self.ids[token:].expand(rows, -1)
        entering = self.noised[start][:, token - self.begin :].repeat(len(cells), 1, 1)  # (C S, Q, D)
        first = [c for c, cell in enumerate(cells) if cell.kind == "state" and cell.layer < start]
        if first:
            entering.view(len(cells), self.samples, *entering.shape[1:])[first, :, 0] = self.inputs[start][token]
        later = [[] if c in first else [cell] for c, cell in enumerate(cells)]
        blocks = self.blocks
        with (
            beginning_at(blocks[start], blocks[:start], entering, alone=self.alone),
            self._putting(self._puts(later, token), ids.shape),
        ):
            return self._logps(ids, token, past_key_values=self._cache(token)), ids.numel()

    def _cache(self, token: int) -> DynamicCache:
        cache = DynamicCache()
        for keys, values in self.keys:
            layer = Before()
            layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
            layer.keys, layer.values = keys[:, :, :token], values[:, :, :token]
            cache.layers.append(layer)
        return cache


def run_of(
    model: Any,
    places: Places,
    row: TracedRow,
    noise: Tensor,
    batch_tokens: int,
    *,
    say: Callable[[str], None],
    known: dict[int, bool],
) -> PlainRun:
    """Return the fast runs of a row if a trial has shown that they are right, else the plain ones.

    known: results of trials, by the greatest length below the row's at which the configuration changes something (a
    sliding window); a new result is added. say: takes a line for the user.
    """
    reach = reach_of(numbers_of(model), len(row.ids))
    made: PlainRun | None = None
    if reach not in known:
        why, made = _tried(model, places, row, noise, batch_tokens)
        known[reach] = not why
        if why:
            say(f"tracing reads whole rows, which is slow: {why}")
    return made or (Run if known[reach] else PlainRun)(model, places, row, noise, batch_tokens)


def _tried(model: Any, places: Places, row: TracedRow, noise: Tensor, batch_tokens: int) -> tuple[str, PlainRun | None]:
    """Read some cells in both ways; return why the fast way is wrong, or "", and the runs that are right."""
    count = len(places.layers)
    layers, tokens = sorted({0, count // 2, count - 1}), sorted({row.noisy[0], row.noisy[-1], row.asked[0]})
    kinds: tuple[tuple[Kind, bool], ...] = (
        ("state", True), ("mlp", any(places.mlp)), ("attn", any(places.attn)))  # fmt: skip
    cells = [Cell(kind, layer, token) for kind, there in kinds if there for layer in layers for token in tokens]
    plain = PlainRun(model, places, row, noise[:, :2], batch_tokens)
    expected = torch.tensor(plain.probabilities(cells)).log()
    try:
        fast = Run(model, places, row, noise[:, :2], batch_tokens)
        found = torch.tensor(fast.probabilities(cells)).log()
        made = Run(model, places, row, noise, batch_tokens)
    except torch.OutOfMemoryError:
        raise
    except UNFIT as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", None
    gap = float((found - expected).abs().max())
    limit = TOLERANCE if model.dtype in (torch.float32, torch.float64) else COARSE
    return (
        ("", made)
        if gap <= limit * max(1.0, float(expected.abs().max()))
        else (f"log-probabilities differ by {gap:.2g}", None)
    )
