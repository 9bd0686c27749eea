"""Spans by hand: each case is worked out on paper; where a scheme is broken, as conlleval and seqeval read it."""

import pytest

from posttrain.data.metrics.labelled import has_spans, span_f1, spans_of


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("", []),
        ("O O", []),
        ("B-PER I-PER O B-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),
        ("B-PER B-PER", [("PER", 0, 0), ("PER", 1, 1)]),  # two neighbours
        ("I-PER I-PER", [("PER", 0, 1)]),  # IOB1: no B needed
        ("I-PER I-LOC", [("PER", 0, 0), ("LOC", 1, 1)]),
        ("B-PER I-LOC I-LOC", [("PER", 0, 0), ("LOC", 1, 2)]),  # another name begins a span
        ("O I-ORG O", [("ORG", 1, 1)]),
        ("I-PER B-PER I-PER", [("PER", 0, 0), ("PER", 1, 2)]),
        ("S-PER B-LOC I-LOC E-LOC S-LOC", [("PER", 0, 0), ("LOC", 1, 3), ("LOC", 4, 4)]),  # IOBES
        ("B-PER E-PER E-PER", [("PER", 0, 1), ("PER", 2, 2)]),
        ("B-PER E-PER I-PER", [("PER", 0, 1), ("PER", 2, 2)]),
        ("S-PER I-PER", [("PER", 0, 0), ("PER", 1, 1)]),
        ("I-PER S-PER", [("PER", 0, 0), ("PER", 1, 1)]),
        ("E-PER E-LOC", [("PER", 0, 0), ("LOC", 1, 1)]),
        ("B-a-b I-a-b I-a", [("a-b", 0, 1), ("a", 2, 2)]),  # a name may have a hyphen
    ],
)
def test_spans(tags: str, spans: list[tuple[str, int, int]]) -> None:
    assert spans_of(tags.split()) == spans


def test_f1_by_hand() -> None:
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG", "O"]]
    said = [["B-PER", "I-PER", "O", "B-ORG"], ["O", "B-ORG", "I-ORG"]]
    # there: PER 0-1, LOC 3-3, ORG 1-1; said: PER 0-1, ORG 3-3, ORG 1-2; right: one of three and three
    assert span_f1(said, gold) == pytest.approx(2 * 1 / (3 + 3))
    assert span_f1(gold, gold) == 1
    assert span_f1([["O"] * 4, ["O"] * 3], gold) == 0
    assert span_f1([["O"]], [["O"]]) == 0


def test_f1_wants_pairs() -> None:
    with pytest.raises(ValueError, match="1 predictions for 2"):
        span_f1([["O"]], [["O"], ["O"]])
    with pytest.raises(ValueError, match="2 tags for 1"):
        span_f1([["O", "O"]], [["O"]])


@pytest.mark.parametrize(
    ("tags", "marks"),
    [
        ({"O", "B-x", "I-x"}, True),
        ({"O"}, False),
        ({"NOUN", "VERB"}, False),
        ({"B-", "O"}, False),
        ({"O", "NN"}, False),
    ],
)
def test_which_tags_mark_spans(tags: set[str], marks: bool) -> None:
    assert has_spans(tags) is marks
