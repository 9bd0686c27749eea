"""The script that draws charts is the one of the installed vl-convert, and may stand in a page."""

from posttrain.reports.html import VEGA
from tools import vega


def test_the_script_is_that_of_the_installed_version() -> None:
    script = VEGA.read_text(encoding="utf-8")
    assert vega.FILE.samefile(VEGA)
    assert script.startswith(f"/*! {vega.versions()}; BSD-3-Clause"), "run: python tools/vega.py"
    assert "</script" not in script.lower()
    assert "<!--" not in script
