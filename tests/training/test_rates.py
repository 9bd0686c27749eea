"""Learning rates: the table, the range test, and that nothing of it is left in the weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from posttrain.config.load import check
from posttrain.errors import ConfigError, Interrupted, PosttrainError
from posttrain.models.meter import Doing
from posttrain.registry import kinds
from posttrain.training import rates as rates_module
from posttrain.training.config import TrainConfig
from posttrain.training.rates import POCKET, RATES, auto_rate, put_back, rate_from
from posttrain.training.run import train
from tests.training.tiny import PicoPath, Remembers, config, load, rows, weights

# ---- the table ---------------------------------------------------------------------------------------------------------


def test_every_tuner_is_in_the_table() -> None:
    assert set(RATES) == set(kinds("tuner"))


@pytest.mark.parametrize("tuner", RATES)
def test_larger_models_take_no_larger_steps(tuner: str) -> None:
    assert auto_rate(tuner, POCKET) == RATES[tuner].at_pocket
    found = [auto_rate(tuner, n) for n in (10**6, 10**8, 10**10)]
    assert found == sorted(found, reverse=True)
    assert found[0] <= 30 * found[-1]


def test_the_rate_is_said_and_used(pico_path: PicoPath) -> None:
    progress = Remembers()
    result = train(config(optimizer={"max_steps": 1}), loaded=load(pico_path), rows=rows(2), progress=progress)
    rate = result.history[0]["learning_rate"]
    assert rate == auto_rate("full", result.moved.total)
    assert any(text.startswith(f"learning rate {rate:g}, the default for full") for text in progress.said)


@pytest.mark.parametrize(("given", "taken"), [(3e-4, 3e-4), ("1e-4", 1e-4), ("auto", "auto"), ("find", "find")])
def test_what_can_be_given(given: float | str, taken: float | str) -> None:
    assert config(optimizer={"learning_rate": given}).optimizer.learning_rate == taken


@pytest.mark.parametrize("given", ["fnid", 0, -1e-4, "最好的"])
def test_what_cannot(given: float | str) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate"):
        check({"model": "pico", "optimizer": {"learning_rate": given}}, TrainConfig, "訓練.yaml")


# ---- the range test ----------------------------------------------------------------------------------------------------


def test_chosen_by_hand() -> None:
    """From 4 to 0 nats: nine tenths of the way is at 0.4, before the fourth loss; 1 + 2 + 4 over five steps."""
    found = rate_from([1.0, 2.0, 4.0, 8.0], [4.0, 3.0, 1.0, 0.3, 0.0], steps=40)
    assert (found.rate, found.blown_up) == (1.4, None)
    assert rate_from([1.0, 2.0, 4.0, 8.0], [4.0, 3.0, 1.0, 0.3, 0.0], steps=8).rate == 3.5
    assert rate_from([1.0, 2.0, 4.0, 8.0], [4.0, 3.0, 1.0, 0.3, 0.0], steps=1).rate == 7.0


@pytest.mark.parametrize("loss", [40.0, float("nan"), float("inf")])
def test_stays_away_from_where_it_blew_up(loss: float) -> None:
    found = rate_from([1.0, 2.0, 4.0], [4.0, 3.0, 0.3, loss], steps=1)
    assert (found.rate, found.blown_up) == (1.0, 4.0)
    assert "blew up at 4" in str(found)


def test_a_loss_that_never_falls_is_said() -> None:
    with pytest.raises(PosttrainError, match=r"found none at which the loss falls from 1 nats.*give a learning_rate"):
        rate_from([1.0, 2.0], [1.0, 1.1, 1.2], steps=10)


def test_everything_is_put_back_bit_by_bit(pico_path: PicoPath) -> None:
    """Weights, gradients, random states: the run after `find` is the run with that number given."""
    progress = Remembers()
    found = train(
        config(optimizer={"max_steps": 4, "learning_rate": "find"}, tuner={"kind": "lora", "dropout": 0.1}),
        loaded=load(pico_path),
        rows=rows(3),
        progress=progress,
    )
    rate = found.history[0]["learning_rate"]
    assert any(text.startswith(f"learning rate {rate:g}, found by a range test of") for text in progress.said)
    given = train(
        config(optimizer={"max_steps": 4, "learning_rate": rate}, tuner={"kind": "lora", "dropout": 0.1}),
        loaded=load(pico_path),
        rows=rows(3),
    )
    assert [e["loss_nats"] for e in found.history] == [e["loss_nats"] for e in given.history]
    ours, theirs = weights(found.model), weights(given.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert found.loss_nats < found.history[0]["loss_nats"]


def test_put_back_even_after_a_fault(pico_path: PicoPath) -> None:
    model = load(pico_path).model.requires_grad_(True)
    before, state = weights(model), torch.random.get_rng_state()
    with pytest.raises(ZeroDivisionError), put_back(model), torch.no_grad():
        next(model.parameters()).add_(torch.rand(())).div_(1 // 0)
    assert all(torch.equal(t, before[name]) for name, t in weights(model).items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_resumed_run_takes_what_was_found(
    pico_path: PicoPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = config(optimizer={"max_steps": 2, "learning_rate": "find"})
    result = train(chosen, loaded=load(pico_path), rows=rows(2), output=tmp_path / "跑")
    kept = json.loads((tmp_path / "跑" / "learning_rate.json").read_text(encoding="utf-8"))
    assert kept["rate"] == result.history[0]["learning_rate"]
    assert f"| learning rate at its peak | {kept['rate']:g} (find) |" in (tmp_path / "跑" / "card.md").read_text(
        "utf-8"
    )
    (tmp_path / "跑" / "result.json").unlink()  # as if it had been stopped
    monkeypatch.setattr(rates_module, "find_rate", None)  # would fail if it was asked again
    again = train(chosen, loaded=load(pico_path), rows=rows(2), output=tmp_path / "跑")
    assert again.history[0]["learning_rate"] == kept["rate"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"tuner": "diff_pruning"}, "cuts its change after the last step"), ({"world": "2"}, "runs in a single process")],
)
def test_where_it_tells_nothing(
    pico_path: PicoPath, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], says: str
) -> None:
    tuner = settings.get("tuner", "full")
    chosen = config(optimizer={"max_steps": 1, "learning_rate": "find"}, tuner=tuner)
    loaded = load(pico_path)
    monkeypatch.setenv("WORLD_SIZE", settings.get("world", "1"))
    with pytest.raises(ConfigError, match=says):
        train(chosen, loaded=loaded, rows=rows(2))


def test_muon_wants_a_number() -> None:
    with pytest.raises(ValueError, match="give muon a number"):
        config(optimizer={"kind": "muon", "learning_rate": "find"})


def test_the_page_has_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    for tuner, law in RATES.items():
        sizes = [f"{auto_rate(tuner, n):g}" for n in (134_515_008, 7_000_000_000)]
        assert f"| `{tuner}` | {law.at_pocket:g} | {law.fall:g} | {' | '.join(sizes)} |" in page


def test_the_search_tells_how_far_it_is_and_ctrl_c_puts_the_weights_back(
    pico_path: PicoPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain.models.meter.OFTEN_S", 0.0)

    class Hears(Remembers):
        def __init__(self) -> None:
            super().__init__()
            self.works: list[Doing] = []

        def doing(self, work: Doing) -> None:
            self.works.append(work)
            if work.done == interrupt_at:
                raise KeyboardInterrupt

    interrupt_at = -1
    progress, loaded = Hears(), load(pico_path)
    find = config(optimizer={"max_steps": 1, "learning_rate": "find"})
    train(find, loaded=loaded, rows=rows(3), progress=progress)
    (what,) = {work.what for work in progress.works}
    assert what == "searching the learning rate"
    assert [work.done for work in progress.works[:4]] == [0, 1, 2, 3]
    assert (progress.works[-1].done, progress.works[-1].ends) == (rates_module.TRIES, True)
    interrupt_at, loaded = 3, load(pico_path)
    before = weights(loaded.model)
    with pytest.raises(Interrupted, match=r"\(3 of 24 tries\); the weights are put back as they were"):
        train(find, loaded=loaded, rows=rows(3), progress=Hears())
    assert all(torch.equal(p, before[name]) for name, p in loaded.model.named_parameters())
