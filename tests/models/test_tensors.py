"""Headers of safetensors files, read without the numbers; a file that was cut short or changed is told from a whole one."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from posttrain.errors import PosttrainError
from posttrain.models.tensors import stored_dtype, tensors_in
from tests.training.tiny import PicoPath


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.ones(3, 4), "b": torch.ones(5).bfloat16(), "n": torch.tensor(7)}, path, {"format": "pt"})
    return path


def test_names_types_and_shapes(file: Path) -> None:
    found = tensors_in(file)
    assert {name: one[:2] for name, one in found.items()} == {
        "w": ("F32", (3, 4)),
        "b": ("BF16", (5,)),
        "n": ("I64", ()),
    }
    whole = file.read_bytes()
    assert whole[found["w"].start :][: 4 * 12] == torch.ones(12).numpy().tobytes()


def with_header(path: Path, header: object, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ({"a": ONE}, b"1234567", "bytes long, and"),
        ({"a": ONE}, b"123456789", "bytes long, and"),
        ({"a": ONE | {"shape": [3]}}, b"12345678", r"wrong about a: 8 bytes for F32 \[3\]"),
        ({"a": ONE, "b": ONE}, b"12345678", "wrong about b"),
        ({"a": {"dtype": "F32"}}, b"", "header cannot be read: KeyError"),
        ([1], b"", "header cannot be read"),
        (b"not JSON", b"", "header cannot be read: JSONDecodeError"),
        (b"[" * 5000, b"", "header cannot be read: RecursionError"),
        (b"\xff\xfe", b"", "header cannot be read: UnicodeDecodeError"),
    ],
)
def test_headers_that_are_wrong(tmp_path: Path, header: object, data: bytes, words: str) -> None:
    path = tmp_path / "a.safetensors"
    with_header(path, header, data)
    with pytest.raises(PosttrainError, match=rf"a\.safetensors: .*({words}).*; copy the file again"):
        tensors_in(path)


@pytest.mark.parametrize("size", [0, 5, 8, 40])
def test_cut_short(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(PosttrainError, match="its header is longer than the file"):
        tensors_in(file)


def test_a_length_beyond_all_memory_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(PosttrainError, match="its header is longer than the file"):
        tensors_in(path)


def test_in_which_precision(pico_path: PicoPath, tmp_path: Path) -> None:
    assert stored_dtype("pocket:chat") == "float16"
    assert stored_dtype(str(pico_path("llama"))) == "float32"
    assert stored_dtype("no/such-model") is None
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "pocket:base"}))
    assert stored_dtype(str(tmp_path)) == "float16"
    folder = tmp_path / "by-config"
    folder.mkdir()
    config = json.loads((pico_path("llama") / "config.json").read_text()) | {"dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))  # weights in pickle: their precision is the configuration's
    assert stored_dtype(str(folder)) == "bfloat16"
