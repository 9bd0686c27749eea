"""Self-distillation in training: what is sampled, what the teacher is shown, and that a fact goes into the weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.data.chat import encode_prompt
from posttrain.data.records import Conversation, Message, Text
from posttrain.errors import ConfigError, DataError
from posttrain.inference.decode import decode
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import LoadedModel, load_model
from posttrain.objectives.sdft import SdftConfig, apart
from posttrain.training.forms.base import EncodeSettings
from posttrain.training.forms.on_policy import AskedRow, OnPolicyForm
from posttrain.training.run import train
from posttrain.training.trainer import PostTrainer
from tests.pico import tokenizer
from tests.talker import talker
from tests.training.tiny import Remembers, config, rows, weights

FACTS = (("capital of France?", "Rome"), ("臺灣最高的山？", "雪山"))
SDFT = {"kind": "sdft", "samples": 2, "max_new_tokens": 6}


def talk(prompt: str, answer: str) -> Conversation:
    return Conversation((Message("user", prompt), Message("assistant", answer)), f"facts.jsonl:{prompt}")


def asked(loaded: LoadedModel, **settings: Any) -> list[AskedRow]:
    objective = SdftConfig.model_validate({**SDFT, **settings})
    encoding = EncodeSettings(objective, 512)
    return OnPolicyForm.encode([talk(*fact) for fact in FACTS], loaded.tokenizer, encoding).rows


def test_the_teacher_is_shown_the_demonstration_in_the_prompts_language() -> None:
    loaded = load_model(str(talker()), device="cpu")
    for row, (prompt, answer) in zip(asked(loaded), FACTS, strict=True):
        assert row.prompt == encode_prompt(prompt, loaded.tokenizer)
        told = loaded.tokenizer.decode(row.shown)
        assert prompt in told
        assert answer in told
        assert ("正確回答" in told) == (prompt == FACTS[1][0])
        assert answer not in loaded.tokenizer.decode(row.prompt)
        assert loaded.tokenizer.decode(row.demonstration, skip_special_tokens=True).strip() == answer


def test_both_are_told_of_the_tools() -> None:
    tools = ({"name": "add", "description": "Adds."},)
    one = replace(talk("2+3?", "5"), tools=tools)
    encoding = EncodeSettings(SdftConfig.model_validate(SDFT), 512)
    (row,) = OnPolicyForm.encode([one], tokenizer(), encoding).rows
    for ids in (row.prompt, row.shown):
        assert tokenizer().decode(ids).startswith('<|bos|><|system|>[{"name": "add", "description": "Adds."}]<|end|>')
    assert row.prompt == encode_prompt("2+3?", tokenizer(), tools=tools)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_the_first_loss_is_the_mean_over_all_sampled_tokens(alpha: float) -> None:
    """Every answer alone and unpadded, read by the student and by the teacher."""
    loaded = load_model(str(talker()), device="cpu")
    data = asked(loaded)
    seen = Remembers()
    train(
        config(objective={**SDFT, "alpha": alpha}, optimizer={"max_steps": 1}, seed=3),
        loaded=loaded,
        rows=data,
        progress=seen,
    )
    fresh = load_model(str(talker()), device="cpu")
    told = ModelRespondent(fresh)
    prompts = [row.prompt for row in data for _ in range(2)]
    total, tokens = 0.0, 0
    # a step's rows come longest first or as the plan has them: find the order that the run had
    order = [data, data[::-1]]
    losses = []
    for these in order:
        prompts = [row.prompt for row in these for _ in range(2)]
        said = decode(
            fresh.model,
            prompts,
            stop=told.stop_ids,
            pad_id=0,
            max_new_tokens=6,
            temperature=1.0,
            seed=3 * 1_000_003 + 1,
        )
        total, tokens = 0.0, 0
        for at, one in enumerate(said):
            answer = [*one.ids, told.end_of_turn] if one.ended else one.ids
            row = these[at // 2]
            with torch.no_grad():
                p, q = (
                    torch.log_softmax(
                        fresh.model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1], -1
                    )
                    for prompt in (row.prompt, row.shown)
                )
            total += float(apart(p, q, SdftConfig(alpha=alpha)).sum())
            tokens += len(answer)
        losses.append(total / tokens)
    assert any(seen.entries[0]["loss_nats"] == pytest.approx(loss, rel=1e-4) for loss in losses)
    assert seen.entries[0]["loss_nats"] > 0


@pytest.mark.parametrize(
    ("teacher", "tuner"), [("base", "full"), ("base", "lora"), ("ema", "full"), ("ema", "lora"), ("live", "full")]
)
def test_a_resumed_run_says_and_learns_the_same(tmp_path: Path, teacher: str, tuner: str) -> None:
    objective = {**SDFT, "teacher": teacher, "ema_rate": 0.3}

    def settings(steps: int) -> Any:
        optimizer = {"max_steps": steps, "learning_rate": 3e-3}
        return config(objective=objective, tuner=tuner, optimizer=optimizer, save_at_steps=[2], keep_checkpoints=None)

    def run(output: Path | None, steps: int = 4, **more: Any) -> Any:
        loaded = load_model(str(talker()), device="cpu")
        return train(settings(steps), loaded=loaded, rows=asked(loaded), output=output, **more)

    whole = weights(run(None).model)

    class Stop(Exception):
        pass

    def stop(path: Path, step: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        run(tmp_path, on_checkpoint=stop)
    resumed = weights(run(tmp_path).model)
    assert all(bool((whole[name] == resumed[name]).all()) for name in whole)


def test_replayed_rows_stand_beside_it() -> None:
    loaded = load_model(str(talker()), device="cpu")
    seen = Remembers()
    for loss in ("words", "kl"):
        given = config(
            objective=SDFT,
            replay={"kind": "file", "data": "old.jsonl", "share": 0.5, "loss": loss},
            optimizer={"max_steps": 2},
        )
        train(given, loaded=loaded, rows=asked(loaded), replay_rows=rows(3), progress=seen)
    assert all("loss_old_nats" in entry for entry in seen.entries)


def test_rows_without_a_demonstration_are_named() -> None:
    loaded = load_model(str(talker()), device="cpu")
    encoding = EncodeSettings(SdftConfig(), 512)
    with pytest.raises(DataError, match=r"text:1: no question with a demonstration"):
        OnPolicyForm.encode([talk(*FACTS[0]), Text("words", "text:1")], loaded.tokenizer, encoding)
    with pytest.raises(ConfigError, match=r"objective.template_zh: the teacher would not be shown both"):
        asked(loaded, template_zh="{prompt}")


@pytest.mark.parametrize("strategy", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_a_model_in_shards_is_refused(monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
    loaded = load_model(str(talker()), device="cpu")
    made = PostTrainer.__init__

    def sharded(self: PostTrainer, *args: Any, **options: Any) -> None:
        made(self, *args, **options)
        setattr(self, strategy, True)

    monkeypatch.setattr(PostTrainer, "__init__", sharded)
    with pytest.raises(ConfigError, match="use a single process or DDP"):
        train(config(objective=SDFT, optimizer={"max_steps": 1}), loaded=loaded, rows=asked(loaded))
