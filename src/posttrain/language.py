"""Choose the language of messages for people: English as in the code, or Traditional Chinese from a catalogue.

Messages are written in English in the code and translated when they are shown, so that everything that is stored,
compared or printed as JSON is English. Text that is not in the catalogue stays English too. When the language is
English, no catalogue is read.

The catalogue is `locale/zh_TW/LC_MESSAGES/messages.mo` (GNU gettext). `python tools/messages.py` compiles it from the
`.po` file in the same folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from posttrain.catalogue import Catalogue, catalogue_of, read_mo, translated
from posttrain.errors import ConfigError, PosttrainError, Problem

__all__ = ["LANGUAGES", "from_environment", "listed", "named", "placed", "shown", "speak", "spoken", "translate"]

ENGLISH, CHINESE = "en", "zh-TW"
LANGUAGES: tuple[str, ...] = (ENGLISH, CHINESE)
"""The languages as BCP 47 tags, as in `--language` and `<html lang>`."""

LONGEST = 4000
"""The greatest length of a message in characters; longer texts are not translated."""

_state = {"language": ENGLISH}


def spoken() -> str:
    """Return the language that is used now."""
    return _state["language"]


def speak(language: str) -> None:
    """Show messages in this language from now on."""
    _state["language"] = named(language)


def named(text: str) -> str:
    """Return the language of a tag such as `zh_TW.UTF-8`, `zh-Hant` or `en_US`. Raise ConfigError for any other."""
    found = _language_of(text)
    if found is None:
        raise ConfigError(Problem("--language", f"unknown language '{text}'", f"known: {', '.join(LANGUAGES)}"))
    return found


def from_environment(environment: Mapping[str, str] = os.environ) -> str:
    """Return the language of LANGUAGE, LC_ALL, LC_MESSAGES and LANG, in gettext's order; English if none is supported.

    LANGUAGE is a list of preferences and is ignored when the locale is `C`:
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
    """Return Traditional Chinese for zh with Taiwan, Hong Kong, Macau or Hant and no Hans, English for en, or None."""
    parts = tag.partition(".")[0].partition("@")[0].replace("_", "-").casefold().split("-")
    if parts[0] == "zh" and "hans" not in parts and {"tw", "hk", "mo", "hant"} & set(parts):
        return CHINESE
    return ENGLISH if parts[0] == "en" else None


def translate(text: str) -> str:
    """Return a message in the language that is used. The space around it is kept, and unknown text stays English."""
    if _state["language"] == ENGLISH or not text or len(text) > LONGEST:
        return text
    bare = text.strip()
    start = text.index(bare)
    return text[:start] + (translated(_catalogue(), bare) or bare) + text[start + len(bare) :]


def shown(error: PosttrainError | Problem) -> str:
    """Return the text of an error or of one problem for people: location, cause and mend, each translated by itself."""
    if isinstance(error, PosttrainError):
        return "\n".join(shown(problem) for problem in error.problems)
    if _state["language"] == ENGLISH:
        return str(error)
    head = translate(error.cause)
    if error.location:
        head = placed(translate(error.location), head)
    return f"{head}；{translate(error.mend)}" if error.mend else head


def placed(location: str, text: str) -> str:
    """Return `location: text`, with the colon of the language that is used."""
    return f"{location}{': ' if _state['language'] == ENGLISH else '：'}{text}"


def listed(texts: Iterable[str]) -> str:
    """Join texts as a list, with the comma of the language that is used."""
    return (", " if _state["language"] == ENGLISH else "、").join(texts)


@cache
def _catalogue() -> Catalogue:
    return catalogue_of(read_mo(Path(__file__).parent / "locale" / "zh_TW" / "LC_MESSAGES" / "messages.mo"))
