"""`posttrain exam MODEL`: the change exam, own tasks, lm-eval's tasks; one loaded model, one results.json.

Each way has its file and returns the same kind of document: `exam_change.py` (--change), `exam_tasks.py` (--exam,
--exams), `exam_harness.py` (--tasks).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posttrain.cli.exam_change import Floor, Match, PromptMode
from posttrain.cli.exam_earlier import check_folder, earlier_results, without
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
    from posttrain.inference.protocol import Respondent

__all__ = ["exam"]


def exam(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="The model: folder, adapter folder, GGUF file, hub id or pocket:chat."),
    ],
    change: Annotated[
        list[str] | None, typer.Option("--change", "-c", metavar="FILE", help="Change file or glob; repeatable.")
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
        bool, typer.Option("--restart", help="--exam, --tasks: throw away what an earlier start left in --output.")
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
    if dry_run:
        from posttrain.cli.exam_dry import dry_run as tell
        from posttrain.cli.exam_tasks import asked_tasks

        tell(
            [before, model] if before and before != model else [model],
            changes=change or [],
            tasks=asked_tasks(exams or [], exams_file, limit, sets or []) if exams or exams_file else [],
            harness=tasks,
            floor=noise_floor != "none",
            max_new_tokens=max_new_tokens,
            output=output,
            offline=not download,
            trust_remote_code=trust_remote_code,
            json=json,
        )
        return
    again = f"the same command{' without --restart' if restart else ''} goes on where it stopped"
    when_stopped(lambda: (Problem("", "stopped", again if output else "nothing was kept: give --output to go on"),))
    if tasks:
        from posttrain.cli.exam_harness import go_offline

        go_offline(download=download)
    from posttrain.inference.opening import is_remote, open_respondent
    from posttrain.inference.respondents import ModelRespondent
    from posttrain.inference.shards import ShardedRespondent, is_sharded, rank, sharing, work
    from posttrain.models.names import told
    from posttrain.training.dates import keep_date, stay_at_first_day

    if is_sharded() and rank():
        hush()
    elif output:  # held until the verb ends; of the processes of torchrun only the first writes
        from posttrain.training.lock import only_one

        context.with_resource(only_one(output))
    loaded: dict[str, Respondent] = {}
    earlier: dict[str, Any] | None = None

    def load(name: str) -> Respondent:
        nonlocal earlier
        if name not in loaded:
            if output and not loaded:
                check_folder(output)
            talk(f"loading {name if is_remote(name) else told(name)}")
            opened = open_respondent(
                name,
                dtype=precision,
                offline=not download,
                trust_remote_code=trust_remote_code,
                allow_template_mismatch=allow_template_mismatch,
            )
            if isinstance(opened, ModelRespondent):
                opened.batch_tokens = batch_tokens
                stay_at_first_day(opened.tokenizer, output, resume=bool(loaded) or not restart, say=talk)
                if output and not rank():
                    keep_date(opened.tokenizer, output)
            loaded[name] = opened
            if output and name == model and not restart:
                earlier = earlier_results(output, model, opened.fingerprint)
        return loaded[name]

    documents: list[dict[str, Any]] = []

    def keep(document: dict[str, Any] | None) -> None:
        """Add a finished part: what comes after may fail."""
        if document is not None:
            for cell in document["cells"]:
                cell |= {"weights": loaded[model].fingerprint, "folder": cell.get("folder", ".")}
            documents.append(document)
            _write(output, documents, earlier)

    def own_parts() -> None:
        if change:
            from posttrain.cli.exam_change import exam_change

            keep(
                exam_change(
                    model,
                    load,
                    changes=change,
                    before=before,
                    output=output,
                    table=not json,
                    max_new_tokens=max_new_tokens,
                    match=match,
                    prompt_mode=prompt_mode,
                    noise_floor=noise_floor,
                )
            )
        if exams or exams_file:
            from posttrain.cli.exam_tasks import exam_tasks

            keep(
                exam_tasks(
                    model,
                    load,
                    exams=exams or [],
                    exams_file=exams_file,
                    before=before,
                    output=output,
                    table=not json,
                    limit=limit,
                    restart=restart,
                    sets=sets or [],
                    by_group=by_group,
                )
            )

    if not is_sharded():
        with shown_works():
            own_parts()
    elif not tasks:
        if change or before:
            cause = "several processes share the questions of --exam and --tasks; --change and --before want one"
            raise ConfigError(Problem("torchrun", cause, "start them without torchrun"))
        with sharing():
            inner = load(model)
            if rank():
                work(inner)
                return
            with ShardedRespondent(inner) as shared, shown_works():
                loaded[model] = shared
                own_parts()
    elif change or exams or exams_file:
        raise ConfigError(Problem("torchrun", "--tasks stands alone under torchrun", "use two commands"))
    if tasks:
        from posttrain.cli.exam_harness import exam_harness

        with shown_works():
            keep(
                exam_harness(
                    model,
                    load,
                    tasks=tasks,
                    include_path=include_path or [],
                    before=before,
                    output=output,
                    table=not json,
                    by_group=by_group,
                    taken=[name for document in documents for name in document.get("exams", {})],
                    restart=restart,
                    limit=limit,
                    num_fewshot=num_fewshot,
                    apply_chat_template=apply_chat_template,
                    fewshot_as_multiturn=fewshot_as_multiturn,
                    system_instruction=system_instruction,
                    gen_kwargs=gen_kwargs,
                )
            )
    if documents and output:
        talk(f"wrote {output / 'results.json'}")
        answers = "samples.jsonl" if change and not (exams or exams_file or tasks) else "exams/*.jsonl"
        talk(f"every answer: {output / answers}; as a page, with both models' side by side: posttrain report {output}")
    elif documents and not json:
        talk(
            "no answer was kept: with --output DIR every one is there to be read, and `posttrain report DIR` shows them"
        )
    if documents and json:
        emit(merged(documents))


def merged(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The parts as one: tables key by key, rows of one model together, anything else from the first."""
    whole: dict[str, Any] = {}
    for document in documents:
        for key, value in document.items():
            if key not in whole or (isinstance(value, list) and isinstance(whole[key], str)):
                whole[key] = value  # the change exam names the model before, the others have its scores
            elif isinstance(value, list) and isinstance(whole[key], list):
                whole[key] = _joined(whole[key], value)
            elif isinstance(value, dict) and isinstance(whole[key], dict):
                whole[key] = {**whole[key], **value}
    for cell in whole.get("cells", []):
        if "drift" in cell and len(whole["before"]) == 1:  # of the exams of all parts
            from posttrain.exams.capabilities import relative_changes

            cell["drift"] = relative_changes(whole["before"][0]["scores"], cell["scores"], whole["exams"])
    return whole


SAME = ("model", "method", "change", "checkpoint", "seed")


def _joined(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of cells: those of the same model, change and checkpoint become one, its costs summed."""
    rows = [dict(row) for row in old]
    for row in new:
        same = next((r for r in rows if all(r.get(k) == row.get(k) for k in SAME)), None)
        if same is None:
            rows.append(row)
            continue
        for key, value in row.items():
            if key == "cost":
                was = same.get(key, {})
                same[key] = {k: (max if k == "peak_gib" else _sum)(was.get(k, 0.0), v) for k, v in value.items()}
            elif isinstance(value, dict):
                same[key] = {**same.get(key, {}), **value}
            elif isinstance(value, list):
                same[key] = [*same.get(key, []), *value]
    return rows


def _sum(a: float, b: float) -> float:
    return a + b


def _write(output: Path | None, documents: list[dict[str, Any]], earlier: dict[str, Any] | None) -> None:
    """The parts, and what an earlier command left of other exams."""
    if output is None:
        return
    from json import dumps

    from posttrain.exams.records import write_atomically

    parts = list(documents)
    if earlier is not None:
        exams = [name for document in documents for name in document.get("exams", {})]
        changes = [cell["change"] for document in documents for cell in document["cells"] if cell["change"]]
        parts.insert(0, without(earlier, exams, changes))
    text = dumps(merged(parts), ensure_ascii=False, indent=2, allow_nan=False)
    write_atomically(output / "results.json", text + "\n")
