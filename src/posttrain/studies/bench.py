"""One loaded model of a study. It is loaded once and never changed; cells work on copies of it.

At most two copies of the weights are in memory: the untouched model, which gives the "before" answers of every exam,
and the copy that a method is changing. Each cell gets a fresh copy, so no method can leave anything behind. A tuner
that only puts something beside the weights (LoRA, virtual tokens) uses the untouched weights, and nothing is copied.

An adapter folder is merged into its base first, so that exams, training and saving all work on one model, and no tuner
meets the parts of another tuner. What a cell puts beside the merged weights names the adapter folder as its base. An
adapter that is not a change of weights (virtual tokens) can be examined, but not trained on.
"""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from posttrain import registry
from posttrain.config.base import Config
from posttrain.data.chat import Encoded, encode_all
from posttrain.errors import Interrupted, PosttrainError, Problem
from posttrain.inference.respondents import ModelRespondent
from posttrain.inference.support import alike
from posttrain.models.load import LoadedModel, adapter_base, load_model, resolve
from posttrain.models.memory import give_back, is_large, large_blocks_go_back
from posttrain.models.merge_adapter import was_untied
from posttrain.models.names import say_taken
from posttrain.models.notes import read_notes
from posttrain.models.save import TRAINED_IN
from posttrain.models.template_dates import moment_of, stay_at
from posttrain.retention.selection import ReplayConfig, ReplayContext, Task
from posttrain.studies.config import find_model

__all__ = ["Bench"]


DTYPES = ("float32", "bfloat16", "float16")
LARGE = 100_000_000
"""Number of parameters from which an exam takes so long that a killed exam should continue where it stopped."""


class Bench:
    """A loaded model and what its cells share: fingerprint, untouched respondent, replays, answers before the change.

    loaded: the model, if it is already in memory; product: its folder, if a cell has left it; forbidden: prompts that
    no training row may hold; say: takes a line for the user; how: the keywords of `load_model`.
    """

    def __init__(
        self,
        name: str,
        *,
        base: Path,
        loaded: LoadedModel | None = None,
        product: Path | None = None,
        forbidden: frozenset[str],
        say: Callable[[str], None],
        **how: Any,
    ) -> None:
        self.how: dict[str, Any] = {"offline": True, **how}
        self.name, self.base, self.forbidden, self.say = name, base, forbidden, say
        self.unmerged: PosttrainError | None = None
        """Why an adapter could not be merged into its base. It can be examined as it is, but not trained."""
        self.loaded: LoadedModel = loaded or self._found(name, product)
        if self.large and self.loaded.model.device.type == "cpu":
            large_blocks_go_back()
        self.before = ModelRespondent(self.loaded)
        self._before_cache: tuple[str, dict[Any, Any]] = ("", {})
        self._exam_caches: defaultdict[str, dict[Any, Any]] = defaultdict(dict)
        self._work: LoadedModel | None = None
        self._said: set[str] = set()
        self._replays: dict[str, list[Encoded] | PosttrainError] = {}

    def _found(self, name: str, product: Path | None) -> LoadedModel:
        """Load the product, or find the model with this name, tell the user what was chosen, and load it."""
        if product is not None:
            return self._load(str(product), says=False)
        found, told = find_model(name, self.base)
        if told:
            self.say(told)
        say_taken(found, self.say)
        return self._load(found)

    def after(self, product: Path) -> Bench:
        """Return the bench of a product that a cell of the study has left; an adapter is merged into its base."""
        adapter = adapter_base(product) is not None
        return self.another(self.name, None if adapter else self.load(product), product)

    def another(self, name: str, loaded: LoadedModel | None = None, product: Path | None = None) -> Bench:
        """Return the bench of another model with the same settings. loaded: the model, if it is already in memory."""
        beside = {**self.how, "forbidden": self.forbidden, "say": self.say}
        return Bench(name, base=self.base, loaded=loaded, product=product, **beside)

    def _load(self, found: str, *, says: bool = True) -> LoadedModel:
        """Load a model. An adapter is merged into its base and keeps its folder's name. says: tell the user of it."""
        folder = Path(resolve(found))
        if (base := adapter_base(folder)) is None:
            return load_model(found, **self.how)
        try:
            loaded = load_model(found, adapter_merged=True, **self.how)
        except Interrupted:
            raise
        except PosttrainError as error:
            loaded = load_model(found, **self.how)  # raises the error if the folder itself is faulty
            self.unmerged = error
            self.say(f"{self.name}: {error.problems[0].cause}; the study examines it as it is and cannot train it")
            return loaded
        model = loaded.model
        model.name_or_path = model.config.name_or_path = str(folder.resolve())  # new adapters note it as their base
        if says:
            self.say(f"{self.name}: an adapter; the study's model is it merged into its base '{base}'")
        if was_untied(model):
            self.say(f"{self.name}: the adapter is on one of two places that share a matrix; merged, each has its own")
        return loaded

    def say_once(self, text: str) -> None:
        """Give the user a line about the untouched model, unless an earlier cell has given it."""
        if text not in self._said:
            self._said.add(text)
            self.say(text)

    @property
    def fingerprint(self) -> str:
        """The hash of the untouched model's weights and template, computed at the first call."""
        return self.before.fingerprint

    @property
    def chunk(self) -> int:
        """Number of probes in one batch: all for a small model, few for a large one, so that a kill loses little."""
        return 4096 if sum(p.numel() for p in self.loaded.model.parameters()) < LARGE else 64

    @cached_property
    def large(self) -> bool:
        """Whether the model is so large that memory is released after each part of the work."""
        return is_large(self.loaded.model)

    def check_untouched(self) -> None:
        """Raise PosttrainError if a method has changed the model that all cells start from."""
        if ModelRespondent(self.loaded).fingerprint != self.fingerprint:
            raise PosttrainError(
                Problem(self.name, "the untouched model was changed during the study", "please report this bug")
            )

    def working(self) -> LoadedModel:
        """Return a fresh copy of the model that may be changed, and drop the previous copy."""
        return self._copied({})

    def lent(self) -> LoadedModel:
        """Return a copy like `working`, but one that shares the untouched model's own weights.

        It is for tuners that put something beside the weights and never write to them. `check_untouched` detects a
        method that does write to them.
        """
        parameters = self.loaded.model.parameters()
        return self._copied({id(p): torch.nn.Parameter(p.data, requires_grad=p.requires_grad) for p in parameters})

    def _copied(self, memo: dict[int, Any]) -> LoadedModel:
        """Copy the model and keep the copy as the working copy. memo: the memo of `copy.deepcopy`. Raise PosttrainError
        for an adapter that could not be merged: a tuner would meet the parts of another tuner."""
        if self.unmerged is not None:
            problems = [p._replace(mend="examine it as it is, or train its base") for p in self.unmerged.problems]
            raise PosttrainError(*problems)
        self.release()
        self._work = self.loaded._replace(model=copy.deepcopy(self.loaded.model, memo))
        alike(self._work.model, self.loaded.model)
        return self._work

    def release(self) -> None:
        """Drop the working copy and release its memory, on a GPU too."""
        self._work = None
        self.settle()

    def load(self, folder: Path) -> LoadedModel:
        """Load a model saved by a cell of the study, in the precision that it had in memory when it was saved."""
        config = folder / "config.json"
        stored = json.loads(config.read_text(encoding="utf-8")).get("dtype") if config.is_file() else None
        stored = read_notes(folder).get(TRAINED_IN, stored)
        loaded = load_model(str(folder), dtype=stored if stored in DTYPES else "auto", **self.how)
        alike(loaded.model, self.loaded.model)
        stay_at(loaded.tokenizer, moment_of(self.loaded.tokenizer))
        return loaded

    def settle(self) -> None:
        """Release memory that is no longer used: optimiser states, activations, tensors on a GPU."""
        if self.large or torch.cuda.is_available():
            give_back()

    def before_cache(self, change: str) -> dict[Any, Any]:
        """Return the untouched model's answers to the probes of a change, kept while that change's cells run."""
        if self._before_cache[0] != change:
            self._before_cache = (change, {})
        return self._before_cache[1]

    def exam_cache(self, exam: str) -> dict[Any, Any]:
        """Return what the untouched model has replied in an exam, kept for all cells."""
        return self._exam_caches[exam]

    def replay(self, config: Config, seed: int, max_length: int) -> list[Encoded]:
        """Return the encoded rows of a replay. They are made once per study; a failure is not tried again either."""
        assert isinstance(config, ReplayConfig)
        key = f"{seed} {max_length} {config.model_dump_json(exclude={'share', 'weight', 'loss'})}"
        if key not in self._replays:
            try:
                self._replays[key] = self._make_replay(config, self._context(self.before, seed), max_length)
            except Interrupted:
                raise
            except PosttrainError as error:
                self._replays[key] = error
        made = self._replays[key]
        if isinstance(made, PosttrainError):
            raise made
        return made

    def rehearse(
        self,
        config: ReplayConfig,
        loaded: LoadedModel,
        seed: int,
        max_length: int,
        task: Task,
        note: Callable[[str], None],
    ) -> list[Encoded]:
        """Return the encoded rows of a replay, made by a model of this bench at the beginning of a task. note: takes
        the same lines as `say`, for the card of the run.
        """

        def say(text: str) -> None:
            note(text)
            self.say(text)

        context = replace(self._context(ModelRespondent(loaded), seed), task=task, say=say)
        return self._make_replay(config, context, max_length)

    def _context(self, respondent: ModelRespondent, seed: int) -> ReplayContext:
        settled = (respondent, respondent.fingerprint, seed, self.forbidden, self.base)
        return ReplayContext(*settled, say=self.say)

    def _make_replay(self, config: ReplayConfig, context: ReplayContext, max_length: int) -> list[Encoded]:
        conversations = registry.load("replay", config.kind).function(config, context)
        if not conversations:  # the replay has already said why
            return []
        encoded = encode_all(
            conversations, self.loaded.tokenizer, max_length=max_length, over_long="drop", on_bad_row="skip"
        )
        if encoded.dropped or encoded.problems:
            words = f"{encoded.dropped} rows longer than {max_length} tokens and {len(encoded.problems)} bad ones"
            self.say(f"replay: {words} left out")
        return encoded.rows
