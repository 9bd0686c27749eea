"""How far the loading of weights is: transformers counts tensors on bars of its own, in whose place a Meter counts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from posttrain.models.meter import MOMENT_S, Meter

__all__ = ["counted", "counting_tensors"]

BAR = "Loading weights"
"""What transformers' bar is called (core_model_loading.py)."""


@contextmanager
def counting_tensors() -> Iterator[None]:
    """While this lasts, transformers shows no bars, and whoever listens hears of the tensors that it loads."""
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
    """The tensors of a model one by one, told of as they are loaded; desc: the bar's name, as tqdm takes it."""
    with Meter("loading weights", len(tensors), "tensors", after_s=MOMENT_S, kept=None) as meter:
        for tensor in tensors:
            yield tensor
            meter.more(1)
