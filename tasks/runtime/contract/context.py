"""What a stage is and what it is given. Nothing here knows Ray, Prefect, MLflow or torch.

A stage is a function of its inputs and its config, and of nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from data_processing.settings import Settings
from rlhf_core.cluster.resources import Resources, Waiting
from rlhf_core.events import EventLog
from rlhf_core.recipes.stop import stop_if_requested_while

ConfigT = TypeVar("ConfigT", bound=Settings)


class ArtifactRef(BaseModel):
    """All that travels between stages: where an artifact is, what it is, and who made it."""

    # Part of manifests, which are read by other versions than wrote them.
    model_config = ConfigDict(extra="ignore", frozen=True)

    kind: str
    key: str
    uri: str
    sha256: str
    producer: str


@dataclass(frozen=True)
class StageContext(Generic[ConfigT]):
    """What the runtime hands to a stage's `run`.

    `inputs` maps input names to artifact folders (read-only); `output` is an empty folder that becomes the artifact;
    `resume` outlives attempts and holds checkpoints; `events` is where the stage reports. A stage that reserves something waits
    for it at most `placement_timeout_s` seconds, and as long as it takes where that is None. Services may be asked on this machine
    and at `allowed_hosts`.
    """

    config: ConfigT
    inputs: Mapping[str, Path]
    refs: Mapping[str, ArtifactRef]
    output: Path
    resume: Path
    seed: int
    attempt: int
    events: EventLog
    placement_timeout_s: float | None = None
    allowed_hosts: tuple[str, ...] = ()

    @property
    def waiting(self) -> Waiting:
        """How the stage waits for what it reserves: told by its events, and ended with a `PreemptedError` when asked to stop."""
        stop = partial(stop_if_requested_while, self.resume, "it waited for its resources")
        return Waiting(self.placement_timeout_s, self.events.waiting, stop)


@dataclass(frozen=True)
class Input:
    """What a stage is made from: the result of another stage, in the role `role`.

    `default` is the entry taken where a pipeline names none. An `optional` input may be missing.
    """

    role: str
    default: str | None = None
    optional: bool = False


# The name of an input that stands for any number of inputs, under any names.
ANY = "*"


def _none(config: Any) -> Collection[str]:
    return ()


def _any(config: Any, inputs: Collection[str]) -> None:
    return None


def _nothing(config: Any) -> Resources:
    return Resources()


@dataclass(frozen=True)
class Stage(Generic[ConfigT]):
    """One kind of stage: its config model, its inputs by name, what it produces, and the function that does it.

    `kind` is where the store keeps what it makes, `role` what that is to other stages ("policy", "scorer", "data"; where it is
    not given, the kind). Of the optional inputs, a config `wants` those that it would use and `needs` those that it cannot do
    without; `check` raises `ConfigError` for a config that does not fit the names of its inputs. `schema_version` is raised when the meaning of the output changes. `libraries` are the distributions whose versions
    can change the result, `further_libraries` those that do so under a config. `resources` is what it reserves on the cluster under a config: runs are planned by it, wait by it, and
    are refused by it where there can never be so much. `fingerprint` describes what the stage reads from outside the store (files
    named in its config), as JSON; it enters the key. `modules` are those of the user's that the config names: their code is in the
    key, and travels.
    """

    name: str
    kind: str
    config: type[ConfigT]
    run: Callable[[StageContext[ConfigT]], None]
    inputs: Mapping[str, Input] = field(default_factory=dict)
    role: str = ""
    wants: Callable[[ConfigT], Collection[str]] = _none
    needs: Callable[[ConfigT], Collection[str]] = _none
    check: Callable[[ConfigT, Collection[str]], None] = _any
    resources: Callable[[ConfigT], Resources] = _nothing
    schema_version: int = 1
    libraries: tuple[str, ...] = ()
    further_libraries: Callable[[ConfigT], Collection[str]] = _none
    fingerprint: Callable[[ConfigT], Any] | None = None
    modules: Callable[[ConfigT], Collection[str]] = _none

    @property
    def makes(self) -> str:
        """The role of what it produces."""
        return self.role or self.kind
