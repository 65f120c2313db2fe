"""Walking a graph: inputs first, within limits, failures kept to their own branch, cancellation to the last node."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.graph.limits import Limits
from flows.graph.nodes import Graph, Node
from flows.graph.walk import Walk, walk
from rlhf_core.settings.models import BaseModelConfig


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    names = [f"n{i}" for i in range(draw(st.integers(1, 9)))]
    nodes = {}
    for index, name in enumerate(names):
        parents = draw(st.sets(st.sampled_from(names[:index]), max_size=3)) if index else set()
        nodes[name] = Node(name, "stage", BaseModelConfig(), {f"i{p}": p for p in sorted(parents)}, 0)
    return nodes


def _walk(graph: Graph, limits: Limits, failing: set[str] = frozenset()) -> tuple[Walk[str], list[set[str]]]:  # type: ignore[assignment]
    """Run a graph whose nodes return their own name; also what ran side by side at each start."""
    running: set[str] = set()
    moments: list[set[str]] = []

    async def start(node: Node, inputs: Mapping[str, str]) -> str:
        assert dict(inputs) == dict(node.inputs)
        running.add(node.name)
        moments.append(set(running))
        try:
            await asyncio.sleep(0)
            if node.name in failing:
                raise ValueError(node.name)
        finally:
            running.discard(node.name)
        return node.name

    return asyncio.run(walk(graph, start, list(graph), limits)), moments


@settings(max_examples=60, deadline=None)
@given(graphs(), st.integers(1, 3), st.floats(0.5, 8), st.floats(0, 3), st.data())
def test_limits_hold_at_every_moment_and_everything_runs(
    graph: Graph, stages: int, memory: float, gpus: float, data: st.DataObject
) -> None:
    needs = data.draw(st.dictionaries(st.sampled_from(sorted(graph)), st.floats(0.1, 10), max_size=len(graph)))
    on_gpus = data.draw(st.dictionaries(st.sampled_from(sorted(needs)), st.floats(0.1, 2))) if needs else {}
    done, moments = _walk(graph, Limits(stages, memory, needs, gpus, on_gpus))
    assert set(done.results) == set(graph)
    for moment in moments:
        working = [name for name in moment if name in needs]
        holders = [name for name in working if name in on_gpus]
        assert len(working) <= stages
        assert len(working) <= 1 or sum(needs[name] for name in working) <= memory
        assert len(holders) <= 1 or sum(on_gpus[name] for name in holders) <= gpus + 1e-6


@settings(max_examples=60, deadline=None)
@given(graphs(), st.data())
def test_a_failure_keeps_back_what_is_made_from_it_and_nothing_else(graph: Graph, data: st.DataObject) -> None:
    failing = data.draw(st.sets(st.sampled_from(sorted(graph))))
    done, _ = _walk(graph, Limits(2, 1e9, dict.fromkeys(graph, 1.0)), failing)
    lost: set[str] = set()
    for name, node in graph.items():
        if name in failing or lost & set(node.inputs.values()):
            lost.add(name)
    assert set(done.results) == set(graph) - lost
    assert set(done.errors) | set(done.not_started) == lost
    assert set(done.errors) <= failing


def test_of_two_that_could_start_the_first_in_the_order_does() -> None:
    graph = {name: Node(name, "stage", BaseModelConfig(), {}, 0) for name in ("a", "b", "c")}
    started = []

    async def start(node: Node, _: Mapping[str, None]) -> None:
        started.append(node.name)

    asyncio.run(walk(graph, start, ["c", "a", "b"], Limits(1, 10, dict.fromkeys(graph, 1.0))))
    assert started == ["c", "a", "b"]


def test_cached_nodes_take_no_slot() -> None:
    graph = {name: Node(name, "stage", BaseModelConfig(), {}, 0) for name in ("works", "cached1", "cached2")}
    _, moments = _walk(graph, Limits(1, 1.0, {"works": 5.0}))
    assert set(graph) in moments


def test_a_node_that_is_held_back_says_once_what_it_waits_for() -> None:
    graph = {name: Node(name, "stage", BaseModelConfig(), {}, 0) for name in ("a", "b", "c", "d")}
    limits = Limits(3, 10.0, {"a": 1.0, "b": 1.0, "c": 9.5, "d": 1.0}, 1.0, {"a": 1.0, "b": 0.5})
    said = []

    async def start(node: Node, _: Mapping[str, None]) -> None:
        await asyncio.sleep({"a": 0.2}.get(node.name, 0.05))

    asyncio.run(walk(graph, start, list(graph), limits, lambda name, what: said.append((name, what))))
    assert said == [
        ("b", "waiting for 0.5 GPU, which other stages of this run hold"),
        ("c", "waiting for 9.5 GiB of memory"),
    ]


def test_a_place_that_is_waited_for_is_said() -> None:
    limits = Limits(1, 10.0, {"a": 1.0, "b": 1.0})
    assert limits.obstacle("b", ["a"]) == "waiting for one of 1 places (runtime.max_parallel_stages)"
    assert limits.obstacle("b", []) is None
    assert Limits(2, 2.0, {"a": 1.0, "b": 1.0}).obstacle("b", ["a"]) is None, "all there is may be taken"
    assert limits.obstacle("cached", ["a"]) is None


def test_cancelling_ends_every_running_node_before_it_returns() -> None:
    graph = {name: Node(name, "stage", BaseModelConfig(), {}, 0) for name in ("a", "b")}
    ended = []

    async def start(node: Node, _: Mapping[str, None]) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            ended.append(node.name)

    async def cancelled() -> None:
        walking = asyncio.ensure_future(walk(graph, start, ["a", "b"], Limits(2, 10, dict.fromkeys(graph, 1.0))))
        await asyncio.sleep(0.05)
        walking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await walking
        assert sorted(ended) == ["a", "b"]

    asyncio.run(cancelled())
