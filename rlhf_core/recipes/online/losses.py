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
from rlhf_core.objectives.aggregation import aggregate, masked, ratio
from rlhf_core.objectives.kl import kl_estimate
from rlhf_core.objectives.policy import ppo_loss, rollout_correction
from rlhf_core.objectives.value import value_loss
from rlhf_core.recipes.online.methods import Method


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

    def __call__(
        self, module: nn.Module, batch: ModelBatch, fields: Mapping[str, Tensor], totals: Totals
    ) -> tuple[dict[str, Tensor], Tensor]:
        """`fields`, each [n_rows, T]: advantages, and where they are used sampler_logprobs and reference_logprobs.

        Without old_logprobs the batch is on policy: they are this very pass's, and every ratio is exactly 1.
        """
        config, mask = self.config, target_mask(batch)
        logprobs, entropy = module(batch, temperature=config.rollout.temperature, with_entropy=config.entropy_coef > 0)
        old_logprobs = fields.get("old_logprobs", logprobs.detach())
        surrogate = ppo_loss(
            logprobs,
            old_logprobs,
            fields["advantages"],
            mask,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            dual_clip=config.dual_clip,
        )
        losses = surrogate.losses
        means = {
            "ratio_mean": (logprobs.detach() - old_logprobs).exp(),
            "clip_fraction": surrogate.clipped,
            "approx_kl": surrogate.approx_kl,
        }
        if "sampler_logprobs" in fields:
            weights, is_clipped = self._correction(old_logprobs, fields["sampler_logprobs"], mask)
            losses = losses * weights
            means |= {"correction_weight": weights, "correction_clipped": is_clipped}
        if "reference_logprobs" in fields:
            losses = losses + config.kl_coef * kl_estimate(logprobs, fields["reference_logprobs"], self.method.kl_estimate, mask)
        if entropy is not None:
            losses = losses - config.entropy_coef * entropy
            means["entropy"] = entropy.detach()
        aggregation = self.method.aggregation
        denominator = totals.tokens if aggregation == "token_mean" else totals.sequences
        # Rows without a gradient are left out: means of what was computed, beside a loss over all.
        shares = {name: _token_share(values, mask, totals.computed_tokens) for name, values in means.items()}
        return {"loss": aggregate(losses, mask, aggregation, global_denominator=denominator), **shares}, logprobs

    def _correction(self, old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Weights for the gap between the trainer's weights and the sampler's, and 1 where a bound changed them."""
        config, kind = self.config, self.config.correction
        assert kind is not None, "sampler_logprobs are given for a correction"
        weights = rollout_correction(
            old_logprobs, sampler_logprobs, mask, kind, low=config.correction_low, high=config.correction_high
        )
        return weights, (weights != masked(ratio(old_logprobs - sampler_logprobs), mask)).to(weights.dtype)


@dataclass(frozen=True, slots=True)
class CriticObjective:
    """Squared error to the returns, clipped around the values that the advantages were computed with."""

    value_clip: float | None

    def __call__(
        self, module: nn.Module, batch: ModelBatch, fields: Mapping[str, Tensor], totals: Totals
    ) -> tuple[dict[str, Tensor], Tensor]:
        """`fields`: values, returns, each [n_rows, T]."""
        mask = target_mask(batch)
        values = module(batch, per_token=True)
        losses = value_loss(values, fields["values"], fields["returns"], mask, clip=self.value_clip)
        return {"loss": _token_share(losses, mask, totals.tokens)}, values


def _token_share(values: Tensor, mask: Tensor, tokens: float) -> Tensor:
    return aggregate(values, mask, "token_mean", global_denominator=tokens)
