"""Read changes: change files (YAML), and editing data sets, of which every record becomes a change.

    changes/superlatives/*.yaml        a change from each file
    counterfact.json[:200]             a change from each of the first 200 records (`data/edits/files.py`)

A record's change has the probes that the data set has: its paraphrases as `generality.rephrase`, its questions one step
further as `hop`, its neighbours and unrelated questions as `locality`. Prompts to complete stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from posttrain.config.change import Change, load_change
from posttrain.config.load import check, find_files, read_text
from posttrain.data.edits.files import ALL, Numbered, Part, is_edit_file, read_edit_set, split_part
from posttrain.errors import ConfigError, DataError, MissingError, PosttrainError, Problem

__all__ = ["change_of", "load_changes"]


def _silent(line: str) -> None:
    pass


def load_changes(
    patterns: str | Sequence[str], base: Path, location: str = "", *, say: Callable[[str], None] = _silent
) -> list[Change]:
    """Read the changes of one or more paths or globs, relative to `base`, and return each change once.

    They are in the order of `find_files`, and of the records in a data set. A data set's path may end with a slice,
    which is then taken of every file of a glob. say: takes a line about records that are left out. Raise MissingError
    for a pattern without a file, and ConfigError with all problems of all files. Two changes with one name are an
    error, because their results would be mixed.
    """
    problems: list[Problem] = []
    changes: dict[str, Change] = {}
    for path, part in _files((patterns,) if isinstance(patterns, str) else patterns, base, location):
        try:
            found = _read(path, part, say)
        except (ConfigError, DataError) as error:
            problems += error.problems
            continue
        for change in found:
            other = changes.get(change.name)
            if other is not None and other.path != change.path:
                cause = f"the name '{change.name}' is also used by {other.path}"
                problems.append(Problem(change.path, cause, "rename one"))
            changes.setdefault(change.name, change)
    if problems:
        raise ConfigError(*problems)
    return list(changes.values())


def _files(patterns: Sequence[str], base: Path, location: str) -> list[tuple[Path, Part]]:
    """Return every file that the patterns name, each with its slice, and each pair once."""
    problems: list[Problem] = []
    found: dict[tuple[Path, Part], None] = {}
    kind: type[PosttrainError] = MissingError
    for pattern in patterns:
        try:
            name, part = split_part(pattern)
            found.update(dict.fromkeys((path, part) for path in find_files(name, base, location=location)))
        except DataError as error:
            problems += [problem._replace(location=location or problem.location) for problem in error.problems]
            kind = ConfigError
        except MissingError as error:
            problems += error.problems
    if problems:
        raise kind(*problems)
    return list(found)


def _read(path: Path, part: Part, say: Callable[[str], None]) -> list[Change]:
    """Return the changes of a file. Raise ConfigError or DataError with every problem."""
    if not is_edit_file(path) or (part == ALL and _is_change(path)):
        return [load_change(path)]
    edits = read_edit_set(path, part)
    dropped = 0
    changes: list[Change] = []
    problems: list[Problem] = []
    for record in edits.records:
        keys, doubled = _keys(record)
        dropped += doubled
        try:
            changes.append(change_of(record, keys))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    for note in edits.notes:
        say(f"{path.name}: {note}")
    if dropped:
        say(f"{path.name}: left out: {dropped:,} of the locality probes (they ask what their target asks)")
    return changes


def _is_change(path: Path) -> bool:
    """Return whether a .json file is a change file: one object, not a list or lines of objects."""
    return path.suffix.lower() == ".json" and read_text(path).lstrip().startswith("{")


def change_of(record: Numbered, keys: dict[str, Any] | None = None) -> Change:
    """Return a record as a change. keys: those of the change file, if they are known. Raise ConfigError."""
    made = check({"name": record.name, **(_keys(record)[0] if keys is None else keys)}, Change, record.location)
    return made.at(record.location)


def _keys(record: Numbered) -> tuple[dict[str, Any], int]:
    """Return a record as the keys of a change file, and how many locality probes it has that ask what the target asks:
    these are left out, since what is changed cannot stay."""
    keys = record.edit.as_change()
    target = keys["target"][0]["prompt"].strip()
    before = sum(len(probes) for probes in keys["locality"].values())
    keys["locality"] = {
        group: [probe for probe in probes if not (isinstance(probe, str) and probe.strip() == target)]
        for group, probes in keys["locality"].items()
    }
    return keys, before - sum(len(probes) for probes in keys["locality"].values())
