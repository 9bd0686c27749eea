"""The house of DESIGN.md, kept by a test: imports point downwards, files stay readable, names lead to files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from posttrain import registry
from posttrain.config.base import Config

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "posttrain"

BANDS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli", "web", "library"),
    ("studies", "reports"),
    ("training", "editing", "merging", "adaptation", "exams", "human"),
    ("objectives", "tuners", "retention"),
    # in the lowest band each room may import those after it
    ("inference",),
    ("data",),
    ("models",),
    ("config",),
    ("registry",),
    ("language",),
    ("catalogue",),
    ("errors",),
)
LEVEL = {room: level for level, band in enumerate(BANDS) for room in band}
MAX_LINES = 500

CIRCLES: dict[tuple[str, str], str] = {}
"""Imports that close a circle within a room, and what will cut each of them. No other may come in."""


def room_of(path: Path) -> str:
    part = path.relative_to(SOURCE).parts[0]
    return part.removesuffix(".py")


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def walked(tree: ast.AST) -> tuple[ast.AST, ...]:
    """All nodes of a tree."""
    return tuple(ast.walk(tree))


def imported(tree: ast.AST) -> Iterator[str]:
    """The posttrain modules that a file imports anywhere, inside functions and TYPE_CHECKING too."""
    for node in walked(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "posttrain")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "posttrain":
            if node.module == "posttrain":
                yield from (f"posttrain.{alias.name}" for alias in node.names)
            else:
                yield node.module


def wrong_import(room: str, module: str) -> str | None:
    """Why a room may not import a module; None when it may."""
    parts = module.split(".")
    if parts[1:] in ([], ["__version__"]) or parts[1] == room:
        return None
    if parts[1] not in LEVEL:
        return f"'{parts[1]}' is in no band of the house"
    if LEVEL[parts[1]] > LEVEL[room]:
        return None
    return "sideways" if LEVEL[parts[1]] == LEVEL[room] else "upwards"


@pytest.mark.parametrize(
    ("room", "module", "expected"),
    [
        ("exams", "posttrain.config.change", None),
        ("exams", "posttrain.training.run", "sideways"),
        ("config", "posttrain.data.chat", "upwards"),
        ("data", "posttrain.models.load", None),
        ("exams", "posttrain.exams.scores", None),
        ("errors", "posttrain.__version__", None),
        ("cli", "posttrain.utils.misc", "'utils' is in no band of the house"),
    ],
)
def test_the_rule_itself(room: str, module: str, expected: str | None) -> None:
    assert wrong_import(room, module) == expected


def test_imports_point_downwards() -> None:
    files = [path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py"]
    assert len(files) > 30
    wrong = []
    for path in files:
        tree = parsed(path)
        assert not any(isinstance(n, ast.ImportFrom) and n.level for n in walked(tree)), f"{path}: relative import"
        for module in imported(tree):
            reason = wrong_import(room_of(path), module)
            if reason:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}: {reason}")
    assert not wrong, "\n".join(wrong)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def graph_of(trees: dict[str, ast.AST]) -> dict[str, set[str]]:
    """Module -> the modules that it imports, anywhere in its file, both without `posttrain.`; the packages that Python
    imports on the way are not counted.
    """

    def named(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        names = [alias.name for alias in node.names]
        if isinstance(node, ast.Import):
            yield from names
        else:
            yield from (str(node.module), *(f"{node.module}.{name}" for name in names))

    nodes = {
        name: [n for n in walked(tree) if isinstance(n, ast.Import | ast.ImportFrom)] for name, tree in trees.items()
    }
    found = {name: {one.removeprefix("posttrain.") for n in every for one in named(n)} for name, every in nodes.items()}
    return {name: (imports & trees.keys()) - {name} for name, imports in found.items()}


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one circle of imports, each imported by the one after it; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [str(module) for module in error.args[1]]
    return []


@pytest.mark.parametrize(
    "text",
    [
        "import posttrain.room.b",
        "from posttrain.room import b",
        "from posttrain.room.b import thing",
        "def late():\n    from posttrain.room.b import thing",
        "if TYPE_CHECKING:\n    from posttrain.room.b import Thing",
    ],
)
def test_a_circle_is_seen_wherever_the_import_stands(text: str) -> None:
    trees: dict[str, ast.AST] = {
        "room": ast.parse(""),
        "room.a": ast.parse(text),
        "room.b": ast.parse("from posttrain.room.a import other"),
    }
    assert set(circle_in(graph_of(trees))) == {"room.a", "room.b"}
    assert not circle_in(graph_of({**trees, "room.b": ast.parse("from posttrain.other.a import thing")}))


def test_no_circles_of_imports() -> None:
    graph = graph_of({module_name(path): parsed(path) for path in SOURCE.rglob("*.py")})
    cut = {name: {one for one in imports if (name, one) not in CIRCLES} for name, imports in graph.items()}
    assert not circle_in(cut), " <- ".join(circle_in(cut))
    for name, one in CIRCLES:  # an exception that is no longer needed has to go
        assert circle_in({**cut, name: {*cut[name], one} & graph[name]}), f"{name} may import {one}"


def test_files_stay_readable() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for folder in ("src", "tests", "benchmarks", "tools")
        for path in (ROOT / folder).rglob("*.py")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert not long, f"longer than {MAX_LINES} lines: {long}"


def all_kinds() -> list[tuple[str, str]]:
    return [(seam, kind) for seam in registry.SEAMS for kind in registry.kinds(seam)]


@pytest.mark.parametrize(("seam", "kind"), all_kinds())
def test_a_kind_is_a_file_and_its_config_says_so(seam: str, kind: str) -> None:
    entry = registry.load(seam, kind)
    assert entry.function.__module__ in [f"{package}.{kind}" for package in registry.SEAMS[seam]]
    assert issubclass(entry.config, Config)
    assert entry.config.model_fields["kind"].default == kind
    undocumented = [name for name, field in entry.config.model_fields.items() if not field.description]
    assert not undocumented, f"fields without a docstring: {undocumented}"


@pytest.mark.parametrize(("seam", "kind"), all_kinds())
def test_every_kind_is_documented(seam: str, kind: str) -> None:
    pages = {
        "exam": ("exams.md", "exams-tasks.md"),
        "respondent": ("respondents.md",),
        "editor": ("editing.md",),
        "merger": ("merging.md",),
    }.get(seam, ("methods.md",))
    texts = [(ROOT / "docs" / page).read_text(encoding="utf-8") for page in pages]
    assert any(f"`{kind}`" in text for text in texts), f"no line about {seam} `{kind}` in {pages}"


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in SOURCE.rglob("*.py")
        if path.read_text(encoding="utf-8").strip() and not ast.get_docstring(parsed(path))
    ]
    assert not silent


def test_all_names_what_is_there() -> None:
    wrong = []
    for path in SOURCE.rglob("*.py"):
        tree = parsed(path)
        listed: list[str] = []
        defined: set[str] = set()
        lazily = [one for node in tree.body if isinstance(node, ast.If) for one in node.body]  # TYPE_CHECKING
        for node in [*tree.body, *(lazily if path == SOURCE / "__init__.py" else [])]:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                defined.add(node.targets[0].id)
                if node.targets[0].id == "__all__":
                    listed = list(ast.literal_eval(node.value))
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                defined.add(node.target.id)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.ImportFrom | ast.Import):
                defined |= {alias.asname or alias.name for alias in node.names}
        wrong += [f"{path.relative_to(ROOT)}: {name}" for name in listed if name not in defined]
    assert not wrong
