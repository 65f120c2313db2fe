"""What online training computes on a batch: scoring passes, the policy's loss and the critic's, as picklable objects.

Workers call these with a micro-batch; every number returned is its share of a mean over the whole mini-batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from rlhf_core.batching.collate import ModelBatch, target_mask
from rlhf_core.cluster.actors import Totals
from rlhf_core.config import OnlineConfig
from rlhf_core.objectives.aggregation import aggregate
from rlhf_core.objectives.kl import kl_estimate
from rlhf_core.objectives.policy import ppo_loss
from rlhf_core.objectives.value import value_loss
from rlhf_core.recipes.online_methods import Method


@dataclass(frozen=True, slots=True)
class ResponseLogprobs:
    """Log-probs (nats) of the responses under softmax(logits / temperature)."""

    temperature: float

    def __call__(self, module: nn.Module, batch: ModelBatch) -> Tensor:
        """[n_rows, T]."""
        logprobs: Tensor = module(batch, temperature=self.temperature)[0]
        return logprobs


@dataclass(frozen=True, slots=True)
class ResponseValues:
    """The critic's value before each response token is chosen."""

    def __call__(self, module: nn.Module, batch: ModelBatch) -> Tensor:
        """[n_rows, T]."""
        values: Tensor = module(batch, per_token=True)
        return values


@dataclass(frozen=True, slots=True)
class PolicyObjective:
    """The clipped surrogate, plus kl_coef times the KL where the method puts it in the loss, less the entropy bonus."""

    method: Method
    config: OnlineConfig

    def __call__(self, module: nn.Module, batch: ModelBatch, fields: Mapping[str, Tensor], totals: Totals) -> dict[str, Tensor]:
        """`fields`: old_logprobs, reference_logprobs, advantages, each [n_rows, T]."""
        config, mask = self.config, target_mask(batch)
        aggregation = self.method.aggregation
        denominator = totals.tokens if aggregation == "token_mean" else totals.sequences
        logprobs, entropy = module(
            batch, temperature=config.rollout.temperature, with_entropy=True, entropy_has_grad=config.entropy_coef > 0
        )
        surrogate = ppo_loss(
            logprobs,
            fields["old_logprobs"],
            fields["advantages"],
            mask,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            dual_clip=config.dual_clip,
        )
        kl = kl_estimate(logprobs, fields["reference_logprobs"], self.method.kl_estimate, mask)
        kl_coef = config.kl_coef if self.method.kl_placement == "loss" else 0.0
        losses = surrogate.losses + kl_coef * kl - config.entropy_coef * entropy
        ratio = (logprobs - fields["old_logprobs"]).detach().exp()
        means = {
            "entropy": entropy,
            "ratio_mean": ratio,
            "clip_fraction": surrogate.clipped,
            "approx_kl": surrogate.approx_kl,
        }
        return {
            "loss": aggregate(losses, mask, aggregation, global_denominator=denominator),
            **{name: _token_share(values.detach(), mask, totals) for name, values in means.items()},
        }


@dataclass(frozen=True, slots=True)
class CriticObjective:
    """Squared error to the returns, clipped around the values that the advantages were computed with."""

    value_clip: float | None

    def __call__(self, module: nn.Module, batch: ModelBatch, fields: Mapping[str, Tensor], totals: Totals) -> dict[str, Tensor]:
        """`fields`: values, returns, each [n_rows, T]."""
        mask = target_mask(batch)
        values = module(batch, per_token=True)
        losses = value_loss(values, fields["values"], fields["returns"], mask, clip=self.value_clip)
        return {"loss": _token_share(losses, mask, totals)}


def _token_share(values: Tensor, mask: Tensor, totals: Totals) -> Tensor:
    return aggregate(values, mask, "token_mean", global_denominator=totals.tokens)
