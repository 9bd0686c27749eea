"""Find the words with embeddings most similar to each learned vector of a soft prompt.

The measure is the cosine between a vector and the rows of the embedding matrix (Lester et al. 2021, arXiv:2104.08691,
section 7). A vector may be far from all words, which a low cosine shows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

from posttrain.errors import PosttrainError, Problem
from posttrain.models.load import Source, load_model, resolve

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

__all__ = ["Neighbour", "VirtualToken", "nearest", "nearest_tokens", "readable"]


class Neighbour(NamedTuple):
    """A token of the vocabulary, its text, and its cosine to the vector."""

    token: int
    text: str
    cosine: float


class VirtualToken(NamedTuple):
    """A learned vector and its nearest tokens. `number` is its position before a row, from 0. `norm` is its length
    divided by the mean length of an embedding.
    """

    number: int
    norm: float
    neighbours: tuple[Neighbour, ...]


def nearest_tokens(name: str, k: int, **how: Unpack[Source]) -> list[VirtualToken]:
    """Return the k tokens nearest to each virtual token of an adapter folder. Raise PosttrainError for a folder without
    such vectors.
    """
    from safetensors.torch import load_file

    folder = Path(resolve(name))
    path = folder / "adapter_config.json"
    if not path.is_file():
        mend = "give the folder of an adapter made by prompt_tuning or p_tuning"
        raise PosttrainError(Problem(name, "is no adapter, so it has no virtual tokens", mend))
    config = json.loads(path.read_text(encoding="utf-8"))
    kind = str(config.get("posttrain_tuner") or config.get("peft_type"))
    if kind in ("PREFIX_TUNING", "ptuning_v2"):
        cause = f"{kind}: a prefix is keys and values of every layer, not embeddings, so that no word is near it"
        raise PosttrainError(Problem(name, cause, "prompt_tuning and p_tuning can be read"))
    if kind not in ("PROMPT_TUNING", "P_TUNING"):
        raise PosttrainError(Problem(name, f"{kind} has no virtual tokens", "prompt_tuning and p_tuning have some"))
    loaded = load_model(name, device="cpu", allow_template_mismatch=True, **how)
    vectors = load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]
    table: Tensor = loaded.model.get_input_embeddings().weight.detach()[: len(loaded.tokenizer)]
    return nearest(vectors, table, loaded.tokenizer, k)


def nearest(vectors: Tensor, table: Tensor, tokenizer: PreTrainedTokenizerBase, k: int) -> list[VirtualToken]:
    """Return the k tokens nearest to each of the `vectors` (P, H). `table` holds the embeddings (V, H)."""
    import torch

    lengths = table.float().norm(dim=1)  # (V,)
    own = vectors.float().norm(dim=1)  # (P,)
    cosines = vectors.float() @ table.float().T / (own[:, None] * lengths).clamp_min(1e-12)  # (P, V)
    best = torch.topk(cosines, min(k, len(table)), dim=1)
    found = []
    for number in range(len(vectors)):
        pairs = zip(best.indices[number].tolist(), best.values[number].tolist(), strict=True)
        near = tuple(Neighbour(token, readable(tokenizer, token), cosine) for token, cosine in pairs)
        found.append(VirtualToken(number, float(own[number] / lengths.mean()), near))
    return found


def readable(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Return a token as text. A part of a character, such as two of the three bytes of a Chinese character, becomes
    `<E7 8E>`.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    text: Any = tokenizer.decode([token])
    if "\ufffd" not in text:
        return str(text)
    piece = str(tokenizer.convert_ids_to_tokens(token))
    known = {letter: byte for byte, letter in bytes_to_unicode().items()}  # how byte-level vocabularies write bytes
    if all(letter in known for letter in piece):
        return f"<{' '.join(f'{known[letter]:02X}' for letter in piece)}>"
    return piece
