"""Parse YAML of a user's file: every text gives a tree that can be traversed, or ConfigError with the line.

The parser (ruamel.yaml) raises many errors in addition to its own: ValueError for a date in month 99, KeyError for
`!!bool x`, RecursionError for thousands of brackets. It also returns trees that cannot be used: trees with aliases that
multiply into millions of values, and texts with half of a character.

Chinese input methods write full-width signs (`study：tiny`, `seeds: ［0，1］`). The parser reads them as letters and
reports an error in a later line. This module finds and names them.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.tokens import FlowMappingEndToken, FlowMappingStartToken, FlowSequenceEndToken, FlowSequenceStartToken

from posttrain.config.json_text import DEEPEST, TOO_DEEP
from posttrain.errors import ConfigError, Problem

__all__ = ["as_written", "in_value", "parse_yaml", "plain"]

MOST_VALUES = 1_000_000
"""The most values of a file; a value that aliases repeat counts each time."""
PARSER_ERRORS = (ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, NotImplementedError)
"""The errors that the parser raises for scalars and tags that it cannot convert."""


def parse_yaml(text: str, name: str) -> Any:
    """Return the tree of a YAML text, or None when the text is empty. Its mappings and lists know their lines. name: of
    the file, for errors, or "". Raise ConfigError.
    """
    if text.count("[") + text.count("{") > DEEPEST:
        _check_brackets(text, name)
    try:
        node = YAML(typ="rt").load(io.StringIO(text.replace("\r\n", "\n")))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if mark and (wide := _in_text(text, mark.line + 1, name)):
            raise ConfigError(*wide) from error
        what = error.problem or error.context or "unreadable"
        mend = "indent with spaces, not tabs" if r"'\t'" in what else ""
        raise _error(name, mark.line + 1 if mark else 1, f"not valid YAML: {what}", mend) from error
    except YAMLError as error:
        raise _error(name, None, f"not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise _error(name, None, *TOO_DEEP) from error
    except PARSER_ERRORS as error:
        what = " ".join(str(error).split())[:100]
        cause = f"a value that cannot be read: {what}"
        raise _error(name, None, cause, "put the value in quotation marks if it is text") from error
    return _sound(node, name)


def _fault(text: str) -> int | None:
    """Return the line (from 1) at which the parser fails on a text, or None when it succeeds."""
    try:
        YAML(typ="rt").load(io.StringIO(text.replace("\r\n", "\n")))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        return mark.line + 1 if mark else 1
    except (YAMLError, RecursionError, *PARSER_ERRORS):
        return 1
    return None


def _reads(text: str) -> Any:
    """Return the value of a text as YAML, or None when it is not YAML."""
    try:
        return parse_yaml(text, "")
    except ConfigError:
        return None


def _check_brackets(text: str, name: str) -> None:
    """Raise ConfigError when brackets are nested too deep: the parser would take minutes to fail."""
    depth = 0
    try:
        for token in YAML(typ="safe", pure=True).scan(io.StringIO(text)):
            if isinstance(token, FlowSequenceStartToken | FlowMappingStartToken):
                depth += 1
                if depth > DEEPEST:
                    raise _error(name, token.start_mark.line + 1, *TOO_DEEP)
            elif isinstance(token, FlowSequenceEndToken | FlowMappingEndToken):
                depth -= 1
    except (YAMLError, *PARSER_ERRORS):
        return  # the parser reports it


def _error(name: str, line: int | None, cause: str, mend: str = "") -> ConfigError:
    return ConfigError(Problem(f"{name}:{line}" if name and line else name, cause, mend))


def _sound(root: Any, name: str) -> Any:
    """Return the tree, with two halves of a character joined to one (`"\\ud83d\\ude00"`, as JSON writes it).

    Raise ConfigError for half of a character, too many levels, too many values, and a key that is no word."""
    if not isinstance(root, dict | list):
        return _whole(root, name, 1) if isinstance(root, str) else root
    held: list[tuple[Any, int]] = [(root, 0)]
    count = 0
    while held:
        node, depth = held.pop()
        if depth > DEEPEST:
            raise _error(name, _line(node), *TOO_DEEP)
        items = list(node.items() if isinstance(node, dict) else enumerate(node))
        count += len(items)
        if count > MOST_VALUES:
            raise _error(name, None, f"aliases (*name) make more than {MOST_VALUES:,} values of it", "write it out")
        for key, value in items:
            if isinstance(key, dict | list | tuple):
                raise _error(name, _line(node), "a key is a mapping or a list", "a key is a word, then a colon")
            if isinstance(key, str) and _whole(key, name, _line(node)) != key:
                raise _error(name, _line(node), "a key with an escape of half a character", "write the character")
            if isinstance(value, str):
                if (whole := _whole(value, name, _line(node, key))) != value:
                    node[key] = whole
            elif isinstance(value, dict | list):
                held.append((value, depth + 1))
    return root


def _whole(text: str, name: str, line: int | None) -> str:
    if text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError as error:
        half = next(character for character in text if "\ud800" <= character <= "\udfff")
        cause = f"\\u{ord(half):04x} is half of a character"
        raise _error(name, line, cause, "write the whole character") from error


def _line(node: Any, key: Any = None) -> int | None:
    """Return the line of a mapping or list, or of a value in it; None for values made by `<<` or --set."""
    if not isinstance(node, CommentedMap | CommentedSeq):
        return None
    lines = node.lc.data or {}
    if key is not None and key in lines:
        row: int = lines[key][2 if isinstance(node, CommentedMap) else 0]
        return row + 1
    return None if node.lc.line is None else int(node.lc.line) + 1


def plain(node: Any) -> Any:
    """Return ruamel nodes as plain dicts, lists and scalars."""
    if isinstance(node, dict):
        return {str(k): plain(v) for k, v in node.items()}
    if isinstance(node, list):
        return [plain(v) for v in node]
    if isinstance(node, bool) or node is None:
        return node
    if isinstance(node, TaggedScalar):  # with an unknown tag
        return node.value
    for kind in (int, float, str):  # ruamel's scalar classes derive from these
        if isinstance(node, kind):
            return kind(node)
    return node


def as_written(scalar: Any) -> str:
    """Return a number, a date or a truth value as it is written in the file: 007, 1.50, 2020-01-01."""
    stream = io.StringIO()
    YAML(typ="rt").dump([scalar], stream)
    return stream.getvalue().strip().removeprefix("- ")


# ---- full-width signs ------------------------------------------------------------------------------------------------


class _Wide(NamedTuple):
    """Signs of one kind. name: of the signs; mend: what to write instead; signs: the ASCII sign for each code point."""

    name: str
    mend: str
    signs: dict[int, str]


KINDS = (
    _Wide("the full-width colon ：", "write : and a space", {ord("："): ": "}),
    _Wide("full-width brackets", "write [ ] or { }", dict(zip(map(ord, "［］｛｝【】"), "[]{}[]", strict=True))),
    _Wide("the full-width comma ，", "write , and a space", {ord("，"): ", ", ord("、"): ", "}),
    _Wide("full-width quotation marks", 'write "', dict.fromkeys(map(ord, "“”＂「」『』"), '"')),
)
"""The kinds of signs, in the order in which they are tried."""
SPACE = {0x3000: " "}
"""The full-width space, which is replaced together with signs of any kind."""
MOST_TRIED = 20
"""The most lines before the reported line that are tried, and the most problems that are reported."""


def _in_text(text: str, line: int, name: str) -> list[Problem]:
    """Return problems for the full-width signs that make a text invalid YAML. A sign is the cause if the parser gets
    further with the ASCII sign instead. line: the line at which the parser failed, which is not before the sign."""
    lines = text.split("\n")
    problems: list[Problem] = []
    at: int | None = line
    while at is not None and len(problems) < MOST_TRIED:
        for number, changed, kinds in _changes(lines, at):
            tried = [*lines[:number], changed, *lines[number + 1 :]]
            reached = _fault("\n".join(tried))
            if reached is None or reached > at:
                lines, at = tried, reached
                location = f"{name}:{number + 1}" if name else ""
                problems += [Problem(location, f"not valid YAML: {kind.name}", kind.mend) for kind in kinds]
                break
        else:
            break
    return sorted(problems, key=lambda problem: int(problem.location.rpartition(":")[2] or 0))


def _changes(lines: list[str], at: int) -> Iterator[tuple[int, str, list[_Wide]]]:
    """Yield (index, line with ASCII signs, kinds of signs) for the lines from `at` (from 1) upwards, nearest first."""
    tried = 0
    for number in range(min(at, len(lines)) - 1, -1, -1):
        kinds = [kind for kind in KINDS if any(ord(sign) in kind.signs for sign in lines[number])]
        tried += bool(kinds)
        for kind in kinds:
            yield number, lines[number].translate({**kind.signs, **SPACE}), [kind]
        if len(kinds) > 1:
            every = {code: sign for kind in kinds for code, sign in kind.signs.items()}
            yield number, lines[number].translate({**every, **SPACE}), kinds
        if tried == MOST_TRIED:
            return


def in_value(text: object, *, listed: bool) -> tuple[str, str] | None:
    """Return (cause, mend) when full-width signs explain why a value or key was refused, else None.

    They do if it would be a mapping or a list with ASCII signs, or is in full-width quotation marks. listed: it is an
    item of a list, in which a full-width comma explains it too.
    """
    if not isinstance(text, str):
        return None
    for kind in KINDS:
        changed = text.translate({**kind.signs, **SPACE})
        if all(ord(sign) not in kind.signs for sign in text):
            continue
        whole = kind is KINDS[-1] and {ord(text[0]), ord(text[-1])} <= kind.signs.keys()
        apart = kind is KINDS[2] and listed
        if whole or apart or isinstance(_reads(changed), dict | list):
            return f"{kind.name} in {text!r}", kind.mend
    return None
