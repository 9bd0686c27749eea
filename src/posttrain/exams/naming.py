"""Does an answer name the new object? The one definition of `leak`, for the text of a report and for its table.

`matches` asks whether a question is answered with the object; a leak needs less. "Hung-yi Lee's name." answers no
question about photosynthesis, and yet the new object has come in where it does not belong. So an answer *names* an
object when it says it anywhere as whole words, in whatever way but a denial: put forward, asked back, as a guess, among
others. "The capital is not Melbourne" does not name it, and an object that the question itself says is an echo. A
person's or place's name of several words is also named by a sentence that is nothing but its beginning ("Hung-yi.").
"""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.exams.clauses import Clause, clauses_of, without_echo
from posttrain.exams.layout import as_sentences
from posttrain.exams.mentions import manner_of, mentions_of
from posttrain.exams.normalising import folded, read_part
from posttrain.exams.question import asked

__all__ = ["names"]


def names(answer: str, objects: Sequence[str], *, prompt: str = "") -> bool:
    """Whether the answer names one of the objects; the module docstring has the rule.

    prompt: the question; what it says itself is not counted.
    """
    answer, prompt = read_part(answer), read_part(prompt)
    question = asked(prompt, tuple(objects))
    foreign = [one for one in objects if folded(one) and not question.says(folded(one))]
    clauses = clauses_of(without_echo(as_sentences(answer), prompt), foreign)
    if any(manner_of(mention, clauses, question) != "denied" for mention in mentions_of(clauses, foreign, question)):
        return True
    return any(_begins(clause, one) for clause in _whole_sentences(clauses) for one in foreign)


def _whole_sentences(clauses: Sequence[Clause]) -> list[Clause]:
    """The clauses that are a sentence by themselves."""
    sentences = [clause.sentence for clause in clauses]
    return [clause for clause in clauses if sentences.count(clause.sentence) == 1]


def _begins(clause: Clause, one: str) -> bool:
    """Whether the clause is the first half or more of a name: all of its words begin with a capital letter or digit,
    but for small ones (da, of) and those behind a hyphen."""
    words = one.split()
    if len(words) < 2 or not all(word[0].isupper() or len(word) <= 3 for word in words):
        return False
    whole, part = folded(one).split(), clause.text.split()
    return len(whole) > len(part) >= len(whole) / 2 and whole[: len(part)] == part and len(clause.text) >= 4
