from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain import registry
from posttrain.errors import ConfigError
from posttrain.inference.opening import open_respondent


def test_a_misspelt_kind_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"study.yaml:7: unknown tuner 'loar'; did you mean 'lora'\?"):
        registry.load("tuner", "loar", "study.yaml:7")


def test_a_strange_kind_gets_the_list() -> None:
    with pytest.raises(ConfigError, match=r"known: .*, full, .*, lora, "):
        registry.load("tuner", "zzz")


def test_a_private_module_is_no_kind() -> None:
    assert "_tokens" not in registry.kinds("objective")
    with pytest.raises(ConfigError):
        registry.load("objective", "_tokens")


def test_a_function_must_live_where_its_name_says() -> None:
    with pytest.raises(AssertionError, match="must live in"):
        registry.register("tuner", "elsewhere", config=dict)(lambda: None)


def test_listing_imports_nothing() -> None:
    code = (
        "import sys; from posttrain import registry\n"
        "rows = [r for seam in registry.SEAMS for r in registry.listed(seam)]\n"
        "assert {('tuner', 'lora'), ('replay', 'self')} <= {(r.seam, r.kind) for r in rows}\n"
        "assert all(r.summary.endswith('.') or ':' in r.summary for r in rows), rows\n"
        "assert 'torch' not in sys.modules and 'posttrain.tuners.lora' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_kind_may_live_in_a_room_above(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Such as a respondent of adaptation/: the seam names its package, and it is opened by name as every kind is."""
    package = tmp_path / "rooms_above" / "kinds"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "parrot.py").write_text(
        '"""A respondent that repeats."""\n'
        "from posttrain.config.base import Config\n"
        "from posttrain.registry import register\n\n\n"
        'class ParrotConfig(Config):\n    kind: str = "parrot"\n\n\n'
        '@register("respondent", "parrot", config=ParrotConfig)\n'
        "def parrot(config):\n    return config.kind\n"
    )
    (tmp_path / "parrot.yaml").write_text("kind: parrot\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.SEAMS, "respondent", (*registry.SEAMS["respondent"], "rooms_above.kinds"))
    assert registry.kinds("respondent") == ["api", "parrot", "vllm"]
    summaries = {row.kind: (row.module, row.summary) for row in registry.listed("respondent")}
    assert summaries["parrot"] == ("rooms_above.kinds.parrot", "A respondent that repeats.")
    opened: Any = open_respondent(str(tmp_path / "parrot.yaml"))
    assert opened == "parrot"
    with pytest.raises(AssertionError, match=r"elsewhere must live in posttrain\S+ or rooms_above.kinds.elsewhere"):
        registry.register("respondent", "elsewhere", config=dict)(lambda: None)
