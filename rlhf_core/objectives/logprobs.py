"""Log-probabilities and entropies of labels under logits. Meant for chunks: nothing here bounds the memory of [N, V]."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_core.objectives.aggregation import widened

# Stands in for minus infinity (words ruled out), so that 0 * logit is 0 and not NaN.
LOWEST_LOGIT = -1e30


def token_logprobs(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-prob of `labels` [...] and entropy [...] of softmax(logits [..., V] / temperature), in nats, fp32 or better.

    `logits[t]` scores `labels[t]`: the caller has already shifted. In bf16 the log-sum-exp would make the first on-policy
    ratio differ from 1. Under `torch.no_grad` or where the entropy is not used its gradient costs nothing.
    """
    tempered = widened(logits).clamp(min=LOWEST_LOGIT) / temperature
    log_normaliser = torch.logsumexp(tempered, dim=-1)
    label_logits = tempered.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    probs = torch.exp(tempered - log_normaliser.unsqueeze(-1))
    return label_logits - log_normaliser, log_normaliser - (probs * tempered).sum(dim=-1)
