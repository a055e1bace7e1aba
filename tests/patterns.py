"""Places in the source, found by what the code says and not by how it is written.

A pattern is Python: an expression, or statements that follow each other. `_1` to `_9` stand for any expression or
name, the same one wherever a pattern repeats it; `...` as an argument stands for all arguments that a pattern does not
name.
"""

from __future__ import annotations

import ast
import copy
import functools
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

PRODUCT = ("configs", "utils", "datasets", "model", "loss", "solver", "processor", "tools")
WILD = re.compile(r"_[1-9]")
REST = "..."
NOT_COMPARED = {"ctx", "kind", "type_comment"}
Bound = dict[str, Any]


class Place(NamedTuple):
    path: Path
    nodes: list[ast.AST]  # an expression, or statements
    bound: Bound  # what the wildcards stand for


def find(root: Path, where: str, pattern: str) -> list[Place]:
    """All places of a pattern in functions and classes called `where` (dotted: Class.method), in any file."""
    wanted, places = _code(pattern), {}
    for path in sorted([*root.glob("*.py"), *(file for name in PRODUCT for file in (root / name).rglob("*.py"))]):
        for scope in _scopes(_parsed(path.read_text(encoding="utf-8")), where):
            for nodes in _candidates(scope, wanted):
                bound: Bound = {}
                if _match(wanted, nodes, bound):
                    places[id(nodes[0])] = Place(path, nodes, bound)  # nested scopes find it twice
    return list(places.values())


def replaced(place: Place, pattern: str) -> str:
    """The file's text with a pattern, filled in, at this place."""
    lines = place.path.read_text(encoding="utf-8").encode().splitlines(keepends=True)
    first, last = place.nodes[0], place.nodes[-1]
    new = [_Fill(place.bound).visit(copy.deepcopy(node)) for node in _code(pattern)]
    if isinstance(first, ast.expr):
        text = f"({ast.unparse(new[0])})"
    else:
        written = "\n".join(ast.unparse(node if isinstance(node, ast.stmt) else ast.Expr(node)) for node in new)
        text = textwrap.indent(written, " " * first.col_offset).lstrip()
    start, end = (first.lineno - 1, first.col_offset), (last.end_lineno - 1, last.end_col_offset)
    before = b"".join(lines[: start[0]]) + lines[start[0]][: start[1]]
    after = lines[end[0]][end[1] :] + b"".join(lines[end[0] + 1 :])
    return (before + text.encode() + after).decode()


@functools.cache
def _parsed(source: str) -> ast.Module:
    return ast.parse(source)


@functools.cache
def _code(pattern: str) -> list[ast.AST]:
    body = ast.parse(textwrap.dedent(pattern)).body
    return [body[0].value] if len(body) == 1 and isinstance(body[0], ast.Expr) else body


def _scopes(tree: ast.AST, where: str, owner: str = "") -> Iterator[ast.AST]:
    if not where:
        yield tree
        return
    for node in ast.iter_child_nodes(tree):
        name = owner
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            name = f"{owner}.{node.name}"
            if f"{name}".endswith(f".{where}"):
                yield node
        yield from _scopes(node, where, name)


def _candidates(scope: ast.AST, wanted: list[ast.AST]) -> Iterator[list[ast.AST]]:
    for node in ast.walk(scope):
        if isinstance(wanted[0], ast.expr):
            yield [node]
            continue
        for body in (getattr(node, name, None) for name in ("body", "orelse", "finalbody")):
            if isinstance(body, list):
                yield from (body[i : i + len(wanted)] for i in range(len(body) - len(wanted) + 1))


def _match(pattern: Any, node: Any, bound: Bound) -> bool:
    wild = pattern.id if isinstance(pattern, ast.Name) and isinstance(node, ast.expr) else pattern
    if isinstance(wild, str) and WILD.fullmatch(wild) and isinstance(node, (ast.expr, str)):
        return _said(bound.setdefault(wild, node)) == _said(node)
    if type(pattern) is not type(node):
        return False
    if isinstance(pattern, list):
        return len(pattern) == len(node) and all(map(_match, pattern, node, [bound] * len(node)))
    if not isinstance(pattern, ast.AST):
        return pattern == node
    if isinstance(pattern, ast.Call) and any(map(_is_rest, pattern.args)):
        return _match_call(pattern, node, bound)
    fields = (name for name in pattern._fields if name not in NOT_COMPARED)
    return all(_match(getattr(pattern, name), getattr(node, name), bound) for name in fields)


def _match_call(pattern: ast.Call, node: ast.Call, bound: Bound) -> bool:
    args = [arg for arg in pattern.args if not _is_rest(arg)]
    named = {keyword.arg: keyword for keyword in pattern.keywords}
    given = {keyword.arg: keyword for keyword in node.keywords}
    rest = node.args[len(args) :], [keyword for keyword in node.keywords if keyword.arg not in named]
    return (
        named.keys() <= given.keys()
        and _match(pattern.func, node.func, bound)
        and _match(args, node.args[: len(args)], bound)
        and all(_match(keyword.value, given[name].value, bound) for name, keyword in named.items())
        and bound.setdefault(REST, rest) is rest
    )


def _is_rest(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is Ellipsis


def _said(node: ast.AST | str) -> str:
    return node if isinstance(node, str) else ast.unparse(node)


class _Fill(ast.NodeTransformer):
    """Puts what was bound in the place of wildcards."""

    def __init__(self, bound: Bound):
        self.bound = bound

    def visit_Name(self, node: ast.Name) -> ast.AST:
        found = self.bound.get(node.id, node)
        return ast.Name(found, node.ctx) if isinstance(found, str) else found

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if any(map(_is_rest, node.args)):
            args, keywords = self.bound[REST]
            node.args = [arg for arg in node.args if not _is_rest(arg)] + args
            node.keywords = node.keywords + keywords
        return self.generic_visit(node)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for name, value in ast.iter_fields(node):
            if isinstance(value, str) and not isinstance(node, ast.Constant) and value in self.bound:
                setattr(node, name, _said(self.bound[value]))
        return super().generic_visit(node)
