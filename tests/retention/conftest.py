from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import load_model
from posttrain.retention.selection import ReplayContext
from tests.talker import talker


@pytest.fixture(scope="session")
def respondent() -> ModelRespondent:
    return ModelRespondent(load_model(str(talker()), device="cpu"))


class Told(list[str]):
    """Collects what a replay says."""


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def context(respondent: ModelRespondent, tmp_path: Path, told: Told) -> ReplayContext:
    return ReplayContext(
        respondent, "weights-template", seed=0, base=tmp_path, cache=tmp_path / "cache", say=told.append
    )
