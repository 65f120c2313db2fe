"""Small changes of Python source that tests should notice: flipped comparisons, other constants, statements left out.

Left as they are is what tests need not see: annotations, docstrings, and texts for people. How they are tried: `mutation`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

_FLIPPED: Mapping[type[ast.cmpop], type[ast.cmpop]] = {
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is},
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
}
_SWAPPED: Mapping[type[ast.AST], type[ast.AST]] = {ast.And: ast.Or, ast.Or: ast.And, ast.Add: ast.Sub, ast.Sub: ast.Add}


@dataclass(frozen=True)
class Mutant:
    """A change on the line `text` of `file`: its bytes from `start` to `end`, which are `original`, become `mutated`."""

    file: str
    line: int
    text: str
    start: int
    end: int
    original: str
    mutated: str
    is_statement: bool

    def applied(self, source: bytes) -> bytes:
        """The changed source. Brackets keep an expression together that binds less closely than what was there."""
        mutated = self.mutated if self.is_statement else f"({self.mutated})"
        return source[: self.start] + mutated.encode() + source[self.end :]


def mutants(file: str, source: bytes) -> list[Mutant]:
    """All changes of a file, in order; those that leave its meaning as it is to Python are none."""
    lines = source.splitlines(keepends=True)
    starts = list(accumulate(map(len, lines), initial=0))
    tree = ast.parse(source)
    found = []
    for node, mutated in _changes(tree):
        start, end = starts[node.lineno - 1] + node.col_offset, starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
        text, original = (" ".join(part.decode().split()) for part in (lines[node.lineno - 1], source[start:end]))
        mutant = Mutant(file, node.lineno, text, start, end, original, mutated, isinstance(node, ast.stmt))
        if ast.dump(ast.parse(mutant.applied(source))) != ast.dump(tree):
            found.append(mutant)
    return found


def _changes(node: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    """A node of the tree below `node`, and what could stand there instead."""
    if isinstance(node, ast.stmt):
        yield from ((node, text) for text in _instead_of_statement(node))
    if isinstance(node, ast.expr):
        yield from ((node, ast.unparse(other)) for other in _instead_of_expression(node))
    if isinstance(node, (ast.If, ast.IfExp)) and _may_be_left_out(node.test):
        yield from ((node.test, text) for text in ("True", "False"))
    for child in _seen_by_tests(node):
        yield from _changes(child)


def _instead_of_statement(node: ast.stmt) -> Iterator[str]:
    match node:
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield "return None"
        case ast.Raise():
            yield "pass"
        case ast.Expr(value=ast.Call() as call) | ast.Expr(value=ast.Await(value=ast.Call() as call)) if not _is_words(call):
            yield "pass"
        case ast.Continue():
            yield "break"
        case ast.Break():
            yield "continue"
        case ast.AugAssign(target, op, value) if type(op) in _SWAPPED:
            yield ast.unparse(ast.AugAssign(target, _SWAPPED[type(op)](), value))  # type: ignore[arg-type]


def _instead_of_expression(node: ast.expr) -> Iterator[ast.expr]:
    match node:
        case ast.Compare(left, ops, comparators):
            for place, op in enumerate(ops):
                yield ast.Compare(left, [*ops[:place], _FLIPPED[type(op)](), *ops[place + 1 :]], comparators)
        case ast.BoolOp(op, values):
            yield ast.BoolOp(_SWAPPED[type(op)](), values)  # type: ignore[arg-type]
        case ast.BinOp(left, op, right) if type(op) in _SWAPPED:
            yield ast.BinOp(left, _SWAPPED[type(op)](), right)  # type: ignore[arg-type]
        case ast.UnaryOp(ast.Not(), operand):
            yield operand
        case ast.Constant(value=bool() as flag):
            yield ast.Constant(not flag)
        case ast.Constant(value=int() as number):
            yield ast.Constant(number + 1)
        case ast.Constant(value=str() as text) if text and " " not in text:  # what has spaces is for people
            yield ast.Constant(f"XX{text}")


def _may_be_left_out(test: ast.expr) -> bool:
    """Whether a condition gives nothing a name, and is none for the type checker alone."""
    return not any(isinstance(part, ast.NamedExpr) for part in ast.walk(test)) and ast.unparse(test) != "TYPE_CHECKING"


def _seen_by_tests(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.JoinedStr() | ast.Expr(value=ast.Constant()) | ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return
        case ast.keyword(arg="frozen"):  # the type checker sees to it
            return
        case ast.Call() if _is_words(node):
            return
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            yield from (default for default in (*node.args.defaults, *node.args.kw_defaults) if default)
            yield from node.body
        case ast.ClassDef():
            yield from node.body
        case ast.AnnAssign():
            yield from [node.value] if node.value else []
        case _:
            yield from ast.iter_child_nodes(node)


def _is_words(call: ast.Call) -> bool:
    """Whether what the call is given is for people to read, or for the type checker."""
    called = ast.unparse(call.func)
    return called.endswith("Error") or called.lower().startswith("_log.") or called in ("print", "TypeVar", "logging.getLogger")
