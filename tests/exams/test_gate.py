"""SHIP or HOLD: minima, losses, and what is no loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.cli.main import main
from posttrain.errors import ConfigError
from posttrain.exams.compare import compare
from posttrain.exams.floor import NOISE_FLOOR
from posttrain.exams.gate import Verdict, gate
from posttrain.exams.records import Sample
from posttrain.exams.results import ExamInfo, Line, Results, write_results
from posttrain.exams.score_spec import ScoreSpec
from posttrain.exams.scores import HEADLINE, SPECS
from posttrain.exams.summary import summarise

EXAMS = {
    "change": ExamInfo(name="change", kind="change", headline=HEADLINE, scores=SPECS),
    "mmlu": ExamInfo(name="mmlu", headline="acc", scores=(ScoreSpec("acc", "acc"),)),
    "ppl": ExamInfo(name="ppl", headline="bits", scores=(ScoreSpec("bits", "bits", "bits", "less"),)),
    "dev": ExamInfo(name="dev", headline="acc", scores=(ScoreSpec("acc", "acc"),), role="select"),
}


def kept(lost: int, n: int = 40) -> tuple[int, ...]:
    return (0,) * lost + (1,) * (n - lost)


def line(method: str = "full", lost: int = 0, n: int = 40, *, seed: int = 0, **fields: Any) -> Line:
    scores = {"reliability": 0.95, "locality.unrelated": 1 - lost / n, **fields.pop("scores", {})}
    outcomes = {"locality.unrelated": kept(lost, n)}
    return Line(
        model="m",
        method=method,
        change="c",
        seed=seed,
        scores=scores,
        n=dict.fromkeys(scores, n),
        outcomes=outcomes,
        **fields,
    )


def results(*lines: Line, exams: dict[str, ExamInfo] = EXAMS) -> Results:
    return Results(study="s", exams=exams, cells=lines, summary=summarise(lines))


def judge(
    found: Results, minimum: dict[str, float] | None = None, loss: dict[str, float] | None = None, **how: Any
) -> Verdict:
    (verdict,) = gate(found, minimum=minimum or {}, max_loss=loss or {}, **how)
    return verdict


def test_minima_of_a_score_and_of_a_group() -> None:
    found = results(line(scores={"generality.hop": 0.8, "generality.rephrase": 0.4}))
    assert judge(found, {"reliability": 0.95}).word == "SHIP"
    assert judge(found, {"reliability": 0.96}).word == "HOLD"
    both = judge(found, {"generality": 0.5})
    assert [(r.score, r.met) for r in both.reasons] == [("generality.hop", True), ("generality.rephrase", False)]


@pytest.mark.parametrize(
    ("lost", "floor", "n", "ship", "words"),
    [
        (2, 0, 40, True, ""),  # within what is allowed
        (12, 10, 40, True, "no paired test tells it from the noise floor, 0.250"),
        (10, 10, 40, True, "within the noise floor, 0.250"),
        (20, 1, 40, False, "below the noise floor, p ="),
        (5, 0, 40, False, "too few questions to tell"),  # five that differ cannot be told from chance
        (10, None, 40, False, "no noise floor was examined"),
    ],
)
def test_a_loss_of_locality(lost: int, floor: int | None, n: int, ship: bool, words: str) -> None:
    floors = [] if floor is None else [line(NOISE_FLOOR, floor, n)]
    verdict = judge(results(*floors, line(lost=lost, n=n)), loss={"locality": 0.05})
    assert verdict.ship == ship
    assert words in verdict.reasons[0].why
    assert judge(results(*floors, line(lost=lost, n=n)), loss={"locality": 0.05}, noise_floor=False).ship == (lost <= 2)


def samples(score: str, values: list[float]) -> list[Sample]:
    return [
        Sample(str(i), "", "q", "a", "a", {score: v}, correct=bool(v) if score == "acc" else None)
        for i, v in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("after", "ship", "words"),
    [
        ([1.0] * 38 + [0.0] * 2, True, ""),
        ([1.0] * 20 + [0.0] * 20, False, "the paired interval excludes 0"),
        ([0.0] * 4 + [1.0] * 36, False, "too few questions differ (4)"),
    ],
)
def test_a_loss_of_another_exam(after: list[float], ship: bool, words: str) -> None:
    one = compare(samples("acc", [1.0] * 40), samples("acc", after), headline="acc")
    found = results(line(scores={"mmlu.acc": sum(after) / 40}, compare={"mmlu": one}))
    for name in ("mmlu", "mmlu.acc"):
        verdict = judge(found, loss={name: 0.06})
        assert (verdict.ship, words in verdict.reasons[0].why) == (ship, True)


def test_a_loss_goes_the_way_that_the_exam_declares() -> None:
    one = compare(samples("bits", [1.0] * 40), samples("bits", [2.0] * 40), headline="bits", higher_is_better=False)
    found = results(line(scores={"ppl.bits": 2.0}, compare={"ppl": one}))
    assert judge(found, loss={"ppl": 0.5}).reasons[0].value == 1.0
    assert judge(found, loss={"ppl": 0.5}).word == "HOLD"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "nothing is demanded"),
        ({"minimum": {"mmlu.f1": 0.1}}, "no such score here"),
        ({"minimum": {"dev.acc": 0.1}}, "has chosen a setting"),
        ({"max_loss": {"reliability": 0.1}}, "was not compared with a model before"),
        ({"max_loss": {"mmlu": 0.1}}, "was not compared with a model before"),
        ({"minimum": {"reliability": 0.1}, "method": "fulll"}, "no method 'fulll' here"),
        ({"minimum": {"reliability": 0.1}, "checkpoint": "step-5"}, "has no 'step-5'"),
    ],
)
def test_what_cannot_be_judged_is_an_error(options: dict[str, Any], words: str) -> None:
    found = results(line(scores={"mmlu.acc": 0.5, "dev.acc": 0.5}))
    with pytest.raises(ConfigError, match=words):
        gate(found, **{"minimum": {}, "max_loss": {}, **options})


def test_of_several_methods_one_is_named_and_failed_cells_are_no_evidence() -> None:
    found = results(line(), line("lora"))
    with pytest.raises(ConfigError, match="2 methods were examined; name one: full, lora"):
        gate(found, minimum={"reliability": 0.5}, max_loss={})
    assert judge(found, {"reliability": 0.5}, method="lora").ship
    broken = Line(model="m", method="lora", change="d", status="failed", error="no memory")
    with pytest.raises(
        ConfigError, match="--method: 1 cells of 'lora' failed, so there is nothing to judge; known: full"
    ):
        gate(results(line(), line("lora"), broken), method="lora", minimum={"reliability": 0.5}, max_loss={})
    with pytest.raises(ConfigError, match="1 cells of 'lora' failed"):  # and no other cell of it is there
        gate(results(line(), broken), method="lora", minimum={"reliability": 0.5}, max_loss={})


def test_the_verb_says_one_word_and_ends_with_its_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_results(tmp_path, results(line(NOISE_FLOOR, 0), line(lost=20)))
    assert main(["gate", str(tmp_path), "--min", "reliability=0.9"]) == 0
    assert capsys.readouterr().out.splitlines() == ["SHIP", "reliability 0.950 >= 0.9: ok"]
    assert main(["gate", str(tmp_path), "--min", "reliability=0.9", "--max-loss", "locality=0.05"]) == 5
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "HOLD"
    assert out[2].startswith("loss of locality.unrelated 0.500 <= 0.05: not ok (below the noise floor")
    assert main(["gate", str(tmp_path), "--max-loss", "locality=0.05", "--json"]) == 5
    told = json.loads(capsys.readouterr().out)
    assert (told["ship"], told["verdicts"][0]["verdict"]) == (False, "HOLD")
    assert main(["gate", str(tmp_path), "--min", "reliability"]) == 2
    assert "SCORE=N is expected" in capsys.readouterr().err
    assert main(["gate", str(tmp_path), "--min", "reliability=nan"]) == 2
    assert "SCORE=N is expected" in capsys.readouterr().err
    assert main(["gate", str(tmp_path), "--max-loss", "locality=-0.1"]) == 2  # never met, and no test could excuse it
    assert "a loss of 0 or more is expected" in capsys.readouterr().err
    assert main(["gate", str(tmp_path / "none"), "--min", "reliability=1"]) == 3
