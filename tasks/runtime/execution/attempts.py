"""The work folder of a key: which attempt owns the key, and the lock under which that changes.

    work/<stage>-<key>/   lock   attempt.json   resume/   a1/   a2/ ...

Only the newest attempt may publish: a worker that was given up but lived on finds a newer token and leaves with exit
code 15. Checkpoints in `resume/` outlive attempts; a fresh start empties it.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from data_processing.errors import SupersededError
from tasks.runtime.contract.folders import lock_file, make_folder
from tasks.runtime.contract.spec import attempt_folder, write_record


class Attempt(BaseModel):
    """The newest attempt at a key, and who runs it. `first_attempt` started from nothing, the ones since resumed.

    `made_from` is the content (sha256) of each input, by name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    first_attempt: int
    token: str
    executor: str
    job_id: str
    made_from: dict[str, str] = {}


class WorkFolder:
    """Attempts at one key, below `root` (the home's `work` folder)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, root: Path, stage: str, key: str) -> WorkFolder:
        """The work folder of `key`; created if missing."""
        return cls(make_folder(root, f"{stage}-{key}"))

    @property
    def resume(self) -> Path:
        """What later attempts resume from."""
        return self.path / "resume"

    def folder(self, attempt: int) -> Path:
        """The folder of one attempt."""
        return attempt_folder(self.path, attempt)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the key: nobody else begins an attempt or publishes meanwhile."""
        with lock_file(self.path / "lock"):
            yield

    def newest(self) -> Attempt | None:
        """The newest attempt, or None before the first."""
        try:
            return Attempt.model_validate_json((self.path / "attempt.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def begin(self, stage: str, key: str, executor: str, made_from: Mapping[str, str], *, fresh: bool) -> Attempt:
        """Own the key with a new attempt; call it with the lock held. `fresh` forgets all checkpoints, as other inputs do."""
        last = self.newest()
        if fresh or (last and last.made_from != made_from):
            shutil.rmtree(self.resume, ignore_errors=True)
        number = last.number + 1 if last else 1
        resumes = last is not None and self.resume.is_dir() and any(self.resume.iterdir())
        attempt = Attempt(
            number=number,
            first_attempt=last.first_attempt if last and resumes else number,
            token=secrets.token_hex(8),
            executor=executor,
            job_id=f"{stage}-{key[:12]}-a{number}",
            made_from=dict(made_from),
        )
        for folder in (self.resume, self.folder(number)):
            make_folder(self.path, folder.name)
        write_record(self.path / "attempt.json", attempt)
        return attempt

    @contextmanager
    def owned_by(self, token: str) -> Iterator[None]:
        """Hold the key for the attempt with `token`; `SupersededError` when a newer one owns it."""
        with self.locked():
            newest = self.newest()
            if newest is None or newest.token != token:
                owner = f"attempt {newest.number}" if newest else "nobody"
                raise SupersededError(f"{self.path.name}: {owner} owns this key now; this attempt may not publish")
            yield
