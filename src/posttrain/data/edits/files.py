"""Read editing data sets: CounterFact, zsRE, KnowEdit and RippleEdits (.json), and plain edits (.json, .jsonl,
and tables: .csv, .tsv, .parquet).

A file's first record says by its fields which data set it is. A slice may follow the name: `counterfact.json[:200]`,
`counterfact.json[100:200]`. Records count from 0, as in Python. An error names a record of a .json file as the slice
that reads it alone, `counterfact.json[17:18]`, and a row of another file by its line.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from posttrain.data.edits import counterfact, knowedit, plain, ripple_edits, zsre
from posttrain.data.edits.fields import Fields, Skipped
from posttrain.data.fields import BadRow, keys_of, kind_of
from posttrain.data.files import JSON_SUFFIXES, PARQUET_SUFFIXES, TABLE_SUFFIXES, ending_of, file_rows
from posttrain.data.lengths import data_error
from posttrain.errors import DataError, Problem

__all__ = ["Edit", "EditSet", "Numbered", "Part", "is_edit_file", "read_edit_set", "split_part"]

Edit: TypeAlias = counterfact.CounterFact | zsre.ZsRE | knowedit.KnowEdit | ripple_edits.RippleEdit | plain.PlainEdit
ENDINGS = JSON_SUFFIXES | TABLE_SUFFIXES | PARQUET_SUFFIXES
_ENDING = rf"(?:{'|'.join(re.escape(ending) for ending in sorted(ENDINGS))})"
_SLICED = re.compile(rf"(?P<path>.*{_ENDING}(?:\.gz)?)\[(?P<part>[^\[\]]*)\]", re.IGNORECASE)
_BOUNDS = re.compile(r"\s*(\d*)\s*:\s*(\d*)\s*")
_NAMED = 60
"""The most characters of a file's name in the name of a change."""


@dataclass(frozen=True)
class Form:
    """A form of records. name: of the data set, also of its exam; title: as people write it; fields: those that it is
    recognised by, for messages; fits: whether a record has them; read: makes a typed record.
    """

    name: str
    title: str
    fields: str
    fits: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Fields], Edit]


FORMS = (
    Form("counterfact", "CounterFact", "requested_rewrite", counterfact.fits, counterfact.read),
    Form("zsre", "zsRE", "src, answers, loc", zsre.fits, zsre.read),
    Form("ripple_edits", "RippleEdits", "edit, Logical_Generalization, ...", ripple_edits.fits, ripple_edits.read),
    Form("knowedit", "KnowEdit", "prompt, target_new, portability, locality", knowedit.fits, knowedit.read),
    Form("edits", "plain edits", "prompt, subject, answer", plain.fits, plain.read),
)


class Part(NamedTuple):
    """A slice of a file's records, which count from 0; None: from the first one, or to the last one."""

    start: int | None = None
    stop: int | None = None

    def __str__(self) -> str:
        return f"[{'' if self.start is None else self.start}:{'' if self.stop is None else self.stop}]"


ALL = Part()


class Numbered(NamedTuple):
    """A record. number: from 0, the same whatever slice is read; name: unique in the file and stable, such as
    `counterfact-00017`; location: for errors.
    """

    number: int
    name: str
    location: str
    edit: Edit


class EditSet(NamedTuple):
    """The records that were read. form: the name of the data set; notes: what was left out, for people."""

    form: str
    records: Sequence[Numbered]
    notes: tuple[str, ...]


def split_part(path: str) -> tuple[str, Part]:
    """Split a path such as `counterfact.json[:200]` into the file and the slice. DataError when the brackets after the
    name of a file of records hold something else.
    """
    sliced = _SLICED.fullmatch(path)
    if sliced is None:
        return path, ALL
    bounds = _BOUNDS.fullmatch(sliced["part"])
    if bounds is None:
        mend = "a slice such as [:200] or [100:200] is expected"
        raise DataError(Problem(path, f"'[{sliced['part']}]' is no slice of records", mend))
    return sliced["path"], Part(*(int(bound) if bound else None for bound in bounds.groups()))


def is_edit_file(path: Path) -> bool:
    """Return whether the name is that of a file of records, not of a change file."""
    return ending_of(path) in ENDINGS


def read_edit_set(path: Path, part: Part = ALL, *, form: str = "") -> EditSet:
    """Return the records of a slice of a file. form: the only data set that the file may be.

    DataError with every wrong record, for a slice without records, and for a file whose records are none of these data
    sets. MissingError when there is no such file.
    """
    rows = list(file_rows(path, notes=[]))
    lined = ending_of(path) != ".json"
    chosen = range(len(rows))[slice(*part)]
    if not rows:
        raise DataError(Problem(str(path), "the file is empty: no records"))
    if not chosen:
        few = f"the file has {len(rows)} records"
        raise DataError(Problem(f"{path}{part}", f"no record is in this slice: {few}", "records count from 0"))
    found: list[Numbered] = []
    problems: list[Problem] = []
    left: Counter[str] = Counter()
    given = _form_of(rows[0][1], str(path), form)
    for number in chosen:
        line, row = rows[number]
        location = line if lined else f"{path}[{number}:{number + 1}]"
        try:
            found.append(Numbered(number, _name(path, number), location, given.read(_fields(row, given))))
        except BadRow as bad:
            problems.append(Problem(location, bad.cause, bad.mend))
        except Skipped as skipped:
            left[str(skipped)] += 1
    if problems:
        raise data_error(problems, len(chosen), skippable=False)
    if not found:
        raise DataError(Problem(f"{path}{part}", f"every record is left out: {', '.join(left)}"))
    return EditSet(given.name, found, tuple(_notes(left, found, len(chosen))))


def _form_of(row: Any, name: str, only: str) -> Form:
    """Return the form of a file by its first record. DataError when it has none, or another one than `only`."""
    first = f"{name} (its first record)"
    if isinstance(row, BadRow):
        raise DataError(Problem(name, row.cause, row.mend))
    if not isinstance(row, Mapping):
        raise DataError(Problem(first, f"an object is expected, got {kind_of(row)}"))
    form = next((one for one in FORMS if one.fits(row)), None)
    wanted = next((one for one in FORMS if one.name == only), None)
    if wanted is not None and (form is None or form is not wanted):
        cause = f"this is not {wanted.title}: the record has {keys_of(row)}"
        mend = f"it is {form.title}" if form is not None else f"expected: {wanted.fields}"
        raise DataError(Problem(first, cause, mend))
    if form is None:
        known = "; ".join(f"{one.title}: {one.fields}" for one in FORMS)
        raise DataError(Problem(first, f"no editing data set has the fields {keys_of(row)}", known))
    return form


def _fields(row: Any, form: Form) -> Fields:
    """Return a row as fields. BadRow for a row that is no object or could not be read, and for another data set's."""
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, Mapping):
        raise BadRow(f"an object is expected, got {kind_of(row)}")
    if not form.fits(row):
        other = next((one.title for one in FORMS if one.fits(row)), "")
        cause = f"the record is not of {form.title}, as the first one: it has {keys_of(row)}"
        raise BadRow(cause, f"it is {other}" if other else f"expected: {form.fields}")
    return Fields(row)


def _name(path: Path, number: int) -> str:
    """Return the name of a record: the file's name without its ending, and the number."""
    stem = re.sub(rf"{_ENDING}?(?:\.gz)?$", "", path.name, flags=re.IGNORECASE)
    word = re.sub(r"[^\w.-]+", "_", stem)[:_NAMED]
    return f"{word}-{number:05d}"


def _notes(left: Mapping[str, int], found: Sequence[Numbered], total: int) -> list[str]:
    """Return notes about records and probes that are left out."""
    notes = [f"left out: {count:,} of {total:,} records ({why})" for why, count in left.items()]
    edits = [one.edit for one in found]
    unanswered = sum(edit.unanswered for edit in edits if isinstance(edit, knowedit.KnowEdit | ripple_edits.RippleEdit))
    notes += [f"left out: {unanswered:,} of the probes (no answer)"] if unanswered else []
    return notes
