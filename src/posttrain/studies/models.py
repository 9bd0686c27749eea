"""Where the models of a study are."""

from __future__ import annotations

from pathlib import Path

from posttrain.models.gguf_header import is_gguf

__all__ = ["find_model"]


def find_model(name: str, base: Path) -> tuple[str, str]:
    """Where a study's model is, and what has to be said about it: a folder or a GGUF file is looked for beside the
    study file, as `posttrain train` does, then where the command runs; any other name is left to the hub and to pocket.
    """
    path = Path(name).expanduser()
    if name.startswith("pocket:") or path.is_absolute() or not name:
        return name, ""
    if (base / path).is_dir() or is_gguf(base / path):
        return str(base / path), ""
    if (path.is_dir() or is_gguf(path)) and base.resolve() != Path.cwd():
        return name, f"{name}: not beside the study file; taken from the folder where the command runs"
    return name, ""
