import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.reports import numbers
from posttrain.reports.numbers import BAD
from posttrain.reports.texts import text

INK = (0x17, 0x1B, 0x1F)
"""The text on a coloured cell, as report.css has it."""


def luminance(rgb: tuple[int, ...]) -> float:
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@given(st.floats(0, 1))
def test_text_on_every_cell_colour_has_contrast(good: float) -> None:
    colour = numbers.cell_colour(good)
    rgb = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
    high, low = luminance(rgb) + 0.05, luminance(INK) + 0.05
    assert high / low >= 4.5  # WCAG 2.2, 1.4.3
    blended = [round(0.86 * a + 0.14 * b) for a, b in zip(INK, rgb, strict=True)]  # the small print's opacity
    assert high / (luminance(tuple(blended)) + 0.05) >= 4.5


def test_the_scale_ends_in_orange_and_blue() -> None:
    assert numbers.cell_colour(0) == "#" + "".join(f"{c:02x}" for c in BAD)
    bad, good = numbers.cell_colour(0.0), numbers.cell_colour(1.0)
    assert int(bad[1:3], 16) > int(bad[5:], 16)
    assert int(good[1:3], 16) < int(good[5:], 16)


def test_learned_forgotten_and_trade_off_by_hand() -> None:
    scores = {
        "reliability": 1.0,
        "generality.rephrase": 0.8,
        "generality.hop": 0.0,
        "locality.a": 0.5,
        "locality.b": 0.9,
    }
    assert numbers.learned(scores) == pytest.approx((1.0 + 0.4) / 2)
    assert numbers.forgotten(scores) == pytest.approx(0.3)
    assert numbers.trade_off(scores) == pytest.approx(2 * 0.7 * 0.7 / 1.4)
    assert numbers.learned({"reliability": 0.5}) == 0.5
    assert numbers.forgotten({"reliability": 1.0}) is None
    assert numbers.trade_off({"reliability": 0.0, "locality.a": 0.0}) == 0.0


def test_bootstrap_holds_the_mean_and_narrows_with_more_values() -> None:
    few, many = numbers.bootstrap([0.0, 1.0, 1.0, 0.0]), numbers.bootstrap([0.0, 1.0] * 100)
    assert few[0] < 0.5 < few[1]
    assert many[1] - many[0] < (few[1] - few[0]) / 3
    assert numbers.bootstrap([0.0, 1.0]) == numbers.bootstrap([0.0, 1.0])


def test_0_and_100_per_cent_are_said_only_when_exact() -> None:
    shown = [numbers.score_text("leak", v) for v in (0.0, 0.0001, 0.004, 0.12, 0.996, 0.9999, 1.0)]
    assert shown == ["0", "<0.1", "0.4", "12", "99.6", ">99.9", "100"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (5210, "5,210"),
        (123.4, "123"),
        (12.13, "12.1"),
        (0.62, "0.62"),
        (5.0, "5"),
        (3e-5, "<0.0001"),
        (0.0031, "0.0031"),
    ],
)
def test_amounts(value: float, shown: str) -> None:
    assert numbers.amount(value) == shown


@pytest.mark.parametrize(
    ("seconds", "english", "chinese"),
    [
        (0.44, "0.4 s", "0.4 秒"),
        (12, "12 s", "12 秒"),
        (63, "1 min 3 s", "1 分 3 秒"),
        (7500, "2 h 5 min", "2 小時 5 分"),
    ],
)
def test_durations(seconds: float, english: str, chinese: str) -> None:
    for language, shown in (("en", english), ("zh-TW", chinese)):
        assert text(numbers.duration(seconds), language).replace("\u00a0", " ") == shown


def test_columns_are_ordered_and_unknown_scores_are_not_lost() -> None:
    keys = [
        "zebra.x",
        "locality.refusal",
        "drift.unrelated_kl",
        "reliability",
        "generality.new_kind",
        "generality.rephrase",
    ]
    found = numbers.columns(keys)
    assert found == [
        "reliability", "generality.rephrase", "generality.new_kind", "locality.refusal", "drift.unrelated_kl", "zebra.x",
    ]  # fmt: skip
    assert numbers.columns(keys, ("locality",)) == ["locality.refusal"]


def test_drift_on_the_target_is_wanted_and_has_no_colour() -> None:
    assert numbers.goodness("drift.target_kl", 3.0) is None
    assert numbers.goodness("drift.unrelated_kl", 0.0) == 1.0
    assert numbers.goodness("leak", 0.0) == 1.0
    assert numbers.goodness("length.after", 5.0) is None


def distance(a: str, b: str) -> float:
    """Of two hex colours, in steps of a channel."""
    return max(abs(int(a[i : i + 2], 16) - int(b[i : i + 2], 16)) for i in (1, 3, 5))


def test_a_leak_of_44_per_cent_is_not_pale() -> None:
    """Where less is better, a number that says something is wrong has the colour of what is wrong."""
    bad, middle = numbers.cell_colour(0.0), numbers.cell_colour(0.5)
    assert numbers.goodness("leak", 0.44) == pytest.approx(0.075)
    assert distance(numbers.cell_colour(0.075), bad) < 30 < 100 < distance(numbers.cell_colour(0.075), middle)
    at = {leak: numbers.goodness("leak", leak) for leak in (0.0, 0.02, 0.1, 0.3, 0.5, 0.9, 1.0)}
    assert at == {0.0: 1.0, 0.02: pytest.approx(0.9), 0.1: 0.5, 0.3: pytest.approx(0.25), 0.5: 0.0, 0.9: 0.0, 1.0: 0.0}
    drift = {kl: numbers.goodness("drift.unrelated_kl", kl) for kl in (0.0, 0.25, 0.47, 1.0, 3.7)}
    assert drift == {0.0: 1.0, 0.25: 0.5, 0.47: pytest.approx(0.3533, abs=1e-3), 1.0: 0.0, 3.7: 0.0}


@given(st.floats(0, 5), st.floats(0, 5))
def test_less_is_never_painted_worse(a: float, b: float) -> None:
    for key in ("leak", "drift.unrelated_kl"):
        low, high = (numbers.goodness(key, value) for value in sorted((a, b)))
        assert low is not None
        assert high is not None
        assert 1.0 >= low >= high >= 0.0


def test_ranges_of_shares_are_written_once_where_they_print_alike() -> None:
    assert numbers.percent_range([0.5]) == "50\u00a0%"
    assert numbers.percent_range([0.501, 0.5]) == "50\u00a0%"
    assert numbers.percent_range([0.9, 0.05, 0.5]) == "5\u201390\u00a0%"
    assert numbers.percent_range([0.999, 1.0]) == "99.9\u2013100\u00a0%"


def test_negative_ends_of_intervals_have_a_real_minus() -> None:
    assert numbers.interval_text("drift.target_kl", (-7.61, 16.3)) == "\u22127.61 … 16.3"
    assert numbers.interval_text("length.after", (-1.04, 6.9)) == "\u22121.0 … 6.9"
    assert numbers.interval_text("drift.target_kl", (0.0, 16.3)) == "0–16.3"
    assert (numbers.amount(-0.4), numbers.amount(-0.00001), numbers.amount(-5210.0)) == (
        "\u22120.40",
        ">\u22120.0001",
        "\u22125,210",
    )
