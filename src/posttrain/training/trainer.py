"""PostTrainer: a transformers.Trainer with exact steps, checks, and checkpoints that are always complete.

The Trainer's own loop, optimiser, schedule, distributed wrapping (accelerate), callbacks and resumption are kept. These
parts are replaced: an item of the loader is a whole optimiser step (`Step`), so that the loss of a step is divided
once, by the number of its supervised tokens (or pairs); the loss is one of our objectives; penalties are added before
the gradient is clipped; a loss or gradient that is not finite stops the run before the weights are changed. Checked
against transformers 5.23, which reads every file of torch.load with weights_only=True when it resumes.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from posttrain.errors import ConfigError, Problem, TrainingError
from posttrain.models.adapters import set_peft_state
from posttrain.models.added import added_to, set_added_state
from posttrain.models.disk import whole_folder
from posttrain.models.logits import core_of
from posttrain.models.memory import is_large, peak_gib, trim
from posttrain.models.save import save_model, saved_padding
from posttrain.objectives._loss import Loss
from posttrain.training.batches import Learner, Step, StepLoader, part_of, validation_batches
from posttrain.training.checkpoints import FINGERPRINT, rotate
from posttrain.training.folder import RunFolder, as_json
from posttrain.training.forms.base import MicroBatch, Row
from posttrain.training.metrics import MetricsLog, Sums
from posttrain.training.precision import Lowered, arithmetic
from posttrain.training.progress import RunProgress
from posttrain.training.steps import StepSource

__all__ = ["Arguments", "PostTrainer", "set_adapter_state"]

NAMED_ROWS = 8
"""Maximum number of rows of a bad batch that a message names."""


class Arguments(TrainingArguments):
    """TrainingArguments that switch off all writing if there is no output folder."""

    @property
    def should_save(self) -> bool:
        return bool(self.output_dir) and bool(super().should_save)


LONG_STEP = 512
"""Minimum tokens of a step for which it is worth the time to return the heap memory of its activations."""


class PostTrainer(Trainer):
    """A Trainer that trains the learner's model on the steps of a source, with losses that the learner's forms compute.

    steps: maximum number of steps, None if not known; at_once: see `StepLoader`; fingerprint: of the run, for
    checkpoints; lowered: holds the weights in the precision of the forward passes; optimizer: None for AdamW as `args`
    says. The loss of the validation rows is measured after every `evaluate_every` steps and after the last.
    """

    control: Any

    def __init__(
        self,
        learner: Learner,
        args: TrainingArguments,
        *,
        source: StepSource,
        steps: int | None,
        at_once: int | None,
        folder: RunFolder | None,
        fingerprint: dict[str, Any],
        progress: RunProgress,
        lowered: Lowered,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        rows = learner.material.validation
        self.validation = validation_batches(learner.config.batch, rows, learner.forms.new, at_once)
        validation: Any = self.validation or None
        super().__init__(model=learner.model, args=args, eval_dataset=validation, optimizers=(optimizer, None))
        # The Trainer empties its accelerator before the loop, which costs a whole garbage collection (0.2 s). This
        # accelerator is new and empty.
        self.accelerator.free_memory = lambda *objects: list(objects)
        for callback in list(self.callback_handler.callbacks):  # remove the default flow and printer; trackers stay
            if type(callback).__module__ in ("transformers.trainer_callback",):
                self.remove_callback(callback)
        self.add_callback(Flow(self))
        self.config, self.tokenizer, self.forms = learner.config, learner.tokenizer, learner.forms
        self.penalties = learner.penalties
        self.loader = StepLoader(
            source,
            args.max_steps,
            self.forms,
            left=lambda: None if steps is None else steps - int(self.state.global_step),
            ended=self.source_ended,
            at_once=at_once,
            rank=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )
        self.evaluate_every = self.config.evaluate_every_steps or (None if steps is None else max(steps // 10, 1))
        self.checkpoints, self.fingerprint = folder.checkpoints if folder else None, fingerprint
        self.metrics, self.progress, self.lowered = MetricsLog(folder.metrics if folder else None), progress, lowered
        self.on_checkpoint: Callable[[Path, int], None] | None = None
        self.examine: Callable[[PreTrainedModel | PeftModel, int], None] | None = None
        self.resting = False
        self.stop_asked = False  # a signal sets it: save after this step and stop
        self.stopped = ""  # the reason why the run ended before its last step
        self.entry: dict[str, Any] = {}  # the entry of the present step for metrics.jsonl
        self.best_weights: dict[str, Tensor] | None = None
        self.step: Step | None = None
        self.began = time.monotonic()
        self.wall_before_s = 0.0
        self.core: PreTrainedModel = core_of(learner.model)
        self.trims = self.core.device.type == "cpu" and is_large(self.core)
        for form in (self.forms.new, self.forms.old):
            form.device = self.args.device
        self.trainable = sum(p.numel() for p in learner.model.parameters() if p.requires_grad)

    # ---- steps ------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        """Return the steps; accelerate does not shard them, since each process takes its part of a step itself."""
        return self.loader

    def source_ended(self) -> None:
        """Measure the validation loss, unless the last step did, and stop, since there are no more steps. Raise
        TrainingError if there was no step at all.
        """
        if not self.state.global_step:
            raise TrainingError(Problem("", "there is no step to learn from: the source of steps gave none"))
        measured = any(entry["step"] == self.state.global_step for entry in self.state.log_history)
        self.control.should_evaluate = bool(self.validation) and not measured
        self.control.should_training_stop = True

    def _get_num_items_in_batch(self, batch_samples: Any, device: Any) -> None:
        """Count nothing, since a step knows how many tokens it supervises."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Return the number of operations of the step, forward and backward: 6 per trained parameter and token."""
        return 6 * self.trainable * int(inputs.tokens)

    def loss_of(self, model: nn.Module, micro: MicroBatch) -> tuple[Loss, list[float]]:
        """Run the forward pass and the objective; return the loss of each row in nats, with gradient and as numbers."""
        with arithmetic(self.args.device, self.lowered.dtype):
            loss = self.forms.of(micro).loss(model, micro)
        return loss, loss.nats.detach().tolist()

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Run every micro batch of a step forward and backward, and add the gradients of the penalties once.

        The gradients of the micro batches add up to the gradient of the step's loss. Return the loss of the step in
        nats: the mean over its supervised tokens, or as `Form.scales` says. Raise TrainingError if the loss of a row is
        not finite.
        """
        step: Step = inputs
        self.step = step
        processes = self.accelerator.num_processes
        form = self.forms.new
        scales = form.scales(step.new_units, step.old_units)
        with arithmetic(self.args.device, self.lowered.dtype):
            form.begin_step(model, step.micro_batches, int(self.state.global_step))
        sums = Sums()
        for i, micro in enumerate(step.micro_batches):
            last = i == len(step.micro_batches) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                loss, nats = self.loss_of(model, micro)
                self._check_loss(nats, micro)
                scale = torch.where(micro.old, scales.old, scales.new) * micro.counts
                # DDP and FSDP average over processes, and each process has a part of the sum
                self.accelerator.backward((loss.nats * scale.to(loss.nats)).sum() * processes)
            if micro.counts:
                sums.add(loss, nats, micro.old.tolist())
        if self.trims and (self.lowered.entered or step.tokens >= LONG_STEP):
            trim()  # otherwise a heap of tensors of many sizes grows from step to step
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

    def _check_loss(self, nats: list[float], micro: MicroBatch) -> None:
        bad = [row for row, value in zip(micro.rows, nats, strict=True) if not abs(value) < float("inf")]
        if bad:
            cause = f"the loss is not finite in step {self.state.global_step + 1}" + (
                f" ({len(bad)} of the batch's {len(nats)} rows)" if len(bad) < len(nats) else ""
            )
            mend = (
                "look at these rows with `posttrain data show`, or lower the learning rate; "
                "the weights of the step before were not changed"
            )
            raise TrainingError(Problem(_locations(bad), cause, mend))

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> float:
        """Return the gradient norm before clipping; raise TrainingError, before the update, if it is not finite."""
        norm = float(super()._get_grad_norm(model, grad_norm=grad_norm))
        if not abs(norm) < float("inf"):
            assert self.step is not None
            rows = _locations([row for micro in self.step.micro_batches for row in micro.rows])
            # it is not known which of these rows is the cause
            cause = f"the gradient is not finite in step {self.state.global_step + 1}, which learned from {rows}"
            mend = "lower the learning rate; the weights of the step before were not changed"
            if self.lowered.dtype is not None:
                mend = "lower the learning rate, or train in float32; the weights of the step before were not changed"
            raise TrainingError(Problem("", cause, mend))
        return norm

    # ---- what is written down ---------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Report a step to metrics.jsonl, to the progress display and to the trackers."""
        if "loss" in logs:
            wall_s = self.wall_before_s + time.monotonic() - self.began
            tokens = self.step.tokens if self.step else 0
            entry = {
                "step": self.state.global_step,
                "epoch": self.state.epoch,
                **self.entry,
                "learning_rate": logs["learning_rate"],
                "grad_norm": logs.get("grad_norm", 0.0),
                "tokens": self.state.num_input_tokens_seen,
                "tokens_per_s": tokens / max(wall_s - self.metrics.wall_s, 1e-9),
                "wall_s": wall_s,
                "peak_gib": peak_gib(),
            }
            self._note(entry)
            logs = {**logs, "loss": entry["loss_nats"], "loss_new": entry["loss_new_nats"]}
        # state.log_history gets no copy, since all of it is written into every checkpoint
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def _note(self, entry: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            self.metrics.add(entry)
            self.progress.step(entry)

    # ---- validation -------------------------------------------------------------------------------------------------

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        """Measure the mean loss over the supervised tokens of all validation rows, in nats per token."""
        model = self.model_wrapped
        model.eval()
        sums, units = Sums(), 0
        with torch.no_grad():
            part = part_of(self.validation, self.accelerator.process_index, self.accelerator.num_processes)
            with arithmetic(self.args.device, self.lowered.dtype):
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
        """Remember and keep a new best validation; stop if there was none for `patience` validations."""
        loss_nats, best = metrics["eval_loss"], self.state.best_metric
        if best is None or loss_nats < best:
            self.state.best_metric, self.state.best_global_step = loss_nats, self.state.global_step
            if self.config.keep_best and self.checkpoints is not None:
                self.control.should_save = True
            elif self.config.keep_best:
                moving = self.model.named_parameters()
                self.best_weights = {k: p.detach().clone() for k, p in moving if p.requires_grad}
            return True
        since = sum(entry["step"] > (self.state.best_global_step or 0) for entry in self.state.log_history)
        patience = self.config.early_stopping_patience
        if patience is not None and since >= patience:
            self.control.should_training_stop = True
            self.stopped = f"no better validation loss than {best:.4f} in {since} validations"
        return False

    def restore_best(self) -> None:
        """Restore the weights of the best validation, unless the last step is the best."""
        step = self.state.best_global_step
        if not self.config.keep_best or not step or step == self.state.global_step:
            return
        if self.best_weights is not None:
            moving = dict(self.model.named_parameters())
            with torch.no_grad():
                for name, value in self.best_weights.items():
                    moving[name].copy_(value)
        elif self.checkpoints is not None:
            self._load_from_checkpoint(str(self.checkpoints / f"step-{step}"))
        self.progress.say(f"the weights of step {step} are kept: best validation loss {self.state.best_metric:.4f}")

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def saves(self, step: int) -> bool:
        """Return whether the settings ask for a checkpoint after this step."""
        every = self.config.save_every_steps
        return step in self.config.save_at_steps or (every is not None and step % every == 0)

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """Save weights, optimiser, schedule, random states and counters into `step-N`, completely or not at all."""
        folder = self.checkpoints
        if folder is None or (final := folder / f"step-{self.state.global_step}").exists():
            return
        main = self.accelerator.is_main_process
        self.store_flos()
        with whole_folder(final, main=main, flush=True) as temporary:
            self.accelerator.wait_for_everyone()
            self.save_model(str(temporary), _internal_call=True)
            self.accelerator.wait_for_everyone()  # save_model needs an empty folder
            self._save_optimizer_and_scheduler(str(temporary))
            self._save_scaler(str(temporary))
            self._save_rng_state(str(temporary))
            if main:
                self.penalties.save_state(temporary)
                self.forms.save_state(temporary)
                self.loader.save_state(temporary)
                self.state.save_to_json(str(temporary / "trainer_state.json"))
                (temporary / FINGERPRINT).write_text(as_json(self.fingerprint), encoding="utf-8", newline="\n")
            self.accelerator.wait_for_everyone()
        if main:
            rotate(folder, self.config.keep_checkpoints, self.state.best_global_step)
            if self.on_checkpoint is not None:
                self.on_checkpoint(final, self.state.global_step)
            if self.examine is not None and self.saves(self.state.global_step) and not self.stop_asked:
                with self.at_rest():
                    self.examine(self.model, self.state.global_step)

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[None]:
        """Lend the model in evaluation mode during the block; then restore mode, clock and random states."""
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
        """Save a folder that loads like any model, without a file of pickled arguments."""
        assert output_dir is not None
        if not self.args.should_save:
            return
        if state_dict is None:
            with self.lowered.raised(), self.cache_switched_on():
                save_model(self.model, self.tokenizer, Path(output_dir), hashed=False)
        else:  # FSDP or DeepSpeed has gathered the state
            model = self.accelerator.unwrap_model(self.model)
            with saved_padding(model, self.tokenizer):
                model.save_pretrained(output_dir, state_dict=state_dict)
                self.tokenizer.save_pretrained(output_dir)

    @contextlib.contextmanager
    def cache_switched_on(self) -> Any:
        """Undo the Trainer's use_cache = False in the model's config, so that a saved model generates quickly."""
        self.core.config.use_cache = True
        try:
            yield
        finally:
            self.core.config.use_cache = False

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the weights of a checkpoint in place. Every parameter must be in it: after a partial load training would
        continue without an error."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        if isinstance(self.model, PeftModel) or added_to(self.core) is not None:
            set_adapter_state(
                self.model if isinstance(self.model, PeftModel) else self.core, Path(resume_from_checkpoint)
            )
        else:  # by from_pretrained, which knows how each family stores its weights
            stored = type(self.core).from_pretrained(resume_from_checkpoint, dtype=self.core.dtype)
            self.core.load_state_dict(stored.state_dict(), strict=True)


def set_adapter_state(model: PreTrainedModel | PeftModel, folder: Path) -> None:
    """Load the weights of an adapter folder into a model with an adapter of the same kind, to continue training.

    Raise TrainingError for the weights of another adapter, since after a partial load training would continue without
    an error; raise ConfigError for a model without an adapter.
    """
    if isinstance(model, PeftModel):
        set_peft_state(model, folder)
    elif added_to(model) is not None:
        set_added_state(model, folder)
    else:
        cause = "is an adapter, and this tuner makes none"
        raise ConfigError(Problem(str(folder), cause, "use the tuner that made it"))


def _locations(rows: Sequence[Row]) -> str:
    named = ", ".join(row.location for row in rows[:NAMED_ROWS])
    return named + (f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else "")


class Flow(TrainerCallback):
    """A callback that decides after each step whether to log, validate, save or stop."""

    def __init__(self, trainer: PostTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Switch training mode on in all modules, since new LoRA layers are in a model that was in evaluation mode."""
        self.trainer.model_wrapped.train()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Update the counters and set the flags on which the Trainer acts right after this call."""
        trainer = self.trainer
        trainer.penalties.stepped()
        trainer.forms.new.end_step(trainer.model)
        if trainer.step is not None:
            state.epoch = trainer.step.epoch
            state.num_input_tokens_seen += trainer.step.tokens
        new_nats = trainer.entry["loss_new_nats"]
        stop_at_loss = trainer.config.optimizer.stop_at_loss
        if stop_at_loss is not None and new_nats <= stop_at_loss:
            trainer.stopped = f"loss on new rows {new_nats:.4f} <= {stop_at_loss}"
        last = state.global_step >= state.max_steps or bool(trainer.stopped) or trainer.stop_asked
        control.should_log = True
        control.should_training_stop = last
        every = trainer.evaluate_every
        due = every is not None and state.global_step % every == 0
        control.should_evaluate = bool(trainer.validation) and (due or (last and not trainer.stop_asked))
        control.should_save = trainer.stop_asked or trainer.saves(state.global_step)
        return control
