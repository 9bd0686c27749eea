"""Every text that a person can meet, found in the source by its syntax tree, as messages of a gettext catalogue.

A message is what `Problem(...)`, `raise ...Error(...)`, `say(...)`, `talk(...)`, `print(...)` and typer's help are
given. An f-string becomes a message with `{placeholders}`; a piece of it that is one of a few constants (`'s' if n > 1
else ''`, a local name) is written out, so that each message is a whole sentence. What a called function gives back as
text is a message by itself.
"""

from __future__ import annotations

import ast
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["Found", "messages_in", "placeholders", "shape"]

SINKS: dict[str, tuple[int | str, ...]] = {
    "Problem": (0, 1, 2, "place", "cause", "mend"),
    "talk": (0,),
    "say": (0,),
    "tell": (0,),
    "told": (0,),
    "print": (0,),
    "_print": (0,),
    "input": (0,),
    "Text": (0,),
    "warn": (0,),
    "warning": (0,),
    "_warn": (0,),
    "TextColumn": (0,),
    "add_column": (0,),
    "PydanticCustomError": (1,),
    "Verb": (1,),
    "Option": ("help",),
    "Argument": ("help",),
    "Typer": ("help", "epilog"),
    "add_typer": ("help", "epilog"),
    "command": ("help", "epilog", "short_help"),
    "callback": ("help", "epilog"),
    "Precision": (1,),
    "add_row": (0, 1, 2, 3, 4, 5, 6, 7),
    "translate": (0,),
    "bad": (0, 1),
    "BadRow": (0, 1),
    "_say_once": (1,),
    "_once": (1,),
    "_count": (3,),
    "Support": (0, 1, 2, 3),
    "StopCheck": (0, 1, 2, 3),
}
"""Called name -> which arguments a person meets."""

WORDS = {"cause", "mend", "reason", "why", "problem", "note", "stopped", "plain_reason", "words", "what"}
"""A keyword argument or an attribute of this name is told to a person when it is a phrase."""

TABLES = {"PLAIN_WORDS", "EVERYWHERE", "HELP", "WHY", "THEIRS"}
"""Module constants whose texts are all shown."""

TOLD_ERRORS = {"PosttrainError", "ConfigError", "DataError", "MissingError", "BadRow", "ValueError"}
"""Errors that are given nothing but texts for people; of what other calls are given, only phrases count."""

SILENT_ERRORS = {"AssertionError", "NotImplementedError", "KeyError", "IndexError", "StopIteration", "SystemExit"}
"""Raised for programmers: a person meets none of them."""

OTHERS = (
    # typer and rich
    "Usage:",
    "[OPTIONS]",
    "COMMAND [ARGS]...",
    "Arguments",
    "Options",
    "Commands",
    "Error",
    "Aborted.",
    "[default: {}]",
    "[env var: {}]",
    "[required]",
    "(dynamic)",
    "Try [blue]'{command_path} {help_option}'[/] for help.",
    "Show this message and exit.",
    "Install completion for the current shell.",
    "Show completion for the current shell, to copy it or customize the installation.",
    "No such option: {option}",
    "No such option: {option} (Possible options: {options})",
    "No such option: {option} Did you mean {other}?",
    "No such command {command}.",
    "No such command {command}. Did you mean {other}?",
    "Missing command.",
    "Missing argument '{name}'.",
    "Missing option '{name}'.",
    "Missing argument '{name}'. {more}",
    "Missing option '{name}'. {more}",
    "Got unexpected extra argument(s) ({arguments})",
    "Option '{option}' requires an argument.",
    "Option '{option}' requires {count} arguments.",
    "Option '{option}' does not take a value.",
    "Argument '{argument}' takes {count} values.",
    "Invalid value: {message}",
    "Invalid value for {place}: {message}",
    "'{value}' is not one of {choices}.",
    "{value} is not in the range {range}.",
    "'{value}' is not a valid integer.",
    "'{value}' is not a valid float.",
    "Value '{value}' is not a valid {kind}.",
    "'{value}' is not a valid {kind}.",
    "File '{path}' does not exist.",
    "Path '{path}' does not exist.",
    # pydantic, whose first letter posttrain writes small
    "field required",
    "input should be greater than {limit}",
    "input should be greater than {limit}, got {value}",
    "input should be greater than or equal to {limit}",
    "input should be greater than or equal to {limit}, got {value}",
    "input should be less than {limit}",
    "input should be less than {limit}, got {value}",
    "input should be less than or equal to {limit}",
    "input should be less than or equal to {limit}, got {value}",
    "input should be {choices}",
    "input should be {choices}, got {value}",
    "input should be a finite number",
    "input should be a finite number, got {value}",
    "input is not a valid path",
    "input is not a valid path, got {value}",
    "string should have at least {count} character",
    "string should have at least {count} character, got {value}",
    "string should have at least {count} characters",
    "string should have at least {count} characters, got {value}",
    "string should have at most {count} characters, got {value}",
    "string should match pattern '{pattern}'",
    "string should match pattern '{pattern}', got {value}",
    "list should have at least {count} item after validation, not {found}",
    "list should have at least {count} items after validation, not {found}",
    "list should have at most {count} items after validation, not {found}",
    "tuple should have at least {count} item after validation, not {found}",
    "tuple should have at least {count} items after validation, not {found}",
    # what the system refuses
    "No such file or directory",
    "Permission denied",
    "No space left on device",
    "Is a directory",
    "Not a directory",
    "File exists",
    "Read-only file system",
    "Disk quota exceeded",
    "Input/output error",
    # YAML
    "mapping values are not allowed here",
    "could not find expected ':'",
    "expected <block end>, but found {token}",
    "did not find expected ',' or ']'",
    "found character {character} that cannot start any token",
    "found unexpected end of stream",
    "found duplicate key {key} with value {value} (original value: {original})",
    "found undefined alias {alias}",
    "found unknown escape character {character}",
    # reasons counted and sources named in a line of their own
    "'kind' is missing; known: {known}",
    "{count} asked by the exam",
    "{count} repeated",
    "{count} without an answer",
    "the packaged prompts",
    "{counts} -> {folder}",
    "{cells} ({models} x {methods} x {changes} x {seeds})",
    "{n} cell",
    "{n} cells",
    "{n} model",
    "{n} models",
    "{n} method",
    "{n} methods",
    "{n} change",
    "{n} changes",
    "{n} seed",
    "{n} seeds",
    "FAILED: {error}",
    "({seconds} s)",
    "{n} s",
    "learned",
    "same pattern",
    "kept",
    "done",
    "worse",
    "better",
    "before",
    "after",
    "rows",
    "usable",
    "bad",
    "dropped",
    "truncated",
    "tokens",
    "supervised tokens",
    "questions made up by the model",
)
"""What other programs say through ours, and pieces of sentences that the code keeps in tables."""

MOST, FEW = 8, 4
"""An f-string with more alternatives than MOST, and a part of it with more than FEW, keep placeholders for them."""


class Found(NamedTuple):
    """A message and where it stands."""

    message: str
    file: str
    line: int


class Piece(NamedTuple):
    """Part of a text: literal, or the name of a placeholder."""

    text: str
    hole: bool = False


Variant = tuple[Piece, ...]
Inner = Callable[[ast.expr, "Module"], None]


class Module:
    """One file: its functions, constants, and the scopes that local names are looked up in."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.parents: dict[ast.AST, ast.AST] = {}
        for node in ast.walk(self.tree):
            for child in ast.iter_child_nodes(node):
                self.parents[child] = node
        self.called: set[str] = set()

    def scopes(self, node: ast.AST) -> Iterator[ast.AST]:
        """The functions around a node, the innermost first, then the module."""
        at: ast.AST | None = node
        while at is not None:
            if isinstance(at, ast.FunctionDef | ast.AsyncFunctionDef | ast.Module):
                yield at
            at = self.parents.get(at)

    def _handler(self, node: ast.AST) -> ast.AST | None:
        """The `except` block around a node."""
        at: ast.AST | None = node
        while at is not None and not isinstance(at, ast.ExceptHandler):
            at = self.parents.get(at)
        return at

    def _reaches(self, assignment: ast.AST, node: ast.AST) -> bool:
        """Whether a value given in an `except` block can be met here: only within that block."""
        handler = self._handler(assignment)
        return handler is None or handler is self._handler(node)

    def appended(self, name: str, node: ast.AST) -> list[ast.expr]:
        """What is put into a list of this name by `append` and `+=`."""
        found: list[ast.expr] = []
        for other in ast.walk(next(self.scopes(node))):
            if (
                isinstance(other, ast.Call)
                and isinstance(other.func, ast.Attribute)
                and other.func.attr in ("append", "insert")
                and _name(other.func.value) == name
            ):
                found.append(other.args[-1])
            elif isinstance(other, ast.AugAssign) and _name(other.target) == name:
                found.append(other.value)
        return found

    def assigned(self, name: str, node: ast.AST) -> list[ast.expr]:
        """What is assigned to a name where a node can see it; what is a parameter or unpacked is not known."""
        for scope in self.scopes(node):
            found: list[ast.expr] = []
            for other in ast.walk(scope):
                if not isinstance(other, ast.Assign | ast.AnnAssign | ast.NamedExpr | ast.For | ast.comprehension):
                    continue
                if not self._reaches(other, node):
                    continue
                if isinstance(other, ast.For | ast.comprehension):
                    found += _looped(other, name)
                elif (
                    isinstance(other, ast.Assign)
                    and any(isinstance(target, ast.Name) and target.id == name for target in other.targets)
                ) or (
                    isinstance(other, ast.AnnAssign | ast.NamedExpr)
                    and isinstance(other.target, ast.Name)
                    and other.target.id == name
                    and other.value is not None
                ):
                    found.append(other.value)
            here = self._handler(node)
            own = [value for value in found if here is not None and self._handler(value) is here]
            if found:
                return own or found
            if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef) and name in {
                a.arg for a in [*scope.args.args, *scope.args.kwonlyargs]
            }:
                return []
        return []


def _looped(loop: ast.For | ast.comprehension, name: str) -> list[ast.expr]:
    """What a loop's name goes through, where the loop is over texts or tuples written out."""
    target, source = loop.target, loop.iter
    if isinstance(target, ast.Name):
        return [source] if target.id == name else []
    if not isinstance(target, ast.Tuple) or not isinstance(source, ast.Tuple | ast.List):
        return []
    at = next((i for i, part in enumerate(target.elts) if isinstance(part, ast.Name) and part.id == name), None)
    rows = [row for row in source.elts if isinstance(row, ast.Tuple) and len(row.elts) == len(target.elts)]
    return [row.elts[at] for row in rows] if at is not None else []


def placeholders(message: str) -> list[str]:
    """The names in braces of a message, in their order."""
    return re.findall(r"(?<!\{)\{(\w+)\}(?!\})", message.replace("{{", "\0").replace("}}", "\0"))


def shape(message: str) -> str:
    """The literal text of a message: what must hold a word for it to be one."""
    return re.sub(r"\{\w+\}|--[\w-]+|\b(posttrain|pocket|GiB|MiB)\b", " ", message)


def messages_in(root: Path, files: Iterable[Path]) -> list[Found]:
    """Every message of some files below `root`, once each, in the order of the files."""
    modules = [Module(path, str(path.relative_to(root))) for path in sorted(files)]
    functions: dict[str, list[tuple[Module, ast.FunctionDef]]] = {}
    everything: dict[str, list[tuple[Module, ast.FunctionDef]]] = {}
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef):
                everything.setdefault(node.name, []).append((module, node))
                if _gives_text(node):
                    functions.setdefault(node.name, []).append((module, node))
    verbs = _verbs(modules)
    found: dict[str, Found] = {}
    seen: set[int] = set()
    looked_into: set[int] = set()

    def add(message: str, module: Module, node: ast.AST, *, phrase: bool = False) -> None:
        text = message.strip()
        words = re.findall(r"[A-Za-z][a-z]+", shape(text))
        if not words or text in found or re.fullmatch(r"\{\{.*\}\}", text):
            return
        if " " not in text and (phrase or not re.fullmatch(r"\(?[A-Za-z]+[.:)]?", text)):
            return
        found[text] = Found(
            text, module.name, getattr(node, "lineno", 1) if isinstance(node, ast.expr | ast.stmt) else 1
        )

    def follow(name: str, only: ast.FunctionDef | None = None) -> None:
        """The texts that functions of a name give back, each once."""
        for module, function in everything.get(name, ()) if only else functions.get(name, ()):
            if id(function) in seen or only not in (None, function):
                continue
            seen.add(id(function))
            for node in ast.walk(function):
                if isinstance(node, ast.Return | ast.Yield) and node.value is not None:
                    take(node.value, module, phrase=True)

    def take(node: ast.expr, module: Module, *, phrase: bool = False) -> None:
        """Add every text that an expression can be, and those inside it."""
        for variant in variants(node, module, inner):
            holes: dict[str, int] = {}
            text = ""
            for piece in variant:
                if not piece.hole:
                    text += piece.text.replace("{", "{{").replace("}", "}}")
                    continue
                count = holes[piece.text] = holes.get(piece.text, 0) + 1
                text += f"{{{piece.text if count == 1 else f'{piece.text}_{count}'}}}"
            add(text, module, node, phrase=phrase)

    def inner(node: ast.expr, module: Module) -> None:
        """A text inside another: what a call gives back, the items of a list that is joined, alternatives."""
        if id(node) in looked_into:
            return
        looked_into.add(id(node))
        if isinstance(node, ast.Call):
            name = _name(node.func)
            if (
                name in ("plain", "str", "one_line")
                and node.args
                and isinstance(node.args[0], ast.Name | ast.JoinedStr)
            ):
                take(node.args[0], module, phrase=True)
            if name == "get" and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
                take(node.func.value, module, phrase=True)
            if name == "str" and node.args:
                follow("__str__")
            elif name == "join" and node.args:
                argument = node.args[0]
                while isinstance(argument, ast.Subscript):
                    argument = argument.value
                if isinstance(argument, ast.GeneratorExp | ast.ListComp):
                    take(argument.elt, module, phrase=True)
                elif isinstance(argument, ast.List | ast.Tuple):
                    for item in argument.elts:
                        while isinstance(item, ast.Starred | ast.Subscript):
                            item = item.value
                        take(item, module, phrase=True)
                        for other in module.appended(item.id, item) if isinstance(item, ast.Name) else ():
                            take(other, module, phrase=True)
                elif isinstance(argument, ast.Name):
                    take(argument, module, phrase=True)
                    for item in module.appended(argument.id, argument):
                        take(item, module, phrase=True)
            else:
                follow(name)
                for argument in node.args:
                    if isinstance(argument, ast.Call | ast.JoinedStr | ast.IfExp):
                        take(argument, module, phrase=True)
        elif isinstance(node, ast.Attribute):
            if node.attr in WORDS:
                follow(node.attr)
        else:
            take(node, module, phrase=True)

    for module in modules:
        for node in ast.walk(module.tree):
            for text, phrase in _shown(node):
                take(text, module, phrase=phrase)
            if isinstance(node, ast.FunctionDef):
                if node.name == "__str__":
                    follow("__str__")
                if re.search(r"tuple\[str, str\]", ast.unparse(node.returns) if node.returns else "") or (
                    re.search(r"note|few|finish|problem|unscored", node.name) and _gives_text(node)
                ):
                    follow(node.name, only=node)
                if _is_command(node, module, verbs):
                    doc = ast.get_docstring(node)
                    if doc:
                        for paragraph in doc.split("\n\n"):
                            add(" ".join(paragraph.replace("{", "{{").replace("}", "}}").split()), module, node)
    for text in OTHERS:
        found.setdefault(text, Found(text, "others", 1))
    return list(found.values())


def variants(node: ast.expr, module: Module, inner: Inner, depth: int = 0) -> list[Variant]:
    """Every text an expression can be, as pieces; what is not known is a placeholder."""
    if isinstance(node, ast.Constant):
        return [(Piece(node.value),)] if isinstance(node.value, str) else []
    if isinstance(node, ast.JoinedStr):
        nodes = [value.value if isinstance(value, ast.FormattedValue) else value for value in node.values]
        return _product([_part(one, module, inner, depth) for one in nodes], nodes, module, inner)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and _is_text(node):
        nodes = [node.left, node.right]
        return _product([_part(one, module, inner, depth) for one in nodes], nodes, module, inner)
    if isinstance(node, ast.IfExp):
        return [*variants(node.body, module, inner, depth), *variants(node.orelse, module, inner, depth)]
    if isinstance(node, ast.BoolOp):
        return [one for value in node.values for one in variants(value, module, inner, depth)]
    if isinstance(node, ast.Name) and depth < 4:
        return [one for value in module.assigned(node.id, node) for one in variants(value, module, inner, depth + 1)]
    if isinstance(node, ast.List | ast.Tuple):
        return [one for value in node.elts for one in variants(value, module, inner, depth)]
    if isinstance(node, ast.Dict):
        return [one for value in node.values for one in variants(value, module, inner, depth)]
    if isinstance(node, ast.ListComp | ast.GeneratorExp):
        return variants(node.elt, module, inner, depth)
    if isinstance(node, ast.Starred | ast.NamedExpr):
        return variants(node.value, module, inner, depth)
    if isinstance(node, ast.Subscript):
        return variants(node.value, module, inner, depth)
    if isinstance(node, ast.Call):
        inner(node, module)
    return []


def _is_text(node: ast.expr) -> bool:
    """Whether an expression is text by its form."""
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Add) and (_is_text(node.left) or _is_text(node.right))
    if isinstance(node, ast.IfExp):
        return _is_text(node.body) or _is_text(node.orelse)
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _part(node: ast.expr, module: Module, inner: Inner, depth: int) -> list[Variant]:
    """A piece inside a text: what it can be where all of that is known and little, else a placeholder."""
    if isinstance(node, ast.Constant):
        return [(Piece(str(node.value)),)]
    if isinstance(node, ast.BinOp | ast.JoinedStr) and _is_text(node):
        return variants(node, module, inner, depth + 1)
    if isinstance(node, ast.IfExp):
        options = [*_part(node.body, module, inner, depth), *_part(node.orelse, module, inner, depth)]
        if len(options) <= FEW:
            return options
    elif isinstance(node, ast.Name) and depth < 4:
        values = module.assigned(node.id, node)
        options = [one for value in values for one in _part(value, module, inner, depth + 1)]
        if values and len(options) <= FEW and all(_is_text(value) for value in values):
            return options
    if isinstance(node, ast.Name | ast.IfExp | ast.BoolOp | ast.Subscript | ast.Call | ast.Attribute):
        inner(node, module)
    return [(Piece(_hole_name(node), hole=True),)]


def _product(parts: list[list[Variant]], nodes: list[ast.expr], module: Module, inner: Inner) -> list[Variant]:
    """All combinations of the parts' alternatives; where they are many, the part with most becomes a placeholder."""
    known = [part or [(Piece("text", hole=True),)] for part in parts]
    while math.prod(map(len, known)) > MOST:
        i = max(range(len(known)), key=lambda j: len(known[j]))
        inner(nodes[i], module)
        known[i] = [(Piece(_hole_name(nodes[i]), hole=True),)]
    return [tuple(itertools.chain.from_iterable(combination)) for combination in itertools.product(*known)]


def _hole_name(node: ast.expr) -> str:
    """A word for a placeholder: the last name of its expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Call):
        name = _name(node.func)
        if name in ("len", "sum", "str", "sorted", "repr", "max", "min", "round", "map", "join", "plain", "one_line"):
            inside = [n for a in node.args for n in ast.walk(a) if isinstance(n, ast.Name | ast.Attribute)]
            return _hole_name(inside[0]) if inside else "value"
        return name or "value"
    if isinstance(node, ast.Subscript):
        if (
            isinstance(node.slice, ast.Constant)
            and isinstance(node.slice.value, str)
            and node.slice.value.isidentifier()
        ):
            return node.slice.value
        return _hole_name(node.value)
    inside = [n for n in ast.walk(node) if isinstance(n, ast.Name | ast.Attribute)]
    return _hole_name(inside[0]) if inside else "value"


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _gives_text(node: ast.FunctionDef) -> bool:
    """Whether a function's annotation says that it gives back text, or several."""
    returned = ast.unparse(node.returns) if node.returns else ""
    return bool(
        re.fullmatch(r"'?(str( \| None)?|(list|Iterator|Iterable|tuple|Sequence)\[str(, \.\.\.)?\])'?", returned)
    )


def _is_command(node: ast.FunctionDef, module: Module, verbs: set[str]) -> bool:
    """A verb's function, one decorated as a command, or the callback of the whole."""
    decorated = any(isinstance(d, ast.Call) and _name(d.func) in ("command", "callback") for d in node.decorator_list)
    return decorated or f"{module.name}:{node.name}" in {"cli/main.py:_root", *verbs}


def _verbs(modules: Iterable[Module]) -> set[str]:
    """`cli/run.py:run` for each `Verb("run:run", ...)`."""
    found = set()
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and _name(node.func) == "Verb" and isinstance(node.args[0], ast.Constant):
                file, _, name = str(node.args[0].value).partition(":")
                found.add(f"cli/{file}.py:{name}")
    return found


def _shown(node: ast.AST) -> Iterator[tuple[ast.expr, bool]]:
    """The expressions of a node that a person meets, and whether only phrases of them count."""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        name = _name(node.exc.func)
        if name not in SILENT_ERRORS:
            yield from ((argument, name not in TOLD_ERRORS) for argument in node.exc.args)
    elif isinstance(node, ast.Call):
        name = _name(node.func)
        wanted = SINKS.get(name, ())
        for i, argument in enumerate(node.args):
            if i in wanted and not (name == "PydanticCustomError" and "{" in ast.unparse(argument)):
                yield argument, name in ("print", "Text", "add_row") or (name == "Problem" and i == 0)
        for keyword in node.keywords:
            if keyword.arg in wanted:
                yield keyword.value, name == "Problem" and keyword.arg == "place"
            elif keyword.arg in WORDS:
                yield keyword.value, True
        if name == "append" and isinstance(node.func, ast.Attribute) and _name(node.func.value).endswith("notes"):
            yield from ((argument, True) for argument in node.args)
    elif isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) and node.value is not None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            name = _name(target)
            if name in TABLES:
                yield node.value, False
            elif name.endswith("notes") or (isinstance(target, ast.Attribute) and name in WORDS):
                yield node.value, True
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and key.value in WORDS:
                yield value, True
    elif isinstance(node, ast.Yield) and isinstance(node.value, ast.JoinedStr):
        yield node.value, True
