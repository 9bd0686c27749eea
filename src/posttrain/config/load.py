"""Read YAML as a frozen config, and report all problems at once, each with its line.

Example: `load_yaml(path, Model, sets=["optimizer.learning_rate=1e-4"])`. A problem looks like this:
`study.yaml:6: unknown key 'learning_rte'; did you mean 'learning_rate'?`.
"""

from __future__ import annotations

import glob
import gzip
import zlib
from collections.abc import Callable, Collection, Sequence
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from posttrain import registry
from posttrain.config.base import ByKind, Config
from posttrain.config.encoding import guess, wide_of
from posttrain.config.yaml_text import as_written, in_value, parse_yaml, plain
from posttrain.errors import ConfigError, MissingError, Problem

__all__ = ["check", "find_files", "load_yaml", "parse_value", "read_text", "read_yaml"]

C = TypeVar("C", bound=Config)


def read_text(path: Path) -> str:
    """Return a UTF-8 file as text, with or without BOM, with any line ends. A .gz file is decompressed.

    Raise MissingError if there is no such file or it cannot be read, and ConfigError for a folder, a damaged .gz file,
    and a file that is not UTF-8.
    """
    if not path.exists():
        raise MissingError(Problem(str(path), "no such file", mend_of(path)))
    if path.is_dir():
        raise ConfigError(Problem(str(path), "is a folder, a file is expected", "name a file in it"))
    try:
        data = path.read_bytes()
    except OSError as error:  # no permission, a bad disk
        raise MissingError(Problem(str(path), f"cannot be read: {error.strerror}", "let this user read it")) from error
    if path.suffix.lower() == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ConfigError(Problem(str(path), "not a gzip file, or cut off", "copy the file again")) from error
    if wide_of(data):  # English in UTF-16 is also valid UTF-8, with zeros
        raise ConfigError(Problem(f"{path}:1", *guess(data, str(path))))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        seen = guess(data, str(path))
        raise ConfigError(Problem(f"{path}:{line}", seen.cause, seen.mend)) from error


def mend_of(path: Path) -> str:
    """Return the mend for a missing file: a file in its folder with a similar name (without ending), or the folder."""
    files = sorted(path.parent.iterdir(), key=lambda p: (p.suffix == path.suffix, p)) if path.parent.is_dir() else []
    names = {p.stem.casefold(): p for p in files if p.is_file()}  # of equal names, the file with the same ending wins
    near = [names[name] for name in get_close_matches(path.stem.casefold(), names, n=1)]
    return f"did you mean '{near[0]}'?" if near else f"looked in {path.parent.absolute()}"


def read_yaml(path: Path, schema: str = "") -> CommentedMap:
    """Return the top-level mapping of a YAML file; its nodes know their lines. schema: name of the file's schema in
    `posttrain list --schema`, if it has one. Raise MissingError, or ConfigError with the line.
    """
    node = parse_yaml(read_text(path), str(path))
    if node is None:
        mend = f"`posttrain list --schema {schema}` shows what it may say" if schema else "write what is wanted into it"
        raise ConfigError(Problem(f"{path}:1", "the file is empty", mend))
    if not isinstance(node, CommentedMap):
        if wide := in_value(node, listed=False):
            raise ConfigError(Problem(f"{path}:1", *wide))
        got = "a list" if isinstance(node, list) else f"{node!r}"
        got = got if len(got) <= 100 else f"{got[:100]}..."
        raise ConfigError(Problem(f"{path}:1", f"a mapping (key: value) is expected, got {got}"))
    return node


def find_files(patterns: str | Sequence[str], base: Path, *, location: str = "") -> list[Path]:
    """Return the files that paths or globs name, relative to `base`, each once and sorted within its pattern. location:
    the location of the patterns, for errors. Raise MissingError with all patterns that name no file.
    """
    found: dict[Path, None] = {}
    problems = []
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        whole = base / Path(pattern).expanduser()
        matches = glob.glob(str(whole), recursive=True)  # noqa: PTH207 - Path.glob refuses an absolute pattern
        paths = [path for path in ([whole] if whole.is_file() else sorted(map(Path, matches))) if path.is_file()]
        if not paths and whole.is_dir():
            near = f"{pattern.rstrip('/')}/*.yaml"
            problems.append(Problem(location, f"'{pattern}' is a folder, files are expected", f"write {near}"))
        elif not paths:
            problems.append(Problem(location, f"no file matches '{pattern}'", f"looked for {whole}"))
        found.update(dict.fromkeys(paths))
    if problems:
        raise MissingError(*problems)
    return list(found)


def parse_value(text: str) -> Any:
    """Return the value of `--set key=value`, read as YAML: a number, list, mapping or string. Raise ConfigError."""
    try:
        return plain(parse_yaml(text, "")) if text else ""
    except ConfigError as error:
        told = error.problems[0].cause
        cause = "the value is not valid YAML" if told.startswith("not valid YAML") else told
        raise ConfigError(Problem(f"--set ...={text}", cause, "quote it, or close it")) from error


KeyPath: TypeAlias = tuple[str | int, ...]
"""The keys of mappings and indices of lists that lead from the top of a tree to a value."""
SHORT_PATHS = ("data", "validation")
"""The keys with a path as their short form: `data: rows.jsonl` means `data: {path: rows.jsonl}`."""


def apply_sets(node: dict[str, Any], sets: Sequence[str]) -> list[KeyPath]:
    """Apply overrides such as `a.b=c` and `list.0.b=c` to the tree, and return their key paths. Raise ConfigError."""
    return [_apply(node, item) for item in sets]


def _apply(node: dict[str, Any], item: str) -> KeyPath:
    done: list[str | int] = []
    path, eq, value = item.partition("=")
    if not eq or not path:
        raise ConfigError(Problem(f"--set {item}", "expected key=value", "for example --set optimizer.max_steps=20"))
    at: Any = node
    keys = path.split(".")
    for i, key in enumerate(keys):
        last = i == len(keys) - 1
        if isinstance(at, list):
            names = [v.get("name", v.get("kind")) if isinstance(v, dict) else None for v in at]
            named = [j for j, name in enumerate(names) if name == key]
            if not named and not (key.isdigit() and int(key) < len(at)):
                known = ", ".join(str(name) for name in names if name) or f"0 to {len(at) - 1}"
                cause = f"'{key}' is neither a name nor a number in the list"
                raise ConfigError(Problem(f"--set {item}", cause, f"known: {known}"))
            done.append(named[0] if named else int(key))
        elif isinstance(at, dict):
            done.append(key)
            if isinstance(at.get(key), str):  # `tuner: lora` is short for `tuner: {kind: lora}`
                at[key] = {"path" if key in SHORT_PATHS else "kind": at[key]}
            at.setdefault(key, {})
        else:
            raise ConfigError(Problem(f"--set {item}", f"'{'.'.join(keys[:i])}' holds a value, not keys"))
        if last:
            at[done[-1]] = parse_value(value)
        else:
            at = at[done[-1]]
    return tuple(done)


def line_of(node: Any, key_path: Sequence[str | int], *, key: bool = False) -> int | None:
    """Return the line (from 1) of a key path in the tree, or of the longest part of the key path that the file has.
    key: return the line of the last key itself, not of its value.
    """
    line = node.lc.line + 1 if isinstance(node, CommentedMap | CommentedSeq) else None
    for i, part in enumerate(key_path):
        try:
            if isinstance(node, CommentedMap) and part in node:
                at_key = (key and i == len(key_path) - 1) or node[part] is None  # there is no value on the next line
                line = (node.lc.key(part) if at_key else node.lc.value(part))[0] + 1
                node = node[part]
            elif isinstance(node, CommentedSeq) and isinstance(part, int) and part < len(node):
                line = node.lc.item(part)[0] + 1
                node = node[part]
        except (KeyError, TypeError):  # a key set by --set has no line
            return line
    return line


def line_with(node: Any, accepts: Callable[[str], bool]) -> int | None:
    """Return the line (from 1) of the first text in the tree that is accepted, or None when there is none."""
    keys = list(node) if isinstance(node, CommentedMap) else range(len(node)) if isinstance(node, CommentedSeq) else []
    for key in keys:
        if isinstance(node[key], str) and accepts(node[key]):
            return line_of(node, [key])
        if (found := line_with(node[key], accepts)) is not None:
            return found
    return None


def field_names(model: type[BaseModel], node: Any, key_path: Sequence[str | int]) -> list[str]:
    """Return the keys allowed at a key path. `kind:` in the file gives the class of a field chosen by kind."""
    current: Any = model
    seam = ""
    for part in key_path:
        if isinstance(part, str):
            if not (isinstance(current, type) and issubclass(current, BaseModel)) or part not in current.model_fields:
                return []
            field = current.model_fields[part]
            node = node.get(part) if isinstance(node, dict) else None
            current, seam = _inner(field.annotation, field.metadata)
        else:
            node = node[part] if isinstance(node, list) and part < len(node) else None
        if seam and isinstance(node, dict) and isinstance(node.get("kind"), str):
            current, seam = registry.load(seam, node["kind"]).config, ""
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []


def _inner(annotation: Any, metadata: Sequence[Any] = ()) -> tuple[type[BaseModel] | None, str]:
    """Return the pydantic class in an annotation, and the seam if the class is chosen by kind, else ""."""
    for marker in (*metadata, *get_args(annotation)[1:]):
        if isinstance(marker, ByKind):
            return Config, marker.seam
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, ""
    for argument in get_args(annotation):
        found = _inner(argument)
        if found[0] is not None:
            return found
    return None, ""


def _has(node: Any, part: str | int) -> bool:
    """Return whether a mapping has a key, or a list has an index."""
    return part in node if isinstance(node, dict) else isinstance(node, list) and part in range(len(node))


def _in_file(key_path: Sequence[str | int], node: Any, problem: str) -> list[str | int]:
    """Return pydantic's path without the names of union members and validators, which are not in the file."""
    kept: list[str | int] = []
    known = True
    for i, part in enumerate(key_path):
        last = i == len(key_path) - 1
        named = last and problem in ("missing", "extra_forbidden")  # a key such as 1 or null has become a text
        # an index is not in the file if it has `x: 7` for `x: [7]`
        listed = isinstance(part, int) and (isinstance(node, dict | list) or not known)
        if listed or (isinstance(node, dict) and part in node) or named:
            kept.append(part)
            node, known = (node[part], known) if _has(node, part) else (None, False)
    return kept


PLAIN_WORDS = {
    **dict.fromkeys(("model_type", "dict_type"), "a mapping (key: value) is expected"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list is expected"),
    "string_type": "text is expected",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number is expected"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number is expected"),
    "finite_number": "a finite number is expected",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false is expected"),
}
"""Pydantic's error type -> a message that fits a YAML file better than Python's type names."""


def _are_enough(node: Any, key_path: Sequence[str | int], least: int) -> bool:
    """Return whether a list has enough items, so that pydantic calls it too short only because some items are wrong."""
    for part in key_path:
        node = node[part]
    return isinstance(node, list) and len(node) >= least


def _shown(value: Any) -> str:
    """Return a value as YAML writes it, not as Python does."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, date) else repr(value)


def _no_text(location: str, where: str, node: Any, key_path: Sequence[str | int], value: Any) -> Problem:
    """Return the problem of a value that must be text. YAML reads `7` as a number and `2020-01-01` as a date."""
    cause = f"{where}: text is expected, got {_shown(value)}" if where else f"text is expected, got {_shown(value)}"
    if value is None:
        return Problem(location, cause, "write it after the colon, or leave the key out")
    for part in key_path:
        node = node[part] if _has(node, part) else value
    return Problem(location, cause, f'write it in quotation marks: "{as_written(node)}"')


def by_line(problems: Sequence[Problem]) -> list[Problem]:
    """Return the problems of a file, sorted by line. Problems without a line come first."""

    def line(problem: Problem) -> int:
        number = problem.location.rpartition(":")[2]
        return int(number) if number.isdecimal() else 0

    return sorted(problems, key=line)


def problems_of(
    error: ValidationError, model: type[BaseModel], node: Any, name: str, given: Collection[KeyPath] = ()
) -> list[Problem]:
    """Return pydantic's errors as problems with lines and mends. given: key paths that --set has set."""
    problems: list[Problem] = []
    expected: dict[tuple[str, str], list[str]] = {}  # what each type expects of a value that fits none of them
    first: dict[tuple[str, str], str] = {}
    for item in error.errors():
        key_path = _in_file(item["loc"], node, item["type"])
        unknown = item["type"] == "extra_forbidden"
        line = line_of(node, key_path, key=unknown)
        location = f"{name}:{line}" if line else name
        if any(tuple(key_path[: len(one)]) == one for one in given):
            location = "--set"
        where = ".".join(str(p) for p in key_path)
        refused = key_path[-1] if unknown else item["input"]
        wide = in_value(refused, listed=bool(key_path) and isinstance(key_path[-1], int))
        if wide is not None:
            problems.append(Problem(location, f"{where}: {wide[0]}" if where and not unknown else wide[0], wide[1]))
        elif unknown:
            allowed = field_names(model, node, key_path[:-1])
            close = get_close_matches(str(key_path[-1]), allowed, n=1)
            known = f"known keys: {', '.join(allowed)}" if allowed else ""
            mend = f"did you mean '{close[0]}'?" if close else known
            problems.append(Problem(location, f"unknown key '{key_path[-1]}'", mend))
        elif item["type"] == "missing":
            problems.append(Problem(location, f"'{where}' is missing"))
        elif item["type"] == "string_type" and not isinstance(item["input"], dict | list | tuple):
            problems.append(_no_text(location, where, node, key_path, item["input"]))
        elif item["type"] == "too_short" and _are_enough(node, key_path, item["ctx"]["min_length"]):
            continue  # the items are there and wrong; their own problems are listed
        else:
            said = item["type"] == "kind" or isinstance(item["input"], dict | list)
            said |= isinstance(item["input"], str) and repr(item["input"]) in item["msg"]
            got = "" if said else f", got {_shown(item['input'])}"
            message = PLAIN_WORDS.get(item["type"], item["msg"].removeprefix("Value error, "))
            message = message[0].lower() + message[1:]
            wants = expected.setdefault((location, where), [])
            literal = item["type"] == "literal_error" and len(wants) > 0
            wants.append(item["ctx"]["expected"] if literal else message.removesuffix(" is expected"))
            if len(wants) == 1 or not where:
                first[location, where] = message
                problems.append(Problem(location, f"{where}: {message}{got}" if where else message))
                continue
            message, others = first[location, where], " or ".join(dict.fromkeys(wants[1:]))
            problems = [p for p in problems if not (p.location == location and p.cause.startswith(f"{where}: "))]
            problems.append(Problem(location, f"{where}: {message} (or {others}){got}"))
    return problems


def check(node: dict[str, Any], model: type[C], name: str, given: Collection[KeyPath] = ()) -> C:
    """Validate a mapping and return the config. Raise ConfigError with every problem, with lines for a ruamel tree.
    name: of the file; given: result of `apply_sets`.
    """
    try:
        return model.model_validate(plain(node))
    except ValidationError as error:
        raise ConfigError(*by_line(problems_of(error, model, node, name, given))) from error


def load_yaml(path: Path | str, model: type[C], sets: Sequence[str] = ()) -> C:
    """Read a file, apply --set, and validate. Raise MissingError, or ConfigError with file:line for every problem."""
    path = Path(path)
    node = read_yaml(path, model.SCHEMA)
    given = apply_sets(node, sets)
    return check(node, model, str(path), given)
