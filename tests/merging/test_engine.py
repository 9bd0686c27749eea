"""The engine: the same bits for any number of threads, merges that are stopped, numbers that are none, full disks."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.errors import DiskError, Interrupted, PosttrainError
from posttrain.merging import engine, stack
from posttrain.merging.engine import JOURNAL, in_memory
from posttrain.merging.methods.iso_c import IsoCConfig
from posttrain.merging.methods.linear import LinearConfig
from posttrain.merging.methods.ram import RamConfig
from posttrain.merging.methods.task_arithmetic import TaskArithmeticConfig
from posttrain.merging.methods.ties import TiesConfig
from posttrain.merging.plan import Plan
from tests.merging.folders import SHAPES, contents, drawn, folder, planned, weights, written
from tests.models.test_disk import small_disk, unix

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Three models."""
    return {name: folder(tmp_path / name, seed) for seed, name in enumerate(("base", "math", "code"))}


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fdatasync", lambda handle: None)


def methods() -> list[Any]:
    return [
        LinearConfig(weight={"base": 0.2, "math": 0.5, "code": 0.3}),
        TaskArithmeticConfig(weight={"math": 0.7, "code": [0, 1]}),
        TiesConfig(density=0.4),
        RamConfig(),
        IsoCConfig(),
    ]


@pytest.mark.parametrize("config", methods(), ids=lambda config: config.kind)
def test_threads_and_shards_change_no_bit(
    config: Any, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "BLOCK", 40)  # many blocks of each tensor
    made = planned(config, folders, base="base" if config.needs_base else None)
    found = [weights(written(made, tmp_path / f"{threads}", threads=threads)) for threads in (1, 2, 4)]
    named = {name: weights(path) for name, path in folders.items()}
    found.append(in_memory(named, "base" if config.needs_base else None, config))
    sharded = planned(config, folders, base="base" if config.needs_base else None, shard=1000)
    found.append(weights(written(sharded, tmp_path / "shards", threads=3)))
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    for other in found[1:]:
        assert list(found[0]) == list(other) or set(found[0]) == set(other)
        assert all(torch.equal(found[0][name], other[name]) for name in SHAPES)


@pytest.mark.parametrize("config", [*methods()[:2], TiesConfig(density=1.0)], ids=lambda config: config.kind)
def test_the_size_of_blocks_changes_no_bit(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each number is made of the numbers at its place alone."""
    draw = torch.Generator().manual_seed(3)
    models = {
        name: {"w": torch.randn(37, 29, generator=draw), "v": torch.randn(11, generator=draw)}
        for name in ("base", "math", "code")
    }
    found = []
    for size in (1, 29, 100, 1 << 16):
        monkeypatch.setattr(stack, "BLOCK", size)
        found.append(in_memory(models, "base" if config.needs_base else None, config))
    assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in "wv")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_models_that_are_the_same_give_the_same_bytes(dtype: torch.dtype, tmp_path: Path) -> None:
    folders = {name: folder(tmp_path / name, drawn(1, dtype)) for name in ("base", "math", "code")}
    for config in (LinearConfig(), TaskArithmeticConfig(weight=0.3)):
        made = planned(config, folders, base="base" if config.needs_base else None)
        found = written(made, tmp_path / config.kind)
        assert weights(found).keys() == SHAPES.keys()
        assert all(torch.equal(tensor, drawn(1, dtype)[name]) for name, tensor in weights(found).items())


def test_numbers_are_rounded_once(tmp_path: Path) -> None:
    given = [drawn(seed, torch.bfloat16) for seed in range(3)]
    folders = {f"m{i}": folder(tmp_path / f"m{i}", one) for i, one in enumerate(given)}
    found = weights(written(planned(LinearConfig(), folders), tmp_path / "out"))
    wide = weights(written(planned(LinearConfig(), folders, dtype="float32"), tmp_path / "wide"))
    for name in SHAPES:
        mean = sum(one[name].double() for one in given) / 3
        assert isinstance(mean, Tensor)
        assert wide[name].dtype == torch.float32
        assert (wide[name] - mean).abs().max() < 1e-6
        assert torch.equal(found[name], wide[name].bfloat16())


# ---- stopped ---------------------------------------------------------------------------------------------------------


def counted(made: Plan, seen: list[str], stop: Callable[[], None] = lambda: None, after: int = 99) -> Plan:
    """Return a plan whose method notes the tensors it merges, and is stopped before one of them."""
    method = made.merge.method

    def noted(config: Any, one: Any) -> Any:
        if len(seen) == after:
            stop()
        seen.append(one.place.name)
        return method(config, one)

    return made._replace(merge=made.merge._replace(method=noted))


def ctrl_c() -> None:
    raise KeyboardInterrupt


def test_a_merge_that_was_stopped_goes_on(folders: dict[str, Path], tmp_path: Path) -> None:
    made = planned(TaskArithmeticConfig(), folders, base="base")
    whole = contents(written(made, tmp_path / "whole"))
    before = {path.name for path in tmp_path.iterdir()}
    first: list[str] = []
    with pytest.raises((KeyboardInterrupt, Interrupted)) as told:
        written(counted(made, first, ctrl_c, 3), tmp_path / "out", threads=1)
    assert "what is written is kept, and the same command goes on" in str(told.value)
    assert {path.name for path in tmp_path.iterdir()} - before == {".tmp-out"}
    again: list[str] = []
    said: list[str] = []
    written(counted(made, again), tmp_path / "out", threads=2, say=said.append)
    assert said == ["going on with a merge that was stopped"]
    assert len(first) == 3
    assert sorted(first + again) == sorted(SHAPES)
    assert contents(tmp_path / "out") == whole
    assert {path.name for path in tmp_path.iterdir()} - before == {"out"}


def test_another_merge_begins_anew(folders: dict[str, Path], tmp_path: Path) -> None:
    made = planned(TaskArithmeticConfig(), folders, base="base")
    for change in ("weight", "file"):
        with pytest.raises((KeyboardInterrupt, Interrupted)):
            written(counted(made, [], ctrl_c, 3), tmp_path / "out", threads=1)
        if change == "weight":
            other = planned(TaskArithmeticConfig(weight=0.5), folders, base="base")
        else:
            os.utime(folders["math"] / "model.safetensors", ns=(1, 1))
            other = planned(TaskArithmeticConfig(), folders, base="base")
        seen: list[str] = []
        said: list[str] = []
        written(counted(other, seen), tmp_path / "out", say=said.append)
        assert (sorted(seen), said) == (sorted(SHAPES), [])


def test_a_line_of_the_journal_that_was_cut(folders: dict[str, Path], tmp_path: Path) -> None:
    """The power may go while a line is written: it does not count, and the next one is not joined to it."""
    made = planned(TaskArithmeticConfig(), folders, base="base")
    whole = contents(written(made, tmp_path / "whole"))
    for after, cut in ((2, '["model.em'), (1, '["lm_he'), (9, "")):
        seen: list[str] = []
        if after < 9:
            with pytest.raises((KeyboardInterrupt, Interrupted)):
                written(counted(made, seen, ctrl_c, after), tmp_path / "out", threads=1)
            with (tmp_path / ".tmp-out" / JOURNAL).open("a", encoding="utf-8") as file:
                file.write(cut)
        else:
            written(counted(made, seen), tmp_path / "out")
            assert len(seen) == len(SHAPES) - 3
    assert contents(tmp_path / "out") == whole


@unix
def test_a_merge_that_was_killed_goes_on(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "FLUSH", 1)  # every tensor is noted at once
    made = planned(TaskArithmeticConfig(), folders, base="base")
    whole = contents(written(made, tmp_path / "whole"))
    child = os.fork()
    if not child:  # pragma: no cover
        try:
            written(counted(made, [], lambda: os.kill(os.getpid(), signal.SIGKILL), 4), tmp_path / "out", threads=1)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    seen: list[str] = []
    written(counted(made, seen), tmp_path / "out")
    assert len(seen) == len(SHAPES) - 4
    assert contents(tmp_path / "out") == whole


def test_an_error_leaves_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    def fails() -> None:
        raise ZeroDivisionError("a bug")

    made = planned(TaskArithmeticConfig(), folders, base="base")
    before = contents(tmp_path)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        written(counted(made, [], fails, 3), tmp_path / "out", threads=2)
    assert contents(tmp_path) == before


@unix
def test_a_full_disk_is_told_and_leaves_nothing(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = planned(TaskArithmeticConfig(), folders, base="base")
    before = contents(tmp_path)
    with small_disk(2000), pytest.raises(DiskError, match=rf"{tmp_path / 'out'}: cannot be written"):
        written(made, tmp_path / "out")
    assert contents(tmp_path) == before

    def full(handle: int, data: object, at: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DiskError, match="No space left on device"):
        written(made, tmp_path / "out", threads=2)
    assert contents(tmp_path) == before


# ---- numbers that are none -------------------------------------------------------------------------------------------


def broken(tmp_path: Path, change: Callable[[dict[str, Tensor]], object], **models: torch.dtype) -> dict[str, Path]:
    """Return folders of models, of which `math` is changed."""
    made = {}
    for seed, name in enumerate(("base", "math", "code")):
        tensors = drawn(seed, models.get(name, torch.float32))
        if name == "math":
            change(tensors)
        made[name] = folder(tmp_path / name, tensors)
    return made


def put(name: str, at: tuple[int, ...], number: float) -> Callable[[Mapping[str, Tensor]], object]:
    return lambda tensors: tensors[name].__setitem__(at, number)


@pytest.mark.parametrize("config", methods(), ids=lambda config: config.kind)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_are_named(config: Any, number: float, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(stack, "BLOCK", 40)
    folders = broken(tmp_path, put(UP, (13, 5), number))
    before = contents(tmp_path)
    with pytest.raises(PosttrainError) as told:
        written(planned(config, folders, base="base" if config.needs_base else None), tmp_path / "out")
    assert str(told.value).startswith(f"math has {number} in {UP}, row 13, column 5; take a copy")
    assert contents(tmp_path) == before


def test_a_number_of_a_vector_and_of_the_base(tmp_path: Path) -> None:
    folders = broken(tmp_path, put("model.norm.weight", (3,), float("nan")))
    with pytest.raises(PosttrainError, match=r"math has nan in model.norm.weight, number 3;"):
        written(planned(LinearConfig(), folders), tmp_path / "out")
    others = {"base": folders["math"], "a": folders["base"]}
    with pytest.raises(PosttrainError, match=r"the base has nan in model.norm.weight, number 3;"):
        written(planned(TaskArithmeticConfig(), others, base="base"), tmp_path / "out")


def test_numbers_too_large_for_the_type(tmp_path: Path) -> None:
    folders = broken(tmp_path, put(UP, (2, 7), 70000.0), base=torch.float16)
    with pytest.raises(PosttrainError) as told:
        written(planned(TaskArithmeticConfig(), folders, base="base"), tmp_path / "out")
    words = f"dtype: 69996.8 in {UP}, row 2, column 7, is too large for float16; store it as bfloat16 or float32"
    assert str(told.value) == words
    made = planned(TaskArithmeticConfig(), folders, base="base", dtype="bfloat16")
    found = weights(written(made, tmp_path / "out"))[UP]
    assert found.dtype == torch.bfloat16
    assert found[2, 7] > 60000


def test_large_numbers_whose_sum_is_none(tmp_path: Path) -> None:
    folders = broken(tmp_path, lambda tensors: tensors[UP].fill_(3e38))
    found = weights(written(planned(LinearConfig(), {"math": folders["math"]}), tmp_path / "out"))
    assert torch.equal(found[UP], torch.full((24, 8), 3e38))


# ---- integers --------------------------------------------------------------------------------------------------------


def with_buffers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add buffers of integers, odd in number."""
    return tensors | {"ids": torch.arange(301), "mask": torch.ones(3, dtype=torch.bool), "step": torch.tensor(5)}


def test_integers_that_are_the_same_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "BLOCK", 40)
    folders = {str(i): folder(tmp_path / str(i), with_buffers(drawn(i))) for i in range(2)}
    for dtype in ("auto", "bfloat16"):
        found = weights(written(planned(LinearConfig(), folders, dtype=dtype), tmp_path / "out"))
        for name, expected in with_buffers({}).items():
            assert torch.equal(found[name], expected)
            assert found[name].dtype == expected.dtype


@pytest.mark.parametrize("other", [torch.arange(301).flip(0), torch.arange(301).int()])
def test_integers_that_differ_are_an_error(other: Tensor, tmp_path: Path) -> None:
    one = folder(tmp_path / "one", with_buffers(drawn(0)))
    two = folder(tmp_path / "two", with_buffers(drawn(1)) | {"ids": other})
    with pytest.raises(PosttrainError, match=r"ids \(I64\) cannot be merged, and differs between the models"):
        written(planned(LinearConfig(), {"one": one, "two": two}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_empty_tensors_and_numbers(tmp_path: Path) -> None:
    def more(seed: int) -> dict[str, Tensor]:
        return {
            "none": torch.empty(0, 4),
            "nil": torch.empty(4, 0),
            "zero": torch.empty(0),
            "n": torch.tensor(1.0 + seed),
        }

    folders = {str(i): folder(tmp_path / str(i), drawn(i) | more(i)) for i in range(2)}
    made = planned(LinearConfig(), folders)
    found = weights(written(made, tmp_path / "out"))
    assert [tuple(found[name].shape) for name in ("none", "nil", "zero")] == [(0, 4), (4, 0), (0,)]
    assert found["n"] == 1.5
    held = in_memory({name: weights(path) for name, path in folders.items()}, None, LinearConfig())
    assert all(torch.equal(held[name], tensor) for name, tensor in found.items())


def test_the_journal_is_gone_and_the_index_says_what_is_where(folders: dict[str, Path], tmp_path: Path) -> None:
    out = written(planned(LinearConfig(), folders, shard=1500), tmp_path / "out")
    names = {path.name for path in out.iterdir()}
    assert JOURNAL not in names
    index = json.loads((out / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert set(index["weight_map"]) == set(SHAPES)
    assert set(index["weight_map"].values()) == {name for name in names if name.endswith(".safetensors")}
