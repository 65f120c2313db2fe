"""`manifest.json`: what an artifact is, who made it, from what, and what its files must be. Its presence means the artifact is whole.

Stores outlive versions of alignflow. Fields that this version does not know are passed over; only a manifest that says that older
versions cannot read it is refused, and neither is corrupt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from data_processing.errors import AlignflowError, ConfigError
from tasks.runtime.contract.context import ArtifactRef
from tasks.runtime.contract.spec import EVENTS_FILE, Producer
from tasks.runtime.keys.stage_key import canonical_json

MANIFEST_FILE = "manifest.json"
# Raised when a manifest means something else than before, so that whoever knows only less must not read it.
MANIFEST_VERSION = 1


class StoreError(AlignflowError):
    """The store cannot be read or written now, which says nothing about what is in it: a disk that is away, an I/O error."""

    meaning = "the artifact store cannot be used"
    what_to_do = "see that its disk or bucket can be reached, and start the run again: it resumes"


class FileEntry(BaseModel):
    """One file of an artifact: path inside it (POSIX), bytes, sha256 of the content."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    path: str
    size: int
    sha256: str

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ValueError(f"'{path}' leads out of its artifact")
        return path


class Adoption(BaseModel):
    """From which key a person took a result over, when, and which parts of the two keys' descriptions differed."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    key: str
    changed: list[str]
    at: float


class Manifest(BaseModel):
    """The content of a `manifest.json`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    manifest_version: int = MANIFEST_VERSION
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

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)


def parse_manifest(content: bytes, where: str) -> Manifest | None:
    """The manifest that was read at `where`, or None where it is damaged.

    Raises `ConfigError` for one that a newer version wrote for newer versions only.
    """
    try:
        values = json.loads(content)
        version = values.get("manifest_version", MANIFEST_VERSION) if isinstance(values, dict) else None
        if isinstance(version, int) and version > MANIFEST_VERSION:
            raise ConfigError(
                f"{where} was written by a newer alignflow (manifest_version {version}, this one reads up to {MANIFEST_VERSION}); "
                "update alignflow, or set ALIGNFLOW_HOME to another folder"
            )
        return Manifest.model_validate(values)
    except ValueError:  # no JSON, or not of these fields
        return None


def content_hash(entries: Iterable[FileEntry]) -> str:
    """One hash for the files. The log of the work is no part of the result: two runs that made the same files agree."""
    listed = [[e.path, e.size, e.sha256] for e in sorted(entries, key=lambda e: e.path) if e.path != EVENTS_FILE]
    return hashlib.sha256(canonical_json(listed).encode()).hexdigest()
