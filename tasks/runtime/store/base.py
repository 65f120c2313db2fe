"""What every store of artifacts can do, wherever it keeps them; see `artifacts` (a folder) and `remote` (behind fsspec)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from tasks.runtime.contract.context import ArtifactRef
from tasks.runtime.store.manifest import FileEntry, Manifest


class ArtifactStore(Protocol):
    """Finished artifacts by kind and key. All calls raise `StoreError` where the store does not answer."""

    @property
    def root(self) -> Path:
        """The folder of this disk that the store works in."""
        ...

    @property
    def address(self) -> str | None:
        """Where artifacts are kept if that is somewhere else."""
        ...

    def staging(self, kind: str, key: str, attempt: int) -> Path:
        """An empty folder on this disk for one attempt to write into."""
        ...

    def describe_files(self, kind: str, key: str, staging: Path) -> tuple[list[FileEntry], str]:
        """Size and sha256 of every file in `staging`, and the hash of them all."""
        ...

    def prepare(self, staging: Path, manifest: Manifest) -> None:
        """Do what takes long about publishing. What is prepared only is never found."""
        ...

    def publish(self, staging: Path, manifest: Manifest, *, prepared: bool = False) -> ArtifactRef:
        """Make `staging` the artifact of the manifest's key, replacing one that is there; it is found whole from now on."""
        ...

    def manifest(self, kind: str, key: str) -> Manifest | None:
        """The manifest, or None where there is no artifact."""
        ...

    def manifests(self) -> Iterator[Manifest]:
        """Of all artifacts, by kind and key."""
        ...

    def lookup(self, kind: str, key: str) -> Manifest | None:
        """The manifest of an artifact that can be used, or None."""
        ...

    def fetch(self, kind: str, key: str) -> Path | None:
        """A folder of this disk with the verified artifact, or None where there is none; it stays while this object lives."""
        ...

    def fetch_file(self, kind: str, key: str, name: str) -> Path | None:
        """One small file of an artifact, on this disk; None where it is not there."""
        ...

    def uri(self, manifest: Manifest) -> str:
        """The address of the folder with the artifact's files."""
        ...


def reference(store: ArtifactStore, manifest: Manifest) -> ArtifactRef:
    """The few hundred bytes that travel between stages in place of the artifact."""
    return ArtifactRef(
        kind=manifest.kind,
        key=manifest.key,
        uri=store.uri(manifest),
        sha256=manifest.sha256,
        producer=f"{manifest.producer.run}/{manifest.producer.node}",
    )
