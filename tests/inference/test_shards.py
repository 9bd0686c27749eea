"""Requests shared out over processes: the results of one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import PosttrainError
from posttrain.inference import shards
from posttrain.inference.locations import located
from posttrain.inference.protocol import Plain
from posttrain.inference.respondents import ModelRespondent
from posttrain.inference.shards import ShardedRespondent, block
from posttrain.models.load import load_model
from tests.pico import pico
from tests.processes import Started

ROOT = Path(__file__).parents[2]


def ask(respondent: ModelRespondent | ShardedRespondent) -> dict[str, Any]:
    prompts = [f"question {i} of a few" for i in range(7)]
    pairs = [(Plain(f"one {i}"), " two three") for i in range(5)]
    told: list[int] = []
    answers = respondent.answers(prompts, max_new_tokens=4, on_answer=lambda i, _: told.append(i))
    scored = respondent.logprobs(pairs)
    rolled = respondent.rolling(["some text", "another one"])
    return {
        "answers": [a.text for a in answers],
        "told": sorted(told),
        "scored": [s.sum_nats for s in scored],
        "rolled": [s.sum_nats for s in rolled],
        "generated": respondent.usage.generated_tokens,
    }


@given(st.integers(0, 200), st.integers(1, 9))
def test_blocks_are_all_and_apart(n: int, of: int) -> None:
    assert [i for index in range(of) for i in block(n, index, of)] == list(range(n))
    sizes = [len(block(n, index, of)) for index in range(of)]
    assert max(sizes) - min(sizes) <= 1


def one_of_two(folder: str, output: str) -> None:
    """What each process does: process 0 asks, and writes what it gets; in parts of two requests."""
    shards.CHUNK = 2
    assert shards.is_sharded()
    inner = ModelRespondent(load_model(folder, device="cpu"))
    with shards.sharing():
        if shards.rank():
            shards.work(inner)
            return
        with ShardedRespondent(inner) as respondent:
            result = ask(respondent)
            for key, names in (
                ("unnamed", nullcontext()),
                ("error", located(lambda number: f"rows.jsonl:{number + 1}")),
            ):
                try:
                    with names:
                        respondent.answers(["Hi"] * 6 + ["x" * 5000, "Hi"])  # third of process 1, in its second part
                except PosttrainError as error:
                    result[key] = str(error)
    Path(output).write_text(json.dumps(result), encoding="utf-8")


def as_torchrun(words: tuple[str, str], folder: Path) -> None:
    """Two forked processes with the environment that `torchrun` gives; process 0 listens at a port that was free."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    started = []
    for rank in ("0", "1"):
        (folder / rank).mkdir()
        environment = {"WORLD_SIZE": "2", "RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        started.append(Started(one_of_two, *words, folder=folder / rank, environment=environment))
    for process in started:
        code, _, err = process.finish()
        assert code == 0, err[-2000:]


def by_torchrun(words: tuple[str, str], folder: Path) -> None:
    """The same by `torchrun` itself, which imports torch in three processes."""
    script = folder / "ask.py"
    script.write_text("import sys\nfrom tests.inference.test_shards import one_of_two\none_of_two(*sys.argv[1:])\n")
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*start, str(script), *words], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("start", [as_torchrun, pytest.param(by_torchrun, marks=pytest.mark.slow)])
def test_two_processes_answer_as_one(tmp_path: Path, start: Callable[[tuple[str, str], Path], None]) -> None:
    folder = pico("llama", tmp_path)
    one = ask(ModelRespondent(load_model(str(folder), device="cpu")))
    output = tmp_path / "two.json"
    start((str(folder), str(output)), tmp_path)
    two = json.loads(output.read_text())
    assert two["answers"] == one["answers"]
    assert two["told"] == list(range(7))
    assert two["scored"] == pytest.approx(one["scored"], abs=1e-4)
    assert two["rolled"] == pytest.approx(one["rolled"], abs=1e-4)
    said = "has 5004 tokens, the model has 512 positions; shorten it"
    assert (two["unnamed"], two["error"]) == (f"request 7: {said}", f"rows.jsonl:7: {said}")
