import json
from pathlib import Path

import pytest
from rich.cells import cell_len

from posttrain.reports.table import text_table

RESULTS = {
    "study": "demo",
    "cells": [
        {"model": "pocket:chat", "method": "full", "change": "a", "status": "done", "cost": {"wall_s": 2.0},
         "scores": {"reliability": 1.0, "generality.rephrase": 0.75, "locality.same_pattern": 0.1, "leak": 0.6}},
        {"model": "pocket:chat", "method": "full", "change": "b", "status": "done", "cost": {"wall_s": 4.0},
         "scores": {"reliability": 1.0, "generality.rephrase": 0.25, "locality.same_pattern": 0.0, "leak": 0.8}},
        {"model": "pocket:chat", "method": "重播 self", "change": "a", "status": "done", "cost": {"wall_s": 3.0},
         "scores": {"reliability": 1.0, "generality.rephrase": 1.0, "locality.same_pattern": 0.8}},
        {"model": "pocket:chat", "method": "重播 self", "change": "b", "status": "failed", "error": "x", "scores": {}},
    ],
}  # fmt: skip

GOLDEN = """\
demo: per cent over 2 change(s); drift in nats per token

method     reliab.  rephrase  pattern  leak  s/cell
───────────────────────────────────────────────────
full           100        50        5    70       3
重播 self      100       100       80     –       3

Fewer than 5 changes: no best trade-off is named.
1 cell(s) failed: 重播 self/b
"""


def test_golden() -> None:
    assert text_table(RESULTS, 80) == GOLDEN


@pytest.mark.parametrize("width", [40, 55, 80, 200])
@pytest.mark.parametrize("language", ["en", "zh-TW"])
def test_no_line_is_wider_than_the_terminal(width: int, language: str) -> None:
    shown = text_table(RESULTS, width, language=language)
    assert max(map(cell_len, shown.splitlines())) <= width
    assert "100" in shown


def test_columns_that_do_not_fit_are_named() -> None:
    assert "Left out for the terminal's width: s/cell." in text_table(RESULTS, 44)


def test_markup_in_names_is_shown_as_it_is() -> None:
    results = json.loads(json.dumps(RESULTS).replace('"full"', '"[red]x[/red]"'))
    assert "[red]x[/red]" in text_table(results, 80)


def test_no_cells(tmp_path: Path) -> None:
    assert "method" in text_table({"study": "s", "cells": []}, 80)


def test_nobody_is_best_who_learned_nothing() -> None:
    cells = [
        {"model": "m", "method": name, "change": "a", "status": "done",
         "scores": {"reliability": 0.3, "locality.same_pattern": 1.0}} for name in ("a", "b")
    ]  # fmt: skip
    assert "Best" not in text_table({"study": "s", "cells": cells}, 80)


EXAMS = {
    "study": "demo",
    "exams": {"mmlu": {"headline": "acc"}, "wiki": {"headline": "token_perplexity", "higher_is_better": False}},
    "before": [{"model": "m", "scores": {"mmlu.acc": 0.5, "wiki.token_perplexity": 20.25}}],
    "cells": [
        {"model": "m", "method": "full", "change": "", "status": "done",
         "scores": {"mmlu.acc": 0.25, "mmlu.acc/law": 0.1}},
    ],
}  # fmt: skip

GOLDEN_EXAMS = """\
demo: main score of each exam

method      mmlu   wiki
───────────────────────
untouched  0.500  20.25
full       0.250      –
"""


def test_exams_stand_beside_the_untouched_model() -> None:
    assert text_table(EXAMS, 80) == GOLDEN_EXAMS
