"""What the Ray cluster that this process is connected to has, and how far its autoscaler says that it can grow."""

from __future__ import annotations

import json
import math

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get

from rlhf_core.cluster.capacity import Capacity, NodeKind, no_kind_was_named

_HEAD = "node:__internal_head__"


def capacity() -> Capacity:
    """Its nodes and, where an autoscaler has told its configuration, the most that it can add.

    Unbounded where an autoscaler is at work that has told nothing (as in Ray 2.60), and as long as it is not known whether one is.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    now = tuple(NodeKind(resources) for resources in nodes)
    config = ray._private.state.state.get_cluster_config()
    if not config or not config.node_group_configs:
        return Capacity(now, unbounded=not _is_fixed())
    # The head is there whatever the autoscaler does, and is none of the nodes that it adds.
    heads = tuple(NodeKind(resources) for resources in nodes if _HEAD in resources)
    groups = tuple(
        NodeKind(dict(group.resources), math.inf if group.max_count == -1 else group.max_count)
        for group in config.node_group_configs
    )
    return Capacity(now, (*heads, *groups), dict(config.max_resources))


def _is_fixed() -> bool:
    if is_autoscaler_v2(fetch_from_server=True):
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        nodes = [*status.active_nodes, *status.idle_nodes]
        return no_kind_was_named({node.node_id: node.ray_node_type_name for node in nodes})
    report = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}").get("autoscaler_report") or {}
    return no_kind_was_named(report.get("node_type_mapping") or {})
