"""Turn records into token ids and labels, and prompts into token ids.

In every assistant turn, the loss covers the assistant's words and the token that ends the turn. It covers nothing else:
not the tags, not the newline after the end-of-turn token. A conversation that was cut off (`Conversation.ended` is
false) stops at the last word, so that no end is learned.

The end of a turn is one of these: the last special token of the turn's region; or the special token right after it (a
template may mark the words only, or, like GLM-4's, end a turn with the next tag); or, at the end of the text, the token
that ends other turns, which is appended as the model's makers do. A turn without an end is an error, because a model
trained on it would never stop.

The whole text must begin with the tokens of the text before each turn, so that training sees what generation will see.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

from posttrain.data.control import PLAIN_MEND, Part, check_text, gate_of, parts_of
from posttrain.data.lengths import LONG_MEND, EncodeResult, Limits, OnBadRow, OverLong, TooLong, gathered
from posttrain.data.records import NO_TEXTS, Completion, Conversation, Message, Record, Text
from posttrain.data.template import ChatTemplate, Rendered
from posttrain.data.tokens import (
    IGNORED,
    Start,
    Tokenizer,
    as_prompted,
    begins_at,
    first_token,
    join,
    text_of,
    token_from,
)
from posttrain.errors import DataError, Problem, TemplateError
from posttrain.models.template_dates import moment_of

if TYPE_CHECKING:
    from tokenizers import Encoding

__all__ = ["IGNORED", "Encoded", "LossOn", "encode_all", "encode_prompt", "fitted", "outcomes", "prompt_text", "render"]

UNCLOSED = (
    "the chat template does not end this turn with a special token: the model would never learn to stop",
    "write the end token after the turn's content in the template (chat_template.jinja), such as {{ eos_token }}",
)
CHUNK = 1024
"""The number of rows that are tokenised together."""

LossOn = Literal["assistant", "all"]


class Encoded(NamedTuple):
    """A row as token ids. labels: for each token the id to learn, or -100; truncated: whether its end was cut off;
    weight: factor of its loss."""

    input_ids: list[int]
    labels: list[int]
    location: str
    truncated: bool = False
    weight: float = 1.0

    def cut(self, max_length: int) -> Encoded:
        """Return the row itself, or the first `max_length` tokens of a longer row."""
        if len(self.input_ids) <= max_length:
            return self
        ids, labels = self.input_ids[:max_length], self.labels[:max_length]
        return self._replace(input_ids=ids, labels=labels, truncated=True)


Outcome: TypeAlias = Encoded | Problem


def render(record: Record, tokenizer: Tokenizer, *, loss_on: LossOn = "assistant") -> Encoded:
    """Return one record as ids and labels. Raise TemplateError or DataError, which names the row, if it is unusable."""
    outcome = next(outcomes([record], tokenizer, loss_on))
    if isinstance(outcome, Problem):
        raise TemplateError(outcome)
    if not _learns(outcome.labels):
        raise DataError(_nothing_to_learn(outcome, 0, 0))
    return outcome


def encode_all(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    over_long: OverLong = "raise",
    loss_on: LossOn = "assistant",
    on_bad_row: OnBadRow = "fail",
) -> EncodeResult[Encoded]:
    """Return all records as ids and labels, in order.

    Raise DataError (TemplateError) with all rows that cannot be rendered, have no supervised token or, with
    over_long="raise", are too long. With on_bad_row="skip" bad rows are returned as problems instead, but rows that are
    too long still raise.
    """
    limits = Limits(max_length, over_long, on_bad_row)
    return gathered(fitted(records, tokenizer, limits, loss_on)).checked(len(records), limits, TemplateError)


def fitted(
    records: Sequence[Record], tokenizer: Tokenizer, limits: Limits, loss_on: LossOn
) -> Iterator[Outcome | TooLong]:
    """Yield each record as a row that is not too long and has something to learn, or as its problem."""
    for outcome in outcomes(records, tokenizer, loss_on):
        if isinstance(outcome, Problem):
            yield outcome
            continue
        length = len(outcome.input_ids)
        if length > limits.max_length and limits.over_long != "truncate":
            yield TooLong(outcome.location, length)
            continue
        row = outcome.cut(limits.max_length)
        yield row if _learns(row.labels) else _nothing_to_learn(row, length, limits.max_length)


def _learns(labels: Sequence[int]) -> bool:
    return any(label != IGNORED for label in islice(labels, 1, None))  # nothing predicts the first token


def _nothing_to_learn(row: Encoded, length: int, max_length: int) -> Problem:
    if row.truncated:
        cause = f"no supervised token is left after cutting {length} tokens to max_length {max_length}"
        return Problem(row.location, cause, LONG_MEND)
    return Problem(row.location, "no supervised token: nothing to learn", "give the row an assistant turn")


def encode_prompt(
    messages: Sequence[Message] | str,
    tokenizer: Tokenizer,
    *,
    system: str | None = None,
    tools: Sequence[dict[str, Any]] | None = None,
) -> list[int]:
    """Return the token ids of a prompt, up to the point where the assistant's answer begins.

    A string is one user turn; without a chat template it is plain text. system: the content of a system turn that is
    put first. Raise TemplateError when messages or a system text are given without a template, when a text has a
    control token, and when the template would leave something out.
    """
    turns = (Message("user", messages),) if isinstance(messages, str) else tuple(messages)
    if system is not None:
        turns = (Message("system", system), *turns)
    if not tokenizer.chat_template:
        if isinstance(messages, str) and system is None:
            check_text(messages, tokenizer, "the prompt")
            return _plain(messages, tokenizer)
        raise TemplateError(_no_template(""))
    return _ids(tokenizer([prompt_text(turns, tokenizer, tools)], add_special_tokens=False))[0]


def prompt_text(turns: Sequence[Message], tokenizer: Tokenizer, tools: Sequence[dict[str, Any]] | None = None) -> str:
    """Return turns as the chat template renders them, up to the point where the answer begins. Raise the errors of
    `encode_prompt`.
    """
    said = " ".join(turns[-1].content.split()) if turns else ""
    location = f"the prompt {said[:40]!r}{'...' if len(said) > 40 else ''}"
    problem = gate_of(tokenizer).problem(parts_of(turns, tools), tokenizer, location)
    if problem is not None:
        raise TemplateError(problem)
    return _reader(tokenizer).template.prompt(turns, tools, location)


def _no_template(location: str) -> Problem:
    mend = "use a chat model, or rows with 'prompt' and 'completion', or put a chat_template.jinja beside the tokenizer"
    return Problem(location, "the tokenizer has no chat template", mend)


class _Reader:
    """The values that are computed once per tokenizer: its template, special tokens, and the token that ends turns."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.source = tokenizer.chat_template
        self.template = ChatTemplate(tokenizer)
        self.special = gate_of(tokenizer).special
        self.blank: dict[int, bool] = {}
        self.ender: int | None = None
        self.ender_known = False

    def is_blank(self, token: int, tokenizer: Tokenizer) -> bool:
        """Return whether a token is white space only."""
        if token not in self.blank:
            self.blank[token] = token not in self.special and text_of([token], tokenizer).strip() == ""
        return self.blank[token]

    def end_of_words(self, ids: Sequence[int], first: int, stop: int, tokenizer: Tokenizer) -> int:
        """Return the index after the last token in [first, stop) that is neither special nor white space."""
        while stop > first and (ids[stop - 1] in self.special or self.is_blank(ids[stop - 1], tokenizer)):
            stop -= 1
        return stop

    def ends_with(self, text: str, token: int, tokenizer: Tokenizer) -> bool:
        """Return whether a text ends with the spelling of a special token."""
        return token in self.special and text.endswith(str(tokenizer.convert_ids_to_tokens(token)))

    def end_of_turn(self, tokenizer: Tokenizer) -> int | None:
        """Return the special token between the assistant's words and the next turn, or None when there is none."""
        if not self.ender_known:
            self.ender_known = True
            probe = Conversation((Message("user", "Hi"), Message("assistant", "Yo"), Message("user", "Hm")), "")
            outcome = next(_encode_chats([probe], tokenizer, self, "assistant"))
            if isinstance(outcome, Encoded):
                learned = [i for i in outcome.labels if i != IGNORED]
                self.ender = learned[-1] if learned and learned[-1] in self.special else None
        return self.ender


_readers: WeakKeyDictionary[Tokenizer, _Reader] = WeakKeyDictionary()


def _reader(tokenizer: Tokenizer) -> _Reader:
    reader = _readers.get(tokenizer)
    now = (tokenizer.chat_template, moment_of(tokenizer))
    if reader is None or (reader.source, reader.template.moment) != now:
        _readers[tokenizer] = reader = _Reader(tokenizer)
    return reader


def outcomes(records: Sequence[Record], tokenizer: Tokenizer, loss_on: LossOn) -> Iterator[Outcome]:
    """Yield each record, in order, as ids and labels, or as its problem. Rows of any length are yielded, and rows
    without a supervised token too.
    """
    for at in range(0, len(records), CHUNK):
        chunk = records[at : at + CHUNK]
        if tokenizer.chat_template:
            chunk = [record.as_conversation() if isinstance(record, Completion) else record for record in chunk]
        chats = [record for record in chunk if isinstance(record, Conversation)]
        rendered = (
            _encode_chats(chats, tokenizer, _reader(tokenizer), loss_on) if chats and tokenizer.chat_template else None
        )
        for record in chunk:
            if isinstance(record, Conversation):
                yield _no_template(record.location) if rendered is None else next(rendered)
            elif isinstance(record, Completion):
                yield _plain_problem(record, tokenizer) or _completion(record, tokenizer, loss_on)
            elif isinstance(record, Text):
                yield _plain_problem(record, tokenizer) or _document(record, tokenizer)
            else:
                yield Problem(record.location, *NO_TEXTS[type(record)])


def _plain_problem(record: Completion | Text, tokenizer: Tokenizer) -> Problem | None:
    """Return the problem of a plain text with a control token, or None. A prompt and a completion without control
    tokens may form one when they are joined."""
    if isinstance(record, Text):
        parts = [Part(record.text, "the text")]
        mend = "remove it, one document per row; where it is a rendered conversation, give its messages"
    else:
        parts = [Part(record.prompt, "the prompt"), Part(record.completion, "the completion")]
        parts.append(Part(record.prompt + record.completion, "the prompt with its completion"))
        mend = PLAIN_MEND
    return gate_of(tokenizer).problem(parts, tokenizer, record.location, mend=mend)


def _plain(text: str, tokenizer: Tokenizer) -> list[int]:
    """Return the tokens of a plain text, with BOS if the tokenizer adds it, and without an end token."""
    ids = _ids(tokenizer([text]))[0]
    if ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(str(tokenizer.eos_token)):
        ids = ids[:-1]
    return ids


def _ids(encoding: dict[str, list[list[int]]]) -> list[list[int]]:
    return encoding["input_ids"]


def _document(record: Text, tokenizer: Tokenizer) -> Encoded:
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    ids = [*_plain(record.text, tokenizer), *end]
    return Encoded(ids, list(ids), record.location)


def _completion(record: Completion, tokenizer: Tokenizer, loss_on: LossOn) -> Outcome:
    """Encode prompt and completion as one text with an end token; the prompt gets the tokens it has in generation."""
    if tokenizer.eos_token_id is None:
        cause = "the tokenizer has no end token: the model would never stop"
        return Problem(record.location, cause, "set its eos_token")
    whole = _plain(record.prompt + record.completion, tokenizer)
    prompt, completion = join(_plain(record.prompt, tokenizer), whole, record.prompt, record.completion, tokenizer)
    answer = [*completion, int(tokenizer.eos_token_id)]
    ids = [*prompt, *answer]
    return Encoded(ids, list(ids) if loss_on == "all" else [IGNORED] * len(prompt) + answer, record.location)


def _encode_chats(
    chats: Sequence[Conversation], tokenizer: Tokenizer, reader: _Reader, loss_on: LossOn
) -> Iterator[Outcome]:
    """Render the chats, tokenise them together, make labels, and verify the first token of each turn."""
    plans: list[Rendered | Problem] = []
    for chat in chats:
        problem = gate_of(tokenizer).problem(parts_of(chat.messages, chat.tools), tokenizer, chat.location)
        if problem is not None:  # the row holds text that is rendered already, or a turn would end too early
            plans.append(problem)
            continue
        try:
            plans.append(reader.template.render(chat))
        except TemplateError as error:
            plans.append(error.problems[0])
    good = [plan for plan in plans if isinstance(plan, Rendered)]
    rows = iter(_rows(good, tokenizer, reader, loss_on) if good else ())
    for chat, plan in zip(chats, plans, strict=True):
        row = plan if isinstance(plan, Problem) else next(rows)
        if isinstance(row, Encoded):
            # the row of a turn that was cut off stops at the last word, so that the model does not learn to stop there
            stop = None if chat.ended else reader.end_of_words(row.input_ids, 0, len(row.input_ids), tokenizer)
            row = Encoded(row.input_ids[:stop], row.labels[:stop], row.location, weight=chat.weight)
        yield row


def _rows(plans: Sequence[Rendered], tokenizer: Tokenizer, reader: _Reader, loss_on: LossOn) -> list[Outcome]:
    texts = [plan.text for plan in plans]
    batch = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)
    encodings = batch.encodings if tokenizer.is_fast else [None] * len(texts)
    masked = [
        _mask(plan, ids, encoding, tokenizer, reader, loss_on)
        for plan, ids, encoding in zip(plans, _ids(batch), encodings, strict=True)
    ]
    return _verified(plans, masked, tokenizer, reader)


class _Masked(NamedTuple):
    """A row with its labels. starts: the start of each supervised turn."""

    row: Encoded
    starts: list[Start]


def _mask(
    plan: Rendered, ids: list[int], encoding: Encoding | None, tokenizer: Tokenizer, reader: _Reader, loss_on: LossOn
) -> _Masked | Problem:
    labels = [IGNORED] * len(ids)
    starts: list[Start] = []
    appended: list[int] = []
    for span in plan.spans:
        if encoding is not None:
            first, stop = first_token(encoding, span.start), token_from(encoding, span.end)
        else:
            cuts = _ids(tokenizer([plan.text[: span.start], plan.text[: span.end]], add_special_tokens=False))
            first, stop = len(cuts[0]), len(cuts[1])
        closed = _close(ids, first, stop, tokenizer, reader)
        if closed is None:
            ender = reader.end_of_turn(tokenizer) if span.last else None
            if ender is None:
                return Problem(plan.location, *UNCLOSED)
            appended = [ender]
            closed = len(ids)
        labels[first:closed] = ids[first:closed]
        starts.append(Start(first, span.start, begins_at(encoding, first, span.start)))
    full = [*ids, *appended]
    labels = list(full) if loss_on == "all" else [*labels, *appended]
    return _Masked(Encoded(full, labels, plan.location), starts)


def _close(ids: Sequence[int], first: int, stop: int, tokenizer: Tokenizer, reader: _Reader) -> int | None:
    """Return the index after the end-of-turn tokens of the turn at tokens [first, stop), or None when no token ends it.

    Command R has two such tokens. White space before them is learned too, since the model has to write it; tokens
    after them are not."""
    tail = reader.end_of_words(ids, first, stop, tokenizer)
    end = next((i for i in range(tail, stop) if ids[i] in reader.special), None)
    if end is not None:
        while end < stop and ids[end] in reader.special:
            end += 1
        return end
    after = stop
    while after < len(ids) and reader.is_blank(ids[after], tokenizer):
        after += 1
    return after + 1 if after < len(ids) and ids[after] in reader.special else None


def _verified(
    plans: Sequence[Rendered], masked: Sequence[_Masked | Problem], tokenizer: Tokenizer, reader: _Reader
) -> list[Outcome]:
    """Compare the tokens before each turn with the tokens of the text before it, and return the rows or their problems.

    A tokenizer may merge line breaks before the turn with line breaks in the turn. A turn that follows a special token
    needs no check. If only the tag is tokenised differently when words follow, the row gets the tokens that generation
    will see."""
    outcomes: list[Outcome] = [m.row if isinstance(m, _Masked) else m for m in masked]
    doubtful = [
        (at, start)
        for at, m in enumerate(masked)
        if isinstance(m, _Masked)
        for start in m.starts
        if not start.token
        or not reader.ends_with(plans[at].text[: start.char], m.row.input_ids[start.token - 1], tokenizer)
    ]
    if not doubtful:
        return outcomes
    texts = [plans[at].text[: start.char] for at, start in doubtful]
    seen: dict[int, list[tuple[Start, list[int]]]] = {}
    for (at, start), prefix in zip(doubtful, _ids(tokenizer(texts, add_special_tokens=False)), strict=True):
        seen.setdefault(at, []).append((start, prefix))
    for at, starts in seen.items():
        row = masked[at]
        assert isinstance(row, _Masked)
        prompted = as_prompted(row.row.input_ids, row.row.labels, starts)
        if prompted is None:
            outcomes[at] = Problem(
                row.row.location,
                "the first token of a turn joins the end of the template's tag and the beginning of the turn",
                "remove white space at the start of the turn's content (or, where the template begins the turn "
                "with <think>, give the row its reasoning_content)",
            )
        else:
            outcomes[at] = row.row._replace(input_ids=prompted[0], labels=prompted[1])
    return outcomes
