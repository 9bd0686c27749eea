"""What is vLLM's alone. What every respondent does is in `test_contract.py`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain.errors import MissingError
from posttrain.inference.kinds.vllm import VllmConfig, VllmRespondent
from posttrain.inference.opening import open_respondent
from posttrain.inference.protocol import Plain
from tests.inference.kinds.stand_ins import as_vllm


def test_long_texts_leave_room_for_a_token(pico_path: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in refuses texts that leave none."""
    monkeypatch.setitem(sys.modules, "vllm", as_vllm())
    there = VllmRespondent(VllmConfig(model=str(pico_path("llama")), max_length=32))
    assert there.rolling(["hello " * 40])[0].tokens == len(there.tokenizer.encode("hello " * 40))
    assert there.logprobs([(Plain("x" * 600), "y")])[0].tokens == 1
    assert there.usage.truncated == 1


def test_without_vllm_the_mend_is_named(pico_path: Callable[[str], Path]) -> None:
    with pytest.raises(MissingError, match=r"pip install 'posttrain\[vllm\]'"):
        open_respondent(f"vllm:{pico_path('llama')}")
