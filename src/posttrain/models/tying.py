"""Matrices that two modules share: most often the embedding's, which is also the output head's in small models."""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

__all__ = ["is_tied", "set_tied", "shared_parameters", "untie"]


def _touched(core: nn.Module) -> set[nn.Module]:
    """The modules that an adapter has wrapped, and the modules inside these."""
    wrappers = [m for m in core.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    return {inner for wrapper in wrappers for inner in wrapper.modules()}


def shared_parameters(core: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """For each parameter that several modules own: the modules, and its name in each."""
    owners: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in core.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(parameter, []).append((module, name))
    return [each for each in owners.values() if len(each) > 1]


def untie(core: nn.Module) -> None:
    """Copy each shared parameter that an adapter touches, so that every module owns a copy."""
    touched = _touched(core)
    for owners in shared_parameters(core):
        if any(module in touched for module, _ in owners):
            for module, name in owners[1:]:
                own = module._parameters[name]
                assert own is not None
                module._parameters[name] = nn.Parameter(own.detach().clone(), requires_grad=own.requires_grad)


def is_tied(core: Any) -> bool:
    """Whether the configuration says that the output head shares the embedding's matrix."""
    return bool(core.config.get_text_config().tie_word_embeddings)


def set_tied(core: Any, tied: bool) -> None:
    """Say in the configuration whether the output head shares the embedding's matrix."""
    core.config.tie_word_embeddings = tied
    core.config.get_text_config().tie_word_embeddings = tied
