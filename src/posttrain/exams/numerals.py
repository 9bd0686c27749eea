"""Numbers as answers write them: 1,234.50, $18, １８, 十八, 兩萬三千, 3.5萬; and which of them is the answer."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal, InvalidOperation

__all__ = ["last_number", "marked_number", "number_of"]

_DIGITS = {c: i for i, c in enumerate("〇一二三四五六七八九")} | {"零": 0, "兩": 2, "两": 2, "○": 0}
_FORMAL = dict(zip("壹貳參肆伍陸柒捌玖", range(1, 10), strict=True)) | dict(zip("贰叁陆", (2, 3, 6), strict=True))
_DIGITS |= _FORMAL
_UNITS = {"十": 10, "拾": 10, "百": 100, "佰": 100, "千": 1000, "仟": 1000}
_MYRIADS = {"萬": 10**4, "万": 10**4, "億": 10**8, "亿": 10**8, "兆": 10**12}
_CHINESE = "[" + "".join((*_DIGITS, *_UNITS, *_MYRIADS)) + "]"
_ARABIC = rf"-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[{''.join(_MYRIADS)}])?"
_NUMBER = re.compile(_ARABIC)
_WRITTEN = re.compile(rf"負?{_CHINESE}+(?:點{_CHINESE}+)?")
_MARKED = re.compile(rf"####\s*({_ARABIC})")


def number_of(text: str) -> Decimal | None:
    """The number that a text is, if it is one: thousands' commas, a currency mark, full width, 萬, Chinese numerals."""
    text = _plain(text).strip().rstrip(".。 ")
    text = re.sub(r"^(?:NT|US)?\$|[元塊美圓]+$|\s", "", text).replace("-$", "-").replace(",", "").replace("$", "")
    sign, text = (-1, text[1:]) if text[:1] in ("-", "負") else (1, text)
    times = 1
    while text and text[-1] in _MYRIADS and text[:1].isdigit():
        times, text = times * _MYRIADS[text[-1]], text[:-1]
    if re.fullmatch(r"\d+(?:\.\d*)?|\.\d+", text):
        try:
            return sign * Decimal(text) * times
        except InvalidOperation:  # pragma: no cover - digits of other scripts are NFKC's
            return None
    whole, _, part = text.partition("點")
    value = _chinese(whole)
    if value is None or (part and not all(c in _DIGITS for c in part)):
        return None
    fraction = Decimal("0." + "".join(str(_DIGITS[c]) for c in part)) if part else Decimal(0)
    return sign * (value + fraction)


def _chinese(text: str) -> Decimal | None:
    """十八, 一百二十, 兩萬三千, 二〇二四; None when it is none."""
    if not text or not all(c in _DIGITS or c in _UNITS or c in _MYRIADS for c in text):
        return None
    if all(c in _DIGITS for c in text):  # digit by digit
        return Decimal("".join(str(_DIGITS[c]) for c in text))
    for unit, times in reversed(_MYRIADS.items()):  # 兆 before 億 before 萬: 一萬億 is 一萬 times 億
        if unit in text:
            left, _, right = text.rpartition(unit)
            high, low = _chinese(left), _chinese(right) if right else Decimal(0)
            return None if high is None or low is None else high * times + low
    total = digit = 0
    for c in text:
        if c in _DIGITS:
            digit = _DIGITS[c]
        else:
            total, digit = total + (digit or 1) * _UNITS[c], 0
    return Decimal(total + digit)


def marked_number(text: str) -> Decimal | None:
    """The first number after `####`, as GSM8K's answers end."""
    found = _MARKED.search(_plain(text))
    return number_of(found[1]) if found else None


def last_number(text: str) -> Decimal | None:
    """The last number in digits; without any digits, the last one in Chinese numerals (一個 is a one then)."""
    text = _plain(text)
    found = _NUMBER.findall(text) or _WRITTEN.findall(text)
    return number_of(found[-1]) if found else None


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("−", "-")
