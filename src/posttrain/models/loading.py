"""Progress of loading weights: a Meter replaces the bar on which transformers counts tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from posttrain.models.meter import MOMENT_S, Meter

__all__ = ["counted", "counting_tensors"]

BAR = "Loading weights"
"""Name of that bar in transformers (core_model_loading.py)."""


@contextmanager
def counting_tensors() -> Iterator[None]:
    """Within this, transformers shows no bars, and the listener (see `meter`) is told how many tensors are loaded."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    before = logging.set_tqdm_hook(_hook)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


def _hook(factory: Callable[..., Any], args: tuple[Any, ...], settings: dict[str, Any]) -> Any:
    return counted(*args) if settings.get("desc") == BAR else factory(*args, **settings)


def counted(tensors: Collection[Any], desc: str = "") -> Iterator[Any]:
    """The tensors of a model one by one, counted by a Meter; desc: taken and not used, as tqdm's name of a bar."""
    with Meter("loading weights", len(tensors), "tensors", after_s=MOMENT_S, kept=None) as meter:
        for tensor in tensors:
            yield tensor
            meter.more(1)
