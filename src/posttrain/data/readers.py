"""Data files to typed records; every bad row with its place, what was expected, and how to mend it.

Read are, row by row (a file may mix them):

- `{"messages": [{"role": ..., "content": ...}, ...], "tools": [...]}`; a message may have `reasoning_content`,
  `tool_calls`, `tool_call_id`, `name`, and `train` (or OpenAI's `weight`) to put its words into or out of the loss;
- `{"prompt": ..., "completion": ...}`, both strings, or both lists of messages;
- `{"text": ...}`;
- `.txt`: one document per block of lines, blocks are separated by blank lines.

Unknown keys of a row are left alone (data sets carry ids, sources and scores).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from posttrain.config.base import Config
from posttrain.config.load import read_text
from posttrain.data.records import ROLES, Completion, Conversation, Message, Record, Text
from posttrain.errors import ConfigError, DataError, MissingError, Problem

__all__ = ["LISTED_PROBLEMS", "BadRow", "DataSource", "OnBadRow", "ReadResult", "data_error", "read_records"]

OnBadRow = Literal["fail", "skip"]
Format = Literal["auto", "messages", "completion", "text"]

LISTED_PROBLEMS = 20
"""An error lists at most so many rows and says how many more there are."""

ROLE_NAMES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "function": "tool"}
"""Names that other formats use, for the mend."""


class DataSource(Config):
    """Where rows come from: a file, or a hub data set. `data: rows.jsonl` is short for `data: {path: rows.jsonl}`."""

    path: str | None = None
    """A .jsonl or .txt file."""
    hub: str | None = None
    """A data set on the Hugging Face hub, or a folder in its layout."""
    subset: str | None = None
    """The hub data set's configuration, such as `main`."""
    split: str = "train"
    """Which split of the hub data set."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Our field to the file's column, such as `{prompt: question, completion: answer}`."""
    format: Format = "auto"
    """What the rows hold; `auto` looks at each row's keys."""
    download: bool = False
    """Allow fetching the hub data set; without it only the local cache is used."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one(self) -> DataSource:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either path or hub")
        fields = {"messages", "tools", "prompt", "completion", "text"}
        unknown = sorted(set(self.columns) - fields)
        if unknown:
            raise ValueError(f"columns: unknown field '{unknown[0]}'; fields are {', '.join(sorted(fields))}")
        return self

    def at(self, base: Path) -> DataSource:
        """The same source with a relative path taken from `base` (the folder of the YAML file)."""
        if self.path is None or Path(self.path).expanduser().is_absolute():
            return self
        return self.model_copy(update={"path": str(base / self.path)})


class ReadResult(NamedTuple):
    """Good records; how many rows there were, how many were skipped, and what was wrong with these."""

    records: list[Record]
    rows: int
    skipped: int
    problems: list[Problem]


class BadRow(Exception):
    """A row cannot be used: the cause and the mend. Never leaves this module."""

    def __init__(self, cause: str, mend: str = "") -> None:
        self.cause, self.mend = cause, mend
        super().__init__(cause)


def read_records(source: DataSource, *, on_bad_row: OnBadRow = "fail") -> ReadResult:
    """Read every row. DataError with all bad rows (the first 20 listed) unless `skip`, and when no row is left."""
    name = source.path if source.path is not None else f"{source.hub}[{source.split}]"
    assert name is not None
    records: list[Record] = []
    problems: list[Problem] = []
    rows = 0
    for place, row in _rows(source):
        rows += 1
        try:
            records.append(record_of(row, place, source.columns, source.format))
        except BadRow as bad:
            problems.append(Problem(place, bad.cause, bad.mend))
    if rows == 0:
        raise DataError(Problem(name, "the file is empty: no rows", "one JSON object per line is expected"))
    if problems and on_bad_row == "fail":
        raise data_error(problems, rows)
    if not records:
        raise data_error(problems, rows)
    return ReadResult(records, rows, len(problems), problems)


def data_error(
    problems: list[Problem], rows: int, kind: type[DataError] = DataError, *, skippable: bool = True
) -> DataError:
    """One error for all bad rows: the first ones listed, the rest counted.

    skippable: whether `--on-bad-row skip` would help; it never does when no row would be left.
    """
    more = len(problems) - LISTED_PROBLEMS
    listed: list[Problem | str] = list(problems[:LISTED_PROBLEMS])
    if more > 0:
        listed.append(f"... and {more} more")
    bad = len({problem.place for problem in problems})  # a row may have several
    mend = "--on-bad-row skip leaves them out" if skippable and bad < rows else ""
    listed.append(Problem("", f"{bad} of {rows} rows cannot be used", mend))
    return kind(*listed)


def _rows(source: DataSource) -> Iterator[tuple[str, Any]]:
    """(place, row) of every row; a row is a dict, a `BadRow`, or a `Text` of a plain file."""
    if source.hub is not None:
        yield from _hub_rows(source)
        return
    assert source.path is not None
    path = Path(source.path).expanduser()
    try:
        text = read_text(path)
    except ConfigError as error:  # not UTF-8
        raise DataError(*error.problems) from error
    if path.suffix.lower() == ".txt":
        yield from _documents(text, str(path))
    elif path.suffix.lower() in {".csv", ".parquet", ".tsv", ".xlsx"}:
        raise DataError(Problem(str(path), f"{path.suffix} files are not read", "convert it to .jsonl"))
    else:
        yield from _json_lines(text, str(path))


def _json_lines(text: str, name: str) -> Iterator[tuple[str, Any]]:
    if text.lstrip().startswith("[") and text.rstrip().endswith("]"):
        raise DataError(
            Problem(f"{name}:1", "a JSON array; one object per line is expected", f"jq -c '.[]' {name} > rows.jsonl")
        )
    lines = text.split("\n")  # not splitlines: JSON strings may hold U+2028 and U+0085
    for number, line in enumerate(lines, start=1):
        line = line.strip(" \t\r")
        if not line:
            continue
        place = f"{name}:{number}"
        try:
            yield place, json.loads(line)
        except json.JSONDecodeError as error:
            cut = error.pos >= len(line) - 1 or "Unterminated" in error.msg
            what = error.msg.removesuffix(" starting at")
            cause = f"not valid JSON: {what} at column {error.colno}"
            if number == 1 and line in {"{", "["}:
                mend = "write each row on a line of its own (JSON Lines), not indented"
            else:
                mend = "the line seems to be cut off" if cut else "one JSON object per line is expected"
            yield place, BadRow(cause, mend)


def _documents(text: str, name: str) -> Iterator[tuple[str, Any]]:
    """Blocks of lines between blank lines, each a document, its place the block's first line."""
    block: list[str] = []
    first = 1
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        line = line.rstrip("\r")
        if line.strip():
            if not block:
                first = number
            block.append(line)
        elif block:
            yield f"{name}:{first}", {"text": "\n".join(block)}
            block = []


def _hub_rows(source: DataSource) -> Iterator[tuple[str, Any]]:
    import datasets

    assert source.hub is not None
    local = Path(source.hub).expanduser().is_dir()
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or not (source.download or local)
    progress = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(source.hub, source.subset, split=source.split)
    except (ConnectionError, FileNotFoundError, OSError) as error:
        mend = "check the name and the network" if source.download else "--download allows fetching it from the hub"
        raise MissingError(Problem(source.hub, f"the data set cannot be read: {_line(error)}", mend)) from error
    except ValueError as error:  # an unknown split or configuration; the message lists the known ones
        raise DataError(Problem(source.hub, _line(error))) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = before
        if progress:
            datasets.enable_progress_bars()
    for number, row in enumerate(rows):
        yield f"{source.hub}[{source.split}]:{number}", row


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def record_of(row: Any, place: str, columns: Mapping[str, str] | None = None, format: Format = "auto") -> Record:
    """One row as a record; BadRow with what was expected."""
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, dict):
        raise BadRow(f"an object is expected, got {_kind(row)}", 'such as {"messages": [...]}')
    for ours, theirs in (columns or {}).items():
        if theirs not in row:
            raise BadRow(f"no column '{theirs}' (columns: {ours})", f"the row has {_keys(row)}")
        row = {**row, ours: row[theirs]}
    if format == "auto":
        format = _format_of(row)
    if format == "messages":
        return _conversation(row, place)
    if format == "completion":
        return _completion(row, place)
    text = _text(row, "text")
    if not text.strip():
        raise BadRow("'text' is empty", "remove the row")
    return Text(text, place)


def _format_of(row: Mapping[str, Any]) -> Format:
    if row.get("messages") is not None:
        return "messages"
    if row.get("prompt") is not None and "completion" in row:
        return "completion"
    if row.get("text") is not None:
        return "text"
    if "prompt" in row:
        raise BadRow("a row without an answer: 'prompt' but no 'completion'", 'add "completion": "..."')
    raise BadRow(
        f"expected 'messages', 'prompt' and 'completion', or 'text'; the row has {_keys(row)}",
        "rename the fields, or map them: columns: {prompt: question, completion: answer}",
    )


def _conversation(row: Mapping[str, Any], place: str) -> Conversation:
    messages = _messages(row.get("messages"), "messages")
    _check_answer(messages)
    return Conversation(messages, place, _tools(row.get("tools")))


def _completion(row: Mapping[str, Any], place: str) -> Record:
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, list) or isinstance(completion, list):
        before = _messages(prompt, "prompt") if isinstance(prompt, list) else (Message("user", _text(row, "prompt")),)
        if isinstance(completion, list):
            after = _messages(completion, "completion")
        else:
            after = (Message("assistant", _text(row, "completion")),)
        asked = tuple(_untrained(m) for m in before)  # only the completion is learned
        messages = (*asked, *after)
        _check_answer(messages)
        return Conversation(messages, place, _tools(row.get("tools")))
    record = Completion(_text(row, "prompt"), _text(row, "completion"), place)
    if not record.completion.strip():
        raise BadRow("a row without an answer: 'completion' is empty", "write the answer or remove the row")
    return record


def _untrained(message: Message) -> Message:
    return replace(message, train=False) if message.role == "assistant" and message.train is None else message


def _messages(value: Any, field: str) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise BadRow(f"'{field}' must be a list of messages, got {_kind(value)}")
    if not value:
        raise BadRow(f"'{field}' is empty", "remove the row")
    return tuple(_message(item, f"{field}[{i}]") for i, item in enumerate(value))


def _message(item: Any, at: str) -> Message:
    if not isinstance(item, dict):
        raise BadRow(f"{at} must be an object with 'role' and 'content', got {_kind(item)}")
    if "role" not in item:
        mend = "this looks like ShareGPT: rename from/value to role/content" if "from" in item else ""
        raise BadRow(f"{at} has no 'role'", mend or f"roles are {', '.join(ROLES)}")
    role = item["role"]
    if role not in ROLES:
        close = ROLE_NAMES.get(role) if isinstance(role, str) else None
        raise BadRow(
            f"{at} has the unknown role {role!r}", f"write '{close}'" if close else f"one of {', '.join(ROLES)}"
        )
    calls = _calls(item.get("tool_calls"), at)
    content = _content(item.get("content"), at, optional=calls is not None)
    if not content.strip() and calls is None and role in {"user", "assistant"}:
        what = "a row without an answer: " if role == "assistant" else ""
        raise BadRow(f"{what}{at} ({role}) has empty content", "write the text or remove the row")
    reasoning = next((item[k] for k in ("reasoning_content", "reasoning", "thinking") if item.get(k) is not None), None)
    return Message(
        role,
        content,
        reasoning=_optional(reasoning, f"{at}.reasoning_content"),
        tool_calls=calls,
        name=_optional(item.get("name"), f"{at}.name"),
        train=_train(item, at),
        tool_call_id=_optional(item.get("tool_call_id"), f"{at}.tool_call_id"),
    )


def _content(value: Any, at: str, *, optional: bool) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        if optional:
            return ""
        raise BadRow(f"{at} has no 'content'", 'add "content": "..."')
    if isinstance(value, list):
        parts = [part.get("text") for part in value if isinstance(part, dict) and part.get("type") == "text"]
        if len(parts) == len(value) and all(isinstance(part, str) for part in parts):
            return "".join(str(part) for part in parts)
        raise BadRow(f"{at}.content has parts that are not text", 'only {"type": "text", "text": ...} parts are read')
    raise BadRow(f"{at}.content must be a string, got {_kind(value)}")


def _calls(value: Any, at: str) -> tuple[dict[str, Any], ...] | None:
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(call, dict) for call in value):
        raise BadRow(f"{at}.tool_calls must be a list of objects, got {_kind(value)}")
    return tuple(value)


def _tools(value: Any) -> tuple[dict[str, Any], ...] | None:
    if isinstance(value, str) and value.strip():  # hub data sets keep schemas as JSON text
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise BadRow(f"'tools' is not valid JSON: {error.msg}") from error
    if value is None or value in ("", []):
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise BadRow(f"'tools' must be a list of JSON schemas, got {_kind(value)}")
    return tuple(value)


def _train(item: Mapping[str, Any], at: str) -> bool | None:
    value = item.get("train")
    if value is None and item.get("weight") is not None:  # OpenAI: weight 0 or 1
        if item["weight"] not in (0, 1):
            raise BadRow(f"{at}.weight must be 0 or 1, got {item['weight']!r}")
        value = bool(item["weight"])
    if value is not None and not isinstance(value, bool):
        raise BadRow(f"{at}.train must be true or false, got {_kind(value)}")
    return value


def _optional(value: Any, at: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise BadRow(f"{at} must be a string, got {_kind(value)}")
    return value


def _text(row: Mapping[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise BadRow(f"'{field}' must be a string, got {_kind(value)}" if field in row else f"'{field}' is missing")
    return value


def _check_answer(messages: tuple[Message, ...]) -> None:
    """A conversation must end with an answer, or supervise another turn on purpose."""
    if any(m.train for m in messages):
        return
    if not any(m.role == "assistant" for m in messages):
        raise BadRow("a row without an answer: no assistant turn", "add the assistant's message")
    if messages[-1].role != "assistant":
        last = messages[-1].role
        raise BadRow(f"a row without an answer: the last turn is the {last}'s", "add the answer or remove that turn")
    if not any(m.supervised for m in messages):
        raise BadRow("nothing to learn: every assistant turn has train: false", "remove the row")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _keys(row: Mapping[str, Any]) -> str:
    return ", ".join(f"'{key}'" for key in list(row)[:10]) or "no fields"
