r"""Numbers in answers, and which of them is the answer: 1,234.50, $18, 1e5, 2 1/2, \frac{1}{2}, 8{,}000, 十八.

Also full width, 兩萬三千, 一萬二 and 3萬5千. A part without 零 has the unit right below the one before: 兩千五 is 2500,
三億五 is 350 million, 兩千零五 is 2005; 三塊五 and 三塊半 are 3.5, 七成 is 0.7. A percentage is the number before its
sign, as in the gold answers of GSM8K. A space or comma groups three digits (a comma also four, and groups in the Indian
way); 1,2,3 are three numbers.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator
from decimal import Decimal

from posttrain.exams.numeral_words import Numerals

__all__ = ["final_number", "last_number", "marked_number", "number_of"]

_DIGITS = {c: i for i, c in enumerate("〇一二三四五六七八九")} | {"零": 0, "兩": 2, "两": 2, "○": 0}
_DIGITS |= dict(zip("壹貳參肆伍陸柒捌玖贰叁陆", (*range(1, 10), 2, 3, 6), strict=True))
_UNITS = {"十": 10, "拾": 10, "百": 100, "佰": 100, "千": 1000, "仟": 1000}
_MYRIADS = {"萬": 10**4, "万": 10**4, "億": 10**8, "亿": 10**8, "兆": 10**12}
_TENS = {"廿": "二十", "卅": "三十", "卌": "四十"}
_WORDS = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}

_ZEROS = "零〇○"
_D = f"[{''.join(_DIGITS)}]"
_U = f"[{''.join((*_UNITS, *_MYRIADS))}]"
_TENFOLD = f"[{''.join(_UNITS)}]"
_NUMERALS = "".join((*_DIGITS, *_UNITS, *_MYRIADS))
_C = f"[{_NUMERALS}]"
_M = f"[{''.join(_MYRIADS)}]"

_GROUPED = (
    r"\d{1,3}(?:,\d{3})+(?!\d)",
    r"\d{1,4}(?:,\d{4})+(?!\d)",
    r"\d{1,2}(?:,\d{2})+,\d{3}(?!\d)",
    r"[1-9]\d{0,2}(?: \d{3})+(?!\d)",
)
_POINTS = r"\d{1,3}(?:\.\d{3})+,\d{1,2}(?!\d)|\d{1,3}(?:\.\d{3}){2,}(?!\d)"
_CORE = rf"(?:{_POINTS}|(?:{'|'.join(_GROUPED)}|\d+)(?:\.\d+)?|\.\d+)"
_POWER = r"(?:[eE][+-]?\d{1,3}(?![\d.]*\w)|\s*[×x*·]\s*10\^\(?[+-]?\d{1,3}\)?)"
_SIGN = r"(?:(?<![0-9A-Za-z)\]%])(?<!\d[^\W\d_是為为於于得])-|[負负])"  # 3-5, 3%-5% and 3元-5元 are ranges
_WORD = f"(?i:{'|'.join(_WORDS)})"
_MONEY = r"(?:(?:NT|US|HK)?[$€£¥]\s?)"
_ARABIC = (
    rf"{_SIGN}?(?:{_MONEY}-?)?(?:"
    rf"\d+[ -]\d+/\d+(?![\d/])"  # 2 1/2
    rf"|(?<!/){_CORE}\s?/\s?{_CORE}(?!\s?/)"
    rf"|\d+\s?又\s?(?:\d+/\d+(?![\d/])|{_CORE}分之{_CORE}|{_C}+分之{_C}+)"
    rf"|{_CORE}分之{_CORE}"
    rf"|10\^\(?[+-]?\d{{1,3}}\)?"
    rf"|{_CORE}{_POWER}"
    rf"|{_CORE}(?:(?:\s?{_U}{_D}*(?:{_CORE}|\s{_CORE}(?=\s?{_U}))?)+|(?:\s{_WORD}\b)+)?"
    r")"
)
_HALF = f"(?<!{_C})(?:一半|(?<![過过])半[數数])"
_CHINESE = (
    rf"(?:{_HALF}|[負负]?(?:{_C}+又)?"
    rf"(?:{_C}+分之{_C}+(?:[點点]{_D}+)?|{_C}*(?<!\d)[點点]{_D}++(?!{_TENFOLD}){_M}{{0,2}}|{_C}+))"
)
_NUMBER = re.compile(_ARABIC)
_WRITTEN = re.compile(_CHINESE)
_MARKED = re.compile(rf"####\s*(?:\*{{1,3}}\s*|_{{1,3}}|`)?(?:\$?\\boxed\s*\{{\s*)?\+?({_ARABIC}|{_CHINESE})")
_WHOLE = re.compile(rf"\+?({_ARABIC}|{_CHINESE})\s*(?:%|美?[元圓圆円]|[塊块]錢?|dollars?|年)?")
_NO_NUMBERS = ("萬一", "万一")
"""The word means "in case" and is not a number."""


def number_of(text: str) -> Decimal | None:
    """Return the number that a whole text is, or None. Grouped digits, a currency mark, full width, 萬 and
    Chinese numerals are allowed.
    """
    text = _plain(text).strip().rstrip(".。, ")
    inside = _boxed(text)
    text = inside[0].strip() if len(inside) == 1 and text.strip("$").startswith("\\boxed") else text.strip()
    found = _WHOLE.fullmatch(text) or _WHOLE.fullmatch(text.removesuffix("$"))
    return _value(found[1]) if found else None


def marked_number(text: str) -> Decimal | None:
    """Return the first number after `####`, which ends the answers of GSM8K, or None."""
    text = _plain(text)
    found = _MARKED.search(text)
    if not found:
        return None
    if not _WRITTEN.fullmatch(found[1]) or re.fullmatch(_HALF, found[1]):
        return _value(found[1])
    judged = Numerals(text).judge(*found.span(1))
    return None if judged is None else _value(text[judged[0] : judged[1]])


def last_number(text: str) -> Decimal | None:
    r"""Return the last number in \boxed{}, else the last in digits, else the last in Chinese numerals, or None.

    In Chinese numerals an uncertain one, such as 一 in 一個, counts only without a certain one.
    """
    text = _plain(text)
    for part in (*reversed(_boxed(text)), text):
        values = [value for found in _NUMBER.findall(part) if (value := _value(found)) is not None]
        if values:
            return values[-1]
        written = list(_written(part))
        if written:
            return next((value for value, certain in reversed(written) if certain), written[-1][0])
    return None


def final_number(text: str) -> Decimal | None:
    """Return the number that a worked answer ends with: the marked one, or else the last, or None."""
    marked = marked_number(text)
    return last_number(text) if marked is None else marked


def _written(text: str) -> Iterator[tuple[Decimal, bool]]:
    """Yield each number in Chinese numerals and whether it certainly is one. 一起 and 四川 are not numbers, 一半
    may be one."""
    words: Numerals | None = None  # cutting a text into words takes time, and the first time loads the dictionary
    for found in _WRITTEN.finditer(text):
        if re.fullmatch(_HALF, found[0]):
            yield Decimal("0.5"), False
            continue
        words = Numerals(text) if words is None else words
        judged = words.judge(*found.span())
        if judged is not None and (value := _value(text[judged[0] : judged[1]])) is not None:
            yield value, judged[2]


# ---- from text to digits ---------------------------------------------------------------------------------------------


def _plain(text: str) -> str:
    """Return the text in half width, without the LaTeX commands that occur in numbers; superscripts follow a ^."""
    text = "".join(_raised(text))
    text = unicodedata.normalize("NFKC", text).replace("⁄", "/")
    text = re.sub("[−‐‒–]", "-", text)
    text = re.sub(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r" \1/\2", text)
    text = re.sub(r"\\[dtc]?frac\s*(\d)\s*(\d)", r" \1/\2", text)
    text = re.sub(r"(-) (?=\d+/)", r"\1", text)
    text = re.sub(r"(?<=\d)(?:\{,\}|\\,|\\!|\\;|\\:|\\ |~)+(?=\d)", "\0", text)
    text = re.sub(r"\0(?=\d{3}(?!\d))", "", text).replace("\0", " ")
    said = r" *\\(?:text|mathrm|mbox) *(\{([^{}]*)\}) *"  # 1.5\text{ million} is 1.5 million
    text = re.sub(said, lambda m: f" {m[2].strip()} " if any(map(str.isalpha, m[2])) else m[1], text)
    text = re.sub(r"\\(?=[$%])|\\(?:text|mathrm|mbox)(?![A-Za-z])", "", text)
    text = re.sub(r"\\(?:times|cdot)(?![A-Za-z])", "×", text)
    text = re.sub(r"\^\{([+-]?\d+)\}", r"^\1", text)
    text = re.sub(r"(?<![\d.])(?<!\*\*)10\*\*(?=[+-]?\d)", "10^", text)
    text = re.sub(
        r"(?<![\d.,'_])(\d{1,3}(?:'\d{3})+|\d{1,3}(?:_\d{3})+)(?![\d'_])", lambda m: re.sub("['_]", "", m[0]), text
    )
    text = re.sub(r"(?<=\d)[kK](?![\w])", " thousand", text)
    text = re.sub(rf"({_MONEY}-?(?:[\d,]+(?:\.\d+)?|\.\d+))[mM](?!\w)", r"\1 million", text)
    text = re.sub(rf"({_MONEY}-?(?:[\d,]+(?:\.\d+)?|\.\d+))[bB]n?(?!\w)", r"\1 billion", text)  # M alone may be metres
    text = re.sub(r"(?<=[十百千])[多餘馀余](?=[萬万億亿])", "", text)
    text = re.sub(rf"零下\s?(?=\d|{_C})", "負", text)
    text = _PARTS.sub(_with_point, text)
    text = _TENTHS.sub(lambda m: ("0." if m[1].isdecimal() else "零點") + m[1] + m[2], text)
    for short, written in _TENS.items():
        text = text.replace(short, written)
    return text


_TENTH = "[1-9一二三四五六七八九]"
_ENDS = r"(?=$|[^\w%]|[的錢钱])"
_PARTS = re.compile(
    rf"(?<![\d.,點点])(?<!{_C})(?P<whole>[\d{_NUMERALS}][\d,{_NUMERALS}]*)(?:"
    rf"(?P<money>[塊块])(?P<tenths>{_TENTH})[毛角]?{_ENDS}"
    rf"|(?P<measure>[塊块年歲岁天斤倍]|小[時时]|公[斤里])半{_ENDS}"
    rf"|(?P<of>[個个])半(?={_ENDS}|小[時时]|[鐘钟][頭头]|月|星期|[禮礼]拜|世[紀纪]))"
)
"""三塊五, 三塊半, 兩個半小時; in 三塊5元 (three pieces at 5元) no part matches."""
_TENTHS = re.compile(rf"(?<![\d.,點点])(?<!{_C})({_TENTH})成({_TENTH}?)(?=$|[^\w%]|[的多左以])")
"""七成, 七成五; not 八成會 (probably) or 一成不變."""


def _with_point(found: re.Match[str]) -> str:
    """Return the found text with a decimal point: 三塊五 as 三點五塊, 3塊5 as 3.5塊."""
    part = found["tenths"] or "五"
    digits = found["whole"][-1].isdecimal()
    if digits:
        part = str(_DIGITS.get(part, part))
    return found["whole"] + ("." if digits else "點") + part + (found["money"] or found["measure"] or found["of"])


def _raised(text: str) -> Iterator[str]:
    """Yield 10⁵ as 10^5 and 3½ as 3 1/2: in half width they would be 105 and 31/2."""
    before = ""
    for c in text:
        kind = unicodedata.decomposition(c).partition(" ")[0]
        if kind == "<super>" and c not in "ªº" and before != "<super>":
            yield "^"
        elif kind == "<fraction>" and before == "digit":
            yield " "
        yield unicodedata.normalize("NFKC", c) if kind == "<super>" else c
        before = kind if kind == "<super>" else "digit" if c.isdecimal() else ""


def _boxed(text: str) -> list[str]:
    r"""Return the text in each \boxed{}; a box within another one is part of the outer one."""
    found = []
    opened: list[int | None] = []  # the start of each open brace of a box, None for other braces
    outer = 0
    for brace in re.finditer(r"\\f?boxed\s*\{|[{}]", text):
        if brace[0] != "}":
            opened.append(brace.end() if len(brace[0]) > 1 else None)
            outer += len(brace[0]) > 1
        elif opened and (start := opened.pop()) is not None:
            outer -= 1
            if not outer:
                found.append(re.sub(r"\\f?boxed|[{}]", " ", text[start : brace.start()]))
    return found


# ---- from digits to a number -----------------------------------------------------------------------------------------


def _value(text: str) -> Decimal | None:
    """Return the value of a text that a pattern has found; None if it only looks like a number."""
    if text in _NO_NUMBERS:
        return None
    text = re.sub(rf"{_MONEY}", "", text)
    minus = bool(re.match(r"\s*[-負负]", text))
    text = text.lstrip("-負负 ")
    if re.fullmatch(_HALF, text):
        return Decimal("0.5")
    mixed = re.fullmatch(r"(\d+)[ -](\d+/\d+)", text)
    if mixed:
        whole, part = Decimal(mixed[1]), _value(mixed[2])
        return None if part is None else (whole + part).copy_sign(Decimal(-1 if minus else 1))
    value = _unsigned(text)
    return None if value is None else Decimal(f"{-value if minus else value:f}")  # 100000, not 1E+5, for people


def _unsigned(text: str) -> Decimal | None:
    whole, both, rest = text.partition("又")
    if both:
        first, second = _unsigned(whole.strip()), _unsigned(rest.strip())
        return None if first is None or second is None else first + second
    below, over, above = text.partition("分之")
    if over:
        return _unsigned(above) if below in ("百", "100") else _ratio(above, below)
    above, over, below = text.partition("/")
    if over:
        return _ratio(above, below)
    power = re.fullmatch(r"(?:(.*?)\s*[×x*·]\s*)?10\^\(?([+-]?\d+)\)?", text)
    if power:
        times = _unsigned(power[1]) if power[1] else Decimal(1)
        return None if times is None else times.scaleb(int(power[2]))
    words = re.fullmatch(rf"(.*?)((?:\s{_WORD})+)", text)
    if words:
        return _arabic(words[1]) * math.prod(_WORDS[word] for word in words[2].lower().split())
    point = re.fullmatch(rf"({_C}*)[點点]({_D}+)({_M}*)", text)
    if point:
        first = _chinese(point[1]) if point[1] else Decimal(0)
        if first is None:
            return None
        value = first + Decimal("0." + "".join(str(_DIGITS[c]) for c in point[2]))
        for unit in point[3]:
            value *= _MYRIADS[unit]
        return value
    return _chinese(re.sub(r"(?<=\d)\s(?=\D)|(?<=[^\d\s])\s(?=\d)", "", text))


def _ratio(above: str, below: str) -> Decimal | None:
    first, second = _unsigned(above.strip()), _unsigned(below.strip())
    return None if first is None or not second else first / second


def _arabic(text: str) -> Decimal:
    """Return the value of digits with their groups; in 1.234.567 and 1.234,5 points group the digits."""
    text = text.strip()
    if re.fullmatch(r"\d{1,3}(?:\.\d{3})+,\d{1,2}|\d{1,3}(?:\.\d{3}){2,}", text):
        return Decimal(text.replace(".", "").replace(",", "."))
    return Decimal(re.sub(r"[, ]", "", text))


def _chinese(text: str) -> Decimal | None:
    """Return the value of 十八, 一百二十, 兩萬三千, 二〇二四, 一萬二, 3萬5千, 1,200 or 1e5; None if there is none."""
    if not text:
        return None
    if all(c in _DIGITS for c in text):  # digit by digit
        return Decimal("".join(str(_DIGITS[c]) for c in text))
    scientific = re.fullmatch(rf"({_CORE})[eE]([+-]?\d+)", text)
    if scientific:
        return _arabic(scientific[1]).scaleb(int(scientific[2]))
    total = section = Decimal(0)
    number: Decimal | None = None
    myriad = unit = 0  # the value of the last myriad and of the last unit; 0 before the first one
    low = gap = False  # low: whether 千 follows the last myriad; gap: whether 零 comes before the number
    single = False  # whether the number is one digit
    for part in re.findall(rf"{_CORE}|{_C}", text):
        if part in _UNITS:
            low = low or (not section and not gap and _UNITS[part] == 1000 and number is not None and single)
            section += (Decimal(1) if number is None else number) * _UNITS[part]
            number, unit, gap = None, _UNITS[part], False
        elif part in _MYRIADS:
            section += number or 0
            if _MYRIADS[part] > myriad and total:  # 一萬億
                total = (total + section) * _MYRIADS[part]
            else:
                total += (section or (Decimal(0) if total else Decimal(1))) * _MYRIADS[part]
            section, number, myriad, unit, low, gap = Decimal(0), None, _MYRIADS[part], _MYRIADS[part], False, False
        elif part in _ZEROS:
            gap = True
        elif number is not None:
            return None
        else:
            number = Decimal(_DIGITS[part]) if part in _DIGITS else _arabic(part)
            single = number in range(1, 10) and len(part) == 1
    if number is not None:
        section += number * unit / 10 if single and not gap and unit >= 100 else number
        if unit == myriad and unit and single and not gap:
            return total + section
    return total + (section * (myriad // 10**4) if low and myriad else section)
