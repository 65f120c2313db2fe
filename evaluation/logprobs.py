"""Log-probs of given rows under a model in a folder. The model is loaded, used and dropped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from data_processing.errors import ConfigError
from evaluation.job import EvaluationJob
from rlhf_core.batching.collate import collate
from rlhf_core.batching.rows import TokenRow
from rlhf_core.batching.sharing import plan_rows
from rlhf_core.device import device_for
from rlhf_core.models.load import load_lm, same_tokens
from rlhf_core.models.modules import PolicyModule


@torch.no_grad()
def token_logprobs(job: EvaluationJob, model: Path, rows: Sequence[TokenRow], temperature: float = 1.0) -> list[Tensor]:
    """Log-probs (nats, fp32) of each row's targets under softmax(logits / temperature): one `[targets]` tensor a row.

    How rows are laid out depends on rows and model alone, so the same rows give the same numbers under the same weights.
    """
    config = job.config
    torch.set_num_threads(config.threads)
    device = device_for(config.gpus)
    module = PolicyModule(load_lm(model, dtype=config.precision, attention="auto", trust_remote_code=True).to(device)).eval()
    found: dict[int, Tensor] = {}
    layouts = module.layouts
    for note in layouts.notes:
        job.events.warn_once(note)
    for indices in plan_rows(rows, config.micro_batch_tokens, 1, packed=layouts.packed, shared=layouts.shared)[0]:
        part = [rows[i] for i in indices]
        batch = collate(part, pad_id=0, packed=layouts.packed, shared=layouts.shared).to(device)
        logprobs, _ = module(batch, temperature=temperature)
        found.update({i: logprobs[k, : rows[i].n_targets].cpu() for k, i in enumerate(indices)})
    return [found[i] for i in range(len(rows))]


def check_same_tokens(model: Path, base: Path) -> None:
    """Raise `ConfigError` unless the tokenizers of both folders give every token the same id."""
    if not same_tokens(model, base, trust_remote_code=True):
        raise ConfigError(
            f"evaluate.metrics: 'kl' cannot apply: the tokenizers of {model.name} and of the base {base.name} differ, so a token "
            "id means different things to them; compare models that share a tokenizer, or leave 'kl' out"
        )
