"""A dated template at a fixed moment: what it printed then, in every format, and nothing else changed."""

from __future__ import annotations

import copy
from datetime import datetime
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.chat import encode_prompt, render
from posttrain.data.records import Conversation, Message
from posttrain.errors import TemplateError
from posttrain.models.template_dates import at_moment, is_dated, moment_of, stay_at
from tests.pico import CHATML, MARKED, tokenizer
from tests.templates import GPT_OSS, LLAMA32, QWEN3, shipped, tokenizer_of

DAY = datetime(2031, 3, 5, 16, 7, 9)
TALK = Conversation((Message("user", "Hi"), Message("assistant", "Yo")), "a:1")


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Templates are rendered on the 26th of May 2030."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Clock:
            return cls(2030, 5, 26, 8, 30)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)


def fresh(template: str) -> Any:
    own = any(word in template for word in ("header", "channel", "im_start"))
    return copy.deepcopy(tokenizer_of(template) if own else tokenizer(template))


DATED = {
    "llama": (LLAMA32, "Today Date: {}\n", "%d %b %Y"),
    "gpt-oss": (GPT_OSS, "Current date: {}<", "%Y-%m-%d"),
    "llama's own": (shipped("llama3_2"), "Today Date: {}\n", "%d %b %Y"),
    "gpt-oss's own": (shipped("gptoss"), "Current date: {}\n", "%Y-%m-%d"),
    "two dates": (
        "{%- set today = strftime_now('%d-%m-%Y') %}{{ today }} {{ strftime_now(\"%A, %B %-d; 100%% %H:%M\") }}|"
        + MARKED,
        "{}|",
        "%d-%m-%Y %A, %B %-d; 100%% %H:%M",
    ),
    "a format in a variable": ("{%- set how = '%y%m%d' %}<{{ strftime_now(how) }}>" + CHATML, "<{}>", "%y%m%d"),
    "a format from pieces": ("{{ strftime_now('%Y' + '/' + '%j') }}," + CHATML, "{},", "%Y/%j"),
    "a directive from pieces": (
        "{% set f = '%' + 'Y' %}{{ strftime_now(f) }} {{ strftime_now('%' ~ 'm') }}." + CHATML,
        "{}.",
        "%Y %m",
    ),
    "in a macro": (
        "{% macro day(f) %}{{ strftime_now('%' + f) }}{% endmacro %}{{ day('d') }}." + CHATML,
        "{}.",
        "%d",
    ),
    "under another name": ("{% set now = strftime_now %}{{ now('%' + 'y') }}." + CHATML, "{}.", "%y"),
    "percent signs": ("{{ strftime_now('100%% %%Y %%%H %e 5%') }}." + CHATML, "{}.", "100%% %%Y %%%H %e 5%"),
    "alternative forms": ("{{ strftime_now('%Ey|%Od|%^b|%_d|%-H') }}." + CHATML, "{}.", "%Ey|%Od|%^b|%_d|%-H"),
    "guarded": ("{% if strftime_now is defined %}{{ strftime_now('%x') }}{% endif %};" + CHATML, "{};", "%x"),
    "within a loop": (CHATML.replace("m.content", "strftime_now('%e') + '=' + m.content"), "{}=", "%e"),
}


@pytest.mark.parametrize("name", DATED)
def test_the_date_stays(name: str) -> None:
    template, printed, how = DATED[name]
    tok = fresh(template)
    assert is_dated(tok)
    today = tok.decode(render(TALK, tok).input_ids)
    asked = tok.decode(encode_prompt("Hi", tok))
    now, then = datetime(2030, 5, 26, 8, 30).strftime(how), DAY.strftime(how)
    assert now != then
    assert printed.format(now) in today
    stay_at(tok, DAY)
    fixed = tok.decode(render(TALK, tok).input_ids)
    assert printed.format(then) in fixed
    assert fixed == today.replace(printed.format(now), printed.format(then))  # and nothing else
    assert tok.decode(encode_prompt("Hi", tok)) == asked.replace(printed.format(now), printed.format(then))
    stay_at(tok, None)
    assert moment_of(tok) is None
    assert tok.decode(render(TALK, tok).input_ids) == today


@pytest.mark.parametrize("start", ["", "\n", "\n\n", "  ", "  {% if true %}\n  x{% endif %}", "{# note #}\n", "\t\n "])
def test_white_space_at_the_beginning_stays(start: str) -> None:
    import jinja2

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["strftime_now"] = DAY.strftime
    source = start + "|{{ strftime_now('%Y') }}"
    assert environment.from_string(at_moment(source, DAY)).render() == environment.from_string(source).render()


PIECES = ["%%", "%Y", "%d", "%B", "%e", "%-H", "%_m", "%^a", "%Oy", "%j", "Y", "d", "-", "^", " ", "\n", "年", ":"]


@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
def test_any_format_is_written_as_strftime_writes_it(how: str) -> None:
    assert of_any_format().render(how=how) == DAY.strftime(how)


@cache
def of_any_format() -> Any:
    """A template that gets the format, compiled once: 40 ms."""
    import jinja2

    return jinja2.Environment(trim_blocks=True).from_string(at_moment("{{ strftime_now(how) }}", DAY))


@pytest.mark.parametrize("template", [QWEN3, MARKED, CHATML, shipped("llama3_1")])
def test_templates_without_a_date_stay_as_they_are(template: str) -> None:
    tok = fresh(template)
    assert not is_dated(tok)
    assert at_moment(template, DAY) == template
    before = render(TALK, tok)
    stay_at(tok, DAY)
    assert render(TALK, tok) == before


def test_a_line_of_the_template_is_named_as_the_user_counts_it() -> None:
    tok = fresh("{{ strftime_now('%Y') }}\n{% if %}")
    for moment in (None, DAY):
        stay_at(tok, moment)
        with pytest.raises(TemplateError, match=r"not valid Jinja: line 2"):
            encode_prompt("Hi", tok)


def test_several_templates() -> None:
    tok = fresh(CHATML)
    tok.chat_template = {"default": CHATML, "tool_use": "{{ strftime_now('%Y') }}" + MARKED}
    assert is_dated(tok)
