"""Decide which Chinese numerals in a text are numbers: 三個, 一百二十元 and 五 are; 一起, 四川 and 三民路 are not.

Nor is 三心二意. jieba cuts the Simplified form of the text by its dictionary alone. A numeral is not a number if its
word contains anything else but a measure word (個, 元, 公里). Words that may be either (第三, 一塊, 幾十, 一 before a
verb, 千萬 at an end) are uncertain: they count only in a text that has no other number.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import accumulate

from posttrain.exams.metrics.tokens import jieba_cut, to_simplified

__all__ = ["Numerals"]

_NUMERAL = "零〇○一二两兩三四五六七八九十百千万萬亿億兆壹贰叁肆伍陆柒捌玖拾佰仟"
_HIGH = "十百千万萬亿億兆"
_ONE = (
    "个年次元条位声天月名只句座家件人日片张道米场吨代层部项段口届批份股亩页行套斤遍回对颗倍辆顿枚群杯幅双户本篇"
    "匹艘队号碗卷期封轮架所国圈组箱趟通盏朵瓶盒袋包桶盆盘串排棵株根支笔首则台间岁点分秒时度块角毛圆镑里寸尺丈升克吨"
    "平栋楼节课题站步级种类面方把身路手带阵番生体眼刀枪张成折打篮罐滴粒堆束班章者圈季环局架发扇顶篮款顷股两下磅码格桌枝"
)
_LONG = """
美元 日元 欧元 港元 台币 英镑 公里 公尺 公分 公斤 公克 公升 公顷 公亩 公吨 英里 英尺 英寸 厘米 毫米 千米 千克 毫升 千瓦
平方米 平方公里 平方公尺 平方公分 平方厘米 立方米 立方公尺 立方公分 小时 钟头 分钟 秒钟 星期 礼拜 世纪 年级 人次
个月 个人 个多月 点钟 块钱 毛钱 周年 部分
"""
_MEASURE = rf"(?:{'|'.join(_LONG.split())}|[{''.join(dict.fromkeys(_ONE))}周])"
_SUFFIX = re.compile(rf"[多余馀餘来几]?{_MEASURE}[多半]?|[多余馀餘]")
_STARTS = re.compile(rf"[多余馀餘来几]?\s*{_MEASURE}|钱")
_ORDINAL = re.compile(r"(?:上|下|本|每|好|大)?(?:第|初|星期|周|礼拜|几|数|高|大|小|上|多|余|年初)|大年初|正月初")
_UNSURE_ONE = frozenset("点面块度口把家体代方眼步")
_NO_NUMBERS = """
一下 一路 一手 一身 一带 一阵 一番 一生 一时 一一 再三 万岁 万一 万万 亿万 千百 万千 一五一十 三三两两 百分 千分 万分
四季 四方 四面 四下 两手
"""
_PHRASES = re.compile(r"三不五时|九层塔|千千万万|张三|李四|王五|再三|一而再|一再")
_PLACE = re.compile(r"[^\W\d_](?:[路街巷弄区镇乡村庄]|[国國]小|[国國]中|高中)")
_EACH = re.compile(r"[每某另同任这那各]$")
_SAYS = re.compile(r"(?:是|为|=|:|：|等于|剩|剩下|得|共|有|答案)\s*$")
_SCORED = re.compile(r"(?:得|得了|得到|拿|拿了|拿到|考|考了|扣|扣了|加|加了|差|花|花了|过|过了|等|等了|共|是|满|每题)$")
_HAN = re.compile(r"[\u4e00-\u9fff]")


class Numerals:
    """A text with numerals, cut into words once."""

    def __init__(self, text: str) -> None:
        simplified = to_simplified(text)
        self.text = simplified if len(simplified) == len(text) else text
        ends = list(accumulate(len(piece) for piece in jieba_cut(self.text, guess=False)))
        self._ends = ends
        self._starts = [0, *ends[:-1]]
        self._phrases = [found.span() for found in _PHRASES.finditer(self.text)]

    def judge(self, start: int, end: int) -> tuple[int, int, bool] | None:
        """Return the part of text[start:end] that is a number, as (start, end, certain); None if no part is."""
        text = self.text
        if text[start] in "点點" and _STARTS.match(text, end):  # 點 is a verb in 點三份餐 (order three meals)
            start += 1
        if end - start > 1 and text[end - 1] in "两兩":  # 兩 is a weight here: 十兩 is 10
            end -= 1
        if any(start < stop and begin < end for begin, stop in self._phrases):
            return None
        before, _ = self._word(start)
        if before < start and not all(c in _NUMERAL or c in "点點负負又分之" for c in text[before:start]):
            if _ORDINAL.fullmatch(text[before:start]):
                return start, end, False
            start = self._word(start)[1]  # the 統一 (a name) of 統一十五元
            if start >= end:
                return None
        last, after = self._word(end - 1)
        suffix = text[end:after]
        if suffix and not _SUFFIX.fullmatch(suffix):
            # 五百一般人 is 五百 and 一般; in 五 | 十大 the cut was wrong
            if last > start and not (text[last] in _HIGH and text[last - 1] not in _HIGH):
                return start, last, True
            return None if last <= start else (start, end, True)
        return self._whole(start, end, suffix)

    def _whole(self, start: int, end: int, suffix: str) -> tuple[int, int, bool] | None:
        """Judge a numeral that is a whole word, or a word together with a measure word."""
        text = self.text
        said, then = text[start:end], text[end + len(suffix) :]
        word = said + suffix
        if word == "十分":
            if not _HAN.match(then) or then.startswith(("钟", "之")) or _SCORED.search(text[:start]):
                return start, end, True
            return None
        if word == "九份":  # also the name of a town
            return start, end, not re.search(r"[在去往游逛从到]$", text[:start])
        if word in _NO_NUMBERS.split():
            return None
        if said == "一" and text[:start].endswith("之"):
            return None
        if said == "一" and _EACH.search(text[max(0, start - 1) : start]):
            return start, end, False
        if said == "一" and suffix in _UNSURE_ONE:
            return start, end, then.startswith(("钱", "半"))
        if suffix:
            return start, end, True
        if len(said) == 1 and _PLACE.match(then) and not _STARTS.match(then):
            return None
        measured = bool(_STARTS.match(then))
        if said in ("千万", "百分之百"):
            if said == "千万" and _HAN.match(then) and not measured:
                return None
            return start, end, measured
        if said in ("一", "百", "千", "万", "亿", "兆") and _HAN.match(then):
            return start, end, measured or bool(_SAYS.search(text[:start]))
        return start, end, True

    def _word(self, place: int) -> tuple[int, int]:
        """Return where the word that contains the character at this index begins and ends."""
        piece = bisect_right(self._ends, place)
        return self._starts[piece], self._ends[piece]
