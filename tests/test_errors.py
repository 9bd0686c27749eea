from __future__ import annotations

import inspect

import pytest

from posttrain import errors
from posttrain.errors import ConfigError, PosttrainError, Problem


def test_a_problem_reads_place_cause_mend() -> None:
    assert (
        str(Problem("a.yaml:6", "unknown key 'x'", "did you mean 'y'?"))
        == "a.yaml:6: unknown key 'x'; did you mean 'y'?"
    )
    assert str(Problem("", "no model")) == "no model"


def test_an_error_tells_all_problems_in_order() -> None:
    error = ConfigError(Problem("a:1", "one"), "two")
    assert str(error) == "a:1: one\ntwo"
    assert error.problems == (Problem("a:1", "one"), Problem("", "two"))


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("PosttrainError", 1),
        ("ConfigError", 2),
        ("DataError", 1),
        ("TemplateError", 1),
        ("MissingError", 3),
        ("DiskError", 1),
        ("TrainingError", 1),
        ("PartlyDone", 4),
        ("Interrupted", 130),
    ],
)
def test_exit_codes_are_those_of_the_tree(name: str, code: int) -> None:
    assert errors.__dict__[name].exit_code == code
    assert errors.__doc__ is not None
    line = next(line for line in errors.__doc__.splitlines() if f" {name} " in f"{line} ")
    assert f"exit {code}" in line


def test_the_tree_is_complete() -> None:
    classes = {n for n, c in vars(errors).items() if inspect.isclass(c) and issubclass(c, PosttrainError)}
    assert classes | {"Problem", "shell_word"} == set(errors.__all__)
