"""Replay questions that the model makes up and answers itself; this needs no data.

The chat template is rendered up to the user's first word. The model, which predicts the next token of any text, then
writes the user's turn (Magpie, arXiv:2406.08464, section 2). After that it answers its own question greedily.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from posttrain.data.chat import prompt_text
from posttrain.data.control import gate_of
from posttrain.data.records import Conversation, Message
from posttrain.data.scripts import normalise_prompt
from posttrain.errors import DataError, Problem, TemplateError
from posttrain.inference.respondents import ModelRespondent
from posttrain.models.meter import Meter
from posttrain.registry import register
from posttrain.retention.replay._answers import answered, bounded, written
from posttrain.retention.selection import ReplayConfig, ReplayContext, cached, select, short_of

__all__ = ["AskSelfReplayConfig", "UserTurn", "ask_self", "sample_questions", "user_turn"]

SENTINEL = "posttrainsentinel"
"""Text of a user message with which the start and the end of the user's turn are found in a template."""
ROUNDS = 4
"""Maximum number of rounds of sampling. Later rounds replace questions that were left out."""


class AskSelfReplayConfig(ReplayConfig):
    """Questions and answers of the model itself."""

    kind: Literal["ask_self"] = "ask_self"
    """The untouched model makes up prompts and answers them."""
    n: int = Field(default=256, gt=0)
    """How many different questions are wanted."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature of the questions; the answers are greedy."""
    max_prompt_tokens: int = Field(default=64, gt=0)
    """The longest question; one that does not end by itself is left out."""
    max_new_tokens: int = Field(default=128, gt=0)
    """The longest answer; one that is cut there is learned without an end, since it has none."""

    def made_tokens(self, base: Path) -> int:
        """Return the tokens of all questions and answers, if each is half as long as its limit."""
        return self.n * (self.max_prompt_tokens + self.max_new_tokens) // 2


class UserTurn(NamedTuple):
    """The start and the end of a user's turn in a chat template. ids: the template up to the user's first word; stop:
    the id that ends the turn, None if the text `after` ends it.
    """

    ids: list[int]
    stop: int | None
    after: str


def user_turn(respondent: ModelRespondent, *, system: str | None = None) -> UserTurn:
    """Return the user's turn in a model's template, after a system message if one is given. Raise TemplateError for a
    template that does not show it.
    """
    tokenizer = respondent.tokenizer
    mend = "use replay {kind: self}, which needs no made-up questions"
    if not tokenizer.chat_template:
        raise TemplateError(Problem(respondent.name, "has no chat template, so no user tag to sample from", mend))
    before_it = (Message("system", system),) if system is not None else ()
    try:
        text = prompt_text((*before_it, Message("user", SENTINEL)), tokenizer)
    except TemplateError as error:
        cause = Problem(respondent.name, "its chat template shows no user's turn to sample from", mend)
        raise TemplateError(*error.problems, cause) from error
    before, found, after = text.partition(SENTINEL)
    ids: list[int] = tokenizer.encode(before, add_special_tokens=False)
    if not found or not ids or not after.strip():
        raise TemplateError(Problem(respondent.name, "its chat template does not mark where a user's turn ends", mend))
    closing: list[int] = tokenizer.encode(after.strip(), add_special_tokens=False)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return UserTurn(ids, closing[0] if closing[0] in special else None, after.strip())


class Drawn(NamedTuple):
    """A sampled question. ids: its tokens; ended: whether the model has ended it."""

    ids: list[int]
    text: str
    ended: bool


def drawn_questions(respondent: ModelRespondent, turn: UserTurn, meter: Meter, **how: Any) -> list[Drawn]:
    """Sample as many user turns as the meter counts. how: options of `decode`."""
    found = []
    stop = [turn.stop] if turn.stop is not None else []
    for ids, ended in written(respondent, [turn.ids] * meter.total, meter, stop=stop, **how):
        text: str = respondent.tokenizer.decode(ids, skip_special_tokens=True)
        if turn.stop is None:
            text, closed, _ = text.partition(turn.after.split("\n", 1)[0])
            ended = ended or bool(closed)
        found.append(Drawn(ids, text.strip(), ended))
    return found


def sample_questions(config: AskSelfReplayConfig, context: ReplayContext) -> list[str]:
    """Return at most `n` different questions; report how many were left out. Raise DataError if there are none."""
    respondent = bounded(context.respondent)
    turn = user_turn(respondent)
    questions: dict[str, str] = {}
    sampled = unended = empty = broken = 0
    for round_number in range(ROUNDS):
        missing = config.n - len(questions)
        if missing <= 0:
            break
        draws, most = missing if round_number == 0 else 2 * missing, config.max_prompt_tokens
        how = {"temperature": config.temperature, "seed": context.seed * ROUNDS + round_number}
        meter = Meter("making up questions for replay", draws, "questions", most_tokens=draws * most)
        for _, text, ended in drawn_questions(respondent, turn, meter, max_new_tokens=most, **how):
            sampled += 1
            key = normalise_prompt(text)
            unended += not ended
            empty += ended and not key
            control = ended and gate_of(respondent.tokenizer).first_in(text, respondent.tokenizer) is not None
            broken += control
            if ended and key and not control and len(questions) < config.n:
                questions.setdefault(key, text)
    context.say(
        f"replay: {sampled} questions sampled, {len(questions)} different ones kept, {unended} without an end, "
        f"{empty} empty, {broken} with a control token among their words"
    )
    if questions and (short := short_of(config.n, len(questions))):
        context.say(short)
    if not questions:
        mend = "use replay {kind: self} with prompts of your own"
        raise DataError(Problem(respondent.name, "made up no usable question", mend))
    return list(questions.values())


@register("replay", "ask_self", config=AskSelfReplayConfig, paper="arXiv:2406.08464")
def ask_self(config: AskSelfReplayConfig, context: ReplayContext) -> list[Conversation]:
    """Make up questions and answer them greedily with the untouched model; leave out those that the exam asks."""
    settings = {**config.model_dump(mode="json", exclude={"share", "weight", "loss"}), "seed": context.seed}
    made = cached(
        context, settings, lambda: answered(sample_questions(config, context), context, config.max_new_tokens)
    )
    selection = select(made, context.forbidden, "questions made up by the model")
    context.say(f"replay of own questions and answers: {selection}")
    return selection.conversations
