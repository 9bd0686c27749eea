"""Instructions whose keeping can be checked by a program, as in IFEval (Zhou et al., arXiv:2311.07911, appendix).

`CHECKERS[id](answer, arguments)` says whether an answer keeps one instruction; ids and arguments are IFEval's, so that
its input file works as it is; ids with `chinese:` are our own. Verdicts are those of IFEval's code, quirks included
(tests/exams/tasks/test_ifeval_parity.py), but for these: sentences and words in capitals are found by rules instead of
nltk's models, and the language by script and common words instead of langdetect; languages that this cannot tell apart
are refused (`unsupported`). A Chinese first word, forbidden word or quotation mark counts too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from posttrain.exams.behaviour import language_of, script_of

__all__ = ["ARGUMENTS", "CHECKERS", "is_followed", "unsupported", "verdicts"]

Arguments = Mapping[str, Any]
Checker = Callable[[str, Arguments], bool]
CHECKERS: dict[str, Checker] = {}
ARGUMENTS: dict[str, tuple[str, ...]] = {}
"""Instruction id -> the arguments that it must have; `relation` and its like may be left out."""

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
    """Whether a non-empty answer keeps the instruction."""
    return bool(answer.strip()) and CHECKERS[name](answer, arguments)


def verdicts(answer: str, ids: Sequence[str], kwargs: Sequence[Arguments]) -> tuple[list[bool], list[bool]]:
    """Whether each instruction is kept: strictly, and by IFEval's loose rule, which is content with the answer without
    its first line, its last line or both, and with each of these without asterisks.
    """
    lines = answer.split("\n")
    forms = [answer, "\n".join(lines[1:]), "\n".join(lines[:-1]), "\n".join(lines[1:-1])]
    forms = [form.strip() for form in forms]
    forms += [form.replace("*", "") for form in forms]
    asked = list(zip(ids, kwargs, strict=True))
    strict = [is_followed(name, answer, args) for name, args in asked]
    return strict, [any(is_followed(name, form, args) for form in forms) for name, args in asked]


def unsupported(name: str, arguments: Arguments) -> str | None:
    """Why an instruction cannot be checked; None when it can."""
    if name not in CHECKERS:
        return f"the instruction '{name}' is not known"
    missing = [key for key in ARGUMENTS[name] if arguments.get(key) is None]
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


def instruction(name: str, *arguments: str) -> Callable[[Checker], Checker]:
    """Register a checker with the arguments that it must have."""

    def decorate(checker: Checker) -> Checker:
        CHECKERS[name], ARGUMENTS[name] = checker, arguments
        return checker

    return decorate


def _compare(count: int, wanted: Any, relation: Any) -> bool:
    """`less than`, `at least` (the default), and our own `exactly` and `at most`."""
    wanted = int(wanted)
    if relation in ("less than", "exactly", "at most"):
        return {"less than": count < wanted, "exactly": count == wanted, "at most": count <= wanted}[relation]
    return count >= wanted


def _count(word: str, text: str) -> int:
    return len(re.findall(re.escape(word), text, re.IGNORECASE))


# ---- keywords ------------------------------------------------------------------------------------------------


@instruction("keywords:existence", "keywords")
def _existence(answer: str, args: Arguments) -> bool:
    return all(_count(word, answer) for word in args["keywords"])


@instruction("keywords:frequency", "keyword", "frequency")
def _frequency(answer: str, args: Arguments) -> bool:
    return _compare(_count(args["keyword"], answer), args["frequency"], args.get("relation"))


@instruction("keywords:forbidden_words", "forbidden_words")
def _forbidden(answer: str, args: Arguments) -> bool:
    # whole words; a Chinese word has no borders to ask for
    return not any(
        re.search(rf"\b{re.escape(word)}\b" if word.isascii() else re.escape(word), answer, re.IGNORECASE)
        for word in args["forbidden_words"]
    )


@instruction("keywords:letter_frequency", "letter", "let_frequency")
def _letters(answer: str, args: Arguments) -> bool:
    return _compare(answer.lower().count(args["letter"].lower()), args["let_frequency"], args.get("let_relation"))


# ---- length --------------------------------------------------------------------------------------------------


@instruction("length_constraints:number_words", "num_words")
def _words(answer: str, args: Arguments) -> bool:
    return _compare(len(re.findall(r"\w+", answer)), args["num_words"], args.get("relation"))


@instruction("length_constraints:number_sentences", "num_sentences")
def _sentences(answer: str, args: Arguments) -> bool:
    parts = _SENTENCE_END.split(_ABBREVIATION.sub("", answer))
    return _compare(sum(bool(re.search(r"\w", part)) for part in parts), args["num_sentences"], args.get("relation"))


@instruction("length_constraints:number_paragraphs", "num_paragraphs")
def _paragraphs(answer: str, args: Arguments) -> bool:
    """Paragraphs set apart by ***; empty ones count only at the two ends, where they are allowed."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", answer)]
    inner = parts[1 if not parts[0] else 0 : len(parts) - (1 if len(parts) > 1 and not parts[-1] else 0)]
    return all(inner) and len(inner) == int(args["num_paragraphs"])


@instruction("length_constraints:nth_paragraph_first_word", "num_paragraphs", "nth_paragraph", "first_word")
def _first_word(answer: str, args: Arguments) -> bool:
    parts = answer.split("\n\n")
    nth, wanted = int(args["nth_paragraph"]), args["first_word"].strip().lower()
    filled = sum(bool(part.strip()) for part in parts)
    if filled != int(args["num_paragraphs"]) or nth > filled:
        return False
    start = parts[nth - 1].strip().lower()  # empty ones are not counted but hold a place, as in IFEval
    if not wanted.isascii():
        return start.lstrip("\"'「『").startswith(wanted)
    word = (start.split() or [""])[0].lstrip("'").lstrip('"')
    return re.split("[.,?!'\"]", word)[0] == wanted


# ---- content and format --------------------------------------------------------------------------------------


@instruction("detectable_content:number_placeholders", "num_placeholders")
def _placeholders(answer: str, args: Arguments) -> bool:
    return len(re.findall(r"\[.*?\]", answer)) >= int(args["num_placeholders"])


@instruction("detectable_content:postscript", "postscript_marker")
def _postscript(answer: str, args: Arguments) -> bool:
    marker = args["postscript_marker"].strip().lower()
    pattern = {"p.s.": r"p\.\s?s\.", "p.p.s": r"p\.\s?p\.\s?s"}.get(marker, re.escape(marker))
    return bool(re.search(pattern, answer.lower()))


@instruction("detectable_format:number_bullet_lists", "num_bullets")
def _bullets(answer: str, args: Arguments) -> bool:
    return len(re.findall(r"^\s*(?:\*[^*]|-).*$", answer, re.MULTILINE)) == int(args["num_bullets"])


@instruction("detectable_format:constrained_response")
def _constrained(answer: str, args: Arguments) -> bool:
    return any(one in answer for one in args.get("choices") or CONSTRAINED)


@instruction("detectable_format:number_highlighted_sections", "num_highlights")
def _highlights(answer: str, args: Arguments) -> bool:
    single = [found for found in re.findall(r"\*([^\n*]*)\*", answer) if found.strip()]
    double = [found for found in re.findall(r"\*\*([^\n*]*)\*\*", answer) if found.strip()]
    return len(single) + len(double) >= int(args["num_highlights"])


@instruction("detectable_format:multiple_sections", "section_spliter", "num_sections")
def _sections(answer: str, args: Arguments) -> bool:
    found = re.findall(rf"\s?{re.escape(args['section_spliter'])}\s?\d+\s?", answer)
    return len(found) >= int(args["num_sections"])


@instruction("detectable_format:json_format")
def _json(answer: str, args: Arguments) -> bool:
    text = re.sub(r"^```(?:json)?\s*|\s*```$", "", answer.strip(), flags=re.IGNORECASE)
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


@instruction("detectable_format:title")
def _title(answer: str, args: Arguments) -> bool:
    return any(found.lstrip("<").rstrip(">").strip() for found in re.findall(r"<<[^\n]+>>", answer))


# ---- combinations, beginnings and ends -----------------------------------------------------------------------


@instruction("combination:two_responses")
def _two(answer: str, args: Arguments) -> bool:
    parts = [part.strip() for part in answer.split("******")]
    parts = parts[1 if not parts[0] else 0 : len(parts) - (1 if len(parts) > 1 and not parts[-1] else 0)]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


@instruction("combination:repeat_prompt", "prompt_to_repeat")
def _repeat(answer: str, args: Arguments) -> bool:
    return answer.strip().lower().startswith(args["prompt_to_repeat"].strip().lower())


@instruction("startend:end_checker", "end_phrase")
def _end(answer: str, args: Arguments) -> bool:
    return answer.strip().strip('"').lower().endswith(args["end_phrase"].strip().lower())


@instruction("startend:quotation")
def _quotation(answer: str, args: Arguments) -> bool:
    text = answer.strip()
    return len(text) > 1 and any(text.startswith(a) and text.endswith(b) for a, b in ('""', "「」", "『』", "“”"))


# ---- case, punctuation, language -----------------------------------------------------------------------------


@instruction("change_case:english_capital")
def _capital(answer: str, args: Arguments) -> bool:
    return answer.isupper() and language_of(answer) == "en"


@instruction("change_case:english_lowercase")
def _lowercase(answer: str, args: Arguments) -> bool:
    return answer.islower() and language_of(answer) == "en"


@instruction("change_case:capital_word_frequency", "capital_frequency")
def _capitals(answer: str, args: Arguments) -> bool:
    count = sum(word.isupper() for word in _WORD.findall(answer))
    return _compare(count, args["capital_frequency"], args.get("capital_relation"))


@instruction("punctuation:no_comma")
def _no_comma(answer: str, args: Arguments) -> bool:
    return "," not in answer


@instruction("language:response_language", "language")
def _response_language(answer: str, args: Arguments) -> bool:
    return language_of(answer) == _language(args)


def _language(args: Arguments) -> str:
    return str(args["language"]).lower().replace("_", "-").split("-")[0]


# ---- our own, for Chinese ------------------------------------------------------------------------------------


@instruction("chinese:script", "script")
def _script(answer: str, args: Arguments) -> bool:
    """No character that only the other script has; characters of both scripts are fine."""
    return script_of(answer) in (args["script"], "either")


@instruction("chinese:number_characters", "num_characters")
def _characters(answer: str, args: Arguments) -> bool:
    """Chinese characters and other letters and digits, without punctuation and spaces."""
    return _compare(len(re.findall(r"[^\W_]", answer)), args["num_characters"], args.get("relation"))


@instruction("chinese:no_comma")
def _no_chinese_comma(answer: str, args: Arguments) -> bool:
    return not re.search("[,，、]", answer)


@instruction("chinese:full_width_punctuation")
def _full_width(answer: str, args: Arguments) -> bool:
    """No half-width comma, full stop, question mark and the like beside a Chinese character."""
    return not re.search(r"(?<=[\u4e00-\u9fff])[,.!?;:]|[,!?;:](?=[\u4e00-\u9fff])", answer)


@instruction("chinese:start", "start_phrase")
def _start(answer: str, args: Arguments) -> bool:
    return answer.strip().startswith(args["start_phrase"])
