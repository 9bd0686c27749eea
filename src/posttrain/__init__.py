"""posttrain: change what a language model says after its release, and prove what the change did.

    import posttrain as pt

    base = pt.load("pocket:chat")
    new = pt.train(base, "rows.jsonl", tuner="lora", max_steps=40)
    result = pt.exam(new, before=base, change="tallest.yaml")
    result.table(); result.plot(); result.to_pandas()
    pt.study("superlative.yaml").run().report()

Large libraries such as torch are imported only when one of these names is used.
"""  # fmt: skip

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posttrain.library.edits import EditedModel, edit
    from posttrain.library.merges import merge
    from posttrain.library.models import Chat, Model, chat, load
    from posttrain.library.results import Examination
    from posttrain.library.tracing import Traced, trace
    from posttrain.library.verbs import StudyFile, compare, exam, study, train

__version__ = "0.1.0"

__all__ = [
    "Chat",
    "EditedModel",
    "Examination",
    "Model",
    "StudyFile",
    "Traced",
    "chat",
    "compare",
    "edit",
    "exam",
    "load",
    "merge",
    "study",
    "trace",
    "train",
]

_PLACES = {
    "edits": ("EditedModel", "edit"),
    "merges": ("merge",),
    "models": ("Chat", "Model", "chat", "load"),
    "results": ("Examination",),
    "tracing": ("Traced", "trace"),
    "verbs": ("StudyFile", "compare", "exam", "study", "train"),
}


def __getattr__(name: str) -> Any:
    """Import a name of the library when it is used for the first time. Raise AttributeError for an unknown name."""
    from importlib import import_module

    for module, names in _PLACES.items():
        if name in names:
            return getattr(import_module(f"posttrain.library.{module}"), name)
    raise AttributeError(f"module 'posttrain' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
