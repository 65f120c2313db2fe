"""Connecting to Ray and reserving room for actors: all of it or a clear error, within a deadline."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from data_processing.errors import ConfigError

Strategy = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]


@contextmanager
def connected() -> Iterator[None]:
    """Inside, this process is connected to the Ray cluster at `RAY_ADDRESS`, or to one started here for the while.

    A connection that exists already is used and left as it is.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS") or "local"
    ray.init(address=address, include_dashboard=False if address == "local" else None, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def reserve(bundles: Sequence[dict[str, float]], timeout_s: float, strategy: Strategy = "PACK") -> PlacementGroup:
    """Reserve all bundles (resource name → amount) at once.

    Raises `ConfigError` with what was asked for and what the cluster has, where they are not free within `timeout_s`.
    """
    group = placement_group([dict(bundle) for bundle in bundles], strategy=strategy)
    if group.wait(timeout_seconds=timeout_s):
        return group
    remove_placement_group(group)
    asked = {name: round(sum(b.get(name, 0.0) for b in bundles), 3) for name in sorted({n for b in bundles for n in b})}
    raise ConfigError(
        f"no room for {len(bundles)} actors within {timeout_s:g} s: asked for {asked} in all (bundles {list(bundles)}); "
        f"the cluster has {_shown(ray.cluster_resources())}, free now {_shown(ray.available_resources())}; "
        "lower engine.world_size or engine.gpus_per_rank, wait for other stages, or add machines"
    )


def _shown(resources: dict[str, float]) -> dict[str, float]:
    return {name: amount for name, amount in sorted(resources.items()) if name in ("CPU", "GPU")}
