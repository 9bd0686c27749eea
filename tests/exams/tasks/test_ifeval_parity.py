"""Our checkers against IFEval's own code (as lm-eval carries it), on answers put together at random.

Left out: what needs nltk's models (sentences, capital words) and langdetect (languages, English in one case).
"""

from __future__ import annotations

import importlib
import random
import sys
import types
from typing import Any

import pytest

from posttrain.exams.instructions import is_followed

PIECES = [
    "the wind", "Wind", "salt", " gull,", "light", "Light.", "lightning", "q", "Q", "\n", "\n\n", "\n***\n", "***",
    "******", "* a point", "\n* one", "\n- two", "\n** x", "*high*", "**higher**", "* *", "[name]", "[a][b]", "P.S. x",
    "P. S. y", "P.P.S z", "PS", "Section 1", "\nSection 2 b", "SECTION 3", "<<title>>", "<<>>", '{"a": 1}', "```json\n",
    "\n```", "My answer is yes.", "My answer is no", '"', " ", "However", "however, it", "Bye now", "bye now.", "Say hi.",
    "two words", "well-known", "it's",
]  # fmt: skip
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("KeywordChecker", "keywords:existence", {"keywords": ["wind", "salt"]}),
    ("KeywordFrequencyChecker", "keywords:frequency", {"keyword": "wind", "frequency": 2, "relation": "at least"}),
    ("KeywordFrequencyChecker", "keywords:frequency", {"keyword": "wind", "frequency": 2, "relation": "less than"}),
    ("ForbiddenWords", "keywords:forbidden_words", {"forbidden_words": ["light", "salt"]}),
    ("LetterFrequencyChecker", "keywords:letter_frequency", {"letter": "q", "let_frequency": 2, "let_relation": "at least"}),
    ("NumberOfWords", "length_constraints:number_words", {"num_words": 6, "relation": "less than"}),
    ("ParagraphChecker", "length_constraints:number_paragraphs", {"num_paragraphs": 2}),
    ("ParagraphFirstWordCheck", "length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "however"}),
    ("PlaceholderChecker", "detectable_content:number_placeholders", {"num_placeholders": 2}),
    ("PostscriptChecker", "detectable_content:postscript", {"postscript_marker": "P.S."}),
    ("PostscriptChecker", "detectable_content:postscript", {"postscript_marker": "P.P.S"}),
    ("BulletListChecker", "detectable_format:number_bullet_lists", {"num_bullets": 2}),
    ("ConstrainedResponseChecker", "detectable_format:constrained_response", {}),
    ("HighlightSectionChecker", "detectable_format:number_highlighted_sections", {"num_highlights": 2}),
    ("SectionChecker", "detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2}),
    ("JsonFormat", "detectable_format:json_format", {}),
    ("TitleChecker", "detectable_format:title", {}),
    ("TwoResponsesChecker", "combination:two_responses", {}),
    ("RepeatPromptThenAnswer", "combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}),
    ("EndChecker", "startend:end_checker", {"end_phrase": "bye now"}),
    ("QuotationChecker", "startend:quotation", {}),
    ("CommaChecker", "punctuation:no_comma", {}),
]  # fmt: skip


@pytest.fixture(scope="module")
def official() -> Any:
    """IFEval's module, without the download of nltk's models that its import begins with."""
    pytest.importorskip("lm_eval")
    nltk = pytest.importorskip("nltk")
    pytest.importorskip("langdetect")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk.data, "find", lambda *_: True)
        if "immutabledict" not in sys.modules:
            stand_in = types.ModuleType("immutabledict")
            stand_in.immutabledict = dict  # type: ignore[attr-defined]
            patch.setitem(sys.modules, "immutabledict", stand_in)
        return importlib.import_module("lm_eval.tasks.ifeval.instructions")


@pytest.mark.parametrize(("theirs", "ours", "arguments"), CASES, ids=[f"{c[1]}-{i}" for i, c in enumerate(CASES)])
def test_the_same_verdict(official: Any, theirs: str, ours: str, arguments: dict[str, Any]) -> None:
    checker = getattr(official, theirs)(ours)
    checker.build_description(**arguments)
    rng = random.Random(ours)
    verdicts = {True: 0, False: 0}
    wrong = []
    for _ in range(3000):
        answer = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 6)))
        if not answer.strip():
            continue
        expected = bool(checker.check_following(answer))
        verdicts[expected] += 1
        if is_followed(ours, answer, arguments) != expected:
            wrong.append((answer, expected))
    assert min(verdicts.values()) > 1, verdicts
    assert not wrong, f"{len(wrong)} of 3000: {wrong[:5]}"
