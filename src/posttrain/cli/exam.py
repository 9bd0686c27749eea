"""`posttrain exam MODEL`: the change exam, exams on the user's own files, lm-eval's tasks; options and printing.

The work is done in `studies/exam.py`; the tables are in `exam_tables.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from posttrain.cli.options import (
    DownloadOption,
    DryRunOption,
    JsonOption,
    MismatchOption,
    OutputOption,
    PrecisionOption,
    SetOption,
    TrustOption,
    emit,
    hush,
    talk,
)
from posttrain.cli.stopping import when_stopped
from posttrain.cli.works import shown_works
from posttrain.errors import ConfigError, Problem

if TYPE_CHECKING:
    from posttrain.exams.exam_config import ExamConfig


PromptMode = Literal["none", "user", "system"]
Match = Literal["says", "first_sentence", "exact"]
Floor = Literal["auto", "bf16", "int8", "none"]


def exam(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="The model: folder, adapter folder, GGUF file, hub id or pocket:chat."),
    ],
    change: Annotated[
        list[str] | None,
        typer.Option("--change", "-c", metavar="FILE", help="Change file, glob or editing data set; repeatable."),
    ] = None,
    exams: Annotated[
        list[str] | None,
        typer.Option(
            "--exam", "-e", metavar="KIND[=PATH]", help="A task of `posttrain list exams`, with its file; repeatable."
        ),
    ] = None,
    exams_file: Annotated[
        Path | None, typer.Option("--exams", metavar="FILE", help="A YAML list of tasks with their settings.")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", "-t", metavar="A,B", help="Tasks or groups of lm-eval, or their YAML files."),
    ] = None,
    before: Annotated[
        str | None,
        typer.Option("--before", "-b", metavar="MODEL", help="The model before; --change takes an adapter's base."),
    ] = None,
    output: OutputOption = None,
    json: JsonOption = False,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only so many questions of each task, to try things out.")
    ] = None,
    batch_tokens: Annotated[
        int, typer.Option(metavar="N", min=64, help="So many tokens go through the model at once.")
    ] = 16384,
    max_new_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="--change: an answer is cut after so many tokens.")
    ] = 64,
    match: Annotated[
        Match, typer.Option(help="--change: an answer says it, in any or in the first sentence, or equals it.")
    ] = "says",
    prompt_mode: Annotated[
        PromptMode,
        typer.Option(help="--change: tell MODEL the new fact before the user's words, or as system message."),
    ] = "none",
    noise_floor: Annotated[
        Floor,
        typer.Option(help="--change: the model before in other arithmetic, examined as well; none leaves it out."),
    ] = "auto",
    include_path: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="--tasks: a folder of task YAML files, before lm-eval's own; repeatable."),
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="--tasks: so many examples instead of the task's number.")
    ] = None,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="--tasks: put questions as a user of the chat template.")
    ] = False,
    fewshot_as_multiturn: Annotated[
        bool, typer.Option(help="--tasks: with a template, examples are earlier turns, or all in one.")
    ] = True,
    system_instruction: Annotated[
        str | None, typer.Option(metavar="TEXT", help="--tasks: stands before every question.")
    ] = None,
    gen_kwargs: Annotated[
        str | None, typer.Option(metavar="K=V,...", help="--tasks: settings of generation, over the task's own.")
    ] = None,
    by_group: Annotated[
        bool, typer.Option("--by-group", help="Print scores by subject or category, however many there are.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away what an earlier start left in --output.")
    ] = False,
    sets: SetOption = None,
    dry_run: DryRunOption = False,
    precision: PrecisionOption = "auto",
    download: DownloadOption = False,
    trust_remote_code: TrustOption = False,
    allow_template_mismatch: MismatchOption = False,
) -> None:
    """Examine a model: before and after a change, on tasks of your own files, on any task of lm-eval.

    With --output everything answered is on the disk at once; the same command goes on after a kill.
    """
    if not (change or exams or exams_file or tasks):
        cause = "nothing to examine"
        raise ConfigError(Problem("posttrain exam", cause, "give --change FILE, --exam KIND[=PATH] or --tasks NAME"))
    if sets and not exams_file:
        raise ConfigError(Problem(f"--set {sets[0]}", "there is no file to override", "--set is for --exams FILE"))
    from posttrain.data.changes import load_changes
    from posttrain.studies.exam import ExamRun, build_exams

    wanted = _own(exams or [], exams_file, sets or [])
    changes = load_changes(change, Path.cwd(), "--change", say=talk) if change else []
    how: dict[str, Any] = {"offline": not download, "trust_remote_code": trust_remote_code}
    if dry_run:
        from posttrain.cli.exam_dry import dry_run as tell

        tell(
            [before, model] if before and before != model else [model],
            changes=changes,
            exams=build_exams(wanted, limit),
            harness=tasks,
            floor=noise_floor != "none",
            max_new_tokens=max_new_tokens,
            output=output,
            json=json,
            **how,
        )
        return
    from posttrain.inference.opening import open_respondent
    from posttrain.inference.shards import rank

    again = f"the same command{' without --restart' if restart else ''} goes on where it stopped"
    when_stopped(lambda: (Problem("", "stopped", again if output else "nothing was kept: give --output to go on"),))
    if rank():
        hush()
    if tasks is not None:
        settings = {
            "num_fewshot": num_fewshot,
            "apply_chat_template": apply_chat_template,
            "fewshot_as_multiturn": fewshot_as_multiturn,
            "system_instruction": system_instruction,
            "gen_kwargs": gen_kwargs,
        }
        wanted.append((_harness(tasks, include_path or [], download=download, **settings), Path.cwd()))
    with shown_works() as works:
        from posttrain.cli.exam_tables import print_part

        run = ExamRun(
            output,
            match,
            max_new_tokens,
            prompt_mode,
            noise_floor,
            restart,
            batch_tokens,
            open=partial(open_respondent, dtype=precision, allow_template_mismatch=allow_template_mismatch, **how),
            tell=works.exam,
            say=works.say,
            taken=(lambda *_: None) if json else partial(print_part, by_group=by_group),
        )
        exams_built = build_exams(wanted, limit, str(exams_file or ""))
        results = run.take(model, before=before, changes=changes, exams=exams_built)
    if rank():
        return
    if output:
        talk(f"wrote {output / 'results.json'}")
        answers = "exams/*.jsonl" if wanted else "samples.jsonl"
        talk(f"every answer: {output / answers}; as a page, with both models' side by side: posttrain report {output}")
    elif not json:
        talk(
            "no answer was kept: with --output DIR every one is there to be read, and `posttrain report DIR` shows them"
        )
    if json:
        emit(results.model_dump(mode="json"))


def _own(exams: Sequence[str], exams_file: Path | None, sets: Sequence[str]) -> list[tuple[ExamConfig, Path]]:
    """Return the configs of --exams and --exam, each with the folder that its paths are relative to."""
    from posttrain.config.load import check, load_yaml
    from posttrain.studies.exam import ExamsFile

    file = load_yaml(exams_file, ExamsFile, sets).exams if exams_file is not None else ()
    configs = [(config, exams_file.parent if exams_file else Path()) for config in file]
    for text in exams:
        kind, _, path = text.partition("=")
        node = {"exams": [{"kind": kind, **({"path": path} if path else {})}]}
        configs.append((check(node, ExamsFile, f"--exam {text}").exams[0], Path.cwd()))
    return configs


def _harness(tasks: str, include: Sequence[Path], *, download: bool, **settings: Any) -> ExamConfig:
    """Return the config of --tasks. Raise ConfigError if no task is named."""
    from posttrain.exams.tasks.lm_eval import LmEvalConfig, go_offline

    go_offline(download=download)
    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    if not names:
        raise ConfigError(Problem(f"--tasks {tasks!r}", "no task is named", "posttrain exam MODEL --tasks NAME,NAME"))
    return LmEvalConfig(tasks=names, include_path=tuple(map(str, include)), **settings)
