"""Finished texts found again in a catalogue: values, nesting, parts; and that odd texts take no time."""

from __future__ import annotations

import time

import pytest

from posttrain.catalogue import Catalogue, catalogue_of, translated

PAIRS = {
    "no such file": "沒有這個檔案",
    "looked in {folder}": "找過 {folder}",
    "loading {name}": "載入 {name}",
    "left out: {problem}": "略過：{problem}",
    "unknown key '{key}'": "不認得的鍵 '{key}'",
    "{left} of {right}": "{right} 之中 {left}",
    "{trainable} of {total} parameters move ({share})": "{total} 個參數中有 {trainable} 個會動（{share}）",
    "step {step}/{steps}  {described}  {clock} left": "第 {step}/{steps} 步  {described}  剩 {clock}",
    "loss {loss}": "損失 {loss}",
    "{rate} tokens/s": "每秒 {rate} 個詞元",
    "expected {{key: ...}}, got {kind}": "應為 {{key: ...}}，卻是{kind}",
    "a list": "清單",
    "a list is expected": "這裡要寫清單",
    "{thing} is {other}": "{thing} 是 {other}",
    "final, {{every: 5}} of two is expected": "最後，{{every: 5}} 之一",
    "{where}: {message}, got {input}": "{where}：{message}，卻是{input}",
    "{name} is not part of it": "{name} 不屬於它",
    "{found} of {total} {words}": "{total} 之中 {found} 個{words}",
    "[default: {}]": "[預設：{}]",
    "columns: {header}": "欄位：{header}",
    "{conversations} conversations": "{conversations} 段對話",
    "rename the fields, or map them: columns: {{prompt: {asked}}}": "請改欄位的名稱，或對應它們：columns: {{prompt: {asked}}}",
    "must be {expected}": "必須是 {expected}",
    "left alone": "不動",
    "not translated yet": "",
}


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return catalogue_of(PAIRS.items())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no such file", "沒有這個檔案"),
        ("loading my models/第一版 v2", "載入 my models/第一版 v2"),
        # a value that is a message is translated in turn, through two messages too
        ("left out: no such file", "略過：沒有這個檔案"),
        ("left out: left out: looked in /a b", "略過：略過：找過 /a b"),
        # what stands in quotes is somebody's own words
        ("unknown key 'no such file'", "不認得的鍵 'no such file'"),
        # the message with more words of its own wins; the place before it is no part of it
        ("12 of 34 parameters move (2.34%)", "34 個參數中有 12 個會動（2.34%）"),
        ("pocket:chat: 12 of 34 parameters move (2.34%)", "pocket:chat：34 個參數中有 12 個會動（2.34%）"),
        # columns are translated one by one
        (
            "step 5/9  loss 1.25  2,048 tokens/s  0.61 GiB  30 left",
            "第 5/9 步  損失 1.25  每秒 2,048 個詞元  0.61 GiB  剩 30",
        ),
        ("rows.jsonl:3: no such file; looked in /x", "rows.jsonl:3：沒有這個檔案；找過 /x"),
        ("no such file (HTTP 404)", "沒有這個檔案（HTTP 404）"),
        ("no such file\n  looked in /x\nsomething else", "沒有這個檔案\n  找過 /x\nsomething else"),
        ("expected {key: ...}, got a list", "應為 {key: ...}，卻是清單"),
        ("[default: {}]", "[預設：{}]"),
        # a thin message is meant where its values are numbers, not wherever its word stands
        ("3 of 7", "7 之中 3"),
        ("the king of the hill", None),
        ("seeds: a list is expected", "seeds：這裡要寫清單"),
        # commas within one message make no list
        ("final, {every: 5} of two is expected", "最後，{every: 5} 之一"),
        ("at: final, {every: 5} of two is expected, got a list", "at：最後，{every: 5} 之一，卻是清單"),
        ("a is not part of it; b is not part of it", "a 不屬於它；b 不屬於它"),
        # a key of YAML is copied as it stands, also where it is all that a message says
        ("columns: a, b", "欄位：a, b"),
        ("columns: {prompt: q}", None),
        ("columns: {'prompt': q, completion: a}", None),
        ("columns: [prompt, completion]", None),
        ("map them: columns: {prompt: q, completion: a}", None),
        ("no such file; map them: columns: {prompt: q}", "沒有這個檔案；map them: columns: {prompt: q}"),
        (
            "rename the fields, or map them: columns: {prompt: q}",
            "請改欄位的名稱，或對應它們：columns: {prompt: q}",
        ),
        ("left alone, {a: left alone, b: left alone}", None),
        # a classifier follows a number, not words
        ("3 conversations", "3 段對話"),
        ("1,024 conversations", "1,024 段對話"),
        ("recognised as conversations", None),
        ("Alpaca conversations", None),
        # pydantic's list of choices
        ("must be 'auto' or 'find'", "必須是 'auto' 或 'find'"),
        ("must be 'a', 'b' or 'c'", "必須是 'a', 'b' 或 'c'"),
        ("must be 'a', 'b', and 'c'", "必須是 'a', 'b' 和 'c'"),
        ("must be this or that", "必須是 this or that"),
        ("something that nobody has translated", None),
        ("not translated yet", None),
    ],
)
def test_a_text_is_found_again(catalogue: Catalogue, text: str, expected: str | None) -> None:
    assert translated(catalogue, text) == expected


@pytest.mark.parametrize(
    "text",
    ["foo bar: ", "a b, c d: e f; ", "in file x of y at z left ", "lone words: and more\n", "x y (z ", "a b  c d  "],
)
def test_odd_texts_take_no_time(catalogue: Catalogue, text: str) -> None:
    """Seventeen seconds before lookups were counted: a text of many parts can be cut in many ways."""
    began = time.process_time()
    translated(catalogue, text * 400)
    assert time.process_time() - began < 1.0
