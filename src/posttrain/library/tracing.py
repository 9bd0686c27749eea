"""`pt.trace`: where a model recalls facts, as an object with pictures, a data frame and the layers to edit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, InstanceOf

from posttrain.config.change import Change
from posttrain.config.load import check
from posttrain.editing.facts import Fact, fact_of, facts_of, read_facts
from posttrain.editing.trace import TraceConfig
from posttrain.editing.trace import trace as run
from posttrain.editing.trace_file import Advice, Trace
from posttrain.errors import ConfigError, Problem
from posttrain.language import spoken
from posttrain.library.models import Count, Model, as_arguments, load
from posttrain.library.results import Plot
from posttrain.reports.trace_charts import averages_svg, fact_svg, layers_svg, write_charts

if TYPE_CHECKING:
    import pandas

__all__ = ["Traced", "trace"]

Facts = str | Path | Change | Mapping[str, Any] | Sequence[str | Path | Change | Mapping[str, Any]]
"""Paths or globs of files of facts, changes, or mappings with the keys of a change or of a fact."""


@dataclass(frozen=True)
class Traced:
    """The causal trace of a model. trace: all of it, as in trace.json; folder: where it is kept, or None."""

    trace: Trace
    folder: Path | None = None

    @property
    def advice(self) -> Advice | None:
        """Which layers to edit and on what evidence; None if `mlp` was not traced."""
        return self.trace.advice

    def plot(self, fact: int | None = None, *, lines: bool = False, language: str | None = None) -> Plot:
        """Return a picture: the averages by token role, with `lines` those by layer, or one fact (counted from 0)."""
        told = language or spoken()
        if fact is not None:
            return Plot(fact_svg(self.trace, self.trace.facts[fact], told))
        return Plot(layers_svg(self.trace, told) if lines else averages_svg(self.trace, told))

    def to_pandas(self) -> pandas.DataFrame:
        """Return a row per cell: fact, kind, position, token, role, layer, effect."""
        import pandas

        rows = [
            (fact.name, kind, at, fact.tokens[at], fact.roles[at], layer, effect)
            for fact in self.trace.facts
            for kind, effects in fact.effects.items()
            for at, own in enumerate(effects)
            for layer, effect in enumerate(own)
        ]
        return pandas.DataFrame(rows, columns=["fact", "kind", "position", "token", "role", "layer", "effect"])

    def __repr__(self) -> str:
        layers = list(self.advice.layers) if self.advice else []
        return f"Traced({self.trace.model!r}: {len(self.trace.facts)} facts, layers {layers})"

    def _repr_html_(self) -> str:
        return self.plot().svg


@as_arguments
def trace(
    model: InstanceOf[Model] | str | Path,
    facts: Facts,
    *,
    output: str | Path | None = None,
    limit: Count | None = None,
    seed: Annotated[int, Field(ge=0)] = 0,
    say: Callable[[str], None] = lambda line: None,
    **settings: Any,
) -> Traced:
    """Say in which layers a model recalls facts: causal tracing (Meng et al. 2022, arXiv:2202.05262).

    facts: change files (what the model says now is traced), or rows with `prompt`, `subject` and perhaps `answer`, in
    files or as mappings; output: a folder for trace.json and the pictures, in which the same call goes on after a kill;
    limit: only the first so many facts; say: takes lines for the user; settings: keys of `TraceConfig` (kinds, window,
    samples, noise, score, form, ...). Raise ConfigError, DataError and MissingError; PosttrainError if no fact can be
    traced.
    """
    config = check(settings, TraceConfig, "pt.trace")
    known = _facts_of(facts)[:limit]
    if not known:
        raise ConfigError(Problem("pt.trace", "there is nothing to trace", "give facts"))
    loaded = model.loaded if isinstance(model, Model) else load(model).loaded
    folder = Path(output) if output is not None else None
    made = run(loaded, known, config, seed=seed, folder=folder, say=say)
    if folder is not None:
        write_charts(made, folder, language=spoken())
    return Traced(made, folder)


def _facts_of(given: Facts) -> list[Fact]:
    """Return the given facts, reading those in files. Raise ConfigError or DataError if one is faulty."""
    each = [given] if isinstance(given, str | Path | Change | Mapping) else list(given)
    facts: list[Fact] = []
    for number, one in enumerate(each, start=1):
        if isinstance(one, str | Path):
            facts += read_facts([str(one)], Path.cwd())
        elif isinstance(one, Change) or "target" in one:
            facts += facts_of([one if isinstance(one, Change) else check(dict(one), Change, "facts")])
        else:
            facts.append(fact_of(dict(one), f"facts:{number}", f"fact {number}"))
    return facts
