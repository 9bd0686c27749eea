"""Make a respondent from what the user wrote: a model's name, `api:MODEL@URL`, `vllm:MODEL`, or a YAML file.

The file states `kind:` (see `posttrain list respondents`) and the settings of that kind::

    kind: api
    model: qwen3-8b
    base_url: http://localhost:8000/v1
    requests_per_minute: 120
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from posttrain import registry
from posttrain.config.load import check, load_yaml, read_yaml
from posttrain.errors import ConfigError, Problem

if TYPE_CHECKING:
    from posttrain.inference.encoding import PromptReader
    from posttrain.inference.protocol import Respondent
    from posttrain.models.load import LoadOptions, Source

__all__ = ["is_remote", "open_respondent", "read_prompts"]


def is_remote(name: str) -> bool:
    """Return whether a name is not one of a model that is loaded here, so that its weights cannot be read."""
    return name.startswith(("api:", "vllm:")) or Path(name).suffix in (".yaml", ".yml")


def open_respondent(name: str, **options: Unpack[LoadOptions]) -> Respondent:
    """Return the respondent with this name. `options` are those of `load_model`, for models that are loaded here. Raise
    ConfigError for a wrong YAML file, for a name without a model, and for a dtype of a model that is not loaded here.
    """
    if not is_remote(name):
        from posttrain.inference.respondents import ModelRespondent
        from posttrain.models.load import load_model

        return ModelRespondent(load_model(name, **options))
    if options.get("dtype", "auto") != "auto":
        mend = "leave --precision out, or set it there"
        raise ConfigError(Problem("--precision", f"{name} is not loaded here", mend))
    if Path(name).suffix in (".yaml", ".yml"):
        kind = read_yaml(Path(name)).get("kind")
        if kind is None:
            known = ", ".join(registry.kinds("respondent"))
            raise ConfigError(Problem(name, "the file does not say what kind of respondent it is", f"kind: {known}"))
        entry = registry.load("respondent", str(kind), name)
        return entry.function(load_yaml(name, entry.config))
    kind, _, rest = name.partition(":")
    model, at, url = rest.partition("@") if kind == "api" else (rest, "", "")
    if not model:
        raise ConfigError(Problem(name, "no model is named", "api:MODEL@http://localhost:8000/v1, or vllm:FOLDER"))
    entry = registry.load("respondent", kind, name)
    settings = {"kind": kind, "model": model, **({"base_url": url} if at else {})}
    return entry.function(check(settings, entry.config, name))


def read_prompts(name: str, **how: Unpack[Source]) -> PromptReader:
    """Return an object that checks prompts for a model. It is made from the model's files without the weights."""
    from posttrain.inference.decode import positions_in_config
    from posttrain.inference.encoding import PromptReader
    from posttrain.models.load import adapter_base, base_of, config_of, load_tokenizer, resolve
    from posttrain.models.vocabulary import rows_in_config

    tokenizer = load_tokenizer(name, **how)
    config = config_of(base_of(name), **how)
    rows = rows_in_config(config)
    if rows is not None and adapter_base(Path(resolve(name))) is not None:
        rows = max(rows, len(tokenizer))  # an adapter may have its own embeddings
    return PromptReader(tokenizer, rows, positions_in_config(config))
