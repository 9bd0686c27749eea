"""`posttrain merge`: expressions, methods, recipes, dry runs, JSON, and what is wrong with the words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.cli.main import main
from posttrain.merging import engine
from tests.merging.folders import SHAPES, contents, drawn, folder, weights

UP = "model.layers.0.mlp.up_proj.weight"
MODELS = ("base=base", "math=math", "code=code")
RECIPE = """\
models:
  base: base
  math: math
  code: code
method: {kind: ties, density: 0.5, weight: {math: 1.0, code: 0.5}}
dtype: bfloat16
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three models."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "math", "code")):
        folder(tmp_path / name, seed)
    return tmp_path


def merge(*words: str) -> int:
    return main(["merge", *words])


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = merge(*words)
    out = capsys.readouterr()
    return code, out.out, out.err


def test_an_expression(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = told(capsys, "base + 0.8*(math - base)", *MODELS[:2], "-o", "merged")
    assert (code, out) == (0, "merged\n")
    assert err.splitlines()[-3:] == [
        "merged: base + 0.8*(math - base) = 0.2 base + 0.8 math",
        "try it: posttrain chat merged",
        "whether it still works: posttrain exam merged --change FILE",
    ]
    found = weights(Path("merged"))
    for name in SHAPES:
        torch.testing.assert_close(found[name], 0.2 * drawn(0)[name] + 0.8 * drawn(1)[name], atol=1e-6, rtol=1e-6)
    noted = json.loads(Path("merged/merge.json").read_text(encoding="utf-8"))
    assert noted["expression"] == "base + 0.8*(math - base)"
    assert {name: one["name"] for name, one in noted["models"].items()} == {"base": "base", "math": "math"}


def test_names_in_chinese(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "(底 + 數學)/2", "底=base", "數學=math", "-o", "合併")[0] == 0
    assert "數學" in Path("合併/README.md").read_text(encoding="utf-8")


def test_a_method(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("-m", "task_arithmetic", *MODELS, "--set", "method.weight={math: 0.5, code: 2}", "--set", "dtype=bfloat16")
    assert told(capsys, *words, "-o", "merged")[0] == 0
    found = weights(Path("merged"))[UP]
    base, math, code = (drawn(seed)[UP] for seed in range(3))
    torch.testing.assert_close(found, (base + 0.5 * (math - base) + 2 * (code - base)).bfloat16(), atol=1e-2, rtol=1e-2)
    assert found.dtype == torch.bfloat16
    assert told(capsys, "-m", "task_arithmetic", *MODELS, "--base", "code", "-o", "other")[0] == 0
    assert "`code` is the base" in Path("other/README.md").read_text(encoding="utf-8")
    assert told(capsys, "-m", "linear", *MODELS, "-o", "mean")[0] == 0  # one that is called base is none there
    torch.testing.assert_close(weights(Path("mean"))[UP], (base + math + code) / 3)


def test_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    Path("skills.yaml").write_text(RECIPE, encoding="utf-8")
    code, out, err = told(capsys, "skills.yaml", "-o", "merged")
    assert (code, out) == (0, "merged\n")
    assert "merged: ties\n" in err
    assert weights(Path("merged"))[UP].dtype == torch.bfloat16
    noted = json.loads(Path("merged/merge.json").read_text(encoding="utf-8"))
    assert noted["method"]["kind"] == "ties"
    assert noted["method"]["density"] == 0.5
    other = ("math=code", "--set", "method.density=1", "--set", "dtype=float32", "--set", "shard_gb=1e-6")
    assert told(capsys, "skills.yaml", *other, "-o", "other")[0] == 0
    assert len(list(Path("other").glob("*.safetensors"))) > 3


def test_a_dry_run_says_it_and_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(here)
    code, out, _ = told(capsys, "0.5*base + 0.5*math", *MODELS[:2], "--dry-run")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert code == 0
    assert list(lines) == ["merge", "tensors", "reads", "writes", "memory", "time"]
    assert lines["merge"] == "0.5*base + 0.5*math = 0.5 base + 0.5 math"
    assert lines["tensors"] == "7"
    assert lines["writes"].endswith("MiB in 1 file")
    code, out, _ = told(capsys, "-m", "ties", *MODELS, "--dry-run", "--json", "--set", "shard_gb=1e-6")
    found = json.loads(out)
    numbers = sum(tensor.numel() for tensor in drawn().values())
    assert (found["what"], found["tensors"], found["reads_bytes"]) == ("ties", 7, 12 * numbers)
    assert found["writes_bytes"] > 4 * numbers
    assert len(found["files"]) > 3
    assert 0 < found["about_s"] < 60
    assert 0 <= found["memory_mib"] < 1000
    assert contents(here) == before


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(capsys, "base", "base=base", "-o", "merged", "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["output"], found["what"], found["files"]) == ("merged", "base = 1 base", ["model.safetensors"])
    code, out, _ = told(capsys, "base + math", *MODELS, "-o", "merged", "--json")
    assert code == 2
    assert json.loads(out)["problems"][0]["cause"].startswith("the weights sum to 2 and not to 1")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["base + mth", *MODELS], 2, "expression:8: unknown name 'mth' in 'base + mth'; did you mean 'math'?"),
        (["base - math", *MODELS], 2, "expression: the weights sum to 0 and not to 1"),
        (["base + math"], 2, "models"),
        ([*MODELS], 2, 'EXPRESSION: it is missing; write what shall be computed: "base + 0.8*(math - base)"; or name'),
        (["base", "base"], 2, "base: is no NAME=MODEL; say what a name is: math=runs/math/model"),
        (["base", "=base"], 2, "=base: is no NAME=MODEL"),
        (["base", "base="], 2, "base=: is no NAME=MODEL"),
        (["base", "base=base", "base=math"], 2, "'base' is given twice"),
        (["base", "a-b=base"], 2, "'a-b' is no name"),
        (["base", "base=nowhere"], 3, "nowhere"),
        (["base", "base=base", "--base", "base"], 2, "an expression needs none"),
        (["base + math", "-m", "linear", *MODELS], 2, "base + math: is no NAME=MODEL"),
        (["-m", "liner", *MODELS], 2, "did you mean 'linear'"),
        (["-m", "ties", "math=math", "code=code"], 2, "ties: it needs the model that all others were made of"),
        (["-m", "ties", *MODELS, "--set", "method.densty=1"], 2, "densty"),
        (["-m", "ties", *MODELS, "--set", "method.weight={x: 1}"], 2, "ties: weight: unknown model 'x'"),
        (["-m", "ties", *MODELS, "--set", "dtype=int4"], 2, "dtype"),
        (["-m", "ties", *MODELS, "--set", "shard_gb=0"], 2, "shard_gb"),
        (["-m", "ties", *MODELS, "--set", "template=x"], 2, "template: unknown name 'x'; known: base, math, code"),
        (["none.yaml"], 3, "none.yaml"),
        (["bad.yaml"], 2, "bad.yaml:5: method.density"),
        (["bad.yaml", "-m", "ties"], 2, "--method: the recipe says it"),
        (["bad.yaml", "--base", "math"], 2, "--base: the recipe says it"),
        (["sum.yaml"], 2, "sum.yaml:3: expression:8: unknown name 'mth' in 'base + mth'; did you mean 'math'?"),
        (["sum.yaml", "--set", "expression=base + z"], 2, "expression:8: unknown name 'z'"),
        (["both.yaml"], 2, "give an expression or a method, one of the two"),
        (["base", "base=base", "--threads", "0"], 2, "--threads"),
    ],
)
def test_what_is_wrong_has_its_exit_code(
    words: list[str], code: int, said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.yaml").write_text(RECIPE.replace("0.5, weight", "x, weight"), encoding="utf-8")
    Path("sum.yaml").write_text("models: {base: base, math: math}\n\nexpression: base + mth\n", encoding="utf-8")
    Path("both.yaml").write_text(RECIPE + "expression: base\n", encoding="utf-8")
    before = contents(here)
    found, out, err = told(capsys, *words, "-o", "merged")
    assert (found, out) == (code, "")
    assert said in err
    assert contents(here) == before


def test_an_output_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = told(capsys, "base", "base=base")
    assert code == 2
    assert "--output: no folder for the merged model; say it: --output models/merged" in err


@pytest.mark.usefixtures("loud_again")
def test_what_was_decided_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    folder(Path("more"), drawn(1) | {"extra": torch.ones(1)})
    code, _, err = told(capsys, "0.5*base + 0.5*more", "base=base", "more=more", "-o", "merged")
    assert code == 0
    assert err.startswith("more has extra besides: left out\n")
    assert told(capsys, "0.5*base + 0.5*more", "base=base", "more=more", "-o", "quiet", "--quiet")[1:] == (
        "quiet\n",
        "",
    )


def test_stopped_and_gone_on_with(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("-m", "ties", *MODELS, "-o", "merged", "--threads", "1")
    seen: list[str] = []
    job = engine.Work.job

    def stopped(self: Any, one: Any) -> None:
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(one.name)
        job(self, one)

    with monkeypatch.context() as patch:
        patch.setattr(engine.Work, "job", stopped)
        code, out, err = told(capsys, *words)
    assert (code, out) == (130, "")
    assert "nothing of it is kept" not in err
    assert "the same command" in err
    assert not Path("merged").exists()
    code, out, err = told(capsys, *words)
    assert (code, out) == (0, "merged\n")
    assert "going on with a merge that was stopped\n" in err


def test_merging_imports_no_transformers(here: Path) -> None:
    code = (
        "import sys; from posttrain.cli.main import main; "
        "assert main(['merge', '-m', 'ties', 'base=base', 'math=math', '-o', 'merged']) == 0; "
        "assert main(['merge', 'base', 'base=base', '--dry-run']) == 0; "
        "found = {'transformers', 'peft', 'datasets', 'pandas', 'accelerate'} & set(sys.modules); assert not found, found"
    )
    ours = {**os.environ, "PYTHONPATH": str(Path(engine.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, env=ours)
    assert done.returncode == 0, done.stderr[-500:]
