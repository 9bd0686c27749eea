"""PostTrainer: transformers.Trainer with exact steps, checks, and atomic checkpoints.

Kept from the Trainer: the loop, optimiser and schedule, accelerate's distributed wrapping, callbacks and trackers,
resume. Replaced: an item of the loader is a whole optimiser step (`Step`), so the loss of a step is divided once, by
the number of supervised tokens (or pairs) of the step; the loss is one of our objectives; penalties are added before
the gradient is clipped; a non-finite loss or gradient stops the run before the weights are touched; checkpoints are
whole or not there. Read against transformers 5.23; there,
everything that a resume reads with torch.load is read with weights_only=True.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from posttrain.errors import Problem, TrainingError
from posttrain.models.added import added_to
from posttrain.models.logits import core_of
from posttrain.models.memory import is_large, peak_gib, trim
from posttrain.models.save import save_model, saved_padding
from posttrain.objectives._loss import Loss
from posttrain.training.adapter_state import set_adapter_state
from posttrain.training.batches import Forms, Step, StepLoader, part_of
from posttrain.training.checkpoints import IDENTITY, rotate, whole_folder, write_text
from posttrain.training.forms.base import MicroBatch, Row
from posttrain.training.forms.forward import arithmetic
from posttrain.training.metrics import MetricsLog
from posttrain.training.penalties import Penalties
from posttrain.training.precision import Lowered
from posttrain.training.progress import RunProgress
from posttrain.training.sums import Sums

__all__ = ["Arguments", "PostTrainer", "Rules"]

NAMED_ROWS = 8
"""How many rows of a bad batch a message names."""


class Arguments(TrainingArguments):
    """TrainingArguments that write nothing when there is no folder to write to."""

    @property
    def should_save(self) -> bool:
        return bool(self.output_dir) and bool(super().should_save)


LONG_STEP = 512
"""Tokens of a step whose activations leave a heap that is worth the time of handing it back."""


@dataclass(frozen=True)
class Rules:
    """When to stop, to validate and to save; numbers of steps. identity: what a resumed run must have in common."""

    stop_at_loss: float | None = None
    evaluate_every: int | None = None
    patience: int | None = None
    keep_best: bool = True
    save_every: int | None = None
    save_at: frozenset[int] = frozenset()
    keep_checkpoints: int | None = 1
    checkpoints: Path | None = None
    identity: dict[str, Any] = field(default_factory=dict)

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due after a step."""
        return step in self.save_at or (self.save_every is not None and step % self.save_every == 0)


class PostTrainer(Trainer):
    """Trains `model` on the steps of `loader`, whose losses are what `forms` say.

    rows: all rows, by number, for messages; new_rows: numbers below are new rows, the others replayed;
    validation: micro batches whose loss is measured; lowered: dtype of the forward pass, None for the weights' own, and
    what holds weights in it;
    optimizer: None for AdamW as `args` says.
    """

    control: Any

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        args: TrainingArguments,
        *,
        tokenizer: PreTrainedTokenizerBase,
        forms: Forms,
        penalties: Penalties,
        rows: Sequence[Row],
        new_rows: int,
        make_loader: Callable[[PostTrainer], StepLoader],
        validation: list[MicroBatch],
        rules: Rules,
        metrics: MetricsLog,
        progress: RunProgress,
        lowered: Lowered | None = None,
        on_checkpoint: Callable[[Path, int], None] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        super().__init__(model=model, args=args, eval_dataset=validation or None, optimizers=(optimizer, None))
        # The Trainer empties its accelerator before the loop, which costs a whole garbage collection (0.2 s); this
        # one is new and holds nothing.
        self.accelerator.free_memory = lambda *objects: list(objects)
        for callback in list(self.callback_handler.callbacks):  # the default flow and printer; trackers stay
            if type(callback).__module__ in ("transformers.trainer_callback",):
                self.remove_callback(callback)
        self.add_callback(Flow(self))
        for callback in callbacks or []:
            self.add_callback(callback)
        self.tokenizer = tokenizer
        self.forms = forms
        self.penalties = penalties
        self.rows = rows
        self.new_rows = new_rows
        self.loader = make_loader(self)
        self.validation = validation
        self.rules = rules
        self.metrics = metrics
        self.progress = progress
        self.lowered = lowered if lowered is not None else Lowered(model, None)
        self.on_checkpoint = on_checkpoint
        self.examine: Callable[[PreTrainedModel | PeftModel, int], None] | None = None
        self.resting = False
        self.stop_asked = False  # set by a signal: save after this step and stop
        self.stopped = ""  # why the run ended before its last step
        self.entry: dict[str, Any] = {}  # the step under way, for metrics.jsonl
        self.best_weights: dict[str, Tensor] | None = None
        self.step: Step | None = None
        self.began = time.monotonic()
        self.wall_before_s = 0.0
        self.core: PreTrainedModel = core_of(model)
        for form in (forms.new, forms.old):
            form.device = self.args.device
        self.trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)

    # ---- steps ------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        """The steps; not sharded by accelerate, since each process takes its part of a step itself."""
        return self.loader

    def _get_num_items_in_batch(self, batch_samples: Any, device: Any) -> None:
        """A step knows how many tokens it supervises; the Trainer shall not count."""
        return

    def floating_point_ops(self, inputs: Any) -> int:
        """Forward and backward of the step: 6 operations per parameter and token."""
        return 6 * self.trainable * int(inputs.tokens)

    def arithmetic(self) -> contextlib.AbstractContextManager[None]:
        """The precision of forward passes."""
        return arithmetic(self.args.device, self.lowered.dtype)

    def loss_of(self, model: nn.Module, micro: MicroBatch) -> tuple[Loss, list[float]]:
        """Forward pass and objective: per row the loss in nats with its gradient, and the same as numbers."""
        with self.arithmetic():
            loss = self.forms.of(micro).loss(model, micro)
        return loss, loss.nats.detach().tolist()

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of every micro batch of a step; the gradients add up to that of the step's loss, and
        those of the penalties join them once.

        Returns the loss of the step in nats: the mean over its supervised tokens, or what `Form.scales` says.
        """
        step: Step = inputs
        self.step = step
        processes = self.accelerator.num_processes
        form = self.forms.new
        scales = form.scales(step.new_units, step.old_units)
        with self.arithmetic():
            form.begin_step(model, step.micro_batches, int(self.state.global_step))
        sums = Sums()
        for i, micro in enumerate(step.micro_batches):
            last = i == len(step.micro_batches) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                loss, nats = self.loss_of(model, micro)
                self._check_loss(nats, micro)
                scale = torch.where(micro.old, scales.old, scales.new) * micro.counts
                # DDP and FSDP average over processes, and each process holds a part of the sum
                self.accelerator.backward((loss.nats * scale.to(loss.nats)).sum() * processes)
            if micro.counts:
                sums.add(loss, nats, micro.old.tolist())
        if (
            (self.lowered.entered or step.tokens >= LONG_STEP)
            and self.core.device.type == "cpu"
            and is_large(self.core)
        ):
            trim()  # a heap of tensors of many sizes grows from step to step
        stop = self.stop_asked
        if processes > 1:
            gathered = gather_object([(sums, stop)])
            sums, stop = Sums.total([one for one, _ in gathered]), any(asked for _, asked in gathered)
        self.stop_asked = stop
        scaler = self.accelerator.scaler
        penalties = self.penalties.add(float(scaler.get_scale()) if scaler is not None else 1.0)
        loss_nats = scales.new * sums.new + scales.old * sums.old
        self.entry = {
            "loss_nats": loss_nats,
            "loss_new_nats": sums.new / max(step.new_units, 1),
            "supervised": step.new_units + (step.old_units if self.forms.mixed else 0),
            "old_share": step.old_tokens / max(step.tokens, 1),
            **({} if self.forms.mixed or not step.old_units else {"loss_old_nats": sums.old / step.old_units}),
            **sums.means(step.new_units, step.old_units),
            **penalties,
        }
        return torch.tensor(loss_nats, device=self.args.device)

    def _places(self, numbers: Sequence[int]) -> str:
        named = ", ".join(self.rows[i].location for i in numbers[:NAMED_ROWS])
        return named + (f" and {len(numbers) - NAMED_ROWS} more" if len(numbers) > NAMED_ROWS else "")

    def _check_loss(self, nats: list[float], micro: MicroBatch) -> None:
        bad = [row for row, value in zip(micro.row_numbers, nats, strict=True) if not abs(value) < float("inf")]
        if bad:
            raise TrainingError(
                Problem(
                    self._places(bad),
                    f"the loss is not finite in step {self.state.global_step + 1}"
                    + (f" ({len(bad)} of the batch's {len(nats)} rows)" if len(bad) < len(nats) else ""),
                    "look at these rows with `posttrain data show`, or lower the learning rate; "
                    "the weights of the step before were not changed",
                )
            )

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> float:
        """The gradient's norm before clipping; a non-finite one stops the run before it reaches the weights."""
        norm = float(super()._get_grad_norm(model, grad_norm=grad_norm))
        if not abs(norm) < float("inf"):
            assert self.step is not None
            rows = self._places([i for micro in self.step.micro_batches for i in micro.row_numbers])
            # of them all, none is known to be the cause
            cause = f"the gradient is not finite in step {self.state.global_step + 1}, which learned from {rows}"
            mend = "lower the learning rate; the weights of the step before were not changed"
            if self.lowered.dtype is not None:
                mend = "lower the learning rate, or train in float32; the weights of the step before were not changed"
            raise TrainingError(Problem("", cause, mend))
        return norm

    # ---- what is written down ---------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One line for metrics.jsonl, the progress display and the trackers."""
        if "loss" in logs:
            wall_s = self.wall_before_s + time.monotonic() - self.began
            before = self.metrics.history[-1] if self.metrics.history else {"wall_s": self.wall_before_s}
            tokens = self.step.tokens if self.step else 0
            entry = {
                "step": self.state.global_step,
                "epoch": self.state.epoch,
                **self.entry,
                "learning_rate": logs["learning_rate"],
                "grad_norm": logs.get("grad_norm", 0.0),
                "tokens": self.state.num_input_tokens_seen,
                "tokens_per_s": tokens / max(wall_s - before["wall_s"], 1e-9),
                "wall_s": wall_s,
                "peak_gib": peak_gib(),
            }
            self._note(entry)
            logs = {**logs, "loss": entry["loss_nats"], "loss_new": entry["loss_new_nats"]}
        # not appended to state.log_history, which is written whole into every checkpoint
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def _note(self, entry: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            self.metrics.add(entry)
            self.progress.step(entry)

    # ---- validation -------------------------------------------------------------------------------------------------

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        """Mean loss over the supervised tokens of all validation rows, in nats per token."""
        model = self.model_wrapped
        model.eval()
        sums, units = Sums(), 0
        with torch.no_grad():
            part = part_of(self.validation, self.accelerator.process_index, self.accelerator.num_processes)
            with self.arithmetic():
                self.forms.new.begin_step(model, part, -1)
            for micro in part:
                loss, nats = self.loss_of(model, micro)
                if micro.counts:
                    sums.add(loss, nats, micro.old.tolist())
                    units += int(loss.units.sum())
        model.train()
        if self.accelerator.num_processes > 1:
            gathered = gather_object([(sums, units)])
            sums, units = Sums.total([one for one, _ in gathered]), sum(n for _, n in gathered)
        loss_nats = sums.new / max(units, 1)
        metrics = {"eval_loss": loss_nats}
        further = {**sums.means(units, 0), **self.forms.new.validated()}
        self.state.log_history.append({"step": self.state.global_step, **metrics})
        self._note(
            {
                "step": self.state.global_step,
                "validation_loss_nats": loss_nats,
                **{f"validation_{name}": value for name, value in further.items()},
                "wall_s": self.wall_before_s + time.monotonic() - self.began,
            }
        )
        told = {**metrics, **{f"eval_{name}": value for name, value in further.items()}}
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, told)  # for trackers
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Remember and keep a new best; stop when there was none for `patience` validations."""
        loss_nats, best = metrics["eval_loss"], self.state.best_metric
        if best is None or loss_nats < best:
            self.state.best_metric, self.state.best_global_step = loss_nats, self.state.global_step
            if self.rules.keep_best and self.rules.checkpoints is not None:
                self.control.should_save = True
            elif self.rules.keep_best:
                moving = {k: p for k, p in self.model.named_parameters() if p.requires_grad}
                self.best_weights = {k: p.detach().clone() for k, p in moving.items()}
            return True
        since = sum(entry["step"] > (self.state.best_global_step or 0) for entry in self.state.log_history)
        if self.rules.patience is not None and since >= self.rules.patience:
            self.control.should_training_stop = True
            self.stopped = f"no better validation loss than {best:.4f} in {since} validations"
        return False

    def restore_best(self) -> None:
        """Put the weights of the best validation back, unless the last step is the best."""
        step = self.state.best_global_step
        if not self.rules.keep_best or not step or step == self.state.global_step:
            return
        if self.best_weights is not None:
            moving = dict(self.model.named_parameters())
            with torch.no_grad():
                for name, value in self.best_weights.items():
                    moving[name].copy_(value)
        elif self.rules.checkpoints is not None:
            self._load_from_checkpoint(str(self.rules.checkpoints / f"step-{step}"))
        self.progress.say(f"the weights of step {step} are kept: best validation loss {self.state.best_metric:.4f}")

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """Weights, optimiser, schedule, random states and counters into `step-N`, whole or not at all."""
        folder = self.rules.checkpoints
        if folder is None or (final := folder / f"step-{self.state.global_step}").exists():
            return
        main = self.accelerator.is_main_process
        self.store_flos()
        with whole_folder(final, main=main) as temporary:
            self.accelerator.wait_for_everyone()
            self.save_model(str(temporary), _internal_call=True)
            self.accelerator.wait_for_everyone()  # save_model wants the folder empty
            self._save_optimizer_and_scheduler(str(temporary))
            self._save_scaler(str(temporary))
            self._save_rng_state(str(temporary))
            if main:
                self.penalties.save_state(temporary)
                self.forms.save_state(temporary)
                self.state.save_to_json(str(temporary / "trainer_state.json"))
                write_text(temporary / IDENTITY, json.dumps(self.rules.identity, indent=2, ensure_ascii=False) + "\n")
            self.accelerator.wait_for_everyone()
        if main:
            rotate(folder, self.rules.keep_checkpoints, self.state.best_global_step)
            if self.on_checkpoint is not None:
                self.on_checkpoint(final, self.state.global_step)
            if self.examine is not None and self.rules.saves(self.state.global_step) and not self.stop_asked:
                with self.at_rest():
                    self.examine(self.model, self.state.global_step)

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[None]:
        """The model as anybody may use it; afterwards training goes on as if nothing had happened."""
        began, python_state, numpy_state = time.monotonic(), random.getstate(), np.random.get_state()
        self.model.eval()
        self.resting = True
        try:
            with self.lowered.raised(), torch.random.fork_rng(), self.cache_switched_on():
                yield
        finally:
            self.resting = False
            self.model.train()
            random.setstate(python_state)
            np.random.set_state(numpy_state)
            self.began += time.monotonic() - began

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Any] | None = None) -> None:
        """A folder that loads like any model; no pickled arguments beside it."""
        assert output_dir is not None
        if not self.args.should_save:
            return
        if state_dict is None:
            with self.lowered.raised(), self.cache_switched_on():
                save_model(self.model, self.tokenizer, Path(output_dir), hashed=False)
        else:  # gathered by FSDP or DeepSpeed
            model = self.accelerator.unwrap_model(self.model)
            with saved_padding(model, self.tokenizer):
                model.save_pretrained(output_dir, state_dict=state_dict)
                self.tokenizer.save_pretrained(output_dir)

    @contextlib.contextmanager
    def cache_switched_on(self) -> Any:
        """The Trainer sets use_cache to False in the model's configuration; what is saved shall generate quickly."""
        self.core.config.use_cache = True
        try:
            yield
        finally:
            self.core.config.use_cache = False

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Weights of a checkpoint, in place. Every parameter must be there: a partial load would train on silently."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        if isinstance(self.model, PeftModel) or added_to(self.core) is not None:
            set_adapter_state(
                self.model if isinstance(self.model, PeftModel) else self.core, Path(resume_from_checkpoint)
            )
        else:  # through from_pretrained, which knows how each family stores its weights
            stored = type(self.core).from_pretrained(resume_from_checkpoint, dtype=self.core.dtype)
            self.core.load_state_dict(stored.state_dict(), strict=True)


class Flow(TrainerCallback):
    """Says after each step whether to log, validate, save or stop."""

    def __init__(self, trainer: PostTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Dropout on where the model has some; all modules are told, for new LoRA layers sit in a model at rest."""
        self.trainer.model_wrapped.train()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """The Trainer acts on the flags right after this."""
        trainer, rules = self.trainer, self.trainer.rules
        trainer.penalties.stepped()
        trainer.forms.new.end_step(trainer.model)
        if trainer.step is not None:
            state.epoch = trainer.step.epoch
            state.num_input_tokens_seen += trainer.step.tokens
        new_nats = trainer.entry["loss_new_nats"]
        if rules.stop_at_loss is not None and new_nats <= rules.stop_at_loss:
            trainer.stopped = f"loss on new rows {new_nats:.4f} <= {rules.stop_at_loss}"
        last = state.global_step >= state.max_steps or bool(trainer.stopped) or trainer.stop_asked
        control.should_log = True
        control.should_training_stop = last
        due = rules.evaluate_every is not None and state.global_step % rules.evaluate_every == 0
        control.should_evaluate = bool(trainer.validation) and (due or (last and not trainer.stop_asked))
        control.should_save = trainer.stop_asked or rules.saves(state.global_step)
        return control
