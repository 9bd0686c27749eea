"""What a folder's weights are, read without building the model: numbers and fingerprint of its safetensors files.

torch is enough for it; to import transformers' models takes longer than all else that `posttrain doctor` does.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import NamedTuple

from posttrain.errors import PosttrainError, Problem

__all__ = ["Stored", "stored_weights"]


class Stored(NamedTuple):
    """parameters: numbers; fingerprint: that of `weights_fingerprint` for a model that has its parameters stored under
    their own names, each once.
    """

    parameters: int
    fingerprint: str


def stored_weights(folder: Path) -> Stored:
    """Of all safetensors files of a folder. PosttrainError naming a file that cannot be read."""
    import torch
    from safetensors import SafetensorError, safe_open

    digest, parameters = hashlib.sha256(), 0
    where: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                where |= dict.fromkeys(file.keys(), path)
        except (SafetensorError, OSError) as error:
            mend = "install the package again"
            raise PosttrainError(Problem(str(path), f"cannot be read: {error}", mend)) from error
    for name, path in sorted(where.items()):
        with safe_open(path, framework="pt") as file:
            tensor = file.get_tensor(name)
        parameters += math.prod(tensor.shape)
        digest.update(f"{name} float32 {tuple(tensor.shape)}\n".encode())
        whole = tensor.to(torch.float32).contiguous()
        digest.update(memoryview(whole.reshape(-1).numpy()).cast("B"))
    return Stored(parameters, digest.hexdigest()[:16])
