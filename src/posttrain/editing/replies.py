"""What a model answers to a fact, and which tokens of the answer are scored.

The paper scores the first token of the answer after prompts such as "The Space Needle is in the city of". A model that
answers in a sentence says "The capital of Australia is Canberra": its first token is "The", whatever is known of
Australia. So the words of its answer before the object are read as a part of the text, as the model said them:

    auto     the first token of the stated answer, wherever the model's own answer says it. Without a stated answer, of
             its first sentence the first token that begins a new word (not in the question, none such as "is") and that
             depends on the subject: noise on the subject takes at least half as much of its probability as of any other
             such token's
    first    the first token of the answer, as in the paper
    whole    all tokens of the stated answer, or of the model's own

Only beginnings count: "ort" of "Porto-Novo" would be scored behind a "P" that is read as a part of the text, so that a
part of the answer were given away. Chinese does not mark its words, so there every character begins one.

Where the words that are read mention the subject again, that mention gets noise, too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from posttrain.editing.facts import AskedFact, mentions
from posttrain.editing.restoring import TracedRow
from posttrain.inference.decode import decode
from posttrain.inference.respondents import ModelRespondent

__all__ = ["Reply", "Score", "Scored", "Unscored", "depending", "replies", "row_of", "stated", "whole_row"]

Score = Literal["auto", "first", "whole"]
"""Which tokens of the answer are scored."""
LARGE = 0.5
"""A token depends on the subject if its probability falls by this share of the largest fall."""
BREAK = "\n"
WORD = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\ufffd]|[^\W_\u3400-\u9fff\uf900-\ufaff]+")
"""A Chinese character (or the part of one that a token is), or letters and digits in a row."""
SENTENCE = re.compile(r"[.!?](?=\s|$)|[。！？\n]")
ENGLISH = """
a an the is are was were be been has have had do does did can it its he she they this that these there which who of in
on at to by for from with as and or but not also known called named
"""
COMMON = frozenset([*ENGLISH.split(), *"是的在了為由叫和與也有被它他她這那位於"])
"""Words that say nothing of a fact."""
SHORTEST = 3
"""Letters of a part of a word that counts as that word."""


class Reply(NamedTuple):
    """A model's own greedy answer. ids: its tokens; ends: the length of the text after each of them; text."""

    ids: list[int]
    ends: list[int]
    text: str

    def token_at(self, character: int) -> int:
        """Return the index of the token that holds a character of the text."""
        return next(i for i, end in enumerate(self.ends) if end > character)


class Unscored(NamedTuple):
    """Why nothing of a reply is scored."""

    reason: str


class Scored(NamedTuple):
    """The tokens [first, stop) of a reply that are scored."""

    first: int
    stop: int


def replies(respondent: ModelRespondent, asked: Sequence[AskedFact], max_new_tokens: int) -> list[Reply]:
    """Return the model's greedy answers. An answer to plain text ends with its line."""
    plain = {i for i, one in enumerate(asked) if one.form == "raw"}
    said = decode(
        respondent.model,
        [one.ids for one in asked],
        stop=respondent.stop_ids,
        pad_id=respondent.pad_id,
        max_new_tokens=max_new_tokens,
        batch_tokens=respondent.batch_tokens,
        stop_texts=(BREAK,) if len(plain) == len(asked) else (),
        text_of=respondent.text,
        usage=respondent.usage,
    )
    return [_reply(respondent, one.ids, cut=i in plain) for i, one in enumerate(said)]


def _reply(respondent: ModelRespondent, ids: list[int], *, cut: bool) -> Reply:
    """Return tokens as a reply. cut: leave out what follows the first line, if that line has words."""
    kept: list[int] = []
    ends: list[int] = []
    text = ""
    for count in range(1, len(ids) + 1):
        longer = respondent.text(ids[:count])
        if cut and text.strip() and BREAK in longer[len(text) :]:
            break
        text = longer
        kept.append(ids[count - 1])
        ends.append(len(text))
    return Reply(kept, ends, text)


def stated(asked: AskedFact, reply: Reply, score: Score) -> Scored | Unscored:
    """Return the tokens of the stated answer in a reply, or why there are none."""
    answer = asked.fact.answer
    found = mentions(reply.text, answer)
    begins = len(reply.text) - len(reply.text.lstrip())
    if not found or (score == "first" and found[0][0] != begins):
        return Unscored(reason=f"the model says '{_short(reply.text)}', not '{answer}'")
    first, last = reply.token_at(found[0][0]), reply.token_at(found[0][1] - 1)
    return Scored(first, last + 1 if score == "whole" else first + 1)


def whole_row(asked: AskedFact, reply: Reply) -> TracedRow:
    """Return the row in which all tokens of a reply are asked for. All mentions of the subject in it get noise, so that
    a token behind them has the probability that it has where it alone is scored.
    """
    last = len(reply.ids) - 1
    return _row(asked, reply, Scored(0, last + 1), noisy_below=last)


def row_of(asked: AskedFact, reply: Reply, scored: Scored) -> TracedRow:
    """Return the prompt, the words of the reply before the scored ones, and these, without the last token."""
    return _row(asked, reply, scored, noisy_below=scored.first)


def _row(asked: AskedFact, reply: Reply, scored: Scored, noisy_below: int) -> TracedRow:
    """Return a row; mentions of the subject get noise in the reply's tokens below a limit."""
    first, stop = scored
    ids = asked.ids + reply.ids[: stop - 1]
    again = {
        at
        for begin, end in mentions(reply.text, asked.fact.subject)
        for at in range(reply.token_at(begin), reply.token_at(end - 1) + 1)
        if at < noisy_below
    }
    noisy = (*asked.noisy, *sorted(len(asked.ids) + at for at in again))
    start = len(asked.ids) + first
    return TracedRow(ids, noisy, range(start - 1, start - 1 + stop - first), reply.ids[first:stop])


def depending(asked: AskedFact, reply: Reply, clean: Tensor, corrupted: Tensor) -> Scored | Unscored:
    """Return the token of a reply that is scored without a stated answer, or why there is none.

    clean (m,), corrupted (S, m): log-probabilities of all tokens of the reply, in nats.
    """
    falls = (clean.double().exp() - corrupted.double().exp().mean(0)).tolist()
    new = _new_words(reply.text, asked.fact.question)
    own = sorted({reply.token_at(begin) for begin, _ in new})
    if not own:
        reason = f"the model says '{_short(reply.text)}': all of its words are common ones or the question's"
        return Unscored(reason)
    largest = max(falls[i] for i in own)
    first = next(i for i in own if falls[i] >= LARGE * largest) if largest > 0 else own[0]
    return Scored(first, first + 1)


def _new_words(text: str, question: str) -> list[tuple[int, int]]:
    """Return where words of a text's first sentence stand (first character, one after the last) that are new: not in
    the question, nor common. A word is letters and digits in a row, or one Chinese character; a part of a longer word
    of the question is not new, either.

    >>> text = "In Uzbekistan they speak Uzbek or 俄語. Yes."
    >>> [text[begin:end] for begin, end in _new_words(text, "Uzbekistan 的語言")]
    ['speak', '俄']
    """
    known = {word.casefold() for word in WORD.findall(question)}

    def is_new(word: str) -> bool:
        return word not in COMMON and not any(word == one or (len(word) >= SHORTEST and word in one) for one in known)

    stop = SENTENCE.search(text, len(text) - len(text.lstrip()) + 1)
    words = WORD.finditer(text, 0, stop.start() if stop else len(text))
    return [found.span() for found in words if is_new(found[0].casefold())]


def _short(text: str, limit: int = 60) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else f"{flat[: limit - 3]}..."
