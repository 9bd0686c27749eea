"""docs/metrics.md names every metric and every group, and no other."""

import importlib
import pkgutil
import re
from pathlib import Path

from posttrain.data import metrics as shared
from posttrain.exams import metrics
from posttrain.exams.capabilities import CAPABILITIES

PAGE = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")
HELPERS = {"lcs", "tokens"}
NO_METRICS = {
    "Bleu",
    "BleuTokenizer",
    "Preference",
    "CHATGLM_SCORES",
    "Rouge",
    "Similarity",
    "Span",
    "Units",
    "log_sum_exp",
}


def test_every_metric_is_documented() -> None:
    rooms = (metrics, shared)
    modules = [
        f"{r.__name__}.{m.name}" for r in rooms for m in pkgutil.iter_modules(r.__path__) if m.name not in HELPERS
    ]
    assert len(modules) == 12
    names = {name for m in modules for name in importlib.import_module(m).__all__}
    assert [name for name in sorted(names - NO_METRICS) if f"`{name}`" not in PAGE] == []


def test_every_group_is_documented() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| (\w*) ?\| (better|none) \|$", PAGE, re.MULTILINE)
    assert rows == [(c.id, c.captrack, "better" if c.direct else "none") for c in CAPABILITIES.values()]
