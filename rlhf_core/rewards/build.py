"""From settings to scorers: the one table of reward kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_processing.errors import ConfigError
from rlhf_core.rewards.base import Scorer
from rlhf_core.rewards.compose import ComposedReward, Retries
from rlhf_core.rewards.procedures import ProceduresScorer
from rlhf_core.rewards.python_function import PythonScorer
from rlhf_core.rewards.weighing import Weighing
from rlhf_core.settings.rollout import RewardSource
from rlhf_core.settings.training import EngineSettings


def build_reward(
    sources: list[RewardSource],
    *,
    policy_model: Path,
    reward_model: Path | None,
    engine: EngineSettings,
    trust_remote_code: bool,
    retries: Retries | None = None,
    limit_s: float | None = None,
    rounds: int = 1,
) -> ComposedReward:
    """Load every source, for a run of `rounds`; a call of a Python function may take `limit_s` seconds.

    Raises `ConfigError` for a reward model that is asked for but not given.
    """

    def scorer(source: RewardSource) -> Scorer:
        if source.function is not None:
            return PythonScorer(source.function, limit_s)
        return _scorer(source, policy_model, reward_model, engine, trust_remote_code)

    weighed = [(scorer(s), Weighing(s.weight, s.final_weight, s.normalise)) for s in sources]
    return ComposedReward(weighed, retries, rounds)


def _scorer(
    source: RewardSource, policy_model: Path, reward_model: Path | None, engine: EngineSettings, trust_remote_code: bool
) -> Scorer:
    if source.kind == "procedures":
        return ProceduresScorer()
    if reward_model is None:
        raise ConfigError(
            f"rewards: kind '{source.kind}' needs a reward model, and this run has none: add the reward_model stage, or use another kind"
        )
    # Only here, so that a run without a reward model does not load torch models in this process.
    from rlhf_core.rewards.process_reward_model import ProcessScorer
    from rlhf_core.rewards.reward_model import RewardModelScorer

    loading: dict[str, Any] = {
        "dtype": engine.precision,
        "attention": engine.attention,
        "micro_batch_tokens": engine.micro_batch_tokens,
        "packing": engine.packing,
        "gpus": engine.gpus_per_rank,
        "trust_remote_code": trust_remote_code,
    }
    if source.kind == "process_reward_model":
        return ProcessScorer(
            reward_model, policy_model, of_steps=source.of_steps or "each", separator=source.step_separator or "\n\n", **loading
        )
    return RewardModelScorer(reward_model, policy_model, **loading)
