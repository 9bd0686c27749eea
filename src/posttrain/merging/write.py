"""Write a planned merge as a model folder: weights, configuration, tokenizer, template, a card, and its origin.

The folder appears as a whole when all is written. A merge that was stopped leaves its files in a hidden folder beside,
and the same merge goes on with them; after an error, or on a full disk, nothing is left.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from posttrain import __version__
from posttrain.config.json_text import parse_json
from posttrain.errors import ConfigError, Interrupted, Problem
from posttrain.merging.engine import JOURNAL, run
from posttrain.merging.layout import create, write_index
from posttrain.merging.plan import STORED, Plan
from posttrain.merging.terms import Term
from posttrain.merging.tokens import add_tokens, translated
from posttrain.models.disk import alone_in, as_umask_says, writing

__all__ = ["RECIPE", "template_of", "told_of_template", "write_merge"]

RECIPE = "merge.json"
"""What a merged model was made of."""
TOKENIZER = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "spiece.model", "sentencepiece.bpe.model"),
)
BESIDE = ("generation_config.json", "preprocessor_config.json", "processor_config.json")
TEMPLATES = ("chat_template.jinja", "chat_template.json")
MODEL_FILES = ("config.json", RECIPE)
"""A folder with one of these may be replaced by a new model; any other folder that is not empty may not."""


def write_merge(
    plan: Plan,
    output: Path,
    *,
    recipe: Mapping[str, Any],
    template: str | None = None,
    threads: int | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Write the merged model, and return its folder. recipe: what is noted in merge.json; template: the name of the
    model whose chat template is taken (see `template_of`). Raise ConfigError for a folder that holds something else,
    DiskError on a full disk, and the errors of `run`.
    """
    if output.name in ("", "..") or output.is_symlink():
        output = output.resolve()
    spoken = template_of(plan.terms, template)
    if output.is_file() or (
        output.is_dir() and any(output.iterdir()) and not any((output / file).is_file() for file in MODEL_FILES)
    ):
        raise ConfigError(Problem(str(output), "it holds other things than a model", "choose a new or an empty folder"))
    for term in plan.terms.values():
        for folder in (term.path, term.folder, *term.parents):
            if output.resolve() in (folder.resolve(), *folder.resolve().parents):
                cause = "it is, or it contains, one of the models that are merged"
                raise ConfigError(Problem(str(output), cause, "choose another folder"))
    temporary, old = output.with_name(f".tmp-{output.name}"), output.with_name(f".tmp-old-{output.name}")
    with alone_in(output):
        if old.exists() and not output.exists():  # an earlier process was killed between the two renames
            old.rename(output)
        shutil.rmtree(old, ignore_errors=True)
        try:
            _fill(plan, temporary, recipe, spoken, threads, say)
            as_umask_says(temporary)
        except (KeyboardInterrupt, Interrupted):
            raise  # what is there is gone on with
        except BaseException as error:
            with writing(output, temporary):  # a full disk is told as such
                raise
            raise AssertionError from error
        if output.exists():
            output.rename(old)
        temporary.rename(output)
        shutil.rmtree(old, ignore_errors=True)
    return output


def _fill(
    plan: Plan,
    folder: Path,
    recipe: Mapping[str, Any],
    spoken: str,
    threads: int | None,
    say: Callable[[str], None],
) -> None:
    journal = folder / JOURNAL
    lines = journal.read_text(encoding="utf-8").split("\n") if journal.is_file() else [""]
    if lines[0] != json.dumps(plan.merge.digest):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        create(plan.merge.layout, folder)
    else:
        say("going on with a merge that was stopped")
    run(plan.merge, folder, threads=threads)
    write_index(plan.merge.layout, folder, [job.name for job in plan.merge.jobs])
    _config(plan, folder)
    _copy(plan, plan.terms[spoken], folder)
    told = {**recipe, "posttrain": __version__, "models": {name: _origin(term) for name, term in plan.terms.items()}}
    (folder / RECIPE).write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
    (folder / "README.md").write_text(_card(plan), encoding="utf-8", newline="\n")
    journal.unlink()


def _config(plan: Plan, folder: Path) -> None:
    """Write config.json: the first model's, with the type in which the merged one is stored."""
    path = plan.first.folder / "config.json"
    if not path.is_file():
        return
    config: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
    counts: dict[str, int] = {}
    for job in plan.merge.jobs:
        counts[job.stored.dtype] = counts.get(job.stored.dtype, 0) + plan.merge.layout.slots[job.name].size
    named = {stored: name for name, stored in STORED.items()}
    stored = max(counts, key=lambda dtype: counts[dtype])
    if stored in named:
        key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
        config[key] = named[stored]
    config.pop("_name_or_path", None)
    inner = config.get("text_config", config)
    inner |= plan.config
    if plan.vocabulary is not None:
        (inner if "vocab_size" in inner else config)["vocab_size"] = plan.vocabulary.rows
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8", newline="\n")


def template_of(terms: Mapping[str, Term], named: str | None = None) -> str:
    """Return the name of the model whose chat template the merged one gets: the one that is named, or the first one
    that has a template, or the first. Raise ConfigError for a name that is not there, and for a model without one.
    """
    if named is not None:
        if named not in terms:
            raise ConfigError(Problem("template", f"unknown name '{named}'", f"known: {', '.join(terms)}"))
        if not _has_template(terms[named]):
            raise ConfigError(Problem("template", f"{named} has no chat template", "name another model"))
        return named
    return next((name for name, term in terms.items() if _has_template(term)), next(iter(terms)))


def _has_template(term: Term) -> bool:
    for folder in dict.fromkeys((term.path, term.folder)):
        if any((folder / name).is_file() for name in TEMPLATES):
            return True
        path = folder / "tokenizer_config.json"
        if path.is_file() and parse_json(path.read_text(encoding="utf-8")).get("chat_template"):
            return True
    return False


def _file_of(term: Term, name: str) -> Path | None:
    return next((folder / name for folder in (term.path, term.folder) if (folder / name).is_file()), None)


def _copy(plan: Plan, spoken: Term, folder: Path) -> None:
    """Copy tokenizer and settings of the first model; template and end of a turn of the one whose template it is."""
    first = plan.first
    for name in dict.fromkeys((*TOKENIZER, *BESIDE, *TEMPLATES)):
        if (path := _file_of(first, name)) is not None:
            shutil.copyfile(path, folder / name)
    for path in first.folder.glob("*.py"):  # code of the model's own, which its configuration names
        shutil.copyfile(path, folder / path.name)
    if plan.vocabulary is not None and plan.vocabulary.added:
        add_tokens(folder, plan.vocabulary.added)
    if spoken is first or not _has_template(spoken):
        return
    for name in TEMPLATES:
        (folder / name).unlink(missing_ok=True)
    for name in (*TEMPLATES, "generation_config.json"):
        if (path := _file_of(spoken, name)) is not None:
            shutil.copyfile(path, folder / name)
    if (path := _file_of(spoken, "generation_config.json")) is not None:
        kept = _file_of(first, "generation_config.json")
        before: dict[str, Any] = {} if kept is None else parse_json(kept.read_text(encoding="utf-8"))
        settings = {key: value for key, value in before.items() if key.endswith("_token_id")}
        settings |= _generation(plan, spoken, path)[0]
        text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
        (folder / "generation_config.json").write_text(text, encoding="utf-8", newline="\n")
    config = folder / "tokenizer_config.json"
    theirs = _file_of(spoken, "tokenizer_config.json")
    if not config.is_file() or theirs is None:
        return
    own: dict[str, Any] = parse_json(config.read_text(encoding="utf-8"))
    other: dict[str, Any] = parse_json(theirs.read_text(encoding="utf-8"))
    own.pop("chat_template", None)
    own |= {key: other[key] for key in ("chat_template", "eos_token") if key in other and _is_known(plan, key, other)}
    config.write_text(json.dumps(own, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def _generation(plan: Plan, spoken: Term, path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return settings of generation with the ids of the merged vocabulary, and the tokens that it lacks."""
    settings: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
    name = next(name for name, term in plan.terms.items() if term is spoken)
    if plan.vocabulary is None or name not in plan.vocabulary.own:
        return settings, []
    return translated(settings, plan.vocabulary.own[name].ids, plan.vocabulary.ids)


def _is_known(plan: Plan, key: str, settings: Mapping[str, Any]) -> bool:
    """Whether the merged vocabulary has the token that ends a turn. Without, that of the first model stays."""
    token = settings[key]["content"] if isinstance(settings[key], dict) else settings[key]
    return key != "eos_token" or plan.vocabulary is None or token in plan.vocabulary.ids


def told_of_template(plan: Plan, named: str | None) -> list[str]:
    """Return what was decided about the chat template, for people: whose it is, and which of its tokens are lost."""
    name = template_of(plan.terms, named)
    spoken = plan.terms[name]
    if not _has_template(spoken):
        return ["template: no model has one"]
    told = [f"template: that of {name}"]
    path = _file_of(spoken, "generation_config.json")
    lost = _generation(plan, spoken, path)[1] if path is not None and spoken is not plan.first else []
    settings = _file_of(spoken, "tokenizer_config.json")
    other: dict[str, Any] = {} if settings is None else parse_json(settings.read_text(encoding="utf-8"))
    if other.get("eos_token") and spoken is not plan.first and not _is_known(plan, "eos_token", other):
        lost.append(str(other["eos_token"]))
    if lost:
        tokens = ", ".join(dict.fromkeys(lost))
        told.append(f"template: {name} uses {tokens}, which the merged vocabulary lacks (tokenizer: union keeps them)")
    return told


def _origin(term: Term) -> dict[str, Any]:
    """Return where a model came from: its name, without paths, and a hash of headers and samples of its weights."""
    digest = hashlib.sha256()
    for path in sorted(term.path.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for at in range(0, size, max(1 << 16, size // 64)):
                file.seek(at)
                digest.update(file.read(1 << 12))
    return {"name": Path(term.name).name or term.name, "samples_sha256": digest.hexdigest()[:16]}


def _card(plan: Plan) -> str:
    """Return the text of README.md: what the model was made of, without paths of this machine."""
    rows = [f"- `{name}`: {Path(term.name).name or term.name}" for name, term in plan.terms.items()]
    base = "" if plan.merge.base is None else f" `{next(iter(plan.terms))}` is the base."
    notes = [f"- {note}" for note in plan.notes]
    lines = ["A model merged by posttrain.", "", f"`{plan.what}`.{base}", "", *rows, ""]
    lines += ["Decided:", "", *notes, ""] if notes else []
    lines += ["It was not trained. Whether it still does what its parents did, an exam tells: `posttrain exam`.", ""]
    return "\n".join(lines)
