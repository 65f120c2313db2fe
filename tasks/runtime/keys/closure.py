"""Which files of this project and of the user a stage can reach by import, and a digest of each; libraries have versions instead.

Found by reading the source, not by importing it: `import` statements anywhere in a file, also inside functions, and
strings that name a module of ours (worker classes and functions are handed to libraries that way). How a stage is run
(`tasks.runtime`) cannot change its result and stays out. Comments, formatting and docstrings do not count.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache, lru_cache
from importlib.machinery import ModuleSpec
from pathlib import Path

from data_processing.errors import ConfigError
from tasks.runtime.contract.spec import write_json

PROJECT_ROOT = Path(__file__).resolve().parents[3]
OWN_PACKAGES = ("tasks", "evaluation", "rlhf_core", "data_processing")
_OUTSIDE = "tasks.runtime"
# Digest and mentioned modules of sources, by a hash of all that they follow from.
_PARSED: dict[str, tuple[str, tuple[str, ...]]] = {}
_MOST_KEPT = 20_000
_OWN_SOURCE = hashlib.sha256(Path(__file__).read_bytes()).digest()  # how sources are read
_LIBRARIES = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


class Code:
    """The code below `root`, as it is when it is first asked for: the checkout, or a snapshot, which has the user's modules too.

    `libraries` are the versions of the distributions it runs with, where these are not this interpreter's. `parsed` is a file that
    keeps what was parsed for the next process: all of ours takes a second.
    """

    def __init__(self, root: Path = PROJECT_ROOT, libraries: Mapping[str, str] | None = None, parsed: Path | None = None) -> None:
        self.root = root
        self._parsed = parsed
        if parsed:
            _PARSED.update(_kept(parsed))
        self._libraries = libraries and {_plain(name): version for name, version in libraries.items()}
        self._found: dict[str, dict[str, tuple[Path, str]]] = {}

    def digests(self, module: str) -> dict[str, str]:
        """sha256 of every file of ours and of the user's that `module` can import, itself included, by module name."""
        return {name: digest for name, (_, digest) in self._closure(module).items()}

    def file_digests(self, module: str) -> dict[str, str]:
        """As `digests`, by file: `my_rewards.py`, `my_package/words.py`."""
        return {_file_name(name, path): digest for name, (path, digest) in self._closure(module).items()}

    def versions(self, distributions: Iterable[str]) -> dict[str, str]:
        """Versions by distribution name, "absent" where one is not installed; Python's own is always there."""
        if self._libraries is None:
            python = ".".join(platform.python_version_tuple()[:2])
            return {"python": python, **{name: _installed_version(name) for name in distributions}}
        return {name: self._libraries.get(_plain(name), "absent") for name in ("python", *distributions)}

    def user_packages(self, module: str) -> set[str]:
        """The top-level packages and modules of the user's that `module` can import."""
        return {name.partition(".")[0] for name in self._closure(module)} - set(OWN_PACKAGES)

    def _closure(self, module: str) -> dict[str, tuple[Path, str]]:
        if module not in self._found:
            known = len(_PARSED)
            self._found[module] = dict(sorted(_closure(module, self.root).items()))
            if self._parsed and len(_PARSED) > known:
                _keep(self._parsed)
        return self._found[module]


def _plain(distribution: str) -> str:
    """The one spelling of a distribution's name."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


@cache
def _installed_version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _file_name(module: str, path: Path) -> str:
    return f"{module.replace('.', '/')}{'/__init__.py' if path.name == '__init__.py' else '.py'}"


def _closure(module: str, root: Path) -> dict[str, tuple[Path, str]]:
    """File and digest by module name. Raises `ConfigError` for a file that is no Python."""
    own = (*OWN_PACKAGES, module.split(".", maxsplit=1)[0])
    found: dict[str, tuple[Path, str]] = {}
    waiting, seen = [*_with_parents(module)], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        path = _source(name, own, root)
        if path is None:
            continue
        stat = path.stat()
        digest, mentioned = _read(path, name, own, (stat.st_mtime_ns, stat.st_size))
        found[name] = path, digest
        waiting += [m for m in mentioned if not f"{m}.".startswith(f"{_OUTSIDE}.")]
    return found


@lru_cache(maxsize=4096)
def _read(path: Path, module: str, own: tuple[str, ...], stamp: tuple[int, int]) -> tuple[str, tuple[str, ...]]:
    source = path.read_bytes()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    follows_from = [_OWN_SOURCE, sys.version.encode(), package.encode(), *(name.encode() for name in own), source]
    key = hashlib.sha256(b"\0".join(follows_from)).hexdigest()
    if key not in _PARSED:
        _PARSED[key] = _parse(source, path, package, own)
    return _PARSED[key]


def _kept(file: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    """What `_keep` wrote; nothing where that is damaged, or more than anybody needs."""
    try:
        kept = {key: (digest, tuple(mentioned)) for key, (digest, mentioned) in json.loads(file.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return kept if len(kept) < _MOST_KEPT else {}


def _keep(file: Path) -> None:
    with suppress(OSError):  # a home that is only read
        write_json(file, _PARSED)


def _parse(source: bytes, path: Path, package: str, own: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    try:
        tree = ast.parse(source, filename=str(path))
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{path} is not Python that can be read: {error}") from error
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


def _source(module: str, own: tuple[str, ...], root: Path) -> Path | None:
    """The file of a module of ours or the user's, without importing anything; None for libraries and what is no module."""
    parts = module.split(".")
    if parts[0] in OWN_PACKAGES or (root != PROJECT_ROOT and _is_below(root, parts[0])):
        return _file_of(root.joinpath(*parts))
    top = module_spec(parts[0])
    if top is None or (parts[0] not in own and _is_library(top)):
        return None
    if top.submodule_search_locations is None:
        return Path(top.origin) if top.origin and len(parts) == 1 else None
    places = (_file_of(Path(place).joinpath(*parts[1:])) for place in top.submodule_search_locations)
    return next((place for place in places if place), None)


def module_spec(top: str) -> ModuleSpec | None:
    """How a top-level module is found; None for the standard library, and where nothing is there."""
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return None
    try:
        return importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None


def _is_library(spec: ModuleSpec) -> bool:
    places = [*(spec.submodule_search_locations or []), *([spec.origin] if spec.origin else [])]
    return any(Path(place).is_relative_to(library) for place in places for library in _LIBRARIES)


def _is_below(root: Path, top: str) -> bool:
    return (root / top).is_dir() or (root / f"{top}.py").is_file()


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
