"""Conditions under which a run learns nothing or goes wrong: each warns when it holds, and stops the run when it goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_processing.errors import DataError, DivergedError
from rlhf_core.events import EventLog
from rlhf_core.rewards.compose import Rewards
from rlhf_core.settings.online import GateSettings, OnlineConfig


@dataclass
class Alarms:
    """How many rounds in a row each condition has held, and how long responses were at first: a checkpoint keeps both."""

    events: EventLog
    gates: GateSettings
    counts: dict[str, int] = field(default_factory=dict)
    first_length_tokens: float | None = None

    def check(self, step: int, conditions: Mapping[str, str | None]) -> None:
        """`conditions` maps names to what is wrong, or None where all is well.

        Warns about each that holds; raises `DivergedError` for one that held `patience_rounds` in a row.
        """
        for name, problem in conditions.items():
            self.counts[name] = self.counts.get(name, 0) + 1 if problem else 0
            if not problem:
                continue
            message = f"round {step + 1}: {problem}"
            self.events.warn(message)
            if self.counts[name] >= self.gates.patience_rounds:
                raise DivergedError(f"{message} This held {self.counts[name]} rounds in a row, so the run stops.")

    def growth(self, metrics: Mapping[str, float]) -> float:
        """Mean length of a round's responses as a multiple of the first round's."""
        length = metrics["response_tokens/mean"]
        if self.first_length_tokens is None:
            self.first_length_tokens = length
        return length / max(self.first_length_tokens, 1.0)

    def state(self) -> dict[str, Any]:
        """For `restore`."""
        return {"counts": self.counts, "first_length_tokens": self.first_length_tokens}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's numbers."""
        self.counts, self.first_length_tokens = dict(state["counts"]), state["first_length_tokens"]


def check_rewards(step: int, rewards: Rewards, config: OnlineConfig, events: EventLog, failures: Sequence[str] = ()) -> None:
    """Warn of calls that were repeated and of responses without a reward; `DataError` for more than the settings allow.

    `failures` are those of environments, which leave their conversations without one.
    """
    for note in rewards.notes:
        events.warn_once(note)
    for reason in rewards.asked_again:
        events.warn(f"round {step + 1}: {reason}")
    if not rewards.invalid_share:
        return
    invalid, total = rewards.total.count(None), len(rewards.total)
    found = f"round {step + 1}: {invalid} of {total} responses have no valid reward ({_why(rewards, failures)})"
    if rewards.invalid_share > config.max_invalid_fraction:
        raise DataError(
            f"{found}, more than online.max_invalid_fraction={config.max_invalid_fraction}: mend that source or the prompts it "
            "fails on, or raise the share"
        )
    events.warn(f"{found}: they are left out of this round's updates")


def _why(rewards: Rewards, failures: Sequence[str]) -> str:
    broken = f"the environment failed in {len(failures)} of them, the first: {failures[0]}" if failures else ""
    return ", ".join(filter(None, (broken, rewards.why_invalid())))


def conditions(config: OnlineConfig, metrics: Mapping[str, float]) -> dict[str, str | None]:
    """What would make further rounds useless, or shows that they go wrong, in words, by name; None where it does not hold.

    `metrics` are a round's, with its `length_growth`.
    """
    gates, truncated, mean_reward = config.gates, metrics["truncated_share"], metrics.get("reward/mean", math.nan)
    grouped, effective = config.samples_per_prompt > 1, metrics.get("proposal/effective_samples", math.nan)
    has_rewards = metrics["reward/invalid_share"] < 1.0
    flat = metrics["zero_variance_share"] if grouped else float(metrics.get("reward/std") == 0.0)
    of_whom = f"of {flat:.0%} of the prompts each" if grouped and flat < 1 else "of each prompt" if grouped else "of the round"
    problems = {
        "no_rewards": (not has_rewards, "no response has a valid reward: nothing is learnt; look at the reward."),
        "truncated": (
            truncated > gates.max_truncated_fraction,
            f"{truncated:.0%} of the responses were cut at {config.rollout.max_new_tokens} tokens: the policy does not end its "
            "answers; raise rollout.max_new_tokens or train it to stop first.",
        ),
        "zero_variance": (
            flat >= gates.max_flat_fraction and has_rewards and not config.has_teacher,
            f"all rewards {of_whom} are equal (mean {mean_reward:.4g}): nothing tells good "
            "responses from bad; look at the reward, or at whether the task is solved already.",
        ),
        "zero_gradient": (metrics.get("policy/grad_norm") == 0.0, "the policy's gradient is exactly 0: nothing is learnt."),
        "mismatch": _above(
            metrics.get("mismatch_kl"),
            gates.max_mismatch_kl_nats,
            "the trainer's policy is {found:.3g} nats a token from what was sampled, more than gates.max_mismatch_kl_nats={limit:g}: "
            "lower the learning rate or async_steps, or look at what the sampler computes otherwise.",
        ),
        "entropy": _above(
            -metrics["sampled_entropy"],
            None if gates.min_entropy_nats is None else -gates.min_entropy_nats,
            f"the policy's entropy is {metrics['sampled_entropy']:.3g} nats a token, less than gates.min_entropy_nats="
            f"{gates.min_entropy_nats}: it says the same over and over; raise entropy_coef or kl_coef, or lower the learning rate.",
        ),
        "effective_samples": _above(
            -effective,
            None if gates.min_effective_samples is None else -gates.min_effective_samples,
            f"of {config.samples_per_prompt} samples of the proposal to a prompt {effective:.2f} count on average, fewer than "
            f"gates.min_effective_samples={gates.min_effective_samples}: bring repulse.target_beta nearer to 0, or draw more samples.",
        ),
        "length": _above(
            metrics["length_growth"],
            gates.max_length_growth,
            "responses are {found:.2f} times as long as at first, more than gates.max_length_growth={limit:g}: look at whether "
            "the reward pays for length; overlong_penalty makes it cost.",
        ),
    }
    problems |= _of_known_answers(config, metrics)
    return {name: message if holds else None for name, (holds, message) in problems.items()}


def _of_known_answers(config: OnlineConfig, metrics: Mapping[str, float]) -> dict[str, tuple[bool, str]]:
    """Of a round in which known answers were scored."""
    if "canary/invalid_share" not in metrics:
        return {}
    drift, right = metrics.get("canary/drift"), metrics.get("canary/right_share")
    return {
        "canary_drift": _above(
            drift,
            config.canary.max_drift,
            "what known answers are worth has changed by {found:.2g} of their deviation since the first round, more than "
            "canary.max_drift={limit:g}: a reward says something else by now; look at its service, judge or function.",
        ),
        "canary_order": _above(
            None if right is None else 1 - right,
            1 - config.canary.min_right_fraction,
            f"only {0.0 if right is None else right:.0%} of the known good answers are worth more than the bad ones beside them, less than "
            f"canary.min_right_fraction={config.canary.min_right_fraction:g}: look at the rewards.",
        ),
    }


def _above(found: float | None, limit: float | None, message: str) -> tuple[bool, str]:
    if found is None or limit is None:
        return False, ""
    return found > limit, message.format(found=found, limit=limit)
