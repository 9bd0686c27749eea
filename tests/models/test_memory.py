"""Peak memory of stretches of work: each has its own, and what lies within counts."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from posttrain.models import memory
from posttrain.models.memory import activation_bytes, give_back, mapped, peak_gib, peak_memory, set_aside
from tests.pico import pico

MIB = 2**20


def take(mebibytes: int) -> None:
    """Fill memory of the system's, and give it back at once, whatever the allocator would do."""
    with mmap.mmap(-1, mebibytes * MIB) as block:
        for start in range(0, len(block), MIB):
            block[start : start + MIB] = b"x" * MIB


@pytest.mark.parametrize("kept", [True, False], ids=["by the system", "by a thread"])
def test_a_small_cell_after_a_large_one(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kept:
        monkeypatch.setattr(memory, "_reset", lambda: False)
        monkeypatch.setattr(memory, "EVERY_S", 0.0005)
    elif sys.platform != "linux":
        pytest.skip("only Linux keeps the peak")
    with peak_memory() as before:
        pass
    with peak_memory() as large:
        take(300)
        inside = peak_gib()
    with peak_memory() as small:
        take(10)
    assert large.gib >= before.gib + 0.25
    assert inside == pytest.approx(large.gib, abs=0.05)
    assert small.gib <= large.gib - 0.2


def test_a_stretch_counts_what_is_measured_within_it() -> None:
    with peak_memory() as outer:
        with peak_memory() as first:
            take(200)
        with peak_memory() as second:
            take(5)
    assert outer.gib >= first.gib > second.gib


def test_where_the_system_forbids_it_a_thread_looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "no" / "such" / "file")
    assert not memory._reset()
    with peak_memory() as peak:
        assert not peak.kept
    assert peak.gib >= 0.0


def test_freed_memory_goes_back_to_the_system() -> None:
    held = [torch.ones(200_000) for _ in range(200)]  # 160 MB in blocks that glibc keeps when they are freed
    full = memory._resident()
    keep = held[::50]
    del held
    give_back()
    assert memory._resident() <= full - 0.1
    assert len(keep) == 4


def test_activations_are_counted_without_embeddings_and_head(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(pico("qwen3", tmp_path))
    # per layer: q 32 -> 32, k and v 32 -> 16, o 32 -> 32; gate and up 32 -> 64, down 64 -> 32
    layer = 64 + 48 + 48 + 64 + 3 * 96
    assert activation_bytes(model) == int(2 * layer * 1.5 * 4)


def in_memory(tensor: torch.Tensor) -> int:
    """KiB of the file that a tensor is mapped from which are in this process's memory."""
    at, found = tensor.data_ptr(), False
    for line in memory.MAPPINGS.read_text().splitlines():
        if header := memory.MAPPING.match(line):
            found = int(header[1], 16) <= at < int(header[2], 16)
        elif found and line.startswith("Rss:"):
            return int(line.split()[1])
    raise AssertionError("the tensor is not mapped")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets go of pages")
def test_weights_in_a_file_leave_memory_and_come_back(tmp_path: Path) -> None:
    drawn = {name: torch.randn(1024, 1024) for name in ("one", "other")}
    save_file(drawn, tmp_path / "weights.safetensors")
    stored = load_file(tmp_path / "weights.safetensors")
    own = torch.randn(1024, 1024)
    copy = own.clone()
    for tensor in stored.values():
        tensor.sum()
    assert in_memory(stored["one"]) >= 8 * 1024
    set_aside([*stored.values(), own])
    assert in_memory(stored["one"]) <= 64  # headers, and pages that two tensors share
    assert all(torch.equal(stored[name], tensor) for name, tensor in drawn.items())
    assert torch.equal(own, copy)
    set_aside([stored["one"]], mapped())
    assert 3 * 1024 <= in_memory(stored["one"]) <= 5 * 1024  # the other stays
    stored["other"][500, 7] = 1e6  # no longer what the file holds
    set_aside(stored.values())
    assert stored["other"][500, 7] == 1e6
    assert torch.equal(stored["one"], drawn["one"])
