"""Fingerprints of weights and of chat templates.

The template's fingerprint is the hash of the token ids of a few fixed conversations, so it changes when the template,
the vocabulary or the special tokens change, and not when a file is merely reformatted. It is saved beside the weights
in `posttrain.json`; a tokenizer that renders otherwise than the one trained with is refused unless told.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from posttrain.config.json_text import BadJson, parse_json
from posttrain.errors import PosttrainError, Problem, TemplateError
from posttrain.models.memory import is_large, set_aside
from posttrain.models.names import resolve

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "FILES",
    "NOTES_FILE",
    "base_fingerprint",
    "check_base",
    "check_template",
    "read_notes",
    "remember_base",
    "remembered_base",
    "template_fingerprint",
    "weights_fingerprint",
]

NOTES_FILE = "posttrain.json"
"""What posttrain notes beside weights: the template's fingerprint and the versions that wrote them."""

FILES = "files"
"""In it: the sha256 of every file that was saved beside it, by name."""

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
"""Fixed for ever: changing a character here changes every fingerprint."""


def weights_fingerprint(model_or_folder: PreTrainedModel | str | Path) -> str:
    """First 16 hex digits of the sha256 over names, shapes and float32 bytes of all parameters.

    The same weights have the same fingerprint on any device and in any stored precision that holds them exactly.
    """
    import torch

    if isinstance(model_or_folder, str | Path):
        from posttrain.models.load import load_model  # which checks templates with this module

        model = load_model(str(model_or_folder), device="cpu").model
    else:
        model = model_or_folder
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters(), key=lambda pair: pair[0]):
        digest.update(f"{name} float32 {tuple(parameter.shape)}\n".encode())
        tensor = parameter.detach().to(device="cpu", dtype=torch.float32).contiguous()
        digest.update(memoryview(tensor.reshape(-1).numpy()).cast("B"))
    if is_large(model):
        set_aside(model.parameters())
    return digest.hexdigest()[:16]


SAMPLES = 64
"""Numbers looked at in each parameter of an adapter's base: a model of any size takes a moment."""


def base_fingerprint(model: PreTrainedModel) -> str:
    """First 16 hex digits of the sha256 over names, shapes and 64 evenly spread numbers of each of the backbone's
    parameters: what an adapter notes about the model it was trained on.

    Numbers are rounded to bfloat16 first, so that a base has the same one whether it was loaded in float32 or bfloat16.
    The head and other parts that were random are left out.
    """
    import torch

    from posttrain.models.heads import head_modules  # which reads notes with this module

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
    """Note a model's fingerprint before something is added to it: some tuners move its weights."""
    if model.device.type != "meta":  # one without weights is made to count parameters, and is saved nowhere
        _bases[model] = base_fingerprint(model)


def remembered_base(model: PreTrainedModel) -> str | None:
    """The fingerprint that a model had when an adapter was put into it; None when nobody noted it. Of an adapter merged
    into its base it is that of the adapter's file: merged on another device or in bfloat16, numbers differ a little.
    """
    return _adapter_fingerprint(model.name_or_path) or _bases.get(model)


def _adapter_fingerprint(name: str) -> str | None:
    """First 16 hex digits of the sha256 of an adapter folder's weights; None where the name is no such folder."""
    folder = Path(resolve(name)) if name else Path()
    if not name or not (folder / "adapter_config.json").is_file():
        return None
    for weights in (folder / "adapter_model.safetensors", folder / "adapter_model.bin"):
        if weights.is_file():
            with weights.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return None


def check_base(folder: Path, base: str, model: PreTrainedModel) -> None:
    """PosttrainError when an adapter folder notes another base than this model, named `base`.

    Adapters that note none (not made by posttrain) pass, and so does a base loaded in float16, which rounds otherwise.
    """
    import torch

    remember_base(model)
    noted = read_notes(folder).get("base_fingerprint")
    known = (remembered_base(model), _adapter_fingerprint(base))
    if noted is None or model.dtype not in (torch.float32, torch.bfloat16) or noted in known:
        return
    raise PosttrainError(
        Problem(
            str(folder),
            f"the adapter was trained on another base than '{base}': its fingerprint is {remembered_base(model)}, "
            f"the adapter's {noted}",
            "put the model it was trained on where adapter_config.json says (base_model_name_or_path)",
        )
    )


def template_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """First 16 hex digits of the sha256 over the token ids of fixed conversations; "none" without a chat template."""
    if not tokenizer.chat_template:
        return "none"
    template = _dateless(tokenizer.get_chat_template())
    rendered = [
        _ids(tokenizer, list(conversation), template, prompt)
        for conversation in CONVERSATIONS
        for prompt in (False, True)
    ]
    return hashlib.sha256(json.dumps(rendered).encode()).hexdigest()[:16]


def _dateless(template: str) -> str:
    """Templates that print today's date (Llama 3, SmolLM3) would have another fingerprint tomorrow: fix the date."""
    if "strftime_now" not in template:
        return template
    macro = "{%- macro posttrain_fixed_date(format) -%}01 Jan 2000{%- endmacro -%}"
    return macro + re.sub(r"strftime_now\s*\(", "posttrain_fixed_date(", template)


def _ids(
    tokenizer: PreTrainedTokenizerBase, conversation: list[dict[str, str]], template: str, prompt: bool
) -> list[int] | str:
    """Token ids, or "refused" where the template has no place for a role (Gemma refuses a system turn)."""
    import jinja2

    try:
        ids: list[int] = tokenizer.apply_chat_template(
            conversation, chat_template=template, add_generation_prompt=prompt, tokenize=True, return_dict=False
        )
    except jinja2.TemplateError:
        return "refused"
    return [int(i) for i in ids]


def read_notes(folder: Path) -> dict[str, Any]:
    """`posttrain.json` of a folder; empty when there is none."""
    path = folder / NOTES_FILE
    if not path.is_file():
        return {}
    try:
        notes = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        place = f"{path}:{error.line}" if isinstance(error, BadJson) and error.line else str(path)
        raise TemplateError(Problem(place, "not valid JSON", "delete the file or train again")) from error
    return notes if isinstance(notes, dict) else {}


def check_template(
    folder_or_name: str | Path, tokenizer: PreTrainedTokenizerBase, *, allow_mismatch: bool = False
) -> None:
    """TemplateError when the weights were trained with another template than this tokenizer's.

    Weights without `posttrain.json` (not made by posttrain) pass: nothing is known about them.
    """
    folder = Path(resolve(str(folder_or_name)))
    saved = read_notes(folder).get("template_fingerprint")
    if saved is None or allow_mismatch:
        return
    found = template_fingerprint(tokenizer)
    if found != saved:
        raise TemplateError(
            Problem(
                str(folder / NOTES_FILE),
                f"the weights were trained with the chat template {saved}, the tokenizer's is {found}: "
                "answers would be garbage",
                "restore the tokenizer files saved with the weights, or allow it: --allow-template-mismatch, in a YAML "
                "file `allow_template_mismatch: true`",
            )
        )
