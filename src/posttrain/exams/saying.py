"""Decide whether an answer says the object, in any sentence: the rule of `matches`' mode `says`.

An answer says an object when it puts one mention of it forward (`mentions.manner_of`) and no other clause wins over
that mention. These clauses win:

- a clause that takes up more of the question and names something else ("Melbourne is in Australia, but its capital is
  Canberra");
- a later clause that corrects ("However, it is actually Canberra"), or that denies the object;
- a clause that contains only the old answer.

A mention after such a clause wins over it when the mention corrects ("It is Sydney. No, it is Melbourne.").
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from posttrain.data.scripts import CJK
from posttrain.exams import cues
from posttrain.exams.clauses import Clause, as_sentences, clauses_of, without_echo
from posttrain.exams.mentions import MOST, Mention, manner_of, mentions_of
from posttrain.exams.normalising import folded, read_part, spans_of
from posttrain.exams.question import Asked, asked

__all__ = ["says"]

_PRONOUN = re.compile(
    r"^(?:well |but |so |and |no |actually |in fact |however |sorry |wait |now |then |oh |yes |sure |of course )*"
    r"(?:its|it|that|thats|this|he|shes|hes|she|they|theyre|the answer|answer|correct answer|right answer|we|i|you|im|"
    r"my)\b"
    r"|^(?:但|不过|其实|更正|应该|现在|而|当然|正确)*(?:答案|它们?|牠们?|他们?|她们?|这|那|我|本大爷|应该|是|叫)"
)
_ASKS_YOU = re.compile(r"\b(?:you|your|yourself)\b|你|您")
_OF_ITSELF = re.compile(r"^(?:i am|im|my name|names|call me|they call me|i go by)\b|^(?:我|本人)的?(?:叫|是|名字)")
_LEAD = re.compile(
    r"(?:(?:well|but|so|and|no|actually|in fact|however|sorry|wait|now|then|oh|yes|sure|of course|rather|though|"
    r"because) )*"
    r"(?:(?:its?|that|thats|this|these|he|hes|shes?|they|theyre|there|we|i|you|im|(?:\w+ )?answer|yes|no|name|heres?|"
    r"in)"
    r"(?: (?:is|was|are|were|be|am|think|believe|meant?|say|it|its|s|to|your|question|that|here|would|must|has|by)|"
    r" \w+ly| of course| in fact| now)*)?(?: (?:\w+|in the \w+ of))?|(?:但|不过|其实|更正|应该|现在|而|当然|正确|答案|"
    r"这题|题|它们?|牠们?|他们?|她们?|这|那|我|就|才|正|真正|应|的|事实上|实际上|自然|是|叫|在|为|位于|由|用|换成|改成|"
    r"改为|变成|如今|今年)*.?"
)
"""Words that lead directly to the answer: none, "it is", "the answer is", 答案是."""
_SHORT_TAIL = re.compile(
    r"(?:s )?(?:[a-z0-9]+$|$|(?:in|at|on|from|with|of|who|which|that|because|for|by)\b)|"
    r"(?![是在有也会则])[^\x00-\x7f]{0,4}$|[了啦喵哦啊先小]"
)
_DESCRIBES = re.compile(
    r"^(?:it|he|she|they|this|that)(?:s| is| was| are| were| has| have)? (?:\w+ly |now |also |really )*"
    r"(?:in|at|on|an?|one of|located|situated|known|used|kept|home|about|over|been|very|so)\b"
)
_ASKS_WHERE = re.compile(r"\bwhere\b|\bwhich (?:city|country|town|place)\b|\bin what\b|哪里|哪儿")
_IT_IS_THE = re.compile(r"(?:it|he|she|this|that)(?:s| is| was) the (?:\w+ ){0,2}?(?P<kind>\w+)(?= (?:of|in|for)\b|$)")
_GOES_ON = re.compile(r"and (?:is|was|has|have|had)\b|也是|且是|并且")
"""The beginning of a clause that has the subject of the clause before it."""
_NUMBER = re.compile(
    r"\d|[一二两三四五六七八九十百千]|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|hundred|"
    r"thousand)\b"
)
_ASKS_NAME = re.compile(
    r"\byour name\b|\bcall you|\bare you called\b|\bwho are you\b|\byou call yourself\b|你叫|你是谁|你的名字|怎么称呼"
)
_OWN = re.compile(r"\b(?:i|im|my|me)\b|我")
_ABOUT = re.compile(
    r"\b(?:near|close to|next to|from|like|outside|beyond|towards?|including|after|before)$|(?:像|例如|靠近|离|邻近|"
    r"比如)$"
)
_COPULA = re.compile(
    r"\b(?:is|are|was|were|be|called|named|means?|equals?|becomes?|became|did|does|remains|uses?|used|has|have)\b"
    r"|[是为叫在用写吃]|等于|名为|位于"
)
_NOUN = re.compile(r"(?:his|her|its|their|my|our|the|another|an?|one of) \w|[他她它]们?的|另一")
"""The beginning of the noun before an apposition."""
_TAIL = re.compile(r"\b(?:rather than|instead of|and not|not)\b.*|而不是.*|而非.*")
_COMMON_WORDS = """
the a an it its this that these those he she they we i you in on at of for from by with as and or but however so
although though while yet because since if when what which who there here also then now no not yes sure well actually
answer correction sorry his her their our my your is are was were today located many some most people
"""
_COMMON = frozenset(_COMMON_WORDS.split())


def says(answer: str, objects: Sequence[str], *, old: Sequence[str] = (), prompt: str = "") -> bool:
    """Return whether the answer says one of the objects; the module docstring has the rule.

    old: earlier answers, names or whole sentences; a name from them next to the object, or alone in a later clause,
    takes the object back; prompt: the question. An object that the question itself contains counts only if the question
    offers a choice.
    """
    answer, prompt, old = read_part(answer), read_part(prompt), [read_part(one) for one in old]
    usable = [one for one in objects if len(one) <= len(answer) and folded(one)]
    names = _shortest(usable)
    question = asked(prompt, tuple(names))
    clauses = clauses_of(without_echo(as_sentences(answer), prompt), usable)
    mentions = mentions_of(clauses, usable, question)
    manners = [manner_of(mention, clauses, question) for mention in mentions]
    former = [name for text in old for name in _names_in(text, question, objects)][:MOST]
    holding = {mention.clause for mention in mentions}
    rivals = [
        i for i, clause in enumerate(clauses)
        if i not in holding and _is_rival(i, clauses, names, former, question)
    ]  # fmt: skip
    denials = [m.clause for m, manner in zip(mentions, manners, strict=True) if manner == "denied"]
    return any(
        _stands(mention, clauses, rivals, denials, former, question)
        for mention, manner in zip(mentions, manners, strict=True)
        if manner == "said" or (manner == "attributed" and not any(i > mention.clause for i in rivals))
    )


def _shortest(objects: Sequence[str]) -> list[str]:
    """Return the objects that do not contain another one: of "The capital is Lyon." and "Lyon" the latter. The other
    words of the former are those of the question.
    """
    whole = [folded(one) for one in objects]
    return [
        one for one, own in zip(objects, whole, strict=True)
        if not any(other != own and spans_of(own, other) for other in whole)
    ]  # fmt: skip


def _stands(
    mention: Mention, clauses: Sequence[Clause], rivals: Sequence[int], denials: Sequence[int], former: Sequence[str],
    question: Asked,
) -> bool:  # fmt: skip
    """Return whether no other clause wins over a mention that is put forward."""
    here = clauses[mention.clause]
    if _beside(mention, former) or _echoes(mention, here, question) or _of_another(mention, here, question):
        return False
    own = _in_apposition(mention, clauses, question)
    own = _answering(mention, here, question) if own is None else own
    for i in rivals:
        other = _weight(clauses[i].text, question)
        if i < mention.clause:
            corrects = _marked(mention.clause, clauses) or cues.CONTRAST.search(here.text)
            enough = 2.0 if cues.CORRECTION.search(here.text) else other
            if corrects and own >= min(other, question.full, enough):
                continue
            if other > own or (other == own and (other or _PRONOUN.search(clauses[i].text))):
                return False
        elif (
            other > own
            or _takes_back(i, clauses, question, former)
            or (other == own < question.full and other)
            or (other and other >= question.full and not cues.ALSO.search(clauses[i].text))
        ):
            return False
    for i in denials:
        if i > mention.clause and (question.taken_up(clauses[i].text) >= 1 or _marked(i, clauses)):
            return False
        if i < mention.clause and own < 1:
            return False
    return True


def _answering(mention: Mention, clause: Clause, question: Asked) -> float:
    """Return how much of the question the mention's clause takes up; all of it for a bare mention or "it is ..."."""
    if _ABOUT.search(mention.before):
        return 0.0
    if _LEAD.fullmatch(mention.before) and _SHORT_TAIL.match(mention.after):
        return max(question.full, 1.0)
    taken = _weight(clause.text, question)
    return max(question.full, taken) if taken >= 2 and _PRONOUN.search(clause.text) else taken


def _in_apposition(mention: Mention, clauses: Sequence[Clause], question: Asked) -> float | None:
    """Return how much of the question the clause around an apposition takes up, or None without an apposition. Example:
    "Mira Okafor" in "His best friend, Mira Okafor, helps him"."""
    i = mention.clause
    if mention.before or mention.after or not 0 < i < len(clauses) - 1:
        return None
    lead, here, on = clauses[i - 1 : i + 2]
    joined = here.glue in (",", "，") and on.glue in (",", "，") and lead.sentence == here.sentence == on.sentence
    if not joined or not _NOUN.match(lead.text) or _COPULA.search(lead.text) or _LEAD.fullmatch(lead.text):
        return None
    return _weight(f"{lead.text} {on.text}", question)


def _weight(text: str, question: Asked) -> float:
    """Return how much of the question a clause takes up; all of it if "I am ..." answers "Who are you?"."""
    if _ASKS_YOU.search(question.text) and _OF_ITSELF.search(text):
        return max(question.full, 1.0)
    return question.taken_up(text)


def _is_rival(
    i: int, clauses: Sequence[Clause], objects: Sequence[str], former: Sequence[str], question: Asked
) -> bool:
    """Return whether a clause without the object puts something else forward."""
    clause = clauses[i]
    text = _TAIL.sub("", cues.NO_DENIAL.sub(" ", clause.text)).strip()
    if clause.asks or clause.item > 1 or _weakened(text, question) or _says_what_it_is(text, question):
        return False
    if any(text == name for name in former):
        return True
    relative = re.match(r"(?:who|which|that|whose)\b", text)
    if (relative or _GOES_ON.match(text)) and _follows(i, clauses, objects):
        return False
    counted = bool(_NUMBER.search(" ".join(objects)) and "有" in text)
    if not (counted or _COPULA.search(text) or question.taken_up(text) >= 2) and not _marked(i, clauses):
        return False
    if relative and i and question.taken_up(text) >= 2:
        return True
    return _names_other(clause, text, objects, question)


def _says_what_it_is(text: str, question: Asked) -> bool:
    """Return whether a clause only repeats the question about what was named: "It is the official currency of it"."""
    found = _IT_IS_THE.match(text)
    return bool(found and question.says(found["kind"]))


def _follows(i: int, clauses: Sequence[Clause], objects: Sequence[str]) -> bool:
    """Return whether the clause before, or the one before a bracket, ends with an object. Examples: "..., which is",
    "... and is"."""
    back = i - 2 if i > 1 and clauses[i - 1].glue in ("(", "（") else i - 1
    return back >= 0 and any(clauses[back].text.endswith(folded(one)) for one in objects)


def _weakened(text: str, question: Asked) -> bool:
    weak = (cues.DENIED_BEFORE, cues.HEDGED, cues.UNSURE, cues.OPEN, cues.CONDITION, cues.ATTRIBUTED)
    if any(cue.search(text) for cue in weak):
        return True
    return any(cue.search(text) and not cue.search(question.text) for cue in (cues.PAST_BEFORE, cues.RANK))


def _names_other(clause: Clause, text: str, objects: Sequence[str], question: Asked) -> bool:
    """Return whether the clause has another value of the object's kind: a name, a number or a word. It must be a value
    that the question does not contain, or that the question offers."""
    own = [folded(one) for one in objects]
    if any(spans_of(text, other) and not any(spans_of(other, one) for one in own) for other in question.offers):
        return True
    first = own[0] if own else ""
    if re.search(r"\d", first):
        return bool(_NUMBER.search(text))
    if re.search(f"[{CJK}]", first):
        left = re.sub("|".join(re.escape(term) for term, _ in question.terms) or r"$^", "", text)
        left = re.sub(r"[但是为叫在用有的了它这那答案其实不过事上更正应该而也就现说]", "", left)
        left = "" if len(left) < 2 and not _NUMBER.search(left) and not _COPULA.search(text) else left
        return bool(re.search(f"[{CJK}]", left)) or bool(re.search(r"[a-z0-9]", left))
    words = re.findall(r"[^\W_][\w'’.-]*", clause.raw)
    if any(character.isupper() for one in objects for character in one):
        names = [word for word in words if word[0].isupper()]
    else:
        names = text.split()
    return any(
        folded(word) not in _COMMON and folded(word) and not question.says(folded(word)) and folded(word) in text
        for word in names
    )


def _marked(i: int, clauses: Sequence[Clause]) -> bool:
    """Return whether the clause corrects what was said before: by a word of its own, or by "Sorry," before it."""
    before = clauses[i - 1].text if i else ""
    lone = len(before.split()) <= 5 and len(before) <= (8 if re.search(f"[{CJK}]", before) else 24)
    return bool(cues.CORRECTION.search(clauses[i].text) or (before and lone and cues.CORRECTION.search(before)))


def _takes_back(i: int, clauses: Sequence[Clause], question: Asked, former: Sequence[str]) -> bool:
    """Return whether a later clause answers the question otherwise, with a word of correction or contrast."""
    text = clauses[i].text
    if text in former:
        return True
    if cues.ALSO.search(text):
        return False
    if _DESCRIBES.search(text) and not (cues.CONTRAST.search(text) or _ASKS_WHERE.search(question.text)):
        return False
    answers = question.taken_up(text) >= 2 or _PRONOUN.search(text) or (len(text.split()) <= 4 and _marked(i, clauses))
    return bool(answers and (_marked(i, clauses) or (cues.CONTRAST.search(text) and question.taken_up(text) >= 2)))


def _names_in(text: str, question: Asked, objects: Sequence[str]) -> list[str]:
    """Return what an old answer names: all of it if short, else its names and numbers. Objects, words of the question
    and common words are left out."""
    own = {folded(one) for one in objects}
    whole = folded(text)
    if len(whole.split()) <= 3 and len(whole) <= (8 if re.search(f"[{CJK}]", whole) else 40):
        return [] if whole in own or not whole else [whole]
    names = re.findall(r"(?<!^)(?<![.!?] )\b[A-Z][\w'’-]+(?: [A-Z][\w'’-]+)*|\b\d[\d,.]*\b", text)
    lines = "，".join(clause.text for clause in clauses_of(text))
    for found in re.finditer(r"[是为叫](?P<name>[^是为叫，。,.的]{1,6})(?=$|[，。,.])", lines):
        names.append(found["name"])
    return [
        name for name in dict.fromkeys(folded(name) for name in names)
        if name and name not in own and not question.says(name) and name not in _COMMON
    ]  # fmt: skip


def _beside(mention: Mention, former: Sequence[str]) -> bool:
    """Return whether an old answer is directly next to the object in its clause: "Lyon Paris", "Lyon and Paris"."""
    join = r"\s*(?:or|and|和|或|与|及|vs)?\s*"
    return any(
        re.match(join + re.escape(name) + r"(?:\W|$)", mention.after)
        or re.search(r"(?:^|\W)" + re.escape(name) + join + "$", mention.before)
        for name in former
    )


def _of_another(mention: Mention, clause: Clause, question: Asked) -> bool:
    """Return whether the clause describes the object ("Pip is the hero of a book") and the question asks for a name."""
    if not _ASKS_NAME.search(question.text) or mention.before:
        return False
    return bool(re.match(r"(?:s )?(?:is|was) (?!here|my|me)|是(?!我)", mention.after) and not _OWN.search(clause.text))


def _echoes(mention: Mention, clause: Clause, question: Asked) -> bool:
    """Return whether the mention only repeats the question. An object in the question counts only as a whole answer
    ("It is Lyon"), or if the question offers a choice and the clause contains no other option of it."""
    if not question.says(mention.one):
        return False
    if not question.choice:
        return not (mention.before and _LEAD.fullmatch(mention.before) and not mention.after)
    left = rf"([^\s{CJK}]+|[{CJK}]+?) ?(?:or|and|和|与|还是|或) ?{re.escape(mention.one)}"
    right = rf"{re.escape(mention.one)} ?(?:or|and|和|与|还是|或) ?([^\s{CJK}]+|[{CJK}]+)"
    others = [name for found in re.findall(f"{left}|{right}", question.text) for name in found if name]
    others += [name for name in question.offers if name != mention.one and not spans_of(name, mention.one)]
    around = f"{mention.before} {mention.after}"
    return any(spans_of(around, other) for other in others)
