"""What the training engine wraps: a policy that gives log-probs, a student that gives divergences, a scorer that gives scores and
values.

Both run the backbone once over a `ModelBatch` and touch only the hidden states that are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rlhf_core.batching.collate import ModelBatch, scatter
from rlhf_core.models.attention import attend_by_segment, attends_by_segment, segment_arguments
from rlhf_core.models.divergence import Outputs, token_divergences
from rlhf_core.models.embedding_noise import EmbeddingNoise
from rlhf_core.models.head import Head, LogitTransform
from rlhf_core.models.layouts import Layouts, named, prove
from rlhf_core.models.token_logprobs import token_logprobs
from rlhf_core.settings.supervised import DistillationKind
from rlhf_core.settings.training import Packing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


class LanguageModule(nn.Module):
    """A causal LM as a function from batches to its distributions at their targets; the model itself is `hf`.

    `layouts` says how its batches are to be made, as proven on the model (see `layouts.prove`, also for what is raised).
    """

    layouts: Layouts

    def __init__(self, hf: PreTrainedModel, packing: Packing = Packing.auto) -> None:
        super().__init__()
        self.hf: Any = hf
        attend_by_segment(hf)
        # None: what becomes of the head's outputs is not known, and the model's own logits are taken.
        transforms = [*head_transforms(hf.config), None]
        number, layouts = prove(hf, [partial(self._trial, transform) for transform in transforms], self._said, packing)
        self._transform = transforms[number]
        notes = (*layouts.notes, *_attention_note(hf))
        self.layouts = (
            replace(layouts, notes=notes) if self._transform else replace(layouts, own_head=False, notes=(*notes, _slower(hf)))
        )

    def outputs(self, batch: ModelBatch, temperature: float = 1.0, noise: EmbeddingNoise | None = None) -> Outputs:
        """The distributions of the batch's N targets, logits divided by `temperature`; `noise` is added to the input embeddings."""
        with nullcontext() if noise is None else noise.on(self.hf, batch):
            if self._transform is None:
                logits = self.hf(**_inputs(self.hf, batch)).logits.flatten(0, 1)[batch.target_index]
                return Outputs(logits.float() / temperature, None)
            hidden = hidden_states(self.hf, batch)[batch.target_index]
        head = self.hf.get_output_embeddings()
        return Outputs(hidden, Head(head.weight, head.bias, replace(self._transform, temperature=temperature)))

    def borrowed_parameters(self) -> list[nn.Parameter]:
        """Parameters that `forward` uses without calling the module that owns them; ZeRO 3 has to be told."""
        return list(self.hf.get_output_embeddings().parameters()) if self.layouts.own_head else []

    def _trial(self, transform: LogitTransform | None, batch: ModelBatch) -> Tensor:
        self._transform = transform
        logprobs, _ = _logprobs(self.outputs(batch), batch)
        return logprobs

    def _said(self, ids: Tensor) -> Tensor:
        every: Tensor = self.hf(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        return every.gather(-1, ids[0, 1:, None])[:, 0]


class PolicyModule(LanguageModule):
    """A causal LM as a function from batches to log-probs of their targets."""

    def forward(
        self,
        batch: ModelBatch,
        temperature: float = 1.0,
        with_entropy: bool = False,
        entropy_has_grad: bool = True,
        expected_grad: float | Tensor | None = None,
        *,
        noise: EmbeddingNoise | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probs (nats) of the batch's targets, and entropies (nats) where asked for; fp32 [n_rows, T], 0 elsewhere.

        Logits are divided by `temperature`. `entropy_has_grad` False saves work where the entropy is only reported. So does
        `expected_grad`, a number or [n_rows, T], where the loss is known to have this gradient at the log-probs (up to one
        factor): backward raises `ValueError` if it has another. `noise` is added to the input embeddings.
        """
        expected = None if expected_grad is None else _at_targets(batch, expected_grad)
        return _logprobs(self.outputs(batch, temperature, noise), batch, with_entropy, entropy_has_grad, expected)


class StudentModule(LanguageModule):
    """A causal LM as a function from batches and a teacher's outputs to divergences from it."""

    def forward(
        self,
        batch: ModelBatch,
        teacher: Outputs,
        *,
        kind: DistillationKind,
        beta: float,
        temperature: float,
        noise: EmbeddingNoise | None,
        expected_grad: float | Tensor | None = None,
    ) -> Tensor:
        """Divergences (nats) at the batch's targets, fp32 [n_rows, T], 0 elsewhere; see `objectives.distillation.divergence`.

        `expected_grad` is as for a policy's log-probs.
        """
        expected = None if expected_grad is None else _at_targets(batch, expected_grad)
        return scatter(batch, token_divergences(self.outputs(batch, temperature, noise), teacher, kind, beta, expected))


class ScoreModule(nn.Module):
    """A scorer (head `score`) as a function from batches to a score a sequence, or a value a target; the model is `hf`.

    `layouts` says how its batches are to be made, as proven on the model (see `layouts.prove`, also for what is raised).
    """

    layouts: Layouts

    def __init__(self, hf: PreTrainedModel, packing: Packing = Packing.auto) -> None:
        super().__init__()
        self.hf: Any = hf
        attend_by_segment(hf)
        with _drawn(self.hf.score.weight):
            _, layouts = prove(hf, [partial(self, per_token=True)], self._said, packing)
        self.layouts = replace(layouts, notes=(*layouts.notes, *_attention_note(hf)))

    def forward(self, batch: ModelBatch, per_token: bool = False, *, at_targets: bool = False) -> Tensor:
        """Scores [n_rows] at each sequence's last token; or with `per_token` values [n_rows, T], fp32, 0 elsewhere.

        The value of a target is read where that target is predicted, before it is known; with `at_targets` at the target itself.
        """
        index = (batch.target_place if at_targets else batch.target_index) if per_token else batch.last_index
        hidden, head = hidden_states(self.hf, batch)[index], self.hf.score
        # In fp32, or scores in bf16 would have steps of 1/32 from 4 on, and answers would tie.
        values = functional.linear(hidden.float(), head.weight.float(), None if head.bias is None else head.bias.float())[:, 0]
        return scatter(batch, values) if per_token else values

    def borrowed_parameters(self) -> list[nn.Parameter]:
        """Parameters that `forward` uses without calling the module that owns them; ZeRO 3 has to be told."""
        return list(self.hf.score.parameters())

    def _said(self, ids: Tensor) -> Tensor:
        # The value of the last token is the score of the row before it.
        score: Tensor = self.hf(input_ids=ids[:, :-1], use_cache=False).logits[0]
        return score


def _logprobs(
    outputs: Outputs,
    batch: ModelBatch,
    with_entropy: bool = False,
    entropy_has_grad: bool = True,
    expected_grad_N: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probs of the batch's targets and perhaps entropies, [n_rows, T]; from full logits as plainly as it can be said."""
    if outputs.head is None:
        every = outputs.values.log_softmax(-1)
        logprobs = every.gather(-1, batch.target_ids[:, None])[:, 0]
        entropy = torch.special.entr(every.exp()).sum(-1) if with_entropy else None
    else:
        head = outputs.head
        logprobs, entropy = token_logprobs(
            outputs.values,
            head.weight,
            head.bias,
            batch.target_ids,
            head.transform,
            with_entropy=with_entropy,
            entropy_has_grad=entropy_has_grad,
            expected_grad_N=expected_grad_N,
        )
    return scatter(batch, logprobs), None if entropy is None else scatter(batch, entropy)


def head_transforms(config: Any) -> list[LogitTransform]:
    """What an architecture may do to what its head puts out, by the names that its config has for it; the likeliest first.

    In transformers 5.19: `logit_scale` (Cohere; MPT has one that it does not apply) and `lm_head_multiplier` (Falcon-H1)
    multiply, `logits_scaling` divides (Granite) or multiplies (HyperCLOVA X), and `final_logit_softcapping` (Gemma 2 to 4,
    NanoChat, VaultGemma), `logits_soft_cap` (RecurrentGemma) and `output_logit_soft_cap` (xLSTM) cap.
    """
    text = config.get_text_config()
    factor = _positive(text, "logit_scale", "lm_head_multiplier")
    scaling = _positive(text, "logits_scaling")
    cap = next((float(value) for name in CAPS if (value := getattr(text, name, None))), None)
    likely = [LogitTransform(factor / scaling, cap), LogitTransform(factor * scaling, cap), LogitTransform()]
    return list(dict.fromkeys(likely))


def _positive(config: Any, *names: str) -> float:
    """The product of those values that are positive numbers."""
    values = [getattr(config, name, None) for name in names]
    return math.prod(float(value) for value in values if isinstance(value, (int, float)) and value > 0)


def _attention_note(hf: Any) -> tuple[str, ...]:
    """What to tell of a model that computes its attention in the slow way for want of another."""
    if hf._supports_sdpa or hf.config._attn_implementation != "eager":
        return ()
    return (f"{named(hf)}: it has no SDPA attention; it computes with 'eager', which is slower and takes more memory",)


def _slower(hf: Any) -> str:
    return (
        f"{named(hf)}: its logits are not its head's outputs, nor these scaled or capped in a known way; "
        "log-probs are computed from its full logits, which is slower and takes more memory"
    )


@contextmanager
def _drawn(weight: Tensor) -> Iterator[None]:
    """Random numbers in the head for a while: a new one is all zeros, under which all layouts would be alike."""
    kept = weight.detach().clone()
    drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) / weight.shape[1] ** 0.5
    with torch.no_grad():
        weight.copy_(drawn)
        try:
            yield
        finally:
            weight.copy_(kept)


def _at_targets(batch: ModelBatch, values: float | Tensor) -> Tensor:
    """Values [N] of the targets, from one number for all or from [n_rows, T]."""
    if isinstance(values, Tensor):
        return values[batch.target_row, batch.target_column]
    return torch.full(batch.target_ids.shape, values, device=batch.target_ids.device)


def hidden_states(hf: Any, batch: ModelBatch) -> Tensor:
    """Last hidden states of all positions, [B' * S, H]."""
    hidden: Tensor = hf.base_model(**_inputs(hf, batch)).last_hidden_state
    return hidden.flatten(0, 1)


def _inputs(hf: Any, batch: ModelBatch) -> dict[str, Any]:
    """What a forward pass takes.

    Without segments packed sequences stay apart by position ids, and only without a mask and without a cache.
    """
    inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "attention_mask": batch.attention_mask}
    return inputs | {"use_cache": False} | (segment_arguments(batch) if attends_by_segment(hf) else {})
