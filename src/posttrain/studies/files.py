"""A mapping as YAML: a cell's config.yaml, and the study as it ran."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML

__all__ = ["to_yaml"]


def to_yaml(data: Mapping[str, Any]) -> str:
    """A mapping as YAML, keys in their order."""
    yaml = YAML()
    yaml.default_flow_style = None
    yaml.width = 100
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    stream = io.StringIO()
    yaml.dump(dict(data), stream)
    return stream.getvalue()
