"""The nodes of a run: what each is made from, and in which order they can run. Nothing is started here.

How the entries of a pipeline become nodes is in `flows.graph.build`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from data_processing.settings import Settings


@dataclass(frozen=True)
class Node:
    """One stage in its place: its settings, its seed, and for each of the stage's inputs the node that makes it.

    `entry` is the entry of the pipeline that it runs; None for what follows an entry by itself (convert, evaluate, compare).
    """

    name: str
    stage: str
    settings: Settings
    inputs: Mapping[str, str]
    seed: int
    entry: str | None = None


Graph = Mapping[str, Node]


def nodes_called(graph: Graph, name: str) -> list[str]:
    """The nodes that a user means by `name`: the node of that name, else all of that entry, else all of that stage."""
    for names in ([n.name for n in graph.values()], [n.entry for n in graph.values()], [n.stage for n in graph.values()]):
        if found := [node for node, called in zip(graph, names, strict=True) if called == name]:
            return found
    return []


def ancestors(graph: Graph, names: Iterable[str]) -> set[str]:
    """All nodes that `names` are made from, directly or not; without `names` themselves unless one leads to another."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        for name in graph[waiting.pop()].inputs.values():
            if name not in found:
                found.add(name)
                waiting.append(name)
    return found


def longest_path_first(graph: Graph, seconds: Mapping[str, float]) -> list[str]:
    """Node names, those with the most work behind them first: when there is a choice, this is the order to start in."""
    left: dict[str, float] = {}
    users = _users(graph)
    for name in reversed(list(graph)):
        left[name] = seconds.get(name, 0.0) + max((left[user] for user in users[name]), default=0.0)
    return sorted(graph, key=lambda name: -left[name])


def _users(graph: Graph) -> Mapping[str, Sequence[str]]:
    """For each node, the nodes that are made from it."""
    users: dict[str, list[str]] = defaultdict(list)
    for node in graph.values():
        for made_by in dict.fromkeys(node.inputs.values()):
            users[made_by].append(node.name)
    return users
