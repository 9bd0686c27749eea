"""What dry runs of one model import: nothing that trains, which takes a second."""

from __future__ import annotations

import ast
from pathlib import Path

from posttrain.studies import speed


def test_it_imports_nothing_that_trains() -> None:
    tree = ast.parse(Path(speed.__file__).read_text(encoding="utf-8"))
    named = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    ours = {name for name in named if name and name.startswith("posttrain")}
    assert ours == {"posttrain.errors", "posttrain.models.load"}
