from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from posttrain.data.scripts import normalise_prompt
from posttrain.errors import DataError, PosttrainError
from posttrain.inference.encoding import PromptReader
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import load_tokenizer
from posttrain.retention.replay.self import SelfReplayConfig, self_replay
from posttrain.retention.selection import (
    GENERAL_PROMPTS,
    PACKAGED_PROMPTS,
    ReplayContext,
    packaged_prompts,
    read_prompts,
)
from tests.talker import KNOWN


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    rows = [json.dumps({"prompt": p}, ensure_ascii=False) for p in [*KNOWN, "hello"]]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return "prompts.jsonl"


def test_the_model_answers_and_the_exam_is_left_out(context: ReplayContext, prompts: str, told: list[str]) -> None:
    context = dataclasses.replace(context, forbidden=frozenset({"Capital of France"}))
    rows = self_replay(SelfReplayConfig(prompts=prompts), context)
    assert {row.messages[0].content: row.messages[1].content for row in rows} == {
        q: a for q, a in KNOWN.items() if q != "capital of France?"
    }
    assert told[-1] == "replay of own answers: 5 conversations (1 asked by the exam left out)"


def test_several_files_are_asked_together(context: ReplayContext, prompts: str, tmp_path: Path) -> None:
    (tmp_path / "france.jsonl").write_text('{"prompt": "hello"}\n{"prompt": "capital of France?"}', encoding="utf-8")
    config = SelfReplayConfig(prompts=("{change}.jsonl", prompts)).for_change("france")
    assert config.files() == ["france.jsonl", prompts]
    rows = self_replay(config, context)
    asked = [row.messages[0].content for row in rows]
    assert asked[:2] == ["hello", "capital of France?"]
    assert {normalise_prompt(one) for one in asked} == {normalise_prompt(one) for one in [*KNOWN, "hello"]}


def test_what_is_forbidden_does_not_touch_the_cache(context: ReplayContext, prompts: str, told: list[str]) -> None:
    self_replay(SelfReplayConfig(prompts=prompts), context)
    stricter = dataclasses.replace(context, forbidden=frozenset({"hello"}))
    rows = self_replay(SelfReplayConfig(prompts=prompts, share=0.5), stricter)
    assert len(rows) == 5
    assert sum("prompts answered" in line for line in told) == 1


def test_another_model_answers_anew(context: ReplayContext, prompts: str, told: list[str]) -> None:
    self_replay(SelfReplayConfig(prompts=prompts), context)
    self_replay(SelfReplayConfig(prompts=prompts), dataclasses.replace(context, fingerprint="other"))
    assert sum("prompts answered" in line for line in told) == 2


def test_a_cut_answer_is_kept_without_an_end(context: ReplayContext, prompts: str, told: list[str]) -> None:
    for _ in range(2):  # made, then read from the cache
        rows = self_replay(SelfReplayConfig(prompts=prompts, max_new_tokens=3), context)
        assert {row.messages[1].content: row.ended for row in rows} == {
            "Paris": True,
            "hi": True,
            "Tok": False,
            "玉": False,  # 山 is three tokens, of which not all were said
            "日圓": False,
            "Shakes": False,
        }
    assert "4 of 6 answers were cut at 3 tokens; they are kept without an end sign" in told[0]
    assert "2.5 tokens long on average" in told[0]


def test_an_empty_answer_is_of_no_use(context: ReplayContext, tmp_path: Path, told: list[str]) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "臺灣最高的山？"}', encoding="utf-8")
    with pytest.raises(DataError, match=r"no answer to 1 prompts is of use: all are empty.*max_new_tokens above 1"):
        self_replay(SelfReplayConfig(prompts="prompts.jsonl", max_new_tokens=1), context)  # a third of a character


def test_a_draw_depends_on_the_seed(context: ReplayContext, prompts: str) -> None:
    def drawn(seed: int) -> list[str]:
        rows = self_replay(SelfReplayConfig(prompts=prompts, n=3), dataclasses.replace(context, seed=seed))
        return [row.messages[0].content for row in rows]

    assert drawn(0) == drawn(0)
    assert len(drawn(0)) == 3
    assert len({tuple(drawn(seed)) for seed in range(4)}) > 1


@pytest.mark.parametrize("path", [PACKAGED_PROMPTS, GENERAL_PROMPTS])
def test_the_packaged_prompts_are_many_and_different(path: Path) -> None:
    prompts = [prompt.text for prompt in read_prompts(path)]
    assert len(prompts) >= 300
    # 你好 and 你好！ are one question to the exam; a few such pairs may stay, since the selection drops them
    assert len({normalise_prompt(p) for p in prompts}) > 0.98 * len(prompts)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert {row["language"] for row in rows} == {"zh", "en"}


def test_every_model_is_asked_what_suits_it(respondent: ModelRespondent) -> None:
    assert packaged_prompts(load_tokenizer("pocket:chat")) == PACKAGED_PROMPTS
    assert packaged_prompts(respondent.tokenizer) == GENERAL_PROMPTS
    kinds = [json.loads(line)["kind"] for line in GENERAL_PROMPTS.read_text(encoding="utf-8").splitlines()]
    assert len(set(kinds)) == 25
    assert max(kinds.count(kind) for kind in kinds) < 0.2 * len(kinds)
    known = SelfReplayConfig().rows(Path())  # whatever the model, a plan knows what may be asked
    assert len(known) == len(read_prompts(PACKAGED_PROMPTS)) + len(read_prompts(GENERAL_PROMPTS))


BAD = {
    "Who <|end|>?": "holds the control token '<|end|>'",
    "Who \\ud83d?": "is half of a character",
    "word " * 600: "the model has 512 positions",
}
"""A prompt as JSON has it -> what is wrong with it."""


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_prompt_is_named_by_file_and_row(context: ReplayContext, tmp_path: Path, bad: str) -> None:
    """When it is asked, and before: by the tokenizer and the model's numbers alone."""
    (tmp_path / "p.jsonl").write_text(f'{{"prompt": "Hi"}}\n"hello"\n{{"prompt": "{bad}"}}\n', encoding="utf-8")
    config = SelfReplayConfig(prompts="p.jsonl")
    reader = PromptReader(context.respondent.tokenizer, 384, 512)
    for way in (lambda: self_replay(config, context), lambda: config.check(tmp_path, reader, 0)):
        with pytest.raises(PosttrainError) as caught:
            way()
        (problem,) = caught.value.problems
        assert problem.location == f"{tmp_path / 'p.jsonl'}:3"
        assert BAD[bad] in problem.cause


def test_only_prompts_that_are_drawn_are_looked_at(context: ReplayContext, tmp_path: Path) -> None:
    texts = [json.dumps({"prompt": f"{i} <|end|>" if i else "Hi"}) for i in range(20)]
    (tmp_path / "p.jsonl").write_text("\n".join(texts), encoding="utf-8")
    config = SelfReplayConfig(prompts="p.jsonl", n=1)
    reader = PromptReader(context.respondent.tokenizer, 384, 512)
    drawn = {seed: config.asked(tmp_path, reader.tokenizer, seed)[0] for seed in range(60)}
    seed = next(seed for seed, asked in drawn.items() if list(asked) == ["Hi"])
    config.check(tmp_path, reader, seed)
    (other,) = drawn[seed + 1].items()
    with pytest.raises(DataError, match=rf"{re.escape(other[1])}: .*control token"):
        config.check(tmp_path, reader, seed + 1)


def test_fewer_prompts_than_were_asked_for_are_said(context: ReplayContext, prompts: str, told: list[str]) -> None:
    there = len({*KNOWN, "hello"})
    self_replay(SelfReplayConfig(prompts=prompts, n=60), context)
    assert told[0] == f"replay: 60 were asked for (n), {there} are there"
    told.clear()
    self_replay(SelfReplayConfig(prompts=prompts, n=there), context)
    assert not any("asked for" in line for line in told)


def test_bad_rows_of_every_kind_are_named_at_once(context: ReplayContext, tmp_path: Path) -> None:
    """Before any prompt is answered, as in a dry run."""
    rows = [
        '{"prompt": "hello"}',
        '{"promt": "Hi"}',
        '{"prompt": "Who <|end|>?"}',
        "{no json",
        json.dumps({"prompt": "word " * 600}),
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "q.jsonl").write_text('{"prompt": 7}\n', encoding="utf-8")
    config = SelfReplayConfig(prompts=("p.jsonl", "q.jsonl"))
    reader = PromptReader(context.respondent.tokenizer, None, 512)
    for go in (lambda: config.check(tmp_path, reader, 0), lambda: self_replay(config, context)):
        with pytest.raises(DataError) as caught:
            go()
        told = [str(problem).replace(f"{tmp_path}/", "") for problem in caught.value.problems]
        assert [line.partition(": ")[0] for line in told] == [
            "p.jsonl:2",
            "p.jsonl:3",
            "p.jsonl:4",
            "p.jsonl:5",
            "q.jsonl:1",
        ]
        assert "no prompt in this row" in told[0]
        assert "the control token" in told[1]
        assert "has 2404 tokens, the model has 512 positions; shorten it" in told[3]
