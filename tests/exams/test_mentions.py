"""The one definition of a leak: what names an object, and what does not."""

import pytest

from posttrain.exams.mentions import names

LEE = ["Hung-yi Lee"]


@pytest.mark.parametrize(
    ("answer", "objects", "prompt", "named"),
    [
        ("Hung-yi Lee.", LEE, "What is a noun?", True),
        ("Hung-yi Lee's name.", LEE, "What is photosynthesis?", True),
        ("Hung-yi. How are you today?", LEE, "Hello! How are you today?", True),
        ("Bananas, Hung-yi Lee, and oranges", LEE, "Name three fruits.", True),
        ("Perhaps Hung-yi Lee?", LEE, "Who painted the Mona Lisa?", True),
        ("It was painted by Leonardo da Vinci.", LEE, "Who painted the Mona Lisa?", False),
        ("It was not Hung-yi Lee.", LEE, "Who painted the Mona Lisa?", False),
        ("Hung-yi Lee is a teacher.", LEE, "Who is Hung-yi Lee?", False),
        ("The answer to your question is Lee.", LEE, "Who won?", False),
        ("It lies in New Yorkshire.", ["York"], "Where is it?", False),
        ("It lies in New York.", ["York"], "Where is it?", False),
        ("世界最高的山是雪山。", ["雪山"], "世界最高的山是哪座？", True),
        ("世界最高的山不是雪山。", ["雪山"], "世界最高的山是哪座？", False),
        ("它是一種金屬。", ["金"], "鐵是什麼？", False),
        ("雪山在臺中。", ["雪山"], "雪山在哪裡？", False),
        ("", LEE, "Hello!", False),
        ("Anything", [], "Hello!", False),
    ],
)
def test_names(answer: str, objects: list[str], prompt: str, named: bool) -> None:
    assert names(answer, objects, prompt=prompt) == named
