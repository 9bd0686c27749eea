"""A step of decoding in bfloat16 on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from posttrain.inference import flat
from posttrain.inference.respondents import ModelRespondent
from posttrain.inference.step_attention import attend_step
from posttrain.models.load import load_model
from tests.training.tiny import PicoPath


@pytest.mark.parametrize("kind", ["none", "true or false", "added"])
def test_one_query_per_row_is_sdpa(kind: str) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 6, 1, 8), torch.randn(3, 2, 7, 8), torch.randn(3, 2, 7, 8)
    seen = torch.arange(7) >= torch.tensor([0, 2, 5])[:, None]
    mask = None if kind == "none" else seen[:, None, None]
    if kind == "added":
        mask = torch.zeros(3, 1, 1, 7).masked_fill_(~seen[:, None, None], torch.finfo(torch.float32).min)
    plain = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True)
    assert torch.allclose(attend_step(query, key, value, mask, 0.3), plain.transpose(1, 2), atol=1e-6)


def test_steps_go_this_way_in_bfloat16_only(pico_path: PicoPath, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.dtype] = []

    def counted(*given: torch.Tensor) -> torch.Tensor:
        calls.append(given[0].dtype)
        return attend_step(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(flat, "attend_step", counted)
    for dtype in ("float32", "bfloat16"):
        loaded = load_model(str(pico_path("llama")), dtype=dtype)
        said = ModelRespondent(loaded).answers(["one two", "玉山"], max_new_tokens=4)
        assert all(answer.tokens for answer in said)
        assert loaded.model.config._attn_implementation == "sdpa"
    assert calls
    assert set(calls) == {torch.bfloat16}
