"""The language a person is spoken to in: English as it stands in the code, or Traditional Chinese from a catalogue.

Messages are written in English where they arise and translated where they are shown, so that what is stored, compared
or printed as JSON stays English. Text that is no message of the catalogue stays English too. In English nothing is read
and nothing is matched.

The catalogue is `locale/zh_TW/LC_MESSAGES/messages.mo` (GNU gettext), made from the `.po` file beside it by
`python tools/messages.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from posttrain.catalogue import Catalogue, catalogue_of, read_mo, translated
from posttrain.errors import ConfigError, PosttrainError, Problem

__all__ = [
    "LANGUAGES",
    "from_environment",
    "listed",
    "named",
    "placed",
    "shown",
    "speak",
    "spoken",
    "translate",
]

ENGLISH, CHINESE = "en", "zh-TW"
LANGUAGES: tuple[str, ...] = (ENGLISH, CHINESE)
"""BCP 47 tags, as in `--language` and `<html lang>`."""

LONGEST = 4000
"""A longer text is no message: it stays as it is."""

_state = {"language": ENGLISH}


def spoken() -> str:
    """The language that is spoken now."""
    return _state["language"]


def speak(language: str) -> None:
    """From now on messages are shown in this language."""
    _state["language"] = named(language)


def named(text: str) -> str:
    """The language that a tag means, such as `zh_TW.UTF-8`, `zh-Hant` or `en_US`; ConfigError when there is none."""
    found = _language_of(text)
    if found is None:
        raise ConfigError(Problem("--language", f"unknown language '{text}'", f"known: {', '.join(LANGUAGES)}"))
    return found


def from_environment(environment: Mapping[str, str] = os.environ) -> str:
    """The language of LANGUAGE, LC_ALL, LC_MESSAGES and LANG, in gettext's order; English when they name none we have.

    LANGUAGE is a list of wishes and is not heard when the locale is `C`:
    https://www.gnu.org/software/gettext/manual/html_node/Locale-Environment-Variables.html
    """
    locale = next((environment[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if environment.get(name)), "")
    if locale in ("C", "POSIX"):
        return ENGLISH
    for wish in (environment.get("LANGUAGE") or locale).split(":"):
        found = _language_of(wish)
        if found is not None:
            return found
    return ENGLISH


def _language_of(tag: str) -> str | None:
    """zh with Taiwan, Hong Kong, Macau or Hant is Traditional Chinese; Hans is not, whatever the country."""
    parts = tag.partition(".")[0].partition("@")[0].replace("_", "-").casefold().split("-")
    if parts[0] == "zh" and "hans" not in parts and {"tw", "hk", "mo", "hant"} & set(parts):
        return CHINESE
    return ENGLISH if parts[0] == "en" else None


def translate(text: str) -> str:
    """A message in the language spoken; the space around it is kept, and what is unknown stays English."""
    if _state["language"] == ENGLISH or not text or len(text) > LONGEST:
        return text
    bare = text.strip()
    start = text.index(bare)
    return text[:start] + (translated(_catalogue(), bare) or bare) + text[start + len(bare) :]


def shown(error: PosttrainError | Problem) -> str:
    """An error, or one problem of it, for a person: place, cause and mend, each translated by itself."""
    if isinstance(error, PosttrainError):
        return "\n".join(shown(problem) for problem in error.problems)
    if _state["language"] == ENGLISH:
        return str(error)
    head = translate(error.cause)
    if error.place:
        head = placed(translate(error.place), head)
    return f"{head}；{translate(error.mend)}" if error.mend else head


def placed(place: str, text: str) -> str:
    """`place: text`, with the colon of the language spoken."""
    return f"{place}{': ' if _state['language'] == ENGLISH else '：'}{text}"


def listed(texts: Iterable[str]) -> str:
    """Texts in a row, with the comma of the language spoken."""
    return (", " if _state["language"] == ENGLISH else "、").join(texts)


@cache
def _catalogue() -> Catalogue:
    return catalogue_of(read_mo(Path(__file__).parent / "locale" / "zh_TW" / "LC_MESSAGES" / "messages.mo"))
