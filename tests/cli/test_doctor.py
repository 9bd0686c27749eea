from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from posttrain import __version__
from posttrain.cli.main import main
from posttrain.models import names


def test_doctor_says_what_a_bug_report_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path))
    monkeypatch.setattr(names, "_HERE", tmp_path)  # as in a checkout without weights
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["posttrain"] == __version__
    assert found["packages"]["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["memory_gib"] > 0.1
    assert found["disk_free_gib"] > 0
    assert found["cache"] == str(tmp_path)
    assert found["pocket"]["pocket:chat"].startswith(f"{tmp_path}/chat has no weights; install the package again")
    assert "--download" in found["network"]
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"posttrain: {__version__}\n" in out
    assert "  torch: " in out
