"""Which piece of a token a tagger learns and says its tag at; what was trained otherwise goes on as it was."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.load import check
from posttrain.inference.heads import tag
from posttrain.models.heads import load_any
from posttrain.models.notes import head_of_model
from posttrain.training.config import TrainConfig
from posttrain.training.run import train
from tests.pico import pico_encoder
from tests.pico_tokenizers import tokenizer_of
from tests.training.tiny import Remembers

PicoPath = Callable[[str], Path]


@pytest.fixture(scope="module")
def base(pico_path: PicoPath, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder whose tokenizer makes a piece of the space before many words."""
    import shutil

    folder = tmp_path_factory.mktemp("pieces") / "llama"
    shutil.copytree(pico_path("llama"), folder)
    for file in folder.glob("*token*"):
        file.unlink()
    tokenizer_of("bytes").save_pretrained(folder)
    return folder


def trained(base: Path, folder: Path, ends: dict[str, str], objective: Any) -> tuple[float, Any, Remembers]:
    """Accuracy on sentences that were not learned, of words whose tag is decided by `ends`; the model; what was
    said."""
    draw = random.Random(1)
    rows = []
    for _ in range(48):
        tokens = [draw.choice(list(ends)) for _ in range(6)]
        rows.append({"tokens": tokens, "tags": [ends[t] for t in tokens]})
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:32]), encoding="utf-8")
    progress = Remembers()
    settings = {"optimizer": {"learning_rate": 1e-2, "max_steps": 40}, "batch": {"rows": 8}, "max_length": 64}
    config = check(
        {"model": str(base), "data": str(folder / "rows.jsonl"), "objective": objective, **settings}, TrainConfig, "t"
    )
    train(config, output=folder / "run", progress=progress)
    loaded = load_any(str(folder / "run" / "model"), device="cpu")
    said = tag(loaded, [row["tokens"] for row in rows[32:]])
    pairs = [
        (a, b) for one, row in zip(said, rows[32:], strict=True) for a, b in zip(one.tags, row["tags"], strict=True)
    ]
    return sum(a == b for a, b in pairs) / len(pairs), loaded, progress


BY_FIRST_LETTER = {"zoo": "Z", "zig": "Z", "qu": "Q", "qi": "Q"}  # "Ġ" is a piece of its own before each
BY_LAST_LETTER = {"zoz": "Z", "zoq": "Q", "quz": "Z", "quq": "Q"}


@pytest.mark.slow
def test_the_measurement_behind_the_choice(base: Path, tmp_path: Path) -> None:
    """A decoder at the bare space knows nothing of the word, at its first letter half of it, at its last all."""
    tokens = [tokenizer_of("bytes").tokenize(f" {word}") for word in (*BY_FIRST_LETTER, *BY_LAST_LETTER)]
    assert all(pieces[0] == "Ġ" for pieces in tokens)
    found = {
        (name, piece): trained(
            base, tmp_path / f"{name}-{piece}", ends, {"kind": "token_classification", "piece": piece}
        )[0]
        for name, ends in (("first letter", BY_FIRST_LETTER), ("last letter", BY_LAST_LETTER))
        for piece in ("start", "first", "last")
    }
    assert found["first letter", "start"] < 0.75
    assert found["first letter", "first"] > 0.97
    assert found["first letter", "last"] > 0.97
    assert found["last letter", "start"] < 0.75
    assert found["last letter", "first"] < 0.75
    assert found["last letter", "last"] > 0.97


def test_a_decoder_decides_at_the_last_piece_and_an_encoder_at_the_first(base: Path, tmp_path: Path) -> None:
    accuracy, loaded, progress = trained(base, tmp_path / "decoder", BY_LAST_LETTER, "token_classification")
    assert accuracy > 0.97
    notes = head_of_model(loaded.model)
    assert notes is not None
    assert notes.settings["piece"] == "last"
    assert any("each token's last piece: it reads from left to right" in line for line in progress.said)
    encoder = pico_encoder(tmp_path)
    _, loaded, _ = trained(encoder, tmp_path / "encoder", BY_LAST_LETTER, "token_classification")
    notes = head_of_model(loaded.model)
    assert notes is not None
    assert notes.settings["piece"] == "first"


def test_a_head_without_a_recorded_choice_goes_on_as_it_was(base: Path, tmp_path: Path) -> None:
    """Saved before there was a choice: read at the first piece, whatever it holds, also by further training."""
    objective = {"kind": "token_classification", "piece": "start"}
    _, loaded, _ = trained(base, tmp_path / "old", BY_FIRST_LETTER, objective)
    folder = tmp_path / "old" / "run" / "model"
    sentences = [["zoo", "qu", "zig", "zoo"], ["qi", "qi", "zoo"]]
    before = tag(loaded, sentences)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["posttrain_head"]["settings"]["piece"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert tag(load_any(str(folder), device="cpu"), sentences) == before
    _, again, progress = trained(folder, tmp_path / "on", BY_FIRST_LETTER, "token_classification")
    notes = head_of_model(again.model)
    assert notes is not None
    assert notes.settings["piece"] == "start"
    assert not any("piece" in line for line in progress.said)
