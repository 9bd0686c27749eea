"""Texts for oracles: words that meet often, so that generated pairs overlap, repeat themselves and hold odd spaces."""

from hypothesis import strategies as st

PIECES = [
    "今天", "天氣", "天气", "很好", "我們", "我们", "去", "公園", "公园", "散步", "的", "是", "臺灣", "台灣", "最高", "山", "玉山",
    "，", "。", "！", "？", "”", "’", "「", "」", "、", "...", "......", ".........", "……", "?!", "。”", ".", "?", " ", "  ", "\n", "\u3000", "\t",
    "the", "The", "cat", "a", "an", "sat", "on", "mat", "GPT-2", "3.14", "2", "U.S.", "é", "x_y", "㈠", "😀", "🎉",
]  # fmt: skip

texts = st.lists(st.sampled_from(PIECES), max_size=24).map("".join)
"""Chinese and English mixed, empty and one-character ones among them."""
wild = st.one_of(texts, st.text(max_size=20))
