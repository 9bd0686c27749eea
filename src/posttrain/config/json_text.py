"""Parse JSON of a user's file: every text gives a value, or one kind of error that says what is wrong, with the line.

Python's parser also raises RecursionError (for thousands of brackets) and ValueError (for a number with thousands of
digits). It accepts escapes that are half of a character (`\\ud83d` without its other half), which cannot be encoded. It
also accepts objects that have a key twice, and silently keeps the last value.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

__all__ = ["DEEPEST", "BadJson", "parse_json"]

DEEPEST = 100
"""The most levels of brackets. Deeper values would exceed Python's recursion limit wherever they are traversed."""


class BadJson(ValueError):
    """JSON that cannot be used: the cause, the mend, and line and column, which count from 1 (0: not known)."""

    def __init__(
        self, cause: str, mend: str = "", line: int = 0, column: int = 0, *, cut: bool = False, broken: bool = False
    ) -> None:
        self.cause, self.mend, self.line, self.column = cause, mend, line, column
        self.cut = cut
        """Whether the text seems to be cut off."""
        self.broken = broken
        """True: the text is not JSON. False: it is JSON that is refused."""
        super().__init__(cause)


def parse_json(text: str) -> Any:
    """Return the value of a JSON text. Raise BadJson, and no other error, if it cannot be used."""
    try:
        value = READER.decode(text) if not text.startswith("\ufeff") else json.loads(text)  # json.loads reports the BOM
    except KeyError:  # raised by `_unique`
        _refuse_doubled(text)
    except json.JSONDecodeError as error:
        mend = _comma(error)
        ends = error.pos >= len(text) - 1 and "Extra data" not in error.msg and text[error.pos :] not in CLOSING
        cut = not mend and (ends or "Unterminated" in error.msg)
        what = error.msg.removesuffix(" starting at")
        raise BadJson(f"not valid JSON: {what}", mend, error.lineno, error.colno, cut=cut, broken=True) from error
    except RecursionError as error:
        raise BadJson(*TOO_DEEP) from error
    except ValueError as error:  # Python reads no number of more than 4,300 digits
        raise BadJson("a number with too many digits", "write it as a text, in quotation marks") from error
    if text.count("[") + text.count("{") > DEEPEST and _too_deep(value):
        raise BadJson(*TOO_DEEP)
    if "\\ud" in text or "\\uD" in text:
        fault = _fault_of(value)
        if fault:
            raise BadJson(fault, "write the whole character")
    return value


CLOSING = ("}", "]")


def _comma(error: json.JSONDecodeError) -> str:
    """Return the mend when the error is a comma after the last value, else ""."""
    text, at = error.doc, error.pos
    if "Extra data" in error.msg:
        return "remove the comma at the end" if text[at:].strip() == "," else ""
    if error.msg.startswith("Illegal trailing comma"):  # Python 3.13 reports the comma's position, 3.11 the next one
        at += 1
    rest = text[at:].lstrip()
    before = text[: len(text) - len(rest)].rstrip()
    return f"remove the comma before {rest[0]!r}" if rest.startswith(CLOSING) and before.endswith(",") else ""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise KeyError
    return found


READER = json.JSONDecoder(object_pairs_hook=_unique)
"""The decoder, which is made once, since `json.loads` would make one for each text."""
PARTS = re.compile(r'("(?:[^"\\]|\\.)*")(\s*:)?|[{}]', re.DOTALL)
"""Matches the strings of a JSON text, with the colon after a key, and the braces of objects."""


def _refuse_doubled(text: str) -> NoReturn:
    """Raise BadJson for a JSON text that has a key twice in one object, with the line and column of the second key."""
    inside: list[set[str]] = []
    for part in PARTS.finditer(text):
        if part[0] == "{":
            inside.append(set())
        elif part[0] == "}":
            inside.pop()
        elif part[2]:
            key: str = json.loads(part[1])
            if key in inside[-1]:
                line, column = text.count("\n", 0, part.start()) + 1, part.start() - text.rfind("\n", 0, part.start())
                raise BadJson(f"an object that has the key {key!r} twice", "keep one of them", line, column) from None
            inside[-1].add(key)
    raise AssertionError("this should not happen: a doubled key that is not found")


TOO_DEEP = (f"brackets nested more than {DEEPEST} levels deep", "no data has that many; write the file again")


def _too_deep(value: Any) -> bool:
    """Return whether a value holds lists or objects more than DEEPEST levels deep."""
    level = [value]
    for _ in range(DEEPEST):
        held = (one for one in level if isinstance(one, dict | list))
        level = [inner for one in held for inner in (one.values() if isinstance(one, dict) else one)]
    return any(isinstance(one, dict | list) for one in level)


def _fault_of(value: Any) -> str:
    """Return the cause if a text in a value has half of a character, else "". The value must not be too deep."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        return f"\\u{ord(error.object[error.start]):04x} is half of a character"
    return ""
