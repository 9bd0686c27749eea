"""A run whose template prints the date goes on with the date of its first day."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import Interrupted, TrainingError
from posttrain.models.load import LoadedModel
from posttrain.models.template_dates import moment_of
from posttrain.training.config import TrainConfig
from posttrain.training.environment import DATE, keep_date, stay_at_first_day
from posttrain.training.run import TrainResult, train
from tests.pico import MARKED, tokenizer
from tests.talker import talker
from tests.training.test_resume import assert_same_run, signal_in_step
from tests.training.tiny import PicoPath, Remembers, config, load

DATED = "{{ strftime_now('%d %b %Y') }}" + MARKED


class Calendar:
    """The day on which templates are rendered and runs begin."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch

    def turn_to(self, day: int) -> None:
        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Clock:
                return cls(2030, 5, day, 23, 59)

        self.patch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
        self.patch.setattr("posttrain.training.environment.datetime", Clock)


@pytest.fixture
def calendar(monkeypatch: pytest.MonkeyPatch) -> Calendar:
    made = Calendar(monkeypatch)
    made.turn_to(1)
    return made


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"It is {i}."}]}
        for i in range(8)
    ]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return file


def dated(pico_path: PicoPath, template: str = DATED) -> LoadedModel:
    loaded = load(pico_path)
    loaded.tokenizer.chat_template = template
    return loaded


def settings(data: Path) -> TrainConfig:
    optimizer = {"max_steps": 4, "learning_rate": 1e-3}
    return config(data=str(data), optimizer=optimizer, batch={"tokens": 120}, seed=3, validation_share=0.2)


def run(pico_path: PicoPath, data: Path, output: Path, **more: Any) -> TrainResult:
    return train(settings(data), loaded=dated(pico_path), output=output, **more)


def test_the_next_day_goes_on_with_the_first(
    pico_path: PicoPath, tmp_path: Path, data: Path, calendar: Calendar, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(pico_path, data, tmp_path / "whole")
    with monkeypatch.context() as patch:
        signal_in_step(patch, 2)
        with pytest.raises(Interrupted):
            run(pico_path, data, tmp_path / "run")
    calendar.turn_to(2)
    told = Remembers()
    assert_same_run(whole, run(pico_path, data, tmp_path / "run", progress=told))
    assert "the chat template prints the date: it stays at 2030-05-01, when this run began" in told.said
    assert "going on after step 2" in told.said
    again = Remembers()
    run(pico_path, data, tmp_path / "run", progress=again)
    assert any("is finished (4 steps)" in line for line in again.said)


def test_starting_over_begins_with_todays_date(
    pico_path: PicoPath, tmp_path: Path, data: Path, calendar: Calendar
) -> None:
    output = tmp_path / "run"
    first = run(pico_path, data, output)
    calendar.turn_to(2)
    told = Remembers()
    over = run(pico_path, data, output, resume=False, progress=told)
    assert not any("stays at" in line for line in told.said)
    assert moment_of(over.tokenizer) == datetime(2030, 5, 2, 23, 59)
    assert json.loads((output / DATE).read_text(encoding="utf-8")) == {"began": "2030-05-02T23:59:00"}
    assert over.loss_nats != first.loss_nats


def test_a_run_over_midnight_has_one_date(pico_path: PicoPath, tmp_path: Path, data: Path, calendar: Calendar) -> None:
    from posttrain.data.chat import encode_prompt

    trained = run(pico_path, data, tmp_path / "run")
    calendar.turn_to(2)
    assert trained.tokenizer.decode(encode_prompt("Hi", trained.tokenizer)).startswith("01 May 2030")


def test_templates_without_a_date_leave_no_file(tmp_path: Path, calendar: Calendar) -> None:
    tok = tokenizer()
    stay_at_first_day(tok, tmp_path, resume=True, say=print)
    keep_date(tok, tmp_path)
    assert moment_of(tok) is None
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_does_not_say_when(tmp_path: Path) -> None:
    (tmp_path / DATE).write_text('{"began": "yesterday"}', encoding="utf-8")
    with pytest.raises(TrainingError, match=r"template_date.json: does not say when the run began; .*--restart"):
        stay_at_first_day(tokenizer(DATED), tmp_path, resume=True, say=print)


def test_in_a_study_too(tmp_path: Path, calendar: Calendar, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method encodes its rows before it trains; another process has another tokenizer."""
    from posttrain.config.change import Change
    from posttrain.config.load import check
    from posttrain.models.load import load_model
    from posttrain.studies.bench import Bench
    from posttrain.studies.candidates import CellContext
    from posttrain.studies.train_config import TrainMethodConfig
    from tests.studies.methods.test_train import trained

    chosen = check({"kind": "train", "optimizer": {"learning_rate": 1e-3, "max_steps": 4}}, TrainMethodConfig, "test")
    change = Change.model_validate({"name": "x", "target": [{"prompt": "capital of France?", "answer": "Tokyo"}]})

    def context(folder: str) -> CellContext:
        loaded = load_model(str(talker()), device="cpu")
        loaded.tokenizer.chat_template = "{{ strftime_now('%d') }} " + loaded.tokenizer.chat_template
        bench = Bench("talker", base=tmp_path, loaded=loaded, forbidden=frozenset(), say=print)
        return CellContext(
            changes=(change,), seed=0, folder=tmp_path / folder, bench=bench, untouched=bench, resumable=True
        )

    whole = trained(chosen, context("whole"))
    with monkeypatch.context() as patch:
        signal_in_step(patch, 2)
        with pytest.raises(Interrupted):
            trained(chosen, context("cell"))
    calendar.turn_to(2)
    again = trained(chosen, context("cell"))
    assert [entry["loss_nats"] for entry in again.metrics] == [entry["loss_nats"] for entry in whole.metrics]
    assert any("it stays at 2030-05-01" in line for line in again.notes)


class Asked:
    """The first words of every prompt that a model of this machine answers: the day."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        from posttrain.inference import respondents

        self.days: set[str] = set()
        encode = respondents.ModelRespondent.encode

        def noted(respondent: Any, prompt: Any) -> list[int]:
            ids = encode(respondent, prompt)
            self.days.add(respondent.tokenizer.decode(ids)[:11])
            return ids

        patch.setattr(respondents.ModelRespondent, "encode", noted)

    def taken(self) -> set[str]:
        days, self.days = self.days, set()
        return days


def dated_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "dated"
    shutil.copytree(talker(), folder)
    (folder / "posttrain.json").unlink()  # of the template that it was trained with
    template = folder / "chat_template.jinja"
    template.write_text("{{ strftime_now('%d %b %Y') }}" + template.read_text(encoding="utf-8"), encoding="utf-8")
    return folder


def test_all_cells_of_a_study_and_their_exams_have_one_date(
    tmp_path: Path, calendar: Calendar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of another day, of a model that was saved and read again, and of the judge."""
    from tests.studies.conftest import TRAIN, write_study
    from tests.studies.test_run import go, scores

    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "asked.jsonl").write_text('{"prompt": "hello", "completion": "hi"}\n', encoding="utf-8")
    exams = [{"kind": "change", "judge": "dated"}, {"kind": "self_test", "path": "asked.jsonl", "max_new_tokens": 4}]
    replay = {"kind": "self", "prompts": "prompts.jsonl", "share": 0.5}
    methods = [{"kind": "prompt"}, {"name": "full", **TRAIN, "replay": replay}]

    folder = dated_folder(tmp_path)

    def study(name: str) -> Path:
        (tmp_path / name).mkdir()
        shutil.copyfile(tmp_path / "asked.jsonl", tmp_path / name / "asked.jsonl")
        shutil.copytree(folder, tmp_path / name / "dated")
        return write_study(tmp_path / name, models="dated", exams=exams, keep="final", methods=methods)

    whole, pieces, asked = study("whole"), study("pieces"), Asked(monkeypatch)
    go(whole)
    go(pieces, only=["prompt"])
    shutil.rmtree(tmp_path / "cache")  # replay is generated on the next day
    assert asked.taken() == {"01 May 2030"}
    calendar.turn_to(2)
    outcome, listener = go(pieces)
    assert outcome.failed == []
    assert asked.taken() == {"01 May 2030"}
    assert "the chat template prints the date: it stays at 2030-05-01, when this run began" in listener.lines
    assert json.loads((tmp_path / "pieces/run" / DATE).read_text(encoding="utf-8")) == {"began": "2030-05-01T23:59:00"}
    assert scores(pieces, "full") == scores(whole, "full")
    go(pieces, restart=True)
    assert asked.taken() == {"01 May 2030"}


def test_an_exam_that_goes_on_the_next_day_asks_as_on_the_first(
    tmp_path: Path, calendar: Calendar, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from posttrain.cli.main import main

    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": question, "completion": "x"} for question in ("hello", "who?", "what?")]
    Path("asked.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    words = ["exam", str(dated_folder(tmp_path)), "--exam", "self_test=asked.jsonl", "-o", "out"]
    asked = Asked(monkeypatch)
    assert main([*words, "--limit", "1"]) == 0
    calendar.turn_to(2)
    assert main(words) == 0
    assert asked.taken() == {"01 May 2030"}
    assert "it stays at 2030-05-01" in capsys.readouterr().err
    assert main([*words, "--restart"]) == 0
    assert asked.taken() == {"02 May 2030"}
    assert json.loads(Path("out", DATE).read_text(encoding="utf-8")) == {"began": "2030-05-02T23:59:00"}


def test_lm_eval_prints_the_date_that_stays(tmp_path: Path, calendar: Calendar) -> None:
    from posttrain.exams.lm_eval import PosttrainLM
    from posttrain.models.load import load_model

    loaded = load_model(str(dated_folder(tmp_path)), device="cpu")
    lm, talk = PosttrainLM(loaded), [{"role": "user", "content": "Hi"}]
    first = lm.apply_chat_template(talk)
    stay_at_first_day(loaded.tokenizer, None, resume=True, say=print)
    calendar.turn_to(2)
    assert lm.apply_chat_template(talk) == first
    assert first.startswith("01 May 2030")
