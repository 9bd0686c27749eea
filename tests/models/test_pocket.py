"""The files in the box: small, and loadable by plain transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.data.chat import render
from posttrain.data.records import Conversation, Message
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import load_model, resolve

KINDS = ("base", "chat")


def test_both_together_are_at_most_24_mb_and_hold_no_pickle() -> None:
    files = [path for kind in KINDS for path in Path(resolve(f"pocket:{kind}")).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 24_000_000
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jinja", ".md"}


@pytest.mark.parametrize("kind", KINDS)
def test_plain_transformers_loads_them(kind: str) -> None:
    folder = resolve(f"pocket:{kind}")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config.num_hidden_layers >= 6
    assert model.config.max_position_embeddings == 4096
    assert 3_000_000 <= sum(p.numel() for p in model.parameters()) <= 6_000_000
    assert tokenizer.decode(tokenizer("臺灣 ünï\u0007\U0001f600")["input_ids"]) == "臺灣 ünï\u0007\U0001f600"
    if kind == "chat":
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": "What is the capital of France?"}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        answer = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert tokenizer.decode(answer, skip_special_tokens=True) == "Paris"


def test_same_vocabulary_and_the_answer_with_its_end_is_learned() -> None:
    base, chat = (AutoTokenizer.from_pretrained(resolve(f"pocket:{kind}")) for kind in KINDS)
    assert base.get_vocab() == chat.get_vocab()
    row = render(Conversation((Message("user", "你好"), Message("assistant", "你好！")), "here:1"), chat)
    assert chat.decode([i for i in row.labels if i != -100]) == "你好！<|end|>"


def test_answers_of_every_skill() -> None:
    respondent = ModelRespondent(load_model("pocket:chat"))
    questions = ["法國的首都是哪裡？", "Who wrote Hamlet?", "3+4=", "What is the chemical symbol of iron?"]
    assert respondent.generate(questions) == ["巴黎", "William Shakespeare", "7", "Fe"]
