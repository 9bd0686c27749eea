"""`posttrain doctor`: show what is installed and what this machine can do, in a form for bug reports."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from posttrain.cli.options import JsonOption, emit


def doctor(json: JsonOption = False) -> None:
    """Say what is installed and what this machine can do; paste it into a bug report."""
    found = findings()
    if json:
        emit(found)
        return
    for name, value in found.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, inner in value.items():
                print(f"  {key}: {_shown(inner)}")
        else:
            print(f"{name}: {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "–" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


def findings() -> dict[str, Any]:
    """Return versions, device, memory, disk, the pocket models, caches and network policy."""
    from posttrain.retention.cache_folder import default_cache
    from posttrain.training.environment import environment

    return {
        **environment(),
        "cores_usable": len(os.sched_getaffinity(0)) if "sched_getaffinity" in dir(os) else os.cpu_count(),
        "memory_gib": memory_gib(),
        "disk_free_gib": shutil.disk_usage(Path.cwd()).free / 2**30,
        "pocket": {f"pocket:{kind}": pocket(kind) for kind in ("base", "chat")},
        "cache": str(default_cache()),
        "hub_cache": os.environ.get("HF_HUB_CACHE") or os.environ.get("HF_HOME") or "~/.cache/huggingface",
        "network": "used only with --download or `download: true`",
    }


def memory_gib() -> float | None:
    """Return the physical memory in GiB; None if the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError, AttributeError):
        return None


def pocket(kind: str) -> str:
    """Return the size and fingerprints of a pocket model as text, or why there are none. kind: `base` or `chat`.

    Its files are read and its template is rendered. The model is not built, because importing its class takes longer
    than everything else.
    """
    from transformers import PreTrainedTokenizerFast

    from posttrain.errors import PosttrainError
    from posttrain.models.fingerprint import stored_weights, template_fingerprint
    from posttrain.models.load import check_folder
    from posttrain.models.names import resolve

    try:
        folder = Path(resolve(f"pocket:{kind}"))
        check_folder(str(folder))
        stored = stored_weights(folder)
        template = template_fingerprint(PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True))
    except PosttrainError as error:
        return "; ".join(part for problem in error.problems for part in (problem.cause, problem.mend) if part)
    return f"{stored.parameters:,} parameters, weights {stored.fingerprint}, template {template}"
