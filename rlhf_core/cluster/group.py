"""Groups of Ray actors driven by one controller, and waiting for them so that the first failure ends the wait."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError as RayOutOfMemoryError
from ray.exceptions import RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from data_processing.errors import AlignflowError, OutOfMemoryError
from rlhf_core.cluster.resources import Bundle

# How soon a wait notices that it should end.
POLL_S = 0.5


class ActorFailedError(RuntimeError):
    """An actor died or raised; the message says which one and carries its traceback."""


@dataclass(frozen=True)
class ActorSpec:
    """One kind of worker: `cls` is a plain class, started once a rank with all of bundle `first_bundle + rank`."""

    role: str
    cls: type
    bundles: Sequence[Bundle]
    first_bundle: int
    threads: int


@dataclass(frozen=True)
class Call:
    """A method call that one rank of a group is working on."""

    label: str
    ref: Any


class Group:
    """The ranks of one worker. Methods are called on all ranks; a call returns at once, `wait` gives the results."""

    def __init__(self, spec: ActorSpec, placement: PlacementGroup) -> None:
        self._role = spec.role
        remote = ray.remote(spec.cls)
        self._actors = [
            remote.options(
                num_cpus=bundle.cpus,
                num_gpus=bundle.gpus,
                memory=bundle.to_ray().get("memory"),
                scheduling_strategy=PlacementGroupSchedulingStrategy(placement, spec.first_bundle + rank),
                runtime_env={"env_vars": {"OMP_NUM_THREADS": str(spec.threads)}},
            ).remote()
            for rank, bundle in enumerate(spec.bundles)
        ]

    @property
    def handles(self) -> list[Any]:
        """The actors, for others that call them."""
        return list(self._actors)

    def call(self, method: str, *args: Any) -> list[Call]:
        """Start `method(*args)` on every rank."""
        return [
            Call(f"{self._role} (rank {rank}) in {method}", getattr(actor, method).remote(*args))
            for rank, actor in enumerate(self._actors)
        ]

    def join(self, address: tuple[str, int]) -> list[Call]:
        """Tell every rank its number and where rank 0 listens; before the engines start."""
        return [
            Call(f"{self._role} (rank {rank}) in join", actor.join.remote(rank, len(self._actors), address))
            for rank, actor in enumerate(self._actors)
        ]

    def kill(self) -> None:
        """End the actors at once."""
        for actor in self._actors:
            ray.kill(actor)


def wait(
    *groups: Sequence[Call], timeout_s: float, beside: Sequence[Call] = (), meanwhile: Callable[[], None] | None = None
) -> list[list[Any]]:
    """Results of the calls, a list a group, in order. The first failure raises at once, however long the others would take.

    `beside` are calls that need not end here, but whose failure ends the wait like that of the others. `meanwhile` is called
    every `POLL_S` seconds; what it raises ends the wait too, and the calls go on unheard.

    Alignflow's own errors keep their class (and so their exit code); others become `ActorFailedError` with the actor's
    traceback. `timeout_s` without a result of any call raises `ActorFailedError` too, naming the calls still open.
    """
    labels = {call.ref: call.label for calls in (*groups, beside) for call in calls}
    wanted = {call.ref for calls in groups for call in calls}
    open_refs = list(labels)
    results: dict[Any, Any] = {}
    while wanted - results.keys():
        done, open_refs = _first_done(open_refs, timeout_s, meanwhile)
        if not done:
            raise ActorFailedError(f"no answer within {timeout_s:g} s from {', '.join(labels[ref] for ref in open_refs)}")
        results[done[0]] = _result(done[0], labels[done[0]])
    return [[results[call.ref] for call in calls] for calls in groups]


def are_done(calls: Sequence[Call]) -> bool:
    """Whether all calls have ended, in whatever way."""
    done, _ = ray.wait([call.ref for call in calls], num_returns=len(calls), timeout=0)
    return len(done) == len(calls)


def _first_done(refs: list[Any], timeout_s: float, meanwhile: Callable[[], None] | None) -> tuple[list[Any], list[Any]]:
    """The first of `refs` to end and the others; none of them after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while (left_s := deadline - time.monotonic()) > 0:
        done, others = ray.wait(refs, timeout=min(POLL_S, left_s) if meanwhile else left_s)
        if done:
            return done, others
        if meanwhile:
            meanwhile()
    return [], refs


def _result(ref: Any, label: str) -> Any:
    """What a finished call returned; raises what went wrong with it."""
    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, AlignflowError):
            raise type(error.cause)(f"{label}: {error.cause}") from error
        if isinstance(error.cause, MemoryError):
            raise OutOfMemoryError(f"{label}: out of memory: {error.cause}; {_LESS_MEMORY}") from error
        raise ActorFailedError(f"{label} failed:\n{_plain(error)}") from error
    except RayOutOfMemoryError as error:
        raise OutOfMemoryError(f"{label}: {error}; {_LESS_MEMORY}") from error
    except RayActorError as error:
        raise ActorFailedError(f"{label}: the actor died: {_plain(error)}") from error


def _plain(error: Exception) -> str:
    """The error's text without the terminal colours that Ray puts in."""
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error))


_LESS_MEMORY = "lower engine.micro_batch_tokens, rollout.kv_cache_mib or engine.world_size, or set engine.gradient_checkpointing"
