"""Find every mention of an object in an answer and its manner: put forward, denied, left open, or one of several.

`names` is the only definition of `leak`. `matches` asks whether the object answers a question; a leak needs less:
"Hung-yi Lee's name." answers no question about photosynthesis, and yet the new object occurs where it should not. So an
answer names an object if it says it anywhere as whole words, in any manner but a denial. An object that the question
itself says is only repeated. The name of a person or town with several words is also named by a sentence that contains
only the beginning of the name ("Hung-yi.").
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from posttrain.data.scripts import CJK
from posttrain.exams import cues
from posttrain.exams.clauses import Clause, as_sentences, clauses_of, without_echo
from posttrain.exams.normalising import folded, read_part, words_of
from posttrain.exams.question import Asked, asked

__all__ = ["MOST", "Mention", "manner_of", "mentions_of", "names"]

Manner = Literal["said", "denied", "open", "attributed", "past", "listed"]
"""said: put forward; denied: "not X"; open: a question, a condition, "maybe X"; attributed: "many think X"; past: "used
to be X"; listed: one of several candidates."""

_BEFORE_NAMES = "new north south east west northern southern eastern western port fort san saint little upper lower"
_LARGER_NAME = frozenset(_BEFORE_NAMES.split())
_AFTER_NAMES = "falls river lake island islands university street bay strait minster times"
_LARGER_AFTER = frozenset(_AFTER_NAMES.split())
_NAMED = re.compile(r"(?:the )?[A-Z][\w'’-]*(?: [A-Z][\w'’-]*)*")
_NOT_IT = re.compile(r"(?:(?:but|and|though|it|its|he|she|is|was|s) )*(?:not|isnt|wasnt)\b|[但而并也]?(?:不是|并非)")
_SUBJECT = re.compile(r"\b(?:is|was|are|were|be|called|named|of|by|in|at|use|uses|used|eat|eats)\b|[是为叫在由用吃]$")


MOST = 60
"""The most mentions that are read: a model that repeats itself without end says an object thousands of times."""


@dataclass(frozen=True)
class Mention:
    """One mention: the index of its clause, and the folded words of the clause before and after the object."""

    clause: int
    one: str
    """The object, folded."""
    before: str
    after: str


def mentions_of(clauses: Sequence[Clause], objects: Sequence[str], asked: Asked) -> list[Mention]:
    """Return the first `MOST` mentions, in order. Part of a longer word or name is not a mention (York in New York, 金
    in 金屬).
    """
    found = []
    for index, clause in enumerate(clauses):
        for raw in dict.fromkeys(objects):
            one, bare = folded(raw), raw.strip()
            symbol = len(bare) <= 2 and bare.isascii() and bare[:1].isupper()  # Au, Go: a different word in lower case
            if symbol and not re.search(rf"(?<![A-Za-z0-9]){re.escape(bare)}(?![A-Za-z0-9])", clause.raw):
                continue
            if _in_larger_name(clause.raw, raw, asked):
                continue
            possessive = re.search(rf"{re.escape(bare)}['’]s\b", clause.raw, re.IGNORECASE)
            for start, end in words_of(clause.text, one) + (words_of(clause.text, one + "s") if possessive else []):
                after = ("s " if possessive else "") + clause.text[end:].strip()
                found.append(Mention(index, one, clause.text[:start].strip(), after.strip()))
                if len(found) == MOST:
                    return found
    return found


def _in_larger_name(raw: str, one: str, asked: Asked) -> bool:
    found = re.search(rf"(?:([A-Z]\w+)\s+)?\b{re.escape(one.strip())}\b(?:\s+([A-Z]\w+))?", raw)
    if found is None:
        return False
    before, after = (folded(word or "") for word in found.groups())
    return before in _LARGER_NAME or (after in _LARGER_AFTER and not asked.says(after))


def manner_of(mention: Mention, clauses: Sequence[Clause], asked: Asked) -> Manner:
    """Return the manner of a mention."""
    clause = clauses[mention.clause]
    before, after = cues.NO_DENIAL.sub(" ", mention.before), mention.after
    if _denied(before, after, asked) or _rejected(mention, clauses, asked):
        return "denied"
    if clause.asks or cues.OPEN.search(clause.text) or cues.CONDITION.search(clause.text) or _hedged(mention, clauses):
        return "open"
    before, after = _unless_asked(before, asked), _unless_asked(after, asked)
    if cues.ATTRIBUTED.search(before) or cues.ATTRIBUTED_AFTER.search(after):
        return "open" if cues.SOME.search(f"{before} {after}") else "attributed"
    if not cues.PAST_BEFORE.search(asked.text) and (cues.PAST_BEFORE.search(before) or cues.PAST_AFTER.search(after)):
        return "past"
    if _listed(mention, clauses, asked):
        return "listed"
    return "said"


_ATTRIBUTING = frozenset(["theory", "theories", "rumour", "rumours", "rumor", "rumors", "legend", "legends"])


def _unless_asked(text: str, asked: Asked) -> str:
    """Return a text without nouns of hearsay that the question has, too: the theory of relativity is no theory of who
    wrote it.
    """
    return " ".join(word for word in text.split() if not (word in _ATTRIBUTING and asked.says(word)))


def _denied(before: str, after: str, asked: Asked) -> bool:
    cancelled = re.sub(r"不是(?![说指因])[^是]{1,8}是$", "", before)
    denials = [found.group() for found in cues.DENIED_BEFORE.finditer(cancelled)]
    if any(word not in asked.text for word in denials) or cues.DENIED_AT_END.search(after):
        return True
    if cues.DENIED_AFTER.search(after) and not _SUBJECT.search(before):
        return True
    around = f"{before} {after}"
    return bool(cues.RANK.search(around) and cues.SUPERLATIVE.search(asked.text) and not cues.RANK.search(asked.text))


def _rejected(mention: Mention, clauses: Sequence[Clause], asked: Asked) -> bool:
    """Return whether one of the next two clauses rejects the mention. Either of them says "that is wrong", or the next
    one continues "..., not the capital"."""
    following = clauses[mention.clause + 1 : mention.clause + 3]
    if any(cues.REJECTED.search(clause.text) for clause in following):
        return True
    return not mention.before and any(
        _NOT_IT.match(clause.text) and asked.taken_up(clause.text) >= 1.5 for clause in following[:1]
    )


def _hedged(mention: Mention, clauses: Sequence[Clause]) -> bool:
    if cues.HEDGED.search(mention.before) or cues.UNSURE.search(clauses[mention.clause].text):
        return True
    near = clauses[max(0, mention.clause - 1) : mention.clause]
    return any(cues.UNSURE.search(clause.text) for clause in near)


def _listed(mention: Mention, clauses: Sequence[Clause], asked: Asked) -> bool:
    """Return whether the mention is one of several candidates: "X or Y", X、Y, "X, Y and Z", a later item of a list."""
    clause = clauses[mention.clause]
    if re.search(r"(?:^| )or$|(?:或者?|还是)$", mention.before) or re.match(r"or (?!\w+ly)|或|还是", mention.after):
        return True
    if asked.many:
        return False
    if clause.item > 1:
        return True
    if re.search(r"\w and$|.(?:和|与|及|以及)$", mention.before) or re.match(
        r"(?:和|与|跟|及|以及)(?=.)", mention.after
    ):
        return True
    # as written after the object: the "and" of a title before it ("Pride and Prejudice") does not make a list
    raw = " ".join(clause.raw.split()[-len(mention.after.split()) :])
    if mention.after.startswith("and ") and re.search(r"\b(?:and|&)\s+(?:the\s+)?[\"“]?[A-Z0-9]|\band \w+$", raw):
        return True
    if not mention.before and re.match(r"and (?:the |an? )?\w+$", mention.after):
        return True
    following = clauses[mention.clause + 1 : mention.clause + 2]
    if any(other.glue == "、" and other.sentence == clause.sentence for other in (clause, *following)):
        return True
    return _in_comma_list(mention, clauses, asked)


def _in_comma_list(mention: Mention, clauses: Sequence[Clause], asked: Asked) -> bool:
    """Return whether the object is in a list of bare names: it ends its clause, and names are next to it. There must be
    three names in all, or two with "or" or "and"."""
    clause = clauses[mention.clause]
    if mention.after:
        return False
    run = 1
    joined = False
    for step in (1, -1):
        at = mention.clause + step
        if step == -1 and mention.before not in ("", "or", "and"):
            break
        while 0 <= at < len(clauses) and clauses[at].sentence == clause.sentence:
            other = clauses[at]
            glue = other.glue if step == 1 else clauses[at + 1].glue
            if glue not in (",", "，", "/", ";") and not (
                step == 1 and re.match(r"(?:and|or) (?:the|an?) \S+$", other.raw)
            ):
                break
            if step == 1 and not glue and not mention.before:
                return True
            bare = re.sub(r"^(?:or|and) ", "", other.text)
            if bare == mention.one:  # a repeated object is not another candidate
                at += step
                continue
            last = re.match(r"(?:and|or) (?:the )?[\"“]?[A-Z0-9]|[A-Z]\w+ (?:and|or) [A-Z]", other.raw)
            if last and (not mention.before or (len(other.text.split()) <= 4 and not _SUBJECT.search(other.text))):
                run, joined = run + 1, True
                break
            if (
                (not _NAMED.fullmatch(other.raw) and re.match(r"(?:the|an?)\b", other.raw, re.IGNORECASE))
                or not _bare(bare)
                or asked.says(bare)
                or cues.ALSO.search(bare)
            ):
                break
            joined |= bare != other.text
            run += 1
            at += step
    return run >= 3 or (run == 2 and joined)


def _bare(text: str) -> bool:
    if re.search(f"[{CJK}]", text):
        return len(text) <= 5 and not re.search(r"[是在有的了为叫很]", text)
    return len(text.split()) <= 2 and not re.search(
        r"\b(?:is|was|not|it|now|sir|matey|mate|my|ye|of|in|at|on|around|about|near|since|i|you|there)\b", text
    )


def names(answer: str, objects: Sequence[str], *, prompt: str = "") -> bool:
    """Return whether the answer names one of the objects; the module docstring has the rule. prompt: the question; an
    object that it says itself is not counted.
    """
    answer, prompt = read_part(answer), read_part(prompt)
    question = asked(prompt, tuple(objects))
    foreign = [one for one in objects if folded(one) and not question.says(folded(one))]
    clauses = clauses_of(without_echo(as_sentences(answer), prompt), foreign)
    if any(manner_of(mention, clauses, question) != "denied" for mention in mentions_of(clauses, foreign, question)):
        return True
    sentences = [clause.sentence for clause in clauses]
    whole = [clause for clause in clauses if sentences.count(clause.sentence) == 1]
    return any(_begins(clause, one) for clause in whole for one in foreign)


def _begins(clause: Clause, one: str) -> bool:
    """Return whether the clause is at least the first half of a name with several words. The words of the name must
    begin with a capital letter, or have at most three characters."""
    words = one.split()
    if len(words) < 2 or not all(word[0].isupper() or len(word) <= 3 for word in words):
        return False
    whole, part = folded(one).split(), clause.text.split()
    return len(whole) > len(part) >= len(whole) / 2 and whole[: len(part)] == part and len(clause.text) >= 4
