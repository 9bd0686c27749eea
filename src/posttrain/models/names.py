"""What a model's name stands for: a model in the box, a local folder, or a hub id."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from posttrain.errors import MissingError, Problem

__all__ = ["POCKET", "is_folder", "resolve"]

POCKET = ("base", "chat")
"""The models in the box: `pocket:base` and `pocket:chat`."""

_HERE = Path(__file__).parent / "pocket"


def resolve(name: str) -> str:
    """The folder of `pocket:base` or `pocket:chat`; a path with `~` expanded; anything else as it is.

    MissingError when a pocket model is unknown or not there, or when a name that must be a path is none.
    """
    if name.startswith("pocket:"):
        kind = name.removeprefix("pocket:")
        if kind not in POCKET:
            raise MissingError(
                Problem(name, "there is no such model in the box", f"known: {', '.join(f'pocket:{p}' for p in POCKET)}")
            )
        if not (_HERE / kind / "config.json").is_file():
            raise MissingError(
                Problem(
                    name,
                    f"{_HERE / kind} has no weights",
                    "install the package again, or build them with: posttrain model pocket build DIR",
                )
            )
        return str(_HERE / kind)
    if name.startswith("~"):
        name = str(Path(name).expanduser())
    path = Path(name)
    if path.is_dir():
        return name
    if path.is_file():
        holder = (path.parent / "config.json").is_file()
        mend = f"did you mean '{path.parent}'?" if holder else "give a folder, a hub id or pocket:chat"
        raise MissingError(Problem(name, "is a file, a model is a folder", mend))
    if name == "" or path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        near = get_close_matches(path.name, siblings, n=1)
        mend = f"did you mean '{path.with_name(near[0])}'?" if near else "give a folder, a hub id or pocket:chat"
        raise MissingError(Problem(name, "no such model folder", mend))
    return name


def is_folder(name: str) -> bool:
    """Whether the name, resolved, is a folder on this disk."""
    return Path(resolve(name)).is_dir()
