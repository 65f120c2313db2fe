"""Walking a graph: a node starts when its inputs are there, and as far as slots and memory allow. Knows no Prefect."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from flows.graph.nodes import Graph, Node

ResultT = TypeVar("ResultT")
StartNode = Callable[[Node, Mapping[str, ResultT]], Awaitable[ResultT]]


@dataclass(frozen=True)
class Limits:
    """How much may run at once: `stages` that have work to do, and `memory_gib` for their estimated needs.

    `needs_gib` has an entry for each node with work to do; the others, cached ones, always fit. A stage that is larger
    than everything there is still runs, alone.
    """

    stages: int
    memory_gib: float
    needs_gib: Mapping[str, float]

    def fits(self, name: str, running: Sequence[str]) -> bool:
        """Whether `name` may start beside `running`."""
        working = [other for other in running if other in self.needs_gib]
        if name not in self.needs_gib or not working:
            return True
        total = sum(self.needs_gib[other] for other in [*working, name])
        return len(working) < self.stages and total <= self.memory_gib


@dataclass
class Walk(Generic[ResultT]):
    """What came of a graph: results and errors by node (errors in the order they happened), and what was never started."""

    results: dict[str, ResultT] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)
    not_started: list[str] = field(default_factory=list)


async def walk(graph: Graph, start: StartNode[ResultT], order: Sequence[str], limits: Limits) -> Walk[ResultT]:
    """Run every node, giving those early in `order` the first choice among what can start.

    `start` is given the results of the node's inputs by input name. A node that fails keeps back only what is made from
    it. Cancelling cancels what runs, and returns when all of it has ended.
    """
    done: Walk[ResultT] = Walk()
    running: dict[asyncio.Task[ResultT], str] = {}
    waiting = list(order)
    try:
        while True:
            for name in _startable(graph, done, waiting, limits, list(running.values())):
                waiting.remove(name)
                inputs = {key: done.results[made_by] for key, made_by in graph[name].inputs.items()}
                running[asyncio.ensure_future(start(graph[name], inputs))] = name
            if not running:
                break
            ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                _settle(done, running.pop(task), task)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    done.not_started = waiting
    return done


def _startable(graph: Graph, done: Walk[ResultT], waiting: Sequence[str], limits: Limits, running: Sequence[str]) -> list[str]:
    chosen: list[str] = []
    for name in waiting:
        ready = all(made_by in done.results for made_by in graph[name].inputs.values())
        if ready and limits.fits(name, [*running, *chosen]):
            chosen.append(name)
    return chosen


def _settle(done: Walk[ResultT], name: str, task: asyncio.Task[ResultT]) -> None:
    error = task.exception()
    if error is None:
        done.results[name] = task.result()
    elif isinstance(error, Exception):
        done.errors[name] = error
    else:
        raise error
