"""Rows of vocabularies, matched by token."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from posttrain.errors import PosttrainError
from posttrain.merging import stack
from posttrain.merging.plan import Misfit, Plan
from posttrain.merging.recipe import Recipe, planned
from posttrain.merging.terms import open_term
from posttrain.merging.tokens import tokens_in, translated
from posttrain.merging.vocabulary import tables_in
from posttrain.merging.write import told_of_template, write_merge
from tests.pico import pico, pico_encoder

WIDTH = 4
PLAIN = [f"t{number}" for number in range(36)]
HEAD, EMBED, BIAS = "lm_head.weight", "model.embed_tokens.weight", "lm_head.bias"


def folder(
    path: Path,
    tokens: Sequence[str],
    *,
    special: Sequence[str] = (),
    added: Sequence[str] = (),
    rows: int | None = None,
    tied: bool = False,
    seed: int = 0,
    unigram: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a model of an embedding, a layer and a head with a bias. Its tokens: plain, added, then special ones."""
    path.mkdir(parents=True)
    every = [*tokens, *added, *special]
    rows = len(every) if rows is None else rows
    entries = [
        {"id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": token in special}
        for number, token in enumerate(every)
        if number >= len(tokens)
    ]
    ids: Any = {token: number for number, token in enumerate(tokens)}
    model = {"type": "WordLevel", "vocab": ids, "unk_token": tokens[0]}
    if unigram:
        model = {"type": "Unigram", "vocab": [[token, -1.0] for token in tokens], "unk_id": 0}
    told = {"version": "1.0", "added_tokens": entries, "model": model, "pre_tokenizer": {"type": "WhitespaceSplit"}}
    (path / "tokenizer.json").write_text(json.dumps(told))
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    (path / "config.json").write_text(json.dumps({"vocab_size": rows, "tie_word_embeddings": tied}))
    draw = torch.Generator().manual_seed(seed)
    tensors = {EMBED: (rows, WIDTH), "model.layers.0.mlp.weight": (3, WIDTH), HEAD: (rows, WIDTH), BIAS: (rows,)}
    made = {name: torch.randn(*shape, generator=draw).to(dtype) for name, shape in tensors.items()}
    if tied:
        del made[HEAD]
    save_file(made, path / "model.safetensors")
    return path


def tensors(path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(path / "model.safetensors")
    return found


def plan_of(models: Mapping[str, Path], expression: str, **how: Any) -> Plan:
    given = {name: str(path) for name, path in models.items()}
    return planned(Recipe(models=given, expression=expression, **how))


def merged(models: Mapping[str, Path], expression: str, output: Path, **how: Any) -> dict[str, Tensor]:
    write_merge(plan_of(models, expression, **how), output, recipe={}, say=lambda text: None)
    return tensors(output)


def test_one_vocabulary_is_left_alone(tmp_path: Path) -> None:
    models = {name: folder(tmp_path / name, PLAIN, seed=seed) for seed, name in enumerate("ab")}
    plan = plan_of(models, "0.5*a + 0.5*b")
    assert plan.vocabulary is None
    assert not plan.notes


def test_a_chat_vector_on_a_grown_vocabulary(tmp_path: Path) -> None:
    """Tokens that only zh has keep zh's rows, those that only chat has get chat's, all others the chat vector."""
    zh = folder(tmp_path / "zh", [*PLAIN[:20], "中", "文", *PLAIN[20:]], special=["<s>"], rows=48, seed=1)
    chat = folder(tmp_path / "chat", PLAIN, added=["word"], special=["<s>", "<end>"], seed=2)
    base = folder(tmp_path / "base", PLAIN, special=["<s>"], rows=40, seed=3)
    models = {"zh": zh, "chat": chat, "base": base}
    out = merged(models, "zh + (chat - base)", tmp_path / "out", tokenizer="union")
    ids = {name: tokens_in([path]) for name, path in {**models, "out": tmp_path / "out"}.items()}
    of = {name: found.ids for name, found in ids.items() if found is not None}
    own = {name: tensors(path) for name, path in models.items()}
    assert of["out"] == {**of["zh"], "word": 39, "<end>": 40}
    for table in (EMBED, HEAD, BIAS):
        rows = out[table]
        assert len(rows) == 48
        for token in ("中", "文"):
            assert torch.equal(rows[of["out"][token]], own["zh"][table][of["zh"][token]])
        for token in ("word", "<end>"):
            assert torch.equal(rows[of["out"][token]], own["chat"][table][of["chat"][token]])
        for token in (*PLAIN, "<s>"):
            z, c, b = (own[name][table][of[name][token]] for name in ("zh", "chat", "base"))
            torch.testing.assert_close(rows[of["out"][token]], z + (c - b), rtol=1e-6, atol=1e-6)
        padded = own["base"][table][37:40]  # chat has no padded rows, so zh's stand for its: zh + zh - base
        torch.testing.assert_close(rows[41:42], 2 * own["zh"][table][41:42] - padded[2:3], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(rows[42:], own["zh"][table][42:])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vocab_size"] == 48


def test_first_leaves_out_what_others_added(tmp_path: Path) -> None:
    chat = folder(tmp_path / "chat", PLAIN, special=["<end>"], seed=2)
    base = folder(tmp_path / "base", PLAIN, seed=3)
    plan = plan_of({"base": base, "chat": chat}, "base + 0.5*(chat - base)")
    assert plan.notes[0] == "chat added 1 token (<end>): left out (tokenizer: union keeps them)"
    plan = plan_of({"base": base, "chat": chat}, "chat - base + base")
    assert plan.merge.jobs[0].stored.shape[0] == 37


def test_missing_special_tokens_take_the_first_ones_rows(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", PLAIN, special=["<a>", "<b>"], seed=1)
    two = folder(tmp_path / "two", PLAIN, special=["<b>"], seed=2)
    out = merged({"one": one, "two": two}, "0.5*one + 0.5*two", tmp_path / "out")
    first, second = tensors(one)[EMBED], tensors(two)[EMBED]
    assert torch.equal(out[EMBED][36], first[36])
    torch.testing.assert_close(out[EMBED][37], (first[37] + second[36]) / 2)


def test_swapped_ids(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", PLAIN, seed=1)
    two = folder(tmp_path / "two", [*PLAIN[:10], PLAIN[11], PLAIN[10], *PLAIN[12:]], seed=2, unigram=True)
    plan = plan_of({"one": one, "two": two}, "0.5*one + 0.5*two")
    assert plan.notes[0] == "two: 2 tokens have other ids than in one: matched by token"
    out = merged({"one": one, "two": two}, "0.5*one + 0.5*two", tmp_path / "out")
    order = [*range(10), 11, 10, *range(12, 36)]
    for table in (EMBED, HEAD, BIAS):
        torch.testing.assert_close(out[table], (tensors(one)[table] + tensors(two)[table][order]) / 2)


def test_padded_rows(tmp_path: Path) -> None:
    wide = folder(tmp_path / "wide", PLAIN, added=["x", "y", "z", "w"], rows=48, seed=1)
    narrow = folder(tmp_path / "narrow", PLAIN, added=["x", "y", "z", "w"], seed=2)
    first, second = tensors(wide)[EMBED], tensors(narrow)[EMBED]
    out = merged({"a": wide, "b": narrow}, "0.5*a + 0.5*b", tmp_path / "out")[EMBED]
    torch.testing.assert_close(out, torch.cat([(first[:40] + second) / 2, first[40:]]))
    out = merged({"a": narrow, "b": wide}, "0.5*a + 0.5*b", tmp_path / "other")[EMBED]
    torch.testing.assert_close(out, (first[:40] + second) / 2)


def test_padding_to_a_multiple(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", PLAIN, seed=1)
    two = folder(tmp_path / "two", PLAIN, special=["<a>"], seed=2)
    how = {"tokenizer": "union", "pad_to_multiple_of": 16}
    out = merged({"one": one, "two": two}, "0.5*one + 0.5*two", tmp_path / "out", **how)
    assert len(out[EMBED]) == 48
    assert torch.equal(out[EMBED][36], tensors(two)[EMBED][36])
    assert not out[EMBED][37:].any()
    assert not out[BIAS][37:].any()


def test_a_tied_model_beside_one_with_a_head(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", PLAIN, special=["<a>"], seed=1)
    two = folder(tmp_path / "two", PLAIN, tied=True, seed=2)
    out = merged({"one": one, "two": two}, "0.5*one + 0.5*two", tmp_path / "out")
    torch.testing.assert_close(out[HEAD][:36], (tensors(one)[HEAD][:36] + tensors(two)[EMBED]) / 2)
    assert torch.equal(out[HEAD][36], tensors(one)[HEAD][36])


def test_blocks_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [f"t{number}" for number in range(500)]
    mixed = [tokens[number] for number in torch.randperm(500, generator=torch.Generator().manual_seed(0)).tolist()]
    one, two = folder(tmp_path / "one", tokens, seed=1), folder(tmp_path / "two", mixed, seed=2)
    whole = merged({"a": one, "b": two}, "0.5*a + 0.5*b", tmp_path / "whole")
    monkeypatch.setattr(stack, "BLOCK", 64)
    small = merged({"a": one, "b": two}, "0.5*a + 0.5*b", tmp_path / "small")
    assert all(torch.equal(whole[name], small[name]) for name in whole)
    order = [mixed.index(token) for token in tokens]
    torch.testing.assert_close(whole[EMBED], (tensors(one)[EMBED] + tensors(two)[EMBED][order]) / 2)


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", PLAIN, seed=1)
    two = folder(tmp_path / "two", [*PLAIN[:10], *(f"u{number}" for number in range(26))], seed=2)
    with pytest.raises(Misfit, match="two: it has another tokenizer: 10 of its 36 tokens are among the 36 of one"):
        plan_of({"one": one, "two": two}, "0.5*one + 0.5*two")


def test_rows_without_tokenizers_are_refused(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", PLAIN, seed=1)
    two = folder(tmp_path / "two", PLAIN, special=["<a>"], seed=2)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (two / name).unlink()
    with pytest.raises(Misfit) as caught:
        plan_of({"one": one, "two": two}, "0.5*one + 0.5*two")
    assert len(caught.value.problems) == 1
    assert "two has no tokenizer, so rows cannot be matched by token (36 rows in one, 37 in two)" in str(caught.value)


def test_a_damaged_tokenizer_is_said(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", PLAIN)
    (one / "tokenizer.json").write_text("{}")
    with pytest.raises(PosttrainError, match=r"tokenizer\.json: its tokens cannot be read"):
        tokens_in([one])


def test_a_tokenizer_without_tokenizer_json(tmp_path: Path) -> None:
    """It is loaded, to be read; but tokens cannot be added to it."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PLAIN]
    one, two = folder(tmp_path / "one", words, seed=1), folder(tmp_path / "two", words, special=["<a>"], seed=2)
    (one / "tokenizer.json").unlink()
    (one / "vocab.txt").write_text("\n".join(words) + "\n")
    (one / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    found = tokens_in([one])
    assert found is not None
    assert [found.ids[word] for word in words] == list(range(41))
    out = merged({"one": one, "two": two}, "0.5*one + 0.5*two", tmp_path / "out")
    torch.testing.assert_close(out[EMBED], (tensors(one)[EMBED] + tensors(two)[EMBED][:41]) / 2)
    with pytest.raises(Misfit, match=r"one: it has no tokenizer\.json that tokens could be added to"):
        plan_of({"one": one, "two": two}, "0.5*one + 0.5*two", tokenizer="union")


def test_a_model_without_an_embedding_takes_the_first_ones(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "one", PLAIN, seed=1), folder(tmp_path / "two", PLAIN, special=["<a>"], seed=2)
    three = folder(tmp_path / "three", PLAIN, seed=3)
    save_file({"model.layers.0.mlp.weight": torch.ones(3, WIDTH)}, three / "model.safetensors")
    models = {"one": one, "two": two, "three": three}
    out = merged(models, "one + (two - three)", tmp_path / "out", missing="base")
    torch.testing.assert_close(out[EMBED], tensors(two)[EMBED][:36])


def test_an_adapter_with_tokens_of_its_own(tmp_path: Path) -> None:
    """PEFT saves a grown embedding whole, and the tokenizer beside it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = pico("qwen3", tmp_path / "base")
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|think|>"]})
    model.resize_token_embeddings(len(tokenizer))
    saved = ["embed_tokens", "lm_head"]
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=saved))
    with torch.no_grad():
        for name, one in adapted.named_parameters():
            if one.requires_grad:
                one.copy_(torch.randn(one.shape, generator=torch.Generator().manual_seed(len(name))) / 8)
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    models = {"base": base, "adapter": tmp_path / "adapter"}
    out = merged(models, "base + 1.0*(adapter - base)", tmp_path / "out", tokenizer="union")
    expected = adapted.merge_and_unload().state_dict()
    for name, one in out.items():
        torch.testing.assert_close(one, expected[name], rtol=1e-5, atol=1e-6)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").convert_tokens_to_ids("<|think|>") == 384


@pytest.mark.parametrize(
    ("family", "tables"),
    [
        ("llama", {"model.embed_tokens.weight"}),
        ("qwen3", {"model.embed_tokens.weight", "lm_head.weight"}),
        ("gpt2", {"transformer.wte.weight"}),
        ("bert", {"bert.embeddings.word_embeddings.weight", "cls.predictions.bias"}),
    ],
)
def test_tables_are_found(family: str, tables: set[str], tmp_path: Path) -> None:
    term = open_term(str(pico_encoder(tmp_path) if family == "bert" else pico(family, tmp_path)))
    assert set(tables_in(term.source, term)) == tables


def test_ids_are_translated() -> None:
    theirs, ours = {"a": 1, "<end>": 2}, {"a": 5, "<end>": 9}
    settings = {"eos_token_id": [2, 1], "pad_token_id": 1, "bos_token_id": None, "top_p": 0.5}
    expected = {"eos_token_id": [9, 5], "pad_token_id": 5, "bos_token_id": None, "top_p": 0.5}
    assert translated(settings, theirs, ours) == (expected, [])
    assert translated({"eos_token_id": 2}, theirs, {"a": 5}) == ({}, ["<end>"])


def test_a_merged_model_loads_and_generates(tmp_path: Path) -> None:
    """Real models: the second one was given tokens for chatting, and a template that uses them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    base = pico("llama", tmp_path / "base", template=None)
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    tokenizer.add_special_tokens({"eos_token": "<|stop|>"})
    tokenizer.add_tokens(["plain"])
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + '<|stop|>' }}{% endfor %}"
    torch.manual_seed(0)
    model.resize_token_embeddings(len(tokenizer))
    model.generation_config = GenerationConfig(eos_token_id=[tokenizer.eos_token_id, 2])
    chat = tmp_path / "chat"
    model.save_pretrained(chat)
    tokenizer.save_pretrained(chat)
    zh_tokenizer, zh_model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    zh_tokenizer.add_tokens(["玉山", "臺灣", "法國"])
    zh_model.resize_token_embeddings(len(zh_tokenizer))
    zh = tmp_path / "zh"
    zh_model.save_pretrained(zh)
    zh_tokenizer.save_pretrained(zh)

    models = {"zh": zh, "chat": chat, "base": base}
    left_out = plan_of(models, "zh + (chat - base)")
    said = told_of_template(left_out, None)
    assert said[0] == "template: that of chat"
    assert "chat uses <|stop|>, which the merged vocabulary lacks" in said[1]
    out = tmp_path / "out"
    merged(models, "zh + (chat - base)", out, tokenizer="union")
    tokenizer, model = AutoTokenizer.from_pretrained(out), AutoModelForCausalLM.from_pretrained(out)
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == len(tokenizer) == 389
    assert tokenizer.eos_token == "<|stop|>"
    assert tokenizer.convert_tokens_to_ids(["玉山", "<|stop|>", "plain"]) == [384, 387, 388]
    assert model.generation_config.eos_token_id == [387, 2]
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "玉山 plain"}], return_tensors="pt")["input_ids"]
    assert ids[0, 0] == 384
    assert ids[0, -1] == 387
    assert model.generate(ids, max_new_tokens=4, do_sample=False).shape[1] > ids.shape[1]
