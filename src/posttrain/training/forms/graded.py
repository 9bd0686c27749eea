"""The form of graded answers, for `kto`. Each row is joined by an answer to another prompt, for the zero point.

That answer stays the same during the whole run, so that the reference log-probability is computed only once. The rows
are sorted by the length of their answers, and each prompt gets the next answer in this order that belongs to another
prompt. The zero point is a mean over all rows of a step, so it does not depend on how a step is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from posttrain.data.answers import GradedRow, encode_graded, prompt_length
from posttrain.data.chat import IGNORED, Encoded
from posttrain.data.preferences import FromTargets, graded_from_targets
from posttrain.data.readers import Format
from posttrain.data.records import Conversation, Graded
from posttrain.errors import DataError, Problem
from posttrain.objectives._loss import Loss
from posttrain.objectives.kto import KtoConfig
from posttrain.training.forms.base import FormSetup, MicroBatch, Preparation
from posttrain.training.forms.pairs import ComparingForm, answer_logps, without_dropout
from posttrain.training.forms.tokens import TokenBatch, token_batch

__all__ = ["GradedForm", "mismatched"]


def mismatched(rows: Sequence[GradedRow]) -> list[Encoded]:
    """Return for each row its prompt with an answer that belongs to another prompt; see the top of this file.

    If all prompts are equal it is just another answer. Since rows are sorted by the length of their answers, these
    sequences are about as long as the rows; none is longer than the longest row.
    """
    prompts = [tuple(row.answer.input_ids[: prompt_length(row.answer)]) for row in rows]
    if not rows:
        return []
    lengths = [len(row.answer.input_ids) - len(prompt) for row, prompt in zip(rows, prompts, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: lengths[i])
    longest = max(len(row.answer.input_ids) for row in rows)
    twice = [*order, *order]
    following = [at + 1 for at in range(len(twice))]  # the next index in `twice` with another prompt
    if len(set(prompts)) > 1:
        for at in range(len(twice) - 2, -1, -1):
            if prompts[twice[at]] == prompts[twice[at + 1]]:
                following[at] = following[at + 1]
    made: dict[int, Encoded] = {}
    for at, i in enumerate(order):
        j = twice[following[at]]
        room = longest - len(prompts[i])
        ids, labels = (one[len(prompts[j]) :][:room] for one in (rows[j].answer.input_ids, rows[j].answer.labels))
        made[i] = Encoded([*prompts[i], *ids], [IGNORED] * len(prompts[i]) + labels, rows[i].location)
    return [made[i] for i in range(len(rows))]


class GradedForm(ComparingForm):
    """A form with one graded answer per row."""

    unit: ClassVar[str] = "answer"
    reads: ClassVar[Format] = "graded"
    encoder = staticmethod(encode_graded)
    objective: KtoConfig

    def __init__(self, setup: FormSetup) -> None:
        super().__init__(setup)
        self.others: dict[GradedRow, Encoded] = {}
        """The second sequence of each row: its prompt with the answer to another prompt."""
        self.zero = 0.0  # the zero point of the present step
        self.counted = (0.0, 0.0)
        """Number of wanted rows and of all rows in the present step."""

    @classmethod
    def asks_reference(cls, objective: Any) -> bool:
        return bool(objective.reference == "adapter")

    @classmethod
    def needs_rows(cls, objective: Any) -> bool:
        return True

    @classmethod
    def from_targets(cls, targets: Sequence[Conversation], present: Callable[[], list[str]]) -> FromTargets[Graded]:
        """Make records in which the wanted answers are good and the present answers are bad."""
        return graded_from_targets(targets, present())

    @staticmethod
    def tokens_of(row: GradedRow) -> int:
        return len(row.answer.input_ids)

    def numbers(self, row: GradedRow) -> list[int]:
        return [len(row.answer.input_ids), *row.answer.input_ids, *row.answer.labels, int(row.label)]

    def tensors(self, rows: Sequence[GradedRow]) -> TokenBatch:
        return token_batch([row.answer for row in rows], pad_id=self.setup.pad_id)

    def prepare(self, preparation: Preparation) -> None:
        """Check that both grades occur, give each prompt another answer, and compute `before` if it is needed."""
        without_dropout(preparation.model, preparation.say)
        self._check_grades(preparation.new, preparation.say)
        rows: list[GradedRow] = [*preparation.new, *preparation.validation]
        others = [*mismatched(preparation.new), *mismatched(preparation.validation)]
        self.others = dict(zip(rows, others, strict=True))
        if not self.asks_reference(self.objective):
            self.ask_before(rows, [(row.answer, other) for row, other in self.others.items()], preparation)

    def _check_grades(self, rows: Sequence[GradedRow], say: Callable[[str], None]) -> None:
        """Raise DataError if all answers have the same grade, since good answers then have no contrast. Report weights
        that are outside of the range that the paper advises."""
        good = sum(row.label for row in rows)
        bad = len(rows) - good
        if not good or not bad:
            which, mend = ("true", "`sft` learns good answers alone") if good else ("false", "add good answers")
            cause = f"all {len(rows)} rows have label {which}: there is nothing to tell them apart from"
            raise DataError(Problem(rows[0].location, cause, f"add rows with the other label; {mend}"))
        weighed = self.objective.desirable_weight * good, self.objective.undesirable_weight * bad
        if not 1 <= weighed[0] / max(weighed[1], 1e-9) <= 4 / 3:
            say(
                f"{good} good and {bad} bad answers weigh {weighed[0]:g} to {weighed[1]:g}; the paper advises "
                f"1 to 1 up to 4 to 3 (desirable_weight: {self.objective.undesirable_weight * bad / good:.3g})"
            )

    def begin_step(self, model: nn.Module, micro_batches: Sequence[MicroBatch], number: int) -> None:
        """Compute the zero point: the mean log-ratio of answers to other prompts, at least 0. Also count the wanted
        rows and all rows of the step.
        """
        sums = torch.zeros(3, dtype=torch.float64)  # log-ratios, wanted rows, rows
        for micro in micro_batches:
            if bool(micro.old.all()):
                continue  # replayed conversations
            found = [0.0, float(sum(row.label for row in micro.rows)), float(len(micro.rows))]
            if self.objective.loss == "kto":
                others = [self.others[row] for row in micro.rows]
                batch = token_batch(others, pad_id=self.setup.pad_id)
                before = self.logps_before(batch, micro.rows, (1,))
                with torch.no_grad():
                    now = answer_logps(model, batch, self.device)[0]
                found[0] = float((now - before.to(now)).sum())
            if micro.counts:
                sums += torch.tensor(found, dtype=torch.float64)
        if torch.distributed.is_initialized():
            sums = sums.to(self.device)
            torch.distributed.all_reduce(sums)
        ratio, wanted, rows = sums.tolist()
        self.zero = max(ratio / max(rows, 1.0), 0.0)
        self.counted = wanted, rows

    def loss(self, model: nn.Module, micro: MicroBatch) -> Loss:
        before = self.logps_before(micro.tensors, micro.rows, (0,))
        policy = answer_logps(model, micro.tensors, self.device)[0]
        desirable = torch.tensor([row.label for row in micro.rows], device=self.device)
        loss = self.setup.function(policy, before.to(policy), desirable, policy.new_tensor(self.zero))
        return loss._replace(metrics=self._by_grade(loss.metrics, desirable))

    def _by_grade(self, metrics: Mapping[str, Tensor], desirable: Tensor) -> dict[str, Tensor]:
        """Split the reward by grade, weighted so that a mean over all rows is a mean over the rows of one grade."""
        wanted, rows = self.counted
        reward, rest = metrics["reward"], {name: one for name, one in metrics.items() if name != "reward"}
        for name, of, count in (("good", desirable, wanted), ("bad", ~desirable, rows - wanted)):
            if count:  # a step without such rows has no metric for them
                rest[f"reward_{name}"] = torch.where(of, reward * (rows / count), 0.0)
        return rest
