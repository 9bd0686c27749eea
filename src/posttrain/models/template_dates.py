"""Control the date that a chat template writes into a conversation.

Some templates (Llama 3.2, gpt-oss, SmolLM3, Mistral Small) print today's date by calling `strftime_now`, so a run that
is continued the next day would be a different run. A tokenizer can be fixed at one moment: its templates are then
rendered with the date of that moment.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from string import ascii_letters
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PINNED", "at_moment", "is_dated", "moment_of", "stay_at"]

CLOCK = re.compile(r"\bstrftime_now\b")
DIRECTIVES = [f"%{flag}{letter}" for flag in ("", *"-_0^#EO") for letter in ascii_letters]
PINNED = "{%- macro posttrain_strftime(format) -%}"
"""Beginning of a template that is fixed at one moment."""
MACRO = (
    "{%- set table = TABLE -%}"
    "{%- set seen = namespace(percent=false) -%}"
    "{%- for part in format.split('%') -%}"
    "{%- if loop.first or seen.percent -%}{%- set seen.percent = false -%}{{- part -}}"  # the Y of %%Y is a letter
    "{%- elif not part -%}{%- set seen.percent = true -%}{{- '%' -}}"
    "{%- elif part[:2] in table -%}{{- table[part[:2]] + part[2:] -}}"
    "{%- elif part[:1] in table -%}{{- table[part[:1]] + part[1:] -}}"
    "{%- else -%}{{- '%' + part -}}"
    "{%- endif -%}{%- endfor -%}{%- endmacro %}"
)
"""Body of the macro in such a template."""

_moments: WeakKeyDictionary[PreTrainedTokenizerBase, datetime] = WeakKeyDictionary()


def is_dated(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether one of the tokenizer's templates prints the date."""
    template = tokenizer.chat_template
    sources = template.values() if isinstance(template, dict) else [template or ""]
    return any(CLOCK.search(source) for source in sources)


def stay_at(tokenizer: PreTrainedTokenizerBase, moment: datetime | None) -> None:
    """From now on render the tokenizer's templates with the date of this moment; None means the time of rendering."""
    if moment is None:
        _moments.pop(tokenizer, None)
    else:
        _moments[tokenizer] = moment


def moment_of(tokenizer: PreTrainedTokenizerBase) -> datetime | None:
    """Return the moment that the tokenizer is fixed at; None if it is not fixed."""
    return _moments.get(tokenizer)


def at_moment(source: str, moment: datetime | None) -> str:
    """Return the template changed so that it always prints this moment's date.

    The result has one more line at its beginning. `strftime_now` becomes a macro with a table of all directives,
    because transformers passes no other function to a template. Return the template unchanged if it prints no date or
    `moment` is None.
    """
    if moment is None or not CLOCK.search(source):
        return source
    written = {directive[1:]: text for directive in DIRECTIVES if (text := _written(moment, directive)) != directive}
    macro = MACRO.replace("TABLE", json.dumps(written, ensure_ascii=False))
    return f"{PINNED}{macro}\n" + CLOCK.sub("posttrain_strftime", source)


def _written(moment: datetime, directive: str) -> str:
    try:
        return moment.strftime(directive)
    except ValueError:  # keep a directive that this system does not know
        return directive
