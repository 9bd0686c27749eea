"""Groups and relative changes by hand."""

import pytest

from posttrain.exams.capabilities import CAPABILITIES, CHANGE_EXAM, DriftScore, relative_changes
from posttrain.exams.records import ProbeResult
from posttrain.exams.results import ExamInfo
from posttrain.exams.score_spec import Better, ScoreSpec
from posttrain.exams.scores import SPECS, score


def exam(headline: str, capabilities: dict[str, str], **better: Better) -> ExamInfo:
    scores = tuple(ScoreSpec(key, key, "number", side) for key, side in better.items())
    return ExamInfo(name="t", headline=headline, capabilities=capabilities, scores=scores)


EXAMS = {
    "mmlu": exam("acc", {"acc": "can.knowledge"}),
    "drcd": exam("f1", {"f1": "can.in_context", "em": "can.in_context"}),
    "text": exam("nll", {"nll": "can.knowledge"}, nll="less"),
}


def test_by_hand() -> None:
    """mmlu 0.5 → 0.4 is -0.2, perplexity 2 → 3 is -0.5 because lower is better: -0.35 on average."""
    before = {"mmlu.acc": 0.5, "mmlu.acc/law": 0.1, "text.nll": 2.0, "mmlu.robust.acc": 0.4}
    after = {"mmlu.acc": 0.4, "mmlu.acc/law": 0.9, "text.nll": 3.0, "mmlu.robust.acc": 0.5}
    found = relative_changes(before, after, EXAMS)
    assert list(found) == ["can.knowledge", "can.robust_prompts"]
    knowledge = found["can.knowledge"]
    assert knowledge.change == pytest.approx(-0.35)
    assert [s.score for s in knowledge.scores] == ["mmlu.acc", "text.nll"]
    assert [s.change for s in knowledge.scores] == pytest.approx([-0.2, -0.5])
    assert found["can.robust_prompts"].change == pytest.approx(0.25)


def test_zero_before_is_listed_and_not_counted() -> None:
    found = relative_changes({"drcd.f1": 0.5, "drcd.em": 0.0}, {"drcd.f1": 0.6, "drcd.em": 0.1}, EXAMS)[
        "can.in_context"
    ]
    assert found.change == pytest.approx(0.2)
    assert found.scores[1] == DriftScore("drcd.em", 0.0, 0.1, 0.1, None, "was 0 before: no relative change")
    alone = relative_changes({"drcd.em": 0.0}, {"drcd.em": 0.1}, EXAMS)["can.in_context"]
    assert alone.change is None


def test_a_negative_score_that_falls_got_worse() -> None:
    exams = {"t": exam("bleu_diff", {"bleu_diff": "can.faithfulness"})}
    assert relative_changes({"t.bleu_diff": -2.0}, {"t.bleu_diff": -3.0}, exams)["can.faithfulness"].change == -0.5


def test_scores_that_any_exam_may_have() -> None:
    """The worst case over perturbations goes the headline's way; of calibration only the area counts."""
    before = {"text.robust.nll": 2.0, "mmlu.calibration.selective_area": 0.8, "mmlu.calibration.ece_em10": 0.01}
    after = {"text.robust.nll": 3.0, "mmlu.calibration.selective_area": 0.6, "mmlu.calibration.ece_em10": 0.05}
    found = relative_changes(before, after, EXAMS)
    assert found["can.robust_prompts"].change == -0.5
    assert found["can.faithfulness"].change == pytest.approx(-0.25)


def test_asked_only_after() -> None:
    found = relative_changes({}, {"mmlu.acc": 0.4}, EXAMS)["can.knowledge"]
    assert (found.change, found.scores[0].note) == (None, "not asked before")


def test_verbosity_has_no_good_direction() -> None:
    exams = {"chat": exam("words", {"words": "will.verbosity"}, words="less")}
    found = relative_changes({"chat.words": 100.0}, {"chat.words": 130.0}, exams)["will.verbosity"]
    assert found.change == pytest.approx(0.3)
    assert found.direction == "none"


@pytest.mark.parametrize(("better", "sign"), [("less", -1), ("more", 1), ("none", 1)])
def test_scores_go_the_way_that_their_exam_declares(better: Better, sign: int) -> None:
    exams = {"t": exam("other", {"x": "can.knowledge"}, x=better)}
    change = relative_changes({"t.x": 1.0}, {"t.x": 1.5}, exams)["can.knowledge"].change
    assert change == sign * 0.5


def test_the_change_exam_knows_its_own_baselines() -> None:
    """Locality was 1, lengths are measured on both sides; what should change has no baseline."""
    after = {
        "reliability": 1.0, "generality.hop": 0.2, "locality.unrelated": 0.9, "locality.neighbour": 0.5,
        "locality.refusal": 0.25, "strict.unrelated": 0.1, "leak": 0.3, "length.before": 10.0, "length.after": 12.0,
    }  # fmt: skip
    found = relative_changes({}, after, {})
    assert {name: group.change for name, group in found.items()} == {
        "can.knowledge": pytest.approx(-0.3),
        "will.refusal": pytest.approx(-0.75),
        "will.verbosity": pytest.approx(0.2),
    }


def test_every_score_of_the_change_exam_has_a_group() -> None:
    groups = ["reliability", *(f"generality.{k}" for k in ("rephrase", "reverse", "hop", "cross_lingual"))]
    groups += [f"locality.{k}" for k in ("same_pattern", "neighbour", "unrelated", "format", "refusal")]
    samples = [
        ProbeResult("", g, i, "p", (), (), "b", "b", ok=True, strict=True, leak=False, new_beats_old=True,
                    kl_nats=1.0, kl_tokens=1)
        for i, g in enumerate(groups)
    ]  # fmt: skip
    made = score(samples)
    assert set(made) <= {spec.key for spec in SPECS}
    scores = {name for name in made if not name.startswith("likelihood.") or name in CHANGE_EXAM}
    assert scores <= set(CHANGE_EXAM) <= scores | {name for name in CHANGE_EXAM if name.startswith("likelihood.")}
    assert set(CHANGE_EXAM.values()) <= set(CAPABILITIES)


def test_an_unknown_group_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"can\.fly"):
        relative_changes({}, {}, {"t": exam("acc", {"acc": "can.fly"})})


def test_groups_are_captracks() -> None:
    assert len(CAPABILITIES) == 18
    codes = [c.captrack for c in CAPABILITIES.values() if c.captrack]
    assert codes == [
        "C1",
        "C2",
        "C3",
        "C4",
        "C5a",
        "C5b",
        "C5c",
        "W1",
        "W2",
        "W3a",
        "W3b",
        "H1",
        "H2",
        "H3",
        "H4",
        "H5",
        "H6",
    ]
    assert [c.id for c in CAPABILITIES.values() if not c.direct] == ["will.verbosity", "will.formatting"]
