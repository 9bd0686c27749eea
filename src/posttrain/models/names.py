"""Find the folder or file of a model from its name.

A name can be that of a pocket model, the real model, a folder, a training's folder, a GGUF file or a hub id.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from posttrain.errors import MissingError, Problem
from posttrain.models.gguf_header import SUFFIX, is_gguf

__all__ = ["POCKET", "REAL", "REAL_FOLDER", "REAL_VARIABLE", "near_model", "resolve", "say_taken", "told"]

POCKET = ("base", "chat")
"""The models in the package: `pocket:base` and `pocket:chat`."""

REAL = "smollm2"
"""Name of the real model of `make real-model`: SmolLM2-135M-Instruct, converted."""
REAL_VARIABLE = "POSTTRAIN_REAL"
"""Environment variable with the real model's folder; without it `REAL_FOLDER` in the working directory is used."""
REAL_FOLDER = Path(".real") / REAL

_HERE = Path(__file__).parent / "pocket"
_MODEL = "model"
"""Subfolder of a training's folder that holds the trained model."""
_GIVE = "give a folder, a .gguf file, a hub id or pocket:chat"


def resolve(name: str) -> str:
    """Return the folder or file that a model's name stands for.

    - `pocket:base`, `pocket:chat` and `smollm2`: their folder (a folder called `smollm2` has precedence).
    - A folder with one .gguf file and no config.json: this file.
    - A training's folder: the model in it.
    - A path with `~`: the expanded path.
    - Anything else: the name itself.

    Raise MissingError if a pocket model is unknown or missing, if the real model was not made yet, if a name that must
    be a path does not exist, and for the folder of a training that has saved no model yet.
    """
    if name.startswith("pocket:"):
        return _pocket(name)
    if name == REAL and not Path(name).is_dir():
        return _real()
    if name.startswith("~"):
        name = str(Path(name).expanduser())
    path = Path(name)
    if path.is_dir():
        return _in_folder(name)
    if is_gguf(path):
        return name
    if path.is_file():
        holder = (path.parent / "config.json").is_file()
        mend = f"did you mean '{path.parent}'?" if holder else _GIVE
        raise MissingError(Problem(name, "is a file, a model is a folder", mend))
    gguf = path.suffix.lower() == SUFFIX
    if gguf or name == "" or path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        near = near_model(name)
        mend = f"did you mean '{near}'?" if near else _GIVE
        raise MissingError(Problem(name, "no such GGUF file" if gguf else "no such model folder", mend))
    return name


def near_model(name: str) -> str | None:
    """Return the existing folder (or GGUF file) with the path most similar to a missing one. Paths are compared part by
    part: for `runs/cok/model` the result is `runs/cook/model`. Return None if nothing is similar.
    """
    wanted = Path(name)
    gguf = wanted.suffix.lower() == SUFFIX
    at = Path(wanted.anchor)
    for number, part in enumerate(wanted.parts[1:] if wanted.anchor else wanted.parts):
        last = number == len(wanted.parts) - (2 if wanted.anchor else 1)
        files = gguf and last
        there = [p for p in at.iterdir() if (is_gguf(p) if files else p.is_dir())] if os.access(at, os.R_OK) else []
        names = sorted(p.name for p in there)
        models = sorted(p.name for p in there if _has_config(p) or is_gguf(p) or (p / _MODEL).is_dir()) if last else []
        near = get_close_matches(part, models, n=1) or get_close_matches(part, names, n=1)
        near = [part] if part in names or part == ".." else near
        if not near:
            return None
        at = at / near[0]
    return str(at) if name else None


def _has_config(folder: Path) -> bool:
    return any((folder / file).is_file() for file in ("config.json", "adapter_config.json"))


def told(name: str) -> str:
    """Return a model's name for messages: for a training's folder, the path of the model in it that is used."""
    found = resolve(name)
    if not Path(name).expanduser().is_dir() or Path(found) != Path(name).expanduser() / _MODEL:
        return name
    unfinished = not (Path(name).expanduser() / "result.json").is_file()
    return f"{found} (of an earlier run, the one going on there has saved none yet)" if unfinished else found


def say_taken(name: str, say: Callable[[str], None]) -> None:
    """For a training's folder, call `say` with the model in it that is used. Do nothing for any other name."""
    if (found := told(name)) != name:
        say(f"{name}: its model is {found}")


def _pocket(name: str) -> str:
    kind = name.removeprefix("pocket:")
    if kind not in POCKET:
        near = get_close_matches(kind, POCKET, n=1)
        known = f"known: {', '.join(f'pocket:{p}' for p in POCKET)}"
        mend = f"did you mean 'pocket:{near[0]}'?" if near else known
        raise MissingError(Problem(name, "there is no such model in the box", mend))
    if not (_HERE / kind / "config.json").is_file():
        raise MissingError(Problem(name, f"{_HERE / kind} has no weights", "install the package again"))
    return str(_HERE / kind)


def _real() -> str:
    given = os.environ.get(REAL_VARIABLE, "")
    folder = Path(given).expanduser() if given else REAL_FOLDER
    if not (folder / "config.json").is_file():
        cause = f"the real model is not in {folder}" + (f" ({REAL_VARIABLE})" if given else "")
        mend = f"make it in a clone with: make real-model, or set {REAL_VARIABLE} to its folder"
        raise MissingError(Problem(REAL, cause, mend))
    return str(folder)


def _in_folder(name: str) -> str:
    """Return a model folder itself, the model of a training's folder, or the only GGUF file of another folder."""
    folder = Path(name)
    if _has_config(folder):
        return name
    noted = any((folder / file).is_file() for file in ("result.json", "config.yaml"))
    made = any((folder / file).is_dir() for file in (_MODEL, "checkpoints"))
    if (folder / "posttrain_run.json").is_file() or (noted and made):
        return _of_run(folder)
    files = sorted(p for p in folder.iterdir() if is_gguf(p))
    if len(files) > 1:
        names = ", ".join(p.name for p in files[:4]) + (", ..." if len(files) > 4 else "")
        raise MissingError(Problem(name, f"holds {len(files)} GGUF files: {names}", f"name one: {files[0]}"))
    return str(files[0]) if files else name


def _of_run(folder: Path) -> str:
    if (folder / _MODEL).is_dir():
        return str(folder / _MODEL)
    found = [p for p in (folder / "checkpoints").glob("step-*") if p.name.removeprefix("step-").isdecimal()]
    newest = max(found, key=lambda p: int(p.name.removeprefix("step-")), default=None)
    mend = "run the same command again to finish it"
    if newest is not None:
        mend += f", or name a checkpoint: {newest}"
    raise MissingError(Problem(str(folder), "this training has not finished: there is no model in it yet", mend))
