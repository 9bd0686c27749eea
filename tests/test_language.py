"""Which language is spoken, what is shown in it, and that English costs nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain import catalogue, language
from posttrain.errors import ConfigError, DataError, Problem


@pytest.fixture(autouse=True)
def english_again() -> Iterator[None]:
    yield
    language.speak("en")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "en"),
        ({"LANG": "zh_TW.UTF-8"}, "zh-TW"),
        ({"LANG": "zh_TW"}, "zh-TW"),
        ({"LANG": "zh_HK.UTF-8"}, "zh-TW"),
        ({"LANG": "zh_Hant"}, "zh-TW"),
        ({"LANG": "zh_CN.UTF-8"}, "en"),
        ({"LANG": "zh_Hans_TW"}, "en"),
        ({"LANG": "zh_SG"}, "en"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_TW"}, "zh-TW"),
        ({"LANG": "zh_TW", "LC_MESSAGES": "en_US.UTF-8"}, "en"),
        ({"LANG": "zh_TW", "LC_MESSAGES": "zh_TW", "LC_ALL": "en_GB"}, "en"),
        ({"LANG": "en_US", "LC_MESSAGES": "en_US", "LC_ALL": "zh_TW.utf8"}, "zh-TW"),
        ({"LANG": "zh_TW", "LC_ALL": "zh_CN.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8", "LANGUAGE": "zh_TW"}, "zh-TW"),
        ({"LC_ALL": "en_US.UTF-8", "LANGUAGE": "zh_TW:en"}, "zh-TW"),
        ({"LANG": "zh_TW", "LANGUAGE": "en"}, "en"),
        ({"LANG": "zh_TW", "LANGUAGE": "fr:en:zh_TW"}, "en"),
        ({"LANG": "en_US", "LANGUAGE": "fr:zh_HK"}, "zh-TW"),
        ({"LANG": "zh_TW", "LANGUAGE": ""}, "zh-TW"),
        ({"LANG": "zh_TW", "LC_ALL": ""}, "zh-TW"),
        ({"LC_ALL": "C", "LANG": "zh_TW", "LANGUAGE": "zh_TW"}, "en"),
        ({"LANG": "C.UTF-8", "LANGUAGE": "zh_TW"}, "zh-TW"),
        ({"LANG": "zh_TW.Big5@radical"}, "zh-TW"),
    ],
    ids=str,
)
def test_the_environment_is_read_as_gettext_reads_it(environment: dict[str, str], expected: str) -> None:
    assert language.from_environment(environment) == expected


@pytest.mark.parametrize("tag", ["zh-TW", "zh_TW", "zh_TW.UTF-8", "zh-Hant", "zh-hant-hk", "ZH-tw"])
def test_a_tag_is_named_in_many_ways(tag: str) -> None:
    assert language.named(tag) == "zh-TW"


@pytest.mark.parametrize("tag", ["fr", "zh", "zh-CN", "", "chinese"])
def test_an_unknown_language_is_refused(tag: str) -> None:
    with pytest.raises(ConfigError, match="unknown language"):
        language.named(tag)


def test_english_reads_no_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> None:
        raise AssertionError("English needs no catalogue")

    monkeypatch.setattr(language, "_catalogue", never)
    assert language.translate("no such file") == "no such file"
    problem = Problem("a.yaml:3", "unknown key 'x'", "did you mean 'y'?")
    assert language.shown(problem) == "a.yaml:3: unknown key 'x'; did you mean 'y'?"


def test_problems_are_shown_part_by_part() -> None:
    error = DataError(
        Problem("study.yaml:6", "unknown key 'learning_rte'", "did you mean 'learning_rate'?"),
        Problem("", "every cell failed"),
        Problem("no such file", "something new", "nobody knows"),
    )
    assert language.shown(error) == str(error)
    language.speak("zh_TW")
    assert language.shown(error).splitlines() == [
        "study.yaml:6：不認得的鍵 'learning_rte'；是不是想寫 'learning_rate'？",
        "每一格都失敗了",
        "沒有這個檔案：something new；nobody knows",
    ]
    assert str(error).startswith("study.yaml:6: unknown key"), "what is stored stays English"


def test_space_around_is_kept_and_what_is_long_is_left_alone() -> None:
    language.speak("zh-TW")
    assert language.translate("\n  no such file \n") == "\n  沒有這個檔案 \n"
    assert language.translate("") == ""
    assert language.translate("   ") == "   "
    text = "loading " + "x" * 5000
    assert language.translate(text) == text


def test_the_catalogue_is_read_quickly() -> None:
    """A start of the command line reads all of it: about 12 calls of functions for each message, none compiled."""
    path = Path(language.__file__).parent / "locale" / "zh_TW" / "LC_MESSAGES" / "messages.mo"
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        read = catalogue.read_mo(path)
        catalogue.catalogue_of(read)
    finally:
        sys.setprofile(None)
    assert calls < 15 * len(read)


def test_the_report_speaks_the_same_languages() -> None:
    from posttrain.reports import texts

    assert texts.LANGUAGES == language.LANGUAGES


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("not UTF-8; it looks like Big5 or GB18030", "不是 UTF-8，看起來是 Big5 或 GB18030"),
        (
            "save it as UTF-8 (in Excel, 'CSV UTF-8'; or: iconv -f BIG5 -t UTF-8 a.csv > a.utf8.csv)",
            "存成 UTF-8（在 Excel 選「CSV UTF-8」；或：iconv -f BIG5 -t UTF-8 a.csv > a.utf8.csv）",
        ),
        ("not UTF-8 but an Excel or ZIP file", "不是 UTF-8，而是 Excel 或 ZIP 檔"),
        ("remove the field from the row", "從這一列移除這個欄位"),
        (
            "9 of 12 answers before were cut at max_new_tokens",
            "12 個中有 9 個改變前的回答在 max_new_tokens 處被截斷",
        ),
        (
            "1 of 4 probes of locality.refusal are not counted: the answer before is no refusal",
            "locality.refusal 的 4 題中有 1 題不計：改變前的回答不是拒答",
        ),
        (
            "a.json, b.json: missing; config.json: changed since it was saved",
            "a.json，b.json：缺少；config.json：儲存後被改過",
        ),
        ("merged model", "合併後的模型"),
    ],
)
def test_what_is_made_up_of_parts_is_said_wholly(english: str, chinese: str) -> None:
    """Records, tables of mends, constants of other modules, counts before words."""
    language.speak("zh-TW")
    try:
        assert language.translate(english) == chinese
    finally:
        language.speak("en")
