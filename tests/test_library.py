"""`import posttrain as pt`: what it imports, what its functions give, and that nothing is changed under the caller."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import posttrain as pt
from posttrain.data.records import Message
from posttrain.errors import ConfigError, DataError, Interrupted, MissingError
from posttrain.inference.protocol import Plain
from posttrain.models.fingerprint import weights_fingerprint
from tests.talker import talker

CHANGE = """\
name: france
target: [{prompt: "capital of France?", answer: "Tokyo"}]
locality:
  same_pattern: ["capital of Japan?"]
  unrelated: ["who wrote Hamlet?"]
"""
FAST: dict[str, Any] = {"learning_rate": 3e-3, "max_steps": 6}


@pytest.fixture(scope="module")
def base() -> pt.Model:
    return pt.load(str(talker()), device="cpu")


@pytest.fixture
def change(tmp_path: Path) -> Path:
    path = tmp_path / "france.yaml"
    path.write_text(CHANGE, encoding="utf-8")
    return path


def test_importing_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, posttrain; print([m for m in ('torch', 'transformers', 'pydantic', 'pandas') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_name_is_there_and_no_other() -> None:
    for name in pt.__all__:
        assert getattr(pt, name).__doc__
    assert set(pt.__all__) <= set(dir(pt))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pt.nothing


@pytest.mark.parametrize("tuner", ["full", {"kind": "lora", "rank": 2}])
def test_training_gives_another_model_and_leaves_the_base(base: pt.Model, change: Path, tuner: Any) -> None:
    before = weights_fingerprint(base.model)
    steps: list[Any] = []
    new = pt.train(base, change=change, tuner=tuner, on_step=steps.append, name="taught", **FAST)
    assert new.ask("capital of France?") == ["Tokyo"]
    assert base.ask("capital of France?") == ["Paris"]
    assert weights_fingerprint(base.model) == before
    assert len(steps) == len(new.history) == new.cost["steps"] == 6
    assert (new.name, new.folder) == ("taught", None)
    assert "parameters" in repr(new)


def test_rows_are_a_file_or_mappings(base: pt.Model, tmp_path: Path) -> None:
    rows = [{"prompt": "capital of France?", "completion": "Rome"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]), encoding="utf-8")
    made = [pt.train(base, given, **FAST) for given in (rows, tmp_path / "rows.jsonl")]
    assert made[0].ask("capital of France?") == ["Rome"]
    assert weights_fingerprint(made[0].model) == weights_fingerprint(made[1].model)


def test_a_kept_training_is_not_trained_again_and_loads(base: pt.Model, change: Path, tmp_path: Path) -> None:
    steps: list[Any] = []
    new = pt.train(base, change=change, output=tmp_path / "out", **FAST)
    assert new.folder is not None
    again = pt.train(base, change=change, output=tmp_path / "out", on_step=steps.append, **FAST)
    assert steps == []
    assert weights_fingerprint(again.model) == weights_fingerprint(new.model)
    assert pt.load(new.folder, device="cpu").ask("capital of France?") == ["Tokyo"]
    saved = again.save(tmp_path / "saved")
    assert pt.load(saved, device="cpu").ask("capital of France?") == ["Tokyo"]


def test_only_the_same_call_gets_a_finished_training(base: pt.Model, change: Path, tmp_path: Path) -> None:
    def rows(answer: str) -> list[dict[str, str]]:
        return [{"prompt": "capital of France?", "completion": answer}]

    def train(before: pt.Model = base, answer: str = "Rome", **other: Any) -> str:
        return pt.train(before, rows(answer), output=tmp_path / "out", **{**FAST, **other}).ask("capital of France?")[0]

    assert [train(), train()] == ["Rome", "Rome"]
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows("Rome")[0]) + "\n", encoding="utf-8")
    pt.train(base, tmp_path / "rows.jsonl", output=tmp_path / "out", **FAST)  # the same rows
    changed = pt.train(base, rows("Oslo"), **FAST)
    others: list[dict[str, Any]] = [
        *({"answer": "Tokyo"}, {"tuner": {"kind": "lora", "rank": 2}}, {"before": changed}, {"change": change}),
        *({"max_steps": 7}, {"seed": 1}),
    ]
    for other in others:
        with pytest.raises(
            ConfigError, match=r"training: was made by another configuration and is not resumed; .* with restart=True$"
        ):
            train(**other)
    assert train() == "Rome"
    assert train(answer="Tokyo", restart=True) == "Tokyo"
    assert train(answer="Tokyo") == "Tokyo"
    with pytest.raises(ConfigError, match="was made by another configuration"):
        train()


@pytest.mark.filterwarnings("ignore")
def test_a_killed_training_goes_on_with_the_same_call_only(base: pt.Model, change: Path, tmp_path: Path) -> None:
    steps: list[int] = []

    def train(**other: Any) -> pt.Model:
        rows = [{"prompt": "capital of France?", "completion": "Rome"}]
        return pt.train(base, rows, output=tmp_path / "out", on_step=see, **{**FAST, **other})

    def see(entry: Any) -> None:
        steps.append(entry["step"])
        if steps == [1, 2, 3]:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train()
    with pytest.raises(ConfigError, match="made by another configuration"):
        train(tuner={"kind": "lora", "rank": 2})
    whole = pt.train(base, [{"prompt": "capital of France?", "completion": "Rome"}], **FAST)
    assert weights_fingerprint(train().model) == weights_fingerprint(whole.model)
    assert steps == [1, 2, 3, 4, 5, 6]
    train()
    assert len(steps) == 6


def test_a_restart_that_fails_leaves_the_finished_training_to_its_own_call(
    base: pt.Model, change: Path, tmp_path: Path
) -> None:
    def fail(entry: Any) -> None:
        raise MemoryError

    pt.train(base, change=change, output=tmp_path / "out", **FAST)
    with pytest.raises(MemoryError):
        pt.train(base, change=change, output=tmp_path / "out", seed=1, restart=True, on_step=fail, **FAST)
    with pytest.raises(ConfigError, match="made by another configuration"):
        pt.train(base, change=change, output=tmp_path / "out", seed=1, **FAST)
    again = pt.train(base, change=change, output=tmp_path / "out", on_step=fail, **FAST)
    assert again.ask("capital of France?") == ["Tokyo"]


def test_arguments_that_do_not_fit_are_named(base: pt.Model, change: Path, tmp_path: Path) -> None:
    """Rather than read otherwise than they were meant, or an exception from somewhere inside."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    row = {"prompt": "capital of France?", "completion": "Rome"}
    trainings: list[tuple[dict[str, Any], str]] = [
        *(({key: "x"}, f"unknown key '{key}'; that is for studies") for key in ("start", "merge_back", "stages")),
        ({"restart": "no"}, "pt.train: restart: true or false is expected, got 'no'"),
        ({"data": 5}, "pt.train: data: its type must be str | Path | Iterable[Mapping[str, Any]] | None, got 5"),
        ({"change": 5}, "pt.train: change: its type must be str | Path | Change"),
        ({"optimizer": "muon"}, "pt.train: optimizer: a mapping (key: value) is expected, got 'muon'"),
        ({"name": 5}, "pt.train: name: text is expected, got 5"),
        ({"seed": -1}, "pt.train: seed: input should be greater than or equal to 0, got -1"),
        ({"output": tmp_path / "file"}, "file cannot be a folder: File exists"),
        ({"data": [row, {**row, "completion": {1}}]}, "data:2: cannot be written as JSON: Object of type set"),
        ({"data": [{**row, "completion": tmp_path}]}, "data:1: cannot be written as JSON: Object of type PosixPath"),
        ({"data": [{**row, "completion": "\ud800"}]}, "data:1: cannot be written as JSON: 'utf-8' codec"),
    ]
    for given, said in trainings:
        with pytest.raises((ConfigError, DataError), match=re.escape(said)):
            pt.train(base, **{"change": change, **FAST, **given})
    exams: list[tuple[dict[str, Any], str]] = [
        ({"model": 3}, "model: its type must be "),
        ({"limit": True}, "pt.exam: limit: a whole number is expected, got True"),
        ({"limit": "3"}, "pt.exam: limit: a whole number is expected, got '3'"),
        ({"restart": "no"}, "pt.exam: restart: true or false is expected, got 'no'"),
        ({"exams": 5}, "pt.exam: exams: its type must be str | Mapping[str, Any]"),
        ({"output": 5}, "pt.exam: output: its type must be str | Path | None, got 5"),
        ({"output": tmp_path / "file"}, "file cannot be a folder: File exists"),
    ]
    for given, said in exams:
        with pytest.raises(ConfigError, match=re.escape(said)):
            pt.exam(**{"model": base, "before": base, "change": change, **given})
    compared: list[tuple[dict[str, Any], str]] = [
        *(
            ({"models": wrong}, "pt.compare: models: its type must be Mapping[")
            for wrong in (5, iter([base]), {1: base}, "pocket:base")
        ),
        ({"before": None}, "before: its type must be "),
        ({"lmit": 3}, "lmit: unexpected keyword argument"),
    ]
    for given, said in compared:
        with pytest.raises(ConfigError, match=re.escape(said)):
            pt.compare(**{"models": [base], "before": base, "change": change, **given})
    with pytest.raises(DataError, match="3: no answers to this exam"):
        pt.exam(base, before=base, change=change, noise_floor="none").samples(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^pt\.chat: models: its type must be .*Model.*, got 5$"):
        pt.chat(base, 5)  # type: ignore[arg-type]
    rows = iter([row])  # any iterable of mappings will do
    assert pt.train(base, rows, name="../other", **FAST).ask("capital of France?") == ["Rome"]


def test_what_is_wrong_is_said(base: pt.Model, change: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'learning_rate'"):
        pt.train(base, change=change, learning_rte=1e-3)
    with pytest.raises(ConfigError, match="'max_steps' is given twice, also in 'optimizer'"):
        pt.train(base, change=change, max_steps=2, optimizer={"max_steps": 3})
    with pytest.raises(ConfigError, match="nothing to learn"):
        pt.train(base)
    with pytest.raises(DataError):
        pt.train(base, [{"prompt": "only"}], **FAST)
    with pytest.raises(ConfigError, match="unknown exam"):
        pt.exam(base, exams="refusals")
    with pytest.raises(ConfigError, match="no adapter"):
        pt.exam(base, change=change)
    with pytest.raises(ConfigError, match="nothing to examine"):
        pt.exam(base)
    with pytest.raises(ConfigError, match="seed"):
        pt.train(base, change=change, seed="x", **FAST)  # type: ignore[arg-type]
    for options in ({"limit": -1}, {"match": "sys"}, {"noise_floor": "bf17"}, {"max_new_tokens": 0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            pt.exam(base, before=base, change=change, **options)
    with pytest.raises(ConfigError, match="temperature"):
        pt.chat(base, temperature=-1.0)
    with pytest.raises(ConfigError, match=r"^pt\.Chat\.say: words: text is expected, got None$"):
        pt.chat(base).say(None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"prompts: its type must be .*, got \['capital of France\?'"):
        base.ask(["capital of France?", "capital of Japan?"])  # type: ignore[arg-type]
    assert base.ask("capital of France?", (Message("user", "capital of France?"),)) == ["Paris", "Paris"]
    assert len(base.ask(Plain("capital of"))) == 1
    with pytest.raises(ConfigError, match="no device 'gpu'"):
        pt.load(str(talker()), device="gpu")
    with pytest.raises(MissingError, match="'cuda:99' is not here"):
        pt.load(str(talker()), device="cuda:99")


def test_errors_speak_of_arguments_and_rows_not_of_options_and_files(
    base: pt.Model, change: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"(?m)^data:1: .*\n^data:2: 'completion' must be a string"):
        pt.train(base, [{"prompt": "only"}, {"prompt": "one", "completion": 3}], **FAST)
    with pytest.raises(MissingError, match="; download=True allows fetching it"):
        pt.load("someone/no-such-model")
    with pytest.raises(ConfigError, match=r"^before: .*; add before MODEL$"):
        pt.exam(base, change=change)
    pt.exam(base, before=base, change=change, noise_floor="none", output=tmp_path / "out")
    other = pt.train(base, change=change, **FAST)
    with pytest.raises(ConfigError, match=r"give another output, or restart=True$") as caught:
        pt.exam(other, before=base, change=change, noise_floor="none", output=tmp_path / "out")
    assert caught.value.problems[0].mend == "give another output, or restart=True"


def test_a_change_may_be_a_mapping(base: pt.Model, change: Path) -> None:
    keys = {"name": "france", "target": [{"prompt": "capital of France?", "answer": "Paris"}]}
    assert pt.exam(base, before=base, change=keys, noise_floor="none").scores["reliability"] == 1.0
    with pytest.raises(ConfigError, match="did you mean 'target'"):
        pt.exam(base, before=base, change={"name": "france", "targt": []})


def test_an_exam_shows_itself(base: pt.Model, change: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = pt.train(base, change=change, tuner={"kind": "lora", "rank": 2}, name="taught", **FAST)
    found = pt.exam(new, before=base, change=change, exams={"kind": "refusal", "limit": 4})
    assert found.scores["reliability"] == 1.0
    assert "refusal.right" in found.scores
    assert "France" not in found.table()
    assert "learned" in capsys.readouterr().out or found.results.summary
    frame = found.to_pandas()
    assert set(frame.columns) == {
        "model",
        "method",
        "change",
        "seed",
        "checkpoint",
        "score",
        "value",
        "low",
        "high",
        "n",
    }
    assert frame[(frame.score == "reliability") & (frame.method == "exam")].value.tolist() == [1.0]
    assert found.samples()["after"].tolist()[0] == "Tokyo"
    assert set(found.samples()["method"]) <= set(frame["method"])  # the two can be joined
    others = found.samples("refusal")
    assert others["method"].unique().tolist() == ["exam"]
    assert len(others) == 4  # the limit
    with pytest.raises(DataError, match="no answers to this exam"):
        found.samples("mmlu")
    assert repr(found) == f"Examination('exam': change, refusal; 2 rows, in {found.folder})"
    assert "<pre>" in found._repr_html_()
    page = found.report(tmp_path / "page.html")
    assert "<html" in page.read_text(encoding="utf-8")
    folder = found.folder
    assert folder.is_dir()
    del found
    assert not folder.exists()  # nothing is left of results that nobody keeps


def test_several_models_in_one_table(base: pt.Model, change: Path, tmp_path: Path) -> None:
    full = pt.train(base, change=change, name="full", **FAST)
    found = pt.compare({"all weights": full, "untouched": base}, before=base, change=change, output=tmp_path / "out")
    rows = {row.method: row.scores["reliability"] for row in found.results.summary}
    assert rows == {"noise floor": 0.0, "all weights": 1.0, "untouched": 0.0}
    assert (tmp_path / "out" / "results.json").is_file()
    assert found.samples().groupby("method").size().to_dict()["untouched"] == 3
    found.report()
    assert found.report(tmp_path / "page.html") == tmp_path / "page.html"
    assert (tmp_path / "out" / "report.html").is_file()  # written beside it, not moved: another disk may be meant
    with pytest.raises(ConfigError, match="differ"):
        pt.compare([base, base], before=base, change=change)
    with pytest.raises(ConfigError, match="differ"):
        pt.compare({"a/b": base, "a b": full}, before=base, change=change)  # both folders would be a-b


def test_a_study_from_a_file_or_a_mapping(change: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keys = {"study": "s", "models": str(talker()), "changes": "france.yaml", "methods": ["prompt"], "max_new_tokens": 8}
    (tmp_path / "s.yaml").write_text(json.dumps(keys), encoding="utf-8")
    runs = [pt.study("s.yaml", seeds=[0, 1]).run(output="a"), pt.study(keys, seeds=[0, 1]).run(output="b")]
    assert [line.seed for line in runs[0].lines if line.method == "prompt"] == [0, 1]
    assert runs[0].scores == runs[1].scores
    assert runs[0].report() == Path("a/report.html")
    with pytest.raises(ConfigError, match="did you mean 'models'"):
        pt.study("s.yaml", modelz=[])
    wrong: list[dict[str, Any]] = [{"jobs": 0}, {"jobs": "2"}, {"changes": 0}, {"only": "AB"}, {"only": None}]
    for options in wrong:
        with pytest.raises(ConfigError, match=rf"^pt\.StudyFile\.run: {next(iter(options))}: .*, got "):
            pt.study("s.yaml").run(**options)
    with pytest.raises(ConfigError, match=r"s\.yaml cannot be a folder: File exists"):
        pt.study("s.yaml").run(output="s.yaml")
    with pytest.raises(
        ConfigError, match=r"^pt\.study: given: its type must be str \| Path \| Mapping\[str, Any\], got 5$"
    ):
        pt.study(5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="seeds: a whole number is expected"):
        pt.study("s.yaml", seeds={0, 1})


def test_a_conversation_side_by_side(base: pt.Model, change: Path) -> None:
    new = pt.train(base, change=change, name="<taught>", **FAST)
    talk = pt.chat(base, new)
    assert talk.say("capital of France?") == {base.name: "Paris", "<taught>": "Tokyo"}
    talk.say("capital of Japan?")
    assert [asked for asked, _ in talk.turns] == ["capital of France?", "capital of Japan?"]
    assert "&lt;taught&gt;" in talk._repr_html_()
    assert pt.chat(new).say("capital of France?") == "Tokyo"
    with pytest.raises(ConfigError, match="names that differ"):
        pt.chat(base, base)


def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every cell of examples/notebook.ipynb, and what each shows."""
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path))
    notebook = json.loads((Path(__file__).parent.parent / "examples" / "notebook.ipynb").read_text(encoding="utf-8"))
    space: dict[str, Any] = {}
    shown = []
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "notebook", "exec"), space)
        if last is not None:
            assert isinstance(last, ast.Expr)
            shown.append(eval(compile(ast.Expression(last.value), "notebook", "eval"), space))
        assert cell["outputs"] == []
    _, said, result, pivot, answers, plot = shown
    assert said.keys() == {"pocket:chat", "plain", "kept"}
    assert "noise floor" in result._repr_html_()
    assert {"plain", "kept"} <= set(pivot.columns)
    assert len(answers) == 12
    assert plot._repr_svg_().startswith("<svg")
    assert "var(--" not in plot._repr_svg_()
    assert plot.save(tmp_path / "plot.png").stat().st_size > 1000
