"""Conditions under which a run learns nothing: each warns when it holds, and stops the run when it holds again and again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from data_processing.errors import DataError, DivergedError
from rlhf_core.config import OnlineConfig
from rlhf_core.events import EventLog
from rlhf_core.rewards.compose import Rewards

PATIENCE_ROUNDS = 3


@dataclass
class Alarms:
    """How many rounds in a row each condition has held; `counts` is part of what a checkpoint keeps."""

    events: EventLog
    counts: dict[str, int] = field(default_factory=dict)

    def check(self, step: int, conditions: Mapping[str, str | None]) -> None:
        """`conditions` maps names to what is wrong, or None where all is well.

        Warns about each that holds; raises `DivergedError` for one that held `PATIENCE_ROUNDS` rounds in a row.
        """
        for name, problem in conditions.items():
            self.counts[name] = self.counts.get(name, 0) + 1 if problem else 0
            if not problem:
                continue
            message = f"round {step + 1}: {problem}"
            self.events.warn(message)
            if self.counts[name] >= PATIENCE_ROUNDS:
                raise DivergedError(f"{message} This held {PATIENCE_ROUNDS} rounds in a row, so the run stops.")

    def state(self) -> dict[str, int]:
        """For `restore`."""
        return self.counts

    def restore(self, state: Mapping[str, int]) -> None:
        """Go on counting from a checkpoint's numbers."""
        self.counts = dict(state)


def check_rewards(step: int, rewards: Rewards, config: OnlineConfig, events: EventLog) -> None:
    """Warn of calls that were repeated and of responses without a reward; `DataError` for more than the settings allow."""
    for reason in rewards.asked_again:
        events.warn(f"round {step + 1}: {reason}")
    if not rewards.invalid_share:
        return
    invalid, total = rewards.total.count(None), len(rewards.total)
    found = f"round {step + 1}: {invalid} of {total} responses have no valid reward ({rewards.why_invalid()})"
    if rewards.invalid_share > config.max_invalid_fraction:
        raise DataError(
            f"{found}, more than online.max_invalid_fraction={config.max_invalid_fraction}: mend that source or the prompts it "
            "fails on, or raise the share"
        )
    events.warn(f"{found}: they are left out of this round's updates")


def useless_conditions(config: OnlineConfig, metrics: Mapping[str, float]) -> dict[str, str | None]:
    """What would make further rounds useless, in words, by name; None where it does not hold."""
    truncated, mean_reward = metrics["truncated_share"], metrics.get("reward/mean", math.nan)
    grouped = config.samples_per_prompt > 1
    has_rewards = metrics["reward/invalid_share"] < 1.0
    is_flat = metrics["zero_variance_share"] == 1.0 if grouped else metrics.get("reward/std") == 0.0
    problems = {
        "no_rewards": (not has_rewards, "no response has a valid reward: nothing is learnt; look at the reward."),
        "truncated": (
            truncated > config.max_truncated_fraction,
            f"{truncated:.0%} of the responses were cut at {config.rollout.max_new_tokens} tokens: the policy does not end its "
            "answers; raise rollout.max_new_tokens or train it to stop first.",
        ),
        "zero_variance": (
            is_flat and has_rewards,
            f"all rewards of {'each prompt' if grouped else 'the round'} are equal (mean {mean_reward:.4g}): nothing tells good "
            "responses from bad; look at the reward, or at whether the task is solved already.",
        ),
        "zero_gradient": (metrics.get("policy/grad_norm") == 0.0, "the policy's gradient is exactly 0: nothing is learnt."),
    }
    return {name: message if holds else None for name, (holds, message) in problems.items()}
