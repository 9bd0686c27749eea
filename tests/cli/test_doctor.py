from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from posttrain import __version__
from posttrain.cli.doctor import pocket
from posttrain.cli.main import main
from posttrain.errors import PosttrainError
from posttrain.models import names
from posttrain.models.fingerprint import stored_weights, template_fingerprint, weights_fingerprint
from posttrain.models.load import load_model


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


def test_fingerprints_are_those_of_the_loaded_models() -> None:
    for kind in ("base", "chat"):
        loaded = load_model(f"pocket:{kind}", device="cpu")
        size = sum(p.numel() for p in loaded.model.parameters())
        weights, template = weights_fingerprint(loaded.model), template_fingerprint(loaded.tokenizer)
        assert pocket(kind) == f"{size:,} parameters, weights {weights}, template {template}"


def test_sixteen_bits_and_shards_have_the_fingerprint_of_their_float32(
    pico_path: Callable[[str], Path], tmp_path: Path
) -> None:
    model = load_model(str(pico_path("llama")), device="cpu").model.to(torch.bfloat16)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    size = sum(p.numel() for p in model.parameters())
    for folder in ("whole", "shards"):
        assert stored_weights(tmp_path / folder) == (size, weights_fingerprint(model))
    torn = tmp_path / "whole" / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-100])
    with pytest.raises(PosttrainError, match=r"model\.safetensors: cannot be read"):
        stored_weights(tmp_path / "whole")


def test_doctor_builds_no_model() -> None:
    """What took most of its 5.5 seconds: transformers' models and their generation."""
    code = "import sys; from posttrain.cli.doctor import findings; findings(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "torch" in loaded
    heavy = ("transformers.modeling_utils", "transformers.generation", "torch._dynamo", "peft", "datasets")
    assert [name for name in heavy if name in loaded] == []
