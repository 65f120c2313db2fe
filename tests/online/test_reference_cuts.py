"""The reference computes what the policy's ranks compute, so that the same weights give the same bits."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rlhf_core.batching.collate import ModelBatch
from rlhf_core.batching.rows import TokenRow
from rlhf_core.cluster.actors import ModelSetup, PolicyWorker, ScoringWorker
from rlhf_core.recipes.online.losses import ResponseLogprobs
from rlhf_core.settings.training import EngineSettings, LoraSettings, OptimizerSettings
from tests.tiny_models import tiny_model


@dataclass
class Watched:
    """A scoring pass that remembers what it computed together."""

    batches: list[list[int]] = field(default_factory=list)

    def __call__(self, module: nn.Module, batch: ModelBatch) -> dict[str, Tensor]:
        if batch.n_rows:
            self.batches.append(batch.input_ids.flatten().tolist())
        return ResponseLogprobs(1.0)(module, batch)


def rows() -> list[TokenRow]:
    """Three responses to each of five prompts, of many lengths."""
    generator = torch.Generator().manual_seed(4)
    draw = lambda n: torch.randint(3, 480, (n,), generator=generator).tolist()  # noqa: E731
    prompts = [draw(n) for n in (3, 11, 6, 20, 9)]
    return [TokenRow.from_prompt_response(prompt, draw(2 + 5 * k + p)) for p, prompt in enumerate(prompts) for k in range(3)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_reference_computes_together_what_the_policys_ranks_do(tmp_path: Path, world_size: int) -> None:
    settings = EngineSettings(dtype="fp32", world_size=world_size, micro_batch_tokens=64)
    setup = ModelSetup(
        tiny_model(tmp_path),
        settings,
        LoraSettings(rank=0),
        OptimizerSettings(),
        1,
        0,
        0,
        new_head=False,
        trust_remote_code=False,
    )
    reference, policy = ScoringWorker(), PolicyWorker()
    reference.setup(setup)
    policy.setup(setup)
    alone, together = Watched(), Watched()
    expected = torch.zeros(())
    for policy.rank in range(world_size):
        policy.world_size = world_size
        expected = expected + policy.predict(together, rows())["logprobs"]
    assert reference.predict(alone, rows())["logprobs"].equal(expected)
    assert alone.batches == together.batches
    assert len(alone.batches) > world_size
