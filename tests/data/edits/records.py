"""Records as the four data sets have them, with invented content, to be changed by tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[3] / "examples" / "tasks"
FORMS = ("counterfact", "zsre", "knowedit", "ripple_edits")


def example(form: str) -> list[dict[str, Any]]:
    """The example file of a data set, read anew."""
    return list(json.loads((EXAMPLES / f"{form}.json").read_text(encoding="utf-8")))


def written(path: Path, records: Any) -> Path:
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return path


def lines(path: Path, *rows: Any) -> Path:
    texts = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path
