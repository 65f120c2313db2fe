"""Running one function on every rank of a training run: in this process, or as Ray actors in one placement group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")

# A run has no length known in advance; whether it is stuck is judged by its events, by whoever started it.
NO_LIMIT_S = 10 * 365 * 86400.0


def launch(
    function: Callable[[JobT], ResultT], job: JobT, *, world_size: int, gpus_per_rank: float, threads: int, timeout_s: float
) -> ResultT:
    """Run `function(job)` on `world_size` ranks at once and return rank 0's result.

    One rank without a GPU runs in this process. More of them are Ray actors, reserved together within `timeout_s`
    seconds (else `ConfigError`), at `RAY_ADDRESS` or on a Ray started for the while. The first rank that fails ends the
    others, and its error is raised: ours with their class, others with the rank's traceback.
    """
    if world_size == 1 and gpus_per_rank == 0:
        return _run(function, job, threads)
    from ray.util.placement_group import remove_placement_group

    from rlhf_core.cluster.group import ActorSpec, Group, wait
    from rlhf_core.cluster.placement import connected, reserve

    bundle = {"CPU": float(threads)} | ({"GPU": gpus_per_rank} if gpus_per_rank else {})
    with connected():
        placement = reserve([bundle] * world_size, timeout_s)
        group = Group(ActorSpec("training", _Rank, world_size, 0, bundle, threads), placement)
        try:
            [[address, *_]] = wait(group.call("address"), timeout_s=timeout_s)
            wait(group.join(address), timeout_s=timeout_s)
            [results] = wait(group.call("run", function, job, threads), timeout_s=NO_LIMIT_S)
            result: ResultT = results[0]
            return result
        finally:
            group.kill()
            remove_placement_group(placement)


def _run(function: Callable[[JobT], ResultT], job: JobT, threads: int) -> ResultT:
    import torch

    torch.set_num_threads(threads)
    return function(job)


class _Rank:
    """One process of the run."""

    def address(self) -> tuple[str, int]:
        from rlhf_core.cluster.distributed import free_address

        return free_address()

    def join(self, rank: int, world_size: int, address: tuple[str, int]) -> None:
        from rlhf_core.cluster.distributed import set_rank_environment

        set_rank_environment(rank, world_size, address)

    def run(self, function: Callable[[Any], Any], job: Any, threads: int) -> Any:
        return _run(function, job, threads)
