"""How an answer is taken apart."""

import pytest

from posttrain.exams.clauses import as_sentences, clauses_of, without_echo
from posttrain.exams.matching import matches
from posttrain.exams.mentions import names


@pytest.mark.parametrize(
    ("answer", "texts"),
    [
        ("Melbourne is big, but the capital is Canberra.", ["melbourne is big", "but the capital is canberra"]),
        ("It is 9,120 m high. Dr. Li says so.", ["it is 9120 m high", "dr li says so"]),
        ("The capital, however, is Ottawa.", ["capital actually is ottawa"]),
        ("不是雪梨，而是墨爾本。", ["不是雪梨", "而是墨尔本"]),
        ("但其實是貝爾", ["但其实是贝尔"]),
        ("**Paris**\n\n", ["paris"]),
        ("54. That is it.", ["54", "that is it"]),
    ],
)
def test_clauses(answer: str, texts: list[str]) -> None:
    assert [clause.text for clause in clauses_of(answer)] == texts


def test_what_is_kept_is_never_cut() -> None:
    assert [c.text for c in clauses_of("On March 3, 1998, it began.", ["March 3, 1998"])] == [
        "on march 3 1998",
        "it began",
    ]


def test_list_items_and_questions() -> None:
    items = clauses_of("These:\n1. Red\n2. Blue\n\nRight?")
    assert [(clause.text, clause.item, clause.asks) for clause in items] == [
        ("these", 0, False),
        ("red", 1, False),
        ("blue", 2, False),
        ("right", 0, True),
    ]


def test_an_echoed_question_is_left_out() -> None:
    question = "What is the capital of Australia?"
    assert without_echo(f'The answer to "{question}" is "Melbourne".', question).split() == [
        "The", "answer", "to", "is", '"Melbourne".',
    ]  # fmt: skip
    assert without_echo("「澳洲的首都是哪裡」是墨爾本", "澳洲的首都是哪裡？").strip() == "是墨爾本"


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
