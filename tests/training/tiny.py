"""What the tests of training share: pico models as LoadedModel, rows of a few tokens, a progress that remembers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from posttrain.data.answers import PairRow
from posttrain.data.chat import Encoded
from posttrain.models.load import LoadedModel, load_model
from posttrain.models.meter import Doing
from posttrain.training.config import TrainConfig
from posttrain.training.progress import RunProgress
from posttrain.tuners.lora import LoraConfig, lora

PicoPath = Callable[[str], Path]


@lru_cache
def _loaded(folder: Path) -> LoadedModel:
    return load_model(str(folder), device="cpu")


def load(pico_path: PicoPath, family: str = "llama") -> LoadedModel:
    """A copy of the family's pico model to do with as one likes; read once, since reading takes 7 times as long."""
    return copy.deepcopy(_loaded(pico_path(family)))


def tuned(model: Any, **options: Any) -> PeftModel:
    """The model with LoRA of rank 4 that already says something."""
    made = lora(model, LoraConfig(rank=4, **options))
    torch.manual_seed(0)
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) * 0.05
    return made


def row(ids: list[int], prompt: int, location: str) -> Encoded:
    """The first `prompt` tokens are read, the others learned."""
    return Encoded(ids, [-100] * prompt + ids[prompt:], location)


def rows(count: int, seed: int = 0, *, name: str = "rows.jsonl") -> list[Encoded]:
    """Random rows of 4 to 20 tokens with 1 to 6 supervised ones: no two steps supervise equally many."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        learned = int(torch.randint(1, 7, (), generator=draw))
        length = learned + int(torch.randint(3, 15, (), generator=draw))
        ids = torch.randint(10, 300, (length,), generator=draw).tolist()
        made.append(row(ids, length - learned, f"{name}:{i + 1}"))
    return made


def config(**settings: Any) -> TrainConfig:
    return TrainConfig.model_validate({"model": "pico", **settings})


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


class Remembers(RunProgress):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.entries: list[Mapping[str, Any]] = []
        self.works: list[Doing] = []

    def doing(self, work: Doing) -> None:
        self.works.append(work)

    def say(self, text: str) -> None:
        self.said.append(text)

    def step(self, entry: Mapping[str, Any]) -> None:
        self.entries.append(entry)


def answered(prompt: int, chosen: list[int], rejected: list[int], location: str = "pairs.jsonl:1") -> PairRow:
    """A prompt of so many tokens, the same in all rows, and two answers to it."""
    asked = list(range(300, 300 + prompt))
    sides = [Encoded([*asked, *answer], [-100] * prompt + answer, location) for answer in (chosen, rejected)]
    return PairRow(sides[0], sides[1], location)
