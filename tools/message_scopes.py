"""Read a source file as a syntax tree, and find the values of its names: assignments, loops over tables, `append`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

__all__ = ["Module", "name_of", "walked"]


@cache
def walked(node: ast.AST) -> tuple[ast.AST, ...]:
    """Return a node and all nodes below it: `ast.walk`, once per node, since each file is searched for many things."""
    return tuple(ast.walk(node))


def name_of(node: ast.expr) -> str:
    """Return the last name of a dotted expression, or "" for anything else."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


class Module:
    """One source file, with its syntax tree and the scopes in which names are looked up."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self.constants: dict[str, ast.expr] = {}  # constants of other modules, by their names in this one
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.parents: dict[ast.AST, ast.AST] = {}
        for node in walked(self.tree):
            for child in ast.iter_child_nodes(node):
                self.parents[child] = node
        self._bound: dict[ast.AST, list[ast.AST]] = {}

    def scopes(self, node: ast.AST) -> Iterator[ast.AST]:
        """Yield the functions around a node, the innermost first, then the module."""
        at: ast.AST | None = node
        while at is not None:
            if isinstance(at, ast.FunctionDef | ast.AsyncFunctionDef | ast.Module):
                yield at
            at = self.parents.get(at)

    def _bindings(self, scope: ast.AST) -> list[ast.AST]:
        """Return the nodes within a scope that give a value to a name."""
        if scope not in self._bound:
            kinds = (ast.Assign, ast.AnnAssign, ast.NamedExpr, ast.For, ast.comprehension)
            self._bound[scope] = [node for node in walked(scope) if isinstance(node, kinds)]
        return self._bound[scope]

    def _handler(self, node: ast.AST) -> ast.AST | None:
        """Return the `except` block around a node, or None."""
        at: ast.AST | None = node
        while at is not None and not isinstance(at, ast.ExceptHandler):
            at = self.parents.get(at)
        return at

    def _reaches(self, assignment: ast.AST, node: ast.AST) -> bool:
        """Return whether an assignment can reach a node. An assignment in an `except` block reaches only that block."""
        handler = self._handler(assignment)
        return handler is None or handler is self._handler(node)

    def appended(self, name: str, node: ast.AST) -> list[ast.expr]:
        """Return the values that `append`, `insert` and `+=` put into a list of this name."""
        found: list[ast.expr] = []
        for other in walked(next(self.scopes(node))):
            if (
                isinstance(other, ast.Call)
                and isinstance(other.func, ast.Attribute)
                and other.func.attr in ("append", "insert")
                and name_of(other.func.value) == name
            ):
                found.append(other.args[-1])
            elif isinstance(other, ast.AugAssign) and name_of(other.target) == name:
                found.append(other.value)
        return found

    def _extended(self, name: str, scope: ast.AST, values: list[ast.expr]) -> list[ast.expr]:
        """Return the values, and each value with the text that `+=` adds to it.

        If the `+=` is always executed, the values without the added text are left out.
        """
        for node in walked(scope):
            if isinstance(node, ast.AugAssign) and name_of(node.target) == name and isinstance(node.op, ast.Add):
                if not isinstance(node.value, ast.Constant | ast.JoinedStr | ast.IfExp | ast.BinOp):
                    continue
                more: list[ast.expr] = [ast.copy_location(ast.BinOp(v, ast.Add(), node.value), node) for v in values]
                always = self.parents.get(node) is scope
                values = more if always else [*values, *more]
        return values

    def assigned(self, name: str, node: ast.AST) -> list[ast.expr]:
        """Return the values assigned to a name that a node can see. Values of parameters are not known."""
        for scope in self.scopes(node):
            found: list[ast.expr] = []
            for other in self._bindings(scope):
                if not self._reaches(other, node):
                    continue
                if isinstance(other, ast.For | ast.comprehension):
                    found += self._looped(other, name)
                elif isinstance(other, ast.Assign):
                    found += [other.value] * any(name_of(target) == name for target in other.targets)
                elif isinstance(other, ast.AnnAssign | ast.NamedExpr) and other.value is not None:
                    found += [other.value] * (name_of(other.target) == name)
            here = self._handler(node)
            own = [value for value in found if here is not None and self._handler(value) is here]
            if found:
                return self._extended(name, scope, own or found)
            if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef) and name in {
                a.arg for a in [*scope.args.args, *scope.args.kwonlyargs]
            }:
                return []
        return [self.constants[name]] if name in self.constants else []

    def _looped(self, loop: ast.For | ast.comprehension, name: str) -> list[ast.expr]:
        """Return the values of a name in a loop over texts or tuples that are written there or assigned to a name."""
        target, source = loop.target, loop.iter
        if isinstance(target, ast.Name):
            return [source] if target.id == name else []
        if not isinstance(target, ast.Tuple):
            return []
        at = next((i for i, part in enumerate(target.elts) if isinstance(part, ast.Name) and part.id == name), None)
        if at is None:
            return []
        if isinstance(source, ast.Call) and isinstance(source.func, ast.Attribute) and source.func.attr == "items":
            table = source.func.value
            dicts = self.assigned(table.id, loop) if isinstance(table, ast.Name) else [table]
            return [value for each in dicts if at and isinstance(each, ast.Dict) for value in each.values]
        tables = self.assigned(source.id, loop) if isinstance(source, ast.Name) else [source]
        rows = [row for table in tables if isinstance(table, ast.Tuple | ast.List) for row in table.elts]
        return [row.elts[at] for row in rows if isinstance(row, ast.Tuple) and len(row.elts) == len(target.elts)]
