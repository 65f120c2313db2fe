"""What a stage is and what it is given. Nothing here knows Ray, Prefect, MLflow or torch.

A stage is a function of its inputs and its config, and of nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from data_processing.settings import Settings
from rlhf_core.events import EventLog

ConfigT = TypeVar("ConfigT", bound=Settings)


class ArtifactRef(BaseModel):
    """All that travels between stages: where an artifact is, what it is, and who made it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    key: str
    uri: str
    sha256: str
    producer: str


@dataclass(frozen=True)
class StageContext(Generic[ConfigT]):
    """What the runtime hands to a stage's `run`.

    `inputs` maps input names to artifact folders (read-only); `output` is an empty folder that becomes the artifact;
    `resume` outlives attempts and holds checkpoints; `events` is where the stage reports.
    """

    config: ConfigT
    inputs: Mapping[str, Path]
    refs: Mapping[str, ArtifactRef]
    output: Path
    resume: Path
    seed: int
    attempt: int
    events: EventLog


@dataclass(frozen=True)
class Stage(Generic[ConfigT]):
    """One kind of stage: its config model, the names of its inputs, what it produces, and the function that does it.

    `inputs` ending in "?" are optional. `schema_version` is raised when the meaning of the output changes.
    `libraries` are the distributions whose versions can change the result. `fingerprint` describes what the stage
    reads from outside the store (files named in its config), as JSON; it enters the key.
    """

    name: str
    kind: str
    config: type[ConfigT]
    inputs: tuple[str, ...]
    run: Callable[[StageContext[ConfigT]], None]
    schema_version: int = 1
    libraries: tuple[str, ...] = ()
    fingerprint: Callable[[ConfigT], Any] | None = None
