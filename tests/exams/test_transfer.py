from __future__ import annotations

import pytest

from posttrain.exams.statistics import separate_scores, transfer_scores

BEFORE = [0.1, 0.2, 0.0]
MATRIX = [
    [0.8, 0.3, 0.0],
    [0.9, 0.7, 0.1],
    [0.5, 0.6, 1.0],
]


def test_the_four_numbers_by_hand() -> None:
    found = transfer_scores(BEFORE, MATRIX)
    assert found["acc"] == pytest.approx((0.5 + 0.6 + 1.0) / 3)
    assert found["bwt"] == pytest.approx(((0.5 - 0.8) + (0.6 - 0.7)) / 2)
    assert found["fwt"] == pytest.approx(((0.3 - 0.2) + (0.1 - 0.0)) / 2)
    assert found["forgetting"] == pytest.approx(((0.9 - 0.5) + (0.7 - 0.6)) / 2)


def test_one_training_of_all_tasks_has_an_average_alone() -> None:
    assert transfer_scores(BEFORE, MATRIX[:1]) == {"acc": pytest.approx((0.8 + 0.3) / 3)}
    assert transfer_scores([0.0], [[0.4]]) == {"acc": 0.4}


def test_models_of_their_own_are_asked_their_own_task() -> None:
    assert separate_scores(MATRIX) == {"acc": pytest.approx((0.8 + 0.7 + 1.0) / 3)}


@pytest.mark.parametrize("matrix", [[], MATRIX[:2], [[0.1, 0.2]] * 3])
def test_a_matrix_of_another_shape_is_refused(matrix: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="3 x 3"):
        transfer_scores(BEFORE, matrix)
    if len(matrix) != 3:
        return
    with pytest.raises(ValueError, match="as many models"):
        separate_scores(matrix)
