"""Expressions over models: their weights, exactly, and errors that point at the place."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from posttrain.errors import ConfigError
from posttrain.merging.expression import MOST, parse

NAMES = ("a", "b", "c", "base", "math", "數學")
THIRD = Fraction(1, 3)


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("a", {"a": 1}),
        ("(a - b) + b", {"a": 1, "b": 0}),
        ("c + (a - b)", {"c": 1, "a": 1, "b": -1}),
        ("2*base - math", {"base": 2, "math": -1}),
        ("base - (math - base)", {"base": 2, "math": -1}),
        ("0.7*a + 0.3*b", {"a": Fraction(7, 10), "b": Fraction(3, 10)}),
        ("a/3 + b/3 + c/3", {"a": THIRD, "b": THIRD, "c": THIRD}),
        ("(a + b + c)/3", {"a": THIRD, "b": THIRD, "c": THIRD}),
        ("1/3*a + 2/3*b", {"a": THIRD, "b": 2 * THIRD}),
        ("base + 0.8*(math - base)", {"base": Fraction(1, 5), "math": Fraction(4, 5)}),
        ("base + 0.5*((a - base) + (b - base))", {"base": 0, "a": Fraction(1, 2), "b": Fraction(1, 2)}),
        ("-(-a)", {"a": 1}),
        ("--a", {"a": 1}),
        ("-b + a*2", {"b": -1, "a": 2}),
        ("a - -b - b", {"a": 1, "b": 0}),
        ("a*-1 + 2*a", {"a": 1}),
        ("(1 + 2 - 2)*a", {"a": 1}),
        ("base+.5*( 數學-base )", {"base": Fraction(1, 2), "數學": Fraction(1, 2)}),
        ("1e-1*a + 9E-1*b", {"a": Fraction(1, 10), "b": Fraction(9, 10)}),
        ("base\n + 2.*(math - base)", {"base": -1, "math": 2}),
        ("1e9*a - 999999999*a", {"a": 1}),
    ],
)
def test_weights_are_multiplied_out_exactly(text: str, weights: dict[str, Any]) -> None:
    found = parse(text, NAMES)
    assert found.weights == weights
    assert list(found.weights) == list(weights)  # in the order of the text
    assert found.total == 1


def test_what_is_computed_is_explained() -> None:
    assert parse("base + 0.8*(math - base)", NAMES).explained() == "0.2 base + 0.8 math"
    assert parse("2*base - math", NAMES).explained() == "2 base - 1 math"
    assert parse("-b + a + b", NAMES).explained() == "1 a"
    assert parse("-b + 2*a", NAMES).explained() == "- 1 b + 2 a"


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("base + mth", 8, "unknown name 'mth' in 'base + mth'; did you mean 'math'?"),
        ("base + zzzzz", 8, "say which model it is: zzzzz=FOLDER"),
        ("base + 0.5*(math - base", 12, "this parenthesis is not closed"),
        ("((a)", 1, "this parenthesis is not closed"),
        ("a)", 2, "this parenthesis closes none"),
        ("a * b", 3, "two models cannot be multiplied"),
        ("a*(b - c)", 2, "two models cannot be multiplied"),
        ("a / 0", 3, "it is divided by zero"),
        ("a/(1 - 1)", 2, "it is divided by zero"),
        ("1/a", 2, "nothing can be divided by a model"),
        ("a/b", 2, "nothing can be divided by a model"),
        ("1 + a", 3, "a number and a model cannot be added"),
        ("a - 0.5", 3, "a number and a model cannot be added"),
        ("", 1, "it ends before a model or a number"),
        ("  ", 3, "it ends before a model or a number"),
        ("a +", 4, "it ends before a model or a number"),
        ("a + * b", 5, "a model or a number is missing"),
        ("()", 2, "a model or a number is missing"),
        ("+a", 1, "a model or a number is missing"),
        ("a b", 3, "what follows is not joined to it in 'a b'; write an operator"),
        ("2a", 2, "what follows is not joined to it"),
        ("a ** b", 4, "a model or a number is missing"),
        ("a $ b", 3, "'$' is not understood"),
        ("a + ²", 5, "unknown name '²'"),
        ("a，b", 2, "'，' is not understood"),
        ("a[0]", 2, "'[' is not understood"),
        ("5", 1, "it names no model"),
        ("1e999999999*a", 1, "'1e999999999' is no weight"),
        ("a + 1e-31*b", 5, "'1e-31' is no weight"),
        ("9" * 61 + "*a", 1, "is no weight"),
        ("(" * 70 + "a" + ")" * 70, MOST + 1, "it is nested too deeply"),
        ("-" * 5000 + "a", MOST + 1, "it is nested too deeply"),
    ],
)
def test_errors_point_at_the_place(text: str, column: int, words: str) -> None:
    with pytest.raises(ConfigError) as told:
        parse(text, NAMES, "here")
    assert str(told.value).startswith(f"here:{column}: ")
    assert words in str(told.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a + b", "the weights sum to 2 and not to 1 (1 a + 1 b)"),
        ("a - b", "the weights sum to 0 and not to 1 (1 a - 1 b)"),
        ("0*a", "the weights sum to 0 and not to 1 (0)"),
        ("0.33333333*a + 0.66666666*b", "the weights sum to nearly 1 (off by -1e-08)"),
        ("*".join(["1e30"] * 20) + "*a", "the weights sum to 1e600 and not to 1"),
        ("*".join(["1e30"] * 20) + "*(a-b) + a", "larger than any number of a model"),
    ],
)
def test_weights_that_do_not_sum_to_one(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as told:
        parse(text, NAMES, "here")
    assert words in str(told.value)


def test_many_terms_are_no_trouble() -> None:
    assert parse("+".join(["a"] * 3000) + "-" + "-".join(["a"] * 2999), NAMES).weights == {"a": 1}


class Sum:
    """A weighted sum of models with Python's own operators."""

    def __init__(self, weights: dict[str, Fraction]) -> None:
        self.weights = weights

    def __add__(self, other: Sum) -> Sum:
        names = self.weights | other.weights
        return Sum({name: self.weights.get(name, Fraction(0)) + other.weights.get(name, Fraction(0)) for name in names})

    def __sub__(self, other: Sum) -> Sum:
        return self + -other

    def __neg__(self) -> Sum:
        return self * Fraction(-1)

    def __mul__(self, by: Fraction) -> Sum:
        return Sum({name: weight * by for name, weight in self.weights.items()})

    __rmul__ = __mul__

    def __truediv__(self, by: Fraction) -> Sum:
        return self * (1 / by)


WRITTEN = st.sampled_from(["0", "1", "2", "0.25", ".5", "3.", "12e-1"])
NUMBERS = st.recursive(
    WRITTEN,
    lambda inner: st.builds(lambda one, sign, other: f"({one} {sign} {other})", inner, st.sampled_from("+-*"), inner),
    max_leaves=3,
)
MODELS = st.recursive(
    st.sampled_from(["a", "b", "c"]),
    lambda inner: st.one_of(
        st.builds(lambda one, sign, other: f"({one}{sign}{other})", inner, st.sampled_from("+-"), inner),
        st.builds(lambda one, sign, other: f"{one} {sign} {other}", inner, st.sampled_from("+-"), inner),
        st.builds(lambda number, one: f"{number}*({one})", NUMBERS, inner),
        st.builds(lambda one, number: f"({one}) * {number}", inner, NUMBERS),
        st.builds(lambda one: f"({one})/4", inner),
        st.builds(lambda one: f"-({one})", inner),
    ),
    max_leaves=8,
)


@given(MODELS)
def test_it_computes_as_python_does(text: str) -> None:
    """The same text, in which numbers are fractions, evaluated by Python; what is missing from 1 is added."""
    import re

    exact = re.sub(r"(?<![a-z])(\d+\.?\d*(?:e-?\d+)?|\.\d+)", r"Fraction('\1')", text)
    models = {name: Sum({name: Fraction(1)}) for name in "abc"}
    wanted = eval(exact, {"Fraction": Fraction, **models})
    assert isinstance(wanted, Sum)
    rest = 1 - sum(wanted.weights.values(), Fraction(0))
    assume(rest.denominator <= 10**20)
    parts = f"{abs(rest.numerator)}/{rest.denominator}"
    found = parse(f"({text}) {'-' if rest < 0 else '+'} {parts}*rest", ["a", "b", "c", "rest"])
    assert found.weights == {**wanted.weights, "rest": rest}
