"""Writes the rows of five small skills beside this file: <skill>_train.jsonl and <skill>_test.jsonl.

    python examples/skills/make_skills.py

Skills that pocket:chat does not have, each learned in seconds, each with one right answer:

- `gloss`: a made-up language whose adjectives follow their nouns; test: pairs of words that were never seen together
- `reverse`: three characters or letters in the other order; test: other rows of them
- `numeral`: digits from Chinese numerals (asked in Chinese), Chinese numerals from digits (asked in English)
- `polite`: an order becomes a polite request; test: things and acts that were never seen together
- `kind`: is it a country, a city, a river ...? pocket knows the things but not this question; test: other things

Half of each skill is in Traditional Chinese, half in English. No content stands in both files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from random import Random
from typing import NamedTuple

from posttrain.data.pocket.skills import curriculum

HERE = Path(__file__).parent
TRAIN, TEST = 80, 25
"""Rows of each language, at most; there are fewer where a skill has fewer contents."""


class Row(NamedTuple):
    """A question and its answer."""

    prompt: str
    completion: str


Pair = dict[str, Row]
"""The same content in both languages, so that it is held out in both."""

NOUNS = {
    "tak": ("cat", "塔克", "貓"), "bok": ("dog", "波克", "狗"), "mir": ("fish", "米爾", "魚"),
    "sul": ("bird", "蘇爾", "鳥"), "dem": ("tree", "德姆", "樹"), "fan": ("house", "法恩", "屋"),
    "gol": ("boat", "哥爾", "船"), "nep": ("stone", "尼普", "石"), "kib": ("lamp", "奇布", "燈"),
    "vat": ("horse", "瓦特", "馬"), "zon": ("cup", "佐恩", "杯"), "hap": ("flower", "哈普", "花"),
}  # fmt: skip
ADJECTIVES = {
    "lum": ("red", "隆", "紅"), "pes": ("big", "佩", "大"), "hin": ("old", "欣", "老"), "jar": ("white", "賈", "白"),
    "wod": ("new", "沃", "新"), "cul": ("small", "庫", "小"), "yim": ("black", "因", "黑"), "tos": ("good", "托", "好"),
    "mav": ("long", "馬", "長"),
}  # fmt: skip
"""Word -> its meaning in English; the same word in Chinese characters and its meaning in Chinese."""
SYMBOLS = {"zh": "金木水火土日月山川天地人大小上下", "en": "ABCDEFGHKLMNPRST"}
DIGITS = "零一二三四五六七八九"
ACTS = {
    "拿": "bring", "找": "find", "買": "buy", "看": "watch", "洗": "wash", "畫": "draw", "開": "open", "關": "close",
    "送": "send", "借": "lend",
}  # fmt: skip
THINGS = {
    "水": "water", "茶": "tea", "米": "rice", "油": "oil", "書": "the book", "筆": "the pen", "信": "the letter",
    "車": "the car", "門": "the door", "燈": "the lamp", "花": "the flower", "布": "the cloth", "紙": "paper",
    "球": "the ball", "鐘": "the clock", "衣": "the coat", "包": "the bag", "石": "the stone",
}  # fmt: skip
KINDS = {
    "country": ("國家", "a country", "capital"), "city": ("城市", "a city", "city_country"),
    "mountain": ("山", "a mountain", "mountain_country"), "river": ("河", "a river", "river_continent"),
    "element": ("元素", "an element", "element_symbol"), "person": ("人", "a person", "person_country"),
}  # fmt: skip
"""Kind -> its name in Chinese and in English, and the relation of pocket's tables whose subjects are of it."""


def gloss(rng: Random) -> list[Pair]:
    """`tak lum` is a red cat."""
    pairs = []
    for noun, adjective in product(NOUNS, ADJECTIVES):
        (noun_en, noun_word, noun_zh), (adj_en, adj_word, adj_zh) = NOUNS[noun], ADJECTIVES[adjective]
        zh = Row(f"{noun_word}{adj_word}的意思？", adj_zh + noun_zh)
        pairs.append({"zh": zh, "en": Row(f"Meaning of {noun} {adjective}?", f"{adj_en} {noun_en}")})
    return pairs


def reverse(rng: Random) -> list[Pair]:
    """`K T B` becomes `B T K`."""
    pairs = []
    for _ in range(300):
        drawn = {language: rng.sample(symbols, 3) for language, symbols in SYMBOLS.items()}
        zh, en = drawn["zh"], drawn["en"]
        pairs.append(
            {
                "zh": Row(f"倒寫：{'、'.join(zh)}", "、".join(reversed(zh))),
                "en": Row(f"Backwards: {' '.join(en)}", " ".join(reversed(en))),
            }
        )
    return pairs


def chinese(number: int) -> str:
    """A number from 11 to 99 in Chinese numerals."""
    tens, ones = divmod(number, 10)
    return (DIGITS[tens] if tens > 1 else "") + "十" + (DIGITS[ones] if ones else "")


def numeral(rng: Random) -> list[Pair]:
    """`三十五` is 35, and the other way round."""
    return [
        {
            "zh": Row(f"{chinese(number)}寫成數字", str(number)),
            "en": Row(f"{number} in Chinese", chinese(number)),
        }
        for number in range(11, 100)
    ]


def polite(rng: Random) -> list[Pair]:
    """`拿水` becomes a request with please and thanks."""
    return [
        {
            "zh": Row(f"客氣地說：{act}{thing}", f"請幫忙{act}{thing}，謝謝。"),
            "en": Row(f"Politely: {act_en} {thing_en}", f"Could you {act_en} {thing_en}?"),
        }
        for (act, act_en), (thing, thing_en) in product(ACTS.items(), THINGS.items())
    ]


def kind(rng: Random) -> list[Pair]:
    """What sort of thing is it? As many of each kind."""
    pairs = []
    for zh, en, relation in KINDS.values():
        subjects = sorted({fact.subject for fact in curriculum()[relation]})
        for name in rng.sample(subjects, min(40, len(subjects))):
            pairs.append({"zh": Row(f"{name.zh}是哪種東西？", zh), "en": Row(f"What kind of thing is {name.en}?", en)})
    return pairs


SKILLS: dict[str, Callable[[Random], Sequence[Pair]]] = {
    "gloss": gloss, "reverse": reverse, "numeral": numeral, "polite": polite, "kind": kind,
}  # fmt: skip


def split(pairs: Sequence[Pair], rng: Random) -> tuple[list[Row], list[Row]]:
    """Rows to learn and rows to ask, in drawn order; contents of the latter are in neither language of the former."""
    drawn = list(pairs)
    rng.shuffle(drawn)
    asked = [pair[language] for pair in drawn[:TEST] for language in ("zh", "en")]
    learned = [pair[language] for pair in drawn[TEST : TEST + TRAIN] for language in ("zh", "en")]
    known = {row.prompt for row in asked}
    return [row for row in dict.fromkeys(learned) if row.prompt not in known], list(dict.fromkeys(asked))


def main() -> None:
    """The files, the same every time."""
    for name, make in SKILLS.items():
        rng = Random(f"examples/skills/{name}")
        for part, rows in zip(("train", "test"), split(make(rng), rng), strict=True):
            text = "".join(json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in rows)
            (HERE / f"{name}_{part}.jsonl").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
