from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.errors import TemplateError
from posttrain.models.fingerprint import CONVERSATIONS, check_template, template_fingerprint, weights_fingerprint
from posttrain.models.load import load_model
from posttrain.models.save import save_model, write_notes
from tests.pico import CHATML, MARKED, UNMARKED, tokenizer

PicoPath = Callable[[str], Path]


def test_weights_by_hand(pico_path: PicoPath) -> None:
    model = load_model(str(pico_path("gpt2")), device="cpu").model
    digest = hashlib.sha256()
    for name, p in sorted(model.named_parameters()):
        digest.update(f"{name} float32 {tuple(p.shape)}\n".encode() + p.detach().numpy().tobytes())
    assert weights_fingerprint(model) == digest.hexdigest()[:16]


def test_weights_precision_and_one_bit(pico_path: PicoPath) -> None:
    model = load_model(str(pico_path("llama")), device="cpu", dtype="bfloat16").model
    rounded = weights_fingerprint(model)
    assert weights_fingerprint(model.float()) == rounded
    with torch.no_grad():
        next(iter(model.parameters()))[0, 0] += 2**-10
    assert weights_fingerprint(model) != rounded


def test_template_fingerprint_follows_tokens_not_text() -> None:
    assert template_fingerprint(tokenizer(MARKED)) == template_fingerprint(tokenizer(UNMARKED))
    assert template_fingerprint(tokenizer(MARKED)) != template_fingerprint(tokenizer(CHATML))
    assert template_fingerprint(tokenizer(None)) == "none"
    other = copy.deepcopy(tokenizer(MARKED))
    other.chat_template = MARKED.replace("'<|assistant|>' }}", "'<|assistant|> ' }}")  # the generation prompt only
    assert template_fingerprint(other) != template_fingerprint(tokenizer(MARKED))


def test_template_fingerprint_by_hand() -> None:
    tok = tokenizer(MARKED)
    ids = [
        tok.apply_chat_template(list(c), add_generation_prompt=p, return_dict=False)
        for c in CONVERSATIONS
        for p in (False, True)
    ]
    assert template_fingerprint(tok) == hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


def test_a_template_without_system_turns_has_one_too() -> None:
    tok = copy.deepcopy(tokenizer(MARKED))
    tok.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + MARKED
    assert template_fingerprint(tok) not in ("none", template_fingerprint(tokenizer(MARKED)))


def test_the_date_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import datetime as real

    from transformers.utils import chat_template_utils

    tok = copy.deepcopy(tokenizer(MARKED))
    tok.chat_template = "{{ strftime_now('%d %b %Y') }}" + MARKED

    def at(year: int) -> Any:
        class Frozen(real):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return real(year, 1, 1)

        monkeypatch.setattr(chat_template_utils, "datetime", Frozen)
        text = tok.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
        assert str(year) in text
        return template_fingerprint(tok)

    assert at(2001) == at(2002) != template_fingerprint(tokenizer(MARKED))


def test_check(tmp_path: Path) -> None:
    check_template(tmp_path, tokenizer(MARKED))  # nothing is known: passes
    write_notes(tmp_path, tokenizer(MARKED))
    check_template(tmp_path, tokenizer(UNMARKED))
    with pytest.raises(TemplateError, match=r"posttrain.json: the weights were trained with the chat template \w{16}"):
        check_template(tmp_path, tokenizer(CHATML))
    with pytest.raises(TemplateError, match="the tokenizer's is none"):
        check_template(str(tmp_path), tokenizer(None))
    check_template(tmp_path, tokenizer(CHATML), allow_mismatch=True)
    (tmp_path / "posttrain.json").write_text("{")
    with pytest.raises(TemplateError, match=r"posttrain.json:1: not valid JSON"):
        check_template(tmp_path, tokenizer(MARKED))


def test_saved_beside_the_weights(tmp_path: Path, pico_path: PicoPath) -> None:
    loaded = load_model(str(pico_path("llama")), device="cpu")
    save_model(loaded.model, loaded.tokenizer, tmp_path / "m")
    notes = json.loads((tmp_path / "m/posttrain.json").read_text())
    assert notes["template_fingerprint"] == template_fingerprint(loaded.tokenizer)
    assert set(notes["versions"]) == {"posttrain", "transformers", "torch"}
