"""Objectives that compare answers, in training: each step against rows one by one, the reference, the zero point."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from posttrain.data.answers import GradedRow, PairRow
from posttrain.data.chat import Encoded
from posttrain.errors import DataError, Interrupted
from posttrain.models.heads import load_any, load_head_model
from posttrain.models.load import LoadedModel, load_model
from posttrain.training.config import TrainConfig
from posttrain.training.forms.graded import mismatched
from posttrain.training.run import TrainResult, train
from posttrain.training.steps import RowPlan, StepRows
from tests.training.test_resume import assert_same_run, signal_in_step
from tests.training.tiny import PicoPath, Remembers, answered, config, load, row, rows, weights

SMOOTH = {"epsilon": 1e-3, "learning_rate": 1e-2}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "dpo": {"kind": "dpo", "beta": 0.5, "label_smoothing": 0.1},
    "ipo": {"kind": "dpo", "loss": "ipo", "beta": 0.8},
    "hinge": {"kind": "dpo", "loss": "hinge", "beta": 0.4},
    "orpo": {"kind": "orpo", "weight": 0.7},
    "kto": {"kind": "kto", "beta": 0.5, "desirable_weight": 1.5},
    "reward": {"kind": "reward", "center_rewards_coefficient": 0.1},
}
# Five rows in steps of four and one: the second step is the last partial window.
CUTS = {
    "one large batch": [[[0, 1, 2, 3]], [[4]]],
    "accumulated": [[[0], [1], [2], [3]], [[4]]],
    "uneven": [[[2, 0], [3], [1]], [[4]]],
}


def pairs(count: int, seed: int = 0, name: str = "pairs.jsonl") -> list[PairRow]:
    """Random answers of 2 to 9 tokens after prompts of 2 to 5."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        prompt, *lengths = (int(torch.randint(2, n, (), generator=draw)) for n in (6, 10, 10))
        chosen, rejected = ([*torch.randint(10, 290, (n - 1,), generator=draw).tolist(), 2] for n in lengths)
        made.append(answered(prompt, chosen, rejected, f"{name}:{i + 1}"))
    return made


def graded(count: int, seed: int = 0) -> list[GradedRow]:
    return [GradedRow(one.chosen, i % 2 == 0, f"graded.jsonl:{i + 1}") for i, one in enumerate(pairs(count, seed=seed))]


def rows_for(kind: str, count: int, seed: int = 0) -> list[Any]:
    return graded(count, seed) if kind == "kto" else pairs(count, seed)


def model_for(pico_path: PicoPath, kind: str, family: str = "llama") -> LoadedModel:
    if kind == "reward":
        loaded = load_head_model(str(pico_path(family)), "sequence", ["reward"], device="cpu", say=lambda text: None)
    else:
        loaded = load(pico_path, family)
    return loaded


def doubled(pico_path: PicoPath, kind: str, family: str = "llama") -> LoadedModel:
    loaded = model_for(pico_path, kind, family)
    loaded.model.double()
    return loaded


def planned(monkeypatch: pytest.MonkeyPatch, steps: list[list[list[int]]]) -> None:
    def plan(self: RowPlan) -> Iterator[StepRows]:
        return iter([StepRows(micro_batches, (i + 1) / len(steps)) for i, micro_batches in enumerate(steps)])

    monkeypatch.setattr(RowPlan, "__iter__", plan)


# ---- each row alone and unpadded, as the papers write it -----------------------------------------------------------------


def logp(model: Any, one: Encoded) -> Tensor:
    labels = torch.tensor(one.labels)[1:]
    logits = model(torch.tensor([one.input_ids])).logits[0, :-1]
    return -cross_entropy(logits, labels, ignore_index=-100, reduction="sum")


def count(one: Encoded) -> int:
    return sum(label != -100 for label in one.labels)


def by_rows(name: str, model: Any, before: Any, step: list[Any], others: dict[int, Encoded]) -> Tensor:
    """A step's loss."""
    settings = OBJECTIVES[name]
    beta = settings.get("beta", 0.1)

    def ratio(one: Encoded) -> Tensor:
        with torch.no_grad():
            was = logp(before, one)
        return logp(model, one) - was

    def score(one: Encoded) -> Tensor:
        found: Tensor = model(torch.tensor([one.input_ids])).logits[0, 0]
        return found

    losses = []
    if name == "kto":
        with torch.no_grad():
            zero = torch.stack([ratio(others[id(one)]) for one in step]).mean().clamp(min=0)
        for one in step:
            ahead = ratio(one.answer) - zero
            weight = 1.5 if one.label else 1.0
            losses.append(weight * (1 - torch.sigmoid(beta * (ahead if one.label else -ahead))))
        return torch.stack(losses).mean()
    for one in step:
        chosen, rejected = one.chosen, one.rejected
        if name == "dpo":
            d = beta * (ratio(chosen) - ratio(rejected))
            losses.append(-0.9 * logsigmoid(d) - 0.1 * logsigmoid(-d))
        elif name == "ipo":
            d = ratio(chosen) / count(chosen) - ratio(rejected) / count(rejected)
            losses.append((d - 1 / (2 * beta)) ** 2)
        elif name == "hinge":
            losses.append(torch.relu(1 - beta * (ratio(chosen) - ratio(rejected))))
        elif name == "orpo":
            p, q = (torch.exp(logp(model, side) / count(side)) for side in (chosen, rejected))
            odds = torch.log(p / (1 - p)) - torch.log(q / (1 - q))
            losses.append(-torch.log(p) - 0.7 * logsigmoid(odds))
        else:
            high, low = score(chosen), score(rejected)
            losses.append(-logsigmoid(high - low) + 0.1 * (high + low) ** 2)
    return torch.stack(losses).mean()


def reference(name: str, loaded: LoadedModel, before: LoadedModel, steps: list[list[Any]]) -> list[float]:
    """Loss of each step; the model is trained."""
    everything = [one for step in steps for one in step]
    others = (
        {id(one): other for one, other in zip(everything, mismatched(everything), strict=True)} if name == "kto" else {}
    )
    optimizer = torch.optim.AdamW(loaded.model.parameters(), lr=1e-2, eps=1e-3, weight_decay=0.0)
    losses = []
    for step in steps:
        loss = by_rows(name, loaded.model, before.model, step, others)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(loaded.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[k] - other[k]).abs().max()) for k in one)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("cut", CUTS)
def test_accumulated_batches_equal_one_large_one(
    pico_path: PicoPath, monkeypatch: pytest.MonkeyPatch, name: str, cut: str
) -> None:
    kind = OBJECTIVES[name]["kind"]
    data = rows_for(kind, 5)
    plain = doubled(pico_path, kind)
    losses = reference(name, plain, doubled(pico_path, kind), [data[:4], data[4:]])
    planned(monkeypatch, CUTS[cut])
    settings = config(objective=OBJECTIVES[name], optimizer={"max_steps": 2, **SMOOTH})
    result = train(settings, loaded=doubled(pico_path, kind), rows=data)
    assert [e["loss_nats"] for e in result.history] == pytest.approx(losses, abs=1e-7)
    assert apart(weights(plain.model), weights(result.model)) < 1e-7


def test_the_zero_point_is_of_the_whole_step(pico_path: PicoPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """The equality above is not vacuous: z is above zero in the second step, and that of a part is another."""
    data = graded(4)
    planned(monkeypatch, [[[0, 1, 2, 3]], [[0, 1, 2, 3]], [[0, 1], [2, 3]], [[0, 1]]])
    objective = {"kind": "kto", "beta": 0.5, "undesirable_weight": 0.0}  # all rises, mismatched answers too
    result = train(
        config(objective=objective, optimizer={"max_steps": 4, "learning_rate": 3e-3}),
        loaded=load(pico_path),
        rows=data,
    )
    zeros = [e["zero_point"] for e in result.history]
    assert zeros[0] == 0
    assert 0 < zeros[1] < zeros[2]
    assert zeros[3] != pytest.approx(zeros[2], rel=0.01)


# ---- the reference -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuner", ["lora", "prompt_tuning", "full"])
@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_the_adapter_switched_off_is_the_precomputed_reference(pico_path: PicoPath, kind: str, tuner: str) -> None:
    histories = []
    for how in ("precompute", "adapter"):
        settings = config(
            objective={"kind": kind, "reference": how},
            tuner=tuner,
            optimizer={"max_steps": 4, "learning_rate": 1e-2},
            batch={"rows": 2},
        )
        loaded = doubled(pico_path, kind)
        result = train(settings, loaded=loaded, rows=rows_for(kind, 5), validation_rows=rows_for(kind, 3, seed=7))
        histories.append([{k: v for k, v in e.items() if "nats" in k or "reward" in k} for e in result.history])
    assert len(histories[0]) > 4  # validations, too
    for one, other in zip(*histories, strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    start = {"dpo": log(2), "kto": 0.5}[kind]
    assert (histories[0][0]["loss_nats"] == pytest.approx(start, abs=1e-12)) == (tuner != "prompt_tuning")


def test_nothing_has_moved_in_the_first_step(pico_path: PicoPath) -> None:
    """log 2 for a model with dropout in its configuration, too; later steps have it switched off as well."""
    seen = Remembers()
    settings = config(objective="dpo", optimizer={"max_steps": 1})
    result = train(settings, loaded=load(pico_path, "gpt2"), rows=pairs(6), progress=seen)
    assert result.history[0]["loss_nats"] == pytest.approx(log(2), abs=1e-5)
    assert result.history[0]["reward_chosen"] == pytest.approx(0, abs=1e-5)
    assert any("dropout of the model is switched off" in line for line in seen.said)


def test_the_reference_is_kept_in_the_folder(pico_path: PicoPath, tmp_path: Path) -> None:
    def run(data: list[PairRow], **more: Any) -> tuple[TrainResult, list[str]]:
        seen = Remembers()
        settings = config(objective="dpo", optimizer={"max_steps": 2}, **more)
        done = train(settings, loaded=load(pico_path), rows=data, output=tmp_path / "run", resume=False, progress=seen)
        return done, [line for line in seen.said if line.startswith("reference")]

    first, said = run(pairs(5))
    assert said == ["reference: log-probabilities of 10 answers computed once"]
    again, said = run(pairs(5))
    assert "taken from" in said[0]
    assert_same_run(first, again)
    _, said = run(pairs(5, seed=1))
    assert "computed" in said[0]  # other rows
    _, said = run(pairs(5, seed=1), batch={"tokens": 64})
    assert "taken from" in said[0]


def test_replayed_rows_have_a_mean_of_their_own(pico_path: PicoPath) -> None:
    new, old = pairs(3), rows(4, seed=5, name="old.jsonl")
    old_tokens = sum(len(r.input_ids) for r in old)
    share = old_tokens / (old_tokens + sum(len(r.chosen.input_ids) + len(r.rejected.input_ids) for r in new))
    replay = {"kind": "file", "data": "unused.jsonl", "share": share, "weight": 0.3}
    settings = config(objective="dpo", optimizer={"max_steps": 1}, replay=replay)
    before = doubled(pico_path, "dpo").model
    nats = -sum(float(logp(before, one).detach()) for one in old) / sum(count(one) for one in old)
    entry = train(settings, loaded=doubled(pico_path, "dpo"), rows=new, replay_rows=old).history[0]
    assert entry["loss_new_nats"] == pytest.approx(log(2), abs=1e-9)
    assert entry["loss_nats"] == pytest.approx(log(2) + 0.3 * nats, abs=1e-6)


# ---- learning, validation, saving, going on ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dpo", "orpo", "kto", "reward"])
def test_it_learns_and_loads_again(pico_path: PicoPath, tmp_path: Path, kind: str) -> None:
    settings = config(
        objective=kind,
        optimizer={"max_steps": 30, "learning_rate": 5e-3},
        evaluate_every_steps=30,
        tuner="lora",
    )
    result = train(
        settings,
        loaded=model_for(pico_path, kind),
        rows=rows_for(kind, 6),
        validation_rows=rows_for(kind, 4, seed=3),
        output=tmp_path / "run",
    )
    first, last = result.history[0], [e for e in result.history if "loss_nats" in e][-1]
    assert last["loss_nats"] < first["loss_nats"] - 0.1
    assert last["margin"] > first["margin"] + 0.01
    assert last["accuracy"] == 1.0
    measured = next(e for e in result.history if "validation_loss_nats" in e)
    assert {"validation_margin", "validation_accuracy"} <= set(measured)
    if kind == "reward":
        assert -1 <= measured["validation_length_correlation"] <= 1
        assert 0 <= measured["validation_calibration_error"] <= 1
    folder = tmp_path / "run" / "model"
    again = load_any(str(folder), device="cpu") if kind == "reward" else load_model(str(folder), device="cpu")
    ids = torch.tensor([[1, 301, 302, 40, 41, 2], [1, 301, 302, 50, 2, 0]])
    with torch.no_grad():
        one, other = (m(ids, attention_mask=(ids != 0).long()).logits for m in (result.model, again.model))
    assert float((one - other).abs().max()) <= 1e-6


def test_a_reward_model_loads_in_transformers_with_the_same_scores(pico_path: PicoPath, tmp_path: Path) -> None:
    """Scores of padded batches in training are those of single rows in transformers' own class."""
    import transformers

    data = pairs(4)
    settings = config(objective="reward", optimizer={"max_steps": 2, "learning_rate": 1e-3})
    loaded = model_for(pico_path, "reward")
    train(settings, loaded=loaded, rows=data, output=tmp_path / "run")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert theirs.config.num_labels == 1
    with torch.no_grad():
        scores = [[float(theirs(torch.tensor([s.input_ids])).logits) for s in (r.chosen, r.rejected)] for r in data]
    margin = sum(high - low for high, low in scores) / len(scores)
    measured = train(
        config(objective="reward", optimizer={"max_steps": 1, "learning_rate": 1e-12}),
        loaded=load_any(str(tmp_path / "run" / "model"), device="cpu"),
        rows=data,
    ).history[0]
    assert measured["margin"] == pytest.approx(margin, abs=1e-5)


@pytest.mark.parametrize("kind", ["dpo", "orpo", "kto", "reward"])
def test_going_on_after_an_interruption(
    pico_path: PicoPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def run(output: Path) -> TrainResult:
        settings = config(
            objective=kind,
            optimizer={"max_steps": 6, "learning_rate": 1e-3, "schedule": "cosine"},
            batch={"rows": 2, "accumulate": 2},
            tuner="full" if kind == "reward" else {"kind": "lora", "dropout": 0.2},
            evaluate_every_steps=2,
        )
        return train(
            settings,
            loaded=model_for(pico_path, kind),
            rows=rows_for(kind, 7),
            validation_rows=rows_for(kind, 3, seed=4),
            output=output,
        )

    whole = run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        signal_in_step(patch, 3)
        with pytest.raises(Interrupted, match="after step 3 of 6"):
            run(tmp_path / "cut")
    again = run(tmp_path / "cut")
    assert_same_run(whole, again)


TWO = """
    import sys
    from pathlib import Path
    import torch
    from posttrain.models.heads import load_head_model
    from posttrain.models.load import load_model
    from posttrain.training.run import train
    from tests.training.forms.test_comparing import rows_for, two_processes

    torch.set_num_threads(1)
    model, output, kind = sys.argv[1:]
    head = kind == "reward"
    loaded = load_head_model(model, "sequence", ["reward"], device="cpu") if head else load_model(model, device="cpu")
    train(
        two_processes(kind), loaded=loaded, rows=rows_for(kind, 9), validation_rows=rows_for(kind, 5, seed=4),
        output=Path(output),
    )
"""


def two_processes(kind: str) -> TrainConfig:
    """Steps of one to three micro batches, so that one process sometimes has nothing to do."""
    optimizer = {"max_steps": 4, **SMOOTH}
    return config(objective=kind, optimizer=optimizer, batch={"rows": 2, "accumulate": 3}, evaluate_every_steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dpo", "kto", "reward"])
def test_two_processes_do_what_one_does(pico_path: PicoPath, tmp_path: Path, kind: str) -> None:
    """The zero point is that of both, and so is what is said of validation."""
    alone = train(
        two_processes(kind),
        loaded=model_for(pico_path, kind),
        rows=rows_for(kind, 9),
        validation_rows=rows_for(kind, 5, seed=4),
    )
    script = tmp_path / "two.py"
    script.write_text(textwrap.dedent(TWO), encoding="utf-8")
    start = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run(
        [sys.executable, *start, str(script), str(pico_path("llama")), str(tmp_path / "run"), kind],
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    history = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    timings = {"wall_s", "tokens_per_s", "peak_gib"}
    for one, other in zip(alone.history, history, strict=True):
        assert {k: v for k, v in other.items() if k not in timings} == pytest.approx(
            {k: v for k, v in one.items() if k not in timings}, abs=1e-5
        )


# ---- the zero point's answers --------------------------------------------------------------------------------------------


def test_mismatched_answers_belong_to_the_next_prompt_by_length() -> None:
    data = [
        GradedRow(row([7, 7, 21, 22, 23], 2, "a"), True, "a"),
        GradedRow(row([7, 7, 31], 2, "b"), False, "b"),  # the same prompt as a
        GradedRow(row([8, 41, 42], 1, "c"), True, "c"),
        GradedRow(row([9, 9, 9, 51], 3, "d"), False, "d"),
    ]
    made = mismatched(data)
    # by length of answers: b (1), d (1), c (2), a (3), and round again
    assert made[1].input_ids == [7, 7, 51]
    assert made[3].input_ids == [9, 9, 9, 41, 42]
    assert made[2].input_ids == [8, 21, 22, 23]
    assert made[0].input_ids == [7, 7, 51]  # b has a's own prompt
    assert made[3].labels == [-100, -100, -100, 41, 42]


def test_mismatched_answers_are_cut_to_the_longest_row_and_need_no_other_prompt() -> None:
    data = [
        GradedRow(row([9, 9, 9, 9, 51], 4, "a"), True, "a"),
        GradedRow(row([8, 41, 42, 43], 1, "b"), True, "b"),
    ]
    assert mismatched(data)[0].input_ids == [9, 9, 9, 9, 41]
    same = [GradedRow(row([9, 51, 52], 1, "a"), True, "a"), GradedRow(row([9, 61], 1, "b"), False, "b")]
    assert [one.input_ids for one in mismatched(same)] == [[9, 61], [9, 51, 52]]
    assert mismatched([]) == []


# ---- what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("label", "mend"), [(True, "`sft` learns good answers alone"), (False, "add good answers")])
def test_one_grade_alone_is_refused(pico_path: PicoPath, label: bool, mend: str) -> None:
    data = [GradedRow(one.answer, label, one.location) for one in graded(3)]
    with pytest.raises(DataError, match=rf"graded.jsonl:1: all 3 rows have label {str(label).lower()}.*{mend}"):
        train(config(objective="kto"), loaded=load(pico_path), rows=data)


def test_unequal_weights_are_told(pico_path: PicoPath) -> None:
    data = [GradedRow(one.answer, i != 0, one.location) for i, one in enumerate(graded(4))]
    seen = Remembers()
    train(config(objective="kto", optimizer={"max_steps": 1}), loaded=load(pico_path), rows=data, progress=seen)
    assert any("3 good and 1 bad answers weigh 3 to 1" in line and "0.333" in line for line in seen.said)


def test_a_new_score_is_small(pico_path: PicoPath) -> None:
    """1 / sqrt(d + 1) for d = 32, not the configuration's 0.02; drawn from the seed."""
    made = [
        load_head_model(str(pico_path("llama")), "sequence", ["score"], device="cpu", seed=seed, say=lambda text: None)
        for seed in (0, 0, 1)
    ]
    one, same, other = (loaded.model.score.weight for loaded in made)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert float(torch.cat([one, other]).detach().std()) == pytest.approx(33**-0.5, rel=0.25)


def test_the_reference_is_asked_in_the_precision_of_the_steps(pico_path: PicoPath) -> None:
    """bfloat16 rounds the log-probability of an answer by some thousandths; the same rounding on both sides is none."""
    settings = config(objective={"kind": "dpo", "beta": 1.0}, precision="bf16", optimizer={"max_steps": 1})
    entry = train(settings, loaded=load(pico_path), rows=pairs(6)).history[0]
    assert entry["reward_chosen"] == pytest.approx(0, abs=1e-6)
    assert entry["loss_nats"] == pytest.approx(log(2), abs=1e-6)
