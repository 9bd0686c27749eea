"""Any OpenAI-compatible endpoint: a vendor's API, or the user's own server (vLLM, llama.cpp, SGLang, TGI, ...).

Answers come from `/chat/completions` (plain text: `/completions`). Only a server that returns the prompt with
log-probabilities from `/completions` (`echo`, as vLLM does) can say how likely a given text is. Requests run in
parallel, within a rate limit. Requests that end with 429, 5xx or a broken connection are tried again, after the time of
`Retry-After`. The cost is counted from the tokens that the server bills. Needs the extra `api`.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from email.utils import mktime_tz, parsedate_tz
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field, field_validator

from posttrain.config.base import Config
from posttrain.data.calls import with_texts
from posttrain.data.records import Message
from posttrain.errors import MissingError, PosttrainError, Problem
from posttrain.inference.protocol import Answer, Generation, Plain, Prompt, Respondent, Scored, Told, Usage, nobody
from posttrain.inference.texts import cut_at_stop, spoken
from posttrain.registry import register

if TYPE_CHECKING:
    import httpx

__all__ = ["ApiConfig", "ApiRespondent"]

FATAL = {
    400: "the server refuses the request",
    401: "the key is missing or wrong",
    403: "the key may not use this model",
    404: "no such model or path",
    422: "the server refuses the request",
}
"""HTTP statuses after which a request is not tried again, and their meanings."""

T = TypeVar("T")


class ApiConfig(Config):
    """An OpenAI-compatible endpoint."""

    kind: Literal["api"] = "api"
    """An OpenAI-compatible endpoint."""
    model: str = Field(min_length=1)
    """The model's name at the server."""
    base_url: str = "https://api.openai.com/v1"
    """Where the server is, with the version part of the path."""
    key_env: str = "OPENAI_API_KEY"
    """The environment variable with the key; an empty one sends none. The key itself is never written down."""
    system_prefix: str | None = None
    """A system message put before every prompt."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """No more requests than that begin within a minute."""
    concurrency: int = Field(default=8, ge=1, le=256)
    """Requests that run at the same time."""
    retries: int = Field(default=6, ge=0)
    """How often a request is tried again."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds that one try may take."""
    price_in_usd: float = Field(default=0.0, ge=0)
    """Price of a million prompt tokens."""
    price_out_usd: float = Field(default=0.0, ge=0)
    """Price of a million generated tokens."""

    @field_validator("base_url")
    @classmethod
    def _is_address(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):  # otherwise every request is tried for a minute
            raise ValueError("an address is expected that begins with http:// or https://")
        return value


class RateLimit:
    """A limit that lets requests begin at equal intervals."""

    def __init__(self, per_minute: float | None) -> None:
        self.distance_s = 60.0 / per_minute if per_minute else 0.0
        self.next = 0.0
        self.lock = threading.Lock()

    def wait(self) -> None:
        """Return when the next request may begin."""
        with self.lock:
            now = time.monotonic()
            begin = max(now, self.next)
            self.next = begin + self.distance_s
        if begin > now:
            time.sleep(begin - now)


@register("respondent", "api", config=ApiConfig)
class ApiRespondent(Respondent):
    """Answers of a remote model. Its fingerprint is its address: the model at this address may change without
    notice.
    """

    def __init__(self, config: ApiConfig) -> None:
        try:
            import httpx
        except ImportError as error:
            raise MissingError(Problem("", "an API needs the package httpx", "pip install 'posttrain[api]'")) from error
        self.config = config
        self.name = f"api:{config.model}"
        self.usage = Usage()
        self.limit = RateLimit(config.requests_per_minute)
        self.lock = threading.Lock()
        key = os.environ.get(config.key_env, "")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.client: httpx.Client = httpx.Client(headers=headers, timeout=config.timeout_s)

    @property
    def fingerprint(self) -> str:
        """The address, the model's name and the system message."""
        return f"api:{self.config.base_url}:{self.config.model}:{self.config.system_prefix or ''}"

    def _answers(self, prompts: Sequence[Prompt], how: Generation) -> list[Answer]:
        settings: dict[str, Any] = {"max_tokens": how.max_new_tokens, "temperature": how.temperature}
        settings |= {"stop": list(how.stop[:4])} if how.stop else {}  # servers take 4; `_answer` cuts at the rest

        def ask(i: int) -> Answer:
            own = settings | ({"seed": how.seed + i} if how.temperature > 0 else {})
            return self._answer(prompts[i], own, how.stop)

        return self._all(ask, len(prompts), how.on_answer)

    def _answer(self, prompt: Prompt, settings: dict[str, Any], stop: Sequence[str]) -> Answer:
        if isinstance(prompt, Plain):
            choice, used = self._post("completions", {"prompt": prompt.text, **settings})
            text = choice.get("text") or ""
        else:
            choice, used = self._post("chat/completions", {"messages": self._messages(prompt), **settings})
            text = choice.get("message", {}).get("content") or ""
        text, stopped = cut_at_stop(text, stop)
        text = text if isinstance(prompt, Plain) else spoken(text)
        return Answer(text, int(used.get("completion_tokens", 0)), choice.get("finish_reason") != "length" or stopped)

    def _messages(self, prompt: Prompt) -> list[dict[str, Any]]:
        """Return the conversation with all its fields; arguments of calls are JSON text in this interface."""
        assert not isinstance(prompt, Plain)
        system = (Message("system", self.config.system_prefix),) if self.config.system_prefix else ()
        turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        sent = [message.for_template() for message in (*system, *turns)]
        return [m | {"tool_calls": with_texts(m["tool_calls"])} if "tool_calls" in m else m for m in sent]

    def logprobs(self, pairs: Sequence[tuple[Prompt, str]], *, on_scored: Told = nobody) -> list[Scored]:
        """Return how likely continuations of plain text are, from servers that echo their prompt. Raise
        PosttrainError for chats, because only the server knows their template.
        """
        if not all(isinstance(prompt, Plain) for prompt, _ in pairs):
            mend = "ask in plain text (template: plain), ask for answers instead, or examine a local model"
            raise PosttrainError(Problem(self.name, "a chat API does not say how likely a given answer is", mend))
        texts = [(prompt.text, text) for prompt, text in pairs if isinstance(prompt, Plain)]
        return self._all(lambda i: self._echoed(*texts[i]), len(texts), on_scored)

    def rolling(self, texts: Sequence[str], *, on_scored: Told = nobody) -> list[Scored]:
        """Return how likely whole texts are, without their first token, because no token precedes it."""
        return self._all(lambda i: self._echoed("", texts[i]), len(texts), on_scored)

    def _echoed(self, context: str, text: str) -> Scored:
        start = len(context.rstrip())  # spaces at the context's end belong to the text
        body = {"prompt": context + text, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
        choice, _ = self._post("completions", body)
        shown = choice.get("logprobs") or {}
        offsets, values, tops = (shown.get(key) for key in ("text_offset", "token_logprobs", "top_logprobs"))
        if not offsets or not values or len(offsets) != len(values) or offsets[0] >= max(start, 1):
            mend = "ask for answers instead, or use a server that knows `echo` with `logprobs`, such as vLLM"
            raise PosttrainError(Problem(self.name, "the server does not echo its prompt with log-probabilities", mend))
        whole = len(context) + len(text)
        ends = [*offsets[1:], whole]
        # a token that spans the border belongs to the text: otherwise "=4" after "=" would cost nothing
        inside = [i for i, at in enumerate(offsets) if at < whole and (at >= start or ends[i] > start)]
        own = [i for i in inside if values[i] is not None]
        best = tops or [None] * len(values)
        hits = sum(not best[i] or values[i] >= max(best[i].values()) - 1e-9 for i in own)
        shows = bool(context) and all(best[i] for i in own)
        likeliest = tuple(max(best[i], key=best[i].__getitem__) for i in own) if shows else ()
        return Scored(sum(values[i] for i in own), len(own), hits, likeliest)

    def _all(self, ask: Callable[[int], T], n: int, told: Told) -> list[T]:
        """Call `ask` with 0 to n-1 in parallel, and return the results in order. After the first failure no
        more calls begin."""
        done: dict[int, T] = {}
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            futures: dict[Future[T], int] = {pool.submit(ask, i): i for i in range(n)}
            try:
                for future in as_completed(futures):
                    i = futures[future]
                    done[i] = future.result()
                    told(i, done[i])
            except BaseException:
                for future in futures:
                    future.cancel()
                raise
        return [done[i] for i in range(n)]

    def _post(self, path: str, body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the first choice of the server's reply, and the usage that it bills. Try again if that may
        help. Raise PosttrainError for a fatal status and after the last try."""
        import httpx

        url = f"{self.config.base_url.rstrip('/')}/{path}"
        said = ""
        for wait_s in self._waits():
            self.limit.wait()
            try:
                reply = self.client.post(url, json={"model": self.config.model, **body})
            except httpx.TransportError as error:
                said = f"{type(error).__name__}: {error}"
                time.sleep(wait_s)
                continue
            if reply.is_success:
                return self._counted(reply)
            said = f"HTTP {reply.status_code}: {_message(reply)}"
            if reply.status_code in FATAL:
                cause = f"{FATAL[reply.status_code]} ({said})"
                raise PosttrainError(Problem(f"{self.name} at {url}", cause, f"key from {self.config.key_env}"))
            time.sleep(max(wait_s, _retry_after_s(reply)) if wait_s else 0.0)
        cause = f"no answer after {self.config.retries + 1} tries: {said}"
        raise PosttrainError(Problem(f"{self.name} at {url}", cause, "try later"))

    def _waits(self) -> Iterator[float]:
        """Yield the seconds to wait after each try. They double, with a random part so that requests do not
        come back together."""
        for i in range(self.config.retries):
            yield min(60.0, 0.5 * 2**i) * (0.75 + random.random() / 2)
        yield 0.0

    def _counted(self, reply: httpx.Response) -> tuple[dict[str, Any], dict[str, Any]]:
        try:
            data = reply.json()
            choice: dict[str, Any] = data["choices"][0]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            cause = f"the reply is no completion: {reply.text[:200]}"
            raise PosttrainError(Problem(self.name, cause, "is base_url right?")) from error
        used: dict[str, Any] = data.get("usage") or {}
        asked, said = int(used.get("prompt_tokens") or 0), int(used.get("completion_tokens") or 0)
        with self.lock:
            self.usage.requests += 1
            self.usage.prompt_tokens += asked
            self.usage.generated_tokens += said
            self.usage.cost_usd += (asked * self.config.price_in_usd + said * self.config.price_out_usd) / 1e6
        return choice, used


def _message(reply: httpx.Response) -> str:
    try:
        said = reply.json()["error"]
        return str(said["message"] if isinstance(said, dict) else said)[:300]
    except (ValueError, KeyError, TypeError):
        return reply.text[:300]


def _retry_after_s(reply: httpx.Response) -> float:
    """Return the seconds of `Retry-After`, a number or a date, at most 120; 0 without it or if it is neither."""
    value = reply.headers.get("retry-after", "")
    if value.replace(".", "", 1).isdigit():
        return min(float(value), 120.0)
    date = parsedate_tz(value)
    return min(max(mktime_tz(date) - time.time(), 0.0), 120.0) if date is not None else 0.0
