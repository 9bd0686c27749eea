"""Expressions over models, such as `base + 0.8*(math - base)`: parsed, and multiplied out to a weight for each model.

    sum      = product (("+" | "-") product)*
    product  = factor (("*" | "/") factor)*
    factor   = "-" factor | number | name | "(" sum ")"

A product has a model on one side at most, and nothing is divided by a model, so every expression is a weighted sum of
models. Weights are fractions: `(a - b) + b` is exactly `a`. The weights of a model must sum to 1, and those of a
difference to 0, or norms and embeddings would be scaled with all else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fractions import Fraction
from typing import NamedTuple

from posttrain.errors import ConfigError, Problem

__all__ = ["Expression", "parse"]

TOKEN = re.compile(r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[^\W\d]\w*)|(?P<sign>[-+*/()]))")
MOST = 64
"""Deepest nesting of parentheses and signs."""
LARGEST = 30
"""Largest exponent of a number; float32 has none beyond 38."""
DIGITS = 60
"""Longest number, in characters."""


class Expression(NamedTuple):
    """A weighted sum of models. weights: name -> weight, in the order in which names first stand in the text; a name
    whose weights cancel keeps 0, as it was written and must exist.
    """

    text: str
    weights: dict[str, Fraction]

    @property
    def total(self) -> Fraction:
        """The sum of the weights."""
        return sum(self.weights.values(), Fraction(0))

    def explained(self) -> str:
        """Return the sum that is computed, such as `0.2 base + 0.8 math`."""
        parts = [("-" if w < 0 else "+", f"{_said(abs(w))} {name}") for name, w in self.weights.items() if w]
        words = " ".join(f"{sign} {part}" for sign, part in parts)
        return words.removeprefix("+ ") if words else "0"


def parse(
    text: str, names: Sequence[str], location: str = "expression", numbers: Mapping[str, float] | None = None
) -> Expression:
    """Return an expression over models with these names. numbers: names that stand for numbers. Raise ConfigError that
    points at the place of an error: a name that is not given, a product of models, a missing operand; and for weights
    that do not sum to 1.
    """
    found = _Parser(text, names, location, numbers or {}).whole()
    if found.total != 1:
        total = _said(found.total)
        if total == "1":
            total = f"nearly 1 (off by {_said(found.total - 1)})"
        mend = "add differences to a model: base + 0.8*(math - base); or weights that sum to 1: 0.5*a + 0.5*b"
        cause = f"the weights sum to {total} and not to 1 ({found.explained()}), so every number would be scaled"
        raise ConfigError(Problem(location, cause, mend))
    if any(abs(weight) > 10**LARGEST for weight in found.weights.values()):
        cause = f"its weights are larger than any number of a model ({found.explained()})"
        raise ConfigError(Problem(location, cause, "choose smaller weights"))
    return found


class _Value(NamedTuple):
    """A number (no weights), or a weighted sum of models (no number)."""

    number: Fraction | None
    weights: dict[str, Fraction]


class _Parser:
    def __init__(self, text: str, names: Sequence[str], location: str, numbers: Mapping[str, float]) -> None:
        self.text, self.names, self.location, self.numbers = text, names, location, numbers
        self.at = 0
        self.depth = 0
        self.begin = 0  # of the token that was read last

    def whole(self) -> Expression:
        value = self._sum()
        if follows := self._peek():
            if follows == ")":
                raise self._error("this parenthesis closes none", "leave it out")
            raise self._error("what follows is not joined to it", "write an operator: + - * /")
        if value.number is not None:
            raise self._error("it names no model", f"known: {', '.join(self.names)}", at=0)
        return Expression(self.text, value.weights)

    def _sum(self) -> _Value:
        left = self._product()
        while (sign := self._peek()) in ("+", "-"):
            at = self._take()
            right = self._product()
            if (left.number is None) != (right.number is None):
                raise self._error("a number and a model cannot be added", "multiply: 0.5*model", at=at)
            by = 1 if sign == "+" else -1
            if left.number is not None and right.number is not None:
                left = _Value(left.number + by * right.number, {})
            else:
                names = dict.fromkeys((*left.weights, *right.weights))
                zero = Fraction(0)
                left = _Value(None, {n: left.weights.get(n, zero) + by * right.weights.get(n, zero) for n in names})
        return left

    def _product(self) -> _Value:
        left = self._factor()
        while (sign := self._peek()) in ("*", "/"):
            at = self._take()
            right = self._factor()
            if sign == "/":
                if right.number is None:
                    raise self._error("nothing can be divided by a model", "divide by a number", at=at)
                if right.number == 0:
                    raise self._error("it is divided by zero", "divide by another number", at=at)
                left = _scaled(left, 1 / right.number)
            elif left.number is not None:
                left = _scaled(right, left.number)
            elif right.number is not None:
                left = _scaled(left, right.number)
            else:
                raise self._error("two models cannot be multiplied", "multiply by a number", at=at)
        return left

    def _factor(self) -> _Value:
        self.depth += 1
        if self.depth > MOST:
            raise self._error("it is nested too deeply", f"at most {MOST} levels")
        token = self._peek()
        try:
            if token == "-":
                self._take()
                return _scaled(self._factor(), Fraction(-1))
            if token == "(":
                opened = self._take()
                value = self._sum()
                if self._peek() != ")":
                    raise self._error("this parenthesis is not closed", "write ) where it ends", at=opened)
                self._take()
                return value
            if token and (token[0].isdecimal() or token[0] == "."):
                return _Value(self._number(token), {})
            if token and token not in "+*/)":
                at = self._take()
                if token in self.numbers:
                    return _Value(Fraction(repr(self.numbers[token])), {})
                if token not in self.names:
                    raise self._unknown(token, at)
                return _Value(None, {token: Fraction(1)})
        finally:
            self.depth -= 1
        raise self._error("a model or a number is missing" if token else "it ends before a model or a number")

    def _number(self, token: str) -> Fraction:
        """Read a number. A huge exponent would be written out, digit by digit."""
        at = self._take()
        power = token.lower().partition("e")[2]
        if len(token) > DIGITS or (power and abs(int(power)) > LARGEST):
            raise self._error(f"'{token}' is no weight", f"use numbers from 1e-{LARGEST} to 1e{LARGEST}", at=at)
        return Fraction(token)

    def _peek(self) -> str:
        """Return the next token without reading it, "" at the end."""
        match = TOKEN.match(self.text, self.at)
        if match is None:
            if self.text[self.at :].strip():
                at = self.at + len(self.text[self.at :]) - len(self.text[self.at :].lstrip())
                raise self._error(f"'{self.text[at]}' is not understood", "use names, numbers, + - * / ( )", at=at)
            return ""
        return match[match.lastgroup or 0]

    def _take(self) -> int:
        """Read the next token, and return where it begins."""
        match = TOKEN.match(self.text, self.at)
        assert match is not None
        self.at = match.end()
        return match.start(match.lastgroup or 0)

    def _unknown(self, name: str, at: int) -> ConfigError:
        close = get_close_matches(name, self.names, n=1)
        mend = f"did you mean '{close[0]}'?" if close else f"say which model it is: {name}=FOLDER"
        return self._error(f"unknown name '{name}'", mend, at=at)

    def _error(self, cause: str, mend: str = "", at: int | None = None) -> ConfigError:
        at = self.at + len(self.text[self.at :]) - len(self.text[self.at :].lstrip()) if at is None else at
        return ConfigError(Problem(f"{self.location}:{at + 1}", f"{cause} in '{self.text}'", mend))


def _said(weight: Fraction) -> str:
    """Return a weight in a few digits. Products of large numbers may be larger than any float."""
    try:
        return f"{float(weight):g}"
    except OverflowError:
        return f"{'-' if weight < 0 else ''}1e{len(str(abs(weight.numerator) // weight.denominator)) - 1}"


def _scaled(value: _Value, by: Fraction) -> _Value:
    if value.number is not None:
        return _Value(value.number * by, {})
    return _Value(None, {name: weight * by for name, weight in value.weights.items()})
