"""The artifact store: `<root>/<kind>/<key>/`, where a folder is either whole or not there.

A folder is written under a temporary name on the same filesystem, fsynced, given its `manifest.json` last, and renamed.
A hit is verified before it is used; a corrupt one is set aside, never repaired and never handed out. Who may publish
is decided by the caller (see `tasks.runtime.execution.attempts`). Nothing here knows how an artifact was made.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from data_processing.errors import ConfigError
from tasks.runtime.contract.context import ArtifactRef
from tasks.runtime.contract.spec import EVENTS_FILE, Producer, write_record
from tasks.runtime.keys.file_hashes import HashCache
from tasks.runtime.keys.stage_key import canonical_json

MANIFEST_FILE = "manifest.json"


class FileEntry(BaseModel):
    """One file of an artifact: path inside it (POSIX), bytes, sha256 of the content."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    size: int
    sha256: str


class Adoption(BaseModel):
    """From which key a person took a result over, when, and which parts of the two keys' descriptions differed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    changed: list[str]
    at: float


class Manifest(BaseModel):
    """What an artifact is, who made it, from what, and what its files must be. Its presence means the artifact is whole."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    key: str
    sha256: str
    files: list[FileEntry]
    producer: Producer
    inputs: dict[str, ArtifactRef]
    description: dict[str, Any]
    seconds: float
    summary: dict[str, Any]
    finished_at: float
    adopted: Adoption | None = None

    def made_from(self) -> dict[str, str]:
        """The content (sha256) of each input, by name."""
        return {name: ref.sha256 for name, ref in self.inputs.items()}


class Store:
    """Finished artifacts below `root`. Safe to use from many processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, kind: str, key: str) -> Path:
        """Where the artifact is or will be."""
        return self.root / kind / key

    def staging(self, kind: str, key: str, attempt: int) -> Path:
        """An empty folder for one attempt to write into; leftovers of the same attempt are removed."""
        folder = self.root / ".staging" / f"{kind}-{key}-a{attempt}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def manifest(self, kind: str, key: str) -> Manifest | None:
        """The manifest, unverified; None where there is no artifact or its manifest cannot be read."""
        try:
            return Manifest.model_validate_json((self.folder(kind, key) / MANIFEST_FILE).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValidationError, UnicodeDecodeError):
            return None

    def lookup(self, kind: str, key: str, *, full: bool = False) -> Manifest | None:
        """The manifest of a verified artifact, or None. A corrupt one is set aside first.

        `full` hashes every byte again; otherwise files whose size, mtime and inode are as when they were last hashed
        are trusted.
        """
        if not self.folder(kind, key).is_dir():
            return None
        problems = self.verify(kind, key, full=full)
        if problems:
            self.set_aside(kind, key, "; ".join(problems))
            return None
        return self.manifest(kind, key)

    def verify(self, kind: str, key: str, *, full: bool = False) -> list[str]:
        """What is wrong with the artifact, one line a problem; empty when it is whole."""
        manifest = self.manifest(kind, key)
        if manifest is None:
            return ["manifest.json is missing or unreadable"]
        folder = self.folder(kind, key)
        hashes = HashCache(self._hash_file(kind, key), trust=not full)
        problems = [p for entry in manifest.files if (p := _file_problem(folder / entry.path, entry, hashes))]
        if _content_hash(manifest.files) != manifest.sha256:
            problems.append("manifest.json does not match its own hash")
        hashes.save()
        return problems

    def set_aside(self, kind: str, key: str, reason: str) -> Path:
        """Move an artifact out of the way, with the reason beside it; returns where it went."""
        place = self.root / ".corrupt" / f"{kind}-{key}-{time.time_ns()}"
        place.parent.mkdir(parents=True, exist_ok=True)
        self.folder(kind, key).rename(place)
        place.with_suffix(".reason.txt").write_text(reason + "\n", encoding="utf-8")
        return place

    def publish(self, staging: Path, manifest: Manifest) -> ArtifactRef:
        """Make `staging` the artifact of the manifest's key, replacing one that is there. Durable when it returns."""
        _sync_tree(staging)
        write_record(staging / MANIFEST_FILE, manifest)
        _sync(staging)
        final = self.folder(manifest.kind, manifest.key)
        final.parent.mkdir(parents=True, exist_ok=True)
        replaced = self._move_away(final)
        staging.rename(final)
        _sync(final.parent)
        if replaced:
            shutil.rmtree(replaced)
        return reference(self, manifest)

    def describe_files(self, kind: str, key: str, staging: Path) -> tuple[list[FileEntry], str]:
        """Size and sha256 of every file in `staging` (links are followed), and the hash of them all."""
        if (staging / MANIFEST_FILE).exists():
            raise ConfigError(f"a stage wrote '{MANIFEST_FILE}' at the top of its output; that name is the store's, use another")
        hashes = HashCache(self._hash_file(kind, key), trust=False)
        entries = []
        for path in _files(staging):
            name = path.relative_to(staging).as_posix()
            entries.append(FileEntry(path=name, size=path.stat().st_size, sha256=hashes.sha256(name, path)))
        hashes.save()
        return entries, _content_hash(entries)

    def _hash_file(self, kind: str, key: str) -> Path:
        return self.root / ".hashes" / f"{kind}-{key}.json"

    def _move_away(self, folder: Path) -> Path | None:
        if not folder.exists():
            return None
        place = self.root / ".staging" / f"replaced-{folder.name}-{time.time_ns()}"
        folder.rename(place)
        return place


def reference(store: Store, manifest: Manifest) -> ArtifactRef:
    """The few hundred bytes that travel between stages in place of the artifact."""
    return ArtifactRef(
        kind=manifest.kind,
        key=manifest.key,
        uri=store.folder(manifest.kind, manifest.key).as_uri(),
        sha256=manifest.sha256,
        producer=f"{manifest.producer.run}/{manifest.producer.node}",
    )


def _file_problem(path: Path, entry: FileEntry, hashes: HashCache) -> str | None:
    try:
        size = path.stat().st_size
    except OSError:
        return f"{entry.path}: missing"
    if size != entry.size:
        return f"{entry.path}: {size} bytes, expected {entry.size}"
    if hashes.sha256(entry.path, path) != entry.sha256:
        return f"{entry.path}: content changed"
    return None


def _content_hash(entries: list[FileEntry]) -> str:
    """One hash for the files. The log of the work is no part of the result: two runs that made the same files agree."""
    listed = [[e.path, e.size, e.sha256] for e in sorted(entries, key=lambda e: e.path) if e.path != EVENTS_FILE]
    return hashlib.sha256(canonical_json(listed).encode()).hexdigest()


def _files(folder: Path) -> list[Path]:
    found = [Path(place) / name for place, _, names in os.walk(folder, followlinks=True) for name in names]
    return sorted(found)


def _sync_tree(folder: Path) -> None:
    for path in _files(folder):
        if not path.is_symlink():
            _sync(path)
    for place, _, _ in os.walk(folder):
        _sync(Path(place))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
