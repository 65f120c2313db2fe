"""The loss of the proposal, as a picklable object that its workers call with a micro-batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from rlhf_core.batching.collate import ModelBatch, target_mask
from rlhf_core.cluster.actors import Totals
from rlhf_core.objectives.aggregation import aggregate
from rlhf_core.objectives.policy import reinforce_loss


@dataclass(frozen=True, slots=True)
class ProposalObjective:
    """Contrastive twist learning on policy: the mean of the token means of -(w - v) log q. Source: repulse.md, section 1.6."""

    temperature: float

    def __call__(
        self, module: nn.Module, batch: ModelBatch, fields: Mapping[str, Tensor], totals: Totals
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """`fields`: advantages [n_rows, T], which are w - v."""
        mask = target_mask(batch)
        logprobs = module(batch, temperature=self.temperature)[0]
        losses = reinforce_loss(logprobs, logprobs.detach(), fields["advantages"], mask).losses
        return {"loss": aggregate(losses, mask, "sequence_mean", global_denominator=float(totals.sequences))}, {}
