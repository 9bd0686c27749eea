"""Training models with a head: exact steps, labels, scores, resume, what is saved; decoders and an encoder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from posttrain.config.load import check
from posttrain.errors import ConfigError, DataError, Interrupted, PosttrainError
from posttrain.inference.heads import answer_spans, classify, tag
from posttrain.models.heads import load_any
from posttrain.models.load import load_model
from posttrain.models.notes import head_of_model
from posttrain.training.config import TrainConfig
from posttrain.training.preview import preview
from posttrain.training.rows import hold_out
from posttrain.training.run import TrainResult, train
from tests.pico import pico_encoder
from tests.training.tiny import Remembers, weights

PicoPath = Callable[[str], Path]
WORDS = ("Paris", "Taiwan", "Hamlet", "mountain", "yen", "currency", "山", "巴黎", "日圓", "模型")
SENTENCES = [f"{WORDS[i % 10]} {' '.join(WORDS[(i * 7 + j) % 10] for j in range(i % 5))}" for i in range(24)]
OBJECTIVES = ("text_classification", "token_classification", "extractive_qa")


def rows_for(objective: str) -> list[dict[str, Any]]:
    """24 rows of different lengths."""
    if objective == "text_classification":
        return [{"text": text, "label": "zh" if i % 10 > 5 else "en"} for i, text in enumerate(SENTENCES)]
    if objective == "token_classification":
        return [
            {
                "tokens": text.split(),
                "tags": ["B-PLACE" if w in ("Paris", "Taiwan", "巴黎") else "O" for w in text.split()],
            }
            for text in SENTENCES
        ]
    made = []
    for i, text in enumerate(SENTENCES):
        context = f"{text} and {WORDS[i % 7]}。"
        answers = [{"text": WORDS[i % 10], "answer_start": 0}] if i % 6 else []
        made.append({"id": str(i), "question": "Which one?", "context": context, "answers": answers})
    return made


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def bases(pico_path: PicoPath, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"llama": pico_path("llama"), "bert": pico_encoder(tmp_path_factory.mktemp("encoder"))}


def configured(base: Path, data: str, objective: Any, **settings: Any) -> TrainConfig:
    settings = {"optimizer": {"learning_rate": 3e-3, "max_steps": 4}, "max_length": 128, **settings}
    return check({"model": str(base), "data": data, "objective": objective, **settings}, TrainConfig, "test")


def outputs(model: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        found = model(input_ids=torch.tensor([[11, 12, 13, 14]]))
    return [v for k, v in found.items() if k.endswith("logits")]


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_does_not_depend_on_how_it_is_cut(
    bases: dict[str, Path], tmp_path: Path, objective: str, family: str
) -> None:
    """One batch of all rows, or micro batches of one to three rows of which the last is smaller: the same weights, so
    padding and neighbours change nothing."""
    data = write(tmp_path / "rows.jsonl", rows_for(objective)[:11])
    base = tmp_path / "base"  # without dropout, which draws anew for each micro batch
    shutil.copytree(bases[family], base)
    settings = json.loads((base / "config.json").read_text(encoding="utf-8"))
    settings |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    (base / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    found = []
    for batch in ({"rows": 11}, {"rows": 3, "accumulate": 4}, {"rows": 1, "accumulate": 11}):
        config = configured(
            base, data, objective, batch=batch,
            optimizer={"learning_rate": 1e-2, "max_steps": 1, "max_grad_norm": 0, "epsilon": 1.0},
        )  # fmt: skip
        loaded_result = train(config)
        found.append((loaded_result.loss_nats, weights(loaded_result.model)))
    for loss, values in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        for name, value in values.items():
            assert torch.allclose(value, found[0][1][name], atol=2e-7), name


@pytest.mark.parametrize("tuner", ["full", "lora"])
@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_learns_and_comes_back(bases: dict[str, Path], tmp_path: Path, objective: str, family: str, tuner: str) -> None:
    data = write(tmp_path / "rows.jsonl", rows_for(objective))
    kind = {"kind": "lora", "rank": 4} if tuner == "lora" else "full"
    config = configured(bases[family], data, objective, tuner=kind, optimizer={"learning_rate": 1e-2, "max_steps": 15})
    progress = Remembers()
    result = train(config, output=tmp_path / "run", progress=progress)
    losses = [entry["loss_nats"] for entry in result.history if "loss_nats" in entry]
    assert losses[-1] < 0.8 * losses[0]
    said: list[str] = []
    again = load_any(str(tmp_path / "run" / "model"), device="cpu", say=said.append)
    assert said == []
    assert head_of_model(again.model) == head_of_model(result.model)
    for a, b in zip(outputs(result.model), outputs(again.model), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert (tmp_path / "run" / "model" / "adapter_config.json").exists() == (tuner == "lora")
    done = train(config, output=tmp_path / "run")  # finished: read back
    assert torch.allclose(outputs(done.model)[0], outputs(result.model)[0], atol=1e-6)


@pytest.mark.parametrize("tuner", ["full", {"kind": "lora", "rank": 4}])
@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_run_that_was_cut_goes_on(bases: dict[str, Path], tmp_path: Path, family: str, tuner: Any) -> None:
    data = write(tmp_path / "rows.jsonl", rows_for("text_classification"))
    config = configured(
        bases[family], data, "text_classification", tuner=tuner, batch={"rows": 5}, save_every_steps=2,
        optimizer={"learning_rate": 1e-2, "max_steps": 6},
    )  # fmt: skip
    whole = train(config, output=tmp_path / "whole")

    def stop(folder: Path, step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, Interrupted)):
        train(config, output=tmp_path / "cut", on_checkpoint=stop)
    progress = Remembers()
    resumed = train(config, output=tmp_path / "cut", progress=progress)
    assert "going on after step 4" in progress.said
    for a, b in zip(outputs(whole.model), outputs(resumed.model), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def trained(base: Path, tmp_path: Path, objective: Any, rows: list[dict[str, Any]], **settings: Any) -> TrainResult:
    data = write(tmp_path / "rows.jsonl", rows)
    validation = write(
        tmp_path / "validation.jsonl", rows_for(objective if isinstance(objective, str) else objective["kind"])
    )
    config = configured(base, data, objective, validation=validation, keep_best=False, **settings)
    return train(config, output=tmp_path / "run")


def test_validation_scores_of_classes(bases: dict[str, Path], tmp_path: Path) -> None:
    for family, base in bases.items():
        folder = tmp_path / family
        folder.mkdir()
        result = trained(base, folder, "text_classification", rows_for("text_classification")[4:9], batch={"rows": 5})
        last = next(e for e in reversed(result.history) if "validation_loss_nats" in e)
        loaded = load_any(str(folder / "run" / "model"), device="cpu")
        rows = rows_for("text_classification")
        said = [one.labels[0] for one in classify(loaded, [row["text"] for row in rows])]
        gold = [row["label"] for row in rows]
        assert last["validation_accuracy"] == pytest.approx(accuracy_score(gold, said))
        assert last["validation_macro_f1"] == pytest.approx(f1_score(gold, said, average="macro"))
        assert last["validation_matthews"] == pytest.approx(matthews_corrcoef(gold, said))


def test_validation_scores_of_several_labels(bases: dict[str, Path], tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": text, "label": [w for w in ("Paris", "山") if w in text]} for text in SENTENCES
    ]
    data = write(tmp_path / "rows.jsonl", rows)
    config = configured(
        bases["llama"], data, {"kind": "text_classification", "multi_label": True}, validation=data,
        optimizer={"learning_rate": 1e-2, "max_steps": 8}, keep_best=False,
    )  # fmt: skip
    result = train(config, output=tmp_path / "run")
    last = next(e for e in reversed(result.history) if "validation_loss_nats" in e)
    loaded = load_any(str(tmp_path / "run" / "model"), device="cpu")
    said = classify(loaded, [row["text"] for row in rows])
    labels = ("Paris", "山")
    ours = [[label in one.labels for label in labels] for one in said]
    gold = [[label in row["label"] for label in labels] for row in rows]
    assert last["validation_exact_match"] == pytest.approx(accuracy_score(gold, ours))
    assert last["validation_macro_f1"] == pytest.approx(f1_score(gold, ours, average="macro", zero_division=0))
    assert last["validation_micro_f1"] == pytest.approx(f1_score(gold, ours, average="micro", zero_division=0))


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_validation_scores_of_tags_and_answers(bases: dict[str, Path], tmp_path: Path, family: str) -> None:
    from posttrain.data.metrics.labelled import scores_of_answers, scores_of_tags

    settings: dict[str, Any] = {"batch": {"rows": 5}, "optimizer": {"learning_rate": 1e-2, "max_steps": 12}}
    (tmp_path / "tags").mkdir()
    rows = rows_for("token_classification")
    result = trained(bases[family], tmp_path / "tags", "token_classification", rows[:12], **settings)
    last = next(e for e in reversed(result.history) if "validation_loss_nats" in e)
    loaded = load_any(str(tmp_path / "tags" / "run" / "model"), device="cpu")
    said = tag(loaded, [row["tokens"] for row in rows])
    expected = scores_of_tags([one.tags for one in said], [row["tags"] for row in rows], ("B-PLACE", "O"))
    assert {k: last[f"validation_{k}"] for k in expected} == pytest.approx(expected)
    assert set(expected) == {"accuracy", "span_f1"}

    (tmp_path / "spans").mkdir()
    questions = rows_for("extractive_qa")
    objective = {"kind": "extractive_qa", "doc_stride": 4}
    length = 20 if family == "bert" else 48
    result = trained(bases[family], tmp_path / "spans", objective, questions[:12], max_length=length, **settings)
    last = next(e for e in reversed(result.history) if "validation_loss_nats" in e)
    loaded = load_any(str(tmp_path / "spans" / "run" / "model"), device="cpu")
    found = answer_spans(loaded, [q["question"] for q in questions], [q["context"] for q in questions])
    expected = scores_of_answers([one.text for one in found], [[a["text"] for a in q["answers"]] for q in questions])
    assert {k: last[f"validation_{k}"] for k in expected} == pytest.approx(expected)
    assert set(expected) == {"exact_match", "f1", "no_answer_accuracy"}
    notes = head_of_model(loaded.model)
    assert notes is not None
    assert notes.settings["null_answers"] is True  # some rows have no answer
    assert notes.settings["max_length"] == length


def test_labels_are_those_of_the_rows(bases: dict[str, Path], tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", rows_for("text_classification"))
    progress = Remembers()
    train(configured(bases["llama"], data, "text_classification"), progress=progress, output=tmp_path / "run")
    assert progress.said[0] == "2 labels: en, zh"
    assert progress.said[1].startswith("new head for classes of texts (random, seed 0; score): en, zh")
    written = (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")
    assert "labels:\n  - en\n  - zh" in written

    other = {"kind": "text_classification", "labels": ["zh", "en", "fr"]}
    result = train(configured(bases["llama"], data, other))
    assert list(result.model.config.id2label.values()) == ["zh", "en", "fr"]

    progress = Remembers()  # a model that has the head goes on with it
    train(configured(tmp_path / "run" / "model", data, "text_classification"), progress=progress)
    assert progress.said[0] == "2 labels: en, zh"
    assert not any(line.startswith("new head") for line in progress.said)


def test_labels_outside_the_set_are_all_named(bases: dict[str, Path], tmp_path: Path) -> None:
    rows = rows_for("text_classification")
    rows[3]["label"], rows[7]["label"] = "zhh", "fr"
    data = write(tmp_path / "rows.jsonl", rows)
    objective = {"kind": "text_classification", "labels": ["en", "zh"]}
    with pytest.raises(DataError) as caught:
        train(configured(bases["llama"], data, objective))
    said = str(caught.value)
    assert "rows.jsonl:4: the label 'zhh' is not among the 2 labels; did you mean 'zh'? known: en, zh" in said
    assert "rows.jsonl:8: the label 'fr' is not among the 2 labels; known: en, zh" in said


def test_one_label_is_none(bases: dict[str, Path], tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", rows_for("text_classification")[:4])
    with pytest.raises(DataError, match="every row has the label 'en'"):
        train(configured(bases["llama"], data, "text_classification"))
    rows = [{"text": text, "label": f"label {i}"} for i, text in enumerate(SENTENCES * 5)]
    with pytest.raises(DataError, match="120 different labels, such as 'label 0'"):
        train(configured(bases["llama"], write(tmp_path / "many.jsonl", rows), "text_classification"))


def test_class_weights_are_written_out(bases: dict[str, Path], tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", rows_for("text_classification"))
    config = configured(bases["llama"], data, {"kind": "text_classification", "class_weights": "balanced"})
    result = train(config, output=tmp_path / "run")
    written = TrainConfig.model_validate(json.loads(json.dumps(check_yaml(tmp_path / "run" / "config.yaml"))))
    counts = [sum(row["label"] == label for row in rows_for("text_classification")) for label in ("en", "zh")]
    assert written.objective.model_dump()["class_weights"] == pytest.approx(
        {"en": 24 / (2 * counts[0]), "zh": 24 / (2 * counts[1])}
    )
    assert result.steps == 4


def check_yaml(path: Path) -> Any:
    from posttrain.config.load import read_yaml

    return read_yaml(path)


def test_what_cannot_be(bases: dict[str, Path], tmp_path: Path, pico_path: PicoPath) -> None:
    data = write(tmp_path / "rows.jsonl", rows_for("text_classification"))
    with pytest.raises(ConfigError, match="replay: a model with a head has no words"):
        train(configured(bases["llama"], data, "text_classification", replay={"kind": "self"}))
    loaded = load_model(str(bases["llama"]), device="cpu")
    config = configured(bases["llama"], data, {"kind": "text_classification", "labels": ["en", "zh"]})
    with pytest.raises(ConfigError, match="trains heads for classes of texts, the model is one of language models"):
        train(config, loaded=loaded)
    with pytest.raises(PosttrainError, match="has no gemma3_text model with a head for classes of tokens"):
        train(
            configured(
                pico_path("gemma3"),
                write(tmp_path / "t.jsonl", rows_for("token_classification")),
                "token_classification",
            )
        )
    with pytest.raises(DataError, match="'question' is missing"):
        train(configured(bases["llama"], data, "extractive_qa"))
    with pytest.raises(PosttrainError, match="bert is an encoder"):
        train(configured(bases["bert"], data, "clm"))
    train(configured(bases["llama"], data, "text_classification"), output=tmp_path / "run")
    with pytest.raises(PosttrainError, match="no language-model head"):
        train(configured(tmp_path / "run" / "model", data, "clm"))


def test_a_dry_run(bases: dict[str, Path], tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", rows_for("token_classification"))
    for base in bases.values():
        seen = preview(configured(base, data, "token_classification", validation_share=0.25), say=lambda _: None)
        assert (seen.rows, seen.validation_rows, seen.steps) == (18, 6, 4)


def test_windows_of_a_question_stay_on_one_side(bases: dict[str, Path], tmp_path: Path) -> None:
    class Row:
        def __init__(self, location: str) -> None:
            self.location = location

    rows = [Row(f"q{i // 3}") for i in range(30)]
    train_rows, held = hold_out(rows, 0.3, seed=0)
    assert len(held) == 9
    assert not {row.location for row in train_rows} & {row.location for row in held}
    with pytest.raises(DataError, match="one row cannot be split"):
        hold_out(rows[:3], 0.3, seed=0)
