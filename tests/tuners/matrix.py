"""What the matrix of tuners needs: settings that learn in three steps, and where a tuner does not apply."""

from __future__ import annotations

from typing import Any, NamedTuple

from posttrain import registry


class Tried(NamedTuple):
    """How a tuner is tried. settings: besides its kind; rate: learning rate at which three steps show; moved: a part of
    the names of everything that moves, "" for any; adapter: saved as an adapter folder.
    """

    settings: dict[str, Any]
    rate: float
    moved: str
    adapter: bool = True


TRIED: dict[str, Tried] = {
    "full": Tried({}, 1e-2, "", adapter=False),
    "freeze": Tried({"top": 1}, 1e-2, ".1.", adapter=False),
    "bitfit": Tried({"norms": True}, 1e-1, "", adapter=False),
    "lora": Tried({"rank": 4}, 2e-2, "lora_"),
    "ia3": Tried({}, 3e-1, "ia3_l"),
    "prompt_tuning": Tried({"tokens": 4}, 1e-1, "prompt_encoder"),
    "p_tuning": Tried({"tokens": 4}, 1e-1, "prompt_encoder"),
    "prefix_tuning": Tried({"tokens": 4}, 1e-1, "prompt_encoder"),
    "ptuning_v2": Tried({"tokens": 4, "dropout": 0.0}, 1e-1, "posttrain_added"),
    "adapter": Tried({"size": 4}, 1e-1, "posttrain_added"),
    "loreft": Tried({"rank": 4, "prefix": 1, "suffix": 2}, 1e-1, "posttrain_added"),
    "diff_pruning": Tried({"share": 0.05}, 1e-1, "posttrain_added"),
    "fishmask": Tried({"share": 0.02}, 1e-1, "posttrain_added"),
}

VARIANTS: dict[str, tuple[str, Tried]] = {
    "lora dora": ("lora", Tried({"rank": 4, "dora": True}, 2e-2, "lora_")),
    "lora pissa": ("lora", Tried({"rank": 4, "init": "pissa"}, 1e-2, "lora_")),
    "lora pissa rs": ("lora", Tried({"rank": 4, "init": "pissa_niter_4", "use_rslora": True}, 1e-2, "lora_")),
    "lora top": ("lora", Tried({"rank": 4, "layers": [-1], "dropout": 0.1}, 2e-2, "lora_")),
    "p_tuning lstm": ("p_tuning", Tried({"tokens": 4, "encoder": "lstm"}, 1e-1, "prompt_encoder")),
    "prefix_tuning projected": ("prefix_tuning", Tried({"tokens": 4, "projection": True}, 1e-1, "prompt_encoder")),
}
"""Settings that change what is saved; tried on one family."""


def tried(kind: str) -> Tried:
    """How a kind is tried; one that nobody has put in the table with its defaults."""
    return TRIED.get(kind, Tried({}, 1e-2, ""))


KINDS = registry.kinds("tuner")
