from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from posttrain.errors import DataError
from posttrain.retention.replay.self import SelfReplayConfig, self_replay
from posttrain.retention.selection import PACKAGED_PROMPTS, ReplayContext, normalise_prompt, read_prompts
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


def test_a_cut_answer_is_left_out(context: ReplayContext, prompts: str, told: list[str]) -> None:
    rows = self_replay(SelfReplayConfig(prompts=prompts, max_new_tokens=3), context)
    assert {row.messages[1].content for row in rows} == {"Paris", "hi"}
    assert "6 prompts answered, 4 of them cut" in told[0]
    with pytest.raises(
        DataError, match=r"no answer to 6 prompts is of use: 6 did not end.*raise max_new_tokens above 1"
    ):
        self_replay(SelfReplayConfig(prompts=prompts, max_new_tokens=1), context)


def test_a_draw_depends_on_the_seed(context: ReplayContext, prompts: str) -> None:
    def drawn(seed: int) -> list[str]:
        rows = self_replay(SelfReplayConfig(prompts=prompts, n=3), dataclasses.replace(context, seed=seed))
        return [row.messages[0].content for row in rows]

    assert drawn(0) == drawn(0)
    assert len(drawn(0)) == 3
    assert len({tuple(drawn(seed)) for seed in range(4)}) > 1


def test_the_packaged_prompts_are_many_and_different() -> None:
    prompts = read_prompts(PACKAGED_PROMPTS)
    assert len(prompts) >= 100
    # 你好 and 你好！ are one question to the exam; a few such pairs may stay, since the selection drops them
    assert len({normalise_prompt(p) for p in prompts}) > 0.98 * len(prompts)
    languages = {json.loads(line)["language"] for line in PACKAGED_PROMPTS.read_text(encoding="utf-8").splitlines()}
    assert languages == {"zh", "en"}
