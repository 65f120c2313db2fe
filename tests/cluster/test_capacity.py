"""What can never be there is refused with the reason, and nothing else is."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_core.cluster.capacity import Capacity, NodeKind
from rlhf_core.cluster.resources import Bundle, Resources, ranks

GPU_SHARES = [0.0, 0.25, 0.4, 0.5, 0.6, 1.0, 2.0]
nodes = st.builds(lambda cpus, gpus: {"CPU": float(cpus), "GPU": float(gpus)}, st.integers(0, 6), st.integers(0, 4))
bundles = st.builds(Bundle, st.sampled_from([0.2, 1.0, 2.0]), st.sampled_from(GPU_SHARES))


def _fits(nodes: list[dict[str, float]], bundle: Bundle, count: int) -> bool:
    """Whether `count` of them can be placed, one after the other, GPU by GPU."""
    for node in nodes:
        cpus, gpus = node["CPU"], [1.0] * int(node["GPU"])
        while count and cpus > bundle.cpus - 1e-6:
            if bundle.gpus >= 1:
                free = [i for i, share in enumerate(gpus) if share == 1.0][: int(bundle.gpus)]
                if len(free) < bundle.gpus:
                    break
                gpus = [0.0 if i in free else share for i, share in enumerate(gpus)]
            elif bundle.gpus:
                place = next((i for i, share in enumerate(gpus) if share > bundle.gpus - 1e-6), None)
                if place is None:
                    break
                gpus[place] -= bundle.gpus
            cpus, count = cpus - bundle.cpus, count - 1
    return count == 0


@given(st.lists(nodes, min_size=1, max_size=4), bundles, st.integers(1, 8))
def test_of_like_bundles_exactly_those_are_refused_that_cannot_be_placed(
    cluster: list[dict[str, float]], bundle: Bundle, count: int
) -> None:
    refusal = Capacity(tuple(map(NodeKind, cluster))).refusal(Resources((bundle,) * count))
    assert (refusal is None) == _fits(cluster, bundle, count), refusal


@given(st.lists(nodes, min_size=1, max_size=4), st.integers(0, 2**16))
def test_what_lies_on_the_nodes_already_is_never_refused(cluster: list[dict[str, float]], seed: int) -> None:
    """One bundle a node, as large as the node, or parts of it: whatever it is, it fits."""
    parts = [Bundle(node["CPU"] / (1 + seed % 3), node["GPU"]) for node in cluster if node["CPU"]]
    assert Capacity(tuple(map(NodeKind, cluster))).refusal(Resources(tuple(parts))) is None


def test_the_refusal_says_what_was_asked_what_there_is_and_what_to_do() -> None:
    capacity = Capacity((NodeKind({"CPU": 8.0, "GPU": 1.0}),), name="this machine")
    assert capacity.refusal(ranks(4, gpus=1.0, settings="engine.world_size and engine.gpus_per_rank")) == (
        "needs 4 x (1 CPU and 1 GPU), and this machine never has more than 1 GPU; lower engine.world_size and "
        "engine.gpus_per_rank (0 computes on the CPU), or add machines"
    )


def test_enough_in_all_is_not_enough_on_any_node() -> None:
    four_small = Capacity((NodeKind({"CPU": 2.0, "memory": 8.0 * 2**30}),) * 4)
    refusal = four_small.refusal(Resources((Bundle(cpus=4.0, memory_gib=8.0),)))
    assert refusal is not None and "the cluster has nodes for 0 of them at most" in refusal


def test_what_an_autoscaler_can_add_counts() -> None:
    head, worker = NodeKind({"CPU": 2.0}), {"CPU": 8.0, "GPU": 1.0}
    assert Capacity((head,)).refusal(ranks(4, gpus=1.0)) is not None
    assert Capacity((head,), (head, NodeKind(worker, 4))).refusal(ranks(4, gpus=1.0)) is None
    assert Capacity((head,), (head, NodeKind(worker, 3))).refusal(ranks(4, gpus=1.0)) is not None
    assert Capacity((head,), (head, NodeKind(worker, 4)), {"GPU": 3.0}).refusal(ranks(4, gpus=1.0)) is not None
    assert Capacity((head,), (head, NodeKind(worker, math.inf))).refusal(ranks(999, gpus=1.0)) is None
    assert Capacity((), unbounded=True).refusal(ranks(999, gpus=1.0)) is None


@pytest.mark.parametrize("later", [(), (NodeKind({"CPU": 1.0}, math.inf),)])
def test_infinitely_many_nodes_without_a_gpu_have_none(later: tuple[NodeKind, ...]) -> None:
    assert Capacity((NodeKind({"CPU": 1.0}),), later).most("GPU") == 0
