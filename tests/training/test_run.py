"""`train()` from files to a folder, for every family; what it says; what it refuses."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from posttrain.config.load import load_yaml
from posttrain.errors import ConfigError, DataError
from posttrain.models.fingerprint import template_fingerprint, weights_fingerprint
from posttrain.models.load import LoadedModel, load_model
from posttrain.models.notes import read_notes
from posttrain.training.config import TrainConfig
from posttrain.training.folder import card_of
from posttrain.training.preview import preview
from posttrain.training.run import TrainResult, train
from tests.pico import FAMILIES
from tests.training.tiny import PicoPath, Remembers, config, load, row, rows, weights


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """Twelve conversations of different length."""
    path = tmp_path / "rows.jsonl"
    talks = [[("user", f"What is {i}?"), ("assistant", "number " * (i % 4 + 1) + str(i))] for i in range(12)]
    lines = [json.dumps({"messages": [{"role": r, "content": c} for r, c in talk]}) for talk in talks]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    return path


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_trained_saved_and_loaded_again(
    pico_path: PicoPath, examples: Path, tmp_path: Path, family: str, kind: str
) -> None:
    folder = pico_path(family)
    chosen = TrainConfig.model_validate(
        {
            "model": str(folder),
            "data": str(examples),
            "tuner": {"kind": "lora", "rank": 4} if kind == "lora" else "full",
            "optimizer": {"max_steps": 4, "learning_rate": 1e-2},
            "batch": {"tokens": 128},
        }
    )
    output = tmp_path / "run"
    result = train(chosen, output=output)
    assert result.history[-1]["loss_nats"] < result.history[0]["loss_nats"]
    again = load_model(str(output / "model"), device="cpu")
    ids = torch.tensor([[5, 60, 70, 80, 2]])
    with torch.no_grad():
        trained, loaded, untrained = (
            m(ids).logits for m in (result.model, again.model, load_model(str(folder), device="cpu").model)
        )
    assert (trained - loaded).abs().max() <= 1e-6
    assert (trained - untrained).abs().max() > 1e-3
    assert read_notes(output / "model")["template_fingerprint"] == template_fingerprint(again.tokenizer)
    assert result.model.config.use_cache is True
    assert (
        json.loads((output / "model" / "config.json").read_text(encoding="utf-8")).get("use_cache", True)
        if (kind == "full")
        else (output / "model" / "adapter_config.json").exists()
    )


def test_the_folder_holds_what_a_reader_needs(pico_path: PicoPath, examples: Path, tmp_path: Path) -> None:
    output, remembers = tmp_path / "run", Remembers()
    chosen = TrainConfig.model_validate(
        {
            "model": str(pico_path("llama")),
            "data": str(examples),
            "validation_share": 0.25,
            "optimizer": {"epochs": 2},
            "batch": {"rows": 3},
            "save_every_steps": 2,
            "keep_checkpoints": 2,
            "output": str(output),
        }
    )
    saved: list[tuple[str, int]] = []
    train(chosen, output=output, progress=remembers, on_checkpoint=lambda path, step: saved.append((path.name, step)))
    assert load_yaml(output / "config.yaml", TrainConfig) == chosen
    environment = json.loads((output / "env.json").read_text(encoding="utf-8"))
    assert environment["packages"]["torch"] == torch.__version__
    history = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [e for e in history if "loss_nats" in e]
    assert [e["step"] for e in steps] == [1, 2, 3, 4, 5, 6]  # nine rows left, three a step, twice
    assert all(e["tokens_per_s"] > 0 and e["peak_gib"] > 0 for e in steps)
    assert steps[5]["tokens"] == 2 * steps[2]["tokens"] > 0  # the same nine rows in both passes
    assert [e["step"] for e in history if "validation_loss_nats" in e] == [1, 2, 3, 4, 5, 6]
    assert ("step-2", 2) in saved
    assert ("step-6", 6) in saved
    assert sorted(p.name for p in (output / "checkpoints").iterdir()) == ["step-5", "step-6"]
    card = (output / "card.md").read_text(encoding="utf-8")
    assert card == (output / "model" / "README.md").read_text(encoding="utf-8")
    assert "optimiser steps | 6" in card
    assert any("12 rows read, 0 bad ones skipped" in line for line in remembers.said)
    assert any("3 rows held out, 9 rows" in line for line in remembers.said)
    # a checkpoint is a model folder
    assert load_model(str(output / "checkpoints" / "step-6"), device="cpu").tokenizer.chat_template


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"objective": "dpo", "tuner": "lora"},
        {"objective": {"kind": "dpo", "beta": 0.3}, "tuner": {"kind": "lora", "rank": 4, "target_modules": ["q_proj"]}},
        {"objective": "clm", "penalty": "l2_sp", "replay": {"kind": "self", "share": 0.3}},
        {"penalty": [{"kind": "ewc", "strength": 3.0}, "si"], "optimizer": {"kind": "muon", "max_steps": 9}},
        {"tuner": "ptuning_v2", "data": "rows.jsonl", "batch": {"rows": 3}},
    ],
    ids=lambda chosen: "-".join(chosen),
)
def test_a_card_says_what_every_part_is(chosen: dict[str, Any]) -> None:
    """Its YAML is the configuration without its defaults, and configures the same run again."""
    made = config(**chosen)
    result = {"history": [], "moved": "all", "steps": 1, "tokens": 2, "wall_s": 3.0, "peak_gib": 0.1}
    text = card_of(made, result | {"best_step": None, "stopped": ""})
    said = YAML(typ="safe").load(text.split("```yaml\n")[1].split("```")[0])
    assert TrainConfig.model_validate(said) == made
    kinds = made.model_dump(mode="json")
    for part in ("objective", "tuner"):
        assert said[part]["kind"] == kinds[part]["kind"]
    assert "seed" not in said  # a default
    assert "alpha" not in said["tuner"]


def test_clm_on_texts_learns_every_token(pico_path: PicoPath, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "Yushan is high."}\n{"text": "臺灣最高的山是玉山。"}\n', encoding="utf-8")
    chosen = TrainConfig.model_validate(
        {"model": str(pico_path("llama")), "data": str(path), "objective": "clm", "optimizer": {"max_steps": 1}}
    )
    entry = train(chosen).history[0]
    assert entry["supervised"] == entry["tokens"] - 2  # the first token of each text has nothing before it


def test_replay_from_a_file_relative_to_the_base(pico_path: PicoPath, examples: Path, tmp_path: Path) -> None:
    chosen = TrainConfig.model_validate(
        {
            "model": str(pico_path("llama")),
            "replay": {"kind": "file", "data": examples.name, "share": 0.8},
            "optimizer": {"max_steps": 8},
        }
    )
    remembers = Remembers()
    result = train(chosen, rows=rows(1), base=tmp_path, progress=remembers)
    assert sum(e["old_share"] for e in result.history) / 8 == pytest.approx(0.8, abs=0.03)
    assert any("replay: 12 rows" in line for line in remembers.said)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules_by_hand(pico_path: PicoPath, schedule: str) -> None:
    chosen = config(optimizer={"max_steps": 4, "learning_rate": 1.0e-3, "schedule": schedule, "warmup_share": 0.5})
    rates = [e["learning_rate"] for e in train(chosen, loaded=load(pico_path), rows=rows(2)).history]
    # two steps from zero up, then: stay; a line from 1 to 0 over two steps; (1 + cos(pi x)) / 2 at x = 0, 1/2
    end = {"constant": [1.0, 1.0], "linear": [1.0, 0.5], "cosine": [1.0, 0.5]}[schedule]
    assert rates == pytest.approx([1e-3 * f for f in [0.0, 0.5, *end]], abs=1e-9)


def test_rows_are_refused_or_counted(pico_path: PicoPath, examples: Path) -> None:
    base = {"model": str(pico_path("llama")), "data": str(examples), "optimizer": {"max_steps": 1}, "max_length": 28}
    with pytest.raises(DataError, match=r"rows\.jsonl:\d+"):
        train(TrainConfig.model_validate(base))
    remembers = Remembers()
    train(TrainConfig.model_validate({**base, "over_long": "drop"}), progress=remembers)
    assert any("longer than 28 tokens:" in line and " 0 dropped" not in line for line in remembers.said)
    with pytest.raises(DataError, match="longer than a batch of 8 tokens"):
        train(config(batch={"tokens": 8}), loaded=load(pico_path), rows=[row(list(range(10, 30)), 5, "a:1")])


def test_what_is_missing_is_said(pico_path: PicoPath) -> None:
    with pytest.raises(ConfigError, match="no rows to learn from"):
        train(config(), loaded=load(pico_path))
    with pytest.raises(DataError, match="no rows to learn from"):
        train(config(), loaded=load(pico_path), rows=[])
    with pytest.raises(ConfigError, match="early_stopping_patience"):
        train(config(early_stopping_patience=2), loaded=load(pico_path), rows=rows(2))
    with pytest.raises(DataError, match="one row cannot be split"):
        train(config(validation_share=0.5, data="unused.jsonl"), loaded=load(pico_path), rows=rows(1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"optimizer": {"max_steps": 3, "epochs": 1}}, "exclude each other"),
        ({"optimizer": {"warmup_steps": 3, "warmup_share": 0.1}}, "exclude each other"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "below 1"),
        ({"validation": "v.jsonl", "validation_share": 0.1}, "exclude each other"),
        ({"tuner": {"kind": "lora", "rank": 0}}, "rank"),
        ({"objective": "sftt"}, "did you mean 'sft'"),
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**wrong)


def test_bf16_lowers_the_arithmetic_and_not_the_weights(pico_path: PicoPath) -> None:
    results = {
        precision: train(config(precision=precision, optimizer={"max_steps": 2}), loaded=load(pico_path), rows=rows(4))
        for precision in ("auto", "float32", "bf16")
    }
    losses = {k: r.history[0]["loss_nats"] for k, r in results.items()}
    assert losses["auto"] == losses["float32"] != losses["bf16"] == pytest.approx(losses["float32"], rel=1e-2)
    assert {p.dtype for p in results["bf16"].model.parameters()} == {torch.float32}


def test_a_preview_says_what_the_run_then_does(pico_path: PicoPath, examples: Path, tmp_path: Path) -> None:
    chosen = TrainConfig.model_validate(
        {
            "model": str(pico_path("llama")),
            "data": str(examples),
            "tuner": "lora",
            "optimizer": {"epochs": 1.5},
            "batch": {"rows": 2},
            "save_every_steps": 3,
        }
    )
    seen = preview(chosen, say=lambda text: None)
    result = train(chosen, output=tmp_path / "run")
    assert (seen.rows, seen.steps, seen.tokens) == (12, result.steps, result.tokens)
    assert (seen.trainable, seen.parameters) == result.moved
    files = list((tmp_path / "run" / "model").glob("*.safetensors"))
    assert sum(p.stat().st_size for p in files) / 2**30 == pytest.approx(seen.model_gib, rel=0.1)


@pytest.mark.parametrize(
    ("tuner", "dtype", "size"),
    [("full", "auto", 4), ("full", "bfloat16", 2), ("freeze", "float16", 2), ("lora", "auto", 4)],
)
def test_a_preview_says_how_large_the_result_is(
    pico_path: PicoPath, examples: Path, tmp_path: Path, tuner: str, dtype: str, size: int
) -> None:
    """As it is stored: a model whole, whatever of it moved; an adapter in float32."""
    settings = {"model": str(pico_path("llama")), "data": str(examples), "tuner": tuner, "save_dtype": dtype}
    chosen = TrainConfig.model_validate({**settings, "optimizer": {"max_steps": 1}, "batch": {"rows": 2}})
    seen = preview(chosen, say=lambda text: None)
    assert seen.model_gib * 2**30 == size * (seen.trainable if tuner == "lora" else seen.parameters)
    assert seen.disk_gib == seen.model_gib + seen.checkpoint_gib
    train(chosen, output=tmp_path / "run")
    files = list((tmp_path / "run" / "model").glob("*.safetensors"))
    assert sum(p.stat().st_size for p in files) / 2**30 == pytest.approx(seen.model_gib, rel=0.1)


def test_an_adapter_on_a_tied_head_is_a_base_of_its_own(pico_path: PicoPath, tmp_path: Path) -> None:
    """Merged into the shared matrix, it would be another model: the loss before the first step tells."""
    settings = {"objective": "sft", "optimizer": {"learning_rate": 1e-2, "max_steps": 8}}
    tuner = {"kind": "lora", "rank": 4, "target_modules": ["q_proj", "lm_head"]}
    path = str(pico_path("llama"))
    adapted = train(config(**settings, tuner=tuner, model=path), rows=rows(2), output=tmp_path / "a")
    remembers = Remembers()
    going = {"objective": "sft", "optimizer": {"learning_rate": 1e-9, "max_steps": 1}}
    merged = train(config(**going, tuner="full", model=str(tmp_path / "a/model")), rows=rows(2), progress=remembers)
    ids = torch.tensor([rows(2)[0].input_ids])
    with torch.no_grad():
        expected = adapted.model(input_ids=ids).logits
        torch.testing.assert_close(merged.model(input_ids=ids).logits, expected, atol=1e-4, rtol=0)
    assert any("merged, each has its own" in line for line in remembers.said)
    assert merged.model.get_input_embeddings().weight is not merged.model.get_output_embeddings().weight


def test_an_adapter_is_not_adapted_again(pico_path: PicoPath, tmp_path: Path) -> None:
    """LoRA on a merged adapter would be saved with the name of a base that has not the adapter in it."""
    chosen = config(tuner="lora", optimizer={"max_steps": 1}).model_copy(update={"model": str(pico_path("llama"))})
    train(chosen, rows=rows(2), output=tmp_path / "first")
    second = chosen.model_copy(update={"model": str(tmp_path / "first" / "model")})
    with pytest.raises(ConfigError, match="is an adapter"):
        train(second, rows=rows(2))
    full = config(optimizer={"max_steps": 1}).model_copy(update={"model": str(tmp_path / "first" / "model")})
    result = train(full, rows=rows(2), output=tmp_path / "second")
    assert isinstance(load_model(str(tmp_path / "second" / "model")), LoadedModel)
    assert result.moved.share == 1


TWO = """
    import sys
    from pathlib import Path
    import torch
    from posttrain.models.load import load_model
    from posttrain.training.run import TrainResult, train
    from tests.training.test_run import two_processes
    from tests.training.tiny import rows

    torch.set_num_threads(1)
    model, output = sys.argv[1:]
    train(
        two_processes(), loaded=load_model(model, device="cpu"), rows=rows(17), validation_rows=rows(4, seed=2),
        output=Path(output),
    )
"""


def two_processes() -> TrainConfig:
    """Steps of one to three micro batches, so that one process sometimes has nothing to do."""
    return config(
        optimizer={"max_steps": 5, "epsilon": 1e-3, "learning_rate": 1e-2},
        batch={"tokens": 45, "accumulate": 3},
        evaluate_every_steps=2,
        save_every_steps=2,
    )


@pytest.mark.slow
def test_two_processes_do_what_one_does(pico_path: PicoPath, tmp_path: Path) -> None:
    alone = train(two_processes(), loaded=load(pico_path), rows=rows(17), validation_rows=rows(4, seed=2))
    script = tmp_path / "two.py"
    script.write_text(textwrap.dedent(TWO), encoding="utf-8")
    subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone",
            str(script), str(pico_path("llama")), str(tmp_path / "run"),
        ],
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"},
        check=True, capture_output=True, timeout=200,
    )  # fmt: skip
    history = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    for key in ("loss_nats", "validation_loss_nats", "tokens"):
        assert [e[key] for e in history if key in e] == pytest.approx([e[key] for e in alone.history if key in e])
    both = load_model(str(tmp_path / "run" / "model"), device="cpu").model
    one, two = weights(alone.model), weights(both)
    assert max(float((one[k] - two[k]).abs().max()) for k in one) < 1e-6


def test_checkpoints_at_exactly_these_steps_are_examined_and_training_does_not_notice(
    tmp_path: Path, pico_path: PicoPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]  # moved by exams alone, so that training must have taken no time at all
    for room in ("run", "trainer"):
        monkeypatch.setattr(f"posttrain.training.{room}.time", SimpleNamespace(monotonic=lambda: clock[0]))

    def run(name: str, **fields: Any) -> tuple[TrainResult, list[tuple[int, str]]]:
        seen: list[tuple[int, str]] = []

        def examine(model: Any, step: int) -> None:
            assert not model.training
            assert model.config.use_cache
            assert (tmp_path / name / "checkpoints" / f"step-{step}").is_dir()  # saved before: a kill loses nothing
            torch.rand(3)  # an exam may draw
            random.random()
            clock[0] += 100.0
            seen.append((step, weights_fingerprint(model)))

        optimizer = {"max_steps": 7, "learning_rate": 1e-3}
        chosen = config(optimizer=optimizer, tuner={"kind": "lora", "dropout": 0.1}, batch={"tokens": 64}, **fields)
        result = train(chosen, loaded=load(pico_path), rows=rows(9), output=tmp_path / name, examine=examine)
        assert result.wall_s == 0.0
        return result, seen

    plain, none = run("plain")
    result, seen = run("watched", save_at_steps=[2, 5], keep_checkpoints=None)
    assert none == []
    assert [step for step, _ in seen] == [2, 5]
    assert sorted(p.name for p in (tmp_path / "watched" / "checkpoints").iterdir()) == ["step-2", "step-5"]
    for step, fingerprint in seen:  # what was examined is what lies on the disk
        saved = load_model(str(tmp_path / "watched" / "checkpoints" / f"step-{step}"), device="cpu")
        assert weights_fingerprint(saved.model) == fingerprint
    assert [e["loss_nats"] for e in result.history] == [e["loss_nats"] for e in plain.history]
    assert weights_fingerprint(result.model) == weights_fingerprint(plain.model)
    assert result.model.config.use_cache == plain.model.config.use_cache
