"""Checkpoints of an online run: when its state is kept, and where. The policy's and the critic's of one round belong together."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from data_processing.errors import AlignflowError, ConfigError, DataError, PreemptedError
from rlhf_core.cluster.group import ActorFailedError, Group, wait
from rlhf_core.engine.checkpoint import read_manifest
from rlhf_core.recipes.online.job import OnlineJob
from rlhf_core.recipes.online.sampler import Sampler

# What the state in a checkpoint looks like.
FORMAT = 5

logger = logging.getLogger(__name__)


class Kept(Protocol):
    """A part of a run that a checkpoint keeps, as JSON."""

    def state(self) -> Any:
        """What it needs to go on from here."""
        ...

    def restore(self, state: Any) -> None:
        """Go on from there."""
        ...


class Checkpoints:
    """How many rounds are `done`, and their state in the resume folder: saved now and then, and when the run ends early."""

    def __init__(
        self, job: OnlineJob, trained: dict[str, Group], sampler: Sampler, prompts_sha256: str, parts: Mapping[str, Kept]
    ) -> None:
        self.done = 0
        self._job, self._trained, self._sampler = job, trained, sampler
        self._parts: dict[str, Kept] = {"sampler": sampler, **parts}
        self._identity = {
            "format": FORMAT,
            "prompts_sha256": prompts_sha256,
            "settings": {**job.config.result_fields(), "seed": job.seed},
        }
        self._saved = 0
        # Whether the actors' weights are those after `done` rounds.
        self._is_whole = True

    def resume(self) -> int:
        """Load what earlier attempts saved; returns the rounds they had done."""
        found = latest_checkpoints(self._job.resume, list(self._trained))
        if found is None:
            return 0
        calls = [group.call("load", found[role]) for role, group in self._trained.items()]
        state = wait(*calls, timeout_s=self._job.config.stall_after_s)[0][0]
        check_same_run(state, self._identity, found["policy"])
        for name, part in self._parts.items():
            part.restore(state["parts"][name])
        self.done = self._saved = int(state["step"])
        return self.done

    def round_begins_to_train(self) -> None:
        """From here to `round_is_done` the weights are no round's: nothing can be saved."""
        self._is_whole = False

    def round_is_done(self) -> None:
        """Another round is done; saved if it is its turn."""
        self._sampler.forget(self.done)
        self.done += 1
        self._is_whole = True
        every = self._job.config.checkpoint_every_steps
        if every and self.done % every == 0 and self.done < self._job.config.steps:
            self._sampler.settle(self.done)
            self._save()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever ends the run inside, the rounds done are saved before it leaves, unless it was amid a round's update.

        A run that was asked to stop has to; for one that failed, its own error counts, and what hinders saving is a warning.
        """
        try:
            yield
        except PreemptedError:
            self._leave()
            raise
        except Exception:
            try:
                self._leave()
            except Exception as hindrance:
                self._job.events.warn(
                    f"rounds {self._saved + 1} to {self.done} are lost, as they could not be saved: {hindrance}"
                )
            raise

    def _leave(self) -> None:
        if not self._is_whole or self.done == self._saved:
            return
        if self._sampler.owes(self.done):
            # At once: drawing may take longer than there is time for.
            self._save()
        with suppress(AlignflowError, ActorFailedError):
            self._sampler.settle(self.done)
        self._save()

    def _save(self) -> None:
        """Keep the state after the rounds done, with what is drawn for the next ones.

        The policy comes last, so that its checkpoint is never without its critic's.
        """
        parts = {name: part.state() for name, part in self._parts.items()}
        state = {"step": self.done, "parts": parts, **self._identity}
        for role, group in reversed(self._trained.items()):
            folder = checkpoint_folder(self._job.resume, role, self.done)
            wait(group.call("save", folder, state), timeout_s=self._job.config.stall_after_s)
        self._saved = self.done


def checkpoint_folder(resume: Path, role: str, step: int) -> Path:
    """Where the state of `role` ("policy" or "critic") after `step` rounds is kept."""
    return resume / role / f"step-{step:06d}"


def latest_checkpoints(resume: Path, roles: Sequence[str]) -> dict[str, Path] | None:
    """The checkpoints of the newest round at which every role has a whole one, by role; None if there is no such round."""
    names = sorted((folder.name for folder in (resume / roles[0]).glob("step-*")), reverse=True)
    for name in names:
        folders = {role: resume / role / name for role in roles}
        if all(read_manifest(folder) is not None for folder in folders.values()):
            return folders
        logger.warning("checkpoint %s is damaged or incomplete: taking the round before it", name)
    return None


def check_same_run(state: Mapping[str, Any], identity: Mapping[str, Any], folder: Path) -> None:
    """Raise `DataError` or `ConfigError` where a checkpoint was made with other prompts or settings than this run has."""
    if state.get("format") != identity["format"]:
        raise ConfigError(
            f"checkpoint {folder} was made by another version of alignflow (format {state.get('format', 1)}, this one reads "
            f"{identity['format']}): remove {folder.parent.parent} to start anew"
        )
    if state["prompts_sha256"] != identity["prompts_sha256"]:
        raise DataError(
            f"checkpoint {folder} was made with other prompts (table, chat template or tokenizer changed): "
            f"remove {folder.parent.parent} to start anew, or bring the data back"
        )
    before, now = state["settings"], identity["settings"]
    if before != now:
        changed = sorted(name for name in now if before.get(name) != now[name])
        raise ConfigError(
            f"checkpoint {folder} was made with other values of {changed}: remove {folder.parent.parent} or set them back"
        )
