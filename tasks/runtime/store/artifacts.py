"""The artifact store on a file system: `<root>/<kind>/<key>/`, where a folder is either whole or not there.

A folder is written under a temporary name on the same filesystem, fsynced, given its `manifest.json` last, and renamed.
A hit is verified before it is used; a corrupt one is set aside, never repaired and never handed out. Corrupt is what has other
bytes than were written: a disk that is away or does not answer is an error, and moves nothing. Who may publish is decided by the
caller (see `tasks.runtime.execution.attempts`). Nothing here knows how an artifact was made.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import Timeout

from data_processing.errors import ConfigError
from tasks.runtime.contract.context import ArtifactRef
from tasks.runtime.contract.folders import lock_file, make_folder, open_as
from tasks.runtime.contract.spec import write_record
from tasks.runtime.keys.file_hashes import HashCache
from tasks.runtime.store.manifest import MANIFEST_FILE, FileEntry, Manifest, StoreError, content_hash, parse_manifest
from tasks.runtime.store.tree import files_in, sync, sync_tree

_LOCK_LIMIT_S = 60.0
_LOG = logging.getLogger("alignflow")


class Store:
    """Finished artifacts below `root`. Safe to use from many processes at once, of several people too."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, kind: str, key: str) -> Path:
        """Where the artifact is or will be."""
        return self.root / kind / key

    def staging(self, kind: str, key: str, attempt: int) -> Path:
        """An empty folder for one attempt to write into; leftovers of the same attempt are removed."""
        with self._answering(kind, key):
            make_folder(self.root, kind)  # what is in the way there is found out before the work
            name = f"{kind}-{key}-a{attempt}"
            shutil.rmtree(self.root / ".staging" / name, ignore_errors=True)
            return make_folder(self.root, ".staging", name)

    def manifest(self, kind: str, key: str) -> Manifest | None:
        """The manifest, unverified; None where there is no artifact or its manifest is damaged.

        Raises `StoreError` where it cannot be read, `ConfigError` where only newer versions can.
        """
        path = self.folder(kind, key) / MANIFEST_FILE
        with self._answering(kind, key):
            try:
                return parse_manifest(path.read_bytes(), str(path))
            except (FileNotFoundError, NotADirectoryError):
                return None

    def lookup(self, kind: str, key: str, *, full: bool = False) -> Manifest | None:
        """The manifest of a verified artifact, or None. A corrupt one is set aside first.

        `full` hashes every byte again; otherwise files whose size, mtime and inode are as when they were last hashed
        are trusted. One that links to files which are not there cannot be used, and stays. Raises as `manifest` does.
        """
        try:
            return self._lookup(kind, key, full)
        except LinkTargetMissingError:
            return None

    def fetch(self, kind: str, key: str) -> Path | None:
        """The folder of a verified artifact, or None; raises `LinkTargetMissingError` where files that it links to are away."""
        return self.folder(kind, key) if self._lookup(kind, key, full=False) else None

    def verify(self, kind: str, key: str, *, full: bool = False) -> list[str]:
        """What is wrong with the artifact, one line a problem; empty when it is whole or not there at all."""
        return self._examine(kind, key, full)[1]

    def publish(self, staging: Path, manifest: Manifest) -> ArtifactRef:
        """Make `staging` the artifact of the manifest's key, replacing one that is there. Durable when it returns."""
        kind, key = manifest.kind, manifest.key
        with self._answering(kind, key):
            sync_tree(staging)
            write_record(staging / MANIFEST_FILE, manifest)
            open_as(staging, self.root)
            sync(staging)
            final = make_folder(self.root, kind) / key
            replaced = f"replaced-{kind}-{key}-"
            with self._alone(kind, key):
                if final.exists():
                    final.rename(staging.parent / f"{replaced}{time.time_ns()}")
                staging.rename(final)
            sync(final.parent)
            for left in (path for path in staging.parent.iterdir() if path.name.startswith(replaced)):
                shutil.rmtree(left, ignore_errors=True)
        return reference(self, manifest)

    def uri(self, manifest: Manifest) -> str:
        """The address of the artifact's folder."""
        return self.folder(manifest.kind, manifest.key).as_uri()

    def manifests(self) -> Iterator[Manifest]:
        """Of all artifacts, unverified, by kind and key; those that only newer versions can read are named in the log."""
        for folder in sorted(self.root.glob("[!.]*/*")):
            try:
                manifest = self.manifest(folder.parent.name, folder.name)
            except ConfigError as error:
                _LOG.warning("%s", error)
                continue
            if manifest:
                yield manifest

    def describe_files(self, kind: str, key: str, staging: Path) -> tuple[list[FileEntry], str]:
        """Size and sha256 of every file in `staging` (links are followed), and the hash of them all."""
        if (staging / MANIFEST_FILE).exists():
            raise ConfigError(f"a stage wrote '{MANIFEST_FILE}' at the top of its output; that name is the store's, use another")
        hashes = HashCache(self._hash_file(kind, key), trust=False)
        entries = []
        for path in files_in(staging):
            name = path.relative_to(staging).as_posix()
            entries.append(FileEntry(path=name, size=path.stat().st_size, sha256=hashes.sha256(name, path)))
        self._keep(hashes)
        return entries, content_hash(entries)

    def _lookup(self, kind: str, key: str, full: bool) -> Manifest | None:
        try:
            found, problems = self._examine(kind, key, full)
        except StaleError:
            found, problems = None, ["replaced while it was read"]
        if found and not problems:
            return found
        # What looks absent or wrong may be about to be replaced, or set aside by another reader: it counts as seen alone. A key
        # that has no lock was never published by anybody.
        if not (problems or self._lock(kind, key).exists()) or not os.access(self.root, os.W_OK):
            return None
        with self._alone(kind, key):
            found, problems = self._examine(kind, key, full)
            if problems:
                self._set_aside(kind, key, "; ".join(problems))
        return None if problems else found

    def _examine(self, kind: str, key: str, full: bool) -> tuple[Manifest | None, list[str]]:
        """The manifest, and what is wrong with the artifact; neither where there is nothing."""
        folder = self.folder(kind, key)
        manifest = self.manifest(kind, key)
        with self._answering(kind, key):
            if manifest is None:
                # An empty folder is where a disk belongs that is not mounted.
                return None, ["manifest.json is missing or damaged"] if folder.is_dir() and any(folder.iterdir()) else []
            hashes = HashCache(self._hash_file(kind, key), trust=not full)
            problems = [problem for entry in manifest.files if (problem := _file_problem(folder / entry.path, entry, hashes))]
            if content_hash(manifest.files) != manifest.sha256:
                problems.append("manifest.json does not match its own hash")
            self._keep(hashes)
        return manifest, problems

    def _set_aside(self, kind: str, key: str, reason: str) -> None:
        """Move an artifact out of the way, with the reason beside it; call it alone."""
        place = make_folder(self.root, ".corrupt") / f"{kind}-{key}-{time.time_ns()}"
        self.folder(kind, key).rename(place)
        place.with_suffix(".reason.txt").write_text(reason + "\n", encoding="utf-8")

    @contextmanager
    def _alone(self, kind: str, key: str) -> Iterator[None]:
        """While the block lasts nobody else replaces the artifact or sets it aside."""
        lock = self._lock(kind, key)
        with self._answering(kind, key):
            make_folder(self.root, ".locks")
            try:
                held = lock_file(lock, _LOCK_LIMIT_S).acquire()
            except Timeout:
                raise StoreError(
                    f"{lock} is held for {_LOCK_LIMIT_S:g} s, and should be for moments; who holds it hangs"
                ) from None
        with held:
            yield

    @contextmanager
    def _answering(self, kind: str, key: str) -> Iterator[None]:
        """A file system that does not answer is told from one that says no."""
        try:
            yield
        except OSError as error:
            kind_of_error = StaleError if error.errno == errno.ESTALE else StoreError
            where = error.filename2 or error.filename or self.root
            raise kind_of_error(
                f"{kind} {key[:12]} in {self.root}: {error.strerror or error} ({where}); nothing was moved"
            ) from error

    def _keep(self, hashes: HashCache) -> None:
        with suppress(OSError):  # what cannot be kept is hashed again
            make_folder(self.root, ".hashes")
            hashes.save()

    def _lock(self, kind: str, key: str) -> Path:
        return self.root / ".locks" / f"{kind}-{key}"

    def _hash_file(self, kind: str, key: str) -> Path:
        return self.root / ".hashes" / f"{kind}-{key}.json"


class LinkTargetMissingError(StoreError):
    """An artifact links to files, those of a model that the user gave, that are not there now."""


class StaleError(StoreError):
    """A network file system had handed out what another machine has replaced since."""


def reference(store: Store, manifest: Manifest) -> ArtifactRef:
    """The few hundred bytes that travel between stages in place of the artifact."""
    return ArtifactRef(
        kind=manifest.kind,
        key=manifest.key,
        uri=store.uri(manifest),
        sha256=manifest.sha256,
        producer=f"{manifest.producer.run}/{manifest.producer.node}",
    )


def _file_problem(path: Path, entry: FileEntry, hashes: HashCache) -> str | None:
    try:
        size = path.stat().st_size
        if size != entry.size:
            return f"{entry.path}: {size} bytes, expected {entry.size}"
        return None if hashes.sha256(entry.path, path) == entry.sha256 else f"{entry.path}: content changed"
    except (FileNotFoundError, NotADirectoryError):
        if not path.is_symlink():
            return f"{entry.path}: missing"
        raise LinkTargetMissingError(
            f"{path} links to {path.readlink()}, which is not there; mount its disk, put it back, or make the artifact anew (--force)"
        ) from None
