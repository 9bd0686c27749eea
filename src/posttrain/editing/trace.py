"""Causal tracing: where in a model a fact is recalled. Meng et al. 2022, arXiv:2202.05262, section 2.

A model says the answer (`clean`). Gaussian noise on the embeddings of the subject takes it away (`corrupted`). Then one
thing is restored to what it was in the clean run: the output of one layer at one token, or the outputs of the
feed-forward or the attention parts of several layers in a row at one token. What comes back of the answer's probability
is the indirect effect of that cell:

    total effect    = clean - corrupted
    indirect effect = restored(cell) - corrupted        all of them means over the samples of noise

The noise has three times the standard deviation of the embeddings of the subjects of all facts, and every cell of a
fact sees the same noise. Only facts that the model answers as stated are traced, and of these only such as depend on
their subject: where the noise takes next to nothing, there is nothing to bring back.

Where a fact is recalled does not always say where it is best edited (Hase et al. 2023, arXiv:2301.04213).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import Field, field_validator
from torch import Tensor

from posttrain import __version__
from posttrain.config.base import Config
from posttrain.editing.facts import AnyForm, AskedFact, Fact, FactReader, distinct
from posttrain.editing.places import KINDS, Kind, Places, find_places
from posttrain.editing.replies import Reply, Score, Scored, Unscored, depending, replies, row_of, stated, whole_row
from posttrain.editing.restoring import Cell, PlainRun, TracedRow, run_of
from posttrain.editing.sites import find_sites
from posttrain.editing.token_names import token_names
from posttrain.editing.trace_file import Doing, FactTrace, Skipped, Trace, rounded, write_trace
from posttrain.editing.trace_means import advise, averages, mean_of, roles_of
from posttrain.errors import ConfigError, PosttrainError, Problem
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.adapters import virtual_positions
from posttrain.models.load import LoadedModel
from posttrain.models.meter import Meter

__all__ = ["TraceConfig", "noise_for", "noise_scale", "trace"]


GPU = 32
"""Factor of the batch size on a GPU. Small ones are as fast on a CPU, and begin nearer to their cells' layers."""


class TraceConfig(Config):
    """How facts are traced."""

    kinds: tuple[Kind, ...] = KINDS
    """What is restored: state (one layer's output), mlp and attn (the parts' outputs in several layers in a row)."""
    window: int | None = Field(None, ge=1)
    """Layers in a row of which mlp and attn are restored; null: 10, or a third of fewer than 30."""
    samples: int = Field(10, ge=1)
    """Samples of noise for each fact."""
    noise: float = Field(3.0, ge=0)
    """The noise's standard deviation, as a multiple of that of the embeddings of all subjects."""
    least_fall: float = Field(0.1, ge=0, le=1)
    """A fact is left out if noise on its subject takes a smaller share of the answer's probability; 0: none is."""
    score: Score = "auto"
    """Which tokens of the answer are scored: auto, first or whole."""
    form: AnyForm = "auto"
    """How facts are asked: raw (plain text), chat (in the chat template), auto (chat where there is a template)."""
    max_new_tokens: int = Field(32, ge=1)
    """The model's own answer is cut after so many tokens."""
    batch_tokens: int = Field(512, ge=1)
    """So many tokens go through the model at once; on a GPU 32 times as many."""

    @field_validator("kinds")
    @classmethod
    def _some(cls, value: tuple[Kind, ...]) -> tuple[Kind, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError("name each of state, mlp, attn once, or some of them")
        return value


class _Chosen(NamedTuple):
    """A fact that is traced. row: its text; scored: the tokens of the reply that count."""

    asked: AskedFact
    reply: Reply
    scored: Scored
    row: TracedRow


@torch.no_grad()
def trace(
    loaded: LoadedModel,
    facts: Sequence[Fact],
    config: TraceConfig | None = None,
    *,
    seed: int = 0,
    folder: Path | None = None,
    say: Callable[[str], None] = print,
) -> Trace:
    """Trace facts and return everything that was found.

    folder: finished facts and trace.json are kept there, and the same call goes on from them; say: takes a line for the
    user. Raise DataError if a subject is not found in its prompt, and PosttrainError if the model cannot be traced or
    no fact can.
    """
    return _Tracing(loaded, config or TraceConfig(), seed, say).all(facts, folder)


def noise_scale(model: Any, subjects: Sequence[Sequence[int]]) -> float:
    """Return the standard deviation of all numbers in the embeddings of the subjects' tokens."""
    ids = torch.tensor([token for subject in subjects for token in subject], device=model.device)
    embedded: Tensor = model.get_input_embeddings()(ids[None])
    return float(embedded.detach().double().std())


def noise_for(ids: Sequence[int], count: int, samples: int, width: int, seed: int) -> Tensor:
    """Return standard normal noise (P, S, D) for P tokens of a text: the same for the same text and seed."""
    digest = hashlib.sha256(f"{seed} {list(ids)}".encode()).digest()
    draw = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.stack([torch.randn(samples, width, generator=draw) for _ in range(count)])


class _Tracing:
    """The tracing of facts in one model."""

    def __init__(self, loaded: LoadedModel, config: TraceConfig, seed: int, say: Callable[[str], None]) -> None:
        if virtual_positions(loaded.model):
            cause = f"{loaded.name} has virtual tokens before the text, which have no place in a trace"
            raise PosttrainError(Problem("trace", cause, "trace its base"))
        self.loaded, self.config, self.seed, self.say = loaded, config, seed, say
        self.respondent = ModelRespondent(loaded)
        sites = find_sites(loaded.model)
        self.model: Any = sites.model
        self.places: Places = find_places(sites, config.kinds, config.window)
        self.batch_tokens = config.batch_tokens * (GPU if self.model.device.type == "cuda" else 1)
        self.known: dict[int, bool] = {}
        self.sigma = 0.0

    @property
    def count(self) -> int:
        """The number of layers."""
        return len(self.places.layers)

    def all(self, facts: Sequence[Fact], folder: Path | None) -> Trace:
        """Trace all facts."""
        if not facts:
            raise ConfigError(Problem("trace", "there is nothing to trace", "give facts"))
        asked = FactReader(self.loaded.tokenizer, self.config.form).read_all(facts)
        self.respondent.check_tokens([one.ids for one in asked], "fact")
        embeddings = [[one.ids[at] for at in one.subject] for one in distinct(asked)]
        self.sigma = self.config.noise * noise_scale(self.model, embeddings)
        doing, traced = Doing(folder), []
        chosen, skipped = self._choose(asked, doing.known)
        keys = [self._key(one) for one in chosen]
        left = sum(len(self._cells(one.row)) for one, key in zip(chosen, keys, strict=True) if key not in doing.known)
        if old := sum(key in doing.known for key in keys):
            self.say(f"{old} of {len(keys)} facts were traced before and are kept")
        elif doing.known:
            self.say("what was traced here before had other facts, settings or weights: every fact is traced anew")
        kept = (
            "finished facts are kept, and the same command goes on" if folder else "nothing of it is kept: give -o DIR"
        )
        with Meter("tracing facts", left, "cells", kept=kept) as meter:
            for one, key in zip(chosen, keys, strict=True):
                if key not in doing.known:
                    doing.add(key, self._trace(one, meter))
                traced.append(doing.known[key])
        made = self._summed(traced, skipped)
        if folder is not None:
            write_trace(folder, made)
        return made

    # ---- which facts, and what is scored -----------------------------------------------------------------------------

    def _choose(
        self, asked: Sequence[AskedFact], known: Mapping[str, FactTrace]
    ) -> tuple[list[_Chosen], list[Skipped]]:
        """Return the facts that are traced, and the others with reasons: a prompt with a subject is traced once. Raise
        PosttrainError if none is left. known: the facts that were traced before, by their keys.
        """
        chosen: dict[Any, _Chosen] = {}
        skipped: list[Skipped] = []
        with Meter("asking the model", len(asked), "facts") as meter:
            said = replies(self.respondent, asked, self.config.max_new_tokens)
            for one, reply in zip(asked, said, strict=True):
                scored = self._scored(one, reply)
                first = chosen.get(one.evidence)
                if first is not None and not isinstance(scored, Unscored):
                    place = first.asked.fact.place
                    scored = Unscored(f"it has the prompt and the subject of {place}: they are counted once")
                if not isinstance(scored, Unscored):
                    own = _Chosen(one, reply, scored, row_of(one, reply, scored))
                    if why := self._holds(own, known):
                        scored = Unscored(reason=why)
                    else:
                        chosen[one.evidence] = own
                if isinstance(scored, Unscored):
                    skipped.append(Skipped(name=one.fact.name, location=one.fact.location, reason=scored.reason))
                meter.more(1)
        if not chosen:
            named = [Problem(one.location or one.name, one.reason) for one in skipped[:5]]
            cause = f"none of {len(skipped)} facts can be traced"
            mend = "state what the model says, or leave answers out; least_fall: 0 keeps answers that survive the noise"
            raise PosttrainError(Problem("trace", cause, mend), *named)
        return list(chosen.values()), skipped

    def _holds(self, chosen: _Chosen, known: Mapping[str, FactTrace]) -> str:
        """Return why a fact is left out whose answer survives the noise on its subject, or ""."""
        if not self.config.least_fall:
            return ""
        before = known.get(self._key(chosen))
        if before is not None:
            clean, corrupted = before.clean, before.corrupted
        else:
            clean, corrupted = self._plain(chosen.asked, chosen.row).probability
        if not clean - corrupted < self.config.least_fall * clean:  # what is not a number is refused later
            return ""
        words, least = self._words(chosen.reply, chosen.scored), f"{100 * self.config.least_fall:g} %"
        now = f"{clean:.3f}, with noise on the subject {corrupted:.3f}"
        return f"the probability of '{words}' is {now}: it falls by less than {least}"

    def _scored(self, asked: AskedFact, reply: Reply) -> Scored | Unscored:
        """Return which tokens of a reply are scored, or why none are."""
        if not reply.text.strip():
            return Unscored(reason="the model says nothing")
        score = self.config.score
        if asked.fact.answer:
            return stated(asked, reply, score)
        if score != "auto":
            return Scored(0, len(reply.ids) if score == "whole" else 1)
        run = self._plain(asked, whole_row(asked, reply))
        return depending(asked, reply, run.clean, run.corrupted)

    def _plain(self, asked: AskedFact, row: TracedRow) -> PlainRun:
        """Return the clean and the corrupted run of a row, in which nothing can be restored."""
        places = self.places._replace(mlp=(), attn=())
        return PlainRun(self.model, places, row, self._noise(asked, row), self.batch_tokens)

    def _noise(self, asked: AskedFact, row: TracedRow) -> Tensor:
        width = self.model.get_input_embeddings().weight.shape[1]
        return self.sigma * noise_for(asked.ids, len(row.noisy), self.config.samples, width, self.seed)

    # ---- tracing -----------------------------------------------------------------------------------------------------

    def _cells(self, row: TracedRow) -> list[Cell]:
        """Return the cells of a row. At tokens before the first one with noise nothing is corrupted."""
        tokens = range(row.noisy[0], row.asked[0] + 1)
        return [Cell(k, layer, token) for k in self.config.kinds for token in tokens for layer in range(self.count)]

    def _trace(self, chosen: _Chosen, meter: Meter) -> FactTrace:
        """Trace one fact. Raise PosttrainError, which names it, if a probability is not a number."""
        asked, reply, scored, row = chosen
        noise = self._noise(asked, row)
        run = run_of(self.model, self.places, row, noise, self.batch_tokens, say=self.say, known=self.known)
        clean, corrupted = run.probability
        cells = self._cells(row)
        found = run.probabilities(cells, lambda done, tokens: meter.more(done, tokens=tokens))
        if not all(map(_finite, (clean, corrupted, *found))):
            cause = "its probabilities are not finite"
            raise PosttrainError(Problem(asked.fact.place, cause, "load the model in float32: --precision float32"))
        last, first = row.asked[0], row.noisy[0]
        before = ((0.0,) * self.count,) * (first - asked.begins)
        effects: dict[Kind, tuple[tuple[float, ...], ...]] = {}
        for number, kind in enumerate(self.config.kinds):
            size = (last + 1 - first) * self.count
            own = [rounded(p - corrupted) for p in found[number * size : (number + 1) * size]]
            effects[kind] = (*before, *(tuple(own[i : i + self.count]) for i in range(0, size, self.count)))
        shown = range(asked.begins, last + 1)
        names = token_names(self.loaded.tokenizer, row.ids[: last + 1])
        return FactTrace(
            name=asked.fact.name,
            location=asked.fact.location,
            prompt=asked.fact.question,
            subject=asked.fact.subject.strip(),
            form=asked.form,
            answer=asked.fact.answer,
            reply=reply.text,
            opening=self.respondent.text(reply.ids[: scored.first]),
            scored=self._words(reply, scored),
            tokens=tuple(names[at] for at in shown),
            roles=roles_of(asked.begins, asked.subject, last, row.noisy),
            noisy=tuple(at in row.noisy for at in shown),
            clean=rounded(clean),
            corrupted=rounded(corrupted),
            effects=effects,
        )

    def _words(self, reply: Reply, scored: Scored) -> str:
        """Return the scored words; a part of a character is shown as the part it is."""
        if scored.stop - scored.first > 1:
            return self.respondent.text(reply.ids[scored.first : scored.stop]).strip()
        return token_names(self.loaded.tokenizer, reply.ids)[scored.first]

    def _key(self, chosen: _Chosen) -> str:
        """Return the hash of everything that the trace of a fact depends on."""
        row = chosen.row
        own = self.config.model_dump(exclude={"batch_tokens", "least_fall"})
        what = [
            self.respondent.fingerprint,
            own,
            self.places.width,
            self.seed,
            self.sigma,
            list(chosen.asked.fact.place),
        ]
        what += [row.ids, row.noisy, list(row.asked), row.targets, chosen.asked.fact.name]
        return hashlib.sha256(json.dumps(what, default=str).encode()).hexdigest()[:32]

    def _summed(self, traced: Sequence[FactTrace], skipped: Sequence[Skipped]) -> Trace:
        return Trace(
            posttrain=__version__,
            model=self.loaded.name,
            fingerprint=self.respondent.fingerprint,
            layers=self.count,
            window=self.places.width,
            sigma=rounded(self.sigma),
            seed=self.seed,
            settings=self.config.model_dump(mode="json"),
            clean=mean_of([fact.clean for fact in traced]),
            corrupted=mean_of([fact.corrupted for fact in traced]),
            total_effect=mean_of([fact.total_effect for fact in traced], -1.0),
            averages=averages(traced, self.config.kinds),
            advice=advise(traced, self.places.width, seed=self.seed),
            facts=tuple(traced),
            skipped=tuple(skipped),
        )


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
