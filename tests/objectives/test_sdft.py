"""Self-distillation's divergence: by hand, against TRL's, and where gradients go."""

from __future__ import annotations

from math import log

import pytest
import torch

from posttrain.objectives.sdft import SdftConfig, apart, sdft

STUDENT = torch.tensor([[1 / 4, 1 / 4, 1 / 2]], dtype=torch.float64).log()
TEACHER = torch.tensor([[1 / 2, 1 / 4, 1 / 4]], dtype=torch.float64).log()


def drawn(seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.log_softmax(2 * torch.randn(6, 20, generator=draw, dtype=torch.float64), -1)


def test_by_hand() -> None:
    reverse = 1 / 4 * log(1 / 2) + 1 / 4 * log(1) + 1 / 2 * log(2)
    assert apart(STUDENT, TEACHER, SdftConfig(alpha=1)).item() == pytest.approx(reverse)
    forward = 1 / 2 * log(2) + 1 / 4 * log(1) + 1 / 4 * log(1 / 2)
    assert apart(STUDENT, TEACHER, SdftConfig(alpha=0)).item() == pytest.approx(forward)
    # M = 3/8, 1/4, 3/8
    each = 1 / 2 * log((1 / 2) / (3 / 8)) + 1 / 4 * log((1 / 4) / (3 / 8))
    assert apart(STUDENT, TEACHER, SdftConfig(alpha=0.5)).item() == pytest.approx(each)
    # the student's likeliest token, and the rest: 1/2, 1/2 against 1/4, 3/4
    cut = 1 / 2 * log(2) + 1 / 2 * log(2 / 3)
    assert apart(STUDENT, TEACHER, SdftConfig(alpha=1, top_k=1)).item() == pytest.approx(cut)


@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("top_k", [0, 5])
def test_equals_trl(alpha: float, top_k: int) -> None:
    utils = pytest.importorskip("trl.experimental.sdft.loss_utils")
    student, teacher = drawn(0), drawn(1)
    settings = {"distillation_alpha": alpha}
    theirs = (
        utils.compute_topk_self_distillation_loss(
            student, teacher, distillation_topk=top_k, distillation_add_tail=True, **settings
        )
        if top_k
        else utils.compute_full_logit_self_distillation_loss(student, teacher, **settings)
    )
    ours = apart(student, teacher, SdftConfig(alpha=alpha, top_k=top_k))
    assert ours.tolist() == pytest.approx(theirs.tolist(), rel=1e-6)


def test_sums_per_row_and_the_student_alone_moves() -> None:
    student, teacher = drawn(2).requires_grad_(True), drawn(3)
    config = SdftConfig()
    row = torch.tensor([0, 0, 2, 2, 2, 1])
    loss = sdft(student, teacher, row, 4, config)
    each = apart(student, teacher, config)
    assert loss.nats.tolist() == pytest.approx(
        [float(each.detach()[:2].sum()), float(each.detach()[5]), float(each.detach()[2:5].sum()), 0.0], abs=1e-12
    )
    assert loss.units.tolist() == [2, 1, 3, 0]
    loss.nats.sum().backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert student.grad.abs().sum() > 0.1


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    for alpha in (0.0, 0.3, 1.0):
        assert apart(drawn(4), drawn(4), SdftConfig(alpha=alpha)).abs().max() < 1e-12
