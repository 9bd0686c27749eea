"""The tables that `posttrain trace` prints: facts, averages by layer, and which layers to edit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from posttrain.cli.options import console, table
from posttrain.cli.plain import one_line
from posttrain.language import translate

if TYPE_CHECKING:
    from rich.table import Table

    from posttrain.editing.places import Kind
    from posttrain.editing.trace_file import Advice, FactTrace, Mean, Trace


SHOWN = 20
"""Largest number of facts in the table, and of facts that were not traced."""
WIDTH = 40
HEADS: dict[tuple[str, str], str] = {
    ("state", "last_subject"): "state, subject",
    ("mlp", "last_subject"): "mlp, subject",
    ("attn", "last_subject"): "attn, subject",
    ("state", "last"): "state, last",
    ("mlp", "last"): "mlp, last",
    ("attn", "last"): "attn, last",
    ("state", "all"): "state, all",
    ("mlp", "all"): "mlp, all",
    ("attn", "all"): "attn, all",
}
"""What is restored, and at tokens of which role -> head of the column."""


def print_trace(trace: Trace) -> None:
    """Print a trace to stdout."""
    from rich.text import Text

    out = console(stderr=False)
    if not out.is_terminal:
        out.width = 200  # output to a file: rich would cut names at 80 columns
    for part in _parts(trace):
        out.print(Text(part) if isinstance(part, str) else part)


def _parts(trace: Trace) -> Iterator[Table | str]:
    yield _facts(trace.facts)
    if len(trace.facts) > SHOWN:
        yield translate(f"and {len(trace.facts) - SHOWN} more facts")
    if trace.skipped:
        yield translate(f"\nnot traced: {len(trace.skipped)} of {len(trace.skipped) + len(trace.facts)} facts")
        for one in trace.skipped[:SHOWN]:
            yield f"  {one_line(one.name, WIDTH)}: {translate(one.reason)}"
    yield ""
    clean, corrupted = interval(trace.clean), interval(trace.corrupted)
    yield translate(f"the answer's probability: {clean}; with noise on the subject: {corrupted}")
    count = len(trace.facts)
    over = f"; means over {count} facts, with 95 % intervals" if count > 1 else ""
    yield translate(f"total effect: {interval(trace.total_effect)}{over}")
    yield translate("what one restored part brings back of it, by layer:")
    yield ""
    yield _layers(trace)
    yield translate("subject: at the subject's last token; last: at the last token; all: the mean from the subject on")
    if {"mlp", "attn"} & set(trace.averages):
        parts = f"the parts of {trace.window} layers around it" if trace.window > 1 else "the layer's parts"
        yield translate(f"state: the layer's output; mlp, attn: {parts}")
    yield ""
    if trace.advice is None:
        yield translate("which layers to edit is said by mlp, which was not traced")
    else:
        yield from advice_lines(trace.advice)


def interval(mean: Mean | Advice) -> str:
    """Return a mean with its interval: `0.27 [0.12, 0.42]`."""
    return f"{mean.mean:.3f}" + (f" [{mean.low:.3f}, {mean.high:.3f}]" if mean.low is not None else "")


def _facts(facts: Sequence[FactTrace]) -> Table:
    from rich.text import Text

    rows = table("fact", "scored", "read before it", "clean", "with noise", right=("clean", "with noise"))
    for fact in facts[:SHOWN]:
        name, scored, opening = (Text(one_line(words, WIDTH)) for words in (fact.name, fact.scored, fact.opening))
        rows.add_row(name, scored, opening, f"{fact.clean:.3f}", f"{fact.corrupted:.3f}")
    return rows


def _layers(trace: Trace) -> Table:
    """Return the averages by layer: at the subject's last token with intervals for mlp, at the last token, over all."""
    columns: list[tuple[str, list[str]]] = [("layer", [str(layer) for layer in range(trace.layers)])]
    kinds: list[Kind] = [*trace.averages]
    for role in ("last_subject", "last"):
        for kind in kinds:
            own = trace.averages[kind].get(role)
            if own is None:
                continue
            cells = [f"{mean:.3f}" for mean in own.mean]
            if own.low and (kind, role) == ("mlp", "last_subject"):
                pairs = zip(cells, own.low, own.high, strict=True)
                cells = [f"{cell} [{low:.3f}, {high:.3f}]" for cell, low, high in pairs]
            columns.append((HEADS[kind, role], cells))
    columns += [(HEADS[kind, "all"], [f"{mean:.3f}" for mean in trace.averages[kind]["all"].mean]) for kind in kinds]
    heads = [head for head, _ in columns]
    rows = table(*heads, right=heads)
    for layer, row in enumerate(zip(*(own for _, own in columns), strict=True)):
        best = trace.advice is not None and trace.advice.layers == (layer,)
        rows.add_row(*row, style="bold" if best else "")
    return rows


def advice_lines(advice: Advice) -> Iterator[str]:
    """Yield which layers to edit, ready to be pasted, and on what evidence."""
    if advice.verdict == "none":
        yield translate("no layer is recommended")
        largest = "the largest mean effect of mlp at the subject's last token"
        yield translate(f"{largest} is at layer {advice.layer}: {interval(advice)}")
    else:
        yield f"layers: {list(advice.layers)}  # {translate('editors of one layer: rome')}"
        yield f"layers: {list(advice.band)}  # {translate('editors of several: memit, alphaedit')}"
        yield translate(f"evidence: the largest mean effect of mlp at the subject's last token, {interval(advice)}")
    if advice.reason:
        yield translate(advice.reason)
    if len(advice.alike) > 1:
        listed = ", ".join(map(str, advice.alike))
        yield translate(f"with other facts of this kind the largest may be at another of these layers: {listed}")
    if advice.left_out:
        effect = f"{advice.first:.3f}"
        yield translate(
            f"windows with layer 0 are not counted, which tell the model who the subject is: up to {effect}"
        )
    caveat = "where a fact is recalled is not always where it is best edited (arXiv:2301.04213): compare by an exam"
    yield translate(caveat)
