from hypothesis import given
from hypothesis import strategies as st

from posttrain.reports.answers import TOO_LONG, difference

TEXT = st.text(alphabet=st.sampled_from("ab 法國,。\n<é🙂가 "), max_size=40) | st.text(max_size=40)


def before(parts: tuple[str, ...]) -> str:
    """The old text of a difference."""
    return "".join(part for i, part in enumerate(parts) if i % 3 != 2)


def after(parts: tuple[str, ...]) -> str:
    """The new text of a difference."""
    return "".join(part for i, part in enumerate(parts) if i % 3 != 1)


@given(TEXT, TEXT)
def test_without_added_parts_it_is_the_old_text_and_without_removed_parts_the_new(old: str, new: str) -> None:
    parts = difference(old, new)
    assert before(parts) == old
    assert after(parts) == new
    assert len(parts) % 3 == 1
    assert (len(parts) == 1) == (old == new)


def test_chinese_differs_by_character_and_english_by_word() -> None:
    assert difference("法國的首都是巴黎。", "法國的首都是里昂。") == ("法國的首都是", "巴黎", "里昂", "。")
    assert difference("It is Paris now.", "It is Parma now.") == ("It is ", "Paris", "Parma", " now.")


def test_a_blank_between_two_changes_joins_them() -> None:
    assert difference("so it is a b then", "so it is c d then") == ("so it is ", "a b", "c d", " then")


def test_texts_with_little_in_common_are_replaced_whole() -> None:
    assert difference("巴黎是法國的首都。", "I cannot help with that。") == (
        "",
        "巴黎是法國的首都。",
        "I cannot help with that。",
        "",
    )


def test_very_long_texts_keep_their_common_ends() -> None:
    middle = "字" * TOO_LONG
    assert difference(f"前{middle}後", f"前{middle[1:]}乙後") == (f"前{middle[1:]}", "字", "乙", "後")
