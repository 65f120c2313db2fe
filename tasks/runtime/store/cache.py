"""A folder of this disk with copies of what is kept elsewhere, bounded: what was used longest ago goes, what is in use stays.

    <root>/<kind>/<key>/   copies, as in any store        <root>/.uses/<kind>-<key>   held while used; its mtime says when last

A copy is in use while a process holds its file in `.uses`; the system lets go of it when the process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tasks.runtime.contract.folders import lock_file, make_folder
from tasks.runtime.store.artifacts import Store
from tasks.runtime.store.manifest import Manifest


class Cache:
    """Copies below `store.root`, together at most `limit_bytes` and what is in use."""

    def __init__(self, store: Store, limit_bytes: int) -> None:
        self.store = store
        self._limit_bytes = limit_bytes
        self._held: dict[tuple[str, str], int] = {}

    def __del__(self) -> None:
        for descriptor in self._held.values():
            with suppress(OSError):
                os.close(descriptor)

    def hold(self, kind: str, key: str) -> None:
        """From now on the copy is in use, until this object is gone."""
        if (kind, key) not in self._held:
            descriptor = self._open(kind, key)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            self._held[kind, key] = descriptor
        os.utime(self._held[kind, key])

    @contextmanager
    def fetching(self, kind: str, key: str) -> Iterator[None]:
        """Whoever wants the same copy waits for it, instead of fetching it too."""
        with lock_file(make_folder(self.store.root, ".fetches") / f"{kind}-{key}"):
            yield

    def has(self, manifest: Manifest) -> bool:
        """Whether a whole copy of exactly this artifact is here. A damaged one is removed: it can be fetched again."""
        found = self.store.lookup(manifest.kind, manifest.key)
        shutil.rmtree(self.store.root / ".corrupt", ignore_errors=True)
        return found is not None and found.files == manifest.files

    def make_room(self) -> None:
        """Remove copies until the rest is within the limit, those used longest ago first."""
        copies = sorted((self._last_use_s(manifest), manifest.kind, manifest.key, manifest.size) for manifest in self._copies())
        total = sum(size for *_, size in copies)
        for _, kind, key, size in copies:
            if total <= self._limit_bytes:
                return
            total -= size if self._remove(kind, key) else 0

    def _copies(self) -> Iterator[Manifest]:
        return self.store.manifests()

    def _last_use_s(self, manifest: Manifest) -> float:
        with suppress(FileNotFoundError):
            return self._use(manifest.kind, manifest.key).stat().st_mtime
        return 0.0

    def _remove(self, kind: str, key: str) -> bool:
        """Remove a copy that nobody uses; returns whether it did."""
        descriptor = self._open(kind, key)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            gone = make_folder(self.store.root, ".staging") / f"evicted-{kind}-{key}-{time.time_ns()}"
            self.store.folder(kind, key).rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
        except (BlockingIOError, FileNotFoundError):  # in use; or somebody else removed it
            return False
        finally:
            os.close(descriptor)
        return True

    def _open(self, kind: str, key: str) -> int:
        make_folder(self.store.root, ".uses")
        return os.open(self._use(kind, key), os.O_RDWR | os.O_CREAT, 0o666)

    def _use(self, kind: str, key: str) -> Path:
        return self.store.root / ".uses" / f"{kind}-{key}"
