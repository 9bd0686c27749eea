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
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

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


HELP = """\
/reset   forget the conversation
/quit    leave (so does the end of input)
/help    this
Ctrl-C   stop an answer; at the prompt: leave"""


MOMENT_S = 0.5
"""Seconds. A Ctrl-C within this time after an answer was stopped is ignored: it was meant for the answer."""
clock = time.monotonic


class Stop:
    """The handler of Ctrl-C in a conversation.

    The first Ctrl-C during an answer stops it after its present token; the second stops everything. A Ctrl-C at the
    prompt stops everything too, but it is ignored for a moment after an answer was stopped.
    """

    def __init__(self) -> None:
        self.times = 0
        """Number of times that Ctrl-C was pressed in this turn."""
        self._answers = False
        self._deaf_until = 0.0

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Count the signal; raise KeyboardInterrupt for the second one in an answer and for one at the prompt.

        A signal at the prompt is ignored for `MOMENT_S` seconds after an answer was stopped.
        """
        if not self._answers and clock() < self._deaf_until:
            return
        self.times += 1
        if self.times > 1 or not self._answers:
            raise KeyboardInterrupt

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Handle Ctrl-C within the block. Outside the main thread it does nothing: Python delivers no signals there."""
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
        """Mark that a model answers within the block."""
        self._answers = True
        try:
            yield
        finally:
            self.answered()

    def answered(self) -> None:
        """Mark that the answer is finished, or will be stopped now."""
        if self._answers and self.times:
            self._deaf_until = clock() + MOMENT_S
        self._answers = False


class Settings(NamedTuple):
    """The settings of generation. max_new_tokens: the most tokens of an answer."""

    temperature: float
    max_new_tokens: int
    seed: int


@dataclass
class Talk:
    """One model's part of the conversation. messages: those of the user and of this model so far."""

    respondent: ModelRespondent
    messages: list[Message] = field(default_factory=list)

    def ask(self, words: str, settings: Settings, put: Callable[[str], None], stop: Stop) -> tuple[Answer, bool]:
        """Answer the user's words; return the answer and whether it was stopped.

        The prompt holds the earlier messages, as many as fit. put: called with the answer's text as it comes. The text
        of a stopped answer stays in the conversation. Raise the errors of asking, such as a prompt that is too long;
        the words are then removed from the conversation.
        """
        from posttrain.data.records import Message
        from posttrain.inference.protocol import Answer
        from posttrain.inference.texts import TextStream, settled

        tidies = bool(self.respondent.tokenizer.clean_up_tokenization_spaces)
        stream = TextStream(self.respondent.text, put, tidies=tidies)
        said: list[int] = []

        def on_token(number: int, ids: list[int]) -> None:
            said[:] = ids
            stream.add(ids)
            if stop.times:
                stop.answered()
                raise KeyboardInterrupt

        self.messages.append(Message("user", words))
        stopped = False
        try:
            with stop.answering():
                prompt, seed = self._fitting(settings.max_new_tokens), settings.seed + len(self.messages)
                how = {**settings._asdict(), "seed": seed}
                (answer,) = self.respondent.answers([prompt], **how, on_token=on_token)
        except PosttrainError:  # such as words longer than the model's positions: remove them
            self.messages.pop()
            raise
        except KeyboardInterrupt:
            if stop.times != 1:  # a second Ctrl-C, or SIGTERM
                raise
            answer, stopped = Answer(settled(self.respondent.text(said)), len(said), False), True
        stream.end(answer.text)
        if stopped and not answer.text:
            self.messages.pop()
        else:
            self.messages.append(Message("assistant", answer.text))
        return answer, stopped

    def _fitting(self, max_new_tokens: int) -> Prompt:
        """Return the conversation, without its oldest turns if it is too long; without a template, the last message.
        max_new_tokens: the number of tokens that must be left for the answer."""
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

    stop, settings = Stop(), Settings(temperature, max_new_tokens, seed)

    def turn(words: str) -> list[dict[str, Any]]:
        """Ask the models and return one row per model that was asked; the last row's answer may have been stopped."""
        rows: list[dict[str, Any]] = []
        stop.times = 0
        with display_of([one.respondent.name for one in talks], json=json) as display:
            for number, one in enumerate(talks):
                start = time.perf_counter()
                display.begin(number)
                answer, stopped = one.ask(words, settings, display.put, stop)
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
    """Handle turns and commands until the user leaves."""
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
                # the line comes from a pipe: show it on stderr, untranslated; only the answers are data on stdout
                print(f"\n> {plain(command)}", file=sys.stderr, flush=True)
            try:
                answered: dict[str, Any] = {"answers": turn(command)}
            except PosttrainError as error:  # continue the conversation
                talk(in_words(error))
                answered = {"error": str(error)}
            if json:
                emit_line({"question": command, **answered})


def _lines() -> Any:
    """Yield the user's lines: typed after a prompt on a terminal, otherwise read from stdin."""
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
