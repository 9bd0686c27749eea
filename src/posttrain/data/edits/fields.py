"""Read the fields of a record of an editing data set. A wrong field raises `BadRow`, which names it in full:
`'requested_rewrite.target_new.str' is missing`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from posttrain.data.fields import BadRow, keys_of, kind_of, missing

__all__ = ["Fields", "Probe", "Skipped", "accepted", "answers_of"]


class Skipped(Exception):
    """A record, or a probe in it, that the data set's own code leaves out. The text says what is wrong with it, such as
    "an empty target".
    """


class Probe(NamedTuple):
    """A question with its answers: for each of several answers the texts that mean it, at least one. The first text of
    the first answer is the one that is scored.
    """

    prompt: str
    answers: tuple[tuple[str, ...], ...]

    @property
    def first(self) -> str:
        """The text that is scored."""
        return self.answers[0][0]

    @property
    def aliases(self) -> tuple[str, ...]:
        """Every text that means one of the answers, each once."""
        return accepted(self.answers)


def accepted(answers: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """Return every text of some answers, each once, in order."""
    return tuple(dict.fromkeys(text for aliases in answers for text in aliases))


def answers_of(value: Any, name: str) -> tuple[tuple[str, ...], ...]:
    """Return answers, each with its aliases. A text is one answer, a list of texts is one answer with aliases, a list
    of lists is several answers. Blank texts are left out. Skipped without any text, BadRow for other values.
    """
    listed = value if isinstance(value, list) else [value]
    groups = listed if any(isinstance(one, list) for one in listed) else [listed]
    found = []
    for group in groups:
        texts = [_text(one, name) for one in (group if isinstance(group, list) else [group]) if one is not None]
        if kept := tuple(dict.fromkeys(text.strip() for text in texts if text.strip())):
            found.append(kept)
    if not found:
        raise Skipped("no answer")
    return tuple(found)


def _text(value: Any, name: str) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise BadRow(f"'{name}' must be a text or a list of texts, got {kind_of(value)}")
    return value


class Fields:
    """A record, or an object in it. at: its name in the record, empty for the record itself."""

    def __init__(self, value: Mapping[str, Any], at: str = "") -> None:
        self.value, self.at = value, at

    def __contains__(self, key: str) -> bool:
        return self.value.get(key) not in (None, "", [], {})

    def name(self, key: str) -> str:
        """Return the full name of a field."""
        return f"{self.at}.{key}" if self.at else key

    def text(self, key: str) -> str:
        """Return a text; a number becomes a text. BadRow when it is missing, blank or something else."""
        value, name = self.value.get(key), self.name(key)
        if value is None:
            has = f"'{self.at}' has {keys_of(self.value)}" if self.at else f"the record has {keys_of(self.value)}"
            raise BadRow(f"'{name}' is missing", missing(key, self.value, has))
        if isinstance(value, list | dict | bool):
            raise BadRow(f"'{name}' must be a text, got {kind_of(value)}")
        text = _text(value, name)
        if not text.strip():
            raise BadRow(f"'{name}' is empty")
        return text

    def texts(self, key: str) -> tuple[str, ...]:
        """Return the texts of a list; a text counts as a list, and a missing field as an empty one. BadRow when the
        list holds something else or a blank text.
        """
        value, name = self.value.get(key), self.name(key)
        if value is None:
            return ()
        found = tuple(_text(one, name) for one in (value if isinstance(value, list) else [value]))
        if any(not text.strip() for text in found):
            raise BadRow(f"'{name}' has an empty text")
        return found

    def part(self, key: str) -> Fields:
        """Return an object in it. BadRow when it is missing or something else."""
        value, name = self.value.get(key), self.name(key)
        if not isinstance(value, Mapping):
            if value is not None:
                raise BadRow(f"'{name}' must be an object, got {kind_of(value)}")
            raise BadRow(f"'{name}' is missing", missing(key, self.value, f"the record has {keys_of(self.value)}"))
        return Fields(value, name)

    def parts(self, key: str) -> Iterator[Fields]:
        """Yield the objects of a list; a missing field counts as an empty list. BadRow for something else."""
        value, name = self.value.get(key), self.name(key)
        if value is not None and not isinstance(value, list):
            raise BadRow(f"'{name}' must be a list of objects, got {kind_of(value)}")
        for i, one in enumerate(value or ()):
            if not isinstance(one, Mapping):
                raise BadRow(f"'{name}[{i}]' must be an object, got {kind_of(one)}")
            yield Fields(one, f"{name}[{i}]")

    def subject(self, key: str, prompt: str) -> str | None:
        """Return the words of the prompt that the fact is about; None when they are missing or not in the prompt."""
        value = self.value.get(key)
        return value if isinstance(value, str) and value.strip() and value in prompt else None
