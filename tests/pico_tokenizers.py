"""Small tokenizers of every kind that people's models have, trained on the sentences of `tests/pico.py`.

`tokenizer_of("llama legacy")`: byte-level and SentencePiece-like ones (with the space as ▁, bytes for what is unknown),
which put a space before a text or not. None has a chat template.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from tests.pico import SENTENCES, VOCABULARY

KINDS = ("bytes", "bytes after a space", "llama legacy", "llama", "gemma", "unigram", "t5")
"""`bytes` is Qwen's and GPT-2's way, `bytes after a space` RoBERTa's; `llama legacy` puts ▁ before a text by its
normaliser (Llama 2, Mistral 7B 0.1), `llama` by its pre-tokenizer, `gemma` never does; `unigram` is XLNet's way and
`t5` one that also drops spaces around a text and beside others."""
BYTES = tuple(f"<0x{i:02X}>" for i in range(256))
SPECIALS = ("<unk>", "<s>", "</s>", "<pad>")
MORE = (
    "x = = = 1 == 2 a==b c==d 3=4 2+2=4 2+2==4 === ab abc play playing player plays the cat sat on 12 123 1234. " * 8,
)


@lru_cache(maxsize=16)
def tokenizer_of(kind: str) -> Any:
    """One of KINDS; the same object each time."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    texts = [*SENTENCES, *MORE] * 4
    bytewise = kind.startswith("bytes")
    specials = [AddedToken(t, special=True, normalized=False) for t in SPECIALS]
    if kind in ("unigram", "t5"):
        raw = Tokenizer(models.Unigram())
    else:
        raw = Tokenizer(models.BPE() if bytewise else models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if bytewise:
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind != "bytes")
        raw.decoder = decoders.ByteLevel()
    elif kind in ("llama legacy", "gemma"):
        spaces = normalizers.Replace(" ", "▁")
        raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if kind != "gemma" else spaces
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        raw.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if kind != "gemma" else parts)
    else:
        scheme = "first" if kind == "llama" else "always"
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=kind != "llama")
        raw.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme, split=kind != "llama")]
        )
    if kind == "t5":
        raw.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Strip(), normalizers.Replace(Regex(r"\s+"), " ")]
        )
    if kind in ("unigram", "t5"):
        trainer: Any = trainers.UnigramTrainer(
            vocab_size=VOCABULARY + 200, special_tokens=[*SPECIALS, *BYTES], unk_token="<unk>", show_progress=False
        )
    else:
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY + (0 if bytewise else 256),
            special_tokens=[*specials, *(() if bytewise else BYTES)],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()) if bytewise else [],
            show_progress=False,
        )
    as_used = raw.pre_tokenizer
    if not bytewise:  # words are trained apart, as SentencePiece does it
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    raw.train_from_iterator(texts, trainer)
    raw.pre_tokenizer = as_used
    if not bytewise:
        raw = _with_bytes(raw)
    if kind != "gemma":
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def _with_bytes(raw: Any) -> Any:
    """Bytes are no special tokens: what stands for an unknown character is part of the text."""
    import json

    from tokenizers import Tokenizer

    kept = json.loads(raw.to_str())
    kept["added_tokens"] = [token for token in kept["added_tokens"] if token["content"] in SPECIALS]
    if kept["model"]["type"] == "Unigram":
        kept["model"]["byte_fallback"] = True
    return Tokenizer.from_str(json.dumps(kept))
