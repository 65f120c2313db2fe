"""The artifact store in a bucket, or behind anything else that fsspec speaks, with a cache on this disk.

    <address>/<kind>/<key>/manifest.json        what the artifact is, and which of the folders beside it holds its files
    <address>/<kind>/<key>/<12 digits>/...      its files under their own names, uploaded before the manifest

The manifest is what makes an artifact: an upload that stopped half way is never found. The folder is named by the files' hashes,
so another artifact under the same key never changes a file that somebody is reading. Hashes are checked when files are fetched;
everything else about artifacts (staging, hashing, whole or not there) is done by the store on this disk that is the cache.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from data_processing.errors import ConfigError
from data_processing.file_hash import file_sha256
from tasks.runtime.contract.context import ArtifactRef
from tasks.runtime.contract.folders import make_folder
from tasks.runtime.keys.stage_key import canonical_json
from tasks.runtime.store.artifacts import Store
from tasks.runtime.store.base import reference
from tasks.runtime.store.cache import Cache
from tasks.runtime.store.manifest import MANIFEST_FILE, FileEntry, Manifest, StoreError, parse_manifest

_TOGETHER = 8  # files that travel at the same time
_FETCH_TRIES = 3
# Waits between tries to upload: a stage may have worked for days.
_UPLOAD_WAITS_S = (1.0, 3.0, 10.0, 30.0, 60.0)
_LOG = logging.getLogger("alignflow")

AnswerT = TypeVar("AnswerT")


class RemoteStore:
    """Artifacts at `address` (`s3://bucket/prefix`, `gs://...`); copies of those used here in `root`, up to `cache_bytes`."""

    def __init__(self, address: str, root: Path, cache_bytes: int) -> None:
        self.address = address.rstrip("/")
        self.root = root
        self._disk = Store(root)
        self._cache = Cache(self._disk, cache_bytes)
        self._fs, self._place = _connect(self.address)

    def staging(self, kind: str, key: str, attempt: int) -> Path:
        """A folder on this disk; raises `StoreError` where what is written there could not be published."""
        self._ask("cannot be written to", lambda: self._fs.pipe_file(f"{self._place}/.written-to", b""))
        return self._disk.staging(kind, key, attempt)

    def describe_files(self, kind: str, key: str, staging: Path) -> tuple[list[FileEntry], str]:
        """See `Store.describe_files`."""
        return self._disk.describe_files(kind, key, staging)

    def prepare(self, staging: Path, manifest: Manifest) -> None:
        """Upload the files, and see that they are there; tries again for a while."""
        # What an earlier upload left is not trusted: of what is there only the size can be seen. What this one sent is.
        there: dict[str, int] = {}
        for wait_s in _UPLOAD_WAITS_S:
            try:
                self._upload(staging, manifest, there)
                return
            except StoreError as error:
                _LOG.warning("%s; trying again in %g s", error, wait_s)
                time.sleep(wait_s)
                with suppress(StoreError):
                    there = self._sizes(self._folder(manifest))
        self._upload(staging, manifest, there)

    def publish(self, staging: Path, manifest: Manifest, *, prepared: bool = False) -> ArtifactRef:
        """Upload the files unless that is done, then the manifest; `staging` becomes the copy on this disk."""
        if not prepared:
            self.prepare(staging, manifest)
        replaced = self.manifest(manifest.kind, manifest.key)
        content = manifest.model_dump_json(indent=1).encode()
        self._ask("did not take a manifest", lambda: self._fs.pipe_file(self._manifest(manifest.kind, manifest.key), content))
        if replaced and self._folder(replaced) != self._folder(manifest):
            self._ask("did not remove what was replaced", lambda: self._fs.rm(self._folder(replaced), recursive=True))
        self._disk.publish(staging, manifest)
        self._cache.make_room()
        return reference(self, manifest)

    def manifest(self, kind: str, key: str) -> Manifest | None:
        """The manifest, or None where there is none. One that is damaged is none either."""
        place = self._manifest(kind, key)
        try:
            content: bytes = self._ask("does not answer", lambda: self._fs.cat_file(place))
        except AbsentError:
            return None
        return parse_manifest(content, f"{self.address}/{kind}/{key}/{MANIFEST_FILE}")

    def manifests(self) -> Iterator[Manifest]:
        """Of all artifacts; those that only newer versions can read are named in the log."""
        places = [(kind, key) for kind in self._names() for key in self._names(kind)]
        for kind, key in places:
            try:
                found = self.manifest(kind, key)
            except ConfigError as error:
                _LOG.warning("%s", error)
                continue
            if found:
                yield found

    def lookup(self, kind: str, key: str) -> Manifest | None:
        """The manifest, or None. Its files are verified when they are fetched."""
        return self.manifest(kind, key)

    def fetch(self, kind: str, key: str) -> Path | None:
        """A verified copy on this disk, fetched unless it is there; None where there is no artifact.

        One whose files are not what its manifest says is set aside: its manifest is moved to `.corrupt`, with the reason.
        """
        self._cache.hold(kind, key)  # before it is looked for, so that nobody removes it in between
        with self._cache.fetching(kind, key):
            problem = ""
            for _ in range(_FETCH_TRIES):
                manifest = self.manifest(kind, key)
                if manifest is None:
                    return None
                if self._cache.has(manifest):
                    return self._disk.folder(kind, key)
                problem = self._download(manifest)
                if not problem:
                    self._cache.make_room()
                    return self._disk.folder(kind, key)
            self._set_aside(kind, key, problem)
        return None

    def fetch_file(self, kind: str, key: str, name: str) -> Path | None:
        """One file from the top of an artifact, verified; None where it is not there or not what the manifest says."""
        manifest = self.manifest(kind, key)
        entry = next((entry for entry in manifest.files if entry.path == name), None) if manifest else None
        if manifest is None or entry is None:
            return None
        if self._cache.has(manifest):
            return self._disk.folder(kind, key) / name
        path = make_folder(self.root, ".files", f"{kind}-{key}-{_folder_name(manifest)}") / name
        if not path.is_file() or file_sha256(path) != entry.sha256:
            part = path.with_name(f".{path.name}.{time.time_ns()}")
            try:
                self._ask("does not answer", lambda: self._fs.get_file(f"{self._folder(manifest)}/{name}", str(part)))
            except AbsentError:
                return None
            part.replace(path)
        return path if file_sha256(path) == entry.sha256 else None

    def uri(self, manifest: Manifest) -> str:
        """The address of the folder with the artifact's files."""
        return f"{self.address}/{manifest.kind}/{manifest.key}/{_folder_name(manifest)}"

    def _upload(self, staging: Path, manifest: Manifest, there: Mapping[str, int]) -> None:
        place = self._folder(manifest)
        wanted = [entry for entry in manifest.files if there.get(entry.path) != entry.size]
        here, away = [str(staging / entry.path) for entry in wanted], [f"{place}/{entry.path}" for entry in wanted]
        if wanted:
            self._ask("did not take the files", lambda: self._fs.put(here, away, batch_size=_TOGETHER))
        there = self._sizes(place)
        if wrong := [entry.path for entry in manifest.files if there.get(entry.path) != entry.size]:
            raise StoreError(f"ALIGNFLOW_STORE: {self.uri(manifest)} holds {', '.join(wrong[:3])} in another size than was sent")

    def _download(self, manifest: Manifest) -> str:
        """Fetch all files into the cache; returns what is wrong with them, empty when they are whole."""
        staging = self._disk.staging(manifest.kind, manifest.key, 0)
        here = [staging / entry.path for entry in manifest.files]
        for path in here:
            path.parent.mkdir(parents=True, exist_ok=True)
        away = [f"{self._folder(manifest)}/{entry.path}" for entry in manifest.files]
        try:
            self._ask("does not answer", lambda: self._fs.get(away, [str(path) for path in here], batch_size=_TOGETHER))
        except AbsentError as error:  # replaced meanwhile, which the next try sees, or gone
            return f"missing: {error}"
        found, _ = self._disk.describe_files(manifest.kind, manifest.key, staging)
        if wrong := _differences(manifest.files, found):
            shutil.rmtree(staging, ignore_errors=True)
            return f"content changed: {', '.join(wrong[:3])}"
        self._disk.publish(staging, manifest)
        return ""

    def _set_aside(self, kind: str, key: str, reason: str) -> None:
        place = f"{self._place}/.corrupt/{kind}-{key}-{time.time_ns()}"
        _LOG.warning("%s/%s/%s is corrupt (%s); set aside as %s", self.address, kind, key[:12], reason, place)

        def move() -> None:
            self._fs.mv(self._manifest(kind, key), f"{place}/{MANIFEST_FILE}")
            self._fs.pipe_file(f"{place}/reason.txt", f"{reason}\n".encode())

        self._ask("did not set a corrupt artifact aside", move)

    def _sizes(self, place: str) -> dict[str, int]:
        """Bytes by path inside the folder `place`."""
        try:
            found: dict[str, Any] = self._ask("does not answer", lambda: self._fs.find(place, detail=True))
        except AbsentError:
            return {}
        return {path.removeprefix(f"{place}/"): int(facts["size"]) for path, facts in found.items()}

    def _names(self, *below: str) -> list[str]:
        place = "/".join([self._place, *below])
        try:
            listed: Sequence[str] = self._ask("does not answer", lambda: self._fs.ls(place, detail=False))
        except AbsentError:
            return []
        names = (path.rstrip("/").rpartition("/")[2] for path in listed)
        return sorted(name for name in names if not name.startswith("."))

    def _folder(self, manifest: Manifest) -> str:
        return f"{self._place}/{manifest.kind}/{manifest.key}/{_folder_name(manifest)}"

    def _manifest(self, kind: str, key: str) -> str:
        return f"{self._place}/{kind}/{key}/{MANIFEST_FILE}"

    def _ask(self, failed: str, call: Callable[[], AnswerT]) -> AnswerT:
        """What `call` returns; a bucket that does not answer is told from a file that is not there."""
        try:
            return call()
        except FileNotFoundError as error:
            raise AbsentError(f"ALIGNFLOW_STORE: {self.address} {failed}: {error}") from error
        except Exception as error:  # each file system has its own
            raise StoreError(f"ALIGNFLOW_STORE: {self.address} {failed}: {type(error).__name__}: {error}") from error


class AbsentError(StoreError):
    """There is no such file, or no such bucket."""


def _connect(address: str) -> tuple[Any, str]:
    import fsspec

    try:
        # Listings are never taken from memory: other machines publish too.
        fs, place = fsspec.url_to_fs(address, use_listings_cache=False)
    except ImportError as error:
        raise ConfigError(f"ALIGNFLOW_STORE: {address} needs a package that is not installed ({error})") from error
    except ValueError as error:
        raise ConfigError(
            f"ALIGNFLOW_STORE: {address}: {error}; give a folder, s3://bucket/prefix, gs://bucket/prefix or another address of fsspec"
        ) from error
    return fs, str(place).rstrip("/")


def _folder_name(manifest: Manifest) -> str:
    """Unlike `manifest.sha256` with the log of the work in it, which is uploaded too."""
    listed = [[e.path, e.size, e.sha256] for e in sorted(manifest.files, key=lambda e: e.path)]
    return hashlib.sha256(canonical_json(listed).encode()).hexdigest()[:12]


def _differences(wanted: Sequence[FileEntry], found: Sequence[FileEntry]) -> list[str]:
    there = {entry.path: entry for entry in found}
    return [entry.path for entry in wanted if there.get(entry.path) != entry]
