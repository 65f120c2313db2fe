"""Forward passes over given rows: log-probs under a model, scores under a reward model. Each model is loaded, used, dropped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rlhf_core.models.load import load_lm, load_scorer, load_tokenizer
from rlhf_core.models.modules import PolicyModule, ScoreModule
from torch import Tensor, nn

from data_processing.errors import ConfigError
from evaluation.config import EvaluateConfig
from rlhf_core.batching.balance import micro_batches
from rlhf_core.batching.collate import ModelBatch, collate
from rlhf_core.batching.rows import TokenRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_logprobs(model: Path, rows: Sequence[TokenRow], config: EvaluateConfig, temperature: float = 1.0) -> list[Tensor]:
    """Log-probs (nats, fp32) of each row's targets under the model in folder `model`: one `[targets]` tensor a row."""
    module = PolicyModule(load_lm(model, dtype=config.dtype, attention="sdpa"))

    def of_batch(batch: ModelBatch) -> list[Tensor]:
        logprobs, _ = module(batch, temperature=temperature)
        return [values.clone() for values in logprobs.float().cpu()]

    padded = _forward_all(module, rows, config, of_batch)
    return [values[: row.n_targets] for values, row in zip(padded, rows, strict=True)]


def reward_scores(reward_model: Path, rows: Sequence[TokenRow], config: EvaluateConfig) -> list[float]:
    """The reward model's score of each whole row."""
    module = ScoreModule(load_scorer(reward_model, dtype=config.dtype, attention="sdpa", new_head=False))
    return [float(score) for score in _forward_all(module, rows, config, lambda batch: list(module(batch).float().cpu()))]


def check_same_tokens(first: Path, second: Path, metric: str) -> None:
    """Raise `ConfigError` unless both model folders' tokenizers give every token the same id."""
    if _vocabulary(load_tokenizer(first)) != _vocabulary(load_tokenizer(second)):
        raise ConfigError(
            f"evaluate.metrics: '{metric}' cannot apply: the tokenizers of {first.name} and {second.name} differ, so the answer's "
            f"tokens mean different things to them; use models that share a tokenizer, or leave '{metric}' out"
        )


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    return dict(tokenizer.get_vocab())


def _forward_all(
    module: nn.Module, rows: Sequence[TokenRow], config: EvaluateConfig, of_batch: Callable[[ModelBatch], list[Tensor]]
) -> list[Tensor]:
    """`of_batch` over packed micro-batches without gradients; its tensors, one a row, in the order of `rows`.

    How rows are packed depends on their lengths alone, so the same rows give the same numbers under the same weights.
    """
    device = torch.device("cuda" if config.gpus > 0 and torch.cuda.is_available() else "cpu")
    module.to(device).eval()
    torch.set_num_threads(config.threads)
    results: dict[int, Tensor] = {}
    with torch.no_grad():
        for indices in micro_batches([len(row) for row in rows], config.micro_batch_tokens, world_size=1)[0]:
            batch = collate([rows[i] for i in indices], pad_id=0, packed=True).to(device)
            results.update(zip(indices, of_batch(batch), strict=True))
    return [results[i] for i in range(len(rows))]
