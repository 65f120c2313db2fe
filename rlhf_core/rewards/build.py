"""From settings to scorers: the one table of reward kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from data_processing.errors import ConfigError
from rlhf_core.rewards.base import Scorer
from rlhf_core.rewards.compose import ComposedReward, Retries
from rlhf_core.rewards.weighing import Weighing
from rlhf_core.settings.credit import CreditSettings
from rlhf_core.settings.rewards.base import RewardSettings
from rlhf_core.settings.training import EngineSettings

# By kind, the function `(settings, around) -> Scorer`. By name, so that a run loads what its own rewards need: most need no torch.
_BUILDERS: Mapping[str, str] = {
    "reward_model": "rlhf_core.credit.reward_model_folder:build",
    "process_reward_model": "rlhf_core.rewards.process_reward_model:build",
    "classifier": "rlhf_core.rewards.classifier:build",
    "procedures": "rlhf_core.rewards.procedures:build",
    "python": "rlhf_core.rewards.python_function:build",
    "environment": "rlhf_core.rewards.environment:build",
    "code": "rlhf_core.rewards.code:build",
    "http": "rlhf_core.rewards.services.http:build",
    "judge": "rlhf_core.rewards.services.judge:build",
    "exact": "rlhf_core.rewards.verifiers.exact:build",
    "numeric": "rlhf_core.rewards.verifiers.numeric:build",
    "math": "rlhf_core.rewards.verifiers.mathematics:build",
    "choice": "rlhf_core.rewards.verifiers.choice:build",
    "regex": "rlhf_core.rewards.verifiers.regular_expression:build",
    "json_schema": "rlhf_core.rewards.verifiers.json_schema:build",
    "length": "rlhf_core.rewards.verifiers.length:build",
    "instructions": "rlhf_core.rewards.verifiers.instructions:build",
    "vr_cli": "rlhf_core.credit.vr_cli.reward:build",
    "reasoning_gym": "rlhf_core.rewards.verifiers.reasoning_gym:build",
}

# Of the time after which nobody waits for a call any more: a source that hangs is named before its process is given up.
REWARD_SHARE = 0.9
# Where what services said is kept, so that the next attempt asks nothing again.
VERDICTS = "verdicts"


@dataclass(frozen=True, slots=True)
class Around:
    """What scorers are built in: the policy, the inputs of the entry that are scorers, by name, and how models compute.

    A call of what may hang may take `limit_s` seconds; what fails for a while is tried again as `retries` say.
    Services are asked on this machine and at `allowed_hosts`; what they gave is kept in `cache_folder`, None: in memory only. `credit` is
    where the run's rewards go, for scorers that give them to tokens.
    """

    policy_model: Path
    engine: EngineSettings
    scorers: Mapping[str, Path] = field(default_factory=dict)
    trust_remote_code: bool = False
    retries: Retries = field(default_factory=Retries)
    limit_s: float | None = None
    allowed_hosts: tuple[str, ...] = ()
    cache_folder: Path | None = None
    credit: CreditSettings | None = None

    @classmethod
    def of_stage(
        cls,
        policy_model: Path,
        engine: EngineSettings,
        scorers: Mapping[str, Path],
        *,
        stall_after_s: float,
        resume: Path,
        allowed_hosts: tuple[str, ...],
        retries: Retries | None = None,
        trust_remote_code: bool = True,
        credit: CreditSettings | None = None,
    ) -> Around:
        """In a stage that counts as hung after `stall_after_s` and keeps for its next attempt what is below `resume`."""
        limit_s, kept = REWARD_SHARE * stall_after_s, resume / VERDICTS
        return cls(
            policy_model,
            engine,
            scorers,
            trust_remote_code,
            retries or Retries(),
            limit_s,
            allowed_hosts,
            cache_folder=kept,
            credit=credit,
        )

    def scorer(self, source: RewardSettings, name: str) -> Path:
        """The folder of the scorer that the input `name` is; raises `ConfigError` where there is none."""
        if name not in self.scorers:
            raise ConfigError(
                f"rewards: kind '{source.kind}' needs the reward model '{name}', and this run has {sorted(self.scorers) or 'none'}: name an "
                "entry that makes one as that input, or use another kind"
            )
        return self.scorers[name]


def build_reward(sources: Sequence[RewardSettings], around: Around, *, rounds: int = 1) -> ComposedReward:
    """Load every source, for a run of `rounds`. Raises `ConfigError` for one that cannot be had."""
    weighed = [(build_scorer(source, around), _weighing(source)) for source in sources]
    return ComposedReward(weighed, around.retries, rounds, names=[source.name for source in sources])


def build_scorer(source: RewardSettings, around: Around) -> Scorer:
    """Load one source."""
    module, _, name = _BUILDERS[source.kind].partition(":")
    scorer: Scorer = getattr(import_module(module), name)(source, around)
    return scorer


def _weighing(source: RewardSettings) -> Weighing:
    return Weighing(source.weight, source.final_weight, source.normalise)
