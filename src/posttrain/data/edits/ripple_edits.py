"""RippleEdits: what follows from an edit, by six criteria (Cohen et al. 2023, arXiv:2307.12976).

A record has the new fact as a sentence (`edit.prompt`, "The name of the father of X is Y.") and a list of tests by
criterion. A test has `test_queries` (any of them suffices for `test_condition` OR, all are needed for AND) and
`condition_queries`, which the model before the edit must have answered. A query has a prompt to complete, and answers,
all of which must be said, each by its `value` or one of its `aliases`.

The file gives neither the subject's name nor the target's, only their Wikidata ids. Both are found by comparing
sentences: the target is what follows the last verb of the part that the new sentence shares with that of the former
fact; the subject is what the sentence shares with queries about the same id. Fields `target` and `subject` in `edit`,
which some copies have, go first.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from typing import Any, Literal, NamedTuple

from posttrain.data.edits.fields import Fields, Probe, Skipped
from posttrain.data.fields import BadRow

__all__ = ["CRITERIA", "RippleEdit", "RippleTest", "fits", "read"]

CRITERIA: Mapping[str, tuple[str, ...]] = {
    "Logical_Generalization": ("Logical_Generalization",),
    "Compositionality_I": ("Compositionality_I",),
    "Compositionality_II": ("Compositionality_II",),
    "Subject_Aliasing": ("Subject_Aliasing",),
    "Forgetfulness": ("Forgetfulness", "Preservation"),
    "Relation_Specificity": ("Relation_Specificity", "Relation_Specifity"),
}
"""Criterion -> the names that files have for it. The paper calls the fifth preservation."""
FORMER = ("original_fact", "previous_fact")
_VERB = re.compile(r" (?:is followed by|follows|is|are)(?= )")
_GRAMMAR = frozenset(
    [
        "The",
        "the",
        "name",
        "names",
        "of",
        "is",
        "are",
        "which",
        "in",
        "by",
        "to",
        "a",
        "an",
        "number",
        "has",
        "have",
        "won",
        "plays",
        "with",
        "associated",
        "part",
        "member",
        "place",
        "held",
        "follows",
        "followed",
    ]
)
"""Words of the sentences' templates, which are not the subject's when they stand at an end of it."""


class RippleTest(NamedTuple):
    """A test of a criterion. passes: whether one query suffices (OR) or all are needed (AND)."""

    queries: tuple[Probe, ...]
    passes: Literal["OR", "AND"]
    conditions: tuple[Probe, ...]


class RippleEdit(NamedTuple):
    """One record. tests: criterion -> its tests; unanswered: the number of tests left out, since a query has no
    answer.
    """

    prompt: str
    subject: str | None
    new: str
    tests: Mapping[str, tuple[RippleTest, ...]]
    unanswered: int

    def as_change(self) -> dict[str, Any]:
        """Return the keys of a change file. Of a test that one of several queries passes, the first one is asked."""

        def queries(*criteria: str) -> Iterator[Probe]:
            for test in (test for name in criteria for test in self.tests.get(name, ())):
                yield from test.queries if test.passes == "AND" else test.queries[:1]

        def expected(*criteria: str) -> list[dict[str, Any]]:
            return [{"prompt": probe.prompt, "answer": probe.aliases} for probe in queries(*criteria)]

        return {
            "target": [{"prompt": self.prompt, "answer": self.new, "subject": self.subject}],
            "generality": {
                "rephrase": expected("Subject_Aliasing"),
                "hop": expected("Logical_Generalization", "Compositionality_I", "Compositionality_II"),
            },
            "locality": {"neighbour": [one.prompt for one in queries("Relation_Specificity", "Forgetfulness")]},
        }


def fits(record: Mapping[str, Any]) -> bool:
    """Return whether the fields are those of RippleEdits."""
    return "edit" in record and any(name in record for names in CRITERIA.values() for name in names)


def read(record: Fields) -> RippleEdit:
    """Return a record. Skipped for an edit without a target, BadRow when a field is missing or wrong."""
    edit = record.part("edit")
    tests: dict[str, tuple[RippleTest, ...]] = {}
    left = 0
    for criterion, names in CRITERIA.items():
        found: list[RippleTest] = []
        for one in (test for name in names for test in record.parts(name)):
            try:
                found.append(_test(one))
            except Skipped:
                left += 1
        if found:
            tests[criterion] = tuple(found)
    prompt, new = _cut(edit, tests)
    return RippleEdit(prompt, _subject(record, edit, prompt), new, tests, left)


def _test(one: Fields) -> RippleTest:
    passes = one.value.get("test_condition", "OR")
    if passes not in ("OR", "AND"):
        raise BadRow(f"'{one.name('test_condition')}' must be OR or AND, got {passes!r}")
    queries = tuple(map(_query, one.parts("test_queries")))
    if not queries:
        raise Skipped("no query")
    return RippleTest(queries, passes, tuple(map(_query, one.parts("condition_queries"))))


def _query(query: Fields) -> Probe:
    """Return a query. As in the official code an answer of one character is left out, unless it is a digit."""
    prompt = query.text("prompt" if query.value.get("prompt") else "phrase").rstrip()
    answers = []
    for answer in query.parts("answers"):
        texts = (answer.value.get("value"), *answer.texts("aliases"))
        kept = [str(one).strip() for one in texts if one is not None]
        if aliases := tuple(dict.fromkeys(one for one in kept if len(one) > 1 or one.isdigit())):
            answers.append(aliases)
    if not answers:
        raise Skipped("no answer")
    return Probe(prompt, tuple(answers))


# ---- the fact --------------------------------------------------------------------------------------------------------


def _cut(edit: Fields, tests: Mapping[str, tuple[RippleTest, ...]]) -> tuple[str, str]:
    """Return the new fact as a prompt to complete and its answer. Skipped for an empty answer, BadRow when the sentence
    cannot be cut."""
    sentence = " ".join(edit.text("prompt").split()).removesuffix(".").rstrip()
    given = [str(edit.value["target"])] if "target" in edit else []
    given += [text for test in tests.get("Subject_Aliasing", ()) for one in test.queries for text in one.aliases]
    for target in sorted(set(given), key=len, reverse=True):
        if sentence.endswith(f" {target}"):
            return sentence.removesuffix(target).rstrip(), target
    shared = len(sentence)
    for former in FORMER:
        if isinstance(old := (edit.value.get(former) or {}), Mapping) and isinstance(old.get("prompt"), str):
            shared = _shared(sentence, " ".join(old["prompt"].split()).removesuffix("."))
    verbs = [found.end() for found in _VERB.finditer(f"{sentence} ") if found.end() <= shared]
    if not verbs:
        cause = f"'edit.prompt' cannot be cut into a prompt and its answer: {sentence!r}"
        raise BadRow(cause, "a sentence such as 'The name of the father of X is Y.' is expected, or edit.target")
    target = sentence[verbs[-1] :].strip()
    if not target:
        raise Skipped("an empty target")
    return sentence[: verbs[-1]], target


def _shared(new: str, old: str) -> int:
    """Return the length of the words at the beginning that two sentences share. It is the whole length if they are
    equal, since then they do not say where the target begins."""
    if new == old:
        return len(new)
    words, others = new.split(" "), old.split(" ")
    same = next((i for i, pair in enumerate(zip(words, others, strict=False)) if pair[0] != pair[1]), len(words))
    return len(" ".join(words[:same]))


def _subject(record: Fields, edit: Fields, prompt: str) -> str | None:
    """Return the subject's name as it stands in the prompt: the words that most queries about other relations of the
    same id share with the prompt. None when there is no such query or nothing is shared."""
    if (given := edit.subject("subject", prompt)) is not None:
        return given
    words = prompt.split(" ")
    seen: Counter[str] = Counter()
    for query in _queries(record):
        other = query.value.get("prompt")
        same = query.value.get("subject_id") == edit.value.get("subject_id")
        if not same or query.value.get("relation") == edit.value.get("relation") or not isinstance(other, str):
            continue
        blocks = SequenceMatcher(None, words, other.split(), autojunk=False).get_matching_blocks()
        runs = [_name(words[block.a : block.a + block.size]) for block in blocks]
        if longest := max(runs, key=len, default=""):
            seen[longest] += 1
    return seen.most_common(1)[0][0] if seen else None


def _queries(record: Fields) -> Iterator[Fields]:
    for names in CRITERIA.values():
        for test in (test for name in names for test in record.parts(name)):
            yield from test.parts("test_queries")
            yield from test.parts("condition_queries")


def _name(words: list[str]) -> str:
    while words and words[0] in _GRAMMAR:
        words = words[1:]
    while words and words[-1] in _GRAMMAR:
        words = words[:-1]
    return " ".join(words)
