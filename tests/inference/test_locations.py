"""What a text is called in an error: the location that whoever asks knows, else its number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.records import Message
from posttrain.errors import DataError, PosttrainError, Problem, TemplateError
from posttrain.inference.encoding import PromptReader
from posttrain.inference.locations import among, each, listed, located, location_of
from posttrain.inference.protocol import Plain
from posttrain.inference.respondents import ModelRespondent, PromptedRespondent
from posttrain.models.load import load_model
from tests.pico import VOCABULARY

NEW, HALF = "<new>", "\ud83d"
BAD = {
    "a control token": ("Hi <|end|>", "holds the control token '<|end|>'"),
    "half a surrogate": (f"Hi {HALF}", "holds half a surrogate pair ('\\ud83d')"),
    "too long": ("word " * 600, "the model has 512 positions"),
    "an unknown token": (f"Hi {NEW}", "holds the token '<new>' (id 384)"),
}


@pytest.fixture(scope="module")
def respondent(pico_path: Callable[[str], Path]) -> ModelRespondent:
    loaded = load_model(str(pico_path("llama")), device="cpu")
    loaded.tokenizer.add_tokens([NEW])
    return ModelRespondent(loaded)


def places(call: Callable[[], Any]) -> list[str]:
    with pytest.raises(PosttrainError) as caught:
        call()
    return [problem.location for problem in caught.value.problems]


@pytest.mark.parametrize("fault", BAD)
@pytest.mark.parametrize("told", [False, True])
def test_every_bad_text_of_a_call_has_its_place(respondent: ModelRespondent, fault: str, told: bool) -> None:
    """All at once; whichever way a model is asked, and with a text put before."""
    bad, cause = BAD[fault]
    asked: Any = PromptedRespondent(respondent, "Be brief.") if told else respondent
    prompts: list[Any] = ["Hi", bad, "Hm", (Message("user", bad),)]
    ways: list[Callable[[], Any]] = [
        lambda: asked.answers(prompts, max_new_tokens=4),
        lambda: asked.logprobs([(prompt, "Yes") for prompt in prompts]),
        lambda: asked.next_token_logprobs(prompts, ["Yes"] * 4),
    ]
    for way in ways:
        with located(lambda number: f"rows.jsonl:{number + 10}"):
            assert places(way) == ["rows.jsonl:11", "rows.jsonl:13"]
        with pytest.raises(PosttrainError) as caught:
            way()
        assert cause in caught.value.problems[0].cause
    if fault != "too long":  # it is cut, or read in windows
        for way in (
            lambda: asked.rolling(["Hi", "one " * 2000 + bad, "Hm", bad]),
            lambda: asked.logprobs([(Plain(prompt if isinstance(prompt, str) else bad), " x") for prompt in prompts]),
        ):
            with located(lambda number: f"rows.jsonl:{number + 10}"):
                assert places(way) == ["rows.jsonl:11", "rows.jsonl:13"]


def test_what_a_model_reads_is_known_without_its_weights(respondent: ModelRespondent) -> None:
    """The same errors as of the model itself."""
    reader = PromptReader(respondent.tokenizer, VOCABULARY, 512)
    for bad, _ in BAD.values():
        with pytest.raises(PosttrainError) as ours, located(str):
            reader.check(["Hi", bad])
        with pytest.raises(PosttrainError) as theirs, located(str):
            respondent.answers(["Hi", bad])
        assert (type(ours.value), ours.value.problems) == (type(theirs.value), theirs.value.problems)
    reader.check(["Hi", (Message("user", "Hm"),), Plain("x")])
    PromptReader(respondent.tokenizer, None, 512).check([BAD["an unknown token"][0]])


def test_numbers_where_nobody_knows_more() -> None:
    assert location_of("prompt", 2) == "prompt 3"
    assert location_of("prompt", 2, "the prompt 'Hi'") == "the prompt 'Hi'"
    with among([4, 7].__getitem__):
        assert location_of("prompt", 1) == "request 8"
    with located(lambda number: f"row {number}"), among([4, 7].__getitem__):
        assert location_of("prompt", 1, "x") == "row 7"
        with located(str):
            assert location_of("prompt", 1) == "1"
        assert location_of("prompt", 0) == "row 4"
    assert location_of("prompt", 0) == "prompt 1"


def test_many_faults_are_counted_and_one_of_all_is_said_once() -> None:
    def encode(number: int) -> int:
        if number % 2:
            raise TemplateError(Problem("", f"holds {number}"))
        return number

    assert each("text", [0, 2], encode) == [0, 2]
    with pytest.raises(TemplateError) as caught:
        each("text", list(range(50)), encode)
    problems = caught.value.problems
    assert [problems[0], problems[19]] == [Problem("text 2", "holds 1"), Problem("text 40", "holds 39")]
    assert problems[20:] == (Problem("", "... and 5 more"),)
    same = [Problem(f"text {i}", "the tokenizer has no chat template", "use another") for i in range(4)]
    said = "the tokenizer has no chat template (so with all 4 texts)"
    assert listed(same, 4) == [Problem("text 0", said, "use another")]
    assert listed(same, 5) == same
    with pytest.raises(DataError, match=r"text 1: the tokenizer has no chat template \(so with all 3 texts\)"):
        each("text", [0, 1, 2], refuse)


def refuse(number: int) -> None:
    raise DataError(Problem("", "the tokenizer has no chat template"))
