"""What a run says of its rows at the end, and in its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.training.metrics import Learned, hardly_learned, learned_of
from posttrain.training.run import train
from tests.training.tiny import PicoPath, Remembers, config, load, rows


def history(*losses: float, rate: float = 1e-5) -> list[dict[str, Any]]:
    return [{"step": n, "loss_new_nats": loss, "learning_rate": rate} for n, loss in enumerate(losses, start=1)]


def test_the_first_and_the_last_loss_of_the_new_rows() -> None:
    with_validation = [*history(4.23, 4.0, 3.39), {"step": 3, "validation_loss_nats": 3.0}]
    assert learned_of(with_validation) == Learned(4.23, 3.39)
    assert learned_of(history(4.23, 4.0, 0.0)) == Learned(4.23, 4.0)  # a step that read replayed rows only
    assert learned_of(history(4.23)) is None
    assert learned_of([]) is None


@pytest.mark.parametrize(
    ("settings", "losses", "said"),
    [
        ({}, (4.0, 3.39), "raise optimizer.learning_rate (now 1e-05) or optimizer.epochs (now 3)"),
        (
            {"optimizer": {"max_steps": 20}},
            (4.0, 4.5),
            "raise optimizer.learning_rate (now 1e-05) or optimizer.max_steps (now 20)",
        ),
        (
            {"optimizer": {"epochs": 1.5}},
            (4.0, 3.01),
            "raise optimizer.learning_rate (now 1e-05) or optimizer.epochs (now 1.5)",
        ),
        ({}, (4.0, 3.0), ""),  # a quarter
        ({}, (0.3, 0.29), ""),  # known before
        ({"objective": "clm"}, (4.0, 3.9), ""),
        ({"objective": "dpo"}, (0.69, 0.68), ""),
    ],
)
def test_rows_that_were_hardly_learned(settings: dict[str, Any], losses: tuple[float, float], said: str) -> None:
    expected = f"your rows were hardly learned: {said}" if said else ""
    assert hardly_learned(config(**settings), history(*losses)) == expected


@pytest.mark.parametrize("rate", [1e-6, 2e-2])
def test_a_run_says_it_and_so_does_its_card(pico_path: PicoPath, tmp_path: Path, rate: float) -> None:
    remembers = Remembers()
    chosen = config(optimizer={"max_steps": 12, "learning_rate": rate})
    result = train(chosen, loaded=load(pico_path), rows=rows(4), output=tmp_path / "run", progress=remembers)
    first, last = result.history[0]["loss_new_nats"], result.history[-1]["loss_new_nats"]
    assert f"loss on your rows {first:.2f} -> {last:.2f} nats per token" in remembers.said
    card = (tmp_path / "run" / "card.md").read_text(encoding="utf-8")
    assert f"| loss on your rows | {first:.2f} -> {last:.2f} nats per token |" in card
    hardly = (
        f"your rows were hardly learned: raise optimizer.learning_rate (now {rate:g}) or optimizer.max_steps (now 12)"
    )
    assert (hardly in remembers.said) == (last > 0.75 * first) == (rate == 1e-6)
    assert (f"Y{hardly[1:]}." in card) == (rate == 1e-6)
