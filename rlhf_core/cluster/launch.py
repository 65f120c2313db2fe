"""Running one function on every rank of a training run: in this process, or as Ray actors in one placement group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from rlhf_core.cluster.resources import Resources, Waiting

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")

# A run has no length known in advance; whether it is stuck is judged by its events, by whoever started it.
NO_LIMIT_S = 10 * 365 * 86400.0

# For processes to start where they have their place: they import torch, from a slow disk maybe.
START_LIMIT_S = 300.0

NOBODY_LISTENS = Waiting()


def launch(
    function: Callable[[JobT], ResultT], job: JobT, *, resources: Resources, threads: int, waiting: Waiting = NOBODY_LISTENS
) -> ResultT:
    """Run `function(job)` on one rank a bundle of `resources`, all at once, and return rank 0's result.

    Without bundles it runs in this process. Otherwise ranks are Ray actors with `threads` OpenMP threads each, at `RAY_ADDRESS` or
    on a Ray started for the while; each sees the GPUs that Ray gave it and no others. Raises what `reserve` does while there
    is no room. The first rank that fails ends the others, and its error is raised: ours with their class, others with the
    rank's traceback.
    """
    if not resources.bundles:
        return _run(function, job, threads)
    from rlhf_core.cluster.group import ActorSpec, Group, wait
    from rlhf_core.cluster.placement import reserved

    with reserved(resources, waiting) as placement:
        group = Group(ActorSpec("training", _Rank, resources.bundles, 0, threads), placement)
        try:
            [[address, *_]] = wait(group.call("address"), timeout_s=START_LIMIT_S)
            wait(group.join(address), timeout_s=START_LIMIT_S)
            [results] = wait(group.call("run", function, job, threads), timeout_s=NO_LIMIT_S)
            result: ResultT = results[0]
            return result
        finally:
            group.kill()


def _run(function: Callable[[JobT], ResultT], job: JobT, threads: int) -> ResultT:
    import torch

    torch.set_num_threads(threads)
    return function(job)


class _Rank:
    """One process of the run."""

    def address(self) -> tuple[str, int]:
        from rlhf_core.engine.distributed import free_address

        return free_address()

    def join(self, rank: int, world_size: int, address: tuple[str, int]) -> None:
        from rlhf_core.engine.distributed import set_rank_environment

        set_rank_environment(rank, world_size, address)

    def run(self, function: Callable[[Any], Any], job: Any, threads: int) -> Any:
        return _run(function, job, threads)
