"""Define the recipe of the built-in models: sizes, tokens, learning rate. torch is not imported, so help is quick."""

from __future__ import annotations

from pydantic import Field

from posttrain.config.base import Config

__all__ = ["Recipe"]


class Recipe(Config):
    """How the models in the box are made; the shipped ones are made with the defaults."""

    seed: int = 0
    """Seed of texts, weights and order."""
    vocabulary: int = Field(3072, ge=300)
    """Tokens of the vocabulary, the six special ones and the 256 bytes included."""
    hidden: int = 192
    """Width."""
    layers: int = 6
    """Blocks."""
    intermediate: int = 576
    """Width of the MLP."""
    heads: int = 6
    """Attention heads."""
    key_value_heads: int = 3
    """Key and value heads."""
    tokenizer_texts: int = Field(40_000, ge=1)
    """Documents, and conversations, that the tokenizer is trained on."""
    base_tokens: int = 4_000_000
    """Tokens of documents that pocket:base reads first."""
    review_tokens: int = 2_000_000
    """Tokens of plain statements that pocket:base reads after that, with a learning rate that rises and falls again."""
    chat_tokens: int = 7_000_000
    """Tokens of conversations that pocket:chat reads after that."""
    last_tokens: int = 1_800_000
    """Tokens of conversations in another mixture, which practises what is still weak, read last."""
    batch_tokens: int = 4096
    """Padded tokens of a step."""
    learning_rate: float = 3e-3
    """Peak learning rate of both stages; it rises over 3 % of the steps and falls to zero in a line."""
