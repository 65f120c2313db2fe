"""Log-probs of given rows under a model in a folder. One model at a time is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from data_processing.errors import ConfigError
from data_processing.pace import Pace
from evaluation.job import EvaluationJob
from rlhf_core.batching.rows import TokenRow
from rlhf_core.device import device_for
from rlhf_core.models.load import load_lm, same_tokens
from rlhf_core.models.modules import PolicyModule
from rlhf_core.models.passes import passes


@torch.no_grad()
def token_logprobs(job: EvaluationJob, model: Path, rows: Sequence[TokenRow], temperature: float = 1.0) -> list[Tensor]:
    """Log-probs (nats, fp32) of each row's targets under softmax(logits / temperature): one `[targets]` tensor a row.

    How rows are laid out depends on rows and model alone, so the same rows give the same numbers under the same weights.
    """
    config = job.config
    torch.set_num_threads(config.threads)
    device = device_for(config.gpus)
    module = _loaded(job, model)
    found: dict[int, Tensor] = {}
    layouts = module.layouts
    for note in layouts.notes:
        job.events.warn_once(note)
    job.events.metrics(0, layouts.metrics)
    for indices, batch in passes(rows, layouts, config.micro_batch_tokens, device, teller(job, "log-probs")):
        logprobs, _ = module(batch, temperature=temperature)
        found.update({i: logprobs[k, : rows[i].n_targets].cpu() for k, i in enumerate(indices)})
    return [found[i] for i in range(len(rows))]


def _loaded(job: EvaluationJob, model: Path) -> PolicyModule:
    """The model of a folder. The latest stays, as one metric after the other asks for the same; there are never two."""
    if model not in job.loaded:
        job.loaded.clear()
        lm = load_lm(model, dtype=job.config.precision, attention="auto", trust_remote_code=True)
        job.loaded[model] = PolicyModule(lm.to(device_for(job.config.gpus))).eval()
    return job.loaded[model]


def teller(job: EvaluationJob, what: str) -> Callable[[int, int], None]:
    """What tells people, once a second, how many micro-batches are done, and how long the others still take."""
    pace = Pace()

    def tell(done: int, total: int) -> None:
        if pace.is_due():
            job.events.progress(done, total, f"{what}: micro-batch {done} of {total}{pace.left(done, total)}")

    return tell


def check_same_tokens(model: Path, base: Path) -> None:
    """Raise `ConfigError` unless the tokenizers of both folders give every token the same id."""
    if not same_tokens(model, base, trust_remote_code=True):
        raise ConfigError(
            f"evaluate.metrics: 'kl' cannot apply: the tokenizers of {model.name} and of the base {base.name} differ, so a token "
            "id means different things to them; compare models that share a tokenizer, or leave 'kl' out"
        )
