"""Spoilt inputs over all readers: whatever stands in a user's file, the answer is a record or an error meant for people."""

from __future__ import annotations

import os
import random
import traceback
import warnings
from pathlib import Path

import pytest

from posttrain.errors import PosttrainError
from tests.fuzzing import Case, cases, spoilt

SEED = int(os.environ.get("POSTTRAIN_FUZZ_SEED", "0"))
"""Of all changes; what a failure prints can be repeated with it."""
NO_CAUSE = "an error that does not say what is wrong"
SHOWN = 3000
"""Bytes of an input that a failure shows."""


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_inputs_are_valid_before_they_are_spoilt(case: Case, tmp_path: Path) -> None:
    assert answer(case, case.content, tmp_path) == ""


def test_spoilt_inputs(tmp_path: Path) -> None:
    spoil(range(300), tmp_path)


@pytest.mark.slow
def test_many_spoilt_inputs(tmp_path: Path) -> None:
    spoil(range(300, 3300), tmp_path)


def spoil(numbers: range, folder: Path) -> None:
    """Every case in turn; fails with the seed, the number and the input of each that ends in another exception."""
    known = cases()
    faults = []
    for number in numbers:
        case = known[number % len(known)]
        data = spoilt(case, random.Random(f"{SEED} {number}"))
        found = folder / str(number)
        found.mkdir()
        try:
            said = answer(case, data, found)
            if said == NO_CAUSE:
                faults.append(f"seed {SEED}, number {number}, {case.name}: {said}")
        except Exception:
            faults.append(
                f"seed {SEED}, number {number}, {case.name}:\n{data[:SHOWN]!r}\n{traceback.format_exc(limit=-4)}"
            )
    assert not faults, f"{len(faults)} of {len(numbers)} inputs:\n\n" + "\n".join(faults[:5])


def answer(case: Case, data: bytes, folder: Path) -> str:
    """What the reader says against an input; "" when it takes it."""
    path = folder / case.file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case.read(path)
    except PosttrainError as error:
        said = [problem.cause.strip() for problem in error.problems]
        return str(error) if said and all(said) else NO_CAUSE
    return ""
