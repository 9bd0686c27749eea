"""Load lm-eval's tasks by name, offline and without parsing its 14,000 YAML files, and count lm-eval's own work.

Own folders are searched first, then only what is needed. lm-eval's index of all of its tasks takes 8 to 20 seconds to
build. Here the wanted names are searched in the text of the files (about a second), and only the folders that contain
them are indexed; the whole index is built if that is not enough.

If a task's `data_files` are relative paths, they are looked for in the working directory, as lm-eval does, and then in
the folder of the YAML file, where a person expects them.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from posttrain.errors import ConfigError, MissingError, Problem
from posttrain.models.meter import Meter

try:
    import lm_eval.tasks
    from lm_eval.api.group import Group
    from lm_eval.tasks import TaskManager
except ImportError as error:
    raise MissingError(Problem("lm-eval", "is not installed", "pip install 'posttrain[lm-eval]'")) from error

__all__ = ["counted_stages", "load_tasks"]

NAMED = re.compile(rb"^(?:task|group|tag):[ \t]*[\"']?([^\s\"'#\[]+)", re.MULTILINE)
LOCAL_BUILDERS = frozenset({"json", "csv", "parquet", "text", "arrow", "xml", "pandas"})
"""Readers of `datasets` that read data_files as local files; for other readers they are files of a repository."""

KEPT = "answers that --output keeps stay, the same command goes on from them"

Loaded = dict[str, dict[str, Any]]
"""What `lm_eval.evaluate` takes: "tasks" by name, "groups" by name, "group_map"."""


def load_tasks(names: Sequence[str], include: Sequence[Path] = (), *, say: Callable[[str], None] = print) -> Loaded:
    """Load tasks and groups by name, glob (`mmlu_*`) or YAML file; tasks of `include` are used before lm-eval's own.

    ConfigError for unknown names, with similar ones, and for data files in several folders; MissingError for data or an
    `include` folder that is not on this machine.
    """
    lacking = [path for path in include if not path.is_dir()]
    if lacking:
        raise MissingError(*(Problem("--include-path", f"'{path}' is no folder here") for path in lacking))
    names = [str(Path(name).resolve()) if _is_file(name) else name for name in names]
    manager, wanted = _manager(names, include)
    folders = {name: _folders(manager, name) for name in wanted}
    problems = [
        Problem(name, f"its data files lie in several folders ({', '.join(map(str, sorted(f)))})", "write whole paths")
        for name, f in folders.items()
        if len(f) > 1
    ]
    if problems:
        raise ConfigError(*problems)
    for name, found in folders.items():
        for folder in found:
            say(f"{name}: data files are read from {folder}")
    built: list[Any] = []
    for places in dict.fromkeys(frozenset(f) for f in folders.values()):
        some = [name for name in wanted if folders[name] == places]
        with contextlib.chdir(next(iter(places))) if places else contextlib.nullcontext():
            built += _objects(_load(manager, some))
    return _load(manager, built)


def _load(manager: TaskManager, wanted: Sequence[Any]) -> Loaded:
    try:
        return manager.load(list(wanted))
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        first = str(error).strip().split("\n", 1)[0][:300] or type(error).__name__
        names = ", ".join(str(each) for each in wanted)
        if isinstance(error, OSError):  # offline, no such repository, no such file
            mend = "--download allows fetching it from the hub; a task YAML may name local files"
            raise MissingError(Problem(names, f"the data is not on this machine: {first}", mend)) from error
        raise ConfigError(Problem(names, f"lm-eval cannot load it: {type(error).__name__}: {first}")) from error


def _objects(loaded: Loaded) -> list[Any]:
    """Return the groups that are in no other group and the tasks in no group: loading them gives the same again."""
    groups = loaded.get("groups", {})
    inner = {child.name for group in groups.values() for child in group if isinstance(child, Group)}
    grouped = {task.task_name for group in groups.values() for task in group.get_all_tasks()}
    return [group for name, group in groups.items() if name not in inner] + [
        task for name, task in loaded["tasks"].items() if name not in grouped
    ]


# ---- names -----------------------------------------------------------------------------------------------------------


def _manager(names: Sequence[str], include: Sequence[Path]) -> tuple[TaskManager, list[str]]:
    """Return an index that has every name, as small as possible, and the names with globs expanded."""
    own = [str(path.resolve()) for path in include]
    manager = TaskManager(include_path=own, include_defaults=False)
    if not include or _lacking(manager, names):
        manager = TaskManager(include_path=[*_default_folders(names), *own], include_defaults=False)
    if not _lacking(manager, names):
        found = _written_out(manager, names)
        leaves = (leaf for name in found if not _is_file(name) for leaf in _leaves(manager, name))
        if all(leaf in manager.task_index for leaf in leaves):  # everything that the groups name is also there
            return manager, found
    manager = TaskManager(include_path=own)
    unknown = _lacking(manager, names)
    if unknown:
        raise ConfigError(*(_unknown(name, manager.all_tasks) for name in unknown))
    return manager, _written_out(manager, names)


def _unknown(name: str, known: Sequence[str]) -> Problem:
    close = get_close_matches(name, known, n=4, cutoff=0.6)
    mend = f"did you mean {', '.join(close)}?" if close else "--include-path DIR adds a folder of task files"
    return Problem("--tasks", f"'{name}' is no task, group or tag of lm-eval, and no YAML file", mend)


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) and Path(name).is_file()


def _lacking(manager: TaskManager, names: Sequence[str]) -> list[str]:
    known = set(manager.all_tasks)
    return [
        name for name in names if not (name in known or _is_file(name) or ("*" in name and manager.match_tasks([name])))
    ]


def _written_out(manager: TaskManager, names: Sequence[str]) -> list[str]:
    known = set(manager.all_tasks)
    parts = [manager.match_tasks([n]) if "*" in n and n not in known else [n] for n in names]
    return list(dict.fromkeys(name for part in parts for name in part))


def _leaves(manager: TaskManager, name: str, within: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the tasks of a group or tag, or the name itself; a group's inline tasks have no names of their own."""
    entry = manager.task_index.get(name)
    if entry is None or name in within:
        yield name
        return
    members = [*sorted(entry.tags)] if entry.kind.name == "TAG" else (entry.cfg or {}).get("task")
    if entry.kind.name not in ("TAG", "GROUP") or not isinstance(members, list):
        yield name
        return
    for member in members:
        inner = member if isinstance(member, str) else member.get("group") or member.get("task")
        if isinstance(member, dict) and (isinstance(inner, list) or "dataset_path" in member or "task" not in member):
            continue
        yield from _leaves(manager, str(inner), (*within, name))


def _default_folders(names: Sequence[str]) -> list[str]:
    """Return the folders of lm-eval's own tasks in which one of the names is a task, group or tag."""
    root = Path(lm_eval.tasks.__file__).parent
    plain = {name.encode() for name in names if "*" not in name}
    globs = [re.compile(re.escape(name).replace(r"\*", ".*").encode()) for name in names if "*" in name]
    found: dict[str, None] = {}
    for folder, _, files in os.walk(root):
        for file in files:
            if not file.endswith(".yaml"):
                continue
            text = Path(folder, file).read_bytes()
            named = NAMED.findall(text)
            if plain.intersection(named) or any(g.fullmatch(n) for g in globs for n in named):
                found[str(root / Path(folder).relative_to(root).parts[0])] = None
    return list(found)


# ---- data files ------------------------------------------------------------------------------------------------------


def _folders(manager: TaskManager, name: str) -> set[Path]:
    """Return the folders that a task's relative data files need as working directory; empty if any folder will do.
    MissingError for data files that are in neither folder."""
    from lm_eval.tasks._yaml_loader import load_yaml

    needed: set[Path] = set()
    problems = []
    for leaf in [name] if _is_file(name) else _leaves(manager, name):
        if _is_file(leaf):
            path: Path | None = Path(leaf).resolve()
            config = load_yaml(path, resolve_func=False)
        else:
            entry = manager.task_index[leaf]
            path, config = entry.yaml_path, entry.cfg or {}
        if path is None or config.get("dataset_path") not in LOCAL_BUILDERS:
            continue
        given = (config.get("dataset_kwargs") or {}).get("data_files")
        for file in _relative(given):
            if _there(Path.cwd(), file):
                continue
            if _there(path.parent, file):
                needed.add(path.parent.resolve())
            else:
                problems.append(
                    Problem(str(path), f"data file '{file}' is neither in {Path.cwd()} nor beside it", "check the path")
                )
    if problems:
        raise MissingError(*problems)
    return needed


def _relative(given: Any) -> list[str]:
    """Return the relative paths in `data_files`: a path, a list of them, or a mapping from splits to either."""
    if isinstance(given, dict | list):
        parts = given.values() if isinstance(given, dict) else given
        return [file for part in parts for file in _relative(part)]
    if isinstance(given, str) and "://" not in given and not Path(given).is_absolute():
        return [given]
    return []


def _there(folder: Path, file: str) -> bool:
    return any(True for _ in folder.glob(file)) if "*" in file else (folder / file).exists()


# ---- stages ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def counted_stages(tasks: Mapping[str, Any], limit: int | None, rank: int = 0, processes: int = 1) -> Iterator[None]:
    """While lm-eval evaluates these tasks, report the progress of its own work, which takes long and shows nothing.

    Meters count the questions that are written out with their examples, the answers that are judged, and the tasks that
    have their scores and bootstraps computed.
    """
    there = {name: len(task.eval_docs) for name, task in tasks.items()}
    asked = {name: len(range(rank, n if limit is None else min(limit, n), processes)) for name, n in there.items()}
    answers = sum(asked[name] * max(len(task.config.filter_list or ()), 1) for name, task in tasks.items())
    writing = Meter("writing out the questions of lm-eval", sum(asked.values()), "questions", kept=KEPT)
    judging = Meter("judging the answers", answers, "answers", kept=KEPT)
    scoring = Meter("computing the scores", len(tasks), "tasks", kept=KEPT)
    with contextlib.ExitStack() as restored, contextlib.ExitStack() as stage:
        now: Meter | None = None
        built: set[str] = set()
        scored: set[str] = set()

        def begins(meter: Meter) -> None:
            """Count that one more piece begins; the pieces before it are done."""
            nonlocal now
            if now is meter:
                meter.more(1)
            else:
                stage.close()
                meter.again()
                now = stage.enter_context(meter)

        def begins_scoring(name: str) -> None:
            if name not in scored:
                begins(scoring)
            scored.add(name)

        def has_built(name: str) -> None:
            built.add(name)
            if len(built) == len(tasks):  # the model's own work, which follows, has its own count
                stage.close()

        def nothing() -> None: ...

        def watch(task: Any, method: str, before: Callable[[], None], after: Callable[[], None] = nothing) -> None:
            original, own = getattr(task, method), vars(task)

            def watched(*arguments: Any, **settings: Any) -> Any:
                before()
                found = original(*arguments, **settings)
                after()
                return found

            restored.callback(own.update, {method: own[method]} if method in own else {})
            restored.callback(own.pop, method)
            own[method] = watched

        for name, task in tasks.items():
            watch(task, "build_all_requests", nothing, partial(has_built, name))
            watch(task, "construct_requests", partial(begins, writing))
            watch(task, "process_results", partial(begins, judging))
            watch(task, "aggregation", partial(begins_scoring, name))
        yield
