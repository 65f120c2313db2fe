"""What a flow asks of the runtime, and what it gets back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from data_processing.settings import Settings
from tasks.runtime.contract.context import ArtifactRef


@dataclass(frozen=True)
class StageRequest:
    """One node of a flow: run stage `stage` (a registered name or `module:attribute`) as `node` of flow run `run`.

    `force` recomputes from nothing although a result is there. Neither `node`, `run` nor `force` enters the key.
    """

    stage: str
    node: str
    config: Settings
    run: str
    inputs: Mapping[str, ArtifactRef] = field(default_factory=dict)
    seed: int = 0
    force: bool = False


@dataclass(frozen=True)
class StageOutcome:
    """A finished stage. `cached`: this request did not wait for the work; `producer` is the `run/node` that did it.

    `seconds` is the stage's own work, when it was done; `summary` its final facts; `attempt` the one that succeeded; `adopted` the parts
    of the key whose changes a person took over when adopting it.
    """

    node: str
    ref: ArtifactRef
    cached: bool
    producer: str
    seconds: float
    attempt: int
    summary: dict[str, Any]
    adopted: list[str] = field(default_factory=list)

    @property
    def origin(self) -> str:
        """Who made the artifact and how long that took, in words, and over what it was adopted."""
        over = f", adopted over changes of {', '.join(self.adopted)}" if self.adopted else ""
        return f"made by {self.producer} in {self.seconds:.1f} s{over}"

    def to_json(self) -> dict[str, Any]:
        """As JSON values, the form that travels between Prefect tasks."""
        return {**vars(self), "ref": self.ref.model_dump()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> StageOutcome:
        """What `to_json` gave."""
        return cls(**{**values, "ref": ArtifactRef.model_validate(values["ref"])})


class StageObserver(Protocol):
    """Is told what a stage does while `run_stage` waits for it. Calls come from the event loop and must be quick."""

    def on_key(self, key: str, description: dict[str, Any]) -> None:
        """The stage's key is known; nothing has been started."""

    def on_attempt(self, attempt: int, folder: Path, attached: bool) -> None:
        """Attempt number `attempt` is followed from now on; `attached` when somebody else had started it."""

    def on_event(self, event: dict[str, Any]) -> None:
        """The stage reported a line of `events.jsonl` (see `rlhf_core.events`)."""

    def on_log(self, text: str) -> None:
        """The worker printed `text` (whole lines, without the last newline)."""

    def on_warning(self, message: str) -> None:
        """The runtime has something to say: an attempt failed and another follows, an executor does not answer."""


class SilentObserver:
    """An observer that listens to nothing; also the base of those that care about a few of the calls."""

    def on_key(self, key: str, description: dict[str, Any]) -> None:
        """Ignored."""

    def on_attempt(self, attempt: int, folder: Path, attached: bool) -> None:
        """Ignored."""

    def on_event(self, event: dict[str, Any]) -> None:
        """Ignored."""

    def on_log(self, text: str) -> None:
        """Ignored."""

    def on_warning(self, message: str) -> None:
        """Ignored."""


class Together:
    """Several observers as one."""

    def __init__(self, *observers: StageObserver) -> None:
        self._observers = observers

    def on_key(self, key: str, description: dict[str, Any]) -> None:
        """Passed on."""
        for each in self._observers:
            each.on_key(key, description)

    def on_attempt(self, attempt: int, folder: Path, attached: bool) -> None:
        """Passed on."""
        for each in self._observers:
            each.on_attempt(attempt, folder, attached)

    def on_event(self, event: dict[str, Any]) -> None:
        """Passed on."""
        for each in self._observers:
            each.on_event(event)

    def on_log(self, text: str) -> None:
        """Passed on."""
        for each in self._observers:
            each.on_log(text)

    def on_warning(self, message: str) -> None:
        """Passed on."""
        for each in self._observers:
            each.on_warning(message)
