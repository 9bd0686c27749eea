"""`posttrain run STUDY`: run every method on every change with the same exams, write a report; skip finished cells."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posttrain.cli.options import (
    DownloadOption,
    DryRunOption,
    JsonOption,
    LanguageOption,
    OutputOption,
    SetOption,
    console,
    emit,
    print_lines,
    size,
    talk,
    time_line,
)
from posttrain.cli.stopping import when_stopped
from posttrain.cli.works import Live
from posttrain.errors import Interrupted, MissingError, PartlyDone, PosttrainError, Problem
from posttrain.language import listed, placed, spoken, translate
from posttrain.models.meter import clock
from posttrain.studies import events

if TYPE_CHECKING:
    from posttrain.exams.results import CellResult
    from posttrain.models.meter import Doing
    from posttrain.studies.config import Study
    from posttrain.studies.events import Event, ExamEvent
    from posttrain.studies.exams import Exams
    from posttrain.studies.plan import Cell
    from posttrain.studies.run import Outcome


LISTED = 40
"""A dry run lists every cell if there are at most this many, otherwise only counts."""
LISTED_MODELS = 8
"""The largest number of saved models that are listed at the end."""
NONE_KEPT = "no model is kept (keep: none); --set keep=final keeps each cell's final one"
SOME_KEPT = "only models that other methods take are kept (keep: none); --set keep=final keeps each cell's final one"
LIVE_S = 0.2
"""Least seconds between two updates of the live line about an exam."""


def run(
    study: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study file.")],
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="METHOD", help="Run only this method; may be repeated.")
    ] = None,
    changes: Annotated[
        int | None, typer.Option("--changes", metavar="N", min=1, help="Run only the first so many changes.")
    ] = None,
    output: OutputOption = None,
    restart: Annotated[bool, typer.Option("--restart", help="Run cells again that are done.")] = False,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", metavar="N", min=1, help="Run so many cells at once, each in a process.")
    ] = 1,
    on: Annotated[
        str, typer.Option("--on", metavar="ray|ADDRESS", help="Run the cells on Ray: started here, or at an address.")
    ] = "",
    language: LanguageOption = None,
    sets: SetOption = None,
    download: DownloadOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Run a study and write its report.

    Ctrl-C or a kill loses nothing that is done: the same command goes on. Exit code 4 when some cells failed.
    """
    from posttrain.config.load import load_yaml
    from posttrain.data.changes import load_changes
    from posttrain.studies.config import Study
    from posttrain.studies.exams import prepare_exams
    from posttrain.studies.plan import make_plan, select
    from posttrain.studies.reference import reference_of
    from posttrain.training.lock import check_free
    from posttrain.training.trackers import check_trackers

    config = load_yaml(study, Study, [*(sets or []), *(["download=true"] if download else [])])
    base = study.parent
    known = load_changes(config.changes, base, str(study), say=talk) if config.changes else []
    plan = make_plan(config, known, base, location=lambda path, change: _written(study, sets or [], path, change))
    selected = select(plan, only=only or (), changes=changes)
    folder = output or config.folder(base)

    def so_far() -> tuple[Problem, ...]:
        there = (folder / "results.json").is_file()
        return (Problem("", f"so far: posttrain report {folder}"),) if there else ()

    again = f"run the same command{' without --restart' if restart else ''} to go on"
    when_stopped(lambda: (Problem("", "stopped", again), *so_far()))  # while cells run, the run itself says more

    check_trackers(config.report_to)
    _check_models(config, base, study, sets or [])
    if not dry_run:
        check_free(folder)  # before all exams are read; the run itself takes the lock
    exams = prepare_exams(config, known, base, location=str(study))
    reference_of(config, exams, base)  # raises an error for a wrong key before anything runs
    if dry_run:
        _dry_run(config, selected, folder, exams, base, json=json)
        return

    from posttrain.studies.rows import surprises
    from posttrain.studies.run import run_study

    talk(f"{config.study}: {_counts(selected)} -> {folder}")
    if config.keep == "none" and _train(selected):
        talk(f"weights: {SOME_KEPT}" if any(cell.needs for cell in selected) else f"weights: {NONE_KEPT}")
    for line in surprises(selected):
        talk(line)
    watcher = Watcher([part.info.key for part in exams.parts])
    try:
        work = partial(run_study, config, plan, selected, base=base, folder=folder, exams=exams)
        outcome = work(watcher=watcher, restart=restart, jobs=jobs, on=on)
    except Interrupted as stop:
        watcher.clear()
        raise Interrupted(*stop.problems, *so_far()) from stop
    _finish(outcome, folder, language=spoken(), json=json)


def _written(study: Path, sets: Sequence[str], path: str, change: str) -> str:
    """Return the location of a path in a study: file:line, the file, or `--set`. The study may write the change's
    name as {change}. sets: the values of --set."""
    from posttrain.config.load import line_with, read_yaml

    if any(path in one.partition("=")[2].replace("{change}", change) for one in sets):
        return "--set"
    line = line_with(read_yaml(study), lambda text: text.replace("{change}", change) == path)
    return f"{study}:{line}" if line else str(study)


def _check_models(config: Study, base: Path, path: Path, sets: Sequence[str]) -> None:
    """Check that every model and every model among the inputs exists, before work with the first one begins. Raise
    MissingError with all missing models and their lines in the study file. sets: the values of --set."""
    from posttrain.config.load import line_of, read_yaml
    from posttrain.models.load import check_folder, load_tokenizer
    from posttrain.studies.config import find_model

    problems: list[Problem] = []
    written = None if any(one.startswith(("models", "methods")) for one in sets) else read_yaml(path)
    methods = {method.label for method in config.methods}
    inputs = [(("methods", i), given) for i, one in enumerate(config.methods) for given in one.all_inputs.values()]
    models = [(("models", number), model) for number, model in enumerate(config.models)]
    for where, model in [*models, *(one for one in inputs if one[1] not in methods)]:
        try:
            found = find_model(model, base)[0]
            check_folder(found)
            if where[0] == "methods":
                load_tokenizer(found, offline=not config.download, trust_remote_code=config.trust_remote_code)
        except MissingError as error:
            location = "" if written is None else f"{path}:{line_of(written, where)}: "
            problems += [one._replace(location=f"{location}{one.location}") for one in error.problems]
    if problems:
        raise MissingError(*problems)


def _counts(cells: Sequence[Cell]) -> str:
    def several(n: int, word: str) -> str:
        return f"{n} {word}" + ("" if n == 1 else "s")

    models = several(len({cell.model for cell in cells}), "model")
    floor = any(cell.method.kind == "noise_floor" for cell in cells)
    methods = several(len({cell.method.label for cell in cells if cell.method.kind != "noise_floor"}), "method")
    changes = several(len({change.name for cell in cells for change in cell.changes}), "change")
    how = " together" if any(len(cell.changes) > 1 and cell.sequence is None for cell in cells) else ""
    seeds = several(len({cell.seed for cell in cells}), "seed")
    counted = f"{several(len(cells), 'cell')} ({models} x {methods} x {changes}{how} x {seeds}"
    return f"{counted}, and the noise floor of each change)" if floor else f"{counted})"


def _dry_run(config: Study, cells: Sequence[Cell], folder: Path, exams: Exams, base: Path, *, json: bool) -> None:
    from posttrain.exams.results import CellResult, read_part
    from posttrain.studies.estimate import by_finished, estimate
    from posttrain.studies.rows import check_replays, check_rows, readers_of, surprises

    readers = readers_of(config, base)
    check_rows(readers, base, cells)
    replays = check_replays(readers, base, cells)
    guess = estimate(config, cells, exams.parts, base)
    found = {cell.folder: read_part(folder / "cells" / cell.folder / "result.json", CellResult) for cell in cells}
    walls = {name: one.final.cost["wall_s"] for name, one in found.items() if one is not None and one.status == "done"}
    known, (left_s, waiting) = len(walls), by_finished(cells, walls)
    if json:
        names = [{**cell.head, "folder": cell.folder} for cell in cells]
        asked = {part.info.name: sum(len(item.asks) for item in part.items) for part in exams.parts}
        told = {"study": config.study, "folder": str(folder), "cells": names, "finished": known, "exams": asked}
        emit({**told, **guess._asdict(), "left_s": left_s if known else None})
        return
    trained = _train(cells)
    none = SOME_KEPT if any(cell.needs for cell in cells) else NONE_KEPT
    kept = {"none": none, "final": "of the end of each cell", "all": "all are kept"}
    have = "cell has" if known == 1 else "cells have"
    over = "time        nothing is left to run, unless inputs have changed"
    left = f"time        about {clock(left_s)} for the other {waiting}, by what these took"
    requests_of = [(part, sum(len(item.asks) for item in part.items) * part.times) for part in exams.parts]
    print_lines(
        *_listed(cells),
        f"\n{_counts(cells)} -> {folder}",
        f"training    {guess.trained_tokens:,} tokens",
        f"replay      about {guess.made_tokens:,} tokens to be written by the model, where none are in the cache"
        if guess.made_tokens
        else "",
        *(f"            {line}" for line in replays),
        f"exams       {guess.examined_tokens:,} tokens",
        *(
            f"  {part.info.name}: {len(part.items):,} item{'' if len(part.items) == 1 else 's'}, "
            f"{requests:,} request{'' if requests == 1 else 's'} each time"
            for part, requests in requests_of
        ),
        f"weights     {kept[config.keep]}" if trained else "",
        *(f"            {line}" for line in surprises(cells)),
        f"disk        {size(guess.disk_gib)}",
        f"finished    {known} {have} results; what has the same inputs is kept" if known else "",
        time_line(guess.wall_s) if not known else left if waiting else over,
    )


def _over_changes(result: CellResult) -> dict[str, float]:
    """The scores of a cell's end, each as the mean over the changes that it was taught."""
    ends = [line.scores for line in result.lines if line.checkpoint == result.final.checkpoint]
    return {key: fmean(one[key] for one in ends if key in one) for key in dict.fromkeys(k for one in ends for k in one)}


def _listed(cells: Sequence[Cell]) -> list[str]:
    """Return a line per cell, or, if there are many cells, a line per model and method with its number of cells."""
    if len(cells) <= LISTED:
        return [str(cell) for cell in cells]
    counts = Counter((cell.model, cell.method.label) for cell in cells)
    return [f"{model} | {label}: {count} cell{'' if count == 1 else 's'}" for (model, label), count in counts.items()]


def _finish(outcome: Outcome, folder: Path, *, language: str, json: bool) -> None:
    from posttrain.exams.results import read_results
    from posttrain.reports.html import write_report
    from posttrain.reports.table import text_table

    results = read_results(folder)
    if not json:  # print the table before the report is written: that fails on a full disk
        print(text_table(results, width=console(stderr=False).width, language=language), end="", flush=True)
    report: Path | None = None
    try:
        report = write_report(folder, language=language)
    finally:
        if json:
            emit({**results.model_dump(mode="json"), "report": None if report is None else str(report)})
    if not json:
        print_lines(f"\nreport: {report}", *_weights(outcome, folder))
    if not outcome.failed:
        return
    problems = [
        Problem(" | ".join(filter(None, [one.model, one.method, one.change, f"seed {one.seed}"])), one.error)
        for one in (result.first for result in outcome.failed)
    ]
    if len(outcome.failed) < len(outcome.results):
        raise PartlyDone(Problem("", f"{len(problems)} of {len(outcome.results)} cells failed"), *problems)
    missing = all(result.exit_code == MissingError.exit_code for result in outcome.failed)
    raise (MissingError if missing else PosttrainError)(Problem("", "every cell failed"), *problems)


def _train(cells: Sequence[Cell]) -> bool:
    """Return whether a cell trains a model."""
    return any(cell.method.kind == "train" for cell in cells)


def _weights(outcome: Outcome, folder: Path) -> list[str]:
    """Return lines with the folders of the models that the study has saved. If no model is kept, there are no lines:
    the user was informed before the work."""
    kept = [result.first for result in outcome.results if result.status == "done" and result.first.weights]
    lines = [f"model:  {folder / line.weights}" for line in kept[:LISTED_MODELS]]
    if len(kept) > LISTED_MODELS:
        lines.append(f"        and {len(kept) - LISTED_MODELS} more, in the same place of their cells")
    return lines


class Watcher(Live, events.Watcher):
    """Prints one line per cell; on a terminal, the present cell has a live line. headlines: the keys of the exams'
    main scores, which a finished cell's line shows.
    """

    def __init__(self, headlines: Sequence[str] = ()) -> None:
        super().__init__()
        self.headlines = headlines
        self.label = ""
        self.labels: dict[str, str] = {}

    def turn(self, cell: Cell) -> None:
        self.label = self.labels.get(cell.folder, "")

    def begins(self, event: Event) -> None:
        self.label = f"[{event.done + 1}/{event.total}] {translate(str(event.cell))}"
        self.labels[event.cell.folder] = self.label
        self.last = time.monotonic()
        self._tell(self.label, "")

    def step(self, entry: Mapping[str, Any]) -> None:
        loss = entry.get("loss_nats")
        step, steps = entry["step"], entry.get("steps")
        parts = [f"step {step}/{steps}" if steps else f"step {step}"]
        if isinstance(loss, float):
            parts.append(f"loss {loss:.3f}")
        if "tokens_per_s" in entry:
            parts.append(f"{entry['tokens_per_s']:,.0f} tokens/s")
        if steps and step < steps and entry.get("wall_s"):
            parts.append(f"{clock(entry['wall_s'] / step * (steps - step))} left")
        self._tell(self.label, listed([translate(part) for part in parts]))

    def exam(self, event: ExamEvent) -> None:
        if self.live and event.done and time.monotonic() - self.shown < LIVE_S:
            return
        head, checkpoint = self.label, f"{event.checkpoint} | "
        if event.checkpoint == "before":
            head, checkpoint = translate(f"{event.model}, untouched"), ""
        words = f"{checkpoint}{event.exam}"
        if event.total:
            words += f" {event.done:,}/{event.total:,}"
        if event.left_s is not None and event.done < event.total:
            words += translate(f", {clock(event.left_s)} left")
        self._tell(head, words)

    def doing(self, work: Doing) -> None:
        self._tell(self.label or None, "" if work.ends else translate(str(work)))

    def ends(self, event: Event) -> None:
        self.clear()
        result = event.result
        assert result is not None
        left = f", {clock(event.left_s)} left" if event.left_s else ""
        if result.status == "done":
            scores = _over_changes(result)
            shown = (
                ("learned", "reliability"),
                ("same pattern", "locality.same_pattern"),
                ("unrelated", "locality.unrelated"),
            )
            said = [f"{translate(word)} {100 * scores[key]:.0f} %" for word, key in shown if key in scores]
            said += [f"{name} {scores[name]:.3g}" for name in self.headlines if name in scores]
            words = listed(said) or translate("done")
        else:
            words = translate(f"FAILED: {result.error.splitlines()[0] if result.error else ''}")
        time_taken = translate(f"({event.wall_s or 0.0:.1f} s{left})")
        head = f"[{event.done}/{event.total}] {translate(str(event.cell))}"
        talk(f"{placed(head, words)} {time_taken}")

    def _tell(self, head: str | None, words: str) -> None:
        """Show words after the head (the present cell), or alone if head is None. Without a terminal, empty words show
        nothing. words: already translated, since names of exams and points stay as they are."""
        self.show(
            f"{head or ''} {words}" if self.live else placed(head, words) if words and head is not None else words
        )
