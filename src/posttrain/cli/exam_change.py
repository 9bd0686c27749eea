"""The change exam of `posttrain exam`: two models, however made, before and after one or several changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from posttrain.cli.options import console, talk
from posttrain.cli.plain import column, one_line
from posttrain.errors import ConfigError, Problem
from posttrain.language import translate

if TYPE_CHECKING:
    from posttrain.config.change import Change
    from posttrain.exams.change import BeforeCache, ProbeResult
    from posttrain.exams.floor import BesideFloor
    from posttrain.exams.records import SamplesFile
    from posttrain.exams.scores import ExamResult, Summary
    from posttrain.inference.respondents import Respondent

__all__ = ["Floor", "Match", "PromptMode", "exam_change"]

SHOWN = 8
"""So many answers that went wrong are printed."""
CHUNK = 64
"""Probes asked at once when samples are written: what a kill can lose."""

PromptMode = Literal["none", "user", "system"]
Match = Literal["says", "first_sentence", "exact"]
Floor = Literal["auto", "bf16", "int8", "none"]


def exam_change(
    model: str,
    load: Callable[[str], Respondent],
    *,
    changes: Sequence[str],
    before: str | None = None,
    output: Path | None = None,
    table: bool = True,
    max_new_tokens: int = 64,
    match: Match = "says",
    prompt_mode: PromptMode = "none",
    noise_floor: Floor = "auto",
) -> dict[str, Any]:
    """Take the exam of every change file and return the document of results.json; `table`: print it for people too.

    With `output` every finished probe is written to samples.jsonl there at once, and a second start goes on; those of
    the noise floor (a local model before, in other arithmetic) are written to floor/samples.jsonl.
    """
    from posttrain.config.change import load_changes
    from posttrain.exams.change import change_exam
    from posttrain.exams.records import SamplesFile, exam_key

    read = load_changes(changes, Path.cwd(), location="--change")
    after = load(model)
    if before is None and prompt_mode != "none":
        was = after
    else:
        was = load(before or _base_of(model, after))
    if prompt_mode == "none" and was.fingerprint == after.fingerprint:
        talk(f"{was.name} and {model} are the same weights: whatever is not learned, was not learned before either")
    afters = {c.name: _told(after, c, prompt_mode) for c in read}
    cache: BeforeCache = {}
    keys = {
        c.name: exam_key(was.fingerprint, afters[c.name].fingerprint, c, max_new_tokens=max_new_tokens, mode=match)
        for c in read
    }
    samples = SamplesFile(output / "samples.jsonl", keys) if output else None
    results: dict[str, ExamResult] = {}
    for number, one in enumerate(read, start=1):
        start = time.perf_counter()
        done = samples.done[one.name] if samples else {}
        results[one.name] = change_exam(
            was,
            afters[one.name],
            one,
            before_cache=cache,
            on_sample=_keeper(samples, one.name),
            done=done,
            max_new_tokens=max_new_tokens,
            mode=match,
            chunk=CHUNK if samples else 4096,
        )
        total, seconds = len(results[one.name].samples), time.perf_counter() - start
        kept = f", {len(done)} of them done before" if done else ""
        probes = f"{total} probe{'' if total == 1 else 's'}"
        talk(f"[{number}/{len(read)}] {one.name}: {probes} in {seconds:.1f} s{kept}")
    floor = _floor(was, read, noise_floor, cache, output, max_new_tokens=max_new_tokens, match=match)
    if samples and output:
        samples.rewrite({name: result.samples for name, result in results.items()})
        talk(f"wrote {output / 'samples.jsonl'}")
    if table:
        _print(model, was.name, results, floor)
    return _document(model, was.name, results, floor)


def _floor(
    was: Respondent,
    changes: Sequence[Change],
    arithmetic: Floor,
    cache: BeforeCache,
    output: Path | None,
    *,
    max_new_tokens: int,
    match: Match,
) -> dict[str, ExamResult]:
    """The same exam of the model before in other arithmetic; empty for an endpoint, whose weights are not at hand."""
    from posttrain.exams.change import change_exam
    from posttrain.exams.records import SamplesFile, exam_key
    from posttrain.inference.respondents import ModelRespondent
    from posttrain.models.load import LoadedModel
    from posttrain.models.perturbed import perturbed, resolve_arithmetic

    if arithmetic == "none" or not isinstance(was, ModelRespondent):
        return {}
    how = resolve_arithmetic(was.model, arithmetic)
    copy = ModelRespondent(LoadedModel(perturbed(was.model, how), was.tokenizer, f"{was.name} in {how}"))
    keys = {
        c.name: exam_key(was.fingerprint, copy.fingerprint, c, max_new_tokens=max_new_tokens, mode=match)
        for c in changes
    }
    samples = SamplesFile(output / "floor" / "samples.jsonl", keys) if output else None
    talk(f"noise floor: {was.name} in {how}")
    return {
        c.name: change_exam(
            was,
            copy,
            c,
            before_cache=cache,
            on_sample=_keeper(samples, c.name),
            done=samples.done[c.name] if samples else {},
            max_new_tokens=max_new_tokens,
            mode=match,
            floor=True,
        )
        for c in changes
    }


def _keeper(samples: SamplesFile | None, change: str) -> Any:
    return (lambda result: samples.append(change, result)) if samples else None


def _base_of(name: str, respondent: Respondent) -> str:
    """The base that an adapter names; ConfigError for a model that is none."""
    from peft import PeftModel

    from posttrain.inference.respondents import ModelRespondent

    model = respondent.model if isinstance(respondent, ModelRespondent) else None
    base = model.peft_config["default"].base_model_name_or_path if isinstance(model, PeftModel) else None
    if not base:
        raise ConfigError(
            Problem("--before", f"'{name}' is no adapter, so the model before is not known", "add --before MODEL")
        )
    talk(f"before: {base} (the adapter's base)")
    return str(base)


def _told(after: Respondent, change: Change, mode: PromptMode) -> Respondent:
    """The respondent, told the change's targets when asked to be, in the words of the method `prompt`."""
    if mode == "none":
        return after
    from posttrain.inference.respondents import PromptedRespondent
    from posttrain.studies.methods.prompt import PromptMethodConfig, wording_of

    return PromptedRespondent(after, wording_of(PromptMethodConfig(name="prompt"), change), place=mode)


def _document(model: str, before: str, results: dict[str, ExamResult], floor: dict[str, ExamResult]) -> dict[str, Any]:
    """results.json: the cells of a study's file, with the notes and without cost; the noise floor's last."""
    from posttrain.exams.floor import NOISE_FLOOR

    cells = [_cell(model, "exam", name, result) for name, result in results.items()]
    cells += [_cell(model, NOISE_FLOOR, name, result) | {"folder": "floor"} for name, result in floor.items()]
    summary = [_summary(model, NOISE_FLOOR, floor, {})] if floor else []
    return {
        "study": "exam",
        "before": before,
        "cells": cells,
        "summary": [_summary(model, "exam", results, floor), *summary],
    }


def _cell(model: str, method: str, change: str, result: ExamResult) -> dict[str, Any]:
    return {
        "model": model,
        "method": method,
        "change": change,
        "checkpoint": "final",
        "seed": 0,
        "status": "done",
        "scores": result.scores,
        "ci95": {key: list(interval) for key, interval in result.ci95.items()},
        "n": result.n,
        "notes": result.notes,
        "outcomes": result.outcomes,
    }


def _summary(model: str, method: str, results: dict[str, ExamResult], floor: dict[str, ExamResult]) -> dict[str, Any]:
    from posttrain.exams.floor import beside_floor
    from posttrain.exams.scores import merged_notes, summarise

    summary = summarise(list(results.values()))
    own, other = ({name: one.outcomes for name, one in each.items()} for each in (results, floor))
    return {
        "model": model,
        "method": method,
        "changes": len(results),
        "scores": summary.scores,
        "ci95": {key: list(interval) for key, interval in summary.ci95.items()},
        "n": summary.n,
        "notes": merged_notes([result.notes for result in results.values()]),
        "floor": {key: one._asdict() for key, one in beside_floor(own, other).items()},
    }


def _print(model: str, before: str, results: dict[str, ExamResult], floor: dict[str, ExamResult]) -> None:
    from rich.text import Text

    from posttrain.exams.floor import beside_floor
    from posttrain.exams.scores import merged_notes, summarise

    out = console(stderr=False)
    many = f"{len(results)} changes" if len(results) > 1 else next(iter(results))
    out.print(Text(translate(f"{before} → {model}: {many}")))
    own, other = ({name: one.outcomes for name, one in each.items()} for each in (results, floor))
    beside = beside_floor(own, other)
    out.print(_table(summarise(list(results.values())), beside, several=len(results) > 1))
    if beside:
        out.print(
            Text(
                translate(
                    "↓ below the noise floor (the model before in other arithmetic) by a paired test; "
                    "elsewhere no loss is shown"
                )
            )
        )
    if any(one.unsure for one in beside.values()):
        out.print(Text(translate("? kept less than the noise floor, with too few questions to tell")))
    for note in merged_notes([result.notes for result in results.values()]):
        out.print(Text(translate(note)))
    wrong = [(name, s) for name, result in results.items() for s in result.samples if s.ok is False]
    if wrong:
        are = "answer is not as it" if len(wrong) == 1 else "answers are not as they"
        out.print(Text(translate(f"\n{len(wrong)} {are} should be" + (", such as" if len(wrong) > SHOWN else ""))))
    for name, sample in _spread(wrong)[:SHOWN]:
        out.print(
            Text(f"  {sample.group}" + (f" ({name})" if len(results) > 1 else "") + f": {one_line(sample.prompt)}")
        )
        nothing = translate("(nothing)")
        out.print(Text(f"    {column(translate('before:'), 8)}{one_line(sample.before) or nothing}"))
        out.print(Text(f"    {column(translate('after:'), 8)}{one_line(sample.after) or nothing}"))
        wanted = sample.answer or sample.answer_contains
        if wanted:
            said = f"{'' if sample.answer else '… '}{one_line(' | '.join(wanted))}"
            out.print(Text(f"    {column(translate('wanted:'), 8)}{said}"))


def _spread(wrong: list[tuple[str, ProbeResult]]) -> list[tuple[str, ProbeResult]]:
    """One of each group first, then the second of each, and so on."""
    seen: dict[str, int] = {}
    ranked = []
    for item in wrong:
        seen[item[1].group] = seen.get(item[1].group, 0) + 1
        ranked.append((seen[item[1].group], item))
    return [item for _, item in sorted(ranked, key=lambda pair: pair[0])]


def _table(summary: Summary, beside: Mapping[str, BesideFloor], *, several: bool) -> Any:
    from rich.table import Table

    from posttrain.reports.numbers import columns

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(translate("score"), overflow="fold")
    table.add_column(translate("value"), justify="right", overflow="fold")
    table.add_column(translate("95 % interval" + (" (over changes)" if several else "")), overflow="fold")
    table.add_column(translate("probes"), justify="right")
    if beside:
        table.add_column(translate("floor"), justify="right")
    for name in (one.key for one in columns(summary.scores)):  # in the order of the report
        value = summary.scores[name]
        digits = 4 if name.startswith("drift.") else 1 if name in ("length.before", "length.after") else 2
        interval = summary.ci95.get(name)
        shown = translate(f"{interval.low:.{digits}f} to {interval.high:.{digits}f}") if interval else ""
        one = beside.get(name)
        sign = "" if one is None else "↓" if one.below else "?" if one.unsure else ""
        row = [name, f"{value:.{digits}f}{sign}", shown]
        row += [str(summary.n[name]), *([f"{beside[name].floor:.2f}" if name in beside else ""] if beside else [])]
        table.add_row(*row)
    return table
