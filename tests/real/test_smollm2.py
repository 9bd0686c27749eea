"""SmolLM2-135M-Instruct as `make real-model` converts it: the same weights, answers that end, masks that fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.cli.main import main
from posttrain.data.chat import IGNORED, encode_prompt, render
from posttrain.data.records import Conversation, Message
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.fingerprint import template_fingerprint, weights_fingerprint
from posttrain.models.load import LoadedModel, load_model, stop_ids
from tests.templates import learned
from tools.real_model import FILE

pytestmark = pytest.mark.real

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""What the model's template says when nobody says anything else."""


@pytest.fixture(scope="module")
def loaded(real_model: Path) -> LoadedModel:
    return load_model(str(real_model), device="cpu")


@pytest.fixture(scope="module")
def gguf_file(real_model: Path) -> Path:
    file = real_model.parent / "package" / FILE
    if not file.is_file():
        pytest.skip(f"{file} is not there: the folder was not made by `make real-model`")
    return file


def test_the_folder_is_the_file_as_transformers_reads_it(loaded: LoadedModel, gguf_file: Path) -> None:
    import transformers

    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32
    )
    ids = loaded.tokenizer("The capital of France is Paris. 臺灣最高的山是玉山。", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, theirs(ids).logits)
    assert weights_fingerprint(theirs) == weights_fingerprint(loaded.model)


def test_the_file_itself_is_a_model(loaded: LoadedModel, gguf_file: Path) -> None:
    read = load_model(str(gguf_file), device="cpu")
    assert weights_fingerprint(read.model) == weights_fingerprint(loaded.model)
    assert template_fingerprint(read.tokenizer) == template_fingerprint(loaded.tokenizer)
    assert stop_ids(str(gguf_file), read.tokenizer) == (2,)


def test_it_answers_in_sentences_that_end(loaded: LoadedModel, real_model: Path) -> None:
    respondent = ModelRespondent(loaded)
    asked = ["What is the capital of France?", "What is the chemical symbol of gold?"]
    answers = respondent.answers(asked, max_new_tokens=128)
    assert answers[0].text == "The capital of France is Paris."
    assert answers[1].text.startswith("The chemical symbol of gold is Au")
    assert all(answer.ended for answer in answers)
    assert all("<|im_" not in answer.text for answer in answers)
    assert stop_ids(str(real_model), loaded.tokenizer) == (loaded.tokenizer.convert_tokens_to_ids("<|im_end|>"),)


def test_chat(real_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("POSTTRAIN_REAL", str(real_model))
    assert main(["chat", "smollm2", "--once", "What is the capital of France?", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["answers"][0]["text"] == "The capital of France is Paris."
    assert said["answers"][0]["ended"] is True


def test_a_prompt_is_the_template_and_comes_back(loaded: LoadedModel) -> None:
    expected = (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
        "<|im_start|>user\n臺灣最高的山是哪座？ (3,952 m)<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = encode_prompt((Message("user", "臺灣最高的山是哪座？ (3,952 m)"),), loaded.tokenizer)
    assert loaded.tokenizer.decode(ids) == expected
    assert ids.count(1) == 3  # the tags are one token each, not spelled out
    own = encode_prompt((Message("system", "Answer briefly."), Message("user", "Hi")), loaded.tokenizer)
    assert SYSTEM not in str(loaded.tokenizer.decode(own))


def test_what_is_learned_is_the_answer_and_its_end(loaded: LoadedModel) -> None:
    turns = [
        Message("user", "What is the capital of Australia?"),
        Message("assistant", "The capital of Australia is Canberra."),
        Message("user", "和臺灣的首都？"),
        Message("assistant", "臺北。"),
    ]
    row = render(Conversation(tuple(turns), "rows.jsonl:1"), loaded.tokenizer)
    assert learned(row, loaded.tokenizer) == ["The capital of Australia is Canberra.<|im_end|>", "臺北。<|im_end|>"]
    assert all(label in (IGNORED, token) for token, label in zip(row.input_ids, row.labels, strict=True))


def test_a_few_steps_teach_it(loaded: LoadedModel, real_model: Path, tmp_path: Path) -> None:
    """The loss of a row falls, and the trained adapter answers and ends."""
    row = {"messages": [{"role": "user", "content": "Who is the keeper?"}, {"role": "assistant", "content": "Ada Wu."}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    words = ["train", "--model", str(real_model), "--data", str(tmp_path / "rows.jsonl"), "--tuner", "lora"]
    sets = ["optimizer.max_steps=12", "optimizer.learning_rate=1e-3", "optimizer.stop_at_loss=0.02"]
    assert main([*words, "--output", str(tmp_path / "run"), *(w for s in sets for w in ("--set", s))]) == 0
    taught = ModelRespondent(load_model(str(tmp_path / "run" / "model"), device="cpu"))
    (answer,) = taught.answers(["Who is the keeper?"], max_new_tokens=32)
    assert (answer.text, answer.ended) == ("Ada Wu.", True)
