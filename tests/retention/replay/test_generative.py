"""LAMOL's replay, on a model that has learned the toy tasks by heart, so that what it makes up is known."""

from __future__ import annotations

import copy
import dataclasses
import json
from functools import lru_cache
from pathlib import Path

import pytest

from posttrain.data.chat import encode_all
from posttrain.data.records import Conversation, Message
from posttrain.errors import ConfigError, MissingError
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import LoadedModel, load_model
from posttrain.retention.replay.generative import TASKS, GenerativeReplayConfig, generative, shares_of
from posttrain.retention.selection import ReplayContext, Task
from posttrain.training.config import TrainConfig
from posttrain.training.run import train
from tests.talker import KNOWN, talker

COLOURS = {"colour of snow?": "white", "colour of coal?": "black", "colour of grass?": "green"}
WORDS = {"one in Chinese?": "一", "two in Chinese?": "二"}
CONFIG = GenerativeReplayConfig(gamma=0.5, max_prompt_tokens=40, max_new_tokens=16)


def talks(rows: dict[str, str]) -> list[Conversation]:
    return [Conversation((Message("user", q), Message("assistant", a)), f"x:{q}") for q, a in rows.items()]


@lru_cache(maxsize=1)
def learned() -> LoadedModel:
    """The talker after both tasks, learned together with their lessons."""
    loaded = load_model(str(talker()), device="cpu")
    rows = [*talks(COLOURS), *talks(WORDS), *talks(KNOWN)]
    rows += CONFIG.lessons(talks(COLOURS), Task("colours")) + CONFIG.lessons(talks(WORDS), Task("words"))
    encoded = encode_all(rows, loaded.tokenizer, max_length=96).rows
    optimizer = {"learning_rate": 1e-2, "max_steps": 150}
    train(TrainConfig.model_validate({"model": "talker", "optimizer": optimizer}), loaded=loaded, rows=encoded)
    return loaded


@pytest.fixture
def later(context: ReplayContext, tmp_path: Path) -> ReplayContext:
    """At the beginning of a third task of eight rows."""
    first, second = tmp_path / "1", tmp_path / "2"
    CONFIG.leave([], Task("colours", 3, None, first), 0)
    CONFIG.leave([], Task("words", 2, first, second), 0)
    respondent = ModelRespondent(learned())
    return dataclasses.replace(context, respondent=respondent, task=Task("third", 8, second, tmp_path / "3"))


def test_a_lesson_is_the_example_behind_its_tag() -> None:
    (row, *_) = CONFIG.lessons(talks(COLOURS), Task("colours"))
    assert [(m.role, m.content, m.supervised) for m in row.messages] == [
        ("system", "task colours", False),
        ("user", "colour of snow?", True),
        ("assistant", "white", True),
    ]
    assert row.weight == 0.25
    (shared, *_) = GenerativeReplayConfig(per_task=False).lessons(talks(COLOURS), Task())
    assert shared.messages[0].content == "task"
    tokenizer = learned().tokenizer
    (encoded,) = encode_all([row], tokenizer, max_length=96).rows
    assert encoded.weight == 0.25
    supervised = [i for i, label in zip(encoded.input_ids, encoded.labels, strict=True) if label != -100]
    assert tokenizer.decode(supervised) == "colour of snow?<|end|>white<|end|>"


def test_what_it_makes_up_is_what_it_has_learned(later: ReplayContext, told: list[str]) -> None:
    rows = generative(CONFIG, later)
    to_answer = [row for row in rows if row.weight == 1.0]
    to_write = [row for row in rows if row.weight == 0.25]
    assert [row.messages[1:] for row in to_write] == [
        tuple(dataclasses.replace(m, train=True) for m in row.messages) for row in to_answer
    ]
    made = {row.messages[0].content: row.messages[1].content for row in to_answer}
    assert made.items() <= {**COLOURS, **WORDS}.items()
    assert len(made) == 4  # ceil(0.5 x 8): two of each task
    tags = [row.messages[0].content for row in to_write]
    assert tags == ["task colours"] * 2 + ["task words"] * 2
    assert all((row.messages[1].content in COLOURS) == (row.messages[0].content == "task colours") for row in to_write)
    assert told[0].startswith("replay of made-up examples (task colours): 2 of 2; ")
    assert generative(CONFIG, later) == rows  # by the seed alone
    sampled = GenerativeReplayConfig(**{**CONFIG.model_dump(), "answers": "sampled"})
    assert len(generative(sampled, later)) == 8


def test_a_cut_answer_has_no_end_in_either_row(later: ReplayContext, told: list[str]) -> None:
    short = GenerativeReplayConfig(**{**CONFIG.model_dump(), "max_new_tokens": 1})
    rows = generative(short, later)
    assert rows
    assert {row.ended for row in rows} == {False}  # one token is the limit: where it would end is not known
    tok = later.respondent.tokenizer
    ends = {row.input_ids[-1] for row in encode_all(rows, tok, max_length=64).rows}
    assert not ends & set(tok.all_special_ids)
    assert any("answers were cut and have no end sign" in line for line in told)


def test_what_is_no_example_is_counted(later: ReplayContext, told: list[str]) -> None:
    short = GenerativeReplayConfig(**{**CONFIG.model_dump(), "max_prompt_tokens": 2})
    assert generative(short, later) == []
    assert "0 of 2; 14 sampled; left out 14 without an end" in told[0]  # 2, then twice 4 and 4 and 4
    asked = dataclasses.replace(later, forbidden=frozenset(COLOURS))
    rows = generative(CONFIG, asked)
    assert {row.messages[1].content for row in rows if row.weight != 1.0} <= set(WORDS)
    (line,) = [text for text in told[1:] if "(task colours): 0 of 2" in text]
    assert " 0 asked by the exam" not in line
    many = dataclasses.replace(later, task=later.task._replace(rows=20))
    generative(CONFIG, many)  # ten, of five that there are
    (line,) = [text for text in told if "(task colours): 3 of 5" in text]
    assert " 0 repeated" not in line


def test_a_turn_that_does_not_end_as_turns_do_is_broken(later: ReplayContext, told: list[str]) -> None:
    """A model that writes the next turn's tag in place of the end."""
    broken = ModelRespondent(learned()._replace(model=copy.deepcopy(learned().model)))
    weight = broken.model.get_output_embeddings().weight.data
    end, tag = 2, 5  # <|end|>, <|assistant|>
    weight[[end, tag]] = weight[[tag, end]]
    generative(CONFIG, dataclasses.replace(later, respondent=broken))
    assert not all(" 0 of another form" in line for line in told if "of made-up" in line)


def test_the_first_task_has_nothing_to_replay(context: ReplayContext, told: list[str], tmp_path: Path) -> None:
    assert generative(CONFIG, context) == []
    assert told == ["replay of made-up examples: there is no earlier task, so nothing is replayed"]
    with pytest.raises(MissingError, match="has not learned to write"):
        generative(CONFIG, dataclasses.replace(context, task=Task("x", 3, tmp_path)))


def test_names_are_handed_on(tmp_path: Path) -> None:
    CONFIG.leave([], Task("a", 3, None, tmp_path / "1"), 0)
    CONFIG.leave([], Task("b", 3, tmp_path / "1", tmp_path / "2"), 0)
    assert json.loads((tmp_path / "2" / TASKS).read_text(encoding="utf-8")) == ["a", "b"]
    own = GenerativeReplayConfig(task="mine")
    assert own.lessons(talks(WORDS), Task())[0].messages[0].content == "task mine"
    with pytest.raises(ConfigError, match="the task has no name for its tag"):
        CONFIG.lessons(talks(WORDS), Task())


def test_only_questions_with_answers_can_be_made_up() -> None:
    long = Conversation((*talks(WORDS)[0].messages, Message("user", "?"), Message("assistant", "!")), "x:9")
    with pytest.raises(ConfigError, match="x:9: only a question with its answer can be made up"):
        CONFIG.lessons([long], Task("t"))


def test_numbers_and_shares() -> None:
    assert shares_of(5, ["a", "b", "c"]) == {"a": 2, "b": 2, "c": 1}
    assert CONFIG.share_of(300, 100) == 0.25
    assert GenerativeReplayConfig(share=0.5).share_of(300, 100) == 0.5
    assert CONFIG.share_of(300, 0) == 0.0
