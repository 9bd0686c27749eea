from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from posttrain.config.base import Config
from posttrain.errors import DataError, PosttrainError, TemplateError
from posttrain.inference import support
from posttrain.inference.attention import Support
from posttrain.models.fingerprint import template_fingerprint
from posttrain.models.save import save_model
from posttrain.retention.replay.self import SelfReplayConfig
from posttrain.studies.bench import Bench
from tests.talker import talker


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def bench(tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "p.jsonl").write_text('"hello"\n"who wrote Hamlet?"\n', encoding="utf-8")
    return Bench(str(talker()), base=tmp_path, forbidden=frozenset({"Hello"}), say=told.append)


def test_of_a_training_s_folder_it_is_said_which_model_is_taken(tmp_path: Path, told: list[str]) -> None:
    shutil.copytree(talker(), tmp_path / "first" / "model")
    (tmp_path / "first" / "result.json").write_text("{}")
    made = Bench("first", base=tmp_path, forbidden=frozenset(), say=told.append)
    run = tmp_path / "first"
    assert told == [f"{run}: its model is {run / 'model'}"]
    assert made.name == "first"


def replay(**fields: object) -> Config:
    return SelfReplayConfig.model_validate({"prompts": "p.jsonl", **fields})


def test_every_copy_is_fresh(bench: Bench) -> None:
    first = bench.working().model
    with torch.no_grad():
        next(first.parameters()).add_(1.0)
    second = bench.working().model
    assert second is not first
    assert torch.equal(next(second.parameters()), next(bench.loaded.model.parameters()))
    bench.check_untouched()
    assert not second.training


def test_what_is_lent_shares_the_weights_and_no_more(bench: Bench) -> None:
    assert bench.fingerprint
    lent, own = bench.lent().model, bench.loaded.model
    theirs = dict(own.named_parameters())
    assert all(p is not theirs[n] and p.data_ptr() == theirs[n].data_ptr() for n, p in lent.named_parameters())
    assert lent.get_output_embeddings().weight is lent.get_input_embeddings().weight or (
        own.get_output_embeddings().weight is not own.get_input_embeddings().weight
    )
    lent.requires_grad_(False)
    assert all(p.requires_grad for p in own.parameters())
    bench.check_untouched()


def test_every_cell_is_read_as_the_untouched_model_is(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One trial decides how the readings of a study share prefixes, so that no cell goes down a path of its own."""
    trials: list[object] = []

    def trial(model: object, *_: object) -> Support:
        trials.append(model)
        return Support("flat")

    monkeypatch.setattr(support, "_tried", trial)
    support.support(bench.loaded.model, 100)
    save_model(bench.loaded.model, bench.loaded.tokenizer, tmp_path / "product")
    for model in (bench.working().model, bench.lent().model, bench.load(tmp_path / "product").model):
        assert support.support(model, 100).kind == "flat"
    assert len(trials) == 1


def test_a_touched_model_is_found_out(bench: Bench) -> None:
    assert bench.fingerprint
    with torch.no_grad():
        next(bench.loaded.model.parameters())[0, 0] += 1e-3
    with pytest.raises(PosttrainError, match="was changed during the study"):
        bench.check_untouched()


def test_a_replay_is_made_once_whatever_its_share(bench: Bench, told: list[str]) -> None:
    rows = bench.replay(replay(share=0.9), 0, 64)
    assert bench.replay(replay(share=0.5), 0, 64) is rows
    assert len(rows) == 1  # hello is asked by the exam
    assert sum("prompts answered" in line for line in told) == 1
    assert bench.replay(replay(share=0.9), 1, 64) is not rows


def test_a_replay_that_fails_is_not_tried_again(bench: Bench, told: list[str]) -> None:
    errors = []
    for _ in range(2):
        with pytest.raises(PosttrainError) as caught:
            bench.replay(replay(), 0, 2)  # every row is longer
        errors.append(caught.value)
    assert errors[0] is errors[1]
    assert len(told) == 2  # answered once, and what was left out


def test_rows_that_are_too_long_are_counted(bench: Bench, told: list[str], tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('"日本的貨幣？"\n"who wrote Hamlet?"\n', encoding="utf-8")
    rows = bench.replay(replay(), 0, 64)
    short, long = sorted(len(row.input_ids) for row in rows)
    assert len(bench.replay(replay(), 0, long - 1)) == 1
    assert told[-1] == f"replay: 1 rows longer than {long - 1} tokens and 0 bad ones left out"
    with pytest.raises(DataError, match=f"2 dropped as longer than {short - 1}"):
        bench.replay(replay(), 0, short - 1)


def test_answers_before_are_kept_for_one_change_at_a_time(bench: Bench) -> None:
    first = bench.before_cache("a")
    assert bench.before_cache("a") is first
    assert bench.before_cache("b") is not first


def test_a_template_mismatch_is_refused_unless_told(tmp_path: Path, told: list[str]) -> None:
    folder = Path(shutil.copytree(talker(), tmp_path / "model"))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}<|end|>{% endfor %}")
    with pytest.raises(TemplateError, match="allow_template_mismatch: true"):
        Bench(str(folder), base=tmp_path, forbidden=frozenset(), say=told.append)
    told_so = Bench(str(folder), base=tmp_path, forbidden=frozenset(), say=told.append, allow_template_mismatch=True)
    assert told_so.fingerprint.endswith(template_fingerprint(told_so.loaded.tokenizer))
