"""Find every text for people in the source, by its syntax tree, as messages of a gettext catalogue.

Messages are the arguments of `Problem(...)`, `raise ...Error(...)`, `say(...)`, `talk(...)`, `print(...)` and typer's
help. An f-string becomes a message with `{placeholders}`. A piece of it that has only a few constant values, such as
`'s' if n > 1 else ''` or a local name, is replaced by each of them, so that each message is a whole sentence. The text
that a called function returns is a message by itself.
"""

from __future__ import annotations

import ast
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tools.message_places import OTHERS, SILENT_ERRORS, SINKS, TABLES, TOLD_ERRORS, WORDS
from tools.message_scopes import Module, name_of, walked

__all__ = ["Found", "escaped", "messages_in", "placeholders", "shape"]

MOST, FEW = 8, 4
"""An f-string with more than MOST alternatives, and a part of it with more than FEW, keep placeholders instead."""


class Found(NamedTuple):
    """A message with the file and line of its source."""

    message: str
    file: str
    line: int


class Piece(NamedTuple):
    """A part of a text. hole: `text` is the name of a placeholder, not a literal."""

    text: str
    hole: bool = False


Variant = tuple[Piece, ...]
Inner = Callable[[ast.expr, Module], None]


def placeholders(message: str) -> list[str]:
    """Return the names of a message's placeholders, in their order."""
    return re.findall(r"(?<!\{)\{(\w+)\}(?!\})", message.replace("{{", "\0").replace("}}", "\0"))


def shape(message: str) -> str:
    """Return the literal text of a message. A text is a message only if this has a word."""
    return re.sub(r"\{\w+\}|--[\w-]+|\b(posttrain|pocket|GiB|MiB)\b", " ", message)


def messages_in(root: Path, files: Iterable[Path]) -> list[Found]:
    """Return every message of some files below `root`, once each, in the order of the files, then OTHERS."""
    finder = _Finder([Module(path, str(path.relative_to(root))) for path in sorted(files)])
    finder.find()
    return [*finder.found.values(), *(Found(text, "others", 1) for text in OTHERS if text not in finder.found)]


class _Finder:
    """Goes through the modules, and from each text to the texts inside it. found: message -> where it was found."""

    def __init__(self, modules: list[Module]) -> None:
        self.modules = modules
        self.found: dict[str, Found] = {}
        self.functions: dict[str, list[tuple[Module, ast.FunctionDef]]] = {}
        self.followed: set[ast.AST] = set()
        self.looked_into: set[ast.AST] = set()
        for module in modules:
            for node in walked(module.tree):
                if isinstance(node, ast.FunctionDef):
                    self.functions.setdefault(node.name, []).append((module, node))
        _import(modules)
        self.told = _told_fields(modules)

    def find(self) -> None:
        """Find all messages and add them to `found`."""
        verbs = _verbs(self.modules)
        for module in self.modules:
            for node in walked(module.tree):
                for text, phrase in [*_shown(node), *self._fields(node)]:
                    self.take(text, module, phrase=phrase)
                if isinstance(node, ast.FunctionDef):
                    if _tells(node):
                        self.returned(module, node)
                    if _is_command(node, module, verbs):
                        for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                            self.add(" ".join(escaped(paragraph).split()), module, node)

    def _fields(self, node: ast.AST) -> Iterator[tuple[ast.expr, bool]]:
        """Yield the positional arguments of a record for fields that are shown to people."""
        if isinstance(node, ast.Call):
            for i in self.told.get(name_of(node.func), ()):
                yield from ((argument, True) for argument in node.args[i : i + 1])

    def add(self, message: str, module: Module, node: ast.expr | ast.stmt, *, phrase: bool = False) -> None:
        """Add a text that has words to `found`. phrase: only a text of several words is added."""
        text = message.strip()
        words = re.findall(r"[A-Za-z][a-z]+", shape(text))
        if not words or text in self.found or re.fullmatch(r"\{\{.*\}\}", text):
            return
        if " " in text or (not phrase and re.fullmatch(r"\(?[A-Za-z]+[.:)]?", text)):
            self.found[text] = Found(text, module.name, node.lineno)

    def returned(self, module: Module, function: ast.FunctionDef) -> None:
        """Add the texts that a function returns or yields, once per function."""
        if function in self.followed:
            return
        self.followed.add(function)
        for node in walked(function):
            if isinstance(node, ast.Return | ast.Yield) and node.value is not None:
                self.take(node.value, module, phrase=True)

    def follow(self, name: str) -> None:
        """Add the texts that every function of this name returns, if its annotation says that it returns text."""
        for module, function in self.functions.get(name, ()):
            if _gives_text(function):
                self.returned(module, function)

    def take(self, node: ast.expr, module: Module, *, phrase: bool = False) -> None:
        """Add every text that an expression can be, and the texts inside it."""
        for variant in variants(node, module, self.inner):
            holes: dict[str, int] = {}
            text = ""
            for piece in variant:
                if piece.hole:
                    count = holes[piece.text] = holes.get(piece.text, 0) + 1
                    text += f"{{{piece.text if count == 1 else f'{piece.text}_{count}'}}}"
                else:
                    text += escaped(piece.text)
            self.add(text, module, node, phrase=phrase)

    def inner(self, node: ast.expr, module: Module) -> None:
        """Add the texts inside another text: results of calls, items of a joined list, alternatives."""
        if node in self.looked_into:
            return
        self.looked_into.add(node)
        if isinstance(node, ast.Call):
            self._called(node, module)
        elif isinstance(node, ast.Attribute):
            if node.attr in WORDS:
                self.follow(node.attr)
        else:
            self.take(node, module, phrase=True)

    def _called(self, node: ast.Call, module: Module) -> None:
        name = name_of(node.func)
        first = node.args[0] if node.args else None
        if name == "join" and first is not None:
            for item in _items(first, module):
                self.take(item, module, phrase=True)
            return
        if name in ("plain", "str", "one_line") and isinstance(first, ast.Name | ast.JoinedStr):
            self.take(first, module, phrase=True)
        if name == "get" and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            for table in (node.func.value, *node.args[1:]):
                self.take(table, module, phrase=True)
        self.follow("__str__" if name == "str" else name)
        for argument in node.args:
            if isinstance(argument, ast.Call | ast.JoinedStr | ast.IfExp):
                self.take(argument, module, phrase=True)


def escaped(text: str) -> str:
    """Return a text as a message without placeholders: its braces are doubled."""
    return text.replace("{", "{{").replace("}", "}}")


def _items(node: ast.expr, module: Module) -> Iterator[ast.expr]:
    """Yield the items of a joined list: the items written in it, and the items appended to a name in it."""
    while isinstance(node, ast.Subscript | ast.Starred):
        node = node.value
    if isinstance(node, ast.GeneratorExp | ast.ListComp):
        yield node.elt
    elif isinstance(node, ast.List | ast.Tuple):
        for element in node.elts:
            yield from _items(element, module)
    else:
        yield node
        if isinstance(node, ast.Name):
            yield from module.appended(node.id, node)


def variants(node: ast.expr, module: Module, inner: Inner, depth: int = 0) -> list[Variant]:
    """Return every text that an expression can be, as pieces. An unknown piece is a placeholder."""
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
        if name_of(node.func) == "fromkeys" and len(node.args) == 2:  # a text for several keys of a table
            return variants(node.args[1], module, inner, depth)
        inner(node, module)
    return []


def _is_text(node: ast.expr) -> bool:
    """Return whether an expression is text by its form."""
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Add) and (_is_text(node.left) or _is_text(node.right))
    if isinstance(node, ast.IfExp):
        return _is_text(node.body) or _is_text(node.orelse)
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _part(node: ast.expr, module: Module, inner: Inner, depth: int) -> list[Variant]:
    """Return the alternatives of a piece inside a text if all are known and they are few, else a placeholder."""
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
    """Return all combinations of the parts' alternatives.

    While there are more than MOST, the part with the most alternatives becomes a placeholder.
    """
    known = [part or [(Piece("text", hole=True),)] for part in parts]
    while math.prod(map(len, known)) > MOST:
        i = max(range(len(known)), key=lambda j: len(known[j]))
        inner(nodes[i], module)
        known[i] = [(Piece(_hole_name(nodes[i]), hole=True),)]
    return [tuple(itertools.chain.from_iterable(combination)) for combination in itertools.product(*known)]


def _hole_name(node: ast.expr) -> str:
    """Return a word for a placeholder: the last name of its expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Call):
        name = name_of(node.func)
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


def _gives_text(node: ast.FunctionDef) -> bool:
    """Return whether a function's annotation says that it returns a text or several texts."""
    returned = ast.unparse(node.returns) if node.returns else ""
    return bool(
        re.fullmatch(r"'?(str( \| None)?|(list|Iterator|Iterable|tuple|Sequence)\[str(, \.\.\.)?\])'?", returned)
    )


def _tells(node: ast.FunctionDef) -> bool:
    """Return whether the purpose of a function is a text for people: `__str__`, (cause, mend) pairs, notes."""
    returned = ast.unparse(node.returns) if node.returns else ""
    told = re.search(r"note|few|finish|problem|unscored", node.name) and _gives_text(node)
    return node.name == "__str__" or "tuple[str, str]" in returned or returned == "Check | str" or bool(told)


def _is_command(node: ast.FunctionDef, module: Module, verbs: set[str]) -> bool:
    """Return whether a function is a verb's, is decorated as a command, or is the callback of the whole program."""
    decorated = any(isinstance(d, ast.Call) and name_of(d.func) in ("command", "callback") for d in node.decorator_list)
    return decorated or f"{module.name}:{node.name}" in {"cli/main.py:_root", *verbs}


def _import(modules: Sequence[Module]) -> None:
    """Give each module the text constants that it imports from other modules."""
    texts = {
        f"posttrain.{module.name.removesuffix('.py').replace('/', '.').removesuffix('.__init__')}": {
            name_of(node.targets[0]): node.value
            for node in module.tree.body
            if isinstance(node, ast.Assign) and (_is_text(node.value) or isinstance(node.value, ast.Dict))
        }
        for module in modules
    }
    for module in modules:
        for node in walked(module.tree):
            if isinstance(node, ast.ImportFrom):
                there = texts.get(node.module or "", {})
                module.constants |= {one.asname or one.name: there[one.name] for one in node.names if one.name in there}


def _told_fields(modules: Iterable[Module]) -> dict[str, list[int]]:
    """Return record -> indices of its fields that are shown to people, by their names, as in `Guess(cause, mend)`."""
    found: dict[str, list[int]] = {}
    for module in modules:
        for node in walked(module.tree):
            if isinstance(node, ast.ClassDef):
                fields = [name_of(each.target) for each in node.body if isinstance(each, ast.AnnAssign)]
                found.setdefault(node.name, []).extend(i for i, name in enumerate(fields) if name in WORDS)
    return found


def _verbs(modules: Iterable[Module]) -> set[str]:
    """Return the functions of the verbs: `cli/run.py:run` for each `Verb("run:run", ...)`."""
    found = set()
    for module in modules:
        for node in walked(module.tree):
            if isinstance(node, ast.Call) and name_of(node.func) == "Verb" and isinstance(node.args[0], ast.Constant):
                file, _, name = str(node.args[0].value).partition(":")
                found.add(f"cli/{file}.py:{name}")
    return found


def _shown(node: ast.AST) -> Iterator[tuple[ast.expr, bool]]:
    """Yield the expressions of a node that are shown to people, and whether only phrases of them count."""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        name = name_of(node.exc.func)
        if name not in SILENT_ERRORS:
            yield from ((argument, name not in TOLD_ERRORS) for argument in node.exc.args)
    elif isinstance(node, ast.Call):
        name = name_of(node.func)
        wanted = SINKS.get(name, ())
        for i, argument in enumerate(node.args):
            if i in wanted and not (name == "PydanticCustomError" and "{" in ast.unparse(argument)):
                yield argument, name in ("print", "Text", "add_row") or (name == "Problem" and i == 0)
        for keyword in node.keywords:
            if keyword.arg in wanted:
                yield keyword.value, name == "Problem" and keyword.arg == "location"
            elif keyword.arg in WORDS:
                yield keyword.value, True
        if name == "append" and isinstance(node.func, ast.Attribute) and name_of(node.func.value).endswith("notes"):
            yield from ((argument, True) for argument in node.args)
    elif isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) and node.value is not None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            name = name_of(target)
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
