"""What is an API's alone: requests, retries, rates, costs. What every respondent does is in `test_contract.py`."""

from __future__ import annotations

from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.records import Message
from posttrain.errors import PosttrainError
from posttrain.inference.kinds.api import ApiConfig, ApiRespondent, RateLimit
from posttrain.inference.opening import open_respondent
from posttrain.inference.protocol import Plain, Scored
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import load_model
from tests.inference.kinds.stand_ins import Server, served
from tests.pico import pico


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = pico("llama", tmp_path_factory.mktemp("api"))
    with served(ModelRespondent(load_model(str(folder), device="cpu"))) as address:
        yield address


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Server.failures, Server.seen, Server.echoes = [], [], True


def respondent(address: str, **settings: Any) -> ApiRespondent:
    return ApiRespondent(ApiConfig(model="pico", base_url=address, retries=2, **settings))


def test_every_field_of_a_conversation_is_sent(address: str) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": {"x": "臺"}}}
    turns = (
        Message("user", "hi", name="Ann"),
        Message("assistant", "", reasoning="Hm", tool_calls=(call,)),
        Message("tool", "1", tool_call_id="a"),
    )
    assert respondent(address, system_prefix="Be")._messages(turns) == [
        {"role": "system", "content": "Be"},
        {"role": "user", "content": "hi", "name": "Ann"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "Hm",
            "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": "臺"}'}}],
        },
        {"role": "tool", "content": "1", "tool_call_id": "a"},
    ]
    assert respondent(address)._messages("hi") == [{"role": "user", "content": "hi"}]


def test_four_stop_strings_are_sent_and_all_are_kept_to(address: str) -> None:
    whole = respondent(address).generate([Plain("The cap")], max_new_tokens=8)[0]
    middle = whole[2:4]
    stop = ["QQ", "ZZ", "QZ", "ZQ", middle]
    answer = respondent(address).answers([Plain("The cap")], max_new_tokens=8, stop=stop)[0]
    assert (answer.text, answer.ended) == (whole[: whole.find(middle)], True)
    assert Server.seen[-1]["stop"] == stop[:4]


def test_cost_is_counted_from_the_bill(address: str) -> None:
    api = respondent(address, price_in_usd=2.0, price_out_usd=30.0)
    tokens = sum(answer.tokens for answer in api.answers(["a", "b", "c"], max_new_tokens=4))
    assert api.usage.prompt_tokens == 300
    assert api.usage.generated_tokens == tokens > 3
    assert api.usage.cost_usd == pytest.approx((300 * 2 + tokens * 30) / 1e6)


def test_a_busy_server_is_asked_again(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("posttrain.inference.kinds.api.time.sleep", waited.append)
    Server.failures = [(429, {"retry-after": "7"}), (503, {})]
    assert len(respondent(address, concurrency=1).answers(["hello"])) == 1
    assert len(Server.seen) == 3
    assert waited[0] == 7.0
    assert 0.5 < waited[1] < 1.5


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [(formatdate(1_000_000_000 + 30, usegmt=True), 30, 30), (formatdate(0), 0, 1), ("soon", 0, 1)],
)
def test_the_time_to_wait_may_be_a_date(
    address: str, monkeypatch: pytest.MonkeyPatch, value: str, least: float, most: float
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("posttrain.inference.kinds.api.time.sleep", waited.append)
    monkeypatch.setattr("posttrain.inference.kinds.api.time.time", lambda: 1_000_000_000.0)
    Server.failures = [(429, {"retry-after": value})]
    respondent(address, concurrency=1).answers(["hello"])
    assert least <= waited[0] <= most


def test_a_server_that_stays_busy(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.inference.kinds.api.time.sleep", lambda _: None)
    Server.failures = [(500, {})] * 3
    with pytest.raises(PosttrainError, match=r"no answer after 3 tries: HTTP 500: not now"):
        respondent(address).answers(["hello"])


def test_a_refused_key_is_not_tried_again(address: str) -> None:
    Server.failures = [(401, {})]
    with pytest.raises(PosttrainError, match="the key is missing or wrong"):
        respondent(address).answers(["hello"])
    assert len(Server.seen) == 1


def test_the_key_is_read_from_the_environment(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    api = respondent(address, key_env="MY_KEY")
    api.answers(["hello"])
    assert Server.seen[-1]["key"] == "Bearer secret"
    assert "secret" not in api.fingerprint


def test_nobody_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.inference.kinds.api.time.sleep", lambda _: None)
    with pytest.raises(PosttrainError, match="no answer after 3 tries: ConnectError"):
        respondent("http://127.0.0.1:9/v1").answers(["hello"])


def test_an_echoed_token_that_spans_the_seam_is_the_continuations(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A choice that a server merges with its context has a likelihood; with no token of its own it would always win."""
    api = respondent(address)
    texts, values = ["2+2", "==", "."], [None, -2.0, -3.0]  # the last is what the server generates
    shown = {"text_offset": [0, 3, 5], "token_logprobs": values, "top_logprobs": [None, {"==": -2.0}, {".": -3.0}]}
    monkeypatch.setattr(api, "_post", lambda *_: ({"logprobs": shown, "text": "".join(texts)}, None))
    assert api.logprobs([(Plain("2+2="), "=")]) == [Scored(-2.0, 1, 1, ("==",))]
    assert api.logprobs([(Plain("2+2"), "==")]) == [Scored(-2.0, 1, 1, ("==",))]


def test_chats_and_deaf_servers_cannot_be_scored(address: str) -> None:
    with pytest.raises(PosttrainError, match="a chat API does not say how likely"):
        respondent(address).logprobs([("hello", "hi")])
    Server.echoes = False
    with pytest.raises(PosttrainError, match="does not echo its prompt"):
        respondent(address).logprobs([(Plain("a"), "b")])


def test_the_rate_is_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, slept = [100.0], list[float]()
    monkeypatch.setattr("posttrain.inference.kinds.api.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("posttrain.inference.kinds.api.time.sleep", slept.append)
    limit = RateLimit(60)
    for _ in range(3):
        limit.wait()
    assert slept == [1.0, 2.0]
    clock[0] += 10
    limit.wait()
    assert slept == [1.0, 2.0]


def test_opened_by_name_and_by_file(address: str, tmp_path: Path) -> None:
    named = open_respondent(f"api:pico@{address}")
    assert named.generate(["hello"]) == Server.model.generate(["hello"])
    file = tmp_path / "server.yaml"
    file.write_text(f"kind: api\nmodel: pico\nbase_url: {address}\n", encoding="utf-8")
    assert open_respondent(str(file)).fingerprint == named.fingerprint
    file.write_text(f"kind: api\nmodel: pico\nbase_ur: {address}\n", encoding="utf-8")
    with pytest.raises(PosttrainError, match=r"server.yaml:3: unknown key 'base_ur'; did you mean 'base_url'"):
        open_respondent(str(file))
    for name in ("api:pico@", "api:pico@localhost:8000"):
        with pytest.raises(PosttrainError, match=f"{name}: base_url: an address is expected that begins with http"):
            open_respondent(name)
    file.write_text("model: pico\n", encoding="utf-8")
    with pytest.raises(PosttrainError, match="does not say what kind"):
        open_respondent(str(file))
