"""A GGUF file saved as a folder is the same model; nothing is overwritten."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from posttrain.cli.main import main
from posttrain.errors import ConfigError, PosttrainError
from posttrain.models.convert import convert_gguf
from posttrain.models.fingerprint import weights_fingerprint
from posttrain.models.load import load_model
from tests.pico_gguf import write_gguf

PicoPath = Callable[[str], Path]


@pytest.fixture(scope="module")
def written(pico_path: PicoPath, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(pico_path("llama"), tmp_path_factory.mktemp("convert") / "pico.gguf", kind="Q8_0")


def test_the_folder_is_the_file(written: Path, tmp_path: Path) -> None:
    made = convert_gguf(str(written), tmp_path / "out")
    one, other = load_model(str(written), device="cpu"), load_model(str(tmp_path / "out"), device="cpu")
    assert made.weights_fingerprint == weights_fingerprint(one.model) == weights_fingerprint(other.model)
    ids = torch.tensor([other.tokenizer("法國的首都是巴黎。")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(one.model(ids).logits, other.model(ids).logits)
    assert (made.stops, made.chat_template, made.architecture) == (("<|end|>",), True, "LlamaForCausalLM")
    folder = tmp_path / "out"
    assert "licence: apache-2.0" in (folder / "README.md").read_text()
    texts = [p.read_text(encoding="utf-8") for p in folder.iterdir() if p.suffix in (".json", ".md", ".jinja")]
    assert not any(str(tmp_path) in text or str(written.parent) in text for text in texts)
    with pytest.raises(PosttrainError, match="is there already and is not overwritten; choose a new folder"):
        convert_gguf(str(written), folder)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_bfloat16_halves_it(written: Path, tmp_path: Path) -> None:
    convert_gguf(str(written), tmp_path / "half", dtype="bfloat16")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    file = load_model(str(written), device="cpu").model
    half = load_model(str(tmp_path / "half"), device="cpu").model
    for name, parameter in half.named_parameters():
        assert torch.equal(parameter, file.get_parameter(name).bfloat16().float())


def test_only_gguf_files(pico_path: PicoPath, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no GGUF file"):
        convert_gguf(str(pico_path("llama")), tmp_path / "out")


def test_the_verb(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "模型"
    assert main(["model", "convert", str(written.parent), str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["output"], said["parameters"], said["dtype"]) == (str(out), 30_880, "float32")
    assert main(["model", "convert", str(written), str(out)]) == 1
    assert "is there already and is not overwritten" in capsys.readouterr().err
    assert main(["model", "convert", str(written), "-o", str(tmp_path / "b"), "--dtype", "bfloat16"]) == 0
    assert "bfloat16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        ([], 2, "no folder to write"),
        (["a", "-o", "b"], 2, "say the folder once"),
        (["a", "--dtype", "int4"], 2, "unknown 'int4'; one of float32, bfloat16"),
        (["a", "--flatten"], 2, "--flatten: is for prefixes"),
        (["a", "--base", "pocket:chat"], 2, "--base: is for prefixes"),
    ],
)
def test_wrong_options(
    more: list[str], code: int, words: str, written: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", "convert", str(written), *more]) == code
    assert words in capsys.readouterr().err


def test_a_prefix_has_no_dtype_and_a_missing_file_is_said(
    tmp_path: Path, written: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prefix.bin").write_bytes(b"")
    assert main(["model", "convert", str(tmp_path / "prefix.bin"), "a", "--dtype", "float32"]) == 2
    assert "is no GGUF file, a prefix keeps its numbers" in capsys.readouterr().err
    assert main(["model", "convert", str(written.with_name("pika.gguf")), "a"]) == 3
    assert "no such GGUF file; did you mean" in capsys.readouterr().err
