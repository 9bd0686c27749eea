"""What stands behind respondents of other machines, in tests: a server of the OpenAI protocol, and vLLM's interface
(0.33: LLM, SamplingParams, RequestOutput, Logprob), each with a pico model. vLLM itself needs a GPU; nobody has run it
here.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import torch

from posttrain.data.records import Message
from posttrain.inference.decode import decode
from posttrain.inference.protocol import Plain
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.load import load_model


class Server(BaseHTTPRequestHandler):
    """A server of the OpenAI protocol: it answers with the model, after `failures`; `seen` are the requests."""

    model: ClassVar[ModelRespondent]
    lock = threading.Lock()
    failures: ClassVar[list[tuple[int, dict[str, str]]]] = []
    seen: ClassVar[list[dict[str, Any]]] = []
    echoes = True

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with Server.lock:
            Server.seen.append({"path": self.path, "key": self.headers.get("authorization"), **body})
            failure = Server.failures.pop(0) if Server.failures else None
            status, headers, reply = (*failure, {"error": {"message": "not now"}}) if failure else self.reply(body)
        raw = json.dumps(reply).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def reply(self, body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        if body.get("echo"):
            return 200, {}, {"choices": [{"text": "", "logprobs": self.echoed(body["prompt"])}]}
        if self.path.endswith("/chat/completions"):
            prompt: Any = tuple(Message(m["role"], m["content"]) for m in body["messages"])
        else:
            prompt = Plain(body["prompt"])
        said = self.model.answers([prompt], max_new_tokens=body["max_tokens"])[0]
        usage = {"prompt_tokens": 100, "completion_tokens": said.tokens}
        end = "stop" if said.ended else "length"
        choice = {"message": {"content": said.text}, "text": said.text, "finish_reason": end}
        return 200, {}, {"choices": [choice], "usage": usage}

    def echoed(self, text: str) -> dict[str, Any] | None:
        """As vLLM echoes: every token of the prompt, the first without a likelihood, and the one that is generated."""
        if not Server.echoes:
            return None
        coded = self.model.tokenizer(text, return_offsets_mapping=True)
        ids: list[int] = coded["input_ids"]
        with torch.inference_mode():
            table = torch.log_softmax(self.model.model(torch.tensor([ids])).logits[0], -1)
        best = [{self.model.tokenizer.decode(int(row.argmax())): float(row.max())} for row in table]
        return {
            "text_offset": [*(begin for begin, _ in coded["offset_mapping"]), len(text)],
            "token_logprobs": [None, *(float(table[t, token]) for t, token in enumerate(ids[1:])), -0.5],
            "top_logprobs": [None, *best],
        }

    def log_message(self, *_: Any) -> None:
        return None


@contextmanager
def served(model: ModelRespondent) -> Iterator[str]:
    """The address of a server with this model, as long as this lasts."""
    Server.model, Server.failures, Server.seen, Server.echoes = model, [], [], True
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class SamplingParams:
    max_tokens: int
    temperature: float
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None


@dataclass
class LLM:
    """Takes what the real one takes, and refuses texts that leave no room for a token."""

    model: str
    dtype: str
    max_model_len: int | None
    tensor_parallel_size: int
    gpu_memory_utilization: float
    enable_prefix_caching: bool
    llm_engine: Any = field(init=False)

    def __post_init__(self) -> None:
        self.inner = ModelRespondent(load_model(self.model, device="cpu"))
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=self.max_model_len or 512))

    def generate(self, prompts: list[dict[str, list[int]]], settings: Any) -> list[Any]:
        each = settings if isinstance(settings, list) else [settings] * len(prompts)
        return [self._one(p["prompt_token_ids"], s) for p, s in zip(prompts, each, strict=True)]

    def _one(self, ids: list[int], settings: SamplingParams) -> Any:
        assert len(ids) < self.llm_engine.model_config.max_model_len
        stop = self.inner.stop_ids | frozenset(settings.stop_token_ids or [])
        said = decode(
            self.inner.model, [ids], stop=stop, pad_id=0, max_new_tokens=settings.max_tokens, stop_texts=settings.stop or (),
            text_of=lambda ids: self.inner.tokenizer.decode(ids, skip_special_tokens=True),
        )[0]  # fmt: skip
        text = self.inner.tokenizer.decode(said.ids, skip_special_tokens=True)
        for stop_text in settings.stop or ():
            text = text.split(stop_text)[0]
        output = SimpleNamespace(text=text, token_ids=said.ids, finish_reason="stop" if said.ended else "length")
        shown = self._shown(ids) if settings.prompt_logprobs else None
        return SimpleNamespace(prompt_token_ids=ids, prompt_logprobs=shown, outputs=[output])

    def _shown(self, ids: list[int]) -> list[Any]:
        with torch.inference_mode():
            table = torch.log_softmax(self.inner.model(torch.tensor([ids])).logits[0].float(), -1)
        rows: list[Any] = [None]
        for t, token in enumerate(ids[1:]):
            best = int(table[t].argmax())
            rank = 1 if token == best else int((table[t] > table[t, token]).sum()) + 1
            row = {token: SimpleNamespace(logprob=float(table[t, token]), rank=rank)}
            rows.append(row | {best: SimpleNamespace(logprob=float(table[t, best]), rank=1)})
        return rows


def as_vllm() -> ModuleType:
    """The stand-in as the module `vllm`."""
    module = ModuleType("vllm")
    module.__dict__.update(LLM=LLM, SamplingParams=SamplingParams)
    return module
