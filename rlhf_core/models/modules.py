"""What the training engine wraps: a policy that gives log-probs, a scorer that gives scores and values.

Both run the backbone once over a `ModelBatch` and touch only the hidden states that are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from data_processing.errors import ConfigError
from rlhf_core.batching.collate import ModelBatch, scatter
from rlhf_core.models.attention import segment_arguments, use_attention_by_segment
from rlhf_core.models.head import LogitTransform
from rlhf_core.models.token_logprobs import token_logprobs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PolicyModule(nn.Module):
    """A causal LM as a function from batches to log-probs of their targets; the model itself is `hf`."""

    def __init__(self, hf: PreTrainedModel) -> None:
        super().__init__()
        self.hf: Any = hf
        self._head_transform = head_transform(hf.config)
        # Whether batches may hold a prompt once for several rows (`collate(shared=True)`).
        self.shares_prompts = use_attention_by_segment(hf)

    def forward(
        self,
        batch: ModelBatch,
        temperature: float = 1.0,
        with_entropy: bool = False,
        entropy_has_grad: bool = True,
        expected_grad: float | Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probs (nats) of the batch's targets, and entropies (nats) where asked for; fp32 [n_rows, T], 0 elsewhere.

        Logits are divided by `temperature`. `entropy_has_grad` False saves work where the entropy is only reported. So does
        `expected_grad`, a number or [n_rows, T], where the loss is known to have this gradient at the log-probs (up to one
        factor): backward raises `ValueError` if it has another.
        """
        scale, softcap = self._head_transform
        head = self.hf.get_output_embeddings()
        logprobs, entropy = token_logprobs(
            _hidden_states(self.hf, batch, self.shares_prompts)[batch.target_index],
            head.weight,
            head.bias,
            batch.target_ids,
            LogitTransform(scale, softcap, temperature),
            with_entropy=with_entropy,
            entropy_has_grad=entropy_has_grad,
            expected_grad_N=None if expected_grad is None else _at_targets(batch, expected_grad),
        )
        return scatter(batch, logprobs), None if entropy is None else scatter(batch, entropy)

    def borrowed_parameters(self) -> list[nn.Parameter]:
        """Parameters that `forward` uses without calling the module that owns them; ZeRO 3 has to be told."""
        head = self.hf.get_output_embeddings()
        return [head.weight] if head.bias is None else [head.weight, head.bias]


class ScoreModule(nn.Module):
    """A scorer (head `score`) as a function from batches to a score a sequence, or a value a target; the model is `hf`."""

    def __init__(self, hf: PreTrainedModel) -> None:
        super().__init__()
        self.hf: Any = hf
        # Whether batches may hold a prompt once for several rows (`collate(shared=True)`).
        self.shares_prompts = use_attention_by_segment(hf)

    def forward(self, batch: ModelBatch, per_token: bool = False) -> Tensor:
        """Scores [n_rows] at each sequence's last token; or with `per_token` values [n_rows, T], fp32, 0 elsewhere.

        The value of a target is read where that target is predicted: before it is known.
        """
        index = batch.target_index if per_token else batch.last_index
        values: Tensor = self.hf.score(_hidden_states(self.hf, batch, self.shares_prompts)[index]).squeeze(-1).float()
        return scatter(batch, values) if per_token else values

    def borrowed_parameters(self) -> list[nn.Parameter]:
        """None: the head is called as a module."""
        return []


def head_transform(config: Any) -> tuple[float, float | None]:
    """(factor, soft cap) that an architecture applies to what its head puts out.

    Raises `ConfigError` for a factor that is not a positive number.
    """
    text = config.get_text_config()
    scale = float(getattr(text, "logit_scale", None) or 1.0) * float(getattr(text, "lm_head_multiplier", None) or 1.0)
    scale /= float(getattr(text, "logits_scaling", None) or 1.0)
    if scale <= 0:
        raise ConfigError(f"config of {text.model_type}: the head's outputs are multiplied by {scale}, which must be positive")
    cap = getattr(text, "final_logit_softcapping", None)
    return scale, None if cap is None else float(cap)


def _at_targets(batch: ModelBatch, values: float | Tensor) -> Tensor:
    """Values [N] of the targets, from one number for all or from [n_rows, T]."""
    if isinstance(values, Tensor):
        return values[batch.target_row, batch.target_column]
    return torch.full(batch.target_ids.shape, values, device=batch.target_ids.device)


def _hidden_states(hf: Any, batch: ModelBatch, by_segment: bool) -> Tensor:
    """Last hidden states of all positions, [B' * S, H].

    Without segments packed sequences stay apart by position ids, and only without a mask and without a cache.
    """
    arguments = {"attention_mask": batch.attention_mask} | (segment_arguments(batch) if by_segment else {})
    output = hf.base_model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **arguments)
    hidden: Tensor = output.last_hidden_state
    return hidden.flatten(0, 1)
