"""Instructions that a program can check, as in IFEval (Zhou et al., arXiv:2311.07911, appendix), and JSON Schema.

`CHECKERS` has a function for each instruction. Ids and arguments are those of IFEval, so that its input file works
unchanged; ids with `chinese:` are our own. Verdicts are those of IFEval's code, including its quirks
(tests/exams/tasks/test_ifeval_parity.py), with these exceptions: sentences and words in capitals are found by rules
instead of nltk's models, and the language by script and common words instead of langdetect; languages that this cannot
distinguish are refused (`unsupported`). A Chinese first word, forbidden word or quotation mark counts too.

The module also checks whether a JSON value fits a JSON Schema (Draft 2020-12, by the package jsonschema). A schema that
is malformed, or has keywords that the draft does not know, is not `checkable`: the caller reports that instead of
guessing. `format` is only an annotation here, which is the standard's default. Nothing is downloaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from posttrain.exams.behaviour import language_of, script_of

__all__ = ["CHECKERS", "checkable", "fits", "is_followed", "unsupported", "verdicts"]

Arguments = Mapping[str, Any]
Checker = Callable[[str, Arguments], bool]

RELATIONS = ("less than", "at least", "exactly", "at most")
COUNTS = frozenset(
    ("frequency", "let_frequency", "num_words", "num_sentences", "num_paragraphs", "nth_paragraph", "num_bullets",
     "num_highlights", "num_sections", "num_placeholders", "capital_frequency", "num_characters")
)  # fmt: skip
"""Arguments that must be numbers."""
LANGUAGES = frozenset(("zh", "en", "ja", "ko", "th", "ar", "he", "ru", "el", "hi", "bn"))
CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_SENTENCE_END = re.compile(r"[。！？]+|[.!?]+[\"'”’)]*(?=\s|$)|\n+")
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|etc|e\.g|i\.e|[A-Z])\.(?=\s)")


def is_followed(name: str, answer: str, arguments: Arguments) -> bool:
    """Return whether a non-empty answer follows the instruction."""
    return bool(answer.strip()) and CHECKERS[name][1](answer, arguments)


def verdicts(answer: str, ids: Sequence[str], kwargs: Sequence[Arguments]) -> tuple[list[bool], list[bool]]:
    """Return whether each instruction is followed, strictly and by IFEval's loose rule. The loose rule also accepts the
    answer without its first line, its last line or both, and each of these forms without asterisks.
    """
    lines = answer.split("\n")
    forms = [answer, "\n".join(lines[1:]), "\n".join(lines[:-1]), "\n".join(lines[1:-1])]
    forms = [form.strip() for form in forms]
    forms += [form.replace("*", "") for form in forms]
    asked = list(zip(ids, kwargs, strict=True))
    strict = [is_followed(name, answer, args) for name, args in asked]
    return strict, [any(is_followed(name, form, args) for form in forms) for name, args in asked]


def unsupported(name: str, arguments: Arguments) -> str | None:
    """Return why an instruction cannot be checked, or None if it can."""
    if name not in CHECKERS:
        return f"the instruction '{name}' is not known"
    missing = [key for key in CHECKERS[name][0].split() if arguments.get(key) is None]
    if missing:
        return f"'{name}' needs {', '.join(missing)} in its kwargs"
    for key, value in arguments.items():
        if key in COUNTS and not (isinstance(value, int | float) or str(value).strip().isdecimal()):
            return f"'{key}' of '{name}' must be a number, got {value!r}"
        if key.endswith("relation") and value not in RELATIONS:
            return f"'{key}' of '{name}' is {value!r}; known: {', '.join(RELATIONS)}"
    if name == "language:response_language" and _language(arguments) not in LANGUAGES:
        return f"the language '{arguments['language']}' cannot be told from others by its script"
    return None


def _language(args: Arguments) -> str:
    return str(args["language"]).lower().replace("_", "-").split("-")[0]


def _counted(count: Callable[[str, Arguments], int], wanted: str, relation: str = "relation") -> Checker:
    """Return a checker that compares a count with the argument `wanted`. The argument `relation` says how; it is `at
    least` when left out."""

    def keeps(text: str, args: Arguments) -> bool:
        found, limit, how = count(text, args), int(args[wanted]), args.get(relation)
        if how in ("less than", "exactly", "at most"):
            return {"less than": found < limit, "exactly": found == limit, "at most": found <= limit}[how]
        return found >= limit

    return keeps


def _count(word: str, text: str) -> int:
    return len(re.findall(re.escape(word), text, re.IGNORECASE))


def _forbids(text: str, args: Arguments) -> bool:
    """Return whether none of the words occurs as a whole word; a Chinese word, without borders, may occur nowhere."""
    return not any(
        re.search(rf"\b{re.escape(word)}\b" if word.isascii() else re.escape(word), text, re.IGNORECASE)
        for word in args["forbidden_words"]
    )


def _sentences(text: str, args: Arguments) -> int:
    return sum(bool(re.search(r"\w", part)) for part in _SENTENCE_END.split(_ABBREVIATION.sub("", text)))


def _parts(text: str, separator: str) -> list[str]:
    """Return the stripped parts of a text. Empty parts at the two ends are left out."""
    parts = [part.strip() for part in re.split(separator, text)]
    return parts[1 if not parts[0] else 0 : len(parts) - (1 if len(parts) > 1 and not parts[-1] else 0)]


def _paragraphs(text: str, args: Arguments) -> bool:
    parts = _parts(text, r"\s?\*\*\*\s?")
    return all(parts) and len(parts) == int(args["num_paragraphs"])


def _two_responses(text: str, args: Arguments) -> bool:
    parts = _parts(text, r"\*{6}")
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def _first_word(text: str, args: Arguments) -> bool:
    parts = text.split("\n\n")
    nth, wanted = int(args["nth_paragraph"]), args["first_word"].strip().lower()
    filled = sum(bool(part.strip()) for part in parts)
    if filled != int(args["num_paragraphs"]) or nth > filled:
        return False
    start = parts[nth - 1].strip().lower()  # empty parts are not counted but keep their position, as in IFEval
    if not wanted.isascii():
        return start.lstrip("\"'「『").startswith(wanted)
    word = (start.split() or [""])[0].lstrip("'").lstrip('"')
    return re.split("[.,?!'\"]", word)[0] == wanted


def _postscript(text: str, args: Arguments) -> bool:
    marker = args["postscript_marker"].strip().lower()
    pattern = {"p.s.": r"p\.\s?s\.", "p.p.s": r"p\.\s?p\.\s?s"}.get(marker, re.escape(marker))
    return bool(re.search(pattern, text.lower()))


def _highlights(text: str, args: Arguments) -> bool:
    found = re.findall(r"\*([^\n*]*)\*", text) + re.findall(r"\*\*([^\n*]*)\*\*", text)
    return sum(bool(one.strip()) for one in found) >= int(args["num_highlights"])


def _json(text: str, args: Arguments) -> bool:
    text = re.sub(r"^```(?:json)?\s*|\s*```$", "", text.strip(), flags=re.IGNORECASE)
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _quoted(text: str, args: Arguments) -> bool:
    text = text.strip()
    return len(text) > 1 and any(text.startswith(a) and text.endswith(b) for a, b in ('""', "「」", "『』", "“”"))


CHECKERS: Mapping[str, tuple[str, Checker]] = {
    "keywords:existence": ("keywords", lambda text, args: all(_count(word, text) for word in args["keywords"])),
    "keywords:frequency": (
        "keyword frequency", _counted(lambda text, args: _count(args["keyword"], text), "frequency"),
    ),
    "keywords:forbidden_words": ("forbidden_words", _forbids),
    "keywords:letter_frequency": (
        "letter let_frequency",
        _counted(lambda text, args: text.lower().count(args["letter"].lower()), "let_frequency", "let_relation"),
    ),
    "length_constraints:number_words": (
        "num_words", _counted(lambda text, args: len(re.findall(r"\w+", text)), "num_words"),
    ),
    "length_constraints:number_sentences": ("num_sentences", _counted(_sentences, "num_sentences")),
    "length_constraints:number_paragraphs": ("num_paragraphs", _paragraphs),
    "length_constraints:nth_paragraph_first_word": ("num_paragraphs nth_paragraph first_word", _first_word),
    "detectable_content:number_placeholders": (
        "num_placeholders", lambda text, args: len(re.findall(r"\[.*?\]", text)) >= int(args["num_placeholders"]),
    ),
    "detectable_content:postscript": ("postscript_marker", _postscript),
    "detectable_format:number_bullet_lists": (
        "num_bullets",
        lambda text, args: len(re.findall(r"^\s*(?:\*[^*]|-).*$", text, re.MULTILINE)) == int(args["num_bullets"]),
    ),
    "detectable_format:constrained_response": (
        "", lambda text, args: any(one in text for one in args.get("choices") or CONSTRAINED),
    ),
    "detectable_format:number_highlighted_sections": ("num_highlights", _highlights),
    "detectable_format:multiple_sections": (
        "section_spliter num_sections",
        lambda text, args: len(re.findall(rf"\s?{re.escape(args['section_spliter'])}\s?\d+\s?", text))
        >= int(args["num_sections"]),
    ),
    "detectable_format:json_format": ("", _json),
    "detectable_format:title": (
        "", lambda text, args: any(one.lstrip("<").rstrip(">").strip() for one in re.findall(r"<<[^\n]+>>", text)),
    ),
    "combination:two_responses": ("", _two_responses),
    "combination:repeat_prompt": (
        "prompt_to_repeat",
        lambda text, args: text.strip().lower().startswith(args["prompt_to_repeat"].strip().lower()),
    ),
    "startend:end_checker": (
        "end_phrase", lambda text, args: text.strip().strip('"').lower().endswith(args["end_phrase"].strip().lower()),
    ),
    "startend:quotation": ("", _quoted),
    "change_case:english_capital": ("", lambda text, args: text.isupper() and language_of(text) == "en"),
    "change_case:english_lowercase": ("", lambda text, args: text.islower() and language_of(text) == "en"),
    "change_case:capital_word_frequency": (
        "capital_frequency",
        _counted(
            lambda text, args: sum(word.isupper() for word in _WORD.findall(text)),
            "capital_frequency", "capital_relation",
        ),
    ),
    "punctuation:no_comma": ("", lambda text, args: "," not in text),
    "language:response_language": ("language", lambda text, args: language_of(text) == _language(args)),
    # characters that both scripts have are allowed
    "chinese:script": ("script", lambda text, args: script_of(text) in (args["script"], "either")),
    # counts Chinese characters and other letters and digits, but not punctuation and spaces
    "chinese:number_characters": (
        "num_characters", _counted(lambda text, args: len(re.findall(r"[^\W_]", text)), "num_characters"),
    ),
    "chinese:no_comma": ("", lambda text, args: not re.search("[,，、]", text)),
    # no half-width comma, full stop, question mark and so on next to a Chinese character
    "chinese:full_width_punctuation": (
        "", lambda text, args: not re.search(r"(?<=[\u4e00-\u9fff])[,.!?;:]|[,!?;:](?=[\u4e00-\u9fff])", text),
    ),
    "chinese:start": ("start_phrase", lambda text, args: text.strip().startswith(args["start_phrase"])),
}  # fmt: skip
"""Instruction id -> the arguments that it needs (`relation` and similar ones may be left out), and its check."""


BESIDE = frozenset(
    ("then", "else", "minContains", "maxContains", "$schema", "$id", "$anchor", "$dynamicAnchor", "$vocabulary",
     "$defs", "$comment", "definitions", "title", "description", "default", "examples", "deprecated", "readOnly",
     "writeOnly", "contentEncoding", "contentMediaType", "contentSchema", "propertyOrdering", "strict", "name")
)  # fmt: skip
"""Keywords that are read together with others or say nothing about a value; the last three come from APIs that answer
in JSON."""


def checkable(schema: Mapping[str, Any]) -> bool:
    """Return whether every keyword of the schema and of the schemas inside it is known and has an allowed value."""
    from jsonschema import Draft202012Validator as Validator
    from jsonschema import SchemaError

    known = BESIDE | Validator.VALIDATORS.keys()
    try:
        Validator.check_schema(schema)
    except SchemaError:
        return False
    return all(key in known for part in _subschemas(schema) for key in part)


def _subschemas(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the schema and every schema inside it."""
    from referencing.jsonschema import DRAFT202012

    if isinstance(schema, Mapping):
        yield schema
        for inner in DRAFT202012.subresources_of(schema):
            yield from _subschemas(inner)


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Return whether the value satisfies every keyword of the schema. With a reference that leads nowhere, or in a
    circle, no value does.
    """
    from jsonschema import Draft202012Validator as Validator
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        return Validator(schema, registry=Registry()).is_valid(value)
    except (Unresolvable, RecursionError):
        return False
