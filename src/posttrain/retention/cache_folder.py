"""Find the folder in which replays and importances are cached."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["default_cache"]


def default_cache() -> Path:
    """Return the cache folder: $POSTTRAIN_CACHE, else ~/.cache/posttrain."""
    named = os.environ.get("POSTTRAIN_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "posttrain"
