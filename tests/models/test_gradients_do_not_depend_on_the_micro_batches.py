"""The gradient of a model under every kind of loss: one micro-batch of all rows, or several, gives the same to 1e-6."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlhf_core.batching.collate import ModelBatch, collate, target_mask
from rlhf_core.batching.rows import TokenRow
from rlhf_core.models.load import load_lm, load_scorer
from rlhf_core.models.modules import PolicyModule, ScoreModule
from rlhf_core.objectives.aggregation import aggregate
from rlhf_core.objectives.kl import kl_estimate
from rlhf_core.objectives.policy import ppo_loss, rollout_correction
from rlhf_core.objectives.preference import (
    dpo_loss,
    kto_loss,
)
from rlhf_core.objectives.reward import pairwise_reward_loss
from rlhf_core.objectives.value import value_loss
from tests.objectives.made_pairs import pairs_of
from tests.tiny_models import tiny_model

LENGTHS = [(5, 9, 4), (20, 3, 30), (1, 12, 12), (11, 1, 6)]
N_PAIRS = len(LENGTHS)
N_TARGETS = sum(chosen + rejected for _, chosen, rejected in LENGTHS)


def rows_of_pairs() -> list[TokenRow]:
    generator = torch.Generator().manual_seed(1)
    draw = lambda n: torch.randint(3, 480, (n,), generator=generator).tolist()  # noqa: E731
    prompts = [draw(prompt) for prompt, *_ in LENGTHS]
    return [
        TokenRow.from_prompt_response(prompt, draw(n)) for prompt, (_, *pair) in zip(prompts, LENGTHS, strict=True) for n in pair
    ]


def sft(module: torch.nn.Module, batch: ModelBatch) -> Tensor:
    return -module(batch, expected_grad=-1 / N_TARGETS)[0].sum() / N_TARGETS


def preference(module: torch.nn.Module, batch: ModelBatch) -> Tensor:
    chosen, rejected = module(batch)[0].sum(1).view(-1, 2).unbind(1)
    pairs = pairs_of(chosen, rejected, 0.9 * chosen.detach(), 1.1 * rejected.detach())
    return dpo_loss(pairs, beta=0.1, label_smoothing=0.1).sum() / N_PAIRS


def policy(module: torch.nn.Module, batch: ModelBatch) -> Tensor:
    logprobs, entropies = module(batch, temperature=0.8, with_entropy=True)
    advantages = torch.ones_like(logprobs)
    losses = ppo_loss(logprobs, logprobs.detach() - 0.1, advantages, target_mask(batch), clip_low=0.2, clip_high=0.2).losses
    return aggregate(losses - 0.01 * entropies, target_mask(batch), "token_mean", global_denominator=N_TARGETS)


def kto(module: torch.nn.Module, batch: ModelBatch) -> Tensor:
    logps = module(batch)[0].sum(1)
    desirable = torch.arange(len(logps)) % 2 == 0
    return kto_loss(logps, 0.9 * logps.detach(), desirable, torch.tensor(0.3), beta=0.1).sum() / (2 * N_PAIRS)


def grpo(module: torch.nn.Module, batch: ModelBatch) -> Tensor:
    """Advantages of either sign, a sampler that was a little behind, and the KL in the loss."""
    logprobs, mask = module(batch)[0], target_mask(batch)
    advantages = torch.tensor([1.0, -0.5])[torch.arange(len(logprobs)) % 2, None] * mask
    losses = ppo_loss(logprobs, logprobs.detach(), advantages, mask, clip_low=0.2, clip_high=0.2).losses
    weights = rollout_correction(logprobs, logprobs.detach() * 1.01, mask, "truncate", low=0.0, high=1.05)
    losses = losses * weights + 0.1 * kl_estimate(logprobs, 0.99 * logprobs.detach(), "k3", mask)
    return aggregate(losses, mask, "sequence_mean", global_denominator=2 * N_PAIRS)


def reward(module: torch.nn.Module, batch: ModelBatch) -> Tensor:
    chosen, rejected = module(batch).view(-1, 2).unbind(1)
    return pairwise_reward_loss(chosen, rejected, torch.zeros_like(chosen)).sum() / N_PAIRS


def value(module: torch.nn.Module, batch: ModelBatch) -> Tensor:
    values = module(batch, per_token=True)
    losses = value_loss(values, torch.zeros_like(values), torch.ones_like(values), target_mask(batch), clip=0.2)
    return aggregate(losses, target_mask(batch), "token_mean", global_denominator=N_TARGETS)


Loss = Callable[[torch.nn.Module, ModelBatch], Tensor]
POLICY_LOSSES: dict[str, Loss] = {"sft": sft, "preference": preference, "kto": kto, "policy": policy, "grpo": grpo}
SCORE_LOSSES: dict[str, Loss] = {"reward": reward, "value": value}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("loss", [*POLICY_LOSSES, *SCORE_LOSSES])
def test_one_micro_batch_or_several(loss: str, attention: str, path: Path) -> None:
    module: PolicyModule | ScoreModule
    if loss in POLICY_LOSSES:
        module = PolicyModule(load_lm(path, dtype="fp32", attention=attention))
    else:
        scorer = load_scorer(path, dtype="fp32", attention=attention, new_head=True)
        torch.nn.init.normal_(scorer.score.weight, std=0.2, generator=torch.Generator().manual_seed(0))
        module = ScoreModule(scorer)
    function, rows, gradients = (POLICY_LOSSES | SCORE_LOSSES)[loss], rows_of_pairs(), []
    for pairs_at_a_time, packed in ((N_PAIRS, True), (1, True), (3, False)):
        module.zero_grad()
        for start in range(0, len(rows), 2 * pairs_at_a_time):
            part = rows[start : start + 2 * pairs_at_a_time]
            function(module, collate(part, pad_id=0, packed=packed, shared=module.layouts.shared and packed)).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]))
    for cut in gradients[1:]:
        assert (cut - gradients[0]).norm() <= 1e-6 * gradients[0].norm()
