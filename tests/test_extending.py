"""The three toy files of docs/extending.md, as they stand there, and the study that uses them."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain import registry
from posttrain.config.load import load_yaml
from posttrain.library.verbs import StudyFile
from posttrain.studies.config import Study

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r'```(?:python|yaml) title="([^"]+)"\n(.*?)```', re.DOTALL)


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The page's files, each in a folder that its package finds modules in."""
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    files = dict(BLOCK.findall((ROOT / "docs" / "extending.md").read_text(encoding="utf-8")))
    assert len(files) == 4
    known = dict(registry._entries)
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        if path.suffix == ".py":
            package = importlib.import_module(".".join(Path(name).parent.parts[1:]))
            monkeypatch.setattr(package, "__path__", [*dict.fromkeys([*package.__path__, str(path.parent)])])
    yield tmp_path
    for module in [name for name in sys.modules if (tmp_path / "src" / f"{name.replace('.', '/')}.py").exists()]:
        del sys.modules[module]
    registry._entries.clear()
    registry._entries.update(known)


def test_three_toys_make_a_study(toys: Path) -> None:
    assert "nudge" in registry.kinds("method")
    assert "copying" in registry.kinds("exam")
    study = StudyFile(load_yaml(toys / "toys.yaml", Study, []), ROOT / "examples")
    found = study.run(output=toys / "run")
    assert [(line.method, line.checkpoint, line.status) for line in found.lines] == [
        ("noise floor", "final", "done"),
        ("pushed", "push-1", "done"),
        ("pushed", "final", "done"),
        ("taught", "final", "done"),
        ("half of both", "final", "done"),
    ]
    assert all("copying.exact" in line.scores for line in found.lines)
    assert found.results.methods["half of both"].summary == "mean of one, other"
    assert found.results.exams["copying"].higher_is_better
    prints = {line.method: line.fingerprint for line in found.lines if line.checkpoint == "final"}
    assert len(set(prints.values())) == 4
    assert "copying" in found.report().read_text(encoding="utf-8")
