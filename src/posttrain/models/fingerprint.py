"""Fingerprints (short hashes of contents) of weights, of adapters' bases and of chat templates.

The template's fingerprint is computed from the token ids of a few fixed conversations, so it does not change when a
file is only reformatted. It is saved next to the weights in `posttrain.json`. A tokenizer that renders differently from
the one used in training is rejected unless that is allowed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from posttrain.errors import PosttrainError, Problem, TemplateError
from posttrain.models.memory import is_large, set_aside
from posttrain.models.names import resolve
from posttrain.models.notes import NOTES_FILE, head_modules, read_notes

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "base_fingerprint",
    "check_base",
    "check_template",
    "file_fingerprint",
    "remember_base",
    "remembered_base",
    "stored_weights",
    "template_fingerprint",
    "weights_fingerprint",
]

CONVERSATIONS: tuple[tuple[dict[str, str], ...], ...] = (
    ({"role": "user", "content": "Hello, who are you?"},),
    (
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "What is 2 + 3?"},
        {"role": "assistant", "content": "5"},
    ),
    (
        {"role": "user", "content": "臺灣最高的山是哪座？"},
        {"role": "assistant", "content": "玉山。"},
        {"role": "user", "content": "How high is it?\nIn metres, please."},
        {"role": "assistant", "content": "3,952 m"},
    ),
)
"""Fixed conversations for template fingerprints. Do not edit: any change here changes every fingerprint."""


def weights_fingerprint(model: PreTrainedModel) -> str:
    """Return the first 16 hex digits of the sha256 over names, shapes and float32 bytes of all parameters. The
    fingerprint is the same on any device and in any stored precision that holds the weights exactly.
    """
    found = _fingerprint_of(sorted(model.named_parameters(), key=itemgetter(0))).fingerprint
    if is_large(model):
        set_aside(model.parameters())
    return found


class StoredWeights(NamedTuple):
    """The size and fingerprint of stored weights. `parameters` counts numbers. `fingerprint` equals that of
    `weights_fingerprint` for a model that stores every parameter once, under its own name.
    """

    parameters: int
    fingerprint: str


def stored_weights(folder: Path) -> StoredWeights:
    """Return the size and fingerprint of all safetensors files of a folder, without building the model.

    Importing transformers' models takes longer than everything else in `posttrain doctor`. Raise PosttrainError that
    names a file that cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            tensors |= load_file(path)
        except (SafetensorError, OSError) as error:
            mend = "install the package again"
            raise PosttrainError(Problem(str(path), f"cannot be read: {error}", mend)) from error
    return _fingerprint_of(sorted(tensors.items(), key=itemgetter(0)))


def _fingerprint_of(tensors: Iterable[tuple[str, Tensor]]) -> StoredWeights:
    import torch

    digest, parameters = hashlib.sha256(), 0
    for name, tensor in tensors:
        parameters += tensor.numel()
        digest.update(f"{name} float32 {tuple(tensor.shape)}\n".encode())
        whole: Any = tensor.detach().to(device="cpu", dtype=torch.float32).contiguous()
        digest.update(memoryview(whole.reshape(-1).numpy()).cast("B"))
    return StoredWeights(parameters, digest.hexdigest()[:16])


SAMPLES = 64
"""How many numbers are read from each parameter of an adapter's base, so that a model of any size takes little time."""


def base_fingerprint(model: PreTrainedModel) -> str:
    """Return the first 16 hex digits of the sha256 over names, shapes and 64 evenly spaced numbers of each parameter.

    Only parameters of the backbone count, without the head and other parts that started random. An adapter's notes hold
    the fingerprint of the model that it was trained on. Numbers are rounded to bfloat16 first, so that a base has the
    same fingerprint in float32 and in bfloat16.
    """
    import torch

    new = {id(p) for name in head_modules(model) for p in model.get_submodule(name).parameters()}
    parameters = [(name, p) for name, p in model.base_model.named_parameters() if id(p) not in new]
    digest = hashlib.sha256()
    for name, parameter in sorted(parameters, key=lambda pair: pair[0]):
        digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
        flat = parameter.detach().reshape(-1)
        at = torch.linspace(0, max(flat.numel() - 1, 0), min(SAMPLES, flat.numel()), dtype=torch.float64).long()
        digest.update(flat[at.to(flat.device)].bfloat16().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


_bases: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()


def remember_base(model: PreTrainedModel) -> None:
    """Store a model's fingerprint before an adapter is put into it, because some tuners change its weights."""
    if model.device.type != "meta":  # a model without weights only serves to count parameters
        _bases[model] = base_fingerprint(model)


def remembered_base(model: PreTrainedModel) -> str | None:
    """Return the fingerprint that a model had before an adapter was put into it; None if it was not stored.

    For an adapter that was merged into its base, it is the fingerprint of the adapter's file, because merged numbers
    differ a little between devices.
    """
    return _adapter_fingerprint(model.name_or_path) or _bases.get(model)


def _adapter_fingerprint(name: str) -> str | None:
    """Return the first 16 hex digits of the sha256 of an adapter folder's weights; None if `name` is no such folder."""
    folder = Path(resolve(name)) if name else Path()
    if not name or not (folder / "adapter_config.json").is_file():
        return None
    for weights in (folder / "adapter_model.safetensors", folder / "adapter_model.bin"):
        if weights.is_file():
            return file_fingerprint(weights)[:16]
    return None


def file_fingerprint(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_base(folder: Path, base: str, model: PreTrainedModel) -> None:
    """Raise PosttrainError if an adapter folder's notes name another base than this model, which is called `base`. An
    adapter without notes (not made by posttrain) passes. A base in float16, which rounds differently, passes too.
    """
    import torch

    remember_base(model)
    noted, found = read_notes(folder).get("base_fingerprint"), remembered_base(model)
    if model.dtype in (torch.float32, torch.bfloat16) and noted not in (None, found, _adapter_fingerprint(base)):
        other = f"the adapter was trained on another base than '{base}'"
        mend = "put the model it was trained on where adapter_config.json says (base_model_name_or_path)"
        raise PosttrainError(Problem(str(folder), f"{other}: its fingerprint is {found}, the adapter's {noted}", mend))


def template_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the first 16 hex digits of the sha256 over the token ids of fixed conversations. Return "none" for a
    tokenizer without a chat template.
    """
    if not tokenizer.chat_template:
        return "none"
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:  # it prints today's date (Llama 3, SmolLM3); a fixed date keeps the fingerprint
        macro = "{%- macro posttrain_fixed_date(format) -%}01 Jan 2000{%- endmacro -%}"
        template = macro + re.sub(r"strftime_now\s*\(", "posttrain_fixed_date(", template)
    rendered = [
        _ids(tokenizer, list(conversation), template, prompt)
        for conversation in CONVERSATIONS
        for prompt in (False, True)
    ]
    return hashlib.sha256(json.dumps(rendered).encode()).hexdigest()[:16]


def _ids(
    tokenizer: PreTrainedTokenizerBase, conversation: list[dict[str, str]], template: str, prompt: bool
) -> list[int] | str:
    """Return token ids, or "refused" if the template does not take a role (Gemma refuses a system turn)."""
    import jinja2

    try:
        ids: list[int] = tokenizer.apply_chat_template(
            conversation, chat_template=template, add_generation_prompt=prompt, tokenize=True, return_dict=False
        )
    except jinja2.TemplateError:
        return "refused"
    return [int(i) for i in ids]


MISMATCH_MEND = (
    "restore the tokenizer files saved with the weights, or allow it: --allow-template-mismatch, in a YAML file "
    "`allow_template_mismatch: true`"
)


def check_template(
    folder_or_name: str | Path, tokenizer: PreTrainedTokenizerBase, *, allow_mismatch: bool = False
) -> None:
    """Raise TemplateError if the weights were trained with another template than this tokenizer's. Weights without
    `posttrain.json` (not made by posttrain) pass, and so do names that are not folders.
    """
    folder = Path(resolve(str(folder_or_name)))
    saved = read_notes(folder).get("template_fingerprint")
    if saved is None or allow_mismatch:
        return
    found = template_fingerprint(tokenizer)
    if found != saved:
        cause = (
            f"the weights were trained with the chat template {saved}, the tokenizer's is {found}: "
            "answers would be garbage"
        )
        raise TemplateError(Problem(str(folder / NOTES_FILE), cause, MISMATCH_MEND))
