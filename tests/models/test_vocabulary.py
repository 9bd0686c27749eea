"""A tokenizer with more tokens than the model has embeddings: padding with another one, texts that cannot be read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from posttrain.config.load import check
from posttrain.data.records import Message
from posttrain.errors import DataError, PosttrainError
from posttrain.inference.decode import decode
from posttrain.inference.heads import classify, tag
from posttrain.inference.protocol import Plain
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.export import export_model
from posttrain.models.heads import load_any, load_head_model
from posttrain.models.load import LoadedModel, load_model
from posttrain.models.save import save_model
from posttrain.models.vocabulary import outside, padding_inside, rows_of
from posttrain.studies.config import Study
from posttrain.studies.events import Watcher
from posttrain.studies.plan import make_plan
from posttrain.studies.run import run_study
from posttrain.training.preview import preview
from posttrain.training.run import train
from posttrain.tuners.lora import LoraConfig, lora
from tests.pico import VOCABULARY, tokenizer
from tests.pico_tokenizers import tokenizer_of
from tests.training.test_heads import configured, write

PicoPath = Callable[[str], Path]
NEW = "<new>"
"""A token that was added and that the model has no embedding for."""


@pytest.fixture(scope="module")
def short(pico_path: PicoPath, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Someone added [PAD] and <new> to the tokenizer and did not resize the model."""
    folder = tmp_path_factory.mktemp("short") / "llama"
    shutil.copytree(pico_path("llama"), folder)
    grown(tokenizer.__wrapped__()).save_pretrained(folder)
    return folder


def grown(made: Any) -> Any:
    made.add_special_tokens({"pad_token": "[PAD]"})
    made.add_tokens([NEW])
    return made


def test_ids_that_are_inside() -> None:
    assert outside("f:1", [], 5) is None
    assert outside("f:1", [0, 4], 5) is None
    assert str(outside("f:1", [4, 5], 5)).startswith(
        "f:1: holds the id 5, and the model has embeddings for 5 tokens (0 to 4)"
    )


@pytest.mark.parametrize("also_in_config", [False, True])
def test_another_token_pads(short: Path, pico_path: PicoPath, tmp_path: Path, also_in_config: bool) -> None:
    """Also where config.json names the padding that is not there, of which torch makes no embedding."""
    folder = tmp_path / "model"
    shutil.copytree(short, folder)
    if also_in_config:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": VOCABULARY}), encoding="utf-8")
    with pytest.warns(UserWarning, match=r"'\[PAD\]' has the id 384, and the model has embeddings for 384 tokens"):
        loaded = load_model(str(folder), device="cpu")
    assert loaded.tokenizer.pad_token_id == loaded.model.config.pad_token_id == loaded.tokenizer.bos_token_id
    whole = ModelRespondent(load_model(str(pico_path("llama")), device="cpu"))
    prompts: list[Any] = ["Hi", "What is the capital of France?", "臺灣最高的山是哪座？"]
    assert ModelRespondent(loaded).generate(prompts, max_new_tokens=6) == whole.generate(prompts, max_new_tokens=6)
    pairs = [(prompt, "Paris") for prompt in prompts]
    ours, theirs = ([one.sum_nats for one in each.logprobs(pairs)] for each in (ModelRespondent(loaded), whole))
    assert ours == pytest.approx(theirs, abs=1e-5)
    given = LoadedModel(whole.model, grown(tokenizer.__wrapped__()), "given")  # loaded elsewhere
    assert ModelRespondent(given).generate(prompts, max_new_tokens=6) == whole.generate(prompts, max_new_tokens=6)


def without_padding(folder: Path) -> None:
    """The tokenizer names no padding token, as Llama's does not."""
    made = tokenizer.__wrapped__()
    made.pad_token = None
    made.save_pretrained(folder)


def as_written_alone(source: Path, folder: Path) -> dict[str, Any]:
    """What transformers by itself writes of a folder's tokenizer."""
    transformers.AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(folder)
    return tokenizer_files(folder)


def tokenizer_files(folder: Path) -> dict[str, Any]:
    return {
        name: json.loads((folder / name).read_text(encoding="utf-8"))
        for name in ("tokenizer.json", "tokenizer_config.json")
    }


def named_in(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("pad_token_id")


@pytest.mark.filterwarnings("ignore:.*pads instead")
@pytest.mark.parametrize("padding", ["[PAD]", "[PAD] in config.json", None])
@pytest.mark.parametrize("how", ["saved", "exported", "exported adapter", "trained", "trained lora", "of a study"])
def test_what_is_saved_keeps_the_users_tokenizer(
    short: Path, pico_path: PicoPath, tmp_path: Path, padding: str | None, how: str
) -> None:
    """What pads in memory is nobody's business on disk."""
    base, made = tmp_path / "base", tmp_path / "made"
    told: list[str] = []
    shutil.copytree(short if padding else pico_path("llama"), base)
    if padding is None:
        without_padding(base)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    named = VOCABULARY if padding == "[PAD] in config.json" else 0 if padding else None
    (base / "config.json").write_text(json.dumps({**config, "pad_token_id": named}), encoding="utf-8")
    rows = write(tmp_path / "rows.jsonl", [{"prompt": "Hi" * (i % 3 + 1), "completion": "Yes."} for i in range(4)])
    loaded = load_model(str(base), device="cpu")
    pads = loaded.tokenizer.pad_token
    if how == "saved":
        save_model(loaded.model, loaded.tokenizer, made)
    elif how == "exported":
        export_model(str(base), made, say=told.append)
    elif how == "exported adapter":
        save_model(lora(loaded.model, LoraConfig(rank=2)), loaded.tokenizer, tmp_path / "adapter")
        export_model(str(tmp_path / "adapter"), made, adapter=True, say=told.append)
    elif how == "of a study":
        fields = {"models": str(base), "keep": "final", "max_new_tokens": 4, "noise_floor": "none"}
        method = {"name": "full", "kind": "train", "tuner": "full", "data": rows, "optimizer": {"max_steps": 1}}
        asked = write(tmp_path / "asked.jsonl", [{"prompt": "What?", "completion": "That."}])
        exams = [{"kind": "self_test", "path": asked, "max_new_tokens": 4}]
        study = check({"study": "s", **fields, "methods": [method], "exams": exams}, Study, "study")
        cells = make_plan(study, [], tmp_path)
        outcome = run_study(study, cells, cells, base=tmp_path, folder=tmp_path / "run", watcher=Watcher())
        made = tmp_path / "run" / outcome.results[0].first.weights
    else:
        tuner = {"kind": "lora", "rank": 2} if how == "trained lora" else {"kind": "full"}
        train(configured(base, rows, "sft", tuner=tuner), output=tmp_path / "run")
        made = tmp_path / "run" / "model"
    assert tokenizer_files(made) == as_written_alone(base, tmp_path / "alone")
    assert transformers.AutoTokenizer.from_pretrained(made).pad_token == (padding and "[PAD]")
    if (made / "config.json").is_file():
        assert named_in(made) == (0 if padding == "[PAD]" else None)
    assert loaded.tokenizer.pad_token == pads  # in memory it pads as before
    assert loaded.tokenizer.pad_token_id == loaded.model.config.pad_token_id < VOCABULARY
    if how == "exported":
        config_says = "0" if padding == "[PAD]" else "none"
        stays = f"the padding token stays '[PAD]', as in the source; it has no embedding, so config.json names {config_says}"
        assert [line for line in told if "padding" in line] == ([stays] if padding else [])


def test_a_padding_that_the_user_has_set_is_saved(short: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="pads instead"):
        loaded = load_model(str(short), device="cpu")
    loaded.tokenizer.pad_token = loaded.tokenizer.eos_token
    save_model(loaded.model, loaded.tokenizer, tmp_path / "made")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "made").pad_token == loaded.tokenizer.eos_token


@pytest.mark.filterwarnings("ignore:.*pads instead")
@pytest.mark.parametrize(
    ("own", "why"),
    [("[PAD]", "its own, '[PAD]', has no embedding"), (None, "it has no padding token")],
)
def test_a_head_is_saved_with_the_padding_it_reads_by(
    short: Path, pico_path: PicoPath, tmp_path: Path, own: str | None, why: str
) -> None:
    base = tmp_path / "base"
    told: list[str] = []
    shutil.copytree(short if own else pico_path("llama"), base)
    if own is None:
        without_padding(base)
    made = load_head_model(str(base), "sequence", ["a", "b"], device="cpu", say=told.append)
    pads = made.tokenizer.pad_token
    said = f"{base}: the tokenizer is saved with {pads!r} as its padding, which a head needs: {why}"
    assert said in told
    save_model(made.model, made.tokenizer, tmp_path / "made")
    alone = transformers.AutoTokenizer.from_pretrained(tmp_path / "made")
    assert alone.pad_token_id == named_in(tmp_path / "made") == made.tokenizer.pad_token_id < VOCABULARY
    told.clear()
    load_head_model(str(tmp_path / "made"), "sequence", device="cpu", say=told.append)
    assert told == []


@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_classifiers(short: Path, pico_path: PicoPath, kind: Any) -> None:
    """The same probabilities as of a model whose tokenizer was not touched."""
    texts = ["Hi", "The capital of France is Paris.", "臺灣最高的山是玉山。", "a b c"]
    with pytest.warns(UserWarning, match="pads instead"):
        one = load_head_model(str(short), kind, ["a", "b"], say=lambda _: None)
    other = load_head_model(str(pico_path("llama")), kind, ["a", "b"], say=lambda _: None)
    if kind == "sequence":
        assert [c.probabilities for c in classify(one, texts)] == [
            pytest.approx(c.probabilities, abs=1e-5) for c in classify(other, texts)
        ]
        with pytest.raises(DataError, match=r"text 2: holds the token '<new>' \(id 385\)"):
            classify(one, ["Hi", f"a {NEW} b"])
    else:
        sentences = [text.split() for text in texts]
        assert [t.tags for t in tag(one, sentences)] == [t.tags for t in tag(other, sentences)]


@pytest.mark.parametrize("objective", ["text_classification", "reward"])
def test_training_and_what_is_saved(short: Path, tmp_path: Path, objective: str) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "Hi " * (i % 3 + 1), "label": "ab"[i % 2]}
        if objective == "text_classification"
        else {"prompt": "Hi" * (i % 3 + 1), "chosen": "Yes.", "rejected": "No, never."}
        for i in range(8)
    ]
    config = configured(short, write(tmp_path / "rows.jsonl", rows), objective, batch={"rows": 4})
    with pytest.warns(UserWarning, match="pads instead"):
        result = train(config, output=tmp_path / "run")
    assert all(map(torch.isfinite, map(torch.tensor, [result.loss_nats])))
    again = load_any(str(tmp_path / "run" / "model"), device="cpu")
    assert again.model.config.pad_token_id == again.tokenizer.pad_token_id < rows_of(again.model)
    bad = rows[0] | ({"text": f"Hi {NEW}"} if objective == "text_classification" else {"rejected": NEW})
    data = write(tmp_path / "bad.jsonl", [*rows, bad])
    with pytest.raises(
        DataError, match=r"bad.jsonl:9: holds the token '<new>' \(id 385\), and the model has embeddings"
    ):
        train(configured(short, data, objective))
    with pytest.raises(DataError, match=r"bad.jsonl:9: holds the token '<new>'"):
        preview(configured(short, data, objective), say=lambda _: None)
    said: list[str] = []
    preview(configured(short, data, objective, on_bad_row="skip"), say=said.append)
    assert any("9 rows read, 1 bad ones skipped" in line for line in said)


def test_texts_that_cannot_be_read_are_named(short: Path) -> None:
    with pytest.warns(UserWarning, match="pads instead"):
        respondent = ModelRespondent(load_model(str(short), device="cpu"))
    with pytest.raises(DataError, match=r"prompt 2: holds the token '<new>' \(id 385\)"):
        respondent.answers(["Hi", (Message("user", f"a{NEW}b"),)])
    with pytest.raises(DataError, match=r"request 1: holds the token '<new>'"):
        respondent.logprobs([(Plain("Hi"), NEW)])
    with pytest.raises(DataError, match=r"text 1: holds the token '<new>'"):
        respondent.rolling([f"a {NEW}"])
    with pytest.raises(DataError, match=r"prompt 1: holds the token '<new>'"):
        respondent.next_token_logprobs(["Hi"], [NEW])
    with pytest.raises(PosttrainError, match="prompt 1: holds the id 400"):
        decode(respondent.model, [[1, 400]], stop=frozenset([2]), pad_id=0, max_new_tokens=2)


def test_which_token_pads_instead() -> None:
    made = grown(tokenizer.__wrapped__())
    assert padding_inside(made, VOCABULARY) == made.bos_token_id
    made.bos_token = None
    first = padding_inside(made, VOCABULARY)
    assert first != made.eos_token_id
    assert made.added_tokens_decoder[first].special
    assert padding_inside(tokenizer_of("llama"), 1) == 0
