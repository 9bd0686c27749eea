"""Read data files as typed records, and report every bad row with its location, what was expected, and how to mend it.

This module reads rows with `messages` (and `tools`), with `prompt` and `completion` (strings, or lists of messages),
and with `text`. A message may have `train` (or OpenAI's `weight`) to put its words into the loss or leave them out.
Other rows are read by `formats` (Alpaca, ShareGPT, content and summary), `preferences` and `labelled`, and files by
`files`. A file may mix formats. Unknown keys of a row are ignored (data sets have ids and sources), unless one is a
misspelt known key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from posttrain.config.base import Config
from posttrain.data.fields import BadRow, filled, keys_of, kind_of, messages_of, missing, near_key, text_of, tools_of
from posttrain.data.files import TRUTH, TableRow, file_rows, rows_mend, typed
from posttrain.data.formats import FIELDS, own_fields, turns_in
from posttrain.data.labelled import labelled_of, question_of, tagged_of
from posttrain.data.lengths import OnBadRow, data_error
from posttrain.data.preferences import graded_of, preference_of
from posttrain.data.records import Completion, Conversation, Message, Record, Text
from posttrain.errors import DataError, Problem, shell_word

__all__ = ["DataSource", "Format", "OnBadRow", "ReadResult", "read_records", "record_of", "sift"]

Format = Literal["auto", "messages", "completion", "text", "preference", "graded", "labels", "tags", "answers"]


class DataSource(Config):
    """Where rows come from: a file, or a hub data set. `data: rows.jsonl` is short for `data: {path: rows.jsonl}`."""

    path: str | None = None
    """A .jsonl, .json, .csv, .tsv, .parquet or .txt file; .conll for tagged tokens, SQuAD's .json for questions about
    texts; text files may be packed (.gz)."""
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
        fields = {"messages", "tools", "prompt", "completion", "text", "chosen", "rejected", "margin", "label"}
        fields |= {"text2", "labels", "tokens", "tags", "question", "context", "answers", "id", *FIELDS}
        unknown = sorted(set(self.columns) - fields)
        if unknown:
            near = get_close_matches(unknown[0], sorted(fields), n=1)
            mend = f"did you mean '{near[0]}'?" if near else f"fields are {', '.join(sorted(fields))}"
            raise ValueError(f"columns: unknown field '{unknown[0]}'; {mend}")
        return self

    def at(self, base: Path) -> DataSource:
        """Return the same source with a relative path resolved from `base` (the folder of the YAML file)."""
        if self.path is None or Path(self.path).expanduser().is_absolute():
            return self
        return self.model_copy(update={"path": str(base / self.path)})


class ReadResult(NamedTuple):
    """The result of reading a source.

    records: the good records; rows: the number of all rows; skipped: the number of bad rows; problems: their problems;
    formats: how many rows of each format were recognised; notes: the choices made in reading the file, for people.
    """

    records: list[Record]
    rows: int
    skipped: int
    problems: list[Problem]
    formats: Mapping[str, int] = {}
    notes: tuple[str, ...] = ()

    def recognised(self) -> str:
        """Return the formats as text for people: `Alpaca`, or `3 rows of Alpaca, 1 row of text`."""
        if len(self.formats) == 1:
            return next(iter(self.formats))
        many = [f"{n:,} row{'' if n == 1 else 's'} of {format}" for format, n in self.formats.items()]
        return ", ".join(many) if many else "no rows"


def sift(source: DataSource) -> ReadResult:
    """Read every row, and report the bad ones. Raise DataError when the file cannot be read or is empty."""
    name = source.path if source.path is not None else f"{source.hub}[{source.split}]"
    assert name is not None
    records: list[Record] = []
    problems: list[Problem] = []
    notes: list[str] = []
    formats: Counter[str] = Counter()
    rows = 0
    for location, row in _rows(source, notes):
        rows += 1
        try:
            recognised, record = _recognised(row, location, source.columns, source.format)
        except BadRow as bad:
            problems.append(Problem(location, bad.cause, bad.mend))
        else:
            records.append(record)
            formats[recognised] += 1
    if rows == 0:
        if source.path is None:
            raise DataError(Problem(name, "the split is empty: no rows", "take another split"))
        mend = rows_mend(Path(source.path), tags=source.format == "tags")
        raise DataError(Problem(name, "the file is empty: no rows", mend))
    return ReadResult(records, rows, len(problems), problems, dict(formats.most_common()), tuple(notes))


def read_records(source: DataSource, *, on_bad_row: OnBadRow = "fail") -> ReadResult:
    """Read every row. Raise DataError with all bad rows (20 are listed) unless they are skipped, or if none is left."""
    read = sift(source)
    if not read.records or (read.problems and on_bad_row == "fail"):
        raise data_error(read.problems, read.rows)
    return read


def _rows(source: DataSource, notes: list[str]) -> Iterator[tuple[str, Any]]:
    """Return an iterator of (location, row). A row is a dict, a `BadRow`, or another JSON value."""
    if source.hub is not None:
        from posttrain.data.arrow import hub_rows

        return hub_rows(source.hub, source.subset, source.split, download=source.download, notes=notes)
    assert source.path is not None
    return file_rows(Path(source.path).expanduser(), tags=source.format == "tags", notes=notes)


FORMAT_NAMES: dict[Format, str] = {
    "messages": "conversations (messages)",
    "completion": "prompt and completion",
    "text": "text",
    "preference": "chosen and rejected answers",
    "graded": "graded answers",
    "labels": "labelled texts",
    "tags": "tagged tokens",
    "answers": "questions about texts",
}
LISTS = ("tokens", "tags", "answers")
"""The fields that are lists; tables store them as JSON text."""


def record_of(row: Any, location: str) -> Record:
    """Return one row as a record. Raise BadRow, which says what was expected."""
    return _recognised(row, location, {}, "auto")[1]


def _recognised(row: Any, location: str, columns: Mapping[str, str], format: Format) -> tuple[str, Record]:
    """Return the name of the row's format, and its record. Raise BadRow."""
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, dict):
        raise BadRow(f"an object is expected, got {kind_of(row)}", 'such as {"messages": [...]}')
    table = isinstance(row, TableRow)
    for ours, theirs in columns.items():
        if theirs not in row:
            near = near_key(theirs, row)
            mend = f"did you mean '{near}'?" if near else f"the row has {keys_of(row)}"
            raise BadRow(f"no column '{theirs}' (columns: {ours})", mend)
        row = {**row, ours: row[theirs]}
    if columns.get("prompt") == "instruction" and filled(row.get("input")) and "input" not in columns.values():
        raise BadRow("the row's 'input' would be lost", "leave columns out: Alpaca's rows are read as they are")
    name = ""
    if format not in ("labels", "tags", "answers"):
        name, row = own_fields(row)
    if table:
        row = typed(row, graded=format == "graded" or (format == "auto" and _is_graded(row)))
    if format == "auto":
        format = _format_of(row)
    return name or FORMAT_NAMES[format], _record(row, location, format)


def _is_graded(row: Mapping[str, Any]) -> bool:
    """Return whether a table's row has a completion, and a label that is a truth value as text (`yes`, `0`)."""
    label = row.get("label")
    return filled(row.get("completion")) and isinstance(label, str) and label.strip().lower() in TRUTH


def _record(row: Mapping[str, Any], location: str, format: Format) -> Record:
    if format == "messages":
        return _conversation(row, location)
    if format == "completion":
        return _completion(row, location)
    if format == "preference":
        return preference_of(row, location)
    if format == "graded":
        return graded_of(row, location)
    if format in ("labels", "tags", "answers"):
        row = {**row, **{key: turns_in(row[key], key) for key in LISTS if key in row}}
        if format == "labels":
            return labelled_of(row, location)
        return tagged_of(row, location) if format == "tags" else question_of(row, location)
    text = text_of(row, "text")
    if not text.strip():
        raise BadRow("'text' is empty", "remove the row")
    return Text(text, location)


def _format_of(row: Mapping[str, Any]) -> Format:
    if row.get("messages") is not None:
        return "messages"
    if row.get("chosen") is not None and row.get("rejected") is not None:
        return "preference"
    if row.get("completion") is not None and isinstance(row.get("label"), bool):
        return "graded"
    if row.get("prompt") is not None and "completion" in row:
        return "completion"
    if row.get("text") is not None:
        return "text"
    if row.get("tokens") is not None and "tags" in row:
        return "tags"
    if row.get("question") is not None and row.get("context") is not None:
        return "answers"
    if row.get("chosen") is not None or row.get("rejected") is not None:
        lacking = "rejected" if row.get("chosen") is not None else "chosen"
        raise BadRow(f"a preference without '{lacking}'", missing(lacking, row, f'add "{lacking}": "..."'))
    if row.get("prompt") is not None:
        mend = missing("completion", row, 'add "completion": "..."')
        raise BadRow("a row without an answer: 'prompt' but no 'completion'", mend)
    expected = (
        "expected 'messages', 'prompt' and 'completion', 'chosen' and 'rejected', or 'text' "
        "(or Alpaca's or ShareGPT's fields)"
    )
    mend = _misspelt(row)  # it names the key, so the keys need not be listed
    raise BadRow(expected, mend) if mend else BadRow(f"{expected}; the row has {keys_of(row)}", _mapping(row))


STARTS = ("messages", "prompt", "completion", "conversations", "instruction", "output", "chosen", "rejected", "text")
ASKED: tuple[str, ...] = ("question", "query", "problem", "instruction", "input", "source", "user")
ASKED += ("問題", "提問", "指令", "指示", "輸入", "题目", "題目", "问题", "提问", "输入")
ANSWERED: tuple[str, ...] = ("answer", "response", "output", "solution", "target", "reply", "assistant")
ANSWERED += ("回答", "答案", "回應", "回覆", "答覆", "輸出", "解答", "回复", "答复", "输出", "回应")
"""The names that other data sets give to the column of a prompt (ASKED) and of its answer (ANSWERED)."""


def _misspelt(row: Mapping[str, Any]) -> str:
    """Return the mend for a row of no known format that has a key similar to a known key, or "" when it has none."""
    wrong = {key: near for key in STARTS if (near := near_key(key, row)) and near not in STARTS}
    return "; ".join(f"did you mean '{key}'? it has '{near}'" for key, near in list(wrong.items())[:2])


def _mapping(row: Mapping[str, Any]) -> str:
    """Return the mend for a row of no known format: how to map its columns."""
    # of two names that are alike, the first wins
    written = {str(key).strip().casefold(): str(key) for key in reversed(list(row))}
    asked = next((written[key] for key in ASKED if key in written), None)
    answered = next((written[key] for key in ANSWERED if key in written), None)
    others = [str(key) for key in row if key not in (asked, answered)]
    if len(row) == 2:  # the column that is not recognised is the other one
        asked = asked or others.pop(0)
        answered = answered or others.pop(0)
    asked, answered = asked or "QUESTION", answered or "ANSWER"
    words = f"--column {shell_word(f'prompt={asked}')} --column {shell_word(f'completion={answered}')}"
    return f"rename the fields, or map them: {words} (in a file columns: {{prompt: {asked}, completion: {answered}}})"


def _conversation(row: Mapping[str, Any], location: str) -> Conversation:
    messages = messages_of(row.get("messages"), "messages")
    _check_answer(messages)
    return Conversation(messages, location, tools_of(row))


def _completion(row: Mapping[str, Any], location: str) -> Record:
    prompt, completion = row.get("prompt"), row.get("completion")
    if not filled(completion):
        raise BadRow("a row without an answer: 'completion' is empty", "write the answer or remove the row")
    if isinstance(prompt, list) or isinstance(completion, list):
        before, after = (
            messages_of(row[key], key) if isinstance(row.get(key), list) else (Message(role, text_of(row, key)),)
            for key, role in (("prompt", "user"), ("completion", "assistant"))
        )
        # only the completion is learned, unless the prompt says otherwise
        asked = (replace(m, train=False) if m.role == "assistant" and m.train is None else m for m in before)
        messages = (*asked, *after)
        _check_answer(messages)
        return Conversation(messages, location, tools_of(row))
    return Completion(text_of(row, "prompt"), text_of(row, "completion"), location)


def _check_answer(messages: tuple[Message, ...]) -> None:
    """Raise BadRow unless a conversation ends with an answer to learn, or a turn has `train: true`."""
    if any(m.train for m in messages):
        return
    if not any(m.role == "assistant" for m in messages):
        raise BadRow("a row without an answer: no assistant turn", "add the assistant's message")
    if messages[-1].role != "assistant":
        last = messages[-1].role
        raise BadRow(f"a row without an answer: the last turn is the {last}'s", "add the answer or remove that turn")
    if not any(m.supervised for m in messages):
        raise BadRow("nothing to learn: every assistant turn has train: false", "remove the row")
