"""What there is to run stages on, now and ever: this machine, or the Ray cluster at an address, asked over HTTP."""

from __future__ import annotations

import logging
import os
from typing import Any

from flows.services.machine import gpu_count
from flows.services.run_processes import is_ours
from rlhf_core.cluster.capacity import Capacity, NodeKind, no_kind_was_named
from tasks.runtime.contract.config import ExecutorKind, RuntimeConfig
from tasks.runtime.contract.home import Home

_ASK_LIMIT_S = 10
_LOG = logging.getLogger("alignflow")


def capacity_of_machine() -> Capacity:
    """What a Ray started here has."""
    here = {"CPU": float(os.cpu_count() or 1), "GPU": float(gpu_count())}
    return Capacity((NodeKind(here),), name="this machine")


def capacity_of_cluster(address: str, home: Home) -> Capacity:
    """Of the cluster whose dashboard is at `address`: unbounded where it grows, or does not say.

    How far it grows is known on the cluster only, so a stage that asks for more than that is refused when it has started there.
    """
    if is_ours(home, address):
        return capacity_of_machine()  # a head of our own has what is here, and need not be asked, as it may be starting
    # Ray takes a while to import, and most runs ask nothing.
    from ray.job_submission import JobSubmissionClient
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException
    from requests import RequestException

    try:
        nodes: list[Any] = list_nodes(address, filters=[("state", "=", "ALIVE")], detail=True, timeout=_ASK_LIMIT_S)
        answer = JobSubmissionClient(address)._do_request("GET", "/api/cluster_status", timeout=_ASK_LIMIT_S).json()
    except (RequestException, RayStateApiException, ConnectionError, ValueError) as error:
        _LOG.warning("the cluster at %s does not say what it has, so nothing is refused beforehand: %s", address, error)
        return Capacity((), unbounded=True)
    kinds = ((answer["data"].get("clusterStatus") or {}).get("autoscalerReport") or {}).get("nodeTypeMapping") or {}
    return Capacity(tuple(NodeKind(node.resources_total) for node in nodes), unbounded=not no_kind_was_named(kinds))


def gpus_for_a_run(runtime: RuntimeConfig, home: Home) -> float:
    """How many GPUs the stages of one run may hold together.

    Without a Ray for all of them each stage starts one of its own, and two of these would give out the same GPU: one at a time.
    """
    if runtime.executor is not ExecutorKind.ray:
        return 0.0
    address = os.environ.get("RAY_ADDRESS")
    return (capacity_of_cluster(address, home) if address else capacity_of_machine()).most("GPU")
