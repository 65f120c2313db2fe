"""Who takes part in an online run, and what each of them reserves. No torch and no Ray here: the plan reads it too."""

from __future__ import annotations

from rlhf_core.cluster.resources import Bundle, Resources
from rlhf_core.settings.online import OnlineConfig

# Actors of a CPU run take turns more than they compute at once; with a whole core each they would not fit on two.
CPU_SHARE = 0.2


def processes(config: OnlineConfig) -> dict[str, int]:
    """How many processes each role of a run has, in the order of their bundles."""
    ranks = config.engine.world_size
    counts = {"policy": ranks, "reward": 1, "rollout": 1}
    if config.uses_kl and config.lora.rank == 0:
        counts["reference"] = 1
    return counts | {role: 1 if role == "teacher" else ranks for role in config.row.roles}


def bundle_of(role: str, config: OnlineConfig) -> Bundle:
    """What each process of a role reserves. Rewards that are only checked compute nothing on a GPU."""
    checked_only = role == "reward" and not any(source.computes for source in config.rewards)
    return Bundle(CPU_SHARE, 0.0 if checked_only else config.engine.gpus_per_rank)


def resources(config: OnlineConfig) -> Resources:
    """What a whole run reserves."""
    bundles = [bundle_of(role, config) for role, count in processes(config).items() for _ in range(count)]
    return Resources(tuple(bundles), "engine.world_size and engine.gpus_per_rank")
