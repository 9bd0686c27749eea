"""The files of a cell beside its results, each written whole or not at all."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from posttrain.exams.results import finite
from posttrain.models.disk import write_whole

__all__ = ["to_yaml", "write_lines"]


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSONL whole or not at all."""
    write_whole(path, "".join(json.dumps(finite(row), ensure_ascii=False) + "\n" for row in rows))


def to_yaml(data: Mapping[str, Any]) -> str:
    """A mapping as YAML, keys in their order."""
    yaml = YAML()
    yaml.default_flow_style = None
    yaml.width = 100
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    stream = io.StringIO()
    yaml.dump(dict(data), stream)
    return stream.getvalue()
