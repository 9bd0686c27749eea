from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from posttrain.training.config import TrainConfig
from posttrain.training.rows import longest_row


@pytest.mark.parametrize(("asked", "longest"), [(1024, 64), (32, 32)])
def test_the_longest_row_is_asked_of_the_text_part(asked: int, longest: int) -> None:
    """Gemma 3's configuration of a model that also sees has its positions one level down."""
    from transformers import Gemma3Config

    model: Any = nn.Module()
    model.config = Gemma3Config(text_config={"max_position_embeddings": 64})
    assert longest_row(TrainConfig(model="x", max_length=asked), model) == longest
