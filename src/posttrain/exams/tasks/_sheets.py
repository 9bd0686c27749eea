"""Write sheets on which a person marks answers by hand, and read the marks back.

The marking is blind: the answers are in shuffled order, and the key is in a separate file.

    sheets/sheet-3f2a9c01.csv        code, question, answer, references, verdict (to fill in)
    sheets/keys/sheet-3f2a9c01.json  the respondent that gave the answers, and the item of each code

The name of a sheet is a hash of the respondent and its answers. It does not show which respondent answered, and the
same answers give the same sheet. A sheet that exists is never overwritten. A mark counts only for exactly the answer
that was marked.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from posttrain.config.json_text import parse_json
from posttrain.config.load import read_text
from posttrain.errors import DataError, MissingError, Problem
from posttrain.exams.records import Sample
from posttrain.exams.task import content_id
from posttrain.models.disk import write_whole

VERDICTS = {
    "correct": ("correct", "c", "正確", "對"),
    "wrong": ("wrong", "w", "incorrect", "錯誤", "錯"),
    "unrelated": ("unrelated", "u", "無關", "答非所問"),
    "declined": ("declined", "d", "refused", "拒答", "拒絕", "迴避"),
}
"""Verdict -> the words that a person may write for it."""
COLUMNS = ("code", "question", "answer", "correct answers", "incorrect answers", "verdict")
Marks = Mapping[tuple[str, str], str]
"""(item id, answer) -> verdict."""
_MEANING = {word: verdict for verdict, words in VERDICTS.items() for word in words}
"""Word on a sheet -> verdict."""


def write_sheet(folder: Path, respondent: str, samples: Sequence[Sample], seed: int) -> Path:
    """Write the answers of these samples as a sheet with its key, unless the sheet exists. Return the sheet's path."""
    name = f"sheet-{content_id(respondent, [(s.id, s.answer) for s in samples])[:8]}"
    sheet = folder / f"{name}.csv"
    if sheet.exists():
        return sheet
    order = list(samples)
    random.Random(f"sheet {seed} {name}").shuffle(order)
    codes = {f"{number:04}": sample for number, sample in enumerate(order, start=1)}
    key = {"respondent": respondent, "items": {code: sample.id for code, sample in codes.items()}}
    _key_of(sheet).parent.mkdir(parents=True, exist_ok=True)
    write_whole(_key_of(sheet), json.dumps(key, ensure_ascii=False, indent=1) + "\n")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for code, sample in codes.items():
        references = ["; ".join(sample.extra.get(side, ())) for side in ("true", "false")]
        writer.writerow([code, sample.question, sample.answer, *references, ""])
    write_whole(sheet, "\ufeff" + text.getvalue())  # the byte order mark makes spreadsheets read it as UTF-8
    return sheet


def _key_of(sheet: Path) -> Path:
    """Return the path of the key of a sheet."""
    return sheet.parent / "keys" / f"{sheet.stem}.json"


def read_marks(folder: Path) -> Marks:
    """Return every mark of every sheet in a folder. Raise MissingError when the key of a sheet is missing, and
    DataError when a key or a sheet cannot be read or with every unknown code and every unknown verdict.
    """
    marks: dict[tuple[str, str], str] = {}
    problems: list[Problem] = []
    for sheet in sorted(folder.glob("sheet-*.csv")):
        key = _key_of(sheet)
        if not key.exists():
            raise MissingError(Problem(str(key), "the key of the sheet is not there", "put it back"))
        try:
            items: dict[str, str] = parse_json(read_text(key))["items"]
            if not all(isinstance(item, str) for item in items.values()):
                raise ValueError("items are names")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(Problem(str(key), "not the key of a sheet", "put back what was there")) from error
        rows = csv.DictReader(io.StringIO(read_text(sheet), newline=""))
        try:
            lines = [(rows.line_num, row) for row in rows]
        except csv.Error as error:
            raise DataError(Problem(f"{sheet}:{rows.line_num}", f"not valid CSV: {error}", "save it again")) from error
        for number, row in lines:
            location = f"{sheet}:{number}"
            written = (row.get("verdict") or "").strip().lower()
            code = (row.get("code") or "").strip().zfill(4)  # a spreadsheet turns 0001 into the number 1
            if not written:
                continue
            if code not in items:
                problems.append(Problem(location, f"the code '{row.get('code')}' is not in the key", "restore it"))
            elif written not in _MEANING:
                known = ", ".join(words[0] for words in VERDICTS.values())
                problems.append(Problem(location, f"'{row['verdict']}' is no verdict", f"write one of {known}"))
            else:
                marks[items[code], row.get("answer") or ""] = _MEANING[written]
    if problems:
        raise DataError(*problems)
    return marks
