"""Load GGUF files: dequantised weights, the tokenizer and the chat template.

transformers reads the tensors (its extra `gguf`). The returned model has no quantisation configuration, so that it can
be trained and saved. Before loading, the memory that the weights will take is reported, from the file's header.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from posttrain.errors import MissingError, PosttrainError, Problem
from posttrain.models.gguf_header import COPY, GgufHeader, read_header
from posttrain.models.meter import counted, counting_tensors

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["check_gguf", "gguf_config", "gguf_tokenizer", "load_gguf", "memory_line"]

DROPPED = ("quantization_config", "gguf_file", "_model_name_or_path")
"""Keys of a GGUF file's configuration that make transformers treat a saved model as a quantised one."""

SPLIT_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""Vocabularies that split digits one by one before applying GPT-2's rule. The source is llama.cpp, src/llama-vocab.cpp,
under LLAMA_VOCAB_PRE_TYPE_SMOLLM. transformers 5.23 applies GPT-2's rule only.
"""

AS_GPT2 = ("gpt-2", "gpt2", "default", "mpt", "olmo", "jais", "trillion", "phi-2", "granite-docling")
"""Vocabularies for which GPT-2's rule is right (from the same file of llama.cpp)."""


def check_gguf(path: Path) -> GgufHeader:
    """Check that a file is complete and can be read here, and return its header.

    Raise MissingError without the extra `gguf`. Raise PosttrainError for a broken or truncated file, an unknown
    architecture, or a type of numbers that the package gguf does not know.
    """
    header = read_header(path)
    if find_spec("gguf") is None:
        raise MissingError(Problem(str(path), "a GGUF file needs the package gguf", "pip install 'posttrain[gguf]'"))
    import transformers
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
    names = {int(kind): kind.name for kind in GGMLQuantizationType}
    unknown = sorted({tensor.kind for tensor in header.tensors} - set(sizes))
    if unknown:
        cause = f"has numbers of ggml type {', '.join(names.get(k, str(k)) for k in unknown)}, which is not known here"
        raise PosttrainError(Problem(str(path), cause, "install a newer gguf, or take a file in Q8_0 or F16"))
    needed = 0
    for tensor in header.tensors:
        block, stored = sizes[tensor.kind]
        needed = max(needed, header.data_start + tensor.offset + tensor.elements // block * stored)
    has = path.stat().st_size
    if has < needed:
        raise PosttrainError(Problem(str(path), f"is cut short: it has {has} bytes of {needed}", COPY))
    known = {*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_CONFIG_ARCHS}
    spelled = header.architecture.replace("-", "_")
    if not {header.architecture, spelled, header.architecture.replace("moe", "_moe")} & known:
        cause = f"is of architecture '{header.architecture}', which transformers {transformers.__version__} cannot read"
        mend = "use the model's own folder in safetensors, or a newer transformers"
        raise PosttrainError(Problem(str(header.path), cause, mend))
    return header


def memory_line(header: GgufHeader, bytes_each: int = 4) -> str:
    """Return a sentence about how much memory the dequantised weights take.

    >>> memory_line(header)  # doctest: +SKIP
    'smol.gguf: 134.5 M parameters stored as Q4_1 (0.09 GiB), dequantised to 0.50 GiB of float32'
    """
    from gguf import GGMLQuantizationType

    names = {2: "16-bit numbers", 4: "float32"}
    stored = header.path.stat().st_size / 2**30
    kind = GGMLQuantizationType(header.kind).name
    needed = header.parameters * bytes_each / 2**30
    return (
        f"{header.path.name}: {header.parameters / 1e6:.1f} M parameters stored as {kind} ({stored:.2f} GiB), "
        f"dequantised to {needed:.2f} GiB of {names[bytes_each]}"
    )


@cache
def _say_once(line: str) -> None:
    """Log a line to stderr once per process, because a study loads the same file for every cell."""
    logging.getLogger("posttrain.models.gguf").warning(line)


def gguf_config(path: Path) -> Any:
    """Return the model's configuration, as a folder in safetensors would have it. Errors as in `check_gguf`."""
    import transformers

    check_gguf(path)
    with _reading(path) as folder:
        return _plain(transformers.AutoConfig.from_pretrained(folder, gguf_file=path.name, local_files_only=True))


def _plain(config: Any) -> Any:
    return type(config).from_dict({key: value for key, value in config.to_dict().items() if key not in DROPPED})


def load_gguf(path: Path, dtype: torch.dtype, *, say: Callable[[str], None] = _say_once) -> PreTrainedModel:
    """Return a causal language model with the file's weights in `dtype`, on the CPU.

    `say` is called with a sentence about memory before loading. Peak memory is 1.8 times the weights. Raise
    PosttrainError if the file lacks tensors, and the errors of `check_gguf`.
    """
    import transformers

    header = check_gguf(path)
    say(memory_line(header, dtype.itemsize))
    if any(tensor.name.startswith("rope_") for tensor in header.tensors):
        say(f"{path.name}: its rotary factors are not read; positions far apart differ from llama.cpp's")
    with _reading(path) as folder, _counting_tensors():
        read, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=path.name,
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
            quantization_config=transformers.GgufConfig(dequantize=True),
        )
        lacking = sorted(report["missing_keys"])
        if lacking:
            cause = f"the file lacks {len(lacking)} of the model's tensors (such as {lacking[0]}); they would be random"
            raise PosttrainError(Problem(str(path), cause, "take the complete file"))
        # the tensors are shared, not copied
        model: PreTrainedModel = type(read).from_pretrained(
            None, config=_plain(read.config), state_dict=read.state_dict(), dtype=dtype
        )
    stops = list(header.stops)
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=read.config.bos_token_id,
        eos_token_id=stops[0] if len(stops) == 1 else stops or None,
        pad_token_id=read.config.pad_token_id,
    )
    return model


def gguf_tokenizer(path: Path, *, say: Callable[[str], None] = _say_once) -> PreTrainedTokenizerBase:
    """Return the tokenizer that the file describes, with its chat template. `say` is called with a warning if the
    file's splitting rule is unknown.
    """
    import transformers

    header = check_gguf(path)
    with _reading(path) as folder:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=path.name, local_files_only=True)
    tokenizer.name_or_path = str(path)
    if header.positions is not None:
        tokenizer.model_max_length = header.positions
    rule = str(header.fields.get("tokenizer.ggml.pre", "default"))
    if header.fields.get("tokenizer.ggml.model") == "gpt2" and _splits_as_gpt2(tokenizer):
        from tokenizers import pre_tokenizers

        if rule in SPLIT_DIGITS:
            backend = tokenizer.backend_tokenizer
            digits = pre_tokenizers.Digits(individual_digits=True)
            backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
        elif rule not in AS_GPT2:
            say(f"{path.name}: its rule for splitting words, '{rule}', is not known here; GPT-2's is used instead")
    return tokenizer


def _splits_as_gpt2(tokenizer: Any) -> bool:
    """Return whether words are split by GPT-2's expression only. transformers also uses it for rules that it lacks."""
    rule = json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"] or {}
    return bool(rule.get("type") == "ByteLevel" and rule.get("use_regex"))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[str]:
    """Give the path of a folder that has only this file: files next to it may belong to another model.

    The files in question are configurations and tokenizers. Within this block, errors of transformers become a
    PosttrainError that names the file."""
    try:
        if not any(path.parent.glob("*.json")):
            yield str(path.parent)
            return
        with TemporaryDirectory(prefix="posttrain-gguf-") as folder:
            (Path(folder) / path.name).symlink_to(path.resolve())
            yield folder
    except (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, NotImplementedError) as error:
        words = str(error).strip().splitlines()
        cause = f"cannot be read: {words[0][:300] if words else type(error).__name__}"
        mend = "copy the file again, or take the model in safetensors"
        raise PosttrainError(Problem(str(path), cause, mend)) from error


@contextlib.contextmanager
def _counting_tensors() -> Iterator[None]:
    """Do the same as `counting_tensors`, also for dequantising, where the bar ignores transformers' switch and hook."""
    from transformers import modeling_gguf_pytorch_utils as reading

    bar = reading.tqdm
    reading.tqdm = counted
    try:
        with counting_tensors():
            yield
    finally:
        reading.tqdm = bar
