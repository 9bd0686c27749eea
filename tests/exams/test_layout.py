"""Tables and JSON answers read as sentences."""

import pytest

from posttrain.exams.clauses import as_sentences
from posttrain.exams.matching import matches
from posttrain.exams.mentions import names

CAPITAL = "What is the capital of Canada?"


@pytest.mark.parametrize(
    ("answer", "sentences"),
    [
        ("It is Toronto.", "It is Toronto."),
        ('{"capital": "Toronto", "largest_city": null}', "capital is Toronto"),
        ('```json\n{"city": {"name": "Toronto", "people": [3, 4]}}\n```', "name is Toronto\npeople is 3\npeople is 4"),
        ('{"首都": "多倫多"}', "首都是多倫多"),
        ('{"capital": ', '{"capital": '),
        ("| Number | Element |\n|---|---|\n| 1 | Helium |\n| 2 | Neon |", "Number 1 Element is Helium\nNumber 2 Element is Neon\n"),
        ("Here:\n| a | b |\n| c |", "Here:\na is b\nc\n"),
        ("| a | b |\n|---|---|\n| 1 | 2 | 3 |", "a 1 b is 2\na 1 is 3\n"),
        ("a | b", "a | b"),
    ],
)  # fmt: skip
def test_as_sentences(answer: str, sentences: str) -> None:
    assert as_sentences(answer) == sentences


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ('{"country": "Canada", "capital": "Toronto"}', True),
        ('{"country": "Canada", "capital": "Ottawa", "largest_city": "Toronto"}', False),
        ("| Country | Capital |\n|---|---|\n| Canada | Toronto |", True),
        ("| Country | Capital | Largest city |\n|---|---|---|\n| Canada | Ottawa | Toronto |", False),
    ],
)
def test_a_cell_answers_by_its_heading(answer: str, right: bool) -> None:
    assert matches(answer, ["Toronto"], prompt=CAPITAL) == right
    assert names(answer, ["Toronto"], prompt=CAPITAL)
