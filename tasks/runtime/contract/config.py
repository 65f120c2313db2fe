"""Settings of how stages are run; none of them can change a result."""

from __future__ import annotations

from enum import Enum

from data_processing.settings import Settings, operational


class ExecutorKind(str, Enum):
    """Where a stage's worker process runs."""

    ray = "ray"
    subprocess = "subprocess"


class ShipCode(str, Enum):
    """Whether code travels to the cluster, or is read where the flow runs."""

    auto = "auto"
    always = "always"
    never = "never"


class RuntimeConfig(Settings):
    """Execution of stages."""

    executor: ExecutorKind = operational(
        ExecutorKind.ray, "ray: the Ray Jobs API; subprocess: a child process, no Ray head needed"
    )
    max_parallel_stages: int = operational(
        2, "Independent stages run together up to this number, and as far as memory allows", ge=1
    )
    max_attempts: int = operational(2, "Attempts a stage gets when infrastructure fails", ge=1, le=10)
    max_preemptions: int = operational(100, "How often a stage that was asked to stop goes on from its checkpoint", ge=0)
    preemption_wait_s: float = operational(5.0, "Seconds before the first of these, doubled each time up to five minutes", ge=0)
    stop_grace_s: float = operational(
        20.0, "Seconds a cancelled stage gets to save a checkpoint; Prefect kills a cancelled run after 30", gt=0
    )
    stall_after_s: float = operational(
        3600.0, "Seconds without an event after which a stage that has no such setting of its own counts as hung", gt=0
    )
    start_timeout_s: float | None = operational(None, "Seconds a submitted job may stay pending; null: as long as it takes", gt=0)
    placement_timeout_s: float | None = operational(
        None, "Seconds a stage may wait for the GPUs and CPUs it reserves; null: until there is room", gt=0
    )
    poll_interval_s: float = operational(0.5, "Seconds between looks at a running stage", gt=0)
    check_rewards: bool = operational(
        True, "Ask each reward that needs no model once, on two prompts, before anything is started (--no-check)"
    )
    allowed_hosts: tuple[str, ...] = operational(
        (), "Hosts, addresses and networks that services may be asked at (rewards of kind http, judge), beside this machine"
    )
    ship_code: ShipCode = operational(
        ShipCode.auto, "Send the code with each job: auto where the Ray cluster has other machines; the home is shared either way"
    )
    python: str = operational("python", "Where code is shipped: the interpreter there that has alignflow's libraries")
    driver_resources: dict[str, float] = operational(
        {"CPU": 1.0},
        "Where code is shipped: what a stage's own process takes, so that it is placed where there is room; no CPU where others do its work",
    )
    env: dict[str, str] = operational({}, "Variables that stages get. Anyone who can see the jobs can read them: no secrets")
    secrets: list[str] = operational(
        [], "Names of variables that stages need, set on the machines themselves; a stage refuses to start without one"
    )
    min_free_disk_gib: float = operational(2.0, "Free disk below which nothing is started", ge=0)
