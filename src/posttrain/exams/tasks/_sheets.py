"""Sheets for marking answers by hand: blind, in shuffled order, with the key in a file of its own; and read back.

    sheets/sheet-3f2a9c01.csv        code, question, answer, references, verdict (to fill in)
    sheets/keys/sheet-3f2a9c01.json  whose answers they are, and each code's item

The name comes from the answers, so that it tells nobody whose they are and the same answers give the same sheet; one
that is there is never written again. A mark counts for exactly the answer that was marked.
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

__all__ = ["VERDICTS", "Marks", "read_marks", "write_sheet"]

VERDICTS = {
    "correct": ("correct", "c", "正確", "對"),
    "wrong": ("wrong", "w", "incorrect", "錯誤", "錯"),
    "unrelated": ("unrelated", "u", "無關", "答非所問"),
    "declined": ("declined", "d", "refused", "拒答", "拒絕", "迴避"),
}
"""Verdict -> what may be written for it."""
COLUMNS = ("code", "question", "answer", "correct answers", "incorrect answers", "verdict")
Marks = Mapping[tuple[str, str], str]
"""(item id, answer) -> verdict."""
_MEANING = {word: verdict for verdict, words in VERDICTS.items() for word in words}


def write_sheet(folder: Path, respondent: str, samples: Sequence[Sample], seed: int) -> Path:
    """Write the answers of these samples as a sheet with its key, unless it is there already."""
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
    write_whole(sheet, "\ufeff" + text.getvalue())  # with a BOM spreadsheets read it as UTF-8
    return sheet


def _key_of(sheet: Path) -> Path:
    return sheet.parent / "keys" / f"{sheet.stem}.json"


def read_marks(folder: Path) -> Marks:
    """Every mark of every sheet in the folder. DataError with every verdict that is none."""
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
            code = (row.get("code") or "").strip().zfill(4)  # a spreadsheet makes 0001 a number
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
