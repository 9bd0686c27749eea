"""The surroundings of a run that its result depends on besides its configuration, for env.json: versions, machine,
commit."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from posttrain import __version__
from posttrain.models.processor import processor

__all__ = ["environment"]


def environment() -> dict[str, Any]:
    """The versions of the libraries that compute, processor or GPU, threads, and the commit of the working folder."""
    packages = ("torch", "transformers", "accelerate", "peft", "tokenizers", "safetensors")
    cuda = torch.cuda.is_available()
    return {
        "posttrain": __version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "cuda": torch.version.cuda if cuda else None,
        "processor": str(processor()),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "argv": sys.argv,
        "commit": commit(),
    }


def commit() -> str | None:
    """The git commit of the working folder, with `+` when files differ from it; None outside of a repository."""
    try:
        head = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+"],
            capture_output=True, text=True, timeout=5, cwd=Path.cwd(), check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() or None
