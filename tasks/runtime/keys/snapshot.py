"""A copy of the code that keys are made from, which is what the worker runs: an edit between plan and start changes neither.

A snapshot is a folder named by the hash of its content. It holds this project's packages, and of the user's code the packages
and modules that the run's stages and rewards can import, with the small files beside them that such code reads.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock

from tasks.runtime.contract.folders import lock_file, make_folder, open_as
from tasks.runtime.keys.closure import OWN_PACKAGES, PROJECT_ROOT, Code, module_spec

_NAME_DIGITS = 16
_LOCK = ".lock"
_SMALL_FILE_BYTES = 1 << 20  # of what is not Python; larger data has a path of its own, which is absolute
_DATA_BYTES = 64 << 20  # of all that is not Python, of one package


def take_snapshot(folder: Path, modules: Iterable[str]) -> Path:
    """The snapshot below `folder` of the code as it is now, with the user's code that `modules` can import; used as of now.

    Raises `ConfigError` for a file of the user's that is no Python.
    """
    code = Code()
    theirs = (module for module in modules if module.partition(".")[0] not in OWN_PACKAGES)
    tops = sorted({top for module in theirs for top in code.user_packages(module)})
    own = ((PROJECT_ROOT, path) for package in OWN_PACKAGES for path in _files(PROJECT_ROOT / package))
    users = (found for top in tops for found in _of_user(top))
    content = {path.relative_to(root).as_posix(): (path.read_bytes(), path.stat()) for root, path in (*own, *users)}
    total = hashlib.sha256()
    for name, (data, _) in sorted(content.items()):
        total.update(f"{name}\0{len(data)}\0".encode())
        total.update(data)
    place = folder / total.hexdigest()[:_NAME_DIGITS]
    with _locked(folder):
        if not place.is_dir():
            _write(place, content)
        os.utime(place)
    return place


def snapshots_older_than(folder: Path, age_s: float) -> list[str]:
    """Those below `folder` that nobody has taken for `age_s` seconds, and what is left of some that were never whole."""
    return sorted(place.name for place in _old(folder, age_s))


def remove_snapshots(folder: Path, names: Iterable[str], age_s: float) -> None:
    """Remove `names` below `folder`, but for those that were taken meanwhile."""
    with _locked(folder):
        for place in _old(folder, age_s):
            if place.name in names:
                shutil.rmtree(place, ignore_errors=True)


def _old(folder: Path, age_s: float) -> list[Path]:
    before = time.time() - age_s
    return [place for place in folder.iterdir() if place.name != _LOCK and place.stat().st_mtime < before]


def _locked(folder: Path) -> FileLock:
    return lock_file(make_folder(folder) / _LOCK)


def _write(place: Path, content: dict[str, tuple[bytes, os.stat_result]]) -> None:
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=place.parent))
    for name, (data, stat) in content.items():
        target = part / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        os.utime(target, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    open_as(part, like=place.parent)
    part.rename(place)


def _of_user(top: str) -> Iterator[tuple[Path, Path]]:
    """Files of a package or module of the user's, each with the folder that is on the path."""
    spec = module_spec(top)
    if spec is None:
        return
    if spec.submodule_search_locations is None:
        module = Path(str(spec.origin))
        yield module.parent, module
        beside = (path for path in sorted(module.parent.iterdir()) if path.is_file() and path.suffix != ".py")
        yield from ((module.parent, path) for path in _small(beside))
        return
    for place in map(Path, spec.submodule_search_locations):
        found = list(_files(place))
        yield from ((place.parent, path) for path in found if path.suffix == ".py")
        yield from ((place.parent, path) for path in _small(path for path in found if path.suffix != ".py"))


def _small(paths: Iterable[Path]) -> list[Path]:
    """Those that are small, or none where they are too much together."""
    small = [path for path in paths if not path.name.startswith(".") and path.stat().st_size <= _SMALL_FILE_BYTES]
    return small if sum(path.stat().st_size for path in small) <= _DATA_BYTES else []


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__" and not name.startswith("."))
        yield from (Path(place) / name for name in sorted(names))
