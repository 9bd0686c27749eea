"""`train()` trains a model, from a configuration or from parts that the caller made.

A study calls it a hundred times on a small model, so it starts quickly and writes nothing without an output folder.
With an output folder it writes config.yaml, env.json, metrics.jsonl, checkpoints/ (each one complete), and at the end
model/ and card.md. A run that is started again continues where it stopped. If it is finished already, it says so.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from peft import PeftModel
from transformers import PreTrainedModel, TrainerCallback

from posttrain import registry
from posttrain.errors import ConfigError, Interrupted, MissingError, Problem
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.added import added_to
from posttrain.models.heads import load_any
from posttrain.models.load import LoadedModel, resolve
from posttrain.models.memory import give_back, is_large, large_blocks_go_back, peak_gib, peak_memory, set_aside
from posttrain.models.merge_adapter import was_untied
from posttrain.models.meter import listener, listening
from posttrain.models.names import say_taken
from posttrain.models.vocabulary import keep_padding_inside
from posttrain.retention.selection import ReplayConfig, Task
from posttrain.training.assembly import (
    Surroundings,
    bare_forms,
    check_combination,
    learner_of,
    plan_of,
    show_rows,
    tokens_at_once,
)
from posttrain.training.batches import Learner
from posttrain.training.checkpoints import (
    check_fingerprint,
    check_settings,
    checkpoints_in,
    comes_back,
    made_by,
    remove_leftovers,
)
from posttrain.training.config import TrainConfig
from posttrain.training.environment import keep_date, stay_at_first_day
from posttrain.training.folder import OURS, RunFolder, TrainResult, check_ours, finished_run
from posttrain.training.heads import check_head, loader_for, resolved
from posttrain.training.lock import only_one
from posttrain.training.metrics import hardly_learned, learned_of
from posttrain.training.muon import muon_for
from posttrain.training.precision import Lowered, precision_of, rounded_as_saved, unused_dtype
from posttrain.training.progress import RunProgress
from posttrain.training.rates import rate_of
from posttrain.training.rows import material_of, run_fingerprint, talks_of
from posttrain.training.signals import stop_on_signal
from posttrain.training.steps import Material, StepSource, total_steps
from posttrain.training.trackers import LOGS
from posttrain.training.tracking import open_trackers
from posttrain.training.trainer import Arguments, PostTrainer, set_adapter_state
from posttrain.tuners._moved import count_moved

__all__ = ["TrainResult", "load_for_training", "train"]

ENDLESS = 2**31
"""The number of steps for the Trainer if the number is not known; the run then ends with its source of steps."""


P = ParamSpec("P")
R = TypeVar("R")


def in_its_folder(train: Callable[P, R]) -> Callable[P, R]:
    """Wrap `train` so that it runs alone in its folder.

    The wrapper locks the folder, undoes a restart that fails early, measures memory, and passes the progress of all
    inner work to `progress`. Under torchrun the first process locks the folder for all processes.
    """

    @wraps(train)
    def guarded(*args: P.args, **named: P.kwargs) -> R:
        output, progress = named.get("output"), named.get("progress") or RunProgress()
        assert isinstance(progress, RunProgress)
        with ExitStack() as stack:
            if isinstance(output, Path) and os.environ.get("RANK", "0") == "0":
                check_ours(output)
                stack.enter_context(only_one(output))
                stack.enter_context(comes_back(output, OURS, progress.say))
            stack.enter_context(peak_memory())
            stack.enter_context(listening(progress.doing if named.get("progress") else listener()))
            return train(*args, **named)

    return guarded


@in_its_folder
def train(
    config: TrainConfig,
    *,
    loaded: LoadedModel | None = None,
    rows: list[Any] | None = None,
    validation_rows: list[Any] | None = None,
    replay_rows: list[Any] | None = None,
    source: Callable[[Learner], StepSource] | None = None,
    output: Path | None = None,
    resume: bool = True,
    progress: RunProgress | None = None,
    on_checkpoint: Callable[[Path, int], None] | None = None,
    examine: Callable[[PreTrainedModel | PeftModel, int], None] | None = None,
    callbacks: list[TrainerCallback] | None = None,
    base: Path | None = None,
    earlier: Path | None = None,
    adapter: Path | None = None,
    forbidden: frozenset[str] = frozenset(),
    before: PreTrainedModel | None = None,
    logs: Path | None = None,
) -> TrainResult:
    """Train. What is not given is loaded or read as the configuration says.

    loaded: is changed in place (LoRA layers are added to it); rows: rows that are encoded already; source: makes the
    source of steps, instead of a plan over the rows; output: folder of the run, None writes nothing (`config.output` is
    for the command line); resume: continue from the last checkpoint in it, False starts from the beginning; examine: is
    called after each checkpoint that the configuration asks for, with the model in evaluation mode, while clock and
    random states are paused; earlier: folder of the run of the task before, from which penalties and the replay of
    earlier tasks continue; adapter: a folder saved by the same tuner, from which training continues; forbidden: prompts
    of exams, which no penalty may look at; before: a second copy of the model as it is now, which the caller never
    changes: an objective that compares with the model before training uses it instead of a copy; logs: folder of the
    trackers, by default `output/trackers`.

    Raise Interrupted after a signal (with an output folder: after saving), TrainingError if a loss or gradient is not
    finite, ConfigError if the checkpoint was made by another configuration, MissingError if `earlier` has no finished
    run, PosttrainError if another run works in the folder.
    """
    progress = progress or RunProgress()
    say = progress.say
    if earlier is None and config.earlier is not None:
        earlier = (base or Path()) / config.earlier
        if not (earlier / "result.json").is_file():
            raise MissingError(Problem("earlier", f"no finished run in {earlier}", "name the folder of a training"))
    config = resolved(config, loaded, say)
    check_combination(config, made=source is not None)
    folder = RunFolder(output) if output is not None else None
    if folder and resume:
        check_settings(folder.root, config)
    if loaded is None:
        loaded = load_for_training(config, say=say)
    check_head(config, loaded.model)
    model, tokenizer = loaded.model, loaded.tokenizer
    keep_padding_inside(model, tokenizer, loaded.name)
    if model.device.type == "cpu" and is_large(model):
        large_blocks_go_back()
    stay_at_first_day(tokenizer, output, resume=resume, say=say)
    forms = bare_forms(config, tokenizer)

    def same_so_far(read: Material) -> None:
        assert folder is not None
        if made := made_by(folder.root):
            check_fingerprint(made, run_fingerprint(config, loaded, read, forms, earlier, adapter), but=["replay_rows"])

    material = material_of(
        config,
        loaded,
        rows=rows,
        validation_rows=validation_rows,
        replay_rows=replay_rows,
        base=base,
        say=say,
        task=Task("", 0, earlier, output),
        adapter=adapter,
        check=same_so_far if folder and resume else None,
        made=source is not None,
    )
    fingerprint = run_fingerprint(config, loaded, material, forms, earlier, adapter) if folder else {}
    if folder and resume and (done := folder.finished(fingerprint)):
        say(f"{output} is finished ({done['steps']} steps); --restart trains again")
        how: dict[str, Any] = {"offline": not config.download, "trust_remote_code": config.trust_remote_code}
        found = finished_run(folder.root, lambda path: load_any(str(path), **how))
        assert found is not None
        return found
    main = int(os.environ.get("RANK", "0")) == 0  # under torchrun only the first process writes
    if folder and main:
        folder.open(config, fingerprint, resume=resume, say=say)
        keep_date(tokenizer, folder.root)
        for name in remove_leftovers(folder.checkpoints):
            say(f"removed {name}: a checkpoint that was cut short")

    respondent = ModelRespondent(loaded)
    if folder or config.penalty:
        _ = respondent.fingerprint  # computed now, for the model before the tuner
    tuned = registry.load("tuner", kind_of(config.tuner)).function(model, config.tuner)
    show_rows(tuned, material.new, config.seed, say)
    moved = count_moved(tuned)
    say(f"{config.model}: {moved}")
    if adapter is not None:
        set_adapter_state(tuned, adapter)
        respondent = ModelRespondent(loaded._replace(model=tuned))  # the model from which training starts
        _ = respondent.fingerprint
    tuned.eval()
    precision = precision_of(config, tuned)
    if precision.dtype is not None or config.precision != "auto":  # float32 on small models is not reported
        say(str(precision))
    if unused := unused_dtype(config.save_dtype, kind_of(config.tuner)):
        say(unused)
    lowered = Lowered(tuned, precision.dtype)
    around = Surroundings(say, base or Path(), output, earlier, adapter, forbidden, before)
    learner = learner_of(config, tuned, loaded, material, around, respondent=respondent, lowered=lowered)
    if model.device.type == "cpu" and is_large(model):
        give_back()  # free the memory that making replay and measuring importances has used
    cached_keys = model.config.use_cache
    steps_from = source(learner) if source is not None else plan_of(config, material, learner.forms)
    total = total_steps(config, steps_from, validates=bool(material.validation))
    rate = rate_of(learner, moved.total, steps_from, total, lowered.dtype, folder=folder, resume=resume, say=say)
    learner.penalties.learning_rate = rate
    tracked = open_trackers(config.report_to if main else (), logs or (output and output / LOGS), say, fresh=not resume)
    trainer = build(learner, steps_from, total, rate, lowered, folder, fingerprint, progress)
    trainer.examine, trainer.on_checkpoint = examine, on_checkpoint
    for callback in [*(callbacks or []), tracked]:
        trainer.add_callback(callback)
    newest = checkpoints_in(folder.checkpoints) if folder and resume else {}
    start = max(newest, default=0)
    if newest:
        learner.penalties.load_state(newest[start])
        learner.forms.load_state(newest[start])
        trainer.loader.load_state(newest[start], start)
        say(f"going on after step {start}")
    trainer.metrics.take_up(start, write=main)
    trainer.wall_before_s = trainer.metrics.wall_s
    trainer.began = time.monotonic()
    try:
        with progress, stop_on_signal(trainer), lowered:
            progress.start(start, total)
            if is_large(model):
                set_aside((before or model).parameters())
            trainer.train(resume_from_checkpoint=str(newest[start]) if newest else None)
            if not trainer.stop_asked:
                trainer.restore_best()
                if (added := added_to(tuned)) is not None:
                    added.finish(say)
                dtype = rounded_as_saved(config, tuned, say)
                moved = count_moved(tuned)  # counted again, since an added part may have cut its change
    finally:
        tracked.close()
        model.config.use_cache = cached_keys
        tuned.zero_grad(set_to_none=True)
        tuned.eval()
    steps = int(trainer.state.global_step)
    if trainer.stop_asked:
        again = "run the same command to go on" if resume else "run the same command without --restart to go on"
        where = f"saved in {folder.checkpoints / f'step-{steps}'}; {again}" if folder else ""
        known = f"stopped after step {steps} of {trainer.args.max_steps}"
        raise Interrupted(Problem("", known if total is not None else f"stopped after step {steps}", where))
    if trainer.stopped:
        say(f"stopped after step {steps}: {trainer.stopped}")
    history = trainer.metrics.history
    losses = [entry["loss_nats"] for entry in history if "loss_nats" in entry]
    result = TrainResult(
        tuned,
        tokenizer,
        steps,
        losses[-1] if losses else math.nan,
        int(trainer.state.num_input_tokens_seen),
        trainer.wall_before_s + time.monotonic() - trainer.began,
        peak_gib(),
        history,
        moved,
        trainer.stopped,
        trainer.state.best_global_step if config.keep_best and material.validation else None,
    )
    if learned := learned_of(history):
        unit = learner.forms.new.unit
        say(f"loss on your rows {learned.first:.2f} -> {learned.last:.2f} nats per {unit}")
    if hardly := hardly_learned(config, history):
        say(hardly)
    if folder and main:
        assert trainer.optimizer is not None
        trainer.optimizer.state.clear()  # its moments take twice the weights' memory, and a penalty measures now
        learner.penalties.save(folder.root)
        if rows is None and isinstance(config.replay, ReplayConfig) and config.replay.of_tasks:
            config.replay.leave(talks_of(config), Task("", 0, earlier, output), config.seed)
        folder.finish(config, tuned, tokenizer, result._asdict(), dtype=dtype)
        say(f"saved in {folder.model}")
    return result


def kind_of(part: Any) -> str:
    """Return the `kind` of a part of the configuration."""
    return str(part.kind)


def load_for_training(config: TrainConfig, *, say: Callable[[str], None] = print) -> LoadedModel:
    """Load the model that the configuration names, with the head that its objective trains.

    An adapter folder is merged into its base first. Raise ConfigError if the tuner would put an adapter on an adapter:
    it would be saved with the name of a base that does not contain the first adapter.
    """
    say_taken(config.model, say)
    if (Path(resolve(config.model)) / "adapter_config.json").is_file() and kind_of(config.tuner) != "full":
        mend = "train it with tuner: full, or merge it first: posttrain model export ADAPTER DIR"
        raise ConfigError(Problem(config.model, f"is an adapter, and {kind_of(config.tuner)} would make another", mend))
    loaded = loader_for(config, say)(
        config.model,
        adapter_merged=True,
        trust_remote_code=config.trust_remote_code,
        offline=not config.download,
        allow_template_mismatch=config.allow_template_mismatch,
    )
    if was_untied(loaded.model):
        say(f"{config.model}: the adapter is on one of two places that share a matrix; merged, each has its own")
    return loaded


def build(
    learner: Learner,
    source: StepSource,
    steps: int | None,
    rate: float,
    lowered: Lowered,
    folder: RunFolder | None,
    fingerprint: dict[str, Any],
    progress: RunProgress,
) -> PostTrainer:
    """Return a PostTrainer that is ready to train. rate: the peak learning rate."""
    config, tuned = learner.config, learner.model
    optimizer = config.optimizer
    warmup = optimizer.warmup_steps
    if warmup is None:
        warmup = round(optimizer.warmup_share * steps) if steps is not None else 0
    args = Arguments(
        output_dir=str(folder.checkpoints) if folder else "",
        max_steps=steps or ENDLESS,
        learning_rate=rate,
        lr_scheduler_type="constant_with_warmup" if optimizer.schedule == "constant" and warmup else optimizer.schedule,
        warmup_steps=warmup,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        adam_epsilon=optimizer.epsilon,
        max_grad_norm=optimizer.max_grad_norm,
        optim="adamw_torch_fused",
        seed=config.seed,
        use_cpu=tuned.device.type == "cpu",
        ignore_data_skip=True,  # the source itself starts at the right step
        logging_nan_inf_filter=False,
        activation_checkpointing=config.batch.activation_checkpointing,
        report_to="none",  # our own callback passes the numbers to the trackers
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
    )
    muon = None
    if optimizer.kind == "muon":
        if args.world_size > 1:
            raise ConfigError(Problem("optimizer.kind", "muon runs in a single process", "use adamw with torchrun"))
        muon = muon_for(tuned, rate, optimizer)
    trainer = PostTrainer(
        learner,
        args,
        optimizer=muon,
        source=source,
        steps=steps,
        at_once=tokens_at_once(tuned, lowered),
        folder=folder,
        fingerprint=fingerprint,
        progress=progress,
        lowered=lowered,
    )
    deepspeed, sharded = trainer.is_deepspeed_enabled, trainer.is_fsdp_enabled
    learner.forms.new.check(deepspeed=deepspeed, sharded=sharded)
    learner.penalties.check(deepspeed=deepspeed, sharded=sharded, leaves=folder is not None)
    return trainer
