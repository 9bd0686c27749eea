"""Measure how much a model's outputs depend on each parameter: diagonal Fisher information and MAS importance.

For a row with supervised positions t and contexts c_t (all tokens before t), the Fisher information of the model's own
predictions is, per parameter i,

    F_i(row) = sum_t sum_v p(v | c_t) (d log p(v | c_t) / d theta_i)^2

and F_i is the sum over rows divided by the number of positions. So 1/2 sum_i F_i d_i^2 is, to second order and without
the off-diagonal, the mean KL divergence per token between the model and the same model moved by d. A classifier has one
position per row.

There are four estimates. None of them squares a batch's mean gradient of labels, as popular implementations do: that
square shrinks as the batch grows, because the rows' gradients cancel. Squares are taken **per row**. Only for a large
model `signs` squares the sum over a batch of rows; its cross terms vanish too (`models/_scores.py` has the proof):

- `true`: the double sum itself, with V backward passes for each position. For small vocabularies and few rows only.
- `sampled`: at each position a token is drawn from p(. | c_t), and the row's *summed* gradient is squared. Given the
  contexts, the draws are independent and the gradient of each has mean zero, so the cross terms vanish in expectation:
  one backward pass per row and draw is unbiased. But where the model is sure, it nearly always draws the expected
  token, and the gradient of that token is nearly zero: the information is in rare draws.
- `signs`: every token of the vocabulary counts, with weight sqrt(p) and a random sign: the square of the gradient of
  sum_t sum_v e_tv sqrt(p(v | c_t)) log p(v | c_t), e = +1 or -1, sqrt(p) held fixed. The cross terms vanish again, so
  expectation and cost are the same, and nothing depends on rare draws (a random factor of the softmax's Hessian, as in
  curvature propagation, Martens, Sutskever & Swersky 2012, arXiv:1206.6464).
- `empirical`: the square of the row's summed gradient with its own targets instead of draws. It is a different
  quantity, which goes to zero where the model fits its data (Kunstner et al. 2019, arXiv:1905.12558).

MAS (Aljundi et al. 2018, arXiv:1711.09601) needs no labels. It is |d sum_t ||z_t||^2 / d theta_i| per row, where z are
the logits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from posttrain.errors import PosttrainError, Problem
from posttrain.models._scores import IGNORED, asked_logits, length_groups, row_generator, sign_pull, squared_into
from posttrain.models.examples import Example
from posttrain.models.logits import logits_at, raised
from posttrain.models.marks import mark, marked_part
from posttrain.models.memory import trim
from posttrain.models.meter import Meter

__all__ = ["Curvature", "Example", "FisherKind", "fisher", "language_logits", "mas_importance"]

FisherKind = Literal["signs", "true", "sampled", "empirical"]
Score = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps (logits (K, V), targets (K,), noise (K, ...)) to the scalar that is differentiated. Target -100 is padding."""
Noise = Callable[[int], Tensor]
"""Maps the index of a job to its random numbers, (K, ...)."""

CHUNK_ROWS = 8
"""Number of rows differentiated together. On pocket (one core) 64 rows take 1.1 s by 8, 1.5 s by 32 or one by one."""
CHUNK_BYTES = 2**28
"""Largest size in bytes of the gradients held at once. If fewer than two rows fit, signs are summed over a batch first,
or rows are processed one by one.
"""
BATCH_TOKENS = 1024
"""Largest number of padded tokens in a batch that signs are summed over."""
LEAST_BATCHES = 16
"""Smallest number of batches, if there are that many rows. The relative standard deviation of an entry is about sqrt(2
/ 16).
"""


class Curvature(NamedTuple):
    """The result of a measurement.

    `diagonal` is the mean per supervised position, by parameter name, in float32 or finer. `rows` and `positions` are
    counts. `chunked` says whether several rows were processed together, and `reason` says why not.
    """

    diagonal: dict[str, Tensor]
    rows: int
    positions: int
    chunked: bool
    reason: str = ""

    @property
    def trace(self) -> float:
        """The sum over all parameters."""
        return float(sum(d.double().sum() for d in self.diagonal.values()))


def language_logits(model: nn.Module, inputs: Tensor, positions: Tensor) -> Tensor:
    """Return the logits (K, V) of a causal model at the given positions (K,)."""
    return logits_at(model, mark(model, inputs, positions[:1] + 1), positions)[0]


def fisher(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    examples: Sequence[Example],
    *,
    kind: FisherKind = "signs",
    draws: int = 1,
    seed: int = 0,
    chunk_rows: int = CHUNK_ROWS,
) -> Curvature:
    """Return the diagonal Fisher information of `parameters`, as a mean per supervised position.

    `parameters` maps names in `model` to parameters. The model should be in eval mode (no dropout). `draws` is the
    number of draws per row for `signs` and `sampled`. A draw depends only on the seed, the row's index and the draw's
    index.
    """
    times = 1 if kind in ("empirical", "true") else draws
    with Meter("measuring Fisher information", times * len(examples), "rows") as meter:
        work = _Work(model, parameters, chunk_rows, meter)
        if kind == "true":
            return _mean(work.exact(examples), examples, chunked=False)
        jobs = [example for example in examples for _ in range(times)]
        score: Score = {"signs": _signed, "sampled": _sampled, "empirical": _log_likelihood}[kind]
        noise = _noise(kind, jobs, seed, work.vocabulary(jobs[0]) if kind == "signs" else 0)
        if kind == "signs" and CHUNK_BYTES // max(work.gradient_bytes, 1) < 2:
            return _mean(work.summed(jobs, noise), examples, times=times, chunked=True)
        sums, reason = work.per_row(jobs, noise, score, torch.square)
    return _mean(sums, examples, times=times, chunked=not reason, reason=reason)


def mas_importance(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    examples: Sequence[Example],
    *,
    chunk_rows: int = CHUNK_ROWS,
) -> Curvature:
    """Return |d sum_t ||z_t||^2 / d theta| of each row, summed over rows and divided by the number of positions."""
    with Meter("measuring what the outputs depend on", len(examples), "rows") as meter:
        work = _Work(model, parameters, chunk_rows, meter)
        sums, reason = work.per_row(examples, _noise("none", examples), _squared_norm, torch.abs)
    return _mean(sums, examples, chunked=not reason, reason=reason)


# ---- scalars that are differentiated ---------------------------------------------------------------------------------


def _log_likelihood(logits: Tensor, targets: Tensor, noise: Tensor) -> Tensor:
    """Return sum_t log p(y_t)."""
    logarithms = raised(logits).log_softmax(-1)  # (K, V)
    chosen = logarithms.gather(-1, targets.clamp(min=0)[:, None])[:, 0]  # (K,)
    return (chosen * (targets != IGNORED)).sum()


def _signed(logits: Tensor, targets: Tensor, noise: Tensor) -> Tensor:
    """Return sum_t sum_v e_tv sqrt(p(v)) log p(v), with sqrt(p) held fixed. `noise` holds the signs e, (K, V)."""
    logarithms = raised(logits).log_softmax(-1)  # (K, V)
    roots = (0.5 * logarithms.detach()).exp()
    return ((roots * noise * logarithms).sum(-1) * (targets != IGNORED)).sum()


def _sampled(logits: Tensor, targets: Tensor, noise: Tensor) -> Tensor:
    """Return sum_t log p(y_t), with y_t drawn from the model. y_t is the first token at which the cumulative p exceeds
    `noise`, (K,), uniform."""
    cumulative = raised(logits.detach()).softmax(-1).cumsum(-1)  # (K, V)
    drawn = (cumulative <= noise.to(cumulative)[:, None] * cumulative[:, -1:]).sum(-1)  # (K,)
    drawn = drawn.clamp(max=logits.shape[-1] - 1)
    return _log_likelihood(logits, torch.where(targets == IGNORED, targets, drawn), noise)


def _squared_norm(logits: Tensor, targets: Tensor, noise: Tensor) -> Tensor:
    """Return sum_t ||z_t||^2."""
    return (raised(logits).square().sum(-1) * (targets != IGNORED)).sum()


def _noise(kind: str, jobs: Sequence[Example], seed: int = 0, vocabulary: int = 0) -> Noise:
    """Return a function that draws signs for `signs`, uniform numbers for `sampled`, and gives zeros for other kinds.
    The numbers depend on the seed and the job's index."""

    def noise(job: int) -> Tensor:
        count = len(jobs[job].targets)
        generator = row_generator(seed, job)
        if kind == "signs":
            return torch.randint(0, 2, (count, vocabulary), generator=generator, dtype=torch.int8) * 2 - 1
        return torch.rand(count, generator=generator) if kind == "sampled" else torch.zeros(count)

    return noise


# ---- rows -----------------------------------------------------------------------------------------------------------


def _mean(
    sums: dict[str, Tensor], examples: Sequence[Example], *, times: int = 1, chunked: bool, reason: str = ""
) -> Curvature:
    """Turn sums over rows, each taken `times` times, into a mean per position. The sums are divided in place. Raise
    PosttrainError if a number is not finite."""
    positions = sum(int((e.targets != IGNORED).sum()) for e in examples)
    for tensor in sums.values():
        tensor.div_(times).div_(max(positions, 1))
    made = Curvature(sums, len(examples), positions, chunked, reason)
    if not abs(made.trace) < float("inf"):
        mend = "measure it in float32, on other rows"
        raise PosttrainError(Problem("", f"the curvature over {len(examples)} rows is not finite", mend))
    return made


class _Asked(nn.Module):
    """A model as a module that gives the logits of some positions, for functional_call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, positions: Tensor) -> Tensor:
        """Return logits (K, V)."""
        return language_logits(self.model, inputs[None], positions)


@dataclass(frozen=True)
class _Work:
    """The measured model, and the loops over rows. Each loop returns a sum over rows (or batches) by parameter."""

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    chunk_rows: int
    meter: Meter

    @property
    def device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    @property
    def gradient_bytes(self) -> int:
        """Size in bytes of one float32 gradient of all parameters."""
        return 4 * sum(p.numel() for p in self.parameters.values())

    def vocabulary(self, example: Example) -> int:
        """Return how many logits the model has at a position."""
        with torch.no_grad():
            inputs, positions = example.inputs[None].to(self.device), example.positions.to(self.device)
            return int(language_logits(self.model, inputs, positions).shape[-1])

    def zeros(self) -> dict[str, Tensor]:
        """Return zeros to add sums to, by parameter name, in float32 or finer."""
        return {
            name: torch.zeros_like(p, dtype=p.dtype if p.dtype == torch.float64 else torch.float32)
            for name, p in self.parameters.items()
        }

    def per_row(
        self, examples: Sequence[Example], noise: Noise, score: Score, fold: Callable[[Tensor], Tensor]
    ) -> tuple[dict[str, Tensor], str]:
        """Return the sum over rows of fold(gradient of a row's score), and why rows were processed one by one. The
        reason is "" if several rows were processed together.
        """
        rows = min(self.chunk_rows, CHUNK_BYTES // max(self.gradient_bytes, 1))
        reason = "" if rows > 1 else "gradients of one row fill the memory meant for several"
        if marked_part(self.model) is not None:
            reason = "a part of the model looks where each prompt ends"
        if not reason:
            try:
                with warnings.catch_warnings():
                    # some attention kernels have no batched form and run in a loop; still faster than single rows
                    warnings.filterwarnings("ignore", message=".*There is a performance drop.*")
                    return self.together(examples, noise, score, fold, rows), ""
            except RuntimeError as error:  # vmap cannot batch an operation of this model
                reason = str(error).strip().split("\n")[0]
            self.meter.again()
        return self.one_by_one(examples, noise, score, fold), reason

    def one_by_one(
        self, examples: Sequence[Example], noise: Noise, score: Score, fold: Callable[[Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """Run one backward pass for each row."""
        sums = self.zeros()
        for job, example in enumerate(examples):
            inputs, positions, targets = (t.to(self.device) for t in example)
            with torch.enable_grad():
                logits = language_logits(self.model, inputs[None], positions)
                value = score(logits, targets, noise(job).to(self.device))
                found = torch.autograd.grad(value, list(self.parameters.values()), allow_unused=True)
            for name, gradient in zip(self.parameters, found, strict=True):
                if gradient is not None:
                    sums[name] += fold(gradient.detach().to(sums[name].dtype))
            self.meter.more(1, tokens=len(inputs))
        return sums

    def together(
        self, examples: Sequence[Example], noise: Noise, score: Score, fold: Callable[[Tensor], Tensor], rows: int
    ) -> dict[str, Tensor]:
        """Process `rows` rows at a time, each with its own gradient (vmap over grad)."""
        sums = self.zeros()
        asked = _Asked(self.model)
        values = {f"model.{name}": p.detach() for name, p in self.parameters.items()}

        def row_score(
            values: dict[str, Tensor], inputs: Tensor, positions: Tensor, targets: Tensor, noise: Tensor
        ) -> Tensor:
            return score(torch.func.functional_call(asked, values, (inputs, positions)), targets, noise)

        each = torch.func.vmap(torch.func.grad(row_score), in_dims=(None, 0, 0, 0, 0), randomness="error")
        for chunk in _chunks(examples, noise, rows):
            with torch.enable_grad():
                found = each(values, *(t.to(self.device) for t in chunk))
            for name, total in sums.items():
                total += fold(found[f"model.{name}"].detach().to(total.dtype)).sum(0)
            self.meter.more(len(chunk[0]), tokens=chunk[0].numel())
        return sums

    def summed(self, examples: Sequence[Example], noise: Noise) -> dict[str, Tensor]:
        """Return the sum over batches of the squared gradient of a batch's summed signs."""
        sums = self.zeros()
        groups = length_groups([len(e.inputs) for e in examples], BATCH_TOKENS, LEAST_BATCHES)
        with squared_into(sums, self.parameters):
            for group in groups:
                rows = [examples[i] for i in group]
                with torch.enable_grad():
                    logits = asked_logits(self.model, rows, self.device)  # (N, V)
                signs = torch.cat([noise(i)[examples[i].targets != IGNORED] for i in group])
                pull = sign_pull(raised(logits), signs.to(self.device)).to(logits.dtype)
                torch.autograd.backward(logits, pull, inputs=list(self.parameters.values()))
                del logits, pull
                trim()  # freed activations of many sizes fragment the heap: 1 GB with SmolLM2-135M
                self.meter.more(len(group), tokens=sum(len(e.inputs) for e in rows))
        return sums

    def exact(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return sum_t sum_v p(v) (d log p(v))^2. Each term is the square of the gradient that the backward pass of
        sqrt(p_v) (e_v - p) through the logits gives.
        """
        sums = self.zeros()
        moved = list(self.parameters.values())
        at_once = max(min(64, CHUNK_BYTES // max(self.gradient_bytes, 1)), 1)
        for example in examples:
            inputs, positions, targets = (t.to(self.device) for t in example)
            with torch.enable_grad():
                logits = raised(language_logits(self.model, inputs[None], positions))  # (K, V)
            chances = logits.detach().softmax(-1)
            for t in (targets != IGNORED).nonzero()[:, 0].tolist():
                p = chances[t]
                for start in range(0, len(p), at_once):
                    part = torch.arange(start, min(start + at_once, len(p)), device=self.device)
                    pulls = logits.new_zeros(len(part), *logits.shape)  # (C, K, V)
                    pulls[:, t] = -p
                    pulls[torch.arange(len(part), device=self.device), t, part] += 1
                    pulls[:, t] *= p[part].sqrt()[:, None]
                    with warnings.catch_warnings():
                        warnings.filterwarnings("ignore", message=".*There is a performance drop.*")
                        found = torch.autograd.grad(
                            logits, moved, pulls, retain_graph=True, allow_unused=True, is_grads_batched=True
                        )
                    for name, gradient in zip(self.parameters, found, strict=True):
                        if gradient is not None:
                            sums[name] += gradient.detach().to(sums[name].dtype).square().sum(0)
            self.meter.more(1, tokens=len(inputs))
        return sums


def _chunks(examples: Sequence[Example], noise: Noise, rows: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield rows of similar length, padded on the right: inputs (R, T), positions, targets and noise (R, K, ...)."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].inputs))
    pad = torch.nn.utils.rnn.pad_sequence
    for start in range(0, len(order), rows):
        chosen = [examples[i] for i in order[start : start + rows]]
        yield (
            pad([e.inputs for e in chosen], batch_first=True),
            pad([e.positions for e in chosen], batch_first=True),
            pad([e.targets for e in chosen], batch_first=True, padding_value=IGNORED),
            pad([noise(i) for i in order[start : start + rows]], batch_first=True),
        )
