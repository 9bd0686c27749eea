"""Judge a file of labelled answers with the exam's own measures, and show the rows that they judge wrongly.

    python tools/judge_files.py kept    pairs.jsonl     {prompt, before, after, content: same | partly | changed}
    python tools/judge_files.py match   answers.jsonl   {prompt, answers: [..], text, right: true | false}
    python tools/judge_files.py refusal answers.jsonl   {text, refusal: true | false}

The file has one JSON object per line. Three other keys are used if a row has them: `truncated` (before, after or both)
and `manner` (same or changed) of a pair, and `id`, which names a row. All further keys are ignored. With --json one
JSON object is printed.

kept prints auc_same_changed and auc_same_rest: the probability that a pair labelled `same` has a higher score than a
pair labelled `changed`, or than any other pair; ties count half. It also prints balanced_accuracy: the mean of the
share of `same` at or above the band `drifted` and the share of `changed` below it. `partly` counts for neither;
balanced_accuracy_with_partly counts it with `same`. match and refusal print accuracy. A figure is null if the file has
no row of a class that it needs, and a line says so.

Exit codes: 0 the file was judged, with any figures; 2 the file cannot be read or a row is wrong (all wrong rows are
named).
"""  # fmt: skip

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from posttrain.exams.behaviour import manner
from posttrain.exams.kept import DRIFTED, Kept, kept
from posttrain.exams.matching import matches
from posttrain.exams.refusals import is_refusal

Row = dict[str, Any]
CONTENT = ("same", "partly", "changed")
TRUNCATED = ("", "before", "after", "both")


class BadFile(Exception):
    """The file cannot be judged. Each line of the message names file and line."""


class Field(NamedTuple):
    """The value that a row must have for a key. wanted: its description; fits: returns whether a value is right."""

    wanted: str
    fits: Callable[[Any], bool]


def _one_of(*values: str) -> Field:
    return Field(f"one of {', '.join(repr(v) for v in values)}", lambda value: value in values)


TEXT = Field("a text", lambda value: isinstance(value, str))
TRUTH = Field("true or false", lambda value: isinstance(value, bool))
TEXTS = Field(
    "a list of texts",
    lambda value: isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value),
)
FIELDS: dict[str, dict[str, Field]] = {
    "kept": {"prompt": TEXT, "before": TEXT, "after": TEXT, "content": _one_of(*CONTENT)},
    "match": {"prompt": TEXT, "answers": TEXTS, "text": TEXT, "right": TRUTH},
    "refusal": {"text": TEXT, "refusal": TRUTH},
}
OPTIONAL: dict[str, dict[str, Field]] = {
    "kept": {"truncated": _one_of(*TRUNCATED), "manner": _one_of("same", "changed")},
    "match": {},
    "refusal": {},
}


def read(path: Path, kind: str) -> list[Row]:
    """Return the rows of a file, each with its line number as `line`. Raise BadFile with every row that is wrong."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise BadFile(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadFile(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    rows, wrong = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            wrong.append(f"{path}:{number}: not JSON: {error.msg} (column {error.colno})")
            continue
        faults = _faults(row, kind)
        wrong += [f"{path}:{number}: {fault}" for fault in faults]
        if not faults:
            rows.append({**row, "line": number})
    if wrong:
        raise BadFile("\n".join(wrong))
    if not rows:
        raise BadFile(f"{path}: has no rows; one JSON object per line is expected")
    return rows


def _faults(row: Any, kind: str) -> list[str]:
    if not isinstance(row, dict):
        return [f"a JSON object is expected, not {json.dumps(row, ensure_ascii=False)[:40]}"]
    faults = [f"the key `{key}` is missing ({field.wanted})" for key, field in FIELDS[kind].items() if key not in row]
    return faults + [
        f"`{key}` must be {field.wanted}, not {json.dumps(row[key], ensure_ascii=False)[:40]}"
        for key, field in (FIELDS[kind] | OPTIONAL[kind]).items()
        if key in row and not field.fits(row[key])
    ]


def auc(above: Sequence[float], below: Sequence[float]) -> float | None:
    """Return the probability that a value of `above` is larger than a value of `below`; ties count half.

    It is computed from ranks, and None if one of the two is empty.

        (sum of the ranks of `above` - m (m + 1) / 2) / (m n),  m = len(above), n = len(below)
    """  # fmt: skip
    if not above or not below:
        return None
    every = sorted([*above, *below])
    first: dict[float, int] = {}
    count: dict[float, int] = {}
    for place, value in enumerate(every, 1):
        first.setdefault(value, place)
        count[value] = count.get(value, 0) + 1
    ranks = sum(first[value] + (count[value] - 1) / 2 for value in above)
    m, n = len(above), len(below)
    return (ranks - m * (m + 1) / 2) / (m * n)


def balanced(kept_ones: Sequence[float], changed: Sequence[float], threshold: float = DRIFTED) -> float | None:
    """Return the mean of the shares that are judged right in both classes, or None if one is empty."""
    if not kept_ones or not changed:
        return None
    right_kept = sum(score >= threshold for score in kept_ones) / len(kept_ones)
    return (right_kept + sum(score < threshold for score in changed) / len(changed)) / 2


def judge_kept(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the figures for content kept, and for manner if rows have it."""
    judged = [_kept(row) for row in rows]
    of = {c: [k.score for k, row in zip(judged, rows, strict=True) if row["content"] == c] for c in CONTENT}
    wrong = [
        _shown(row, ("prompt", "before", "after", "content"), score=round(k.score, 3), band=k.band, reason=k.reason)
        for k, row in zip(judged, rows, strict=True)
        if row["content"] != "partly" and (row["content"] == "same") != (k.score >= DRIFTED)
    ]
    found: dict[str, Any] = {
        "n": len(rows),
        **{f"n_{c}": len(of[c]) for c in CONTENT},
        "auc_same_changed": auc(of["same"], of["changed"]),
        "auc_same_rest": auc(of["same"], of["partly"] + of["changed"]),
        "balanced_accuracy": balanced(of["same"], of["changed"]),
        "balanced_accuracy_with_partly": balanced(of["same"] + of["partly"], of["changed"]),
        "threshold": DRIFTED,
    }
    with_manner = [row for row in rows if "manner" in row]
    if with_manner:
        right = [manner(r["prompt"], r["before"], r["after"]).same == (r["manner"] == "same") for r in with_manner]
        found["manner_accuracy"] = sum(right) / len(right)
    return found | {"absent": [c for c in CONTENT if not of[c]], "wrong": wrong}


def _kept(row: Row) -> Kept:
    cut = row.get("truncated", "")
    return kept(
        row["prompt"],
        row["before"],
        row["after"],
        truncated_before=cut in ("before", "both"),
        truncated_after=cut in ("after", "both"),
    )


def judge_match(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the accuracy of `matches`, with the counts and the rows judged wrongly."""
    said = [matches(row["text"], row["answers"], prompt=row["prompt"]) for row in rows]
    return _accuracy(rows, said, "right", ("prompt", "answers", "text", "right"))


def judge_refusal(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the accuracy of `is_refusal`, with the counts and the rows judged wrongly."""
    return _accuracy(rows, [is_refusal(row["text"]) for row in rows], "refusal", ("text", "refusal"))


def _accuracy(rows: Sequence[Row], said: Sequence[bool], label: str, keys: Sequence[str]) -> dict[str, Any]:
    wrong = [_shown(row, keys, judged=one) for one, row in zip(said, rows, strict=True) if one != row[label]]
    counts = {True: sum(row[label] for row in rows)}
    counts[False] = len(rows) - counts[True]
    return {
        "n": len(rows),
        f"n_{label}": counts[True],
        f"n_not_{label}": counts[False],
        "accuracy": 1 - len(wrong) / len(rows),
        "absent": [name for truth, name in ((True, label), (False, f"not {label}")) if not counts[truth]],
        "wrong": wrong,
    }


def _shown(row: Row, keys: Sequence[str], **judged: Any) -> Row:
    named = {key: row[key] for key in ("line", "id") if key in row}
    return named | {key: row[key] for key in keys} | judged


JUDGES: dict[str, Callable[[Sequence[Row]], dict[str, Any]]] = {
    "kept": judge_kept,
    "match": judge_match,
    "refusal": judge_refusal,
}


def readable(found: dict[str, Any]) -> str:
    """Return the figures and the rows judged wrongly as plain lines."""
    lines = [
        f"{key:32}{value:.3f}" if isinstance(value, float) else f"{key:32}{'-' if value is None else value}"
        for key, value in found.items()
        if key not in ("wrong", "absent")
    ]
    lines += [f"no row is labelled {name}: figures that need it are left out" for name in found["absent"]]
    lines.append(f"judged wrongly: {len(found['wrong'])}")
    for row in found["wrong"]:
        lines.append("")
        lines += [f"  {key:8} {json.dumps(value, ensure_ascii=False)}" for key, value in row.items()]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code. The module's docstring says what the codes mean."""
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="judge_files.py", description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=sorted(JUDGES), help="which measure")
    parser.add_argument("file", type=Path, help="rows as JSON, one a line")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines to read")
    options = parser.parse_args(arguments)
    try:
        rows = read(options.file, options.kind)
    except BadFile as error:
        print(error, file=sys.stderr)
        return 2
    found = JUDGES[options.kind](rows)
    print(json.dumps(found, ensure_ascii=False, indent=2) if options.json else readable(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
