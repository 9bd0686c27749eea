"""`posttrain trace`: find where a model recalls facts, by causal tracing; options and printing.

The work is done in `editing/trace.py`; the tables are in `trace_tables.py`, the pictures in `reports/trace_charts.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    TrustOption,
    emit,
    print_lines,
    talk,
    time_line,
)
from posttrain.cli.stopping import when_stopped
from posttrain.cli.works import shown_works
from posttrain.errors import ConfigError, Problem

if TYPE_CHECKING:
    from posttrain.editing.facts import Fact
    from posttrain.editing.trace import TraceConfig
    from posttrain.editing.trace_file import Trace
    from posttrain.models.load import Source


PICTURE_S = 0.4
"""Seconds of drawing a picture."""


def trace(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="The model: folder, adapter folder, GGUF file, hub id or pocket:chat."),
    ],
    facts: Annotated[
        list[str],
        typer.Argument(
            metavar="FACTS",
            help="Change files (what the model says now is traced), or rows: prompt, subject, answer.",
        ),
    ],
    output: OutputOption = None,
    form: Annotated[
        Literal["raw", "chat"] | None,
        typer.Option(
            "--form", help="Ask in plain text or in the chat template; left out: in the template where there is one."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first so many facts.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the noise.")] = 0,
    json: JsonOption = False,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting: kinds, window, samples, noise, least_fall, score, max_new_tokens, batch_tokens.",
        ),
    ] = None,
    dry_run: DryRunOption = False,
    precision: PrecisionOption = "auto",
    download: DownloadOption = False,
    trust_remote_code: TrustOption = False,
    allow_template_mismatch: MismatchOption = False,
) -> None:
    """Say in which layers a model recalls facts, and so which layers to edit: causal tracing (Meng et al. 2022).

    With --output the trace, its pictures and every finished fact are kept, and the same command goes on after a kill.
    """
    from posttrain.editing.facts import read_facts
    from posttrain.editing.trace_file import check_output
    from posttrain.inference.opening import is_remote

    if is_remote(model):
        cause = "is not loaded here, so that its layers cannot be read"
        raise ConfigError(Problem(model, cause, "give a folder, a .gguf file, a hub id or pocket:chat"))
    config = _config(form, sets or [])
    known = read_facts(facts, Path.cwd())[:limit]
    if output is not None:
        check_output(output)
    if dry_run:
        _dry_run(model, known, config, output, json=json, download=download, trust_remote_code=trust_remote_code)
        return
    from posttrain.editing.trace import trace as run
    from posttrain.models.load import check_folder, load_model
    from posttrain.models.names import say_taken

    check_folder(model)
    say_taken(model, talk)
    again = "the same command goes on with the facts that are left"
    when_stopped(lambda: (Problem("", "stopped", again if output else "nothing was kept: give --output to go on"),))
    with shown_works() as works:
        loaded = load_model(
            model,
            offline=not download,
            trust_remote_code=trust_remote_code,
            dtype=precision,
            adapter_merged=True,
            allow_template_mismatch=allow_template_mismatch,
        )
        made = run(loaded, known, config, seed=seed, folder=output, say=works.say)
        if output is not None:
            _draw(made, output)
    if json:
        emit(made.model_dump(mode="json"))
        return
    from posttrain.cli.trace_tables import print_trace

    print_trace(made)
    if output is None:
        talk("nothing was kept: with --output DIR there are pictures of every fact, and all numbers in trace.json")
    else:
        talk(f"wrote {output / 'trace.json'}; pictures: {output / 'averages.png'}, {output / 'layers.png'} and facts/")


def _config(form: str | None, sets: Sequence[str]) -> TraceConfig:
    """Return the settings of the command line. Raise ConfigError for an unknown or wrong one."""
    from posttrain.config.load import apply_sets, check
    from posttrain.editing.trace import TraceConfig

    node: dict[str, Any] = {}
    given = apply_sets(node, sets)
    if form is not None:
        node["form"] = form
    return check(node, TraceConfig, "--set", given)


def _draw(made: Trace, folder: Path) -> None:
    """Write the pictures of a trace, and say what is missing in them."""
    from posttrain.language import spoken
    from posttrain.models.meter import Meter
    from posttrain.reports.trace_charts import DRAWN, draws_chinese, write_charts

    count = min(len(made.facts), DRAWN)
    with Meter("drawing pictures", count + 2, "pictures", kept="the same command draws them") as meter:
        write_charts(made, folder, language=spoken(), done=lambda path: meter.more(1))
    if count < len(made.facts):
        talk(f"the first {count} of {len(made.facts)} facts are drawn; trace.json has all")
    words = "".join("".join((*fact.tokens, fact.prompt)) for fact in made.facts)
    if (not words.isascii() or spoken() != "en") and not draws_chinese():
        talk("no font of this machine has Chinese characters: the PNGs lack them, a browser shows them in the SVGs")
        talk("on Debian and Ubuntu: apt install fonts-noto-cjk, then the same command")


def _dry_run(
    model: str,
    facts: Sequence[Fact],
    config: TraceConfig,
    output: Path | None,
    *,
    json: bool,
    download: bool,
    trust_remote_code: bool,
) -> None:
    """Print what would be traced and about how long it takes. Raise DataError for facts that cannot be read."""
    from posttrain.editing.facts import FactReader, distinct
    from posttrain.editing.places import auto_window
    from posttrain.inference.opening import read_prompts
    from posttrain.models.load import base_of, check_folder, config_of
    from posttrain.reports.trace_charts import DRAWN
    from posttrain.studies.speed import exam_s, flops_per_s, parameters_of

    check_folder(model)
    source: Source = {"offline": not download, "trust_remote_code": trust_remote_code}
    reader = FactReader(read_prompts(model, **source).tokenizer, config.form)
    asked = distinct(reader.read_all(facts))
    repeated = len(facts) - len(asked)
    layers = config_of(base_of(model), **source).get_text_config().num_hidden_layers
    window = config.window or auto_window(layers)
    lengths = [len(one.ids) - one.noisy[0] for one in asked]
    cells = sum(lengths) * layers * len(config.kinds)
    half = sum(n * (n + 1) // 2 for n in lengths) * layers * len(config.kinds) * config.samples // 2
    parameters = parameters_of(base_of(model), download=download, trust_remote_code=trust_remote_code)
    wall_s = exam_s(parameters, half, len(asked), flops_per_s())
    if output is not None:
        wall_s += (min(len(asked), DRAWN) + 2) * PICTURE_S
    if json:
        emit({
            "model": model, "facts": len(asked), "repeated": repeated, "form": reader.form, "layers": layers,
            "window": window, "cells": cells, "settings": config.model_dump(mode="json"), "wall_s": wall_s,
        })  # fmt: skip
        return
    print_lines(
        f"model       {model}: {layers} layers, windows of {window}",
        f"facts       {len(asked)}, asked {'in the chat template' if reader.form == 'chat' else 'in plain text'}",
        f"repeated    {repeated}: they have the prompt and the subject of another fact" if repeated else "",
        f"cells       {cells:,} with {config.samples} samples of noise; more where answers are sentences",
        f"output      {output}" if output else "",
        time_line(wall_s),
    )
