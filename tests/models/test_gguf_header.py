"""The header is read as the package gguf writes it; what is broken is said."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain.errors import MissingError, PosttrainError
from posttrain.models.gguf_header import is_gguf, read_header
from tests.pico_gguf import write_gguf

PicoPath = Callable[[str], Path]


@pytest.fixture(scope="module")
def written(pico_path: PicoPath, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(pico_path("llama"), tmp_path_factory.mktemp("header") / "pico.gguf", kind="Q4_1")


def test_against_the_packages_own_reader(written: Path) -> None:
    import gguf

    reader = gguf.GGUFReader(written)
    header = read_header(written)
    assert [t.name for t in header.tensors] == [t.name for t in reader.tensors]
    assert [t.shape for t in header.tensors] == [tuple(int(n) for n in reversed(t.shape)) for t in reader.tensors]
    assert [header.data_start + t.offset for t in header.tensors] == [t.data_offset for t in reader.tensors]
    assert [t.kind for t in header.tensors] == [int(t.tensor_type) for t in reader.tensors]
    assert set(header.fields) == {key for key in reader.fields if not key.startswith("GGUF.")}
    assert header.fields["tokenizer.ggml.tokens"] == 384  # of an array only the length
    assert header.fields["llama.rope.freq_base"] == 10_000.0
    # 384 x 32 words; a layer: 2 norms, q and o 32 x 32, k and v 16 x 32, three of 64 x 32; the last norm
    assert header.parameters == 384 * 32 + 2 * (2 * 32 + 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32) + 32
    assert (header.architecture, header.kind, header.stops, header.positions) == ("llama", 3, (2,), 512)


def test_an_end_of_turn_that_is_another_token(pico_path: PicoPath, tmp_path: Path) -> None:
    made = write_gguf(pico_path("llama"), tmp_path / "x.gguf", extra={"tokenizer.ggml.eot_token_id": 5})
    assert read_header(made).stops == (2, 5)


def test_every_cut_of_a_header_is_said(written: Path, tmp_path: Path) -> None:
    whole = written.read_bytes()
    cut = tmp_path / "截斷.gguf"
    for length in [*range(0, 200, 7), 1000, 3000, read_header(written).data_start - 200]:
        cut.write_bytes(whole[:length])
        with pytest.raises(PosttrainError, match=r"截斷\.gguf.*(cut short|too short).*copy the file again"):
            read_header(cut)


@pytest.mark.parametrize(
    ("at", "put", "words"),
    [
        (0, b"GGML", "does not begin with the word GGUF"),
        (4, struct.pack("<I", 1), "is of GGUF version 1"),
        (4, struct.pack(">I", 3), "is stored big-endian"),
        (16, struct.pack("<Q", 1 << 60), "is cut short"),
        (24, struct.pack("<Q", 1 << 40), "is cut short"),
        (32, b"\xff\xfe\xff", "has a broken header"),
    ],
)
def test_broken_bytes(at: int, put: bytes, words: str, written: Path, tmp_path: Path) -> None:
    broken = tmp_path / "x.gguf"
    content = bytearray(written.read_bytes())
    content[at : at + len(put)] = put
    broken.write_bytes(content)
    with pytest.raises(PosttrainError, match=words) as caught:
        read_header(broken)
    assert str(broken) in str(caught.value)


def test_one_of_several_parts(pico_path: PicoPath, tmp_path: Path) -> None:
    part = write_gguf(pico_path("llama"), tmp_path / "x.gguf", extra={"split.count": 3})
    with pytest.raises(PosttrainError, match="one of 3 parts of a model; join the parts"):
        read_header(part)


def test_what_counts_as_a_gguf_file(written: Path, tmp_path: Path) -> None:
    assert is_gguf(written)
    assert not is_gguf(tmp_path / "nothing.gguf")
    (tmp_path / "folder.gguf").mkdir()
    assert not is_gguf(tmp_path / "folder.gguf")
    with pytest.raises(MissingError, match="cannot be read"):
        read_header(tmp_path / "nothing.gguf")
