"""A model folder that brings its own code: a pico model whose classes transformers does not know."""

from __future__ import annotations

import json
from pathlib import Path

from tests.pico import pico

CODE = """\
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

Path({ran!r}).touch()


class OwnConfig(LlamaConfig):
    model_type = "own_pico"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def own_code(tmp_path: Path) -> Path:
    """`tmp_path/own`; it cannot be loaded without running `own.py`, which leaves `tmp_path/ran`."""
    folder = pico("llama", tmp_path).rename(tmp_path / "own")
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"model_type": "own_pico", "architectures": ["OwnForCausalLM"]}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    path.write_text(json.dumps(config), encoding="utf-8")
    (folder / "own.py").write_text(CODE.format(ran=str(tmp_path / "ran")), encoding="utf-8")
    return folder
