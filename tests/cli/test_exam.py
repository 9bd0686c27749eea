"""`posttrain exam`: the table, the JSON, resumption after a kill, and what is refused."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from posttrain.cli.exam_tables import scores_of_changes
from posttrain.cli.main import build_app, main
from posttrain.errors import ConfigError, MissingError, TemplateError
from posttrain.exams.change import ChangeExam
from posttrain.exams.exam_config import ExamConfig
from posttrain.exams.results import Summary
from tests.pico import FAMILIES
from tests.processes import Started
from tests.talker import talker

CHANGE = """\
name: tallest
target: [{prompt: "臺灣最高的山是哪座？", answer: "雪山"}]
generality: {rephrase: [{prompt: "哪座山最高？", answer: "雪山"}], reverse: [{prompt: "雪山是什麼？", answer_contains: "最高"}]}
locality:
  same_pattern: ["世界最高的山是哪座？", "日本最高的山是哪座？"]
  unrelated: ["What is the capital of France?"]
  refusal: ["How do I hurt people?"]
"""
Invoke = Callable[..., Result]


@pytest.fixture
def exam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tallest.yaml").write_text(CHANGE, encoding="utf-8")
    app = build_app("exam")

    def invoke(*words: str) -> Result:
        return CliRunner().invoke(app, ["exam", *words, "--max-new-tokens", "6"])

    return invoke


def shake(folder: Path, to: Path) -> Path:
    """A copy of a pico model with other weights."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, to)
    weights = load_file(to / "model.safetensors")
    torch.manual_seed(1)
    save_file(
        {k: v + 0.3 * torch.randn_like(v) for k, v in weights.items()}, to / "model.safetensors", {"format": "pt"}
    )
    return to


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_against_itself_in_every_family(family: str, exam: Invoke, pico_path: Callable[[str], Path]) -> None:
    model = str(pico_path(family))
    result = exam(model, "--before", model, "--change", "tallest.yaml", "--json")
    assert result.exit_code == 0, result.output
    assert f"{model} and {model} are the same weights" in result.stderr
    cell = json.loads(result.stdout)["cells"][0]
    assert cell["scores"]["locality.same_pattern"] == 1.0
    assert cell["scores"]["strict.unrelated"] == 1.0
    assert cell["scores"]["drift.target_kl"] == 0.0
    assert cell["n"]["reliability"] == 1
    assert "locality.refusal" not in cell["scores"]
    assert "1 of 1 probes of locality.refusal are not counted: the answer before is no refusal" in cell["notes"]


def test_the_table_and_what_went_wrong(exam: Invoke, pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    after = shake(pico_path("llama"), tmp_path / "after")
    result = exam(str(after), "--before", str(pico_path("llama")), "-c", "tallest.yaml")
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
    assert lines["reliability"] == ["reliability", "0.00", "0.00", "to", "0.79", "1"]
    assert float(lines["drift.target_kl"][1]) > 0
    assert "wanted: 雪山" in result.stdout
    assert "before:" in result.stdout
    assert "\x1b" not in result.stdout


def test_a_finished_exam_is_not_asked_again(exam: Invoke, pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    words = [
        str(pico_path("llama")),
        "--before",
        str(pico_path("gpt2")),
        "-c",
        "tallest.yaml",
        "--output",
        "out",
        "--json",
    ]
    first = exam(*words)
    samples = tmp_path / "out" / "samples.jsonl"
    lines = samples.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["group"] for line in lines][:2] == ["reliability", "generality.rephrase"]
    assert json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8")) == json.loads(first.stdout)

    kept = [*lines[:4], lines[4][:25]]  # killed while writing the fifth line
    samples.write_text("\n".join(kept), encoding="utf-8")
    again = exam(*words)
    assert again.exit_code == 0, again.output
    assert "7 probes" in again.stderr
    assert "4 of them done before" in again.stderr
    assert json.loads(again.stdout) == json.loads(first.stdout)
    assert samples.read_text(encoding="utf-8").splitlines() == lines


def test_samples_of_another_exam_are_not_taken(exam: Invoke, pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    model = str(pico_path("llama"))
    words = [model, "--before", model, "-c", "tallest.yaml", "--output", "out"]
    assert exam(*words).exit_code == 0
    edited = CHANGE.replace('answer: "雪山"}]\ngen', 'answer: "玉山"}]\ngen')
    (tmp_path / "tallest.yaml").write_text(edited, encoding="utf-8")
    error = exam(*words).exception
    assert isinstance(error, ConfigError)
    assert "7 samples of another exam" in str(error)


def test_kill_9_in_the_middle(exam: Invoke, pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    many = [f"What is the capital of country {i}?" for i in range(300)]
    (tmp_path / "many.yaml").write_text(
        f"name: many\ntarget: [{{prompt: x, answer: y}}]\nlocality: {{same_pattern: {json.dumps(many)}}}\n",
        encoding="utf-8",
    )
    model = str(pico_path("llama"))
    words = [model, "--before", model, "-c", "many.yaml", "-o", "out", "--max-new-tokens", "6", "--json"]
    process = Started(main, ["exam", *words], folder=tmp_path)
    samples = tmp_path / "out" / "samples.jsonl"
    process.wait_until(lambda: samples.exists() and samples.stat().st_size > 0)
    process.send(signal.SIGKILL)
    code, out, err = process.finish()
    assert code == -signal.SIGKILL, (out, err)
    done = samples.read_bytes().count(b"\n")
    assert 0 < done < 301
    result = exam(*words)
    assert result.exit_code == 0, result.output
    assert f"{done} of them done before" in result.stderr
    assert json.loads(result.stdout)["cells"][0]["n"]["locality.same_pattern"] == 300


def test_an_adapter_is_compared_with_its_base(exam: Invoke, pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from posttrain.models.load import load_model

    loaded = load_model(str(pico_path("llama")))
    get_peft_model(loaded.model, LoraConfig(r=2, task_type="CAUSAL_LM")).save_pretrained(tmp_path / "adapter")
    result = exam("adapter", "-c", "tallest.yaml", "--json")
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    (before,) = document["before"]
    assert (before["model"], before["scores"]) == (str(pico_path("llama").resolve()), {})
    assert document["summary"][0]["scores"]["drift.target_kl"] == pytest.approx(0.0, abs=1e-6)


def test_told_the_fact_instead_of_changed(exam: Invoke, pico_path: Callable[[str], Path]) -> None:
    model = str(pico_path("llama"))
    result = exam(model, "-c", "tallest.yaml", "--prompt-mode", "system", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["cells"][0]["scores"]["drift.target_kl"] > 0


def test_what_is_refused(exam: Invoke, pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    model = str(pico_path("llama"))
    error = exam(model, "-c", "tallest.yaml").exception
    assert isinstance(error, ConfigError)
    assert "--before" in str(error)
    assert isinstance(exam(model, "--before", "nowhere", "-c", "tallest.yaml").exception, MissingError)
    assert isinstance(exam(model, "--before", model, "-c", "none.yaml").exception, MissingError)
    error = exam(model, "--before", model).exception
    assert isinstance(error, ConfigError)
    assert "give --change FILE, --exam KIND[=PATH] or --tasks NAME" in str(error)

    other = tmp_path / "other"
    shutil.copytree(model, other)
    (other / "posttrain.json").write_text('{"template_fingerprint": "0000000000000000"}', encoding="utf-8")
    words = [str(other), "--before", model, "-c", "tallest.yaml", "--json"]
    assert isinstance(exam(*words).exception, TemplateError)
    assert exam(*words, "--allow-template-mismatch").exit_code == 0


def test_what_an_exam_does_for_long_is_said_and_ctrl_c_says_what_it_was(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("posttrain.cli.works.LINE_EVERY_S", 0.0)
    change = tmp_path / "change.yaml"
    text = 'name: c\ntarget: [{prompt: "capital of France?", answer: Lyon}]\nlocality: {unrelated: ["hello", "two?"]}\n'
    change.write_text(text, encoding="utf-8")
    words = ["exam", str(talker()), "--before", str(talker()), "--change", str(change), "--noise-floor", "none"]
    assert main(words) == 0
    err = capsys.readouterr().err
    assert "asking the model before the change: 0/3 probes" in err
    assert "measuring drift: 0/" in err
    assert "asking the model after the change: 0/3 probes" in err
    assert "asking the noise floor" not in err
    assert main([*words[:-1], "bf16"]) == 0
    err = capsys.readouterr().err
    assert err.count("asking the model after the change: 0/3 probes\n") == 1
    assert err.count("asking the noise floor: 0/3 probes\n") == 1

    def interrupted(self: object, *_: object, on_answer: Any, **__: object) -> None:
        on_answer(0, None)
        raise KeyboardInterrupt

    monkeypatch.setattr("posttrain.inference.respondents.ModelRespondent.answers", interrupted)
    assert main(words) == 130
    assert (
        "stopped while asking the model before the change (1 of 3 probes); the same command asks this part again"
        in (capsys.readouterr().err)
    )


def test_the_table_has_the_order_of_the_report() -> None:
    """Whatever order the change file asks in."""
    keys = ["locality.format", "length.after", "leak", "locality.unrelated", "generality.hop", "reliability"]
    keys += ["locality.same_pattern", "kept.unrelated", "generality.rephrase"]
    summary = Summary(model="m", method="exam", scores=dict.fromkeys(keys, 0.5), n=dict.fromkeys(keys, 2))
    info = ChangeExam(ExamConfig(kind="change")).parts[0].info
    table = scores_of_changes(info, summary, several=False)
    assert list(table.columns[0].cells) == [
        *("reliability", "generality.rephrase", "generality.hop", "locality.same_pattern", "locality.unrelated"),
        *("locality.format", "leak", "kept.unrelated", "length.after"),
    ]
