"""Which of this project's own files a stage can reach by import, and a digest of each.

Found by reading the source, not by importing it: `import` statements anywhere in a file, also inside functions, and
strings that name a module of ours (worker classes and functions are handed to libraries that way). How a stage is run
(`tasks.runtime`) cannot change its result and stays out. Comments, formatting and docstrings do not count.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

OWN_PACKAGES = ("tasks", "evaluation", "rlhf_core", "data_processing")
_OUTSIDE = "tasks.runtime"
PROJECT_ROOT = Path(__file__).resolve().parents[3]


def code_digests(module: str) -> dict[str, str]:
    """sha256 of every file of ours that `module` can import, itself included, by module name."""
    own = (*OWN_PACKAGES, module.split(".", maxsplit=1)[0])
    digests: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _source(name)
        if name in digests or path is None:
            continue
        stat = path.stat()
        digests[name], mentioned = _read(path, name, own, (stat.st_mtime_ns, stat.st_size))
        waiting += [m for m in mentioned if m.split(".")[0] in own and not f"{m}.".startswith(f"{_OUTSIDE}.")]
    return dict(sorted(digests.items()))


@lru_cache(maxsize=4096)
def _read(path: Path, module: str, own: tuple[str, ...], stamp: tuple[int, int]) -> tuple[str, tuple[str, ...]]:
    tree = ast.parse(path.read_bytes(), filename=str(path))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    mentioned = tuple(sorted(set(_mentioned_modules(tree, package, own))))
    _drop_docstrings(tree)
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), mentioned


def _mentioned_modules(tree: ast.Module, package: str, own: tuple[str, ...]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from _with_parents(base)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _names_module(node.value, own):
            yield from _with_parents(node.value.replace(":", "."))


def _with_parents(name: str) -> Iterator[str]:
    """Importing a.b.c runs a and a.b too."""
    parts = name.split(".")
    yield from (".".join(parts[:n]) for n in range(1, len(parts) + 1))


def _names_module(text: str, own: tuple[str, ...]) -> bool:
    parts = text.replace(":", ".").split(".")
    return parts[0] in own and len(parts) > 1 and all(part.isidentifier() for part in parts)


def _source(module: str) -> Path | None:
    """The file of a module of ours, without importing anything; None where the name is no module."""
    parts = module.split(".")
    if parts[0] in OWN_PACKAGES:
        return _file_of(PROJECT_ROOT.joinpath(*parts))
    top = importlib.util.find_spec(parts[0])
    if top is None:
        return None
    if top.submodule_search_locations is None:
        return Path(top.origin) if top.origin and len(parts) == 1 else None
    places = (_file_of(Path(place).joinpath(*parts[1:])) for place in top.submodule_search_locations)
    return next((place for place in places if place), None)


def _file_of(place: Path) -> Path | None:
    for candidate in (place.with_name(place.name + ".py"), place / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _drop_docstrings(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and _has_docstring(node):
            node.body = node.body[1:]


def _has_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return ast.get_docstring(node, clean=False) is not None
