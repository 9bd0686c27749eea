"""Rows of stored tensors, as float32."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from posttrain.errors import PosttrainError
from posttrain.merging.sources import MemoryModel, Source, StoredModel, numbers_of, table_of

KINDS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SHAPES: list[tuple[int, ...]] = [(), (5,), (7, 3), (4, 2, 3), (0,), (0, 4), (4, 0)]


def tensors(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {
        f"w{i}": torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for i, shape in enumerate(SHAPES)
    }


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("stored", [True, False])
def test_rows_of_every_type_and_shape(dtype: torch.dtype, stored: bool, tmp_path: Path) -> None:
    given = tensors(dtype)
    source: Source = MemoryModel(given)
    if stored:
        save_file(given, tmp_path / "model.safetensors")
        source = StoredModel(tmp_path)
    assert {name: one.shape for name, one in source.tensors.items()} == {n: tuple(t.shape) for n, t in given.items()}
    for name, tensor in given.items():
        assert torch.equal(numbers_of(source, name), tensor.float())
        rows, columns = table_of(tensor.shape)
        for first in range(rows):
            out = torch.empty(1, columns)
            source.rows(name, first, out)
            assert torch.equal(out[0], tensor.float().reshape(rows, columns)[first])


def test_several_files_are_one_model(tmp_path: Path) -> None:
    given = tensors(torch.float32)
    for name, tensor in given.items():
        save_file({name: tensor}, tmp_path / f"model-{name}.safetensors")
    source = StoredModel(tmp_path)
    assert all(torch.equal(numbers_of(source, name), tensor) for name, tensor in given.items())
    save_file({"w1": given["w1"]}, tmp_path / "other.safetensors")
    with pytest.raises(PosttrainError, match=r"other.safetensors: w1 is in a second file, too; delete"):
        StoredModel(tmp_path)


def test_files_that_are_not_whole(tmp_path: Path) -> None:
    with pytest.raises(PosttrainError, match="it has no weights in safetensors"):
        StoredModel(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(tensors(torch.float32), path)
    whole = path.read_bytes()
    for size in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(PosttrainError, match="copy the file again"):
            StoredModel(tmp_path)


def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.randn(100, 10)}, path)
    source = StoredModel(tmp_path)
    os.truncate(path, 2000)
    with pytest.raises(PosttrainError, match="it ends within w; the file was changed while it was read"):
        numbers_of(source, "w")


def test_files_are_closed_with_the_model(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    source: Any = StoredModel(tmp_path)
    (handle,) = source._files
    del source
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handle)
    source = StoredModel(tmp_path)
    source.close()
    source.close()
