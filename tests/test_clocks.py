"""Tests hold beside busy processes: none fails because a clock on the wall went on while it did not run."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TESTS = Path(__file__).parent


@given(st.integers())
def test_every_property_is_without_a_deadline(number: int) -> None:
    """The profile of conftest.py is the one in force, for settings that say nothing, too."""
    for said in (settings(), settings(max_examples=number % 7 + 1), settings.get_profile("posttrain")):
        assert said.deadline is None
        assert HealthCheck.too_slow in said.suppress_health_check


def test_no_property_has_a_deadline_of_its_own(request: pytest.FixtureRequest) -> None:
    """Looks at every property that was collected with this test."""
    bounded = [
        item.nodeid
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and (said := vars(item.obj).get("_hypothesis_internal_use_settings"))
        and (said.deadline is not None or HealthCheck.too_slow not in said.suppress_health_check)
    ]
    assert bounded == []


def timed_by_the_wall(source: str) -> list[int]:
    """Lines with an assertion that reads a clock on the wall, or a name that was bound to one, or a short timeout."""
    if not re.search(r"monotonic|perf_counter|time\s*\.\s*time|timeout", source):
        return []
    tree = ast.parse(source)

    def reads(node: ast.AST, names: set[str]) -> bool:
        return any(
            (
                isinstance(part, ast.Attribute)
                and part.attr in ("monotonic", "time", "perf_counter")
                and ast.unparse(part.value) == "time"
            )
            or (isinstance(part, ast.Name) and part.id in names)
            for part in ast.walk(node)
        )

    found = []
    for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
        names: set[str] = set()
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and reads(node.value, names):
                names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        found += [
            node.lineno
            for node in ast.walk(function)
            if isinstance(node, ast.Assert)
            and any(isinstance(part, ast.Compare) and reads(part, names) for part in ast.walk(node.test))
        ]
    found += [
        node.value.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword)
        and node.arg == "timeout"
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, int | float)
        and node.value.value < 120
    ]
    return sorted(set(found))


def test_nothing_is_timed_by_the_clock_on_the_wall() -> None:
    """Seconds of the processor may be counted (`time.process_time`); processes get minutes, since they may wait."""
    found = {
        f"{path.relative_to(TESTS)}:{line}"
        for path in sorted(TESTS.rglob("*.py"))
        for line in timed_by_the_wall(path.read_text("utf-8"))
    }
    assert found == set()


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("def f():\n    began = time.monotonic()\n    assert time.monotonic() - began < 5", [3]),
        ("def f():\n    took = time.perf_counter() - 1\n    assert took < 5", [3]),
        ("def f():\n    began = time.process_time()\n    assert time.process_time() - began < 5", []),
        ("def f():\n    subprocess.run(words, timeout=60)", [2]),
        ("def f():\n    subprocess.run(words, timeout=240)", []),
    ],
)
def test_the_test_of_clocks_itself(source: str, lines: list[int]) -> None:
    assert timed_by_the_wall(source) == lines
