"""Print the shape of the code: lines a file, lines a function, share annotated, share documented.

Run with `make shape`. The aims come from thirteen code bases of the field, none of which meets all of them.
"""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("flows", "tasks", "evaluation", "rlhf_core", "data_processing")
Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = Function | ast.ClassDef


def main() -> None:
    files = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    trees = {path: ast.parse(path.read_text()) for path in files}
    # A package's __init__ is a docstring here: counting it would flatter the median.
    file_lines = [len(path.read_text().splitlines()) for path in files if path.name != "__init__.py"]
    functions = [(path, node) for path, tree in trees.items() for node in ast.walk(tree) if isinstance(node, Function)]
    function_lines = [_length(node) for _, node in functions]
    public = [node for tree in trees.values() for node in _public(tree)]
    documented = [ast.get_docstring(node) is not None for node in public]
    annotated = [_is_annotated(node) for _, node in functions]

    print(f"{len(file_lines)} files, {sum(file_lines)} lines, {len(functions)} functions")
    _print_sizes("lines a file", file_lines, (150, 400, 600))
    _print_sizes("lines a function", function_lines, (12, 40, 90))
    _print_share("functions fully annotated", annotated, 0.98)
    _print_share("public names documented", documented, 1.0)
    print("longest files:    " + ", ".join(f"{p.relative_to(ROOT)} {n}" for n, p in _longest_files(files)))
    longest = sorted(((_length(n), p, n.name) for p, n in functions), key=lambda item: -item[0])[:4]
    print("longest functions: " + ", ".join(f"{p.relative_to(ROOT)}:{name} {n}" for n, p, name in longest))


def _longest_files(files: list[Path]) -> list[tuple[int, Path]]:
    return sorted(((len(p.read_text().splitlines()), p) for p in files), reverse=True)[:4]


def _length(node: Function) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def _public(tree: ast.Module) -> Iterator[Documented]:
    for node in tree.body:
        if isinstance(node, Documented) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (n for n in node.body if isinstance(n, Function) and not n.name.startswith("_"))


def _is_annotated(node: Function) -> bool:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    needed = [a for a in arguments if a.arg not in ("self", "cls")]
    return node.returns is not None and all(a.annotation is not None for a in needed)


def _print_sizes(what: str, sizes: list[int], aims: tuple[int, int, int]) -> None:
    p90 = statistics.quantiles(sizes, n=10)[-1]
    figures = (statistics.median(sizes), p90, max(sizes))
    shown = ", ".join(
        f"{name} {value:.0f} (aim <= {aim})" for name, value, aim in zip(("median", "90 %", "max"), figures, aims, strict=True)
    )
    print(f"{what}: {shown}")


def _print_share(what: str, flags: list[bool], aim: float) -> None:
    print(f"{what}: {100 * sum(flags) / len(flags):.1f} % of {len(flags)} (aim >= {100 * aim:.0f} %)")


if __name__ == "__main__":
    main()
