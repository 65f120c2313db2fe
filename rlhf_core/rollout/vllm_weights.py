"""What runs inside vLLM's worker to replace its weights; vLLM loads this class by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class WeightUpdate:
    """Mixed into vLLM's worker (`worker_extension_cls`), so `self` is the worker."""

    model_runner: Any
    model_config: Any

    def load_policy_weights(self, state: Mapping[str, Tensor]) -> None:
        """Replace all weights by `state` (Hugging Face names).

        The worker's `reload_weights` also repacks them for the CPU kernels, which `model.load_weights` alone cannot.
        """
        self.model_runner.reload_weights(weights_iterator=iter(state.items()))
        model = self.model_runner.get_model()
        if getattr(self.model_runner.model_config.hf_text_config, "tie_word_embeddings", False):
            _refresh_tied_heads(model)


def _refresh_tied_heads(model: nn.Module) -> None:
    """A tied head keeps its own packed copy of the embedding, which a reload leaves stale without a word."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    layers = [m for m in model.modules() if isinstance(m, VocabParallelEmbedding)]
    heads = [m for m in layers if isinstance(m, ParallelLMHead)]
    embedding = next(m for m in layers if not isinstance(m, ParallelLMHead) and m.num_embeddings == heads[0].num_embeddings)
    for head in heads:
        head.weight = embedding.weight
        head.quant_method.process_weights_after_loading(head)
