"""Walking a graph: a node starts when its inputs are there, and as far as slots and memory allow. Knows no Prefect."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from flows.graph.limits import Limits
from flows.graph.nodes import Graph, Node

ResultT = TypeVar("ResultT")
StartNode = Callable[[Node, Mapping[str, ResultT]], Awaitable[ResultT]]
SayWait = Callable[[str, str], None]


@dataclass
class Walk(Generic[ResultT]):
    """What came of a graph: results and errors by node (errors in the order they happened), and what was never started."""

    results: dict[str, ResultT] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)
    not_started: list[str] = field(default_factory=list)


async def walk(
    graph: Graph, start: StartNode[ResultT], order: Sequence[str], limits: Limits, say_wait: SayWait = lambda name, what: None
) -> Walk[ResultT]:
    """Run every node, giving those early in `order` the first choice among what can start.

    `start` is given the results of the node's inputs by input name. A node that fails keeps back only what is made from
    it. `say_wait` is told of each node that has its inputs and does not fit beside what runs, and what it waits for.
    Cancelling cancels what runs, and returns when all of it has ended.
    """
    done: Walk[ResultT] = Walk()
    running: dict[asyncio.Task[ResultT], str] = {}
    waiting = list(order)
    said: dict[str, str] = {}
    try:
        while True:
            startable, held_back = _choose(graph, done, waiting, limits, list(running.values()))
            for name, what in held_back.items():
                if said.get(name) != what:
                    said[name] = what
                    say_wait(name, what)
            for name in startable:
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


def _choose(
    graph: Graph, done: Walk[ResultT], waiting: Sequence[str], limits: Limits, running: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """The nodes that start now, and of the others that have their inputs, what each waits for."""
    chosen: list[str] = []
    held_back: dict[str, str] = {}
    for name in waiting:
        if not all(made_by in done.results for made_by in graph[name].inputs.values()):
            continue
        if obstacle := limits.obstacle(name, [*running, *chosen]):
            held_back[name] = obstacle
        else:
            chosen.append(name)
    return chosen, held_back


def _settle(done: Walk[ResultT], name: str, task: asyncio.Task[ResultT]) -> None:
    error = task.exception()
    if error is None:
        done.results[name] = task.result()
    elif isinstance(error, Exception):
        done.errors[name] = error
    else:
        raise error
