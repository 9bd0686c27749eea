"""Pico models as GGUF files, written by the package gguf: the same weights, vocabulary and template as the folder.

llama.cpp orders the rows of a Llama's query and key weights otherwise than transformers does (halves of the rotary pairs
beside each other), so a writer reorders them and a reader must order them back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.pico import SPECIALS

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
IN_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    """`model.layers.0.self_attn.q_proj.weight` -> `blk.0.attn_q.weight`."""
    if name in NAMES:
        return NAMES[name]
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{IN_LAYER[part]}.weight"


def as_written(name: str, weight: Any, heads: int, key_heads: int) -> Any:
    """The rows of query and key weights in llama.cpp's order; (rows, columns), a numpy array."""
    if "q_proj" not in name and "k_proj" not in name:
        return weight
    n = heads if "q_proj" in name else key_heads
    rows, columns = weight.shape
    return weight.reshape(n, 2, rows // n // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(
    folder: Path,
    path: Path,
    *,
    kind: str = "F32",
    architecture: str = "llama",
    pre: str = "gpt-2",
    leave_out: str = "",
    extra: dict[str, int] | None = None,
) -> Path:
    """The pico Llama of `folder` as a GGUF file whose matrices are stored as `kind`; the file.

    leave_out: a tensor (GGUF's name) that is not written. extra: more numbers in the header.
    """
    import gguf
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("pico")
    writer.add_license("apache-2.0")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    raw = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    words = sorted(raw["vocab"], key=raw["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(words)
    writer.add_token_types([gguf.TokenType.CONTROL if w in SPECIALS else gguf.TokenType.NORMAL for w in words])
    writer.add_token_merges([" ".join(pair) for pair in raw["merges"]])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(config.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    for key, value in (extra or {}).items():
        writer.add_uint32(key, value)
    stored = gguf.GGMLQuantizationType[kind]
    for name, parameter in model.named_parameters():
        if gguf_name(name) == leave_out:
            continue
        weight = parameter.detach().float().numpy()
        weight = as_written(name, weight, config.num_attention_heads, config.num_key_value_heads)
        if weight.ndim == 1 or kind == "F32":
            writer.add_tensor(gguf_name(name), weight)
        else:
            writer.add_tensor(gguf_name(name), gguf.quantize(weight, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
