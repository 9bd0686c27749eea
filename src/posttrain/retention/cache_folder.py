"""The folder of replays and importances, which are made once and read again."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["default_cache"]


def default_cache() -> Path:
    """The folder: $POSTTRAIN_CACHE, else ~/.cache/posttrain."""
    named = os.environ.get("POSTTRAIN_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "posttrain"
