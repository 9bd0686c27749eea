"""Models with a head for classes of texts, classes of tokens, or answer spans.

`load_head_model` puts a random head on any base that transformers has a class for. A folder that was saved with a head
is loaded unchanged. Its labels are in `config.json`; an adapter's labels are in `posttrain.json`. The configuration
(`posttrain_head`) names every part that was random at the start. So tuners that freeze everything else train these
parts, and adapters contain them.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

from posttrain.errors import PosttrainError, Problem
from posttrain.models.load import LoadedModel, LoadOptions, load_model, load_with
from posttrain.models.names import resolve
from posttrain.models.notes import HEAD_KEY, HEADS, Head, HeadNotes, head_modules, notes_in, saved_head
from posttrain.models.tensors import tensors_in
from posttrain.models.vocabulary import padding_of_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["load_any", "load_head_model", "reads_one_way"]


def reads_one_way(config: Any) -> bool:
    """Return whether a model of this configuration reads from left to right, so that no token depends on later ones."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    stated = config.to_dict()
    if stated.get("use_bidirectional_attention") or stated.get("is_causal") is False:
        return False
    masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not stated.get("is_decoder")
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not masked


def load_head_model(
    name: str,
    head: Head,
    labels: Sequence[str] | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
    **options: Unpack[LoadOptions],
) -> LoadedModel:
    """Return a model with this head and its tokenizer, in eval mode. Options as in `load_model`.

    `labels` names the outputs; None takes the labels of a folder that has this head ("answer" needs none). A folder
    with the wanted head and labels is loaded complete. Any other model gets a new head, drawn from `seed`, and `say`
    reports it. `settings` is stored in the configuration; None keeps a folder's own settings. Raise PosttrainError if
    the architecture has no such class, if a folder's tensors are missing, and if labels are needed and there are none.
    """
    there = saved_head(name, offline=options.get("offline", True))
    kept = there if there is not None and there.head == head else None
    if labels is None:
        if kept is None and head != "answer":
            raise PosttrainError(Problem(name, f"has no head for {HEADS[head][1]}, so no labels", "name the labels"))
        labels = kept.labels if kept is not None else ()
    elif kept is not None and set(kept.labels) == set(labels):
        labels = kept.labels  # keep the folder's order
    own = kept.settings if kept is not None else {}
    wanted = HeadNotes(head, tuple(labels), dict(settings if settings is not None else own))
    same = kept is not None and kept.labels == wanted.labels
    wanted = wanted._replace(seed=kept.seed if kept is not None and same else seed)
    if kept is not None and same and (Path(resolve(name)) / "adapter_config.json").is_file():
        _check_adapter(name, kept.modules)
    maker = _Maker(wanted, say, quiet=same)
    loaded = load_with(name, maker.make, **options)
    loaded.model.config.get_text_config().pad_token_id = loaded.tokenizer.pad_token_id
    if (stand_in := padding_of_files(loaded.tokenizer)) is not None:
        why = f"its own, {stand_in.own!r}, has no embedding" if stand_in.own else "it has no padding token"
        say(f"{name}: the tokenizer is saved with {stand_in.token!r} as its padding, which a head needs: {why}")
    return loaded


def load_any(name: str, *, say: Callable[[str], None] = print, **options: Unpack[LoadOptions]) -> LoadedModel:
    """Load a folder with a head with that head, and anything else as a language model. Options as in `load_model`."""
    notes = saved_head(name, offline=options.get("offline", True))
    if notes is None:
        return load_model(name, **options)
    return load_head_model(name, notes.head, say=say, **options)


class _Maker(NamedTuple):
    """A factory for models with the wanted head."""

    wanted: HeadNotes
    say: Callable[[str], None]
    quiet: bool
    """If True, do not report a new head, because its tensors are loaded later from an adapter."""

    def make(
        self, folder: str, config: Any, dtype: Any, source: Mapping[str, Any]
    ) -> tuple[PreTrainedModel, list[str]]:
        """Return the model, and the names of tensors that are missing in the folder."""
        import transformers

        wanted = self.wanted
        has = notes_in(config)
        ending, purpose = HEADS[wanted.head]
        auto = vars(importlib.import_module("transformers.models.auto.modeling_auto"))[f"AutoModel{ending}"]
        if type(config) not in auto._model_mapping and "auto_map" not in config.to_dict():
            lacks = f"transformers {transformers.__version__} has no {config.model_type} model with a head for "
            mend = "train it with `sft` on {prompt, completion} rows, or take another base"
            raise PosttrainError(Problem(folder, f"{lacks}{purpose} (a class ...{ending})", mend))
        if has is not None and has.head == wanted.head and has.labels == wanted.labels:
            model, report = auto.from_pretrained(
                folder, config=config, dtype=dtype, weights_only=True, output_loading_info=True, **source
            )
            _note(model, wanted._replace(modules=has.modules or _own_parts(model)))
            return model, sorted(report["missing_keys"])
        return self._new(folder, config, dtype, source, auto)

    def _new(
        self, folder: str, config: Any, dtype: Any, source: Mapping[str, Any], auto: Any
    ) -> tuple[PreTrainedModel, list[str]]:
        """Return a model with a new head on the folder's backbone, and the names of missing tensors.

        `from_pretrained` of the class with the head is not used. Some of these classes give the backbone another name
        than the language model does (LlamaForQuestionAnswering: `transformer`), and then all its tensors would be
        random."""
        import torch
        import transformers

        wanted = self.wanted
        config.id2label = dict(enumerate(wanted.labels)) if wanted.labels else {0: "start", 1: "end"}
        config.label2id = {label: i for i, label in config.id2label.items()}
        config.problem_type = None
        if wanted.head == "sequence":
            several = "multi_label_classification" if wanted.settings.get("multi_label") else None
            single = "regression" if len(wanted.labels) == 1 else "single_label_classification"
            config.problem_type = several or single
        trust = source["trust_remote_code"]
        with torch.random.fork_rng(devices=[]), _no_load_report():
            torch.manual_seed(wanted.seed)
            model = auto.from_config(config, dtype=dtype, trust_remote_code=trust)
            if wanted.head == "sequence" and len(wanted.labels) == 1:
                _small_scores(model)
            backbone, report = transformers.AutoModel.from_pretrained(
                folder, config=config, dtype=dtype, weights_only=True, output_loading_info=True, **source
            )
        own = next((n for n, child in model.named_children() if type(child) is type(backbone)), None)
        if own is None:
            raise PosttrainError(Problem(folder, f"{type(model).__name__} is not built around its base model"))
        mine = model.get_submodule(own)
        tensors = backbone.state_dict()
        random = [key for key in mine.state_dict() if key not in tensors or key in report["missing_keys"]]
        taken = {k: v for k, v in tensors.items() if k not in random and k in mine.state_dict()}
        mine.load_state_dict(taken, strict=False)
        # an encoder's pooler belongs to its backbone and is often missing in its checkpoint; all else must be there
        new = sorted({key.partition(".")[0] for key in random if key.startswith("pooler.")})
        _note(model, wanted._replace(modules=(*_own_parts(model), *(f"{own}.{part}" for part in new))))
        if not self.quiet:
            names = ", ".join(head_modules(model))
            labels = f": {', '.join(wanted.labels)}" if wanted.labels else ""
            self.say(f"new head for {HEADS[wanted.head][1]} (random, seed {wanted.seed}; {names}){labels}")
        return model, [f"{own}.{key}" for key in random if not key.startswith("pooler.")]


@contextlib.contextmanager
def _no_load_report() -> Iterator[None]:
    """Silence transformers, which would print a table about the unused head of the language model."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _small_scores(model: Any) -> None:
    """Give a single score the variance d / (d + 1) for d inputs of variance 1: Stiennon et al., arXiv:2009.01325."""
    import torch

    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear) and layer.out_features == 1:
            torch.nn.init.normal_(layer.weight, std=(layer.in_features + 1) ** -0.5)


def _note(model: Any, notes: HeadNotes) -> None:
    vars(model.config)[HEAD_KEY] = notes.to_json()


def _own_parts(model: Any) -> tuple[str, ...]:
    """Return the names of the parts of a model with a head that are not its backbone."""
    return tuple(
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and any(True for _ in child.parameters())
    )


def _check_adapter(name: str, modules: Sequence[str]) -> None:
    """Raise PosttrainError if an adapter does not contain the head that its base lacks."""
    path = Path(resolve(name)) / "adapter_model.safetensors"
    if not path.is_file():
        raise PosttrainError(Problem(name, "an adapter with a head must be stored as safetensors", "save it again"))
    keys = tensors_in(path)
    lacking = [module for module in modules if not any(f".{module}." in f".{key}" for key in keys)]
    if lacking:
        cause = f"lacks the head ({', '.join(lacking)}); it would be random"
        raise PosttrainError(Problem(str(path), cause, "take the whole adapter"))
