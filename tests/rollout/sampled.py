"""Helpers of the rollout tests: models that vLLM's CPU kernels take, and what transformers says about a generation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf_core.rollout.base import Generation
from tests.tiny_models import Architecture, tiny_config, tiny_tokenizer

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [300, 40]]


def wide_headed_model(folder: Path, arch: Architecture, *, tied: bool) -> Path:
    """A tiny model with heads of 32, the smallest that vLLM's attention on CPU knows."""
    tokenizer = tiny_tokenizer(arch)
    config = tiny_config(arch, tokenizer, tied)
    if arch == "gpt2":
        config.n_embd = 4 * 32
    else:
        config.head_dim = 32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def changed_weights(folder: Path, seed: int = 1) -> PreTrainedModel:
    """The folder's model with every weight moved."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def token_logprobs(model: PreTrainedModel, prompt: Sequence[int], response: Sequence[int], temperature: float) -> torch.Tensor:
    """Log-probs [len(response), V] of transformers at each response position."""
    logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits.float() / temperature, -1)


def largest_gap(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], groups: Sequence[Sequence[Generation]], temperature: float
) -> float:
    """Largest |sampler - transformers| log-prob over all sampled tokens."""
    gaps = []
    for prompt, group in zip(prompts, groups, strict=True):
        for generation in group:
            expected = token_logprobs(model, prompt, generation.response_ids, temperature)
            chosen = expected.gather(1, torch.tensor(generation.response_ids)[:, None])[:, 0]
            gaps.append((chosen - torch.tensor(generation.logprobs)).abs().max())
    return float(torch.stack(gaps).max())


def is_greedy(model: PreTrainedModel, prompt: Sequence[int], generation: Generation) -> bool:
    """Whether each token is the one that transformers finds the likeliest there."""
    best = token_logprobs(model, prompt, generation.response_ids, 1.0).argmax(-1)
    return best.tolist() == generation.response_ids
