"""An editing session: a model in memory, the edits that were written into it, and the way back.

session = EditSession(load_model("pocket:chat"))
session.apply(edits, MemitConfig())
session.undo(3)          # one edit
session.undo()           # all: every weight has its old bits again
session.save(folder)     # a small delta that loads as a model
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from posttrain import registry
from posttrain.config.base import Config
from posttrain.data.chat import encode_all
from posttrain.editing.contexts import Language, write_contexts
from posttrain.editing.editors._base import Change, EditContext, EditorConfig, Figures
from posttrain.editing.edits import Edit, Form, RowMaker, chinese, without_subject
from posttrain.editing.gradients import measure_gradients
from posttrain.editing.moments import Measure, Moment, cached_moments, measure_moments
from posttrain.editing.reading import batches, padded
from posttrain.editing.said import Said, answers_to, conflicts, form_of, said_already
from posttrain.editing.sites import Site, Sites, find_sites
from posttrain.editing.tails import Known
from posttrain.editing.targets import Search
from posttrain.errors import ConfigError, DataError, PosttrainError, Problem
from posttrain.inference.attention import forward
from posttrain.inference.protocol import Plain
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.edit_delta import Delta, added
from posttrain.models.fingerprint import remember_base
from posttrain.models.load import LoadedModel
from posttrain.models.meter import Meter
from posttrain.models.sketch import sketch
from posttrain.retention.cache_folder import default_cache
from posttrain.retention.replay.self import SelfReplayConfig, self_replay
from posttrain.retention.selection import ReplayContext, packaged_prompts, read_prompts

__all__ = ["Applied", "EditSession", "Harm", "Refused", "own_texts"]

HARM_NATS = 0.5
"""Rise of the loss on other texts, in nats per token, above which a batch of edits is refused."""
FOREIGN_NATS = 1.5
"""If the model's own answers in chats lose more than this after raw prompts, in nats per token, it does not speak so.
Pocket loses 3.3, SmolLM2-135M-Instruct 0.9.
"""
ASKED, ASKED_TOKENS = 32, 16
"""Number of packaged prompts that are tried, and tokens of the answers."""
ANCHORED = 32
"""Number of edits whose target vectors in the untouched model give the norm anchor."""
HARM_TEXTS = 32
"""Number of texts on which it is measured."""
LONGEST = 512
"""Longest text for second moments, in tokens."""


class Harm(NamedTuple):
    """The mean loss of other texts in nats per token: of the untouched model, before a batch of edits, and after it."""

    untouched: float
    before: float
    after: float


@dataclass(frozen=True, eq=False)
class Applied:
    """A batch of edits that was written. numbers: of its edits, from 0 in the order of the session; editor: its
    settings; figures: of each edit; deltas: in the order of writing; past: by layer, the keys (d, E) that later edits
    spare.
    """

    numbers: tuple[int, ...]
    edits: tuple[Edit, ...]
    editor: EditorConfig
    figures: tuple[Figures, ...]
    deltas: tuple[Delta, ...]
    harm: Harm
    past: dict[int, Tensor] = field(default_factory=dict)

    def without(self, gone: frozenset[int]) -> Applied | None:
        """Return the batch without some edits, None if none is left. What was solved together keeps its parts. Raise
        PosttrainError if its editor has trained them as a whole.
        """
        keep = [i for i, number in enumerate(self.numbers) if number not in gone]
        if len(keep) in (0, len(self.edits)):
            return self if keep else None
        if any(
            delta.rank is None and 0 < len(gone.intersection(delta.owners)) < len(delta.owners) for delta in self.deltas
        ):
            cause = f"edits {self.numbers[0]} to {self.numbers[-1]} were trained together by {self.editor.kind}"
            raise PosttrainError(Problem("undo", cause, "take them all back, or edit one by one: batch 1"))
        return replace(
            self,
            numbers=tuple(self.numbers[i] for i in keep),
            edits=tuple(self.edits[i] for i in keep),
            figures=tuple(self.figures[i] for i in keep),
            deltas=tuple(left for delta in self.deltas if (left := delta.without(gone)) is not None),
            past={layer: keys[:, keep] for layer, keys in self.past.items()},
        )


class Refused(PosttrainError):
    """An edit that would break the model was not written."""


def own_texts(
    respondent: ModelRespondent, *, seed: int, forbidden: frozenset[str], say: Callable[[str], None], cache: Path | None
) -> list[list[int]]:
    """Return the packaged replay prompts with the model's own answers, as token ids. The answers are cached."""
    context = ReplayContext(respondent, respondent.fingerprint, seed, forbidden, cache=cache, say=say)
    talks = self_replay(SelfReplayConfig(), context)
    encoded = encode_all(talks, respondent.tokenizer, max_length=LONGEST, over_long="truncate", on_bad_row="skip")
    return [row.input_ids for row in encoded.rows]


class EditSession:
    """Edits of one loaded model.

    loaded: the model, changed in place; texts: makes the texts, as token ids, on which second moments are measured (by
    default the packaged replay prompts with the model's own answers); named: what these texts depend on, for the cache;
    forbidden: prompts that no text may hold; say: takes a line for the user; cache: folder of the cache.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        texts: Callable[[], Sequence[Sequence[int]]] | None = None,
        named: str = "",
        forbidden: frozenset[str] = frozenset(),
        seed: int = 0,
        say: Callable[[str], None] = print,
        cache: Path | None = None,
        fingerprint: str = "",
    ) -> None:
        self.loaded, self.say, self.seed = loaded, say, seed
        self.sites: Sites = find_sites(loaded.model)
        self.respondent = ModelRespondent(loaded)
        self.forbidden, self.cache = forbidden, cache or default_cache()
        self._texts = texts
        self._named = named if texts is not None else f"own answers {seed} {sorted(forbidden)}"
        self._fingerprint = fingerprint
        remember_base(loaded.model)
        self.applied: list[Applied] = []
        self.originals: dict[str, Tensor] = {}
        self._moments: dict[str, dict[int, Moment]] = {}
        self._written: dict[tuple[Language, int, int], list[str]] = {}
        self.anchors: dict[str, float] = {}
        self._memory: dict[Any, Any] = {}
        self.kept: dict[str, Tensor] = {}
        self._known: Known = {}
        self.said: dict[int, Said] = {}
        self._loss: float | None = None
        self._loss_untouched: float | None = None
        self.next_number = 0

    # ---- what editors need of the untouched model ----------------------------------------------------------------

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the untouched model's weights and template."""
        if self._fingerprint:
            return self._fingerprint
        with self._untouched():
            return ModelRespondent(self.loaded).fingerprint

    @cached_property
    def sketch(self) -> dict[str, list[float]]:
        """The sketch of the untouched model's weights."""
        with self._untouched():
            return sketch(self.sites.model)

    def texts(self) -> Sequence[Sequence[int]]:
        """Return the texts for second moments."""
        if self._texts is not None:
            return self._texts()
        return own_texts(self.respondent, seed=self.seed, forbidden=self.forbidden, say=self.say, cache=self.cache)

    def moments(self, layers: Sequence[Site]) -> dict[int, Moment]:
        """Return the second moments of layers' keys on the untouched model."""
        return self._measured_once(layers, "moments", measure_moments)

    def gradients(self, layers: Sequence[Site]) -> dict[int, Moment]:
        """Return the second moments of the gradients of layers' outputs, of the untouched model's own predictions."""
        return self._measured_once(layers, "gradients", measure_gradients)

    def _measured_once(self, layers: Sequence[Site], of: str, measure: Measure) -> dict[int, Moment]:
        known = self._moments.setdefault(of, {})
        missing = [site for site in layers if site.layer not in known]
        if missing:
            key = hashlib.sha256(f"{self.fingerprint} {self._named}".encode()).hexdigest()
            with self._untouched():
                known |= cached_moments(
                    self.sites, missing, self.texts, key=key, folder=self.cache, say=self.say, measure=measure, of=of
                )
        return {site.layer: known[site.layer] for site in layers}

    def before(self, language: Language, count: int, seed: int = 0) -> list[str]:
        """Return texts that stand before prompts, written once by the untouched model. seed: of the editor."""
        key = language, count, seed
        if key not in self._written:
            with self._untouched():
                self._written[key] = write_contexts(self.respondent, language, count, self.seed + seed)
        return self._written[key]

    @cached_property
    def forms(self) -> tuple[Form, ...]:
        """The ways in which prompts are read: raw and chat; one of them where the model knows only that one."""
        if not self.loaded.tokenizer.chat_template:
            return ("raw",)
        with self._untouched():
            nats = self._raw_loss()
        if nats <= FOREIGN_NATS:
            return ("raw", "chat")
        self.say(
            "edits are made in the chat template alone, as the model does not speak in plain text (its own answers "
            f"lose {nats:.1f} nats per token there); forms: [raw, chat] edits both"
        )
        return ("chat",)

    def _raw_loss(self) -> float:
        """Return by how much the model's own answers in chats lose after raw prompts, in nats per token."""
        prompts = self._prompts(ASKED)
        answers = self.respondent.answers(prompts, max_new_tokens=ASKED_TOKENS)
        said = [(prompt, answer.text) for prompt, answer in zip(prompts, answers, strict=True) if answer.text]
        raw = [(Plain(prompt), text if chinese(text[:1]) else f" {text}") for prompt, text in said]
        nats = [[-one.sum_nats / one.tokens for one in self.respondent.logprobs(asked)] for asked in (raw, said)]
        return (sum(nats[0]) - sum(nats[1])) / max(1, len(said))

    # ---- editing -------------------------------------------------------------------------------------------------

    def apply(
        self,
        edits: Sequence[Edit],
        editor: str | Config,
        *,
        batch: int | None = None,
        force: bool = False,
        after: Callable[[int], None] = lambda done: None,
        counted: tuple[int, int] | None = None,
    ) -> list[Applied]:
        """Write edits, `batch` of them at a time (all together if None), and return what was written.

        editor: a name, or its settings; force: write what would be refused; after: called with the number of edits
        written so far, after each batch; counted: how many of how many edits were written before, where these are a
        part. Raise Refused, with figures, for a batch that would break the model (it is taken back, earlier ones stay);
        ConfigError for a layer that does not exist or cannot be edited; DataError for edits without the subject that
        the editor needs, and for two answers to one prompt.
        """
        config = registry.load("editor", editor).config() if isinstance(editor, str) else editor
        if not isinstance(config, EditorConfig):
            raise ConfigError(Problem("editor", f"'{editor}' is no editor", "see: posttrain list editors"))
        self._check_edits(edits, config)
        made: list[Applied] = []
        size = batch or max(len(edits), 1)
        done, total = counted or (0, len(edits))
        with Meter(f"editing with {config.kind}", total, "edits", already=done) as meter:
            for first in range(0, len(edits), size):
                part = edits[first : first + size]
                made.append(self._batch(part, config, edits, force))
                meter.more(len(part))
                after(first + len(part))
        return made

    def _check_edits(self, edits: Sequence[Edit], config: EditorConfig) -> None:
        """Raise DataError for edits without the subject that the editor needs, and for those that contradict each
        other; say which earlier edits are written over.
        """
        problems = conflicts(edits)
        if config.needs_subject:
            problems += without_subject(edits)
        if problems:
            raise DataError(*problems)
        earlier = {e.prompt: (n, e) for one in self.applied for n, e in zip(one.numbers, one.edits, strict=True)}
        for edit in edits:
            at = f"{edit.location}: " if edit.location else ""
            if edit.cut:
                self.say(f"{at}the subject '{edit.subject}' is a piece of the word '{edit.cut}'")
            number, other = earlier.get(edit.prompt, (0, edit))
            if other.answer.strip() != edit.answer.strip():
                self.say(f"{at}edit {number} wrote '{other.answer.strip()}' for the same prompt: it is written over")

    def _batch(self, edits: Sequence[Edit], config: EditorConfig, every: Sequence[Edit], force: bool) -> Applied:
        deltas: list[Delta] = []
        before = self._loss_now()
        number = self.next_number

        def write(site: Site, change: Change, owners: Sequence[int]) -> None:
            delta = Delta.of(site.weight, site.transposed, change, [number + owner for owner in owners])
            parameter = self.sites.weight(site)
            self.originals.setdefault(site.weight, parameter.detach().clone())
            deltas.append(delta)
            parameter.data.copy_(added(parameter.data, delta))

        context = self.context(config, every, write)
        known = {layer: len(keys) for layer, keys in context.past.items()}
        entry = registry.load("editor", config.kind)
        weights = {name: parameter.detach().clone() for name, parameter in self._edited().items()}
        anchors, kept = dict(self.anchors), dict(self.kept)
        try:
            figures = entry.function(config, context, edits)
            after = self._measured()
            harm = Harm(self._untouched_loss(), before, after)
            self._check(edits, figures, harm, force)
        except BaseException:
            for delta in deltas:
                start = weights.get(delta.weight, self.originals[delta.weight])
                self.sites.model.get_parameter(delta.weight).data.copy_(start)
            self._memory.clear()
            self.anchors.clear()
            self.anchors.update(anchors)
            self.kept.clear()
            self.kept.update(kept)
            raise
        keys = {layer: own[-1] for layer, own in context.past.items() if len(own) > known.get(layer, 0)}
        self._loss = after
        self._forget_answers()
        self.next_number += len(edits)
        numbers = tuple(range(number, number + len(edits)))
        made = Applied(numbers, tuple(edits), config, tuple(figures), tuple(deltas), harm, keys)
        self.applied.append(made)
        return made

    def context(
        self, config: EditorConfig, edits: Sequence[Edit], write: Callable[[Site, Change, Sequence[int]], None]
    ) -> EditContext:
        """Return what an editor works with. edits: all that will be written; write: see `EditContext`."""
        layers = {layer for one in self.applied for layer in one.past}
        forms = self.forms if config.forms == "auto" else config.forms
        return EditContext(
            search=Search(self.sites, RowMaker(self.loaded.tokenizer, forms=forms), self.say, self._known),
            texts=lambda language, count: self.before(language, count, config.seed),
            moments=self.moments,
            gradients=self.gradients,
            write=write,
            past={layer: [one.past[layer] for one in self.applied if layer in one.past] for layer in layers},
            memory=self._memory,
            kept=self.kept,
            sample=edits[:ANCHORED],
            anchors=self.anchors,
            untouched=self._untouched,
            seed=self.seed + config.seed,
            say=self.say,
        )

    def _edited(self) -> dict[str, torch.nn.Parameter]:
        return {name: self.sites.model.get_parameter(name) for name in self.originals}

    def _check(self, edits: Sequence[Edit], figures: Sequence[Figures], harm: Harm, force: bool) -> None:
        """Raise Refused if the edits would break the model."""
        rise = harm.after - harm.before
        if rise <= HARM_NATS:
            return
        worst = max(range(len(edits)), key=lambda e: figures[e].share)
        one = figures[worst]
        told = [f"the loss on other texts rises from {harm.before:.2f} to {harm.after:.2f} nats per token"]
        told.append(f"its change is {one.share:.2g} of the weights' norm")
        if one.alignment is not None:
            told.append(f"key alignment {one.alignment:.2g}")
        if one.condition is not None:
            told.append(f"condition {one.condition:.2g}")
        cause = f"the edit would break the model: {', '.join(told)}"
        if force:
            self.say(f"{edits[worst].location}: {cause}; written all the same (force)")
            return
        mend = "edit another layer, smaller batches or with another editor; --force writes it all the same"
        raise Refused(Problem(edits[worst].location, cause, mend))

    # ---- the way back --------------------------------------------------------------------------------------------

    def undo(self, *numbers: int) -> None:
        """Take edits back by their numbers; all of them without a number.

        The weights are computed anew from the untouched ones and the remaining deltas in order; after all are taken
        back every bit is as it was. Edits that were solved together keep their parts as they are. Raise ConfigError for
        a number that there is not, and PosttrainError for a part of a batch that an editor has trained as a whole.
        """
        known = {number for one in self.applied for number in one.numbers}
        if unknown := [n for n in numbers if n not in known]:
            listed = f"{min(known)} to {max(known)}" if known else "none"
            raise ConfigError(Problem("undo", f"there is no edit {unknown[0]}", f"edits here: {listed}"))
        gone = frozenset(numbers or known)
        self.applied = [left for one in self.applied if (left := one.without(gone)) is not None]
        self._memory.clear()
        self.kept.clear()
        if not self.applied:
            self.anchors.clear()
        self.said = {number: said for number, said in self.said.items() if number not in gone}
        self._rebuild()
        self._loss = None
        self._forget_answers()

    def _forget_answers(self) -> None:
        """What the model answers now is not known since its weights changed."""
        self.said = {number: Said(said.before) for number, said in self.said.items()}

    def _rebuild(self) -> None:
        for name, original in self.originals.items():
            self.sites.model.get_parameter(name).data.copy_(original)
        for one in self.applied:
            for delta in one.deltas:
                parameter = self.sites.model.get_parameter(delta.weight)
                parameter.data.copy_(added(parameter.data, delta))

    @contextmanager
    def _untouched(self) -> Iterator[None]:
        """Within this block, the model has its untouched weights."""
        now = {name: parameter.data for name, parameter in self._edited().items()}
        for name, parameter in self._edited().items():
            parameter.data = self.originals[name].clone()
        try:
            yield
        finally:
            for name, parameter in self._edited().items():
                parameter.data = now[name]

    def ask_before(self, edits: Sequence[Edit], config: EditorConfig) -> list[Problem]:
        """Keep the untouched model's answers to edits that will be written next, and return a problem for each edit
        that the model as it is says already.
        """
        form = form_of(config, self.loaded.tokenizer)
        now = answers_to(self.respondent, edits, form)
        before = now
        if self.applied:
            with self._untouched():
                before = answers_to(self.respondent, edits, form)
        self.said |= {self.next_number + i: Said(answer) for i, answer in enumerate(before)}
        return said_already(edits, now)

    def untouched(self) -> LoadedModel:
        """Return a copy of the untouched model."""
        with self._untouched():
            return self.loaded._replace(model=copy.deepcopy(self.loaded.model))

    def take(self, applied: Applied) -> None:
        """Take over a batch that was written in an earlier session, and write it again."""
        for delta in applied.deltas:
            parameter = self.sites.model.get_parameter(delta.weight)
            self.originals.setdefault(delta.weight, parameter.detach().clone())
            parameter.data.copy_(added(parameter.data, delta))
        self.applied.append(applied)
        self.next_number = max(self.next_number, *(number + 1 for number in applied.numbers))
        self._loss = None

    # ---- harm ----------------------------------------------------------------------------------------------------

    def harm(self) -> Harm:
        """Return the loss of other texts as it is now: before and after are alike."""
        now = self._loss_now()
        return Harm(self._untouched_loss(), now, now)

    @cached_property
    def _probe(self) -> list[list[int]]:
        """The texts on which harm is measured: packaged prompts."""
        rows = [self.respondent.encode(Plain(prompt)) for prompt in self._prompts(HARM_TEXTS)]
        return [row for row in rows if len(row) > 1]

    def _prompts(self, count: int) -> list[str]:
        """Return packaged prompts, evenly drawn from all kinds."""
        prompts = read_prompts(packaged_prompts(self.loaded.tokenizer))
        return [prompt.text for prompt in prompts[:: max(1, len(prompts) // count)][:count]]

    @torch.no_grad()
    def _measured(self) -> float:
        """Return the mean loss of the probe texts in nats per token; infinity if it is not a number."""
        nats, tokens = 0.0, 0
        model: Any = self.loaded.model
        for batch in batches([len(row) for row in self._probe], 4096):
            rows = [self._probe[i] for i in batch]
            ids = padded(rows, model.device)
            index = torch.tensor([i * ids.shape[1] + t for i, row in enumerate(rows) for t in range(len(row) - 1)])
            targets = torch.tensor([t for row in rows for t in row[1:]], device=model.device)
            logps = forward(model, ids, index).float().log_softmax(-1)
            nats -= float(logps.gather(1, targets[:, None]).double().sum())
            tokens += len(targets)
        return nats / tokens if nats == nats else float("inf")

    def _loss_now(self) -> float:
        if self._loss is None:
            self._loss = self._measured()
            if not self.applied:
                self._loss_untouched = self._loss
        return self._loss

    def _untouched_loss(self) -> float:
        if self._loss_untouched is None:
            with self._untouched():
                self._loss_untouched = self._measured()
        return self._loss_untouched
