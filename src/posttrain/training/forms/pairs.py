"""The forms of preference pairs: for `dpo` and `orpo`, and for `reward`, which trains a model with one score.

Both answers of a pair go through the model together. The log-probabilities before training are computed once, before
the first step, and kept in the run's folder; or they are computed in every step with the adapter switched off.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from posttrain.data.answers import PairRow, encode_pairs, prompt_length
from posttrain.data.batching import collate, length_batches
from posttrain.data.chat import IGNORED, Encoded
from posttrain.data.preferences import FromTargets, pairs_from_targets
from posttrain.data.readers import Format
from posttrain.data.records import Conversation, Preference
from posttrain.models.added import ADDED
from posttrain.models.disk import whole_file
from posttrain.models.head_loss import chunked_nll, plain_head, states_at
from posttrain.models.logits import core_of, logits_at, raised
from posttrain.models.meter import Meter
from posttrain.objectives._loss import Loss, Pairs, token_cross_entropy
from posttrain.objectives.dpo import DpoConfig
from posttrain.training.forms.base import Form, FormSetup, Head, MicroBatch, Preparation
from posttrain.training.forms.tokens import TokenBatch, token_batch

__all__ = [
    "ComparingForm",
    "PairsForm",
    "RankingForm",
    "Scored",
    "answer_logps",
    "calibration_error",
    "length_correlation",
    "without_dropout",
]

REFERENCE_FILE = "reference.safetensors"
"""File in the folder of a run: the log-probabilities before training."""
BINS = 10
"""Number of bins of the calibration error."""


def answer_logps(model: nn.Module, batch: TokenBatch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the summed log-probability of each row's labelled tokens, (B,) in nats, and their number, (B,). Only
    positions that some row labels go through the output head, and in chunks if the head allows it.
    """
    targets = batch.targets.to(device)
    head = plain_head(model)
    if head is not None:
        asked = targets != IGNORED  # (B, T)
        nats = chunked_nll(states_at(model, batch.read_by(model).to(device), asked), head, targets[asked])  # (N,)
        return -nats.new_zeros(len(targets)).index_add(0, asked.nonzero()[:, 0], nats), asked.sum(1)
    batch = batch.asked(device)
    loss = token_cross_entropy(logits_at(model, batch.read_by(model), batch.columns), batch.targets)
    return -loss.nats, loss.units


class ComparingForm(Form):
    """A form with two sequences per row. Their log-probabilities may be compared with those before training."""

    def __init__(self, setup: FormSetup) -> None:
        super().__init__(setup)
        self.before: dict[Any, list[float]] = {}
        """The log-probabilities before training of both sequences of a row, in nats."""

    def ask_before(self, rows: Sequence[Any], pairs: Sequence[tuple[Encoded, Encoded]], asked: Preparation) -> None:
        """Compute `before`, or read it from the run's folder if it was computed there for the same model and sequences.
        pairs: the two sequences of each row.
        """
        sequences = [one for pair in pairs for one in pair]
        file = asked.folder / REFERENCE_FILE if asked.folder is not None else None
        digest = hashlib.sha256(asked.fingerprint.encode())
        for row in sequences:
            digest.update(array("q", [len(row.input_ids), *row.input_ids, *row.labels]).tobytes())
        fingerprint = digest.hexdigest()
        found = _read(file, fingerprint, len(sequences)) if file is not None else None
        if found is not None:
            asked.say(f"reference: log-probabilities of {len(sequences)} answers taken from {file}")
        else:
            found = self._asked_now(sequences, asked)
            if file is not None and os.environ.get("RANK", "0") == "0":  # set by torchrun; no process group exists yet
                with whole_file(file) as temporary:
                    save_file({"logps": found}, str(temporary), metadata={"fingerprint": fingerprint})
            asked.say(f"reference: log-probabilities of {len(sequences)} answers computed once")
        self.before = dict(zip(rows, found.view(-1, 2).tolist(), strict=True))

    def _asked_now(self, sequences: Sequence[Encoded], asked: Preparation) -> Tensor:
        """Return the log-probabilities of the sequences under the model before training, (N,)."""
        found = torch.zeros(len(sequences), dtype=torch.float64)
        batches = length_batches([len(s.input_ids) for s in sequences], tokens=asked.tokens, seed=0, epoch=0)
        work = Meter("asking the model before training", len(sequences), "answers")
        with asked.reference.model() as reference, work as meter:
            for numbers in batches:
                batch = token_batch([sequences[i] for i in numbers], pad_id=self.setup.pad_id)
                found[numbers] = answer_logps(reference, batch, self.device)[0].double().cpu()
                meter.more(len(numbers), tokens=sum(len(sequences[i].input_ids) for i in numbers))
        return found

    def logps_before(self, batch: TokenBatch, rows: Sequence[Any], sides: Sequence[int]) -> Tensor:
        """Return the log-probabilities of a batch before training, (B,). sides: 0 for the first sequences of these
        rows, 1 for the second ones, in the order of the batch.
        """
        if not self.asks_reference(self.objective):
            return torch.tensor([self.before[row][side] for side in sides for row in rows], dtype=torch.float64)
        with self.before_training() as reference:
            return answer_logps(reference, batch, self.device)[0]


def _read(file: Path, fingerprint: str, count: int) -> Tensor | None:
    if not file.is_file():
        return None
    with safe_open(str(file), "pt") as kept:
        if (kept.metadata() or {}).get("fingerprint") != fingerprint:
            return None  # made for another model or other rows, so it must be computed again
        logps: Tensor = kept.get_tensor("logps")
    return logps if logps.shape == (count,) else None


def without_dropout(model: nn.Module, say: Callable[[str], None]) -> None:
    """Switch off the model's own dropout, which would add noise to the ratio to the reference from the first step on.
    The dropout of a tuner stays as the user has set it.
    """
    drops = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Dropout))
    own = [module for name, module in drops if module.p > 0 and "lora_" not in name and ADDED not in name]
    for module in own:
        module.p = 0.0
    if own:
        say(f"dropout of the model is switched off ({len(own)} modules): answers are compared without noise")


def sides_of(rows: Sequence[PairRow]) -> list[Encoded]:
    """Return the 2B sequences of B pairs, all chosen ones first."""
    return [*(row.chosen for row in rows), *(row.rejected for row in rows)]


class Paired(Form):
    """A form with two answers to one prompt per row."""

    unit: ClassVar[str] = "pair"
    reads: ClassVar[Format] = "preference"
    encoder = staticmethod(encode_pairs)

    @staticmethod
    def tokens_of(row: PairRow) -> int:
        return len(row.chosen.input_ids) + len(row.rejected.input_ids)

    def size(self, row: PairRow) -> int:
        """Return twice the longer length, since both answers are padded to it."""
        return 2 * max(len(row.chosen.input_ids), len(row.rejected.input_ids))

    def numbers(self, row: PairRow) -> list[int]:
        sides = [n for side in (row.chosen, row.rejected) for n in (len(side.input_ids), *side.input_ids, *side.labels)]
        return [*sides, round(row.margin * 1e6)]


class PairsForm(Paired, ComparingForm):
    """A form with two answers per row, each with its log-probability."""

    @classmethod
    def asks_reference(cls, objective: Any) -> bool:
        return isinstance(objective, DpoConfig) and objective.reference == "adapter"

    @classmethod
    def needs_rows(cls, objective: Any) -> bool:
        return bool(objective.compares) and not cls.asks_reference(objective)

    @classmethod
    def from_targets(cls, targets: Sequence[Conversation], present: Callable[[], list[str]]) -> FromTargets[Preference]:
        """Make pairs in which the wanted answers are preferred to the present ones."""
        return pairs_from_targets(targets, present())

    def tensors(self, rows: Sequence[PairRow]) -> TokenBatch:
        return token_batch(sides_of(rows), pad_id=self.setup.pad_id)

    def prepare(self, preparation: Preparation) -> None:
        """Compute the log-probabilities of every answer before training, unless each step computes them."""
        without_dropout(preparation.model, preparation.say)
        if self.needs_rows(self.objective):
            rows: list[PairRow] = [*preparation.new, *preparation.validation]
            self.ask_before(rows, [(row.chosen, row.rejected) for row in rows], preparation)

    def loss(self, model: nn.Module, micro: MicroBatch) -> Loss:
        both: TokenBatch = micro.tensors
        before = self.logps_before(both, micro.rows, (0, 1)) if self.objective.compares else None
        logps, tokens = answer_logps(model, both, self.device)
        policy = Pairs(*logps.chunk(2), *tokens.chunk(2))
        if before is None:
            return self.setup.function(policy, None)
        chosen, rejected = before.to(logps).chunk(2)
        return self.setup.function(policy, policy._replace(chosen=chosen, rejected=rejected))


class Scored(NamedTuple):
    """The scores of the chosen and the rejected answer of a validation pair, and the tokens of both."""

    chosen: float
    rejected: float
    chosen_tokens: int
    rejected_tokens: int


def length_correlation(pairs: Sequence[Scored]) -> float:
    """Return Pearson's correlation between an answer's score and its number of tokens; 0 if one of them does not vary.
    A value near 1 means that the model has learned to prefer long answers.
    """
    both = torch.tensor(pairs, dtype=torch.float64).T  # (4, N)
    scores, tokens = both[:2].flatten(), both[2:].flatten()
    scores, tokens = scores - scores.mean(), tokens - tokens.mean()
    size = float(scores.norm() * tokens.norm())
    return float(scores @ tokens) / size if size else 0.0


def calibration_error(pairs: Sequence[Scored]) -> float:
    """Return the difference between the probability that the model gives its preference and how often it is right. The
    probability is sigmoid(|r_w - r_l|). The difference is averaged over ten bins of probability, weighted by pairs.
    """
    margins = torch.tensor([pair.chosen - pair.rejected for pair in pairs], dtype=torch.float64)
    sure = torch.sigmoid(margins.abs())  # from 1/2 to 1
    right = (margins > 0).double()
    bins = ((sure - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    apart = torch.zeros(BINS, dtype=torch.float64).index_add(0, bins, sure - right)
    return float(apart.abs().sum()) / max(len(margins), 1)


class RankingForm(Paired):
    """A form with two answers per row, each with a score of the model's head."""

    head: ClassVar[Head] = "sequence"

    def tensors(self, rows: Sequence[PairRow]) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask`, (2B, T), right-padded."""
        batch = collate(sides_of(rows), self.pad_id)
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    def prepare(self, preparation: Preparation) -> None:
        """Check that the model has one score; report if answers end with the padding token."""
        without_dropout(preparation.model, preparation.say)
        config = core_of(preparation.model).config
        assert config.num_labels == 1
        ends = {side.input_ids[-1] for row in preparation.new for side in (row.chosen, row.rejected)}
        if config.pad_token_id in ends:
            token = self.setup.tokenizer.convert_ids_to_tokens(config.pad_token_id)
            preparation.say(
                f"answers end with the padding token {token}: the score is read at the token before it, "
                "here and wherever the model is loaded"
            )

    def loss(self, model: nn.Module, micro: MicroBatch) -> Loss:
        # use the model's own pooling, so that a model that is loaded elsewhere gives the same scores
        logits: Tensor = model(**{name: tensor.to(self.device) for name, tensor in micro.tensors.items()}).logits
        chosen, rejected = raised(logits[:, 0]).chunk(2)
        if not model.training:
            tokens = [[len(s.input_ids) - prompt_length(s) for s in (row.chosen, row.rejected)] for row in micro.rows]
            scores = zip(chosen.tolist(), rejected.tolist(), tokens, strict=True)
            self.remember([Scored(better, worse, *lengths) for better, worse, lengths in scores], micro)
        return self.setup.function(chosen, rejected, torch.tensor([row.margin for row in micro.rows]).to(chosen))

    def validated(self) -> dict[str, float]:
        """Return the correlation of scores with the length of answers, and the calibration error."""
        pairs: list[Scored] = self.all_seen()
        return {"length_correlation": length_correlation(pairs), "calibration_error": calibration_error(pairs)}
