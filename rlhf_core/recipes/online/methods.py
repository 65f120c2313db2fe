"""Online methods as rows of settings: a new method of this family is a new row, not new code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlhf_core.config import OnlineConfig, OnlineMethod

Advantages = Literal["gae", "group_norm"]
KlPlacement = Literal["reward", "loss"]


@dataclass(frozen=True, slots=True)
class Method:
    """What tells one online method from another; see the table of objectives in docs/architecture.md.

    `advantages` from rewards; `whiten` them over the whole rollout; `aggregation` of the per-token loss;
    `kl_estimate` of the KL to the reference and where it goes; `critic` says whether values are learnt.
    """

    advantages: Advantages
    whiten: bool
    aggregation: Literal["token_mean", "sequence_mean"]
    kl_estimate: Literal["k1", "k2", "k3"]
    kl_placement: KlPlacement
    critic: bool

    def kl_in_rewards(self, config: OnlineConfig) -> bool:
        """Whether rewards pay for the KL, so that the policy is scored before it is updated."""
        return config.kl_coef > 0 and self.kl_placement == "reward"

    def every_row_has_a_gradient(self, config: OnlineConfig) -> bool:
        """Whether a response whose advantages are all 0 still moves the policy: by a KL or an entropy in the loss."""
        return config.entropy_coef > 0 or (config.kl_coef > 0 and self.kl_placement == "loss")


METHODS: dict[OnlineMethod, Method] = {
    # Schulman et al. 2017, as in Ouyang et al. 2022: the KL is a penalty a token, the critic spreads credit over tokens.
    OnlineMethod.ppo: Method("gae", True, "token_mean", "k1", "reward", critic=True),
    # Shao et al. 2024: a response is as good as it stands out among the responses to its prompt.
    OnlineMethod.grpo: Method("group_norm", False, "sequence_mean", "k3", "loss", critic=False),
}
