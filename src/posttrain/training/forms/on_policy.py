"""The form of `sdft`: the model answers prompts again in every step, and a teacher has read the demonstration.

All answers of a step are sampled before its first micro batch. They depend on the seed and on the number of steps done,
so that a resumed run samples the same answers. Student and teacher read their own prompts and the same answer. The loss
of a row is its sum over tokens times the step's rows per token, so that the step's mean over rows is a mean over
tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from posttrain.data.chat import IGNORED, Encoded, encode_all, encode_prompt
from posttrain.data.lengths import EncodeResult, OverLong
from posttrain.data.preferences import FromTargets
from posttrain.data.records import Completion, Conversation, Record
from posttrain.errors import ConfigError, DataError, Problem
from posttrain.inference.decode import Decoded, decode
from posttrain.inference.packed import head_laid_out
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.head_loss import kept_in
from posttrain.models.load import LoadedModel
from posttrain.models.logits import core_of
from posttrain.objectives._loss import Loss
from posttrain.objectives.sdft import SdftConfig
from posttrain.training.forms.base import EncodeSettings, Form, FormSetup, MicroBatch, Preparation
from posttrain.training.forms.tokens import token_batch
from posttrain.training.slim_lora import still

__all__ = ["AskedRow", "OnPolicyForm", "shown"]


class AskedRow(NamedTuple):
    """prompt: what the student reads; shown: what the teacher reads; demonstration: the ids of the demonstration."""

    prompt: list[int]
    shown: list[int]
    demonstration: list[int]
    location: str


def shown(talk: Conversation, objective: SdftConfig) -> Conversation:
    """Return the conversation for the teacher: the last question with the demonstration, in the question's language."""
    *before, question, answer = talk.messages
    chinese = any("\u4e00" <= c <= "\u9fff" for c in question.content)
    template = objective.template_zh if chinese else objective.template
    words = template.replace("{prompt}", question.content).replace("{demonstration}", answer.content)
    return replace(talk, messages=(*before, replace(question, content=words), answer))


class OnPolicyForm(Form):
    """A form for questions that each have a demonstration."""

    objective: SdftConfig
    respondent: ModelRespondent
    """The respondent that samples answers; `prepare` makes it."""

    def __init__(self, setup: FormSetup) -> None:
        super().__init__(setup)
        self.answers: dict[int, list[list[int]]] = {}
        """The sampled answers to the rows of the present step, by `id` of the row."""
        self.per_token = 1.0
        self.seed = 0
        self.mean: dict[str, Tensor] = {}  # running mean of the weights, for teacher `ema`

    @classmethod
    def asks_reference(cls, objective: Any) -> bool:
        return bool(objective.teacher == "base")

    @classmethod
    def encode(
        cls, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, settings: EncodeSettings
    ) -> EncodeResult[AskedRow]:
        """Encode conversations that end with the assistant's demonstration. Raise DataError with the other rows. Raise
        ConfigError for a template without {prompt} or {demonstration}.
        """
        objective: SdftConfig = settings.objective
        for name in ("template", "template_zh"):
            if not all(part in getattr(objective, name) for part in ("{prompt}", "{demonstration}")):
                mend = "write {prompt} and {demonstration} where they belong"
                raise ConfigError(Problem(f"objective.{name}", "the teacher would not be shown both", mend))
        made = [record.as_conversation() if isinstance(record, Completion) else record for record in records]
        talks = [talk for talk in made if isinstance(talk, Conversation) and _asks(talk)]
        if len(talks) < len(made):
            bad = [record.location for record, talk in zip(records, made, strict=True) if talk not in talks]
            mend = "give a user's question and the assistant's answer, the demonstration"
            raise DataError(*(Problem(place, "no question with a demonstration", mend) for place in bad[:20]))
        told, room = [shown(talk, objective) for talk in talks], max(settings.max_length - objective.max_new_tokens, 1)
        over_long: OverLong = "raise" if settings.over_long == "truncate" else settings.over_long
        found = encode_all(told, tokenizer, max_length=room, over_long=over_long, on_bad_row=settings.on_bad_row)
        by_place = {talk.location: talk for talk in talks}
        rows = [_row(by_place[one.location], one, tokenizer, objective) for one in found.rows]
        return EncodeResult(rows, found.long, found.problems, found.truncated)

    @classmethod
    def from_targets(cls, targets: Sequence[Conversation], present: Callable[[], list[str]]) -> FromTargets[Any]:
        """Use the wanted answers as demonstrations."""
        return FromTargets(list(targets), 0)

    @staticmethod
    def tokens_of(row: AskedRow) -> int:
        """Return the tokens of the teacher's prompt and the demonstration; answers are not known yet."""
        return len(row.shown) + len(row.demonstration)

    def size(self, row: AskedRow) -> int:
        return max((len(row.shown) + self.objective.max_new_tokens) * self._count, self.tokens_of(row))

    def numbers(self, row: AskedRow) -> list[int]:
        most = self.objective.max_new_tokens
        return [len(row.prompt), *row.prompt, len(row.shown), *row.shown, *row.demonstration, most]

    def tensors(self, rows: Sequence[AskedRow]) -> None:
        """Return nothing, since tensors can be made only when the answers are known."""

    @property
    def _count(self) -> int:
        return self.objective.samples if self.objective.temperature > 0 else 1

    def check(self, *, deepspeed: bool, sharded: bool) -> None:
        """Raise ConfigError for shards: answers are sampled from whole weights, by each process at its own speed."""
        if deepspeed or sharded:
            cause = f"{self.objective.kind} lets the model answer in every step, which it cannot do from shards"
            raise ConfigError(Problem("objective", cause, "use a single process or DDP"))

    def prepare(self, preparation: Preparation) -> None:
        """Make the respondent that samples, and the running mean of the weights for teacher `ema`."""
        core: Any = core_of(preparation.model)
        self.respondent = ModelRespondent(LoadedModel(core, self.setup.tokenizer, "student"))
        self.seed = preparation.seed
        if self.objective.teacher == "ema":
            moving = preparation.model.named_parameters()
            self.mean = {name: p.detach().clone() for name, p in moving if p.requires_grad}

    def begin_step(self, model: nn.Module, micro_batches: Sequence[MicroBatch], number: int) -> None:
        """Sample answers to all prompts of the step."""
        rows: list[AskedRow] = [row for m in micro_batches if not bool(m.old.all()) for row in m.rows]
        prompts = [row.prompt for row in rows for _ in range(self._count)]
        inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        training = inner.training
        inner.eval()
        try:
            with still(), _quick_head(core_of(inner)):
                said = decode(
                    inner,
                    prompts,
                    stop=self.respondent.stop_ids,
                    pad_id=self.respondent.pad_id,
                    max_new_tokens=self.objective.max_new_tokens,
                    temperature=self.objective.temperature,
                    seed=self.seed * 1_000_003 + number + 1,
                    batch_tokens=self.respondent.batch_tokens,
                )
        finally:
            inner.train(training)
        each = [said[i : i + self._count] for i in range(0, len(said), self._count)]
        self.answers = {id(row): [self._ids(one) for one in some] for row, some in zip(rows, each, strict=True)}
        tokens = sum(len(ids) for some in self.answers.values() for ids in some)
        self.per_token = len(rows) / max(tokens, 1)

    def _ids(self, said: Decoded) -> list[int]:
        """Return the ids of an answer with the token that ended it, since the student chooses to end, too."""
        end = self.respondent.end_of_turn
        ends = [end] if end is not None else sorted(self.respondent.stop_ids)[:1]
        return [*said.ids, *ends] if said.ended or not said.ids else said.ids

    def loss(self, model: nn.Module, micro: MicroBatch) -> Loss:
        owners = [at for at, row in enumerate(micro.rows) for _ in self.answers[id(row)]]
        answers = [ids for row in micro.rows for ids in self.answers[id(row)]]
        logits, row = self._read(model, [micro.rows[at].prompt for at in owners], answers)
        with torch.no_grad(), self._teacher(model) as teacher:
            taught, _ = self._read(teacher, [micro.rows[at].shown for at in owners], answers)
        owner = torch.tensor(owners, device=row.device)
        loss: Loss = self.setup.function(logits, taught, owner[row], len(micro.rows))
        said = loss.nats.new_tensor([len(ids) for ids in answers])
        length = torch.zeros_like(loss.nats).index_add(0, owner, said).detach()
        spread = torch.ones(len(micro.rows), dtype=torch.long)
        return Loss(loss.nats * self.per_token, spread, {"answer_tokens": length / self._count})

    def _read(self, model: nn.Module, prompts: list[list[int]], answers: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Return logits (N, V) at all positions of the answers, answer by answer, and each one's answer index, (N,)."""
        rows = [
            Encoded([*prompt, *answer], [IGNORED] * len(prompt) + answer, "")
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        return token_batch(rows, pad_id=self.setup.pad_id).logits(model, self.device)

    @contextlib.contextmanager
    def _teacher(self, model: nn.Module) -> Iterator[nn.Module]:
        """Give the teacher, in evaluation mode, during the block."""
        if self.objective.teacher == "base":
            with self.before_training() as reference:
                yield reference
            return
        training = model.training
        model.eval()
        moving = {name: p for name, p in model.named_parameters() if name in self.mean}
        now = {name: p.data for name, p in moving.items()}
        try:
            for name, p in moving.items():  # set another tensor, so that tensors kept for the student's backward stay
                p.data = self.mean[name]
            yield model
        finally:
            for name, p in moving.items():
                p.data = now[name]
            model.train(training)

    def end_step(self, model: nn.Module) -> None:
        """Move the running mean towards the weights."""
        parameters = dict(model.named_parameters()) if self.mean else {}
        for name, mean in self.mean.items():
            mean.lerp_(parameters[name].detach().to(mean), self.objective.ema_rate)

    def state(self) -> dict[str, Tensor]:
        return dict(self.mean)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, mean in self.mean.items():
            mean.copy_(state[name].to(mean))


def _asks(talk: Conversation) -> bool:
    return [m.role for m in talk.messages][-2:] == ["user", "assistant"] and bool(talk.messages[-1].content.strip())


def _quick_head(core: Any) -> contextlib.AbstractContextManager[None]:
    """Cast the head once to the precision of autocast while answers are sampled."""
    if not torch.is_autocast_enabled("cpu"):
        return contextlib.nullcontext()
    return head_laid_out(core.get_output_embeddings(), lambda w: kept_in(w, torch.get_autocast_dtype("cpu")))


def _row(talk: Conversation, told: Encoded, tokenizer: PreTrainedTokenizerBase, objective: SdftConfig) -> AskedRow:
    learned = [i for i, label in enumerate(told.labels) if label != IGNORED]
    begins = min(i for i in learned if all(label != IGNORED for label in told.labels[i : learned[-1] + 1]))
    prompt = encode_prompt(talk.messages[:-1], tokenizer, tools=talk.tools)
    taught = encode_prompt(shown(talk, objective).messages[:-1], tokenizer, tools=talk.tools)
    return AskedRow(prompt, taught, told.input_ids[begins : learned[-1] + 1], talk.location)
