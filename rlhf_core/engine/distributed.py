"""The process group of a training run: gloo on CPU, NCCL on GPU, one process included."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

COLLECTIVE_TIMEOUT = timedelta(minutes=30)


def init_distributed(device: torch.device) -> None:
    """Join the process group that the rank variables describe; without them, a group of this process alone. Idempotent.

    `device` says between what it sends: NCCL between GPUs, gloo between CPUs.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator, set_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    # DeepSpeed took a GPU if it saw one when it was first imported, which transformers does.
    if device.type == "cpu" and get_accelerator().device_name() != "cpu":
        set_accelerator(CPU_Accelerator())

    # DeepSpeed's shared-memory op serves inference only, and would be compiled here for the better part of a minute.
    deepspeed.ops.__compatible_ops__ = {}
    backend = "nccl" if device.type == "cuda" else "gloo"
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
        if not dist.is_initialized():
            # An in-memory store: no port to choose, nothing for other processes to reach.
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=COLLECTIVE_TIMEOUT)
    deepspeed.init_distributed(dist_backend=backend, timeout=COLLECTIVE_TIMEOUT, auto_mpi_discovery=False, verbose=False)


def set_rank_environment(rank: int, world_size: int, address: tuple[str, int]) -> None:
    """Give this process its place among `world_size`; `address` is where rank 0 listens. Before `init_distributed`.

    Every rank sees only the GPU that it was given, so its local rank is 0.
    """
    host, port = address
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK="0", MASTER_ADDR=host, MASTER_PORT=str(port))


def free_address(host: str | None = None) -> tuple[str, int]:
    """An (ip, port) of this node that nobody listens on now; `host` None asks Ray for the node's ip."""
    if host is None:
        import ray

        host = str(ray.util.get_node_ip_address())
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return host, int(probe.getsockname()[1])


def rank() -> int:
    """This process's rank; 0 outside a group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Processes in the group; 1 outside a group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()
