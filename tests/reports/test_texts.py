import json
import re
import string
from pathlib import Path

import pytest

from posttrain.errors import ConfigError
from posttrain.reports import numbers, table, texts
from posttrain.reports.html import VEGA
from posttrain.reports.shared import group_name, name_list
from posttrain.reports.texts import LANGUAGES, attribute, both, catalogue, inline, say, sentences, text

ROOM = Path(texts.__file__).parent
CODE = "\n".join(
    p.read_text(encoding="utf-8") for p in ROOM.rglob("*") if p.suffix in (".py", ".jinja", ".js") and p != VEGA
)


NO_WORDS = (
    *("verbatim", "list.one", "list.two", "list.by", "list.then", "seen.on_model", "seen.exam", "intro.with_exams"),
    *("exams.verdict", "tables.of", "tables.floor", "chains.named"),
)
"""Messages that only put others together."""


def fields(message: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(message) if name}


def test_both_languages_say_the_same_keys_with_the_same_arguments() -> None:
    en, zh = (catalogue(language) for language in LANGUAGES)
    assert list(en) == list(zh)
    for key, message in en.items():
        assert fields(message) == fields(zh[key]), key
        assert message.strip(), key
        assert zh[key].strip(), key


def test_chinese_texts_are_traditional_and_not_left_in_english() -> None:
    zh = catalogue("zh-TW")
    simplified = set(
        "这为个们来时会说对学习变问题样种训练没过实现单质认识错误"
    )  # forms that Traditional text does not use
    for key, message in zh.items():
        assert not simplified & set(message), key
        assert key in NO_WORDS or re.search(r"[\u4e00-\u9fff]", message), key


def test_every_key_that_code_and_templates_name_exists() -> None:
    named = set(re.findall(r"""\b(?:say|t)\(\s*["']([a-z_]+(?:\.[a-z_]+)*)["'](?!\s*~)""", CODE))
    named |= {f"answers.{name}" for name in re.findall(r'say\("answers\." \+ "([a-z_]+)"', CODE)}
    named |= {f"head.{group}" for group in (*numbers.GROUPS, "cost", "other")} | {f"table.{key}" for key in table.SHOWN}
    assert len(named) > 80
    assert named <= set(catalogue("en"))


def test_no_key_is_dead() -> None:
    computed = ("group.", "head.", "method.", "tuner.", "replay.", "table.", "answers.", "intro.", "language.",
                "capability.", "capabilities.", "quadrant.", "exams.", "forgetting.", "seen.exams_", "alone.", "pair.", "single.",
                "stages.", "merge.", "penalty.", "nav.", "uncounted.", "trace.kind.", "trace.role.")  # fmt: skip
    notes = [f"scores.{name}_about" for name in ("same", "kept", "manner", "judge", "drift", "likelihood")]
    dead = [k for k in catalogue("en") if not k.startswith(computed) and k not in notes and f'"{k}"' not in CODE]
    assert dead == []


def test_markup_of_messages_escapes_their_arguments() -> None:
    message = say("seen.learned", methods="`<b>&`", share="1 %")
    assert "<code>&lt;b&gt;&amp;</code>" in both(message)
    assert "<b>" not in both(message)
    assert inline("**a** `b` <i>") == "<strong>a</strong> <code>b</code> &lt;i&gt;"


def test_sentences_are_spaced_in_english_only() -> None:
    shown = sentences([say("plot.step"), say("plot.step")])
    assert shown == '<span lang="en">step step</span><span lang="zh-TW">步數步數</span>'


def test_attributes_hold_every_language() -> None:
    shown = str(attribute("zh-TW", aria_label=say("plot.step")))
    assert shown.startswith('aria-label="步數" data-i18n="')
    data = json.loads(shown.split('data-i18n="')[1].rstrip('"').replace("&#34;", '"'))
    assert data == {"aria-label": {"en": "step", "zh-TW": "步數"}}


def test_messages_may_hold_messages() -> None:
    name = group_name("locality.refusal")
    assert text(say("list.one", name=name, share="5 %"), "zh-TW") == "拒答 5 %"
    assert text(group_name("made.up"), "zh-TW") == "made.up"


def test_unknown_language_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown language 'fr'; known: en, zh-TW"):
        catalogue("fr")


REFUSED = {
    "變更": "改變", "外洩": "外溢", "普遍性": "推廣性", "泛化": "推廣性", "保住": "守住", "同型": "同句型",
    "調整器": "微調方式", "微調器": "微調方式", "應答": "預期答案", "未動過": "未經更動", "單元": "格", "格子": "格",
    "重播": "複習", "提示詞": "提示", "token": "詞元", "權杖": "詞元",
}  # fmt: skip
"""Words that Chinese reports do not use, and the one word for that thing, as in the glossary of the Chinese pages."""


@pytest.mark.parametrize(("refused", "word"), REFUSED.items())
def test_chinese_reports_have_one_word_for_one_thing(refused: str, word: str) -> None:
    said = "\n".join(re.sub(r"\{\w+\}|`[^`]*`", "", each) for each in catalogue("zh-TW").values())
    assert refused not in said.replace(word, "")
    assert word in said
    assert refused.isascii() or refused not in CODE.replace(word, "")


def test_lists_are_written_as_each_language_does() -> None:
    names = [f"`{name}`" for name in "abc"]
    assert text(name_list(names), "en") == "`a`, `b` and `c`"
    assert text(name_list(names), "zh-TW") == "`a`、`b`和`c`"
    assert text(name_list(names[:2]), "en") == "`a` and `b`"
    assert text(name_list(names[:1]), "zh-TW") == "`a`"


def test_a_space_stands_between_per_cent_and_a_chinese_word() -> None:
    last = say("list.last", head=say("verbatim", text="100\u00a0%"), tail=say("verbatim", text="拒答"))
    assert text(last, "zh-TW") == "100\u00a0% 和拒答"
    assert text(last, "en") == "100\u00a0% and 拒答"
