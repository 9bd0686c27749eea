"""Texts that stand before an edit's prompt, so that the edit holds in any company. The model writes them itself.

ROME and MEMIT average a subject's key over such texts, because the key depends a little on what was read before (Meng
et al. 2022, arXiv:2202.05262, section 3.1; 2023, arXiv:2210.07229, section 4). Each begins with a common word, in the
language of the edit, and is sampled with the seed; so the same model and seed give the same texts.
"""

from __future__ import annotations

from typing import Literal

from posttrain.data.control import gate_of
from posttrain.inference.protocol import Plain
from posttrain.inference.respondents import ModelRespondent

__all__ = ["STARTS", "Language", "write_contexts"]

Language = Literal["en", "zh"]

STARTS: dict[Language, tuple[str, ...]] = {
    "en": ("The", "Therefore", "Because", "I", "You"),
    "zh": ("這", "因此", "因為", "我", "你"),
}
"""MEMIT's first words, and the same in Chinese."""
ENDS: dict[Language, str] = {"en": ".", "zh": "。"}
TOKENS = 10
"""Longest continuation of the first word, in tokens."""


def write_contexts(respondent: ModelRespondent, language: Language, count: int, seed: int) -> list[str]:
    """Return `count` beginnings of texts, each of one line and with a full stop at its end."""
    starts = STARTS[language]
    texts: list[str] = []
    for turn in range((count + len(starts) - 1) // len(starts)):
        asked = [Plain(start) for start in starts[: count - turn * len(starts)]]
        said = respondent.answers(asked, max_new_tokens=TOKENS, temperature=1.0, seed=seed + turn)
        for prompt, answer in zip(asked, said, strict=True):
            text = " ".join(f"{prompt.text}{answer.text}".replace("\ufffd", "").split())
            text = gate_of(respondent.tokenizer).without(text, respondent.tokenizer)
            texts.append(text.rstrip(".。,，;；:： ") + ENDS[language])
    return texts
