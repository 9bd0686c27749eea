"""Check whether a model's folder is complete and correct, for `posttrain model verify`.

Files are checked first, which takes no memory, then the loaded model. A check that is not made because an earlier one
failed counts as open, not as passed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import safetensors
import torch
import transformers
from peft import PeftModel

from posttrain.errors import PosttrainError, Problem
from posttrain.models.fingerprint import file_fingerprint, template_fingerprint
from posttrain.models.gguf_header import is_gguf
from posttrain.models.heads import load_any
from posttrain.models.load import TOKENIZER_FILES, Source, adapter_base, check_folder, hub_folder, stop_ids
from posttrain.models.merge_adapter import COARSE, TOLERANCE, relative_distance, some_logits
from posttrain.models.names import resolve
from posttrain.models.notes import FILES_KEY, NOTES_FILE, read_notes, saved_head
from posttrain.models.tensors import stored_dtype, tensors_in, weight_files

__all__ = ["Check", "verify_model"]

SHOWN = 3
"""How many names of a longer list are shown."""


class Check(NamedTuple):
    """One check and its result. `ok` is None if the check was not made. `detail` states what was found, or why the
    check was not made.
    """

    check: str
    ok: bool | None
    detail: str


def verify_model(name: str, *, against: str | None = None, **how: Unpack[Source]) -> list[Check]:
    """Return all checks of a model, an adapter or a GGUF file. Raise MissingError if no model has this name. `against`
    names another model that must have the same tensors and outputs.
    """
    name = resolve(name) if Path(name).is_dir() else name
    found = Path(resolve(name))
    folder = found if found.exists() else hub_folder(name, offline=how.get("offline", True))
    made: list[Check] = []
    if not is_gguf(folder):
        weights = _tried("weights files", lambda: _weights(folder))
        made += [_tried("files", lambda: _files(folder)), weights, _tried("hashes", lambda: _hashes(folder))]
        numbers = Check("numbers", None, "not asked: weights files failed")
        made.append(numbers if weights.ok is False else _tried("numbers", lambda: _numbers(folder)))
    if not any(check.ok is False and check.check != "hashes" for check in made):
        made += _loaded(name, folder, against, how)
    failed = next((check.check for check in made if check.ok is False and check.check != "hashes"), None)
    rest = ["shapes", "tokenizer", "answers", *(["against"] if against is not None else [])]
    asked = [check.check for check in made]
    return made + [Check(check, None, f"not asked: {failed} failed") for check in rest if check not in asked]


def _tried(check: str, ask: Callable[[], Check | str]) -> Check:
    """Return the result of a check. An error becomes a failed check."""
    try:
        answer = ask()
    except (PosttrainError, OSError) as error:
        return Check(check, False, str(error).replace("\n", "; "))
    return answer if isinstance(answer, Check) else Check(check, True, answer)


def _few(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


# ---- files -----------------------------------------------------------------------------------------------------------


def _files(folder: Path) -> str:
    """Check that configuration, weights and tokenizer are there, and that JSON files can be read."""
    check_folder(str(folder))
    base = adapter_base(folder)
    if base is not None and not any((folder / f"adapter_model.{end}").is_file() for end in ("safetensors", "bin")):
        raise PosttrainError(Problem(str(folder), "adapter_model.safetensors is missing", "copy the adapter again"))
    for path in sorted(folder.glob("*.json")):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            raise PosttrainError(Problem(f"{path}{line}", "is not valid JSON", "copy it again")) from error
    tokenizer = [file for file in TOKENIZER_FILES if (folder / file).is_file()]
    if not tokenizer and base is None:
        raise PosttrainError(Problem(str(folder), "no tokenizer: tokenizer.json is missing", "copy its files, too"))
    count = sum(path.is_file() for path in folder.iterdir())
    return f"{count} file{'' if count == 1 else 's'}" + ("" if tokenizer else "; the tokenizer is the base's")


def _weights(folder: Path) -> Check | str:
    """Check headers and lengths of the safetensors files, and the list of shards."""
    paths = weight_files(folder)
    if not paths:
        return Check("weights files", None, "stored by pickle: their contents are seen when they are loaded")
    found = {path.name: tensors_in(path) for path in paths}
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        where: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        wrong = [name for name, shard in where.items() if name not in found.get(shard, {})]
        if wrong:
            are = "tensor is" if len(wrong) == 1 else "tensors are"
            cause = f"{len(wrong)} {are} not in the file that it names: {_few(wrong)}"
            raise PosttrainError(Problem(str(index), cause, "copy the model again"))
        lost = [name for shard in set(where.values()) for name in found[shard] if name not in where]
        if lost:
            are_lost = "tensor of the files is" if len(lost) == 1 else "tensors of the files are"
            cause = f"{len(lost)} {are_lost} not listed and not loaded: {_few(lost)}"
            raise PosttrainError(Problem(str(index), cause, "copy the model again"))
    kinds = sorted({tensor.dtype for tensors in found.values() for tensor in tensors.values()})
    tensors, files = sum(map(len, found.values())), len(paths)
    return (
        f"{tensors} tensor{'' if tensors == 1 else 's'} in {files} file{'' if files == 1 else 's'}, "
        f"stored as {', '.join(kinds)}"
    )


def _hashes(folder: Path) -> Check | str:
    """Check that the files are the ones that posttrain wrote."""
    noted = read_notes(folder).get(FILES_KEY)
    if not isinstance(noted, dict):
        return Check("hashes", None, f"{NOTES_FILE} notes none (not saved by this version of posttrain)")
    lacking = [name for name in noted if not (folder / name).is_file()]
    changed = [name for name in noted if name not in lacking and file_fingerprint(folder / name) != noted[name]]
    if lacking or changed:
        parts = [(lacking, "missing"), (changed, "changed since it was saved")]
        text = "; ".join(f"{_few(names)}: {what}" for names, what in parts if names)
        raise PosttrainError(Problem(str(folder / NOTES_FILE), text, "copy the model again"))
    return f"{len(noted)} {'file is as it was' if len(noted) == 1 else 'files are as they were'} saved"


def _numbers(folder: Path) -> Check | str:
    """Check that there is no NaN and no infinity, tensor by tensor."""
    wrong: list[str] = []
    count = 0
    for path in weight_files(folder):
        with safetensors.safe_open(str(path), "pt") as file:
            for key in sorted(tensors_in(path)):
                tensor = file.get_tensor(key)
                count += tensor.numel()
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
                    wrong.append(f"{key} ({path.name})")
    if wrong:
        mend = "take another copy, or an earlier checkpoint"
        raise PosttrainError(Problem(str(folder), f"NaN or infinite numbers in {_few(wrong)}", mend))
    return f"{count:,} numbers, all finite" if count else Check("numbers", None, "stored by pickle: not looked at")


# ---- the loaded model ------------------------------------------------------------------------------------------------


def _loaded(name: str, folder: Path, against: str | None, how: Source) -> Iterator[Check]:
    said: list[str] = []
    try:
        # in the stored precision, which takes the least memory; in float32 if two models are compared
        dtype = stored_dtype(name, **how) if against is None else None
        spare = _spare(folder, trust_remote_code=how.get("trust_remote_code", False))
        loaded = load_any(name, device="cpu", dtype=dtype or "float32", say=said.append, **how)
    except PosttrainError as error:
        yield Check("shapes", False, str(error).replace("\n", "; "))
        return
    if spare:
        have = "tensor of the files has" if len(spare) == 1 else "tensors of the files have"
        yield Check("shapes", False, f"{len(spare)} {have} no place in the model: {_few(spare)}")
    else:
        count = sum(p.numel() for p in loaded.model.parameters())
        yield Check("shapes", True, f"{count:,} parameters, as the configuration says")
    yield _tried("tokenizer", lambda: _tokenizer(name, loaded, how))
    yield _tried("answers", lambda: _answers(loaded))
    if against is not None:
        yield _tried("against", lambda: _against(loaded, against, how))


def _spare(folder: Path, *, trust_remote_code: bool) -> list[str]:
    """Return the names of tensors of a language model's files that transformers does not load (it only warns)."""
    if not (folder / "config.json").is_file() or saved_head(str(folder)) is not None:
        return []
    transformers.utils.logging.disable_progress_bar()
    try:
        _, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            device_map="meta",
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, safetensors.SafetensorError):
        return []  # the real loading reports it
    return sorted(report["unexpected_keys"])


def _tokenizer(name: str, loaded: Any, how: Source) -> Check | str:
    """Check that every id of the tokenizer, and every id that ends generation, has a row in the embedding."""
    core = loaded.model.get_base_model() if isinstance(loaded.model, PeftModel) else loaded.model
    rows = int(core.get_input_embeddings().weight.shape[0])
    tokenizer = loaded.tokenizer
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= rows}
    if beyond:
        shown = _few([f"{token!r} ({i})" for token, i in sorted(beyond.items(), key=lambda pair: pair[1])])
        have = "token has an id" if len(beyond) == 1 else "tokens have ids"
        cause = f"{len(beyond)} {have} beyond the {rows} rows of the embedding: {shown}"
        mend = "take the tokenizer that belongs to the weights, or resize the embedding (resize_token_embeddings)"
        raise PosttrainError(Problem(name, cause, mend))
    stops = stop_ids(name, tokenizer, **how)
    special = {"pad": tokenizer.pad_token_id, "bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}
    outside = [f"{what} {i}" for what, i in special.items() if i is not None and not 0 <= i < rows]
    outside += [f"stop {i}" for i in stops if not 0 <= i < rows]
    if outside:
        cause = f"special tokens beyond the {rows} rows of the embedding: {_few(outside)}"
        raise PosttrainError(Problem(name, cause, "correct generation_config.json or tokenizer_config.json"))
    names = ", ".join(str(tokenizer.convert_ids_to_tokens(i)) for i in stops) or "nothing"
    return f"{len(tokenizer):,} tokens for {rows:,} rows; stops at {names}; chat template: " + (
        "yes" if tokenizer.chat_template else "none"
    )


def _answers(loaded: Any) -> Check | str:
    """Check that a forward pass gives finite numbers."""
    found = some_logits(loaded.model)
    if found is None:
        return Check("answers", None, "takes more than token ids: not asked")
    if not bool(torch.isfinite(found).all()):
        raise PosttrainError(Problem(loaded.name, "a forward pass gives NaN or infinite numbers", "take another copy"))
    return "a forward pass gives finite numbers"


def _against(loaded: Any, other: str, how: Source) -> Check | str:
    """Check that another model gives the same outputs, and report how many of its tensors differ."""
    silent: list[str] = []
    theirs = load_any(other, device="cpu", dtype="float32", say=silent.append, **how)

    one = dict(loaded.model.named_parameters(remove_duplicate=False))
    two = dict(theirs.model.named_parameters(remove_duplicate=False))
    both = [key for key in one if key in two and one[key].shape == two[key].shape]
    # a matrix that is both the embedding and the output head has two names and is one tensor of the file
    both = list({(id(one[key]), id(two[key])): key for key in reversed(both)}.values())[::-1]
    moved = [key for key in both if not torch.equal(one[key].detach().float(), two[key].detach().float())]
    alone = sorted(set(one) ^ set(two)) + [k for k in one if k in two and one[k].shape != two[k].shape]
    if isinstance(loaded.model, PeftModel) or isinstance(theirs.model, PeftModel):
        parts = ["an adapter beside its base, so tensors are not compared one by one"]
    else:
        parts = [f"{len(moved)} of {len(both)} common tensors differ"]
        parts += [f"{len(alone)} are only in one ({_few(alone)})"] if alone else []
    found, expected = some_logits(loaded.model), some_logits(theirs.model)
    if found is None or expected is None or found.shape != expected.shape:
        raise PosttrainError(Problem(other, "; ".join([*parts, "outputs cannot be compared"])))
    far = relative_distance(found, expected)
    parts.append(f"outputs differ by {far:.2%} of their spread")
    half = {stored_dtype(loaded.name, **how), stored_dtype(other, **how)} - {"float32"}
    allowed = COARSE if half else TOLERANCE
    if template_fingerprint(loaded.tokenizer) != template_fingerprint(theirs.tokenizer):
        text = "; ".join([*parts, "the chat templates render otherwise"])
        raise PosttrainError(Problem(other, text, "it is another model"))
    if not far <= allowed:
        raise PosttrainError(Problem(other, "; ".join(parts), "it is another model"))
    if far:
        why = ", as not both are stored in float32, and answers may differ" if half else ""
        parts.append(f"up to {allowed:.1%} is taken for rounding{why}")
    return "; ".join(parts)
