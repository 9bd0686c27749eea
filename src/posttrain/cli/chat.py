"""`posttrain chat M1 [M2 ...]`: talk to one or several models side by side in the terminal."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posttrain.cli.chat_display import display_of
from posttrain.cli.options import (
    DownloadOption,
    JsonOption,
    MismatchOption,
    PrecisionOption,
    TrustOption,
    emit,
    emit_line,
    quiet,
    talk,
)
from posttrain.cli.plain import plain
from posttrain.cli.works import shown_works
from posttrain.errors import ConfigError, PosttrainError, Problem
from posttrain.language import shown as in_words

if TYPE_CHECKING:
    from posttrain.data.records import Message
    from posttrain.inference.protocol import Answer, Prompt
    from posttrain.inference.respondents import ModelRespondent

__all__ = ["chat"]

HELP = """\
/reset   forget the conversation
/quit    leave (so does the end of input)
/help    this
Ctrl-C   stop an answer; at the prompt: leave"""


MOMENT_S = 0.5
"""Ctrl-C so soon after an answer was stopped was meant for the answer, too."""
clock = time.monotonic


class Stop:
    """Ctrl-C in a conversation: the first in an answer stops it after its present token, the second stops everything,
    and so does one at the prompt; but at the prompt it is not heard a moment after an answer was stopped.
    """

    def __init__(self) -> None:
        self.times = 0
        """In this turn."""
        self._answers = False
        self._deaf_until = 0.0

    def hear(self, number: int, frame: FrameType | None) -> None:
        """The signal's handler."""
        if not self._answers and clock() < self._deaf_until:
            return
        self.times += 1
        if self.times > 1 or not self._answers:
            raise KeyboardInterrupt

    @contextmanager
    def heard(self) -> Iterator[None]:
        """While this lasts Ctrl-C is heard here; outside the main thread Python delivers no signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = signal.signal(signal.SIGINT, self.hear)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, former)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """While this lasts a model answers."""
        self._answers = True
        try:
            yield
        finally:
            self.answered()

    def answered(self) -> None:
        """The answer is over, or is about to be given up."""
        if self._answers and self.times:
            self._deaf_until = clock() + MOMENT_S
        self._answers = False


@dataclass
class Talk:
    """One model's side of the conversation."""

    respondent: ModelRespondent
    messages: list[Message] = field(default_factory=list)

    def ask(
        self, words: str, *, temperature: float, max_new_tokens: int, seed: int, put: Callable[[str], None], stop: Stop
    ) -> tuple[Answer, bool]:
        """Answer the user's words, everything said before known, as far as it fits; and whether the answer was stopped.

        put: told the answer's words as they come. Of an answer that was stopped, what was said is remembered.
        """
        from posttrain.data.records import Message
        from posttrain.inference.protocol import Answer
        from posttrain.inference.texts import TextStream, settled

        tidies = bool(self.respondent.tokenizer.clean_up_tokenization_spaces)
        stream = TextStream(self.respondent.text, put, tidies=tidies)
        said: list[int] = []

        def on_token(place: int, ids: list[int]) -> None:
            said[:] = ids
            stream.add(ids)
            if stop.times:
                stop.answered()
                raise KeyboardInterrupt

        self.messages.append(Message("user", words))
        stopped = False
        try:
            with stop.answering():
                answer = self.respondent.answers(
                    [self._fitting(max_new_tokens)],
                    max_new_tokens=max_new_tokens,
                    temperature=temperature,
                    seed=seed + len(self.messages),
                    on_token=on_token,
                )[0]
        except PosttrainError:  # such as words longer than the model's positions: as if not said
            self.messages.pop()
            raise
        except KeyboardInterrupt:
            if stop.times != 1:  # the second, or SIGTERM
                raise
            answer, stopped = Answer(settled(self.respondent.text(said)), len(said), False), True
        stream.end(answer.text)
        if stopped and not answer.text:
            self.messages.pop()
        else:
            self.messages.append(Message("assistant", answer.text))
        return answer, stopped

    def _fitting(self, max_new_tokens: int) -> Prompt:
        """The conversation without its oldest turns, where it would not fit; only the words without a template."""
        from posttrain.inference.decode import context_limit

        if not self.respondent.tokenizer.chat_template:
            return self.messages[-1].content
        room = context_limit(self.respondent.model) - max_new_tokens
        dropped = 0
        while len(self.messages) > 2 and len(self.respondent.encode(tuple(self.messages))) > room:
            del self.messages[:2]
            dropped += 2
        if dropped:
            talk(f"{self.respondent.name}: the {dropped} oldest messages no longer fit and are forgotten")
        return tuple(self.messages)


def chat(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL", help="Models: folders, adapter folders, GGUF files, hub ids, pocket:chat or smollm2."
        ),
    ],
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="A system message for all of them.")] = None,
    temperature: Annotated[
        float, typer.Option(metavar="NUMBER", min=0.0, help="0: the likeliest answer; above: sampled.")
    ] = 0.0,
    max_new_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="An answer is cut after so many tokens.")
    ] = 256,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="For sampling.")] = 0,
    once: Annotated[str | None, typer.Option(metavar="QUESTION", help="Ask this one question and leave.")] = None,
    json: JsonOption = False,
    precision: PrecisionOption = "auto",
    download: DownloadOption = False,
    trust_remote_code: TrustOption = False,
    allow_template_mismatch: MismatchOption = False,
) -> None:
    """Talk to one or several models side by side. From a pipe, each line is one turn of the conversation.

    /reset forgets the conversation, /quit leaves, /help lists the commands.
    """
    from posttrain.inference.respondents import ModelRespondent
    from posttrain.models.load import load_model
    from posttrain.models.names import told

    if once is not None and not once.strip():
        raise ConfigError(Problem("--once", "the question is empty", "for example --once 'Who are you?'"))
    talks = []
    for name in models:
        talk(f"loading {told(name)}")
        with shown_works():
            loaded = load_model(
                name,
                dtype=precision,
                offline=not download,
                trust_remote_code=trust_remote_code,
                allow_template_mismatch=allow_template_mismatch,
            )
        if not loaded.tokenizer.chat_template:
            talk(f"{name} has no chat template: it continues your text and forgets what was said before")
        talks.append(Talk(ModelRespondent(loaded, system_prefix=system)))

    stop = Stop()

    def turn(words: str) -> list[dict[str, Any]]:
        """One row per model that was asked; the last one's answer may have been stopped."""
        rows: list[dict[str, Any]] = []
        stop.times = 0
        with display_of([one.respondent.name for one in talks], json=json) as display:
            for place, one in enumerate(talks):
                start = time.perf_counter()
                display.begin(place)
                answer, stopped = one.ask(
                    words,
                    temperature=temperature,
                    max_new_tokens=max_new_tokens,
                    seed=seed,
                    put=display.put,
                    stop=stop,
                )
                display.done("" if answer.ended else " …")
                wall_s = round(time.perf_counter() - start, 3)
                rows.append({"model": one.respondent.name, **answer._asdict(), "stopped": stopped, "wall_s": wall_s})
                if stopped:
                    break
        if rows[-1]["stopped"]:
            unasked = [one.respondent.name for one in talks[len(rows) :]]
            talk("stopped" + (f"; not asked: {', '.join(unasked)}" if unasked else "") + "; /quit leaves")
        return rows

    with stop.heard():
        if once is None:
            _converse(talks, turn, json)
            return
        rows = turn(once)
    if json:
        emit({"question": once, "answers": rows})
    if rows[-1]["stopped"]:
        raise KeyboardInterrupt


def _converse(talks: Sequence[Talk], turn: Callable[[str], list[dict[str, Any]]], json: bool) -> None:
    """Turns and commands until the user leaves."""
    for words in _lines():
        command = words.strip()
        if not command:
            continue
        if command == "/quit":
            return
        if command == "/reset":
            for one in talks:
                one.messages.clear()
            talk("the conversation is forgotten")
        elif command.startswith("/"):
            talk(HELP if command == "/help" else f"unknown command {plain(command)}\n{HELP}")
        else:
            if not json and not quiet() and not sys.stdin.isatty():
                # nobody has typed it here; beside the answers, which alone are data, and as it is, no message of ours
                print(f"\n> {plain(command)}", file=sys.stderr, flush=True)
            _turn(command, turn, json)


def _turn(words: str, turn: Callable[[str], list[dict[str, Any]]], json: bool) -> None:
    """One turn; what a model cannot answer is said, and the conversation goes on."""
    try:
        rows = turn(words)
    except PosttrainError as error:
        talk(in_words(error))
        if json:
            emit_line({"question": words, "error": str(error)})
        return
    if json:
        emit_line({"question": words, "answers": rows})


def _lines() -> Any:
    """The user's lines: typed after a prompt on a terminal, read as they come otherwise."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    with suppress(ImportError):  # Windows has its own line editing
        import readline  # noqa: F401  (line editing and history for input())

    talk("/help lists the commands; /quit leaves")
    while True:
        try:
            yield input("\n> ")
        except EOFError:
            return
