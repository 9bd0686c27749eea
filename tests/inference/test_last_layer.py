"""The last feed-forward part sees the asked places only, and nothing that anyone reads is different."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from posttrain.inference.attention import forward
from posttrain.inference.last_layer import feeding_only, last_feed_forward
from posttrain.inference.support import support
from posttrain.models.load import load_model
from tests.pico import FAMILIES, pico


@pytest.mark.parametrize("family", FAMILIES)
def test_asked_places_are_as_in_a_whole_pass(family: str, tmp_path: Path) -> None:
    model: Any = load_model(str(pico(family, tmp_path)), device="cpu").model
    assert support(model, 64).brief
    ids = torch.arange(40).reshape(2, 20) + 10
    index = torch.tensor([3, 19, 25])
    seen: list[int] = []
    part = last_feed_forward(model)
    assert part is not None
    handle = part.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    with torch.inference_mode():
        whole = model(input_ids=ids).logits.flatten(0, 1)[index]
        brief = forward(model, ids, index, brief=True)
    handle.remove()
    assert (brief - whole).abs().max() <= 1e-5
    assert seen == [20, 3]  # the hook of the test runs first and sees the part's own input


def test_a_part_with_two_inputs_is_left_alone() -> None:
    import transformers

    config = transformers.BloomConfig(vocab_size=384, hidden_size=32, n_layer=2, n_head=4)
    torch.manual_seed(0)
    model = transformers.BloomForCausalLM(config).eval()
    found = support(model, 64, lambda _: None)
    assert not found.brief
    assert found.kind == "prefix"


class Odd(nn.Module):
    """Layers without a feed-forward part, or with one that gives a pair."""

    def __init__(self, part: nn.Module | None) -> None:
        super().__init__()
        layer = nn.ModuleDict({"mlp": part} if part is not None else {})
        self.layers = nn.ModuleList([layer])


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return x, None


def test_models_without_such_a_part() -> None:
    assert last_feed_forward(Odd(None)) is None
    with feeding_only(Odd(None), torch.tensor([0]), 4):
        pass


def test_a_part_that_gives_a_pair_is_refused() -> None:
    part = Pair()
    with (
        feeding_only(Odd(part), torch.tensor([0]), 4),
        pytest.raises(ValueError, match="gives more than hidden states"),
    ):
        part(torch.zeros(1, 4, 8))
    assert part(torch.zeros(1, 4, 8))[1] is None  # the hooks are gone
