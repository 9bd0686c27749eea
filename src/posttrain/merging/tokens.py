"""The tokens of a model: which id each has, read from tokenizer.json without transformers, and new ones added to it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.config.json_text import parse_json
from posttrain.errors import PosttrainError, Problem

__all__ = ["Added", "Tokens", "add_tokens", "tokens_in", "translated"]

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
"""What tokenizer.json says of an added token, beside its id and its text."""
FILES = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model")
"""One of these is there where a tokenizer is that has no tokenizer.json."""


class Added(NamedTuple):
    """A token that was added to a vocabulary. flags: as in tokenizer.json."""

    content: str
    id: int
    flags: Mapping[str, bool]


class Tokens(NamedTuple):
    """The tokens of a model. ids: of all tokens; added: those that were added to the vocabulary, by text."""

    ids: Mapping[str, int]
    added: Mapping[str, Added]


def tokens_in(folders: Sequence[Path]) -> Tokens | None:
    """Return the tokens of the first folder that has a tokenizer; None if none has one. Raise PosttrainError for a
    tokenizer that cannot be read.
    """
    for folder in folders:
        path = folder / "tokenizer.json"
        if path.is_file():
            try:
                return _read(parse_json(path.read_text(encoding="utf-8")))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                cause = f"its tokens cannot be read: {type(error).__name__}: {error}"
                raise PosttrainError(Problem(str(path), cause, "copy the file again")) from error
        if any((folder / name).is_file() for name in FILES):
            return _loaded(folder)
    for folder in folders:
        if (folder / "tokenizer_config.json").is_file():  # of a tokenizer with code of its own
            return _loaded(folder)
    return None


def _read(told: Any) -> Tokens:
    """Return the tokens of tokenizer.json: a vocabulary of token -> id, or a list of pairs token, score (Unigram)."""
    vocabulary = told["model"]["vocab"]
    if isinstance(vocabulary, list):
        ids = {str(pair[0]): number for number, pair in enumerate(vocabulary)}
    else:
        ids = {str(token): int(number) for token, number in vocabulary.items()}
    added = {
        one["content"]: Added(one["content"], int(one["id"]), {flag: bool(one.get(flag, False)) for flag in FLAGS})
        for one in told.get("added_tokens") or ()
    }
    return Tokens({**ids, **{one.content: one.id for one in added.values()}}, added)


def _loaded(folder: Path) -> Tokens:
    """Return the tokens of a tokenizer that has no tokenizer.json."""
    from transformers import AutoTokenizer

    try:
        found: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError) as error:
        mend = "save it with a tokenizer.json: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        raise PosttrainError(Problem(str(folder), f"its tokenizer cannot be read: {error}", mend)) from error
    added = {
        one.content: Added(one.content, number, {flag: bool(getattr(one, flag)) for flag in FLAGS})
        for number, one in found.added_tokens_decoder.items()
    }
    return Tokens(dict(found.get_vocab()), added)


def add_tokens(folder: Path, added: Sequence[Added]) -> None:
    """Add tokens to the tokenizer of a folder, each with the id that it has. Raise PosttrainError for a tokenizer that
    does not give them these ids then.
    """
    path = folder / "tokenizer.json"
    told: Any = parse_json(path.read_text(encoding="utf-8"))
    entries = [{"id": one.id, "content": one.content, **one.flags} for one in added]
    told["added_tokens"] = [*(told.get("added_tokens") or ()), *entries]
    _write(path, told)
    path = folder / "tokenizer_config.json"
    settings: Any = parse_json(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "added_tokens_decoder" in settings:
        settings["added_tokens_decoder"] |= {str(one.id): {"content": one.content, **one.flags} for one in added}
        _write(path, settings)
    path = folder / "added_tokens.json"
    if path.is_file():
        _write(path, {**parse_json(path.read_text(encoding="utf-8")), **{one.content: one.id for one in added}})
    _check(folder, added)


def _check(folder: Path, added: Sequence[Added]) -> None:
    from tokenizers import Tokenizer

    found = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for one in added:
        if (got := found.token_to_id(one.content)) != one.id:
            cause = f"the added token {one.content} has id {got} there, and its row is {one.id}"
            raise PosttrainError(Problem("tokenizer", cause, "merge with tokenizer: first"))


def _write(path: Path, told: Any) -> None:
    path.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def translated(
    settings: Mapping[str, Any], ids: Mapping[str, int], merged: Mapping[str, int]
) -> tuple[dict[str, Any], list[str]]:
    """Return settings in which ids of tokens (`eos_token_id`, ...) are those of another vocabulary, and the tokens that
    it does not have. Settings that name none of its tokens are left out.

    >>> translated({"eos_token_id": [2, 7], "top_k": 5}, {"</s>": 2, "<end>": 7}, {"</s>": 2})
    ({'eos_token_id': 2, 'top_k': 5}, ['<end>'])
    """
    texts = {number: token for token, number in ids.items()}
    made: dict[str, Any] = {}
    lost: list[str] = []
    for key, value in settings.items():
        if not key.endswith("_token_id") or value is None:
            made[key] = value
            continue
        tokens = [texts.get(number, f"id {number}") for number in (value if isinstance(value, list) else [value])]
        lost += [token for token in tokens if token not in merged and token not in lost]
        found = [merged[token] for token in tokens if token in merged]
        if found:
            made[key] = found if len(found) > 1 else found[0]
    return made, lost
