"""Search the vectors that make a model say an edit's answer: the shared optimiser of all locate-then-edit methods.

For each edit a vector delta is added at the subject's last token, to the output v of the edited matrix (ROME) or to the
state h of its layer (MEMIT). Meng et al. 2022, arXiv:2202.05262, eq. 4; 2023, arXiv:2210.07229, eq. 16:

    L(delta) = sum_r w_r mean_t -log p_delta(y_t | row r)  +  kl KL(p_delta || p)  +  decay |delta| / |v|^2

The rows r are the prompt after several texts, with weights w. KL is measured where "{subject} is a" has been read up to
the subject, so that what the subject is stays as it was. After each step |delta| is held at `clamp` |v|. Many edits are
searched together: each has its own Adam and its own end (`stop_loss`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from posttrain.config.base import Config
from posttrain.editing.edits import Edit, Row, RowMaker, chinese
from posttrain.editing.reading import look
from posttrain.editing.sites import Site, Sites
from posttrain.editing.solve import row_means
from posttrain.editing.tails import Known, PlainTails, Where, tails_for
from posttrain.errors import PosttrainError, Problem
from posttrain.models.meter import Meter

__all__ = ["Found", "Search", "TargetConfig", "kl_row", "search"]

BETAS, EPSILON = (0.9, 0.999), 1e-8
ESSENCE = {"en": "{} is a", "zh": "{}是"}
GROUP_TOKENS = 2048
"""Tokens read in each step of a group of edits on a CPU, about; on a GPU eight times as many."""


class TargetConfig(Config):
    """How target vectors are searched."""

    steps: int = Field(40, ge=1)
    """Steps of Adam, at most."""
    learning_rate: float = Field(0.5, gt=0)
    """Its learning rate."""
    weight_decay: float = Field(1e-3, ge=0)
    """How strongly the vector's length is held down."""
    clamp: float = Field(4.0, gt=0)
    """The vector's greatest length, as a multiple of the length of what it is added to."""
    kl: float = Field(0.0625, ge=0)
    """How strongly what the subject is stays as it was."""
    stop_loss: float = Field(0.05, ge=0)
    """An edit whose loss is below this, in nats per token, has its vector."""


class Found(NamedTuple):
    """The result of a search for E edits: deltas (E, D), in float64; base (E, D): what they are added to, the mean over
    rows; nats (E,): of the answer per token, with the delta; steps (E,): taken.
    """

    deltas: Tensor
    base: Tensor
    nats: Tensor
    steps: Tensor


class Search(NamedTuple):
    """What a search needs: the model's sites, the maker of rows, and known trials of the fast reading."""

    sites: Sites
    maker: RowMaker
    say: Callable[[str], None]
    known: Known
    group_tokens: int = 0


def kl_row(edit: Edit, maker: RowMaker) -> Row:
    """Return the row "{subject} is a", which is read up to the subject's last token."""
    language = "zh" if chinese(edit.question) else "en"
    ids, at = maker.place(edit, ESSENCE[language].format(edit.subject.strip()))
    return Row(ids[: at + 1], at, at + 1, 1.0, "raw")


def search(
    task: Search, edits: Sequence[Edit], rows: Sequence[Sequence[Row]], site: Site, where: Where, config: TargetConfig
) -> Found:
    """Return the target vectors of edits. rows: for each edit its rows. Raise PosttrainError, which names the edits, if
    a loss is not finite.
    """
    device = task.sites.model.device
    width = task.sites.model.get_input_embeddings().weight.shape[1]
    whole = Found(*(torch.zeros(len(edits), width, dtype=torch.float64, device=device) for _ in range(2)), *[
        torch.zeros(len(edits), device=device) for _ in range(2)])  # fmt: skip
    essences = [kl_row(edit, task.maker) for edit in edits]
    limit = task.group_tokens or GROUP_TOKENS * (8 if device.type == "cuda" else 1)
    with Meter("searching target vectors", len(edits), "edits") as meter:
        for group in _groups(rows, limit):
            found = _search_group(
                task, [edits[i] for i in group], [rows[i] for i in group], [essences[i] for i in group], site, where,
                config)  # fmt: skip
            at = torch.tensor(group, device=device)
            for into, part in zip(whole, found, strict=True):
                into[at] = part.to(into.dtype)
            meter.more(len(group))
    return whole


def _groups(rows: Sequence[Sequence[Row]], limit: int) -> Iterator[list[int]]:
    """Yield the indices of edits that are searched together, edits of like length beside each other."""
    cost = [sum(len(row.ids) - row.at for row in own) for own in rows]
    longest = [max(len(row.ids) - row.at for row in own) for own in rows]
    group: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: (longest[i], cost[i])):
        if group and (len(group) + 1) * cost[i] > limit:
            yield group
            group = []
        group.append(i)
    yield group


class _Bucket:
    """Rows of about the same length, of one sort: with their answers, or for the KL.

    rows: the texts; owner: the edit of each; logits: one row for each asked position.
    """

    def __init__(self, task: Search, rows: Sequence[Row], owner: Sequence[int], site: Site, where: Where):
        device = task.sites.model.device
        self.answers = bool(rows[0].targets)
        asked = [list(row.asked) if self.answers else [row.at] for row in rows]
        self.tails: PlainTails = tails_for(task.sites, site, rows, asked, where, task.say, task.known)
        self.owner = torch.tensor(owner, device=device)  # (B,)
        flat = [(i, e) for i, (e, positions) in enumerate(zip(owner, asked, strict=True)) for _ in positions]
        self.edit_of = torch.tensor([e for _, e in flat], device=device)  # (N,) of logits
        self.share = torch.tensor([rows[i].weight / len(asked[i]) for i, _ in flat], device=device)
        self.targets = torch.tensor([t for row in rows for t in row.targets], device=device)
        self.before = torch.empty(0)  # log-probabilities before, (N, V), of rows for the KL

    def narrowed(self, new: Tensor) -> _Bucket | None:
        """Return the bucket of the edits that stay, None if no row is left. new: for each edit its new index, or -1."""
        rows, logits = new[self.owner] >= 0, new[self.edit_of] >= 0
        if not bool(rows.any()):
            return None
        made = copy(self)
        made.tails = self.tails.narrowed(rows.nonzero()[:, 0])
        made.owner, made.edit_of = new[self.owner[rows]], new[self.edit_of[logits]]
        made.share = self.share[logits]
        made.targets = self.targets[logits] if self.answers else self.targets
        made.before = self.before[logits] if self.before.numel() else self.before
        return made

    def nats(self, deltas: Tensor) -> Tensor:
        """Return for each edit (E,) the loss of its answers, or its divergence, with deltas (E, D)."""
        logits = self.tails.logits(deltas[self.owner])
        logps = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        if self.answers:
            each = -logps.gather(1, self.targets[:, None])[:, 0]
        else:
            if not self.before.numel():
                self.before = logps.detach()
            each = functional.kl_div(self.before, logps, reduction="none", log_target=True).sum(-1)
        return each.new_zeros(len(deltas)).index_add(0, self.edit_of, each * self.share.to(each))


NARROWED = 0.9
"""Share of the edits that are still searched, at or below which the others are left out of the batch."""
WASTE = 1.3
"""Largest ratio of row lengths in a bucket."""


class _Batch:
    """The rows of some edits, read together in buckets: each edit's rows with its answer, and its row for the KL."""

    def __init__(self, task: Search, rows: Sequence[Sequence[Row]], essences: Sequence[Row], site: Site, where: Where):
        flat = [(row, e) for e, own in enumerate(rows) for row in own]
        flat.sort(key=lambda pair: len(pair[0].ids) - pair[0].at)
        parts: list[list[tuple[Row, int]]] = []
        for row, e in flat:
            length = len(row.ids) - row.at
            if not parts or length > WASTE * (len(parts[-1][0][0].ids) - parts[-1][0][0].at):
                parts.append([])
            parts[-1].append((row, e))
        parts.append([(row, e) for e, row in enumerate(essences)])
        self.buckets = [_Bucket(task, [row for row, _ in part], [e for _, e in part], site, where) for part in parts]
        self.count = len(rows)

    def narrowed(self, keep: Tensor) -> _Batch:
        """Return the batch of some edits, whose indices are given in ascending order."""
        new = torch.full((self.count,), -1, device=keep.device)
        new[keep] = torch.arange(len(keep), device=keep.device)
        made = copy(self)
        made.buckets = [left for bucket in self.buckets if (left := bucket.narrowed(new)) is not None]
        made.count = len(keep)
        return made

    @torch.no_grad()
    def look_before(self, deltas: Tensor) -> None:
        """Keep the distributions from which the KL is measured. deltas: zeros (E, D)."""
        for bucket in self.buckets:
            if not bucket.answers:
                bucket.nats(deltas)

    def losses(self, deltas: Tensor) -> tuple[Tensor, Tensor]:
        """Return nats of the answers (E,) and the KL (E,) with deltas (E, D)."""
        said = [bucket.nats(deltas) for bucket in self.buckets if bucket.answers]
        kept = [bucket.nats(deltas) for bucket in self.buckets if not bucket.answers]
        return torch.stack(said).sum(0), torch.stack(kept).sum(0)


def _search_group(
    task: Search,
    edits: Sequence[Edit],
    rows: Sequence[Sequence[Row]],
    essences: Sequence[Row],
    site: Site,
    where: Where,
    config: TargetConfig,
) -> Found:
    device = task.sites.model.device
    count = len(edits)
    flat = [row for own in rows for row in own]
    owner = torch.tensor([e for e, own in enumerate(rows) for _ in own], device=device)
    weights = torch.tensor([row.weight for row in flat], device=device)
    seen = look(task.sites, flat, [site])
    base = row_means((seen.values if where == "value" else seen.states)[site.layer], weights, owner, count)
    batch = _Batch(task, rows, essences, site, where)
    precise = torch.promote_types(task.sites.model.dtype, torch.float32)
    length = base.norm(dim=1).to(precise)  # (E,)
    deltas = torch.zeros(base.shape, dtype=precise, device=device)
    first, second = torch.zeros_like(deltas), torch.zeros_like(deltas)
    nats = torch.zeros(count, device=device, dtype=precise)
    steps = torch.zeros(count, device=device, dtype=precise)
    active = torch.arange(count, device=device)
    batch.look_before(deltas)
    for step in range(config.steps):
        own = deltas[active].requires_grad_(True)
        with torch.enable_grad():
            said, divergence = batch.losses(own)
            decay = config.weight_decay * own.norm(dim=1) / length[active].square()
            loss = said + config.kl * divergence + decay
        if not bool(torch.isfinite(loss).all()):
            wrong = [edits[int(active[i])] for i in (~torch.isfinite(loss)).nonzero()[:, 0].tolist()]
            mend = "take a smaller learning rate, or the model in float32"
            raise PosttrainError(*(Problem(edit.location, "its loss is not finite", mend) for edit in wrong))
        nats[active] = said.detach().to(precise)
        going = (loss.detach() >= config.stop_loss).nonzero()[:, 0]
        if step == config.steps - 1 or not len(going):
            break
        (slope,) = torch.autograd.grad(loss.sum(), own)
        with torch.no_grad():
            left, slope = active[going], slope[going]
            first[left] = BETAS[0] * first[left] + (1 - BETAS[0]) * slope
            second[left] = BETAS[1] * second[left] + (1 - BETAS[1]) * slope.square()
            mean = first[left] / (1 - BETAS[0] ** (step + 1))
            spread = (second[left] / (1 - BETAS[1] ** (step + 1))).sqrt() + EPSILON
            moved = deltas[left] - config.learning_rate * mean / spread
            most = config.clamp * length[left][:, None]
            deltas[left] = moved * (most / moved.norm(dim=1, keepdim=True).clamp_min(1e-30)).clamp_max(1.0)
            steps[left] += 1
        if len(going) <= NARROWED * len(active):
            batch, active = batch.narrowed(going), active[going]
    return Found(deltas.double(), base, nats, steps)
