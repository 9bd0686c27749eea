"""`posttrain model export` and `verify`: what they print, as text and JSON, and their exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from posttrain.cli.main import main
from posttrain.models.load import load_model
from posttrain.models.save import save_model
from posttrain.tuners.lora import LoraConfig, lora
from tests.own_code import own_code
from tests.training.tiny import PicoPath, load

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def adapter(pico_path: PicoPath, tmp_path: Path) -> Path:
    loaded = load(pico_path)
    save_model(lora(loaded.model, LoraConfig(rank=2)), loaded.tokenizer, tmp_path / "adapter")
    return tmp_path / "adapter"


def test_export_and_verify(adapter: Path, pico_path: PicoPath, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "匯出"
    assert main(["model", "export", str(adapter), str(out), "--dtype", "bfloat16", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["kind"], made["dtype"], made["tied"], made["output"]) == ("merged model", "bfloat16", True, str(out))
    assert {p.dtype for p in load_model(str(out), dtype="bfloat16").model.parameters()} == {torch.bfloat16}
    assert main(["model", "verify", str(out), "--against", str(pico_path("llama")), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is True
    assert made["notes"][0].startswith("rounded to bfloat16: outputs differ from the source's by ")
    assert told["checks"][-1]["detail"].endswith("as not both are stored in float32, and answers may differ")
    assert [check["check"] for check in told["checks"]][-1] == "against"
    tensors = load_file(out / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    assert main(["model", "verify", str(out), "--json"]) == 1
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["ok"] is False
    assert {check["check"]: check["ok"] for check in told["checks"]}["numbers"] is False


def test_code_that_a_model_brings_along_runs_when_asked_to(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which the cache is added
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # to transformers' own question, which nobody shall be asked
    model, out = str(own_code(tmp_path)), tmp_path / "out"
    trusted = "--trust-remote-code"
    mend = "the model brings its own code: pass --trust-remote-code if you trust it"
    assert main(["model", "verify", model, "--json"]) == 1
    checks = {check["check"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["shapes"]["ok"] is False
    assert mend in checks["shapes"]["detail"]
    for words in (["export", model, str(out)], ["show", model]):
        assert main(["model", *words]) == 1
        assert mend in capsys.readouterr().err
    assert not out.exists()
    assert not (tmp_path / "ran").exists()

    assert main(["model", "export", model, str(out), trusted, "--json"]) == 0
    assert (tmp_path / "ran").exists()
    made = json.loads(capsys.readouterr().out)
    assert (made["architecture"], made["loads_with"]) == ("OwnForCausalLM", "transformers, with trust_remote_code")
    assert main(["model", "verify", str(out), "--against", model, trusted, "--json"]) == 0
    told = {check["check"]: check["ok"] for check in json.loads(capsys.readouterr().out)["checks"]}
    assert set(told.values()) == {True}
    assert "against" in told
    assert main(["model", "show", str(out), trusted, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["architecture"] == "OwnForCausalLM"


@pytest.mark.usefixtures("loud_again")
def test_a_training_s_folder_is_said_to_stand_for_its_model(
    pico_path: PicoPath, tmp_path: Path, capsys: Capture
) -> None:
    loaded = load(pico_path)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "first" / "model")
    (tmp_path / "first" / "result.json").write_text("{}")
    run, model = str(tmp_path / "first"), str(tmp_path / "first" / "model")
    line = f"{run}: its model is {model}\n"
    for words in (["verify", run], ["verify", model, "--against", run], ["show", run], ["export", run, run + "-out"]):
        assert main(["model", *words, "--json"]) == 0
        captured = capsys.readouterr()
        assert captured.err.count(line) == 1, words
        json.loads(captured.out)
    assert main(["model", "verify", run, "--quiet"]) == 0
    assert line not in capsys.readouterr().err
    assert main(["model", "verify", model]) == 0
    assert "its model is" not in capsys.readouterr().err


def test_tables(adapter: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["model", "export", str(adapter), "--output", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert "merged model" in captured.out
    assert "stored in float32, as its base is (--dtype for another)" in captured.err
    assert "answers may differ" not in captured.out
    half = ["model", "export", str(adapter), "--output", str(tmp_path / "half"), "--dtype", "bfloat16"]
    assert main(half) == 0
    assert "of their spread, so answers may differ; the files were checked against" in capsys.readouterr().out
    assert main(["model", "verify", str(tmp_path / "out")]) == 0
    assert "tokenizer      ok  384 tokens for 384 rows" in capsys.readouterr().out
    folder = str(tmp_path / "out")
    assert main(["model", "show", folder]) == 0
    shown = {line[:20].strip(): line[20:].strip() for line in capsys.readouterr().out.splitlines()}
    assert shown.items() >= {"tied embeddings": "yes", "stops at": "<|end|>", "chat template": "yes"}.items()
    assert f"{int(shown['parameters'].replace(',', '')):,}" == shown["parameters"], "thousands are separated"
    assert main(["model", "verify", folder, "--language", "zh-TW"]) == 0
    verified = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in verified] == [
        [check, "正常"] for check in ("檔案", "權重檔", "雜湊值", "數值", "形狀", "分詞器", "回答")
    ]
    assert "1 個檔案裡有 20 個張量，以 F32 儲存" in verified[1]
    assert main(["model", "export", folder, str(tmp_path / "again"), "--language", "zh-TW"]) == 0
    exported = [line.split() for line in capsys.readouterr().out.splitlines()]
    labels = ["輸出", "來源", "種類", "架構", "參數", "數值型別", "共用嵌入", "大小", "捨入", "對話模板", "載入方式"]
    assert [row[0] for row in exported] == labels
    assert exported[7][2] == "MiB"
    assert (exported[6][1], exported[9][1]) == ("有", "有")
    (tmp_path / "out" / "tokenizer.json").write_text("{", encoding="utf-8")
    assert main(["model", "verify", str(tmp_path / "out")]) == 1
    assert "files          WRONG " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["export", "MODEL"], 2, "no folder to write"),
        (["export", "MODEL", "OUT", "--output", "x"], 2, "say the folder once"),
        (["export", "MODEL", "OUT", "--dtype", "int4"], 2, "unknown 'int4'; one of auto, float32, bfloat16, float16"),
        (["export", "pocket:chat", "OUT", "--adapter"], 2, "pocket:chat is no adapter"),
        (["export", "MODEL", "MODEL"], 2, "is there already and is not overwritten"),
        (["export", "./nothing", "OUT"], 3, "no such model folder"),
        (["verify", "./nothing"], 3, "no such model folder"),
        (["verify", "no/such-model"], 3, "--download"),
    ],
)
def test_what_is_wrong_is_said(
    adapter: Path, tmp_path: Path, words: list[str], code: int, message: str, capsys: Capture
) -> None:
    given = [{"MODEL": str(adapter), "OUT": str(tmp_path / "out")}.get(word, word) for word in words]
    assert main(["model", *given]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_said_whatever_name_it_goes_by(
    adapter: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise Exception("No space left on device (os error 28)")  # as tokenizers says it

    monkeypatch.setattr("posttrain.models.save.write_notes", full)
    assert main(["model", "export", str(adapter), str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert "out: cannot be written: No space left on device; free some space" in told
    assert "should not happen" not in told
    assert not list(tmp_path.glob("*out*"))
    monkeypatch.setattr("posttrain.models.verify.verify_model", full)  # from where nobody expects it
    assert main(["model", "verify", str(adapter)]) == 1
    assert "cannot be written: No space left on device" in capsys.readouterr().err
