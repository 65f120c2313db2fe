"""Settings of how stages are run; none of them can change a result."""

from __future__ import annotations

from enum import Enum

from data_processing.settings import Settings, operational


class ExecutorKind(str, Enum):
    """Where a stage's worker process runs."""

    ray = "ray"
    subprocess = "subprocess"


class RuntimeConfig(Settings):
    """Execution of stages."""

    executor: ExecutorKind = operational(
        ExecutorKind.ray, "ray: the Ray Jobs API; subprocess: a child process, no Ray head needed"
    )
    max_parallel_stages: int = operational(
        2, "Independent stages run together up to this number, and as far as memory allows", ge=1
    )
    max_attempts: int = operational(2, "Attempts a stage gets when infrastructure fails", ge=1, le=10)
    stop_grace_s: float = operational(30.0, "Seconds a cancelled stage gets to save a checkpoint", gt=0)
    start_timeout_s: float = operational(120.0, "Seconds a submitted job may stay pending", gt=0)
    placement_timeout_s: float | None = operational(
        None, "Seconds a stage may wait for the GPUs and CPUs it reserves; null: until there is room", gt=0
    )
    poll_interval_s: float = operational(0.5, "Seconds between looks at a running stage", gt=0)
    check_rewards: bool = operational(
        True, "Call Python reward functions once, on two prompts, before anything is started (--no-check)"
    )
    min_free_disk_gib: float = operational(2.0, "Free disk below which nothing is started", ge=0)
