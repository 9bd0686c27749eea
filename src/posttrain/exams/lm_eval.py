"""posttrain's scorer and decoder as a model of lm-eval 0.4.13: same requests and answers as its `hf` backend, faster.

    import posttrain.exams.lm_eval                          # registers the name
    lm_eval.simple_evaluate(model="posttrain", model_args="pretrained=pocket:chat", tasks=["my_task"])
    lm_eval.simple_evaluate(model=PosttrainLM("pocket:chat"), tasks=["my_task"])

How text becomes tokens, is truncated and stopped follows `lm_eval/models/huggingface.py` (HFLM) rule by rule. What is
forwarded differs: `inference/scoring.py` shares prefixes, and `inference/decode.py` batches answers.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from posttrain.errors import MissingError, PosttrainError, Problem, TemplateError
from posttrain.exams.lm_eval_texts import Texts
from posttrain.exams.sample_log import KeptResponses, request_id
from posttrain.inference.locations import among, located
from posttrain.inference.plain import TokenPair, cut_left, rolling_windows
from posttrain.inference.protocol import Scored, Usage
from posttrain.inference.respondents import ModelRespondent
from posttrain.inference.scoring import score
from posttrain.models.fingerprint import template_fingerprint, weights_fingerprint
from posttrain.models.load import LoadedModel, load_model
from posttrain.models.template_dates import at_moment, moment_of

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import resolve_max_length
except ImportError as error:
    raise MissingError(Problem("lm-eval", "is not installed", "pip install 'posttrain[lm-eval]'")) from error

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["PosttrainLM", "join_world"]

PROBE = "The 3 quick foxes.\n\t你好，世界！  é🙂"
"""The tokens of this text are part of the key of kept responses: tokenizers without a template have no other
fingerprint."""

Response = tuple[float, bool] | float | str
Done = Callable[[int, Any], None]


@register_model("posttrain")
class PosttrainLM(Texts, TemplateLM):
    """A model under lm-eval. Arguments that `HFLM` also has, about how text is read, mean the same here.

    pretrained: a name for `load_model`, a model that is already loaded, or a model of transformers together with its
    `tokenizer`. The weights may change between two calls (an exam during training), but not during a call.
    batch_tokens: positions per forward pass, instead of a batch size; responses: a JSONL file that keeps every
    response; discard: delete this file if it belongs to another model; on_progress(kind, done, total): called as
    responses arrive; say: called once with the reason if prefixes are not shared; batch_size, max_batch_size: accepted
    because lm-eval passes them, but not used.

    Under torchrun (WORLD_SIZE > 1) lm-eval gives each process its share of the documents.
    """

    def __init__(
        self,
        pretrained: str | LoadedModel | ModelRespondent | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        batch_tokens: int = 16384,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        think_end_token: str | int | None = None,
        enable_thinking: bool | None = None,
        chat_template_args: dict[str, Any] | None = None,
        seed: int = 0,
        responses: Path | str | None = None,
        discard: bool = False,
        on_progress: Callable[[str, int, int], None] | None = None,
        say: Callable[[str], None] = warnings.warn,
        device: str | None = None,
        dtype: str = "auto",
        download: bool = False,
        trust_remote_code: bool = False,
        allow_template_mismatch: bool = False,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        TemplateLM.__init__(self)
        if enable_thinking and think_end_token is None:
            raise PosttrainError("enable_thinking needs think_end_token: what ends the thoughts")
        self._rank, self._world_size = join_world()
        if isinstance(pretrained, str):
            pretrained = load_model(
                pretrained,
                device=device,
                dtype=dtype,
                offline=not download,
                trust_remote_code=trust_remote_code,
                allow_template_mismatch=allow_template_mismatch,
            )
        elif tokenizer is not None:
            model: Any = pretrained
            pretrained = LoadedModel(model, tokenizer, model.name_or_path)
        if isinstance(pretrained, LoadedModel):
            pretrained = ModelRespondent(pretrained, batch_tokens=batch_tokens)
        if pretrained.stateful:
            cause = "it adapts to each input in its order, and lm-eval's tasks are asked in any"
            raise PosttrainError(Problem(pretrained.name, cause, "examine the model that it starts from"))
        self.model: Any = pretrained.model
        self._device = self.model.device
        digits = isinstance(think_end_token, str) and think_end_token.isdigit()
        Texts.__init__(
            self,
            pretrained,
            max_length=max_length or resolve_max_length(self.model.config, pretrained.tokenizer),
            batch_tokens=batch_tokens,
            add_bos_token=add_bos_token,
            own_prefix=prefix_token_id,
            think_end_token=int(think_end_token) if digits and think_end_token else think_end_token,
            seed=seed,
        )
        self.enable_thinking = enable_thinking
        self.chat_template_args = (chat_template_args or {}) | (
            {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        )
        self.on_progress = on_progress
        self.say = say
        path = Path(responses) if responses is not None else None
        self.kept = KeptResponses(path, self.fingerprint if path else "", rank=self._rank, discard=discard)

    @classmethod
    def from_pretrained(cls, name: str, **settings: Any) -> PosttrainLM:
        """Return the same as calling the class with a name."""
        return cls(name, **settings)

    # ---- what lm-eval asks about the model -----------------------------------------------------------------------

    @property
    def usage(self) -> Usage:
        """What this process has spent so far, including truncated requests and shared prefixes."""
        return self.respondent.usage

    @property
    def fingerprint(self) -> str:
        """Fingerprint of what responses depend on now: the weights and their precision, template, tokens and limits."""
        reads = [self.max_length, self.add_bos_token, self.prefix_token_id, self.think_end_token, self.seed]
        texts = [template_fingerprint(self.tokenizer), self.tokenizer.encode(PROBE)]
        text = repr([weights_fingerprint(self.model), str(self.model.dtype), texts, reads])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name and its template's fingerprint, for the key of lm-eval's cache of requests."""
        return f"{self.tokenizer.name_or_path.replace('/', '__')}-{template_fingerprint(self.tokenizer)}"

    def get_model_info(self) -> dict[str, Any]:
        """Return what is added to lm-eval's results; `model_sha` is the fingerprint of the weights."""
        return {
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": str(self.model.dtype),
            "model_revision": self.respondent.name,
            "model_sha": weights_fingerprint(self.model),
        }

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as text, without its system turn if the template refuses one (as HFLM does).
        TemplateError when the tokenizer has no chat template.
        """
        import jinja2

        if not self.tokenizer.chat_template:
            raise TemplateError(
                Problem(self.respondent.name, "has no chat template", "leave out --apply-chat-template")
            )
        settings = {
            "tokenize": False,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
            **self.chat_template_args,
        }
        if (moment := moment_of(self.tokenizer)) is not None:
            settings.setdefault("chat_template", at_moment(self.tokenizer.get_chat_template(), moment))
        try:
            return self.tokenizer.apply_chat_template(chat_history, **settings)
        except jinja2.TemplateError:
            rest = [message for message in chat_history if message["role"] != "system"]
            return self.tokenizer.apply_chat_template(rest, **settings)

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Support lm-eval's `use_cache`, with one table for these weights and this template, not one for all models.
        The keys of lm-eval's table are requests only, so another model of the same path would get this model's answers.
        """
        super().set_cache_hook(cache_hook)
        if cache_hook.dbdict is not None:
            store = cache_hook.dbdict
            store.tablename = f"posttrain_{self.fingerprint}"
            store.conn.execute(f'CREATE TABLE IF NOT EXISTS "{store.tablename}" (key TEXT PRIMARY KEY, value BLOB)')
            store.conn.commit()

    # ---- requests ------------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return (log-probability in nats, whether greedy) of each continuation after its context. PosttrainError with
        `enable_thinking`.
        """
        if self.enable_thinking:
            raise PosttrainError("enable_thinking is for tasks that generate: log-probabilities leave no room to think")
        found = self._remembered("loglikelihood", requests, self._score_pairs)
        return [(nats, greedy) for nats, greedy in found]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability in nats of each whole text, in windows of the model's context."""
        return self._remembered("loglikelihood_rolling", requests, self._score_texts)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Return each context's continuation up to a stop string."""
        return self._remembered("generate_until", requests, self.generate)

    def _remembered(
        self, kind: str, requests: Sequence[Any], ask: Callable[[list[tuple[Any, ...]], Done], None]
    ) -> list[Any]:
        """Return responses in the order of the requests; ask only requests that are not kept yet, each once."""
        if self.kept.path is None:  # without a file, responses are kept for this call only
            self.kept.found.clear()
        arguments = [tuple(request.args) for request in requests]
        names = self._names(kind, arguments)
        todo = {
            name: args for name, args in zip(names, arguments, strict=True) if name not in self.kept.found
        }  # of equal requests, the first
        of = {name: request for name, request in zip(reversed(names), reversed(requests), strict=True) if name in todo}
        waiting = list(todo)
        total, finished = len(set(names)), len(set(names)) - len(todo)

        def done(i: int, response: Response) -> None:
            nonlocal finished
            finished += 1
            self.kept.append(waiting[i], response)
            self.cache_hook.add_partial(kind, todo[waiting[i]], response)
            if self.on_progress is not None:
                self.on_progress(kind, finished, total)

        if waiting:
            with located(lambda i: _place(of[waiting[i]], i)):
                ask([todo[name] for name in waiting], done)
        return [self.kept.found[name] for name in names]

    def _names(self, kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[str]:
        """Return a name for each response: equal requests share one, unless they are sampled."""
        seen: dict[str, int] = {}
        names = []
        for args in arguments:
            name = request_id(kind, args)
            if kind == "generate_until" and (args[1].get("do_sample") or args[1].get("temperature")):
                seen[name] = seen.get(name, -1) + 1
                name = f"{name}#{seen[name]}"
            names.append(name)
        return names

    # ---- scoring -------------------------------------------------------------------------------------------------

    def _score_pairs(self, arguments: list[tuple[Any, ...]], done: Done) -> None:
        pairs = self.pairs(arguments)
        self._score(pairs, lambda i, scored: done(i, (scored.sum_nats, scored.greedy)))

    def _score_texts(self, arguments: list[tuple[Any, ...]], done: Done) -> None:
        coded = self.encoded([text for (text,) in arguments])
        windows = [list(rolling_windows(coded[text], self.prefix_token_id, self.max_length)) for (text,) in arguments]
        of = [i for i, each in enumerate(windows) for _ in each]
        sums: list[dict[int, float]] = [{} for _ in windows]

        def add(window: int, scored: Scored) -> None:
            text = of[window]
            sums[text][window] = scored.sum_nats
            if len(sums[text]) == len(windows[text]):
                done(text, sum(sums[text][w] for w in sorted(sums[text])))

        for i, each in enumerate(windows):
            if not each:  # an empty text
                done(i, 0.0)
        with among(of.__getitem__, "text"):
            self._score([window for each in windows for window in each], add)

    def _score(self, pairs: Sequence[TokenPair], on_scored: Callable[[int, Scored], None]) -> None:
        fitting = [cut_left(pair, self.max_length) for pair in pairs]
        self.usage.truncated += sum(new != old for new, old in zip(fitting, pairs, strict=True))
        self.respondent.check_tokens([[*pair.context, *pair.continuation] for pair in fitting], "request")
        score(self.model, fitting, usage=self.usage, batch_tokens=self.batch_tokens, on_scored=on_scored, say=self.say)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Score token ids, for code that calls this method of TemplateLM directly."""
        found: dict[int, tuple[float, bool]] = {}
        pairs = [TokenPair(context, continuation) for _, context, continuation in requests]
        self._score(pairs, lambda i, scored: found.update({i: (scored.sum_nats, scored.greedy)}))
        return [found[i] for i in range(len(requests))]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the ids of a text. `add_special_tokens` None: the tokenizer's default, but never bos twice."""
        if add_special_tokens is None:
            return self.encoded([string])[string]
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    # ---- several processes ---------------------------------------------------------------------------------------

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Concatenate the tensors of all processes along the first dimension."""
        if self._world_size == 1:
            return tensor
        parts = [torch.zeros_like(tensor) for _ in range(self._world_size)]
        torch.distributed.all_gather(parts, tensor)
        return torch.cat([part if part.dim() else part[None] for part in parts])

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """Return the objects of all processes on process `dst`, and None on the others."""
        if self._world_size == 1:
            return [obj]
        gathered: list[Any] | None = [None] * self._world_size if self._rank == dst else None
        torch.distributed.gather_object(obj, gathered, dst=dst)
        return gathered

    def barrier(self) -> None:
        """Wait for all processes."""
        if self._world_size > 1:
            torch.distributed.barrier()


def join_world() -> tuple[int, int]:
    """Return (rank, world size). Join the processes that torchrun started, if that has not been done yet."""
    distributed = torch.distributed
    if not distributed.is_available() or (
        not distributed.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) == 1
    ):
        return 0, 1
    if not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(distributed.destroy_process_group)
    return distributed.get_rank(), distributed.get_world_size()


def _place(request: Any, number: int) -> str:
    """Return the location of a request: its task and document number from 0, or its own number from 1."""
    return f"exam {request.task_name}, document {request.doc_id}" if request.task_name else f"request {number + 1}"
