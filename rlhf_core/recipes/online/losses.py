"""What online training computes on a batch: scoring passes, the policy's loss and the critic's, as picklable objects.

Workers call these with a micro-batch; every number returned is its share of a mean over the whole mini-batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from rlhf_core.batching.collate import ModelBatch, target_mask
from rlhf_core.cluster.actors import Totals
from rlhf_core.imported import imported
from rlhf_core.objectives.aggregation import aggregate, masked, ratio
from rlhf_core.objectives.kl import kl_estimate
from rlhf_core.objectives.policy import rollout_correction
from rlhf_core.objectives.value import value_loss
from rlhf_core.settings.online import OnlineConfig

LOGPROBS, VALUES, ENTROPY = "logprobs", "values", "entropy"


@dataclass(frozen=True, slots=True)
class ResponseLogprobs:
    """Log-probs (nats) of the responses under softmax(logits / temperature)."""

    temperature: float

    def __call__(self, module: nn.Module, batch: ModelBatch) -> dict[str, Tensor]:
        """`logprobs` [n_rows, T]."""
        return {LOGPROBS: module(batch, temperature=self.temperature)[0]}


@dataclass(frozen=True, slots=True)
class ResponseEntropies:
    """Entropy (nats) of the distribution that each response token was drawn from, at temperature 1."""

    def __call__(self, module: nn.Module, batch: ModelBatch) -> dict[str, Tensor]:
        """`entropy` [n_rows, T]."""
        return {ENTROPY: module(batch, temperature=1.0, with_entropy=True)[1]}


@dataclass(frozen=True, slots=True)
class ResponseValues:
    """The critic's value before each response token is chosen."""

    def __call__(self, module: nn.Module, batch: ModelBatch) -> dict[str, Tensor]:
        """`values` [n_rows, T]."""
        return {VALUES: module(batch, per_token=True)}


@dataclass(frozen=True, slots=True)
class PolicyObjective:
    """The method's loss, plus kl_coef times the KL where that goes into the loss, less the entropy bonus."""

    config: OnlineConfig
    kl_coef: float

    def __call__(
        self, module: nn.Module, batch: ModelBatch, fields: Mapping[str, Tensor], totals: Totals
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """`fields`, each [n_rows, T]: advantages, and where they are used sampler_logprobs and reference_logprobs.

        Without old_logprobs the batch is on policy: they are this very pass's, and every ratio is exactly 1.
        """
        config, method, mask = self.config, self.config.row, target_mask(batch)
        logprobs, entropy = module(batch, temperature=config.rollout.temperature, with_entropy=config.entropy_coef > 0)
        old_logprobs = fields.get("old_logprobs", logprobs.detach())
        loss = imported(method.loss, "loss", "my_losses:my_loss")
        surrogate = loss(logprobs, old_logprobs, fields["advantages"], mask, **config.values(method.loss_reads))
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
            losses = losses + self.kl_coef * kl_estimate(logprobs, fields["reference_logprobs"], config.estimate_of_kl, mask)
        if entropy is not None:
            losses = losses - config.entropy_coef * entropy
            means["entropy"] = entropy.detach()
        # Rows without a gradient are left out: means of what was computed, beside a loss over all.
        shares = {name: _token_share(values, mask, totals.computed_tokens) for name, values in means.items()}
        return {"loss": self._aggregated(losses, mask, totals), **shares}, {LOGPROBS: logprobs}

    def _aggregated(self, losses: Tensor, mask: Tensor, totals: Totals) -> Tensor:
        """This micro-batch's share of the loss of the whole mini-batch."""
        mode = self.config.aggregation or self.config.row.aggregation
        constant = self.config.rollout.max_new_tokens
        denominators = {"token_mean": totals.tokens, "constant_length": float(totals.sequences * constant)}
        return aggregate(losses, mask, mode, constant, denominators.get(mode, float(totals.sequences)))

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
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """`fields`: values, returns, each [n_rows, T]."""
        mask = target_mask(batch)
        values = module(batch, per_token=True)
        losses = value_loss(values, fields["values"], fields["returns"], mask, clip=self.value_clip)
        return {"loss": _token_share(losses, mask, totals.tokens)}, {VALUES: values}


def _token_share(values: Tensor, mask: Tensor, tokens: float) -> Tensor:
    return aggregate(values, mask, "token_mean", global_denominator=tokens)
