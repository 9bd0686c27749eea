"""A GGUF file is a model wherever one is named: same logits, tokenizer and template; what is wrong with it is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.errors import MissingError, PosttrainError
from posttrain.models import gguf as reading
from posttrain.models.fingerprint import template_fingerprint, weights_fingerprint
from posttrain.models.gguf import check_gguf, gguf_tokenizer, load_gguf, memory_line
from posttrain.models.gguf_header import read_header
from posttrain.models.load import check_folder, config_of, load_model, load_tokenizer, stop_ids
from posttrain.models.save import save_model
from posttrain.studies.speed import parameters_of
from tests.pico import SENTENCES
from tests.pico_gguf import gguf_name, write_gguf

PicoPath = Callable[[str], Path]


@pytest.fixture(scope="module")
def plain(pico_path: PicoPath, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pico Llama with nothing lost: float32."""
    return write_gguf(pico_path("llama"), tmp_path_factory.mktemp("gguf") / "pico.gguf")


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([ids])).logits
    return found


def test_the_same_model_as_the_folder(plain: Path, pico_path: PicoPath) -> None:
    folder = str(pico_path("llama"))
    one, other = load_model(str(plain), device="cpu"), load_model(folder, device="cpu")
    assert weights_fingerprint(one.model) == weights_fingerprint(other.model)
    assert template_fingerprint(one.tokenizer) == template_fingerprint(other.tokenizer) != "none"
    ids = other.tokenizer("臺灣最高的山是玉山。 The highest is 3,952 m.")["input_ids"]
    assert torch.equal(logits(one.model, ids), logits(other.model, ids))
    for text in SENTENCES:
        assert one.tokenizer(text)["input_ids"] == other.tokenizer(text)["input_ids"]
    assert stop_ids(str(plain), one.tokenizer) == stop_ids(folder, other.tokenizer) == (2,)
    assert one.model.generation_config is not None
    assert one.model.generation_config.eos_token_id == 2
    assert one.tokenizer.model_max_length == 512


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "F16"])
def test_dequantised_as_transformers_and_as_by_hand(kind: str, pico_path: PicoPath, tmp_path: Path) -> None:
    import gguf
    import transformers

    path = write_gguf(pico_path("llama"), tmp_path / "x.gguf", kind=kind)
    model = load_gguf(path, torch.float32, say=lambda line: None)
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf", dtype=torch.float32)
    ids = list(range(3, 60))
    assert torch.equal(logits(model, ids), logits(theirs, ids))
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    name = "model.layers.1.mlp.down_proj.weight"
    tensor = read[gguf_name(name)]
    by_hand = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
    assert torch.equal(model.get_parameter(name), by_hand.reshape(32, 64))
    stored = load_model(str(pico_path("llama")), device="cpu").model.get_parameter(name)
    far = float((by_hand.reshape(32, 64) - stored).detach().abs().max() / stored.detach().abs().max())
    assert 0 < far < {"Q4_1": 0.1, "Q8_0": 0.006, "F16": 0.001}[kind]


def test_it_can_be_trained_and_saved(plain: Path, tmp_path: Path) -> None:
    """transformers refuses both for a model that it still believes to be quantised."""
    loaded = load_model(str(plain), device="cpu")
    loss = loaded.model(torch.tensor([[3, 4, 5]]), labels=torch.tensor([[3, 4, 5]])).loss
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in loaded.model.parameters())
    save_model(loaded.model, loaded.tokenizer, tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert {"quantization_config", "gguf_file", "_model_name_or_path"} & set(written) == set()
    assert weights_fingerprint(load_model(str(tmp_path / "saved"), device="cpu").model) == weights_fingerprint(
        loaded.model
    )


def test_an_adapter_knows_its_gguf_base(plain: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    loaded = load_model(str(plain), device="cpu")
    torch.manual_seed(0)
    adapted = get_peft_model(loaded.model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    save_model(adapted, loaded.tokenizer, tmp_path / "lora")
    again = load_model(str(tmp_path / "lora"), device="cpu")
    assert torch.equal(logits(again.model, [3, 4, 5]), logits(adapted, [3, 4, 5]))


def test_bfloat16(plain: Path) -> None:
    model = load_model(str(plain), device="cpu", dtype="bfloat16").model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_memory_is_said_beforehand(pico_path: PicoPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    path = write_gguf(pico_path("llama"), tmp_path / "x.gguf", kind="Q8_0")
    said: list[str] = []
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load_gguf(path, torch.float32, say=said.append)
    assert said == ["x.gguf: 0.0 M parameters stored as Q8_0 (0.00 GiB), dequantised to 0.00 GiB of float32"]
    big = read_header(path)
    (tensor, *_) = big.tensors
    big = big._replace(tensors=(tensor._replace(shape=(32_768, 40_960)),))
    assert "1342.2 M parameters stored as Q8_0" in memory_line(big)
    assert "dequantised to 5.00 GiB of float32" in memory_line(big)
    assert "dequantised to 2.50 GiB of 16-bit numbers" in memory_line(big, 2)


def test_said_once_and_not_when_quiet(plain: Path, caplog: pytest.LogCaptureFixture) -> None:
    from posttrain.cli.main import main

    reading._say_once.cache_clear()
    ask = ["chat", str(plain), "--once", "你好", "--max-new-tokens", "1"]
    for times in (1, 1):  # not again the second time
        assert main(ask) == 0
        assert sum("dequantised to" in line for line in caplog.messages) == times
    caplog.clear()
    reading._say_once.cache_clear()
    assert main([*ask, "--quiet"]) == 0
    assert caplog.messages == []


def test_a_folder_with_one_file_and_with_two(plain: Path, tmp_path: Path) -> None:
    shutil.copy(plain, tmp_path / "a.gguf")
    assert load_model(str(tmp_path), device="cpu").model.name_or_path == str(tmp_path / "a.gguf")
    shutil.copy(plain, tmp_path / "b.gguf")
    with pytest.raises(MissingError, match=r"holds 2 GGUF files: a\.gguf, b\.gguf; name one: .*a\.gguf"):
        load_model(str(tmp_path), device="cpu")


def test_what_lies_beside_the_file_is_another_models(plain: Path, pico_path: PicoPath, tmp_path: Path) -> None:
    shutil.copytree(pico_path("gpt2"), tmp_path / "both")
    at = tmp_path / "both" / "pico.gguf"
    shutil.copy(plain, at)
    (tmp_path / "both" / "tokenizer.json").write_text("{}")
    loaded = load_model(str(at), device="cpu")
    assert type(loaded.model).__name__ == "LlamaForCausalLM"
    assert loaded.tokenizer.decode(loaded.tokenizer("玉山")["input_ids"]) == "玉山"


def test_size_and_configuration_without_weights(plain: Path, pico_path: PicoPath) -> None:
    assert parameters_of(str(plain)) == parameters_of(str(pico_path("llama"))) == read_header(plain).parameters
    assert config_of(str(plain)).num_hidden_layers == 2


def test_digits_are_split_as_the_vocabulary_wants(pico_path: PicoPath, tmp_path: Path) -> None:
    path = write_gguf(pico_path("llama"), tmp_path / "x.gguf", pre="smollm")
    pieces = gguf_tokenizer(path).backend_tokenizer.pre_tokenizer.pre_tokenize_str("in  2026")
    assert [piece for piece, _ in pieces] == ["in", "ĠĠ", "2", "0", "2", "6"]
    said: list[str] = []
    gguf_tokenizer(write_gguf(pico_path("llama"), tmp_path / "y.gguf", pre="poro-chat"), say=said.append)
    assert said == ["y.gguf: its rule for splitting words, 'poro-chat', is not known here; GPT-2's is used instead"]
    gguf_tokenizer(write_gguf(pico_path("llama"), tmp_path / "z.gguf"), say=said.append)
    assert len(said) == 1


def test_without_the_extra(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "find_spec", lambda name: None)
    for ask in (load_model, check_folder, load_tokenizer):
        with pytest.raises(MissingError, match=r"needs the package gguf; pip install 'posttrain\[gguf\]'") as caught:
            ask(str(plain))
        assert caught.value.exit_code == 3


def test_a_truncated_file(plain: Path, tmp_path: Path) -> None:
    cut = tmp_path / "x.gguf"
    cut.write_bytes(plain.read_bytes()[:-1000])
    has = plain.stat().st_size - 1000
    with pytest.raises(PosttrainError, match=rf"x\.gguf: is cut short: it has {has} bytes of \d+; copy the file again"):
        check_folder(str(cut))


def test_an_architecture_that_nobody_reads(pico_path: PicoPath, tmp_path: Path) -> None:
    path = write_gguf(pico_path("llama"), tmp_path / "x.gguf", architecture="clip")
    with pytest.raises(
        PosttrainError, match=r"architecture 'clip', which transformers [\d.]+ cannot read; use the model's"
    ):
        load_model(str(path))


def test_a_missing_tensor_is_not_random(pico_path: PicoPath, tmp_path: Path) -> None:
    path = write_gguf(pico_path("llama"), tmp_path / "x.gguf", leave_out="blk.1.ffn_up.weight")
    with pytest.raises(
        PosttrainError, match=r"lacks 1 of the model's tensors \(such as model\.layers\.1\.mlp\.up_proj"
    ):
        load_model(str(path))


def test_no_tokenizer_in_the_file(pico_path: PicoPath, tmp_path: Path) -> None:
    path = write_gguf(pico_path("llama"), tmp_path / "x.gguf")
    content = path.read_bytes().replace(b"tokenizer.ggml.model", b"tokenizer.ggml.xxxxx")
    path.write_bytes(content)
    with pytest.raises(PosttrainError, match=r"x\.gguf: cannot be read: "):
        load_tokenizer(str(path))


def test_a_head_wants_a_saved_model(plain: Path) -> None:
    from posttrain.models.heads import load_head_model

    with pytest.raises(PosttrainError, match=r"read as a language model only; save it first: posttrain model convert"):
        load_head_model(str(plain), "sequence", ["yes", "no"], say=lambda line: None)


def test_check_says_what_the_file_is(plain: Path) -> None:
    assert check_gguf(plain).kind == 0


def test_training_from_a_file_beside_the_yaml(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from posttrain.cli.main import main
    from posttrain.studies.config import find_model

    beside = tmp_path / "files"
    beside.mkdir()
    shutil.copy(plain, beside / "pico.gguf")
    row = {"messages": [{"role": "user", "content": "最高的山？"}, {"role": "assistant", "content": "玉山"}]}
    (beside / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (beside / "train.yaml").write_text("model: pico.gguf\ndata: rows.jsonl\ntuner: lora\noptimizer: {max_steps: 1}\n")
    monkeypatch.chdir(tmp_path)
    assert find_model("pico.gguf", beside) == (str(beside / "pico.gguf"), "")
    assert main(["train", "files/train.yaml", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] >= 30_880
    assert main(["train", "files/train.yaml"]) == 0
    said = json.loads(Path("runs/train/model/adapter_config.json").read_text())["base_model_name_or_path"]
    assert said == str((beside / "pico.gguf").resolve())
    assert load_model("runs/train/model", device="cpu").name == "runs/train/model"
