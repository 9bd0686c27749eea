"""Requests shared out over processes: the results of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.inference.protocol import Plain
from posttrain.inference.respondents import ModelRespondent
from posttrain.inference.shards import ShardedRespondent, block
from posttrain.models.load import load_model
from tests.pico import pico

ROOT = Path(__file__).parents[2]

SCRIPT = """
import json, sys
from contextlib import nullcontext
import posttrain.inference.shards as shards
from posttrain.inference.locations import located
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import load_model
from tests.inference.test_shards import ask

shards.CHUNK = 2
folder, output = sys.argv[1:]
assert shards.is_sharded()
inner = ModelRespondent(load_model(folder, device="cpu"))
with shards.sharing():
    if shards.rank():
        shards.work(inner)
        sys.exit()
    with shards.ShardedRespondent(inner) as respondent:
        result = ask(respondent)
        for key, names in (("unnamed", nullcontext()), ("error", located(lambda number: f"rows.jsonl:{number + 1}"))):
            try:
                with names:
                    respondent.answers(["Hi"] * 6 + ["x" * 5000, "Hi"])  # the third of process 1, in its second part
            except Exception as error:
                result[key] = str(error)
open(output, "w").write(json.dumps(result))
"""


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


def test_two_processes_answer_as_one(tmp_path: Path) -> None:
    folder = pico("llama", tmp_path)
    one = ask(ModelRespondent(load_model(str(folder), device="cpu")))
    script, output = tmp_path / "ask.py", tmp_path / "two.json"
    script.write_text(SCRIPT, encoding="utf-8")
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*start, str(script), str(folder), str(output)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    two = json.loads(output.read_text())
    assert two["answers"] == one["answers"]
    assert two["told"] == list(range(7))
    assert two["scored"] == pytest.approx(one["scored"], abs=1e-4)
    assert two["rolled"] == pytest.approx(one["rolled"], abs=1e-4)
    said = "has 5004 tokens, the model has 512 positions; shorten it"
    assert (two["unnamed"], two["error"]) == (f"request 7: {said}", f"rows.jsonl:7: {said}")
