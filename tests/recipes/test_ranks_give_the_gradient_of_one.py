"""The gradient of every recipe and of both online actors: on two ranks it is that of one, to 1e-6."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_processing.schemas import to_table, write_table
from rlhf_core.batching.collate import collate
from rlhf_core.batching.rows import TokenRow
from rlhf_core.cluster.actors import CriticWorker, ModelSetup, PolicyWorker
from rlhf_core.cluster.launch import launch
from rlhf_core.cluster.resources import ranks
from rlhf_core.models.load import load_lm
from rlhf_core.models.modules import PolicyModule
from rlhf_core.recipes.distill import train_distill
from rlhf_core.recipes.online.losses import CriticObjective, PolicyObjective
from rlhf_core.recipes.online.rollouts import mini_batches
from rlhf_core.recipes.preference import train_preference
from rlhf_core.recipes.reward_model import train_reward_model
from rlhf_core.recipes.sft import train_sft
from rlhf_core.settings.online import OnlineConfig
from rlhf_core.settings.training import OptimizerSettings
from tests.recipes.gradients import ActorRun, gradients_of
from tests.recipes.small_jobs import (
    FULL,
    distill_config,
    engine,
    job,
    preference_config,
    reward_config,
    sft_config,
    step_row,
    weighted_row,
    write_data,
    write_sft,
)
from tests.tiny_models import tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_local")]

# Each loss with the ZeRO stage of its two ranks; one rank has stage 1.
ZERO_STAGES = {
    "sft": 1,
    "distill": 3,
    "weighted sft with noise": 3,
    "reward_model": 2,
    "process rewards": 2,
    "preference": 3,
    "policy": 1,
    "critic": 3,
}
RECIPES: dict[str, tuple[Any, Any]] = {
    "sft": (train_sft, sft_config),
    # Its teacher is the model with other weights.
    "distill": (train_distill, partial(distill_config, divergence="jsd")),
    "weighted sft with noise": (train_sft, partial(sft_config, neftune_alpha=5.0)),
    "reward_model": (train_reward_model, reward_config),
    "process rewards": (train_reward_model, partial(reward_config, granularity="step")),
    # Both denominators: pairs, and the chosen responses' tokens.
    "preference": (train_preference, partial(preference_config, nll_coef=0.1)),
}
# No step has an even number of rows, so one rank has more of them than the other. Ten rows in batches of seven: 7, 3, 7.
BATCH_SIZE, N_STEPS = 7, 3
PLAN = [[0, 1, 2, 3, 4], [5, 6, 7], [8, 0, 3, 6, 2]]
# After the first step two ranks' weights are those of one up to rounding, which a large epsilon keeps as small as it is;
# by then scores are no longer 0 nor the policy its reference.
OPTIMIZER = OptimizerSettings(learning_rate=0.002, schedule="constant", warmup_fraction=0.0, epsilon=1.0)

Runs = dict[str, Callable[[], None]]


def rollout_rows() -> list[TokenRow]:
    """Three responses of 1 to 33 tokens to each of three prompts."""
    generator = torch.Generator().manual_seed(2)
    draw = lambda n: torch.randint(3, 480, (n,), generator=generator).tolist()  # noqa: E731
    lengths = [(5, (9, 4, 22)), (20, (3, 30, 1)), (1, (12, 33, 6))]
    return [TokenRow.from_prompt_response(prompt, draw(n)) for size, ns in lengths for prompt in [draw(size)] for n in ns]


def actor_runs(model: Path, world_size: int) -> Runs:
    """PPO's updates of the policy and of the critic, on responses that older weights drew: some ratios are clipped."""
    config = OnlineConfig(entropy_coef=0.01)
    rows, generator = rollout_rows(), torch.Generator().manual_seed(3)
    with torch.no_grad():
        logprobs: Tensor = PolicyModule(load_lm(model, dtype="fp32", attention="sdpa"))(collate(rows, pad_id=0, packed=False))[0]
    noise = lambda scale: scale * torch.randn(logprobs.shape, generator=generator)  # noqa: E731
    policy = {"old_logprobs": logprobs + noise(0.2), "advantages": noise(1.0)}
    critic = {"values": noise(0.3), "returns": noise(1.0)}

    def setup(role: str) -> ModelSetup:
        layout = engine(world_size=world_size, zero_stage=ZERO_STAGES[role] if world_size > 1 else 1)
        return ModelSetup(model, layout, FULL, OPTIMIZER, N_STEPS, 0, 3, new_head=role == "critic", trust_remote_code=False)

    plan, objective = mini_batches(PLAN, rows), PolicyObjective(config, 0.0)
    return {
        "policy": ActorRun(PolicyWorker, setup("policy"), objective, rows, policy, plan),
        "critic": ActorRun(CriticWorker, setup("critic"), CriticObjective(config.critic.value_clip), rows, critic, plan),
    }


def recipe_runs(model: Path, data: Path, work: Path, world_size: int) -> Runs:
    """Three steps of each offline recipe."""
    runs: Runs = {}
    for name, (train, config) in RECIPES.items():
        layout = engine(world_size=world_size, zero_stage=ZERO_STAGES[name] if world_size > 1 else 1)
        settings = config(lora=FULL, optimizer=OPTIMIZER, batch_size=BATCH_SIZE, max_steps=N_STEPS, engine=layout)
        table = data / "weighted" if "weighted" in name else data
        run = job(settings, model, table, work / f"{name}-{world_size}")
        runs[name] = partial(train, replace(run, teacher=model.with_name("llama-tied-1")))
    return runs


@pytest.fixture(scope="module")
def gradients(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Tensor]]]:
    """All gradients on one rank, and on two; the ranks start once for all losses."""
    work = tmp_path_factory.mktemp("ranks")
    model, data = tiny_model(work), write_data(work / "data", validation_rows=0)
    tiny_model(work, seed=1)
    write_table("stepwise", to_table("stepwise", map(step_row, range(10))), data / "stepwise" / "train.parquet")
    write_sft(data / "weighted", [weighted_row(number) for number in range(10)])
    found = []
    for n in (1, 2):
        runs = recipe_runs(model, data, work, n) | actor_runs(model, n)
        found.append(launch(gradients_of, runs, resources=ranks(n), threads=1))
    return found


@pytest.mark.parametrize("loss", ZERO_STAGES)
def test_two_ranks_give_the_gradient_of_one(loss: str, gradients: list[dict[str, list[Tensor]]]) -> None:
    one, two = (of_losses[loss] for of_losses in gradients)
    assert len(one) == len(two) == N_STEPS
    for alone, together in zip(one, two, strict=True):
        assert alone.norm() > 0
        assert (together - alone).norm() <= 1e-6 * alone.norm()
