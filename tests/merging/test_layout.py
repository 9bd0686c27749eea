"""The files of a merged model: safetensors opens them, and every tensor is where the layout says."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from posttrain.merging.layout import Layout, create, lay_out, write_index
from posttrain.models.tensors import SIZES, Stored, tensors_in

MIXED = {
    "odd": Stored("U8", (3,)),
    "a": Stored("F32", (5, 3)),
    "flags": Stored("BOOL", (7,)),
    "h": Stored("BF16", (3,)),
    "count": Stored("I64", ()),
    "nothing": Stored("F16", (0, 4)),
    "d": Stored("F64", (2, 2, 2)),
    "名": Stored("F16", (1,)),
}


def filled(layout: Layout, folder: Path) -> None:
    """Make the files, with the bytes 1, 2, ... in every tensor."""
    folder.mkdir(exist_ok=True)
    create(layout, folder)
    for slot in layout.slots.values():
        handle = os.open(folder / layout.files[slot.file].name, os.O_WRONLY)
        os.pwrite(handle, bytes(i % 2 for i in range(slot.size)), slot.start)
        os.close(handle)


def test_safetensors_reads_what_is_laid_out(tmp_path: Path) -> None:
    layout = lay_out(MIXED)
    filled(layout, tmp_path)
    assert [file.name for file in layout.files] == ["model.safetensors"]
    assert layout.size == (tmp_path / "model.safetensors").stat().st_size
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(MIXED)
        for name, one in MIXED.items():
            found = file.get_tensor(name)
            assert tuple(found.shape) == one.shape
            raw = found.contiguous().view(-1).view(torch.uint8) if found.numel() else torch.empty(0)
            assert raw.tolist() == [i % 2 for i in range(raw.numel())]
    read = tensors_in(tmp_path / "model.safetensors")
    assert {name: slot.start for name, slot in layout.slots.items()} == {name: one.start for name, one in read.items()}
    assert not (tmp_path / "model.safetensors.index.json").exists()


@pytest.mark.parametrize("shard", [1, 30, 100, 10**9])
def test_every_tensor_is_aligned_and_none_overlaps(shard: int) -> None:
    layout = lay_out(MIXED, shard)
    for name, slot in layout.slots.items():
        assert slot.start % SIZES[MIXED[name].dtype] == 0
    for number, file in enumerate(layout.files):
        ends = sorted((slot.start, slot.start + slot.size) for slot in layout.slots.values() if slot.file == number)
        assert all(end == start for (_, end), (start, _) in pairwise(ends))
        assert (len(file.header), file.size) == (ends[0][0], ends[-1][1])
        held = sum(slot.size for slot in layout.slots.values() if slot.file == number)
        assert held <= shard or sum(slot.file == number and slot.size > 0 for slot in layout.slots.values()) == 1


def test_shards_have_the_names_and_the_index_of_transformers(tmp_path: Path) -> None:
    tensors = {f"w{i}": Stored("F32", (10,)) for i in range(5)}
    layout = lay_out(tensors, 80)
    filled(layout, tmp_path)
    write_index(layout, tmp_path, list(tensors))
    names = [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    assert [file.name for file in layout.files] == names
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == 200
    assert index["weight_map"] == dict(zip(tensors, [names[0]] * 2 + [names[1]] * 2 + [names[2]], strict=True))
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / file, "pt") as opened:
            assert name in opened.keys()  # noqa: SIM118


def test_no_tensors_are_an_empty_file(tmp_path: Path) -> None:
    filled(lay_out({}), tmp_path)
    assert tensors_in(tmp_path / "model.safetensors") == {}
