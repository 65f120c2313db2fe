"""The code that a run runs, and the libraries and processors it meets: those of the cluster where stages run on other machines."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from flows.graph.nodes import Graph
from flows.running.check_servers import check_ray
from flows.services.run_processes import is_ours
from flows.settings.config import PipelineConfig
from rlhf_core.precision import Native, native_dtype
from tasks.runtime.contract.config import ExecutorKind, ShipCode
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.registry import load_stage, module_of
from tasks.runtime.keys.closure import Code
from tasks.runtime.keys.snapshot import take_snapshot

if TYPE_CHECKING:
    from tasks.runtime.execution.ray_jobs import RayJobsExecutor


def live_code(config: PipelineConfig, home: Home) -> Code:
    """The checkout as it is now, for looking at what would run."""
    return Code(libraries=_libraries_there(config, home), parsed=home.parsed_code)


def frozen_code(config: PipelineConfig, graph: Graph, home: Home) -> Code:
    """A snapshot of the code that the nodes of `graph` run; raises what `take_snapshot` and `load_stage` do."""
    stages = ((node, load_stage(node.stage)) for node in graph.values())
    modules = {module for node, stage in stages for module in (module_of(node.stage)[0], *stage.modules(node.settings))}
    return Code(take_snapshot(home.code, modules), _libraries_there(config, home), home.parsed_code)


def native_there(config: PipelineConfig, home: Home) -> Native:
    """Which precision is computed natively where stages run."""
    if (cluster := _other_cluster(config, home)) is None:
        return native_dtype
    from tasks.runtime.execution.cluster_facts import facts_of

    return facts_of(cluster, home).native_dtype


def _libraries_there(config: PipelineConfig, home: Home) -> Mapping[str, str] | None:
    """Versions by distribution where stages run; None where that is this interpreter's environment."""
    if (cluster := _other_cluster(config, home)) is None:
        return None
    from tasks.runtime.execution.cluster_facts import facts_of

    return facts_of(cluster, home).libraries


def _other_cluster(config: PipelineConfig, home: Home) -> RayJobsExecutor | None:
    """The Ray that the user points at, where it runs stages with an interpreter of its own."""
    settings, address = config.runtime, os.environ.get("RAY_ADDRESS")
    if settings.executor is not ExecutorKind.ray or not address or settings.ship_code is ShipCode.never:
        return None
    if settings.ship_code is ShipCode.auto and is_ours(home, address):
        return None  # a head of our own; Ray's client takes a while to load
    check_ray()
    from tasks.runtime.execution.ray_jobs import RayJobsExecutor

    cluster = RayJobsExecutor(address, settings)
    return cluster if cluster.ships_code() else None
