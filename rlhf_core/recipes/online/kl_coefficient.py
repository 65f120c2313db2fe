"""The weight of the KL to the reference: what the settings say, or steered so that the KL stays near a target."""

from __future__ import annotations

from collections.abc import Mapping

from rlhf_core.settings.online import OnlineConfig

# However far off the KL is, it counts as this share at most (arXiv 1909.08593, section 2.2).
MOST_ERROR = 0.2


class KlCoefficient:
    """`value` is this round's; a checkpoint keeps it."""

    def __init__(self, config: OnlineConfig) -> None:
        self.value: float = config.value("kl_coef")
        self._settings = config.adaptive_kl
        self._responses = config.prompts_per_step * config.samples_per_prompt

    def follow(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Take the KL of a round (nats a response) into account for the next; returns what this round's was, as a metric."""
        used, target = self.value, self._settings.target_nats
        if target is None or "kl/sequence" not in metrics:
            return {"kl/coef": used} if used else {}
        error = max(-MOST_ERROR, min(metrics["kl/sequence"] / target - 1, MOST_ERROR))
        self.value = used * (1 + error * self._responses / self._settings.horizon_responses)
        return {"kl/coef": used}

    def state(self) -> float:
        """For `restore`."""
        return self.value

    def restore(self, state: float) -> None:
        """Go on with the value of a checkpoint."""
        self.value = state
