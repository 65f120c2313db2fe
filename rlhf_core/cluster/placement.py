"""Connecting to Ray and reserving room for actors: all of it at once, after a wait that is told, or a clear error."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from data_processing.errors import ConfigError
from rlhf_core.cluster.machine_gpus import gpus_of_this_machine
from rlhf_core.cluster.ray_capacity import capacity
from rlhf_core.cluster.resources import Resources, Waiting, in_words

Strategy = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]

# How often a wait looks around it, and says what it waits for. The first time is soon: most have to wait for nothing.
_LOOK_EVERY_S = 1
_SAY_EVERY_S = 10.0


@contextmanager
def connected() -> Iterator[None]:
    """Inside, this process is connected to the Ray cluster at `RAY_ADDRESS`, or to one started here for the while.

    A connection that exists already is used and left as it is.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS") or "local"
    on_sigterm = signal.getsignal(signal.SIGTERM)
    ray.init(address=address, include_dashboard=False if address == "local" else None, log_to_driver=False)
    if callable(on_sigterm):
        # Ray exits when it is asked to stop; whoever has something to save first has said so before.
        signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def reserved(resources: Resources, waiting: Waiting) -> Iterator[PlacementGroup]:
    """Inside, all bundles are this process's, for actors to run on, bundle by bundle. Raises what `reserve` does."""
    with connected():
        group = reserve(resources, waiting)
        try:
            with _kept_from_other_rays(resources, waiting):
                yield group
        finally:
            remove_placement_group(group)


def _kept_from_other_rays(resources: Resources, waiting: Waiting) -> AbstractContextManager[None]:
    """Where this Ray is one machine, another Ray on it gives out the same GPUs; of a larger one each machine is its alone."""
    hosts = [node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]]
    if not resources.gpus or hosts != [socket.gethostname()]:
        return nullcontext()
    return gpus_of_this_machine(ray._private.worker.global_worker.node.session_name, waiting)


def reserve(resources: Resources, waiting: Waiting, strategy: Strategy = "PACK") -> PlacementGroup:
    """Reserve all bundles in one go: Ray gives all of a group or none of it, so whoever waits here holds nothing.

    Raises `ConfigError` for more than the cluster can ever have, as soon as that is known, and for what is not free after
    `waiting.limit_s`.
    """
    group = placement_group([bundle.to_ray() for bundle in resources.bundles], strategy=strategy)
    try:
        _wait_until_placed(group, resources, waiting)
    except BaseException:
        remove_placement_group(group)
        raise
    return group


def _wait_until_placed(group: PlacementGroup, resources: Resources, waiting: Waiting) -> None:
    began = time.monotonic()
    say_at, may_come = began, False
    while not group.wait(timeout_seconds=_LOOK_EVERY_S):
        waiting.meanwhile()
        # Asked until it is known: a cluster that is just starting does not tell at once how far it goes.
        may_come = may_come or _may_come(resources)
        now = time.monotonic()
        if waiting.limit_s is not None and now - began >= waiting.limit_s:
            has, free = (_shown(amounts, resources) for amounts in (ray.cluster_resources(), ray.available_resources()))
            raise ConfigError(
                f"needs {resources}, which was not free within {waiting.limit_s:g} s (runtime.placement_timeout_s): the cluster "
                f"has {has}, free now {free}; raise that limit, take it away (null) to wait until there is room, or lower "
                f"{resources.settings or 'what the stage asks for'}"
            )
        if now >= say_at:
            say_at = now + _SAY_EVERY_S
            waiting.say(what_is_missing(resources.to_ray(), ray.available_resources()))


def _may_come(resources: Resources) -> bool:
    """Whether the cluster is known to have, or to be able to grow to, that much; raises `ConfigError` where it never will."""
    most = capacity()
    if refusal := most.refusal(resources):
        raise ConfigError(refusal)
    return not most.unbounded


def what_is_missing(wanted: dict[str, float], free: dict[str, float]) -> str:
    """`waiting for 2 GPUs, 1 free`: of what there is too little, else of all, since it is there and not on the right nodes."""
    short = {name: amount for name, amount in wanted.items() if free.get(name, 0.0) < amount} or wanted
    return "waiting for " + " and ".join(
        f"{in_words(name, amount)}, {in_words(name, free.get(name, 0.0)).split(' ', 1)[0]} free" for name, amount in short.items()
    )


def _shown(amounts: dict[str, float], wanted: Resources) -> str:
    return " and ".join(in_words(name, amounts.get(name, 0.0)) for name in wanted.to_ray())
