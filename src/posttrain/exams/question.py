"""The words that a question is about, to measure how much of the question a clause takes up.

"Its capital is Canberra" takes up more of "What is the capital of Australia?" than "Melbourne is in Australia" does; so
the first answers it and the second does not. There is no parser: the words are those of the question without its
grammar words, names at half weight, and in Chinese the pieces between function words, the last one (首都 in 澳洲的首都)
at double weight.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from posttrain.data.scripts import CJK
from posttrain.exams.normalising import folded, words_of

__all__ = ["Asked", "asked"]

_STOP_WORDS = """
a an the of in on at to for from by with and or is are was were be been am do does did has have had what which who
whom whose where when why how many much there it its this that these those you your i me my we our please tell give
name say called can could would will should one word answer sentence briefly question as their his her he she they not
"""
_STOP = frozenset(_STOP_WORDS.split())
_CHINESE_STOP = re.compile(
    r"哪里|哪儿|(?:哪一?|什么|何)[条座个位年种国部所家颗只支]?(?:城市|国家|地方|人|动物|年|月|日|行星|语言|运动|颜色)?|"
    r"什么|怎么|谁|多少|几|吗|呢|请问|请|告诉我|一[条座个位年种]|的|是|在|和|了|有|由|与|及|还是|或|叫|为|你|我|您"
)
_MANY = re.compile(
    r"\b(?:list|which \w+ are|what are|who are|name (?:two|three|four|five|some|several|\d)|two|three|both|need|"
    r"needed|ingredients|made of|consist of)\b"
    r"|两[个种位座]|三[个种位座原]|哪些|列出|列举|需要什么|材料|配料|成分|有哪"
)
_CHOICE = re.compile(r"\bor\b|\bwhich (?:one )?of\b|\bbetween\b|还是|或|哪一?[个座条位种]")


@dataclass(frozen=True)
class Asked:
    """A question, prepared. text: folded; terms: (word, or piece of Chinese; weight); many: it asks for several things,
    so an answer may be a list; choice: it offers things to choose from; offers: these things, folded.
    """

    text: str
    terms: tuple[tuple[str, float], ...]
    many: bool
    choice: bool
    offers: tuple[str, ...] = ()

    @property
    def full(self) -> float:
        """The sum of all weights."""
        return sum(weight for _, weight in self.terms)

    def taken_up(self, text: str) -> float:
        """Return the summed weight of its terms in a folded text; a part of a Chinese piece counts in part."""
        words = _OTHER_OFFICE.sub(" ", text).split()
        total = 0.0
        for term, weight in self.terms:
            if re.match(f"[{CJK}]", term):
                if re.search(f"[副前]{term}", text):
                    continue
                pairs = [term[i : i + 2] for i in range(max(1, len(term) - 1))]
                total += weight * sum(pair in text for pair in pairs) / len(pairs)
            elif any(_same_word(term, word) for word in words):
                total += weight
        return total

    def says(self, word: str) -> bool:
        """Return whether the question contains this folded word or piece."""
        return bool(words_of(self.text, word))


def _same_word(term: str, word: str) -> bool:
    """Return whether two words differ only in the ending: end, ended; capital, capitals; write, wrote and written."""
    if term == word or _IRREGULAR.get(word, word) == _IRREGULAR.get(term, term):
        return True
    stem = term.rstrip("sed") if len(term) > 4 else term
    return len(stem) >= 3 and word.startswith(stem) and len(word) - len(stem) <= 4


_OTHER_OFFICE = re.compile(r"\b(?:vice|deputy|assistant|former|ex) \w+")
"""The vice president is not the president, and 副總經理 is not 總經理."""
_FORMS = (
    "write wrote written author writer, draw drew drawn, win won winner, build built, find found, make made maker, "
    "sing sang sung singer, speak spoke spoken, eat ate eaten, sink sank sunk, drink drank drunk, begin began begun, "
    "swim swam swum, run ran, come came, become became, fall fell fallen, grow grew grown, fly flew flown flight, "
    "know knew known, throw threw thrown, hold held, tell told, sell sold, lead led leader, meet met, fight fought, "
    "buy bought, bring brought, teach taught teacher, think thought, catch caught, keep kept, leave left, lose lost, "
    "send sent, spend spent, give gave given, take took taken, rise rose risen, drive drove driven driver, "
    "ride rode ridden, choose chose chosen, break broke broken, steal stole stolen, wear wore worn, see saw seen, "
    "go went gone, say said, pay paid, shoot shot, sleep slept, stand stood, strike struck, hang hung, dig dug, "
    "hide hid hidden, die died death dead, live lived life, invent inventor invented, discover discoverer discovered, "
    "paint painter painted, found founder founded, birth born birthplace, colour color, tall height high, where located"
)
_IRREGULAR = {form: forms.split()[0] for forms in _FORMS.split(", ") for form in forms.split()[1:]}


@lru_cache(maxsize=4096)
def asked(prompt: str, objects: tuple[str, ...]) -> Asked:
    """Return the question, prepared, without the words of the objects themselves."""
    text = folded(prompt)
    own = {word for one in objects for word in folded(one).split()}
    raw_names = {folded(word) for word in re.findall(r"(?<=\s)(?!C[EFT]O\b)[A-Z][\w'’-]*", prompt)}
    kinds = set(re.findall(r"\b(?:which|what) (\w+)", text))  # "which city is the capital" asks for the capital
    english = [
        (word, 1.0 if word in raw_names or word in kinds else 2.0)
        for word in dict.fromkeys(re.findall(rf"[^\W{CJK}]+", text))
        if word not in _STOP and word not in own
    ]
    for one in objects:
        text = text.replace(folded(one), " ") if re.search(f"[{CJK}]", one) else text
    pieces = [
        piece
        for run in re.findall(f"[{CJK}]+", text)
        for piece in _CHINESE_STOP.split(run)
        if piece and (len(piece) > 1 or piece in "山河湖海岛花鸟")
    ]
    chinese = [(piece, 2.0 if i == len(pieces) - 1 else 1.0) for i, piece in enumerate(pieces)]
    folded_prompt = folded(prompt)
    return Asked(
        folded_prompt,
        (*english, *chinese),
        bool(_MANY.search(folded_prompt)),
        bool(_CHOICE.search(folded_prompt)),
        _offered(prompt),
    )


_NAME = r"(?:the |an? )?(?:[A-Z][\w'’-]*(?: [A-Z][\w'’-]*)*|[\w'’-]+)"
NEAR = 120
"""Number of characters before and after an "or" in which the things to choose from are looked for."""
_OR = re.compile(rf"((?:{_NAME}, )*)({_NAME}),? or ({_NAME})")
_ASKING = re.compile(r"\b(?:Is|Are|Was|Were|Which|Did|Does|Do) (?=[A-Z])")
_OPEN = re.compile(r"\b(?:what|who|whom|whose|where|when|why|how)\b", re.IGNORECASE)
_OR_CHINESE = re.compile(rf"([{CJK}、]{{1,60}})(?:还是|或者?)([{CJK}]{{1,60}})")
_VERB_BEFORE = re.compile(r".*(?:是|在|叫|为|喜欢|选|有)")
_VERB_AFTER = re.compile(r"(?:的|是|才|比|哪|呢|吗|较|更|、).*")


def _offered(prompt: str) -> tuple[str, ...]:
    """Return what the question offers: Lyon and Paris of "Is Lyon or Paris the capital?"; 里昂, 巴黎 of 是里昂還是巴黎.
    Only names, if the question also asks for something ("What is the name or title of ..." offers nothing)."""
    found = [
        part.strip()
        for at in re.finditer(r" or ", prompt)
        for several, one, other in _OR.findall(_ASKING.sub("", prompt[max(0, at.start() - NEAR) : at.end() + NEAR]))
        for part in (*several.split(","), one, other)
    ]
    if _OPEN.search(prompt) or any(re.search("[A-Z]", part) for part in found[-1:]):
        found = [part for part in found if re.search("[A-Z]", part)]
    if re.search("还是|還是|或", prompt):
        for left, right in _OR_CHINESE.findall("、".join(folded(part) for part in re.split("[，,、]", prompt))):
            found += [*_VERB_BEFORE.sub("", left).split("、"), _VERB_AFTER.sub("", right)]
    return tuple(dict.fromkeys(one for part in found if (one := folded(part))))
