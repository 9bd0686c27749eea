"""The work of `posttrain exam`: one model takes exams, alone or compared with the model before; a study of one cell.

    results.json                   scores, intervals, costs, comparisons (`"study": "exam"`)
    samples.jsonl                  every probe of the change exam; floor/samples.jsonl for the noise floor
    exams/<name>.jsonl             every sample of another exam
    before/<model>/                the same files for the model before

Several commands may write to one folder: an exam that is taken again replaces its old results; all other results of the
same weights stay.
"""  # fmt: skip

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, Field

from posttrain import __version__
from posttrain.config.base import ByKind, Config
from posttrain.config.change import Change
from posttrain.config.json_text import parse_json
from posttrain.config.load import read_text
from posttrain.errors import ConfigError, PosttrainError, Problem
from posttrain.exams.capabilities import relative_changes
from posttrain.exams.change import ChangeExam, needs_two
from posttrain.exams.exam import Exam, Sitting, build
from posttrain.exams.exam_config import ExamConfig
from posttrain.exams.floor import NOISE_FLOOR
from posttrain.exams.matching import MatchMode
from posttrain.exams.results import CHANGE, ExamInfo, Line, Results, Untouched, read_results, write_results
from posttrain.exams.running import CHUNK, Cache, TaskResult
from posttrain.exams.summary import summarise
from posttrain.exams.tasks.lm_eval import LmEvalExam
from posttrain.inference.opening import open_respondent
from posttrain.inference.protocol import Respondent
from posttrain.inference.respondents import ModelRespondent, PromptedRespondent
from posttrain.inference.shards import ShardedRespondent, is_sharded, rank, sharing, work
from posttrain.models.load import LoadedModel, adapter_base
from posttrain.models.names import resolve, told
from posttrain.models.perturbed import perturbed, resolve_arithmetic
from posttrain.studies.events import ExamEvent
from posttrain.studies.examine import Examiner, summed
from posttrain.studies.exams import Exams, check_names
from posttrain.studies.methods.prompt import PromptMethodConfig, wording_of
from posttrain.training.environment import keep_date, stay_at_first_day
from posttrain.training.lock import only_one

__all__ = ["ExamRun", "ExamsFile", "Floor", "PromptMode", "build_exams"]

PROBES = 64
"""Number of a change's probes in one batch if samples are written: as many as a kill can lose."""
METHOD = "exam"
"""The name of the method and of the study in results.json."""

PromptMode = Literal["none", "user", "system"]
Floor = Literal["auto", "bf16", "int8", "none"]
E = TypeVar("E", bound=BaseModel)


class ExamsFile(Config):
    """A YAML file of exams, for `--exams`."""

    SCHEMA: ClassVar[str] = "exams"

    exams: tuple[Annotated[ExamConfig, ByKind("exam")], ...] = Field(min_length=1)
    """The exams: a list of kinds, or of {kind, path, ...}."""


def build_exams(wanted: Sequence[tuple[ExamConfig, Path]], limit: int | None = None, location: str = "") -> list[Exam]:
    """Build every exam, before any model is loaded, and raise the problems of all of them together.

    wanted: configs, each with the folder that its paths are relative to; limit: replaces the limit of every exam;
    location: the one in error messages. If several exams have the same label, their files' names are added to it.
    Raise the error of the faulty exams, or ConfigError if there are several classes of errors or two equal names.
    """
    often = Counter(config.label for config, _ in wanted)
    exams: list[Exam] = []
    errors: list[PosttrainError] = []
    for config, base in wanted:
        path = config.model_dump().get("path") if often[config.label] > 1 else None
        own = {"name": f"{config.label}-{Path(path).stem.removeprefix('builtin:')}"} if path else {}
        limited = {"limit": limit} if limit is not None and "limit" in type(config).model_fields else {}
        try:
            exams.append(build(config.model_copy(update=own | limited), base))
        except PosttrainError as error:
            errors.append(error)
    if errors:
        kind = type(errors[0]) if len({type(error) for error in errors}) == 1 else ConfigError
        raise kind(*(problem for error in errors for problem in error.problems))
    check_names(exams, location or "--exam")
    return exams


@dataclass
class ExamRun:
    """The settings of an examination, and its results so far.

    output: the folder where everything is written as it comes, so that a second run continues; if it is None, nothing
    is written; restart: delete what is in the folder; match, max_new_tokens, prompt_mode (state the change in the
    prompt), noise_floor: settings of the change exam; batch_tokens: tokens in one batch; open: opens a respondent by
    its name; tell, say: take progress, and lines for the user; taken: called after each part with the results so far,
    the part's results and the name of the model before (empty without one), because a later part may fail.
    """

    output: Path | None = None
    match: MatchMode = "says"
    max_new_tokens: int = 64
    prompt_mode: PromptMode = "none"
    noise_floor: Floor = "auto"
    restart: bool = False
    batch_tokens: int = 16384
    open: Callable[[str], Respondent] = open_respondent
    tell: Callable[[ExamEvent], None] = lambda event: None
    say: Callable[[str], None] = lambda line: None
    taken: Callable[[Results, Sequence[TaskResult[Any]], str], None] = lambda results, found, before: None
    results: Results = field(default_factory=lambda: Results(study=METHOD, posttrain=__version__))
    loaded: dict[str, Respondent] = field(default_factory=dict)

    def take(
        self,
        model: str | Respondent,
        *,
        before: str | Respondent | None = None,
        changes: Sequence[Change] = (),
        exams: Sequence[Exam] = (),
    ) -> Results:
        """Examine a model, alone or compared with the model `before`; return the results.

        If `before` is None and a change is examined, the model before is the adapter's base. Under torchrun the
        processes share the requests, and every process but the first returns empty results. Raise ConfigError for
        settings or a folder that do not fit together.
        """
        comparing = [exam for exam in exams if exam.compares]
        if comparing and not changes:
            raise needs_two()
        if changes and not comparing:
            comparing = [ChangeExam(ExamConfig(kind=CHANGE), self.max_new_tokens, self.match)]
        harness = [exam for exam in exams if isinstance(exam, LmEvalExam)]
        own = [exam for exam in exams if not exam.compares and exam not in harness]
        with (
            only_one(self.output) if self.output is not None and not rank() else nullcontext(),
            self._shared(model, bool(harness), bool(own), bool(comparing or before is not None)) as after,
        ):
            if after is None:
                return self.results
            was = None if before is None else self._opened(before)
            if comparing:
                self._take(comparing, after, was or self._base_of(after), changes)
            for part in (own, harness):
                if part:
                    self._take(part, after, None if was is after else was)
        return self.results

    # ---- respondents -------------------------------------------------------------------------------------------------

    @contextmanager
    def _shared(self, model: str | Respondent, harness: bool, own: bool, two: bool) -> Iterator[Respondent | None]:
        """Give the respondent that is examined, shared by all processes of torchrun.

        It is None in the processes that only work for the first one. lm-eval shares its requests by itself. two: a
        second model or a change is examined. Raise ConfigError for what torchrun does not support."""
        if is_sharded() and harness and (own or two):
            raise ConfigError(Problem("torchrun", "--tasks stands alone under torchrun", "use two commands"))
        if is_sharded() and two:
            cause = "several processes share the questions of --exam and --tasks; --change and --before want one"
            raise ConfigError(Problem("torchrun", cause, "start them without torchrun"))
        if self.output is not None and not rank():
            _check_folder(self.output)
        shares = is_sharded() and not harness
        with sharing() if shares else nullcontext():
            after = self._opened(model)
            if shares and rank():
                work(after)
                yield None
                return
            if self.output is not None and not self.restart and (self.output / "results.json").exists():
                self.results = _of_these_weights(self.output, after.fingerprint)
            with ShardedRespondent(after) if shares else nullcontext(after) as shared:
                yield shared

    def _opened(self, given: str | Respondent) -> Respondent:
        """Return a respondent, loaded once. Its chat template prints the date on which the folder was created."""
        if not isinstance(given, str):
            return given
        if given not in self.loaded:
            self.say(f"loading {told(given)}")
            self.loaded[given] = one = self.open(given)
            if isinstance(one, ModelRespondent):
                one.batch_tokens = self.batch_tokens
                resume = len(self.loaded) > 1 or not self.restart
                stay_at_first_day(one.tokenizer, self.output, resume=resume, say=self.say)
                if self.output is not None and not rank():
                    keep_date(one.tokenizer, self.output)
        return self.loaded[given]

    def _base_of(self, after: Respondent) -> Respondent:
        """Return the model before if no name was given: an adapter's base, or with a prompt mode the same model. Raise
        ConfigError if the model is not an adapter."""
        from peft import PeftModel

        if self.prompt_mode != "none":
            return after
        model = after.model if isinstance(after, ModelRespondent) else None
        base = model.peft_config["default"].base_model_name_or_path if isinstance(model, PeftModel) else None
        if not base and model is not None:
            base = adapter_base(Path(resolve(after.name)))  # a folder of edits, whose model is a plain one
        if not base:
            cause = f"'{after.name}' is no adapter, so the model before is not known"
            raise ConfigError(Problem("--before", cause, "add --before MODEL"))
        self.say(f"before: {base} (the adapter's base)")
        return self._opened(str(base))

    def _told(self, after: Respondent, change: Change) -> Respondent:
        """Return the respondent; with a prompt mode, its prompts state the change's targets, as in method `prompt`."""
        if self.prompt_mode == "none":
            return after
        return PromptedRespondent(after, wording_of(PromptMethodConfig(), change), role=self.prompt_mode)

    # ---- exams -------------------------------------------------------------------------------------------------------

    def _examiner(self, exams: Sequence[Exam], after: Respondent, before: Respondent | None, total: int) -> Examiner:
        counted: Counter[str] = Counter()

        def done(respondent: Respondent, found: Sequence[TaskResult[Any]]) -> None:
            of = "" if found[0].change else respondent.name  # exams of changes are counted together
            counted[of] += 1
            self.say(_over(found, respondent.name, f"[{counted[of]}/{total}]"))

        cache: Cache = {}  # several changes may ask the same question
        sitting = Sitting(
            after,
            self.output,
            before,
            cache=lambda change: cache,
            known=lambda exam: cache,
            chunk=PROBES if self.output is not None else CHUNK,
            told=self._told,
            restart=self.restart,
            say=self.say,
            open=self._opened,
            done=done,
        )
        return Examiner(Exams(tuple(exams)), sitting, self.tell)

    def _take(
        self, exams: Sequence[Exam], after: Respondent, was: Respondent | None, changes: Sequence[Change] = ()
    ) -> None:
        """Take the change exam of every change, or other exams (the model before takes these first); add the results.
        changes: empty for other exams than the change exam."""
        if changes and was is not None and self.prompt_mode == "none" and was.fingerprint == after.fingerprint:
            same = "are the same weights: whatever is not learned, was not learned before either"
            self.say(f"{was.name} and {after.name} {same}")
        examiner = self._examiner(exams, after, was, len(changes or exams))
        untouched = examiner.take_before(needed=True)
        if untouched is not None:
            cost = summed([one.cost for one in examiner.before.values()])
            untouched = untouched.model_copy(update={"cost": cost})
        found = examiner.take(changes, after, "final", self.output)
        if not found:  # this is a process of torchrun, but not the first
            return
        lines = _lines(examiner, found, after, METHOD, self.output)
        if changes and was is not None:
            untouched = Untouched(model=was.name, fingerprint=was.fingerprint)
            lines += self._floor(examiner, after, was, changes)
            if self.output is not None:
                self.say(f"wrote {self.output / 'samples.jsonl'}")
        info = examiner.exams.info({one.info.name: one.notes for one in found if not one.change})
        self.results = _with(self.results, info, lines, untouched)
        if self.output is not None:
            write_results(self.output, self.results)
        self.taken(self.results, found, "" if untouched is None else untouched.model)

    def _floor(self, examiner: Examiner, after: Respondent, was: Respondent, changes: Sequence[Change]) -> list[Line]:
        """Return the entries of the change exam's noise floor: the model before, examined in other arithmetic."""
        if self.noise_floor == "none" or not isinstance(was, ModelRespondent):  # an endpoint's weights are not here
            return []
        how = resolve_arithmetic(was.model, self.noise_floor)
        self.say(f"noise floor: {was.name} in {how}")
        copy = ModelRespondent(LoadedModel(perturbed(was.model, how), was.tokenizer, f"{was.name} in {how}"))
        sitting = examiner.sitting
        examiner.sitting = replace(sitting, chunk=CHUNK, told=lambda one, _: one, done=lambda *_: None)
        folder = None if self.output is None else self.output / "floor"
        return _lines(examiner, examiner.take(changes, copy, "final", folder, floor=True), after, NOISE_FLOOR, folder)


def _lines(
    examiner: Examiner, found: Sequence[TaskResult[Any]], after: Respondent, method: str, folder: Path | None
) -> list[Line]:
    """Return entries of results.json. Entries of a change have no costs or drift, so that a second run writes the same.
    found: the exams' results; after: the respondent that took them; folder: of the samples."""
    notes = tuple(f"{one.info.name}: {note}" for one in found for note in one.notes)
    others = {"cost": summed([one.cost for one in found]), "notes": notes}
    head = {"model": after.name, "method": method, "fingerprint": after.fingerprint}
    return [
        Line(**dict(one) | head | ({"cost": {}, "drift": {}} if one.change else others))
        for one in examiner.examined(found, (), "final", None, folder)
    ]


def _over(found: Sequence[TaskResult[Any]], of: str, number: str) -> str:
    """Return the line for the user about a finished exam. of: the model's name; number: such as `[1/3]`."""
    first, count = found[0], len(found[0].samples)
    if first.change:
        kept = f", {first.earlier} of them done before" if first.earlier else ""
        return (
            f"{number} {first.change}: {count} probe{'' if count == 1 else 's'} in {first.cost['wall_s']:.1f} s{kept}"
        )
    if first.info.kind == "lm_eval":
        names = [one.info.name for one in found if one.samples]
        return f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''} on {of}: {cost_line(first.cost)}"
    return f"{number} {first.info.name} on {of}: {count} sample{'' if count == 1 else 's'}, {cost_line(first.cost)}"


def cost_line(cost: Mapping[str, float]) -> str:
    """Return a line about an exam's cost: time, tokens (also as a multiple of the minimum), shared prefixes, memory."""
    shared, plain, least = cost["shared_prefixes"], cost["plain_requests"], cost["least_tokens"]
    beside = (
        f" (scoring {cost['scored_tokens'] / least:.2f}x the least, {least:,.0f})"
        if least and cost["scored_tokens"]
        else ""
    )
    saved = f"(saved {cost['shared_tokens']:,.0f} tokens)"
    parts = (
        (1.0, f"{cost['wall_s']:.1f} s"),
        (cost["forwarded_tokens"], f"{cost['forwarded_tokens']:,.0f} tokens forwarded{beside}"),
        (cost["generated_tokens"], f"{cost['generated_tokens']:,.0f} generated"),
        (shared, f"{shared:,.0f} prefix{'' if shared == 1 else 'es'} shared {saved}"),
        (plain, f"{plain:,.0f} request{'' if plain == 1 else 's'} shared none"),
        (cost["cost_usd"], f"{cost['cost_usd']:.2f} USD"),
        (1.0, f"{cost['peak_gib']:.2f} GiB"),
    )
    return ", ".join(text for much, text in parts if much)


# ---- results ---------------------------------------------------------------------------------------------------------


def _check_folder(output: Path) -> None:
    """Check before a model is loaded that results can be written to a folder. Raise OSError if it cannot be written to,
    ConfigError if it holds the results of a study or other JSON."""
    try:
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        error.filename = str(output)  # instead of the temporary file's name
        raise
    path = output / "results.json"
    try:
        found = parse_json(read_text(path)) if path.exists() else {"study": METHOD, "cells": []}
    except ValueError as error:
        raise ConfigError(Problem(str(path), f"not valid JSON: {error}", "give another --output")) from error
    cause = ""
    if not isinstance(found, dict) or not isinstance(found.get("cells"), list):
        cause = "is not posttrain's"
    elif found.get("study") != METHOD:
        cause = f"is of the study '{found.get('study')}', which would be lost"
    if cause:
        raise ConfigError(Problem(str(path), cause, "give another --output"))


def _of_these_weights(output: Path, fingerprint: str) -> Results:
    """Read the results of an earlier command. Raise ConfigError if they belong to other weights."""
    found = read_results(output)
    others = sorted({line.model for line in found.cells if line.fingerprint != fingerprint})
    if others:
        cause = f"holds results of other weights ({', '.join(others)})"
        raise ConfigError(Problem(str(output / "results.json"), cause, "give another --output, or --restart"))
    return found


def _with(old: Results, exams: Mapping[str, ExamInfo], lines: Sequence[Line], untouched: Untouched | None) -> Results:
    """Return the results with the new entries of a part in place of the old entries of the same exams. A summary needs
    all change files together, so the new entries of changes replace all old entries of changes."""
    known = {**{name: exam for name, exam in old.exams.items() if name not in exams}, **exams}
    before = {one.model: one for one in old.before}
    if untouched is not None:
        before[untouched.model] = _joined(before.get(untouched.model), untouched, exams)
    changes = [line for line in lines if line.change] or [line for line in old.cells if line.change]
    others = [line for line in old.cells if not line.change]
    for line in lines:
        if not line.change:
            others = [_joined(others[0] if others else None, line, exams)]
    if len(before) == 1:  # one model before took the exams of all parts
        (was,) = (one.scores for one in before.values())
        others = [line.model_copy(update={"drift": relative_changes(was, line.scores, known)}) for line in others]
    cells = (*changes, *others)
    return old.model_copy(
        update={"exams": known, "before": tuple(before.values()), "cells": cells, "summary": summarise(cells)}
    )


def _joined(old: E | None, new: E, exams: Mapping[str, ExamInfo]) -> E:
    """Return the new entry, with the old entry's scores, costs and notes of other exams added."""
    if old is None:
        return new
    prefixes, was, now = tuple(f"{name}." for name in exams), dict(old), dict(new)
    both: dict[str, Any] = {
        part: {key: value for key, value in was[part].items() if not f"{key}.".startswith(prefixes)} | now[part]
        for part in ("scores", "ci95", "n", "compare")
        if part in now
    }
    if both["scores"].keys() > now["scores"].keys():
        both["cost"] = summed([was["cost"], now["cost"]])
    if isinstance(now["notes"], tuple):
        others = (note for note in was["notes"] if not note.replace(": ", ".", 1).startswith(prefixes))
        both["notes"] = (*others, *now["notes"])
    return new.model_copy(update=both)
