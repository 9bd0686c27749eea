from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from posttrain.cli.main import main
from posttrain.cli.options import time_line
from posttrain.cli.run import Watcher, _over_changes
from posttrain.errors import DiskError, Problem
from posttrain.exams.results import CellResult, Line
from posttrain.language import speak, translate
from posttrain.models.load import load_model
from posttrain.models.meter import Doing
from posttrain.models.save import save_model
from posttrain.training.lock import only_one
from posttrain.tuners.lora import LoraConfig, lora
from tests.processes import Started
from tests.studies.conftest import TRAIN, write_study
from tests.talker import talker


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return write_study(tmp_path)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["run", *words])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_what_a_finished_cell_says_is_over_all_its_changes() -> None:
    ends = [{"locality.unrelated": 0.9, "gloss.exact": 0.2}, {"locality.unrelated": 0.5}]  # the exam was taken once
    cell = {"model": "m", "method": "full"}
    lines = [Line(**cell, checkpoint="final", change=f"c{i}", scores=scores) for i, scores in enumerate(ends)]
    passed = Line(**cell, checkpoint="after-1-train", change="c0", scores={"locality.unrelated": 0.0})
    told = _over_changes(CellResult(hash="", lines=(passed, *lines)))
    assert told == pytest.approx({"locality.unrelated": 0.7, "gloss.exact": 0.2})


def test_a_run_ends_with_a_table_and_the_reports_path(capsys: pytest.CaptureFixture[str], study: Path) -> None:
    code, out, err = run(capsys, str(study), "--only", "prompt", "--only", "full")
    assert code == 0, err
    assert "2 changes" in err.splitlines()[0]
    assert "[1/4] " in err
    assert " left)" in err
    assert out.splitlines()[-1] == "report: runs/tiny/report.html"
    told = "weights: no model is kept (keep: none); --set keep=final keeps each cell's final one"
    assert err.splitlines()[1] == told  # before the work, and once
    assert "no model is kept" not in out
    assert re.search(r"learned \d+ %, same pattern \d+ %, unrelated \d+ %", err)
    assert Path("runs/tiny/report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "full" in out

    code, out, err = run(capsys, str(study), "--only", "prompt", "--json", "--quiet")
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert data["planned"] == 8
    assert len(data["cells"]) == 4
    assert data["report"] == "runs/tiny/report.html"


def test_a_misspelt_key_has_its_line_and_a_suggestion(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("study: s\nmodels: pocket:chat\nchangs: x\nmethods:\n- kind: prompt\n", encoding="utf-8")
    code, out, err = run(capsys, str(path))
    assert (code, out) == (2, "")
    assert f"{path}:3: unknown key 'changs'; did you mean 'changes'?" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("sets", "code", "message"),
    [
        (["models=nowhere/at/all"], 3, "nowhere/at/all: no such model folder"),
        (["changes=nothing*.yaml"], 3, "no file matches 'nothing*.yaml'"),
        (["methods.full.optimizer.max_steps=0"], 2, "greater than or equal to 1"),
        (["exams=[{kind: mmlu, path: gone.csv}]"], 3, "study.yaml: exam 'mmlu': "),
        (["reference=nobody.csv"], 3, "nobody.csv: no such file"),
        (["methods.ful.x=0"], 2, "'ful' is neither a name nor a number in the list; known: prompt, full"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_done(
    capsys: pytest.CaptureFixture[str], study: Path, sets: list[str], code: int, message: str
) -> None:
    got, out, err = run(capsys, str(study), *(word for one in sets for word in ("--set", one)))
    assert (got, out) == (code, "")
    assert message in err
    assert not Path("runs").exists()


def test_a_dry_run_does_nothing(capsys: pytest.CaptureFixture[str], study: Path) -> None:
    code, out, err = run(capsys, str(study), "--dry-run")
    assert (code, err) == (0, "")
    assert f"{study.parent.name}" not in out.splitlines()[0] or "| prompt | france | seed 0" in out.splitlines()[0]
    assert "8 cells (1 model x 4 methods x 2 changes x 1 seed) -> runs/tiny" in out
    assert "tokens" in out
    assert re.search(r"time        about .+ to .+ on this machine: a guess", out)
    assert "weights     no model is kept (keep: none); --set keep=final keeps" in out
    assert "replay      about 192 tokens" in out  # three prompts, answers of at most 128 tokens half as long
    code, out, _ = run(capsys, str(study), "--dry-run", "--json", "--changes", "1")
    plan = json.loads(out)
    assert [cell["method"] for cell in plan["cells"]] == ["prompt", "full", "full+self", "lora"]
    assert plan["finished"] == 0
    assert plan["wall_s"] > 0
    assert not Path("runs").exists()


def test_a_model_of_the_hub_is_not_fetched_unasked(capsys: pytest.CaptureFixture[str], study: Path) -> None:
    words = [str(study), "--set", "models=nobody/nothing", "--only", "prompt"]
    for more in ([], ["--dry-run"]):
        code, _, err = run(capsys, *words, *more)
        assert code == 3
        assert "nobody/nothing" in err
        assert "--download allows fetching it" in err


def bad_study(tmp_path: Path, *methods: dict[str, Any]) -> Path:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "capital of Japan?", "completion": "x"}\n', encoding="utf-8")
    return write_study(tmp_path, methods=list(methods))


def test_some_cells_fail(capsys: pytest.CaptureFixture[str], study: Path) -> None:
    path = bad_study(study.parent, {"name": "bad", **TRAIN, "data": "rows.jsonl"}, {"kind": "prompt"})
    code, out, err = run(capsys, str(path))
    assert code == 4
    assert "2 of 4 cells failed" in err
    assert "rows.jsonl:1: this row's question is asked by the exam" in err
    assert "report: runs/tiny/report.html" in out
    assert "Traceback" not in err


def test_all_cells_fail(capsys: pytest.CaptureFixture[str], study: Path) -> None:
    path = bad_study(study.parent, {"name": "bad", **TRAIN, "data": "rows.jsonl"})
    code, _, err = run(capsys, str(path))
    assert code == 1
    assert "every cell failed" in err


LONG = {"name": "long", **TRAIN, "optimizer": {"learning_rate": 1e-5, "max_steps": 100000}}


def start(study: Path, output: Path) -> Started:
    return Started(main, ["run", str(study), "--output", str(output)], folder=study.parent)


def wait_for_cell(output: Path, method: str, process: Started) -> None:
    """Until the method's first cell has begun, and a little longer: it is training then."""
    process.wait_until(lambda: bool(list(output.glob(f"cells/*--{method}--*/env.json"))))
    time.sleep(0.5)


def cells(output: Path) -> dict[str, str]:
    return {p.name.split("--", 1)[1]: (p / "started.txt").read_text() for p in sorted((output / "cells").iterdir())}


def test_killed_in_the_middle_of_training_it_goes_on(capsys: pytest.CaptureFixture[str], study: Path) -> None:
    output = study.parent / "out"
    study = write_study(study.parent, methods=[{"kind": "prompt"}, {"name": "full", **TRAIN}, LONG])
    process = start(study, output)
    wait_for_cell(output, "long", process)
    process.send(signal.SIGKILL)
    code, out, err = process.finish()
    assert code == -signal.SIGKILL, (out, err)
    assert cells(output).keys() == {"prompt--france--s0", "full--france--s0", "long--france--s0"}
    data = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert [c["method"] for c in data["cells"]] == ["prompt", "full"]
    stamps = {p: p.stat().st_mtime_ns for p in (output / "cells").glob("*--s0/samples.jsonl")}
    assert len(stamps) == 2

    code, _, err = run(capsys, str(study), "--output", str(output), "--only", "prompt", "--only", "full")
    assert code == 0
    assert "2 cells were done before and are kept" in err
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    data = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert [(c["method"], c["change"], c["status"]) for c in data["cells"]] == [
        (method, change, "done") for change in ("france", "japan") for method in ("prompt", "full")
    ]


@pytest.mark.slow
def test_killed_between_checkpoints_it_goes_on_from_the_last(capsys: pytest.CaptureFixture[str], study: Path) -> None:
    output = study.parent / "out"
    rows = [json.dumps({"prompt": f"what is {i}?", "completion": "hi"}) for i in range(6)]
    (study.parent / "known.jsonl").write_text("\n".join(rows), encoding="utf-8")
    exams = ["change", {"kind": "self_test", "path": "known.jsonl", "max_new_tokens": 4}]
    method = {**TRAIN, "name": "full", "optimizer": {"learning_rate": 1e-4, "max_steps": 150}}
    study = write_study(study.parent, methods=[method], changes="changes/france.yaml", exams=exams, every=25)
    process = start(study, output)
    process.wait_until(lambda: bool(list(output.glob("cells/*/checkpoints/step-50/examined.json"))))
    process.send(signal.SIGKILL)
    code, out, err = process.finish()
    assert code == -signal.SIGKILL, (out, err)
    (cell,) = (output / "cells").iterdir()
    done = [p for step in (25, 50) for p in cell.glob(f"checkpoints/step-{step}/**/*") if p.is_file()]
    assert len(done) == 6  # of each checkpoint: what was found, the change's samples, the exam's
    stamps = {p: p.stat().st_mtime_ns for p in done}
    stamps |= {p: p.stat().st_mtime_ns for p in (output / "before").rglob("*.jsonl")}

    code, _, err = run(capsys, str(study), "--output", str(output))
    assert code == 0, err
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    data = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert [c["checkpoint"] for c in data["cells"]] == [*(f"step-{n}" for n in range(25, 150, 25)), "final"]
    assert len((cell / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 150


def test_ctrl_c_in_the_middle_of_training(study: Path) -> None:
    output = study.parent / "out"
    study = write_study(study.parent, methods=[{"kind": "prompt"}, LONG])
    process = start(study, output)
    wait_for_cell(output, "long", process)
    process.send(signal.SIGINT)
    code, out, err = process.finish()
    assert code == 130, err
    assert out == ""
    stopped, so_far = err.splitlines()[-2:]
    assert stopped == "stopped; 1 of 4 cells are done; run the same command to go on"
    assert so_far == f"so far: posttrain report {output}"
    assert "Traceback" not in err
    data = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert [c["method"] for c in data["cells"]] == ["prompt"]


def test_a_torn_file_of_a_killed_run_does_not_stop_the_next(capsys: pytest.CaptureFixture[str], study: Path) -> None:
    assert run(capsys, str(study), "--only", "full", "--changes", "1")[0] == 0
    cell = next(Path("runs/tiny/cells").iterdir())
    (cell / "result.json").write_text('{"hash": "x', encoding="utf-8")
    samples = cell / "samples.jsonl"
    samples.write_text(samples.read_text(encoding="utf-8")[:-30], encoding="utf-8")
    Path("runs/tiny/results.json").write_text("{", encoding="utf-8")
    code, _, err = run(capsys, str(study), "--only", "full", "--changes", "1")
    assert code == 0
    assert "[1/1]" in err
    assert len(samples.read_text(encoding="utf-8").splitlines()) == 5


def test_times_in_chinese() -> None:
    speak("zh-TW")
    try:
        assert translate(time_line(63)) == "時間        在這台機器上約 21 秒到 3 分 09 秒：只是算術推估；不含載入"
        assert translate("(2.6 s, 2 h 30 min left)") == "（2.6 秒，剩 2 小時 30 分）"
    finally:
        speak("en")


def test_what_cannot_go_well_is_refused_at_once(
    capsys: pytest.CaptureFixture[str], study: Path, tmp_path: Path
) -> None:
    code, _, err = run(capsys, str(study), "--language", "fr")
    assert (code, err) == (2, "--language: unknown language 'fr'; known: en, zh-TW\n")
    (tmp_path / "hollow").mkdir()
    (tmp_path / "hollow" / "config.json").write_text("{}")
    code, _, err = run(capsys, str(study), "--set", f"models=[{tmp_path / 'hollow'}]", "--dry-run")
    assert code == 3
    assert "no weights: model.safetensors is missing" in err
    assert not Path("runs").exists()


def test_two_methods_of_one_name_have_a_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("study: s\nmodels: x\nchanges: x\nmethods:\n- kind: prompt\n- {kind: prompt}\n", encoding="utf-8")
    code, _, err = run(capsys, str(path))
    assert (code, err) == (2, f"{path}:5: methods: two methods are called prompt; give each a 'name' of its own\n")


def test_where_the_models_are_and_what_finished_cells_took(capsys: pytest.CaptureFixture[str], study: Path) -> None:
    words = [str(study), "--only", "full", "--only", "prompt", "--set", "keep=final"]
    code, out, err = run(capsys, *words, "--changes", "1")
    assert code == 0, err
    nothing_left = run(capsys, *words, "--changes", "1", "--dry-run")[1]
    assert "time        nothing is left to run, unless inputs have changed" in nothing_left
    assert "for the other 0" not in nothing_left
    (line,) = [line for line in out.splitlines() if line.startswith("model:")]
    assert (Path(line.removeprefix("model:").strip()) / "config.json").is_file()
    assert "no model is kept" not in out + err
    code, out, _ = run(capsys, *words, "--dry-run")
    assert "weights     of the end of each cell" in out
    assert re.search(r"finished    2 cells .*\ntime        about .+ for the other 2, by what these took", out)
    code, out, _ = run(capsys, *words, "--dry-run", "--json")
    assert json.loads(out)["left_s"] == pytest.approx(
        sum(
            json.loads(p.read_text())["lines"][0]["cost"]["wall_s"]
            for p in Path("runs/tiny/cells").glob("*/result.json")
        )
    )


def test_a_study_that_makes_no_model_says_nothing_of_weights(capsys: pytest.CaptureFixture[str], study: Path) -> None:
    code, out, err = run(capsys, str(study), "--only", "prompt", "--changes", "1")
    assert code == 0
    assert "no model is kept" not in out + err


def test_long_work_within_a_cell_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watcher = Watcher()
    work = Doing("answering prompts for replay", 12, 328, "prompts", 30.0, 6300, 790.0)
    watcher.doing(work._replace(done=0, tokens=0, left_s=None))  # of a small model, done in no time: no line
    for _ in range(25):
        now[0] += 1.0
        watcher.doing(work)
        watcher.step({"step": 5, "steps": 10, "loss_nats": 1.5, "tokens_per_s": 2048.4, "wall_s": 20.0})
    assert capsys.readouterr().err.splitlines() == [str(work)] * 2
    now[0] += 10.0
    watcher.step({"step": 5, "steps": 10, "loss_nats": 1.5, "tokens_per_s": 2048.4, "wall_s": 20.0})
    assert capsys.readouterr().err == ": step 5/10, loss 1.500, 2,048 tokens/s, 20 s left\n"


def test_models_that_are_not_there_have_their_lines_and_what_was_meant(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """All of them at once."""
    change = tmp_path / "c.yaml"
    change.write_text('name: c\ntarget: [{prompt: "t?", answer: "x"}]\n', encoding="utf-8")
    path = tmp_path / "s.yaml"
    models = "models:\n- pocket:caht\n- pocket:chat\n- ./nowhere\n- pocket:xyz\n"
    path.write_text(f"study: s\n{models}changes: c.yaml\nmethods: [{{kind: prompt}}]\n", encoding="utf-8")
    code, out, err = run(capsys, str(path))
    assert (code, out) == (3, "")
    first, second, third = err.splitlines()
    assert first == f"{path}:3: pocket:caht: there is no such model in the box; did you mean 'pocket:chat'?"
    assert second.startswith(f"{path}:5: ./nowhere: no such model folder; ")
    assert third == f"{path}:6: pocket:xyz: there is no such model in the box; known: pocket:base, pocket:chat"
    path.write_text("study: s\nmodels: pocket:bose\nchanges: c.yaml\nmethods: [{kind: prompt}]\n", encoding="utf-8")
    assert run(capsys, str(path))[2].startswith(f"{path}:2: pocket:bose: there is no such model in the box; did you")
    blend = "{kind: blend, inputs: {toward: a-model-of-no-one}}"
    path.write_text(f"study: s\nmodels: pocket:chat\nchanges: c.yaml\nmethods:\n- {blend}\n", encoding="utf-8")
    code, out, err = run(capsys, str(path))
    assert (code, out) == (3, "")
    assert err.startswith(f"{path}:5: a-model-of-no-one: neither a folder here nor in the local hub cache")


def test_a_taken_folder_is_refused_before_the_exams_are_read(
    capsys: pytest.CaptureFixture[str], study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(*_: object, **__: object) -> None:
        raise AssertionError("the exams were prepared")

    monkeypatch.setattr("posttrain.studies.exams.prepare_exams", too_late)
    with only_one(Path("runs/tiny")):
        code, out, err = run(capsys, str(study))
    assert (code, out) == (1, "")
    assert err == "runs/tiny: another run is working in this folder; wait for it, or choose another --output\n"
    monkeypatch.undo()
    with only_one(study.parent / "taken"):  # looking is allowed
        assert run(capsys, str(study), "--dry-run", "--output", str(study.parent / "taken"))[0] == 0


@pytest.mark.parametrize("json_wanted", [False, True])
def test_a_disk_that_is_full_at_the_end_hides_no_result(
    capsys: pytest.CaptureFixture[str], study: Path, monkeypatch: pytest.MonkeyPatch, json_wanted: bool
) -> None:
    def full(*_: object, **__: object) -> Path:
        raise DiskError(Problem("runs/tiny/report.html", "cannot be written: no space left on device"))

    monkeypatch.setattr("posttrain.reports.html.write_report", full)
    code, out, err = run(capsys, str(study), "--only", "prompt", *(["--json"] if json_wanted else []))
    assert code == DiskError.exit_code
    assert "report.html: cannot be written" in err
    if json_wanted:
        data = json.loads(out)
        assert (len(data["cells"]), data["report"]) == (2, None)
    else:
        assert "tiny: per cent over 2 changes" in out
        assert re.search(r"^prompt +\d", out, re.MULTILINE)


def test_the_noise_floor_is_no_method(capsys: pytest.CaptureFixture[str], study: Path) -> None:
    words = [str(study), "--set", "noise_floor=bf16", "--only", "prompt", "--changes", "1", "--dry-run"]
    out = run(capsys, *words)[1]
    assert "2 cells (1 model x 1 method x 1 change x 1 seed, and the noise floor of each change) -> runs/tiny" in out


def test_bad_prompts_of_replay_are_named_in_a_dry_run(capsys: pytest.CaptureFixture[str], study: Path) -> None:
    """Of every file, each once; an adapter's too, and those that a cell is not asked are left alone."""
    prompts, other = study.parent / "asked.jsonl", study.parent / "japan.jsonl"
    prompts.write_text('{"prompt": "Hi"}\n{"prompt": "Who <|end|>?"}\n', encoding="utf-8")
    other.write_text(json.dumps({"prompt": "word " * 600}) + "\n", encoding="utf-8")
    (study.parent / "france.jsonl").write_text('{"prompt": "Hi"}\n', encoding="utf-8")
    replays = [{"kind": "self", "prompts": path} for path in ("asked.jsonl", "{change}.jsonl")]
    methods = [{"name": f"m{i}", **TRAIN, "replay": replay} for i, replay in enumerate(replays)]
    write_study(study.parent, methods=methods, seeds=[0, 1])
    code, out, err = run(capsys, str(study), "--dry-run")
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        f"{prompts}:2: turn 0 (user) holds the control token '<|end|>'; remove it; the chat template adds control "
        "tokens itself",
        f"{other}:1: has 2404 tokens, the model has 512 positions; shorten it",
    ]
    assert run(capsys, str(study), "--dry-run", "--only", "m1", "--changes", "1")[0] == 0
    loaded = load_model(str(talker()), device="cpu")
    save_model(lora(loaded.model, LoraConfig(rank=2)), loaded.tokenizer, study.parent / "adapter")
    write_study(study.parent, models="adapter", methods=methods)
    code, _, err = run(capsys, str(study), "--dry-run")
    assert code == 1
    assert f"{prompts}:2: turn 0 (user) holds the control token" in err
    code, _, err = run(capsys, str(study), "--only", "m0", "--changes", "1")  # and where it is run
    assert code == 1
    assert f"{prompts}:2: turn 0 (user) holds the control token '<|end|>'" in err


def test_rows_that_are_too_long_are_named_in_a_dry_run(capsys: pytest.CaptureFixture[str], study: Path) -> None:
    """As in the run: by their place and method, with a mend that a study's method has."""
    (study.parent / "more.jsonl").write_text('{"prompt": "Hi", "completion": "Hello"}\n', encoding="utf-8")
    france, more = (study.parent / name for name in ("changes/france.yaml", "more.jsonl"))
    short = {"name": "short", **TRAIN, "max_length": 4, "data": "more.jsonl"}
    write_study(study.parent, methods=[short, {"name": "full", **TRAIN}])
    for words in (["--dry-run"], []):
        code, out, err = run(capsys, str(study), "--only", "short", "--changes", "1", *words)
        assert code == 1
        if words:
            assert out == ""
        told = [line for line in err.splitlines() if "max_length" in line]
        assert any(f"{france}: target 1: " in line for line in told)
        assert any(f"{more}:1: " in line for line in told)
        for line in told:
            assert re.search(r": \d+ tokens, more than max_length 4; raise max_length( \(\d|$)", line)
        assert "over_long" not in err
        assert "method 'short': 2 of 2 rows cannot be used" in err or not words
    assert run(capsys, str(study), "--dry-run", "--only", "full")[0] == 0


def test_a_study_names_no_option_that_it_lacks(capsys: pytest.CaptureFixture[str], study: Path) -> None:
    """`--on-bad-row skip` is one of `posttrain train`."""
    (study.parent / "more.jsonl").write_text(
        '{"prompt": "Hi", "completion": "Hello"}\n{"promt": "x"}\n', encoding="utf-8"
    )
    write_study(study.parent, methods=[{"name": "full", **TRAIN, "data": "more.jsonl"}])
    code, _, err = run(capsys, str(study), "--dry-run")
    assert code == 1
    assert f"{study.parent / 'more.jsonl'}:2: " in err
    assert "1 of 2 rows cannot be used" in err
    assert "--on-bad-row" not in err


def test_a_precision_that_an_adapter_is_not_saved_in_is_said(capsys: pytest.CaptureFixture[str], study: Path) -> None:
    told = "method 'lora': save_dtype: bfloat16 is for whole models: what lora leaves is an adapter, saved in float32"
    sets = [f"methods.{name}.save_dtype=bfloat16" for name in ("full", "lora")]
    words = [str(study), *(word for one in sets for word in ("--set", one)), "--only", "lora", "--only", "full"]
    code, out, _ = run(capsys, *words, "--changes", "1", "--dry-run")
    assert code == 0
    assert [line.strip() for line in out.splitlines() if "save_dtype" in line] == [told]
    assert told in run(capsys, *words, "--changes", "1")[2].splitlines()


def test_fewer_prompts_of_replay_than_were_asked_for_are_said(capsys: pytest.CaptureFixture[str], study: Path) -> None:
    words = [str(study), "--set", "methods.full+self.replay.n=60", "--only", "full+self", "--changes", "1"]
    told = "replay: 60 were asked for (n), 3 are there"
    code, out, _ = run(capsys, *words, "--dry-run")
    assert code == 0
    assert [line.strip() for line in out.splitlines() if "(n)" in line] == [f"method 'full+self': {told}"]
    assert told in run(capsys, *words)[2].splitlines()


def test_a_wrong_word_after_set_is_said_once_and_not_of_the_file(
    capsys: pytest.CaptureFixture[str], study: Path
) -> None:
    code, _, err = run(capsys, str(study), "--set", "report_to=tensorbord")
    assert (code, err) == (2, "--set: report_to: unknown tracker 'tensorbord'; did you mean 'tensorboard'?\n")


def test_a_file_that_a_method_reads_and_is_not_there_has_its_line(
    capsys: pytest.CaptureFixture[str], study: Path
) -> None:
    lines = [
        f"study: tiny\nmodels: '{talker()}'\nchanges: changes/*.yaml\nmethods:",
        "- kind: train\n  replay:\n    kind: self\n    prompts: promts.jsonl",
        "- {name: other, kind: train, data: 'rows/{change}.jsonl'}",
    ]
    study.write_text("\n".join(lines), encoding="utf-8")
    code, _, err = run(capsys, str(study))
    assert code == 3
    place = Path("rows").absolute()
    assert err.splitlines() == [
        f"{study}:8: method 'train' reads promts.jsonl, which is not there; did you mean '{study.parent}/prompts.jsonl'?",
        *(
            f"{study}:9: method 'other' reads rows/{name}.jsonl, which is not there; looked in {place}"
            for name in ("france", "japan")
        ),
    ]
    code, _, err = run(capsys, str(study), "--only", "train", "--set", "methods.0.replay.prompts=prmpts.jsonl")
    assert err.splitlines()[0].startswith("--set: method 'train' reads prmpts.jsonl, which is not there; did you mean")


def test_a_folder_is_no_study(capsys: pytest.CaptureFixture[str], study: Path) -> None:
    code, _, err = run(capsys, str(study.parent))
    assert (code, err) == (2, f"{study.parent}: is a folder, a file is expected; name a file in it\n")
