"""Which part of the graph a run touches: `--from`, `--until`, `--force`. Names may be entries, stages or nodes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from data_processing.errors import ConfigError
from data_processing.wording import did_you_mean
from flows.graph.nodes import Graph, ancestors, nodes_called


@dataclass(frozen=True)
class Selection:
    """`graph`: the nodes of the run, in order; `given`: those of them that must be cached already; `forced`: recomputed."""

    graph: Graph
    given: frozenset[str]
    forced: frozenset[str]


def select(graph: Graph, from_stage: str | None = None, until_stage: str | None = None, force: Iterable[str] = ()) -> Selection:
    """The part of `graph` that a run touches.

    `until_stage` keeps that stage and what it is made from. What `from_stage` is made from must be cached and is never
    recomputed. `force` recomputes although a result is there. Raises `ConfigError` for unknown names and for
    combinations in which an option could not do anything.
    """
    kept = _until(graph, until_stage)
    given: set[str] = set()
    if from_stage:
        first = find_nodes(kept, from_stage, f"--from {from_stage}", full=graph)
        given = ancestors(kept, first) - set(first)
    forced: set[str] = set()
    for name in force:
        forced |= set(find_nodes(kept, name, f"--force {name}", full=graph))
    if blocked := sorted(forced & given):
        raise ConfigError(
            f"--force {', '.join(blocked)}: comes before --from {from_stage}, which only uses what is cached; drop one of them"
        )
    return Selection(kept, frozenset(given), frozenset(forced))


def find_nodes(graph: Graph, name: str, option: str, full: Graph | None = None) -> list[str]:
    """Nodes called `name` or of the stage `name`; `ConfigError` with a suggestion where there is none."""
    if found := nodes_called(graph, name):
        return found
    if full and nodes_called(full, name):
        raise ConfigError(f"{option}: '{name}' comes after --until and does not run; it runs with a later --until, or without")
    known = list(dict.fromkeys(part for node in graph.values() for part in (node.entry, node.stage, node.name) if part))
    raise ConfigError(
        f"{option}: this run has no entry or stage '{name}'; {did_you_mean(name, known)}allowed are {', '.join(known)}"
    )


def _until(graph: Graph, until_stage: str | None) -> Graph:
    if not until_stage:
        return graph
    last = find_nodes(graph, until_stage, f"--until {until_stage}")
    kept = ancestors(graph, last) | set(last)
    return {name: node for name, node in graph.items() if name in kept}
