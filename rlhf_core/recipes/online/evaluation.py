"""The policy measured while it trains: its answers to prompts of the validation split, and what they are worth.

They are drawn beside the round's update, by the sampler, which has nothing else to do then; the test split stays for the end.
"""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from data_processing.errors import ConfigError
from rlhf_core.batching.templates import Renderer
from rlhf_core.recipes.best import Best, kept_weights
from rlhf_core.recipes.online.job import OnlineJob
from rlhf_core.recipes.online.sampler import Sampler
from rlhf_core.recipes.online.workers import Workers
from rlhf_core.recipes.prompts import Limits, Prompt, read_prompts, scored_response
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rewards.compose import Rewards

SPLIT = "validation"


def read_validation_prompts(job: OnlineJob, renderer: Renderer, tools: Sequence[Mapping[str, Any]] | None = None) -> list[Prompt]:
    """The prompts that are measured on, drawn by seed; none where nothing is. Raises `ConfigError` where there are none."""
    config = job.config
    if not config.eval_every_steps:
        return []
    if not (job.data / "prompts" / f"{SPLIT}.parquet").is_file():
        raise ConfigError(
            f"online.eval_every_steps={config.eval_every_steps} without prompts in the validation split: give the data some "
            "(data.validation_fraction, data.procedures.validation_rows), or leave it out"
        )
    prompts = read_prompts(job.data, Limits.of(config, config.rollout), job.events, renderer, SPLIT, tools=tools)
    return random.Random(job.seed).sample(prompts, min(len(prompts), config.evaluation.max_prompts))


@dataclass
class Evaluation:
    """Measures the policy after every so many rounds, and keeps the weights that did best. Nothing without `eval_every_steps`."""

    job: OnlineJob
    workers: Workers
    sampler: Sampler
    renderer: Renderer
    prompts: list[Prompt]
    wait: Callable[..., list[list[Any]]]
    best: Best = field(init=False)
    _begun: int | None = None

    def __post_init__(self) -> None:
        self.best = Best(self.job.config, self.job.resume)

    def begin(self, step: int) -> None:
        """Have answers drawn with the present weights, those after `step` rounds, if it is their turn.

        Their weights are put aside as well, where the best ones are to stay: soon they will be others.
        """
        config = self.job.config
        is_due = config.eval_every_steps and step and (step % config.eval_every_steps == 0 or step == config.steps)
        if not is_due:
            return
        self._begun = step
        self.sampler.draw_apart(self.prompts, step, greedy=config.evaluation.greedy, averaged=config.ema_decay is not None)
        if config.keep_best is not None:
            shutil.rmtree(self._candidate, ignore_errors=True)
            self._candidate.mkdir(parents=True)
            self.wait(self.workers["policy"].call("save_final", self._candidate))

    def finish(self) -> None:
        """Score the answers of the evaluation that was begun, if one was, and report it as of its step."""
        if self._begun is None:
            return
        step, self._begun = self._begun, None
        groups = self.sampler.collect_apart().groups
        last = self.job.config.steps - 1
        responses = [
            # As of the last round, so that weights that change with the rounds are the same for all evaluations.
            scored_response(prompt, generation, self.renderer.tokenizer, last)
            for prompt, group in zip(self.prompts, groups, strict=True)
            for generation in group
        ]
        [[rewards]] = self.wait(self.workers["reward"].call("judge", responses))
        metrics = evaluation_metrics(rewards, responses)
        self.job.events.metrics(step, metrics)
        self.best.see(step, metrics, self._move_candidate)
        shutil.rmtree(self._candidate, ignore_errors=True)

    @property
    def is_over(self) -> bool:
        """Whether training ends, as it has not become better for long."""
        return self.best.is_over

    @property
    def weights(self) -> Path | None:
        """The folder of the best weights, where they are to stay."""
        return kept_weights(self.job.resume)

    def state(self) -> dict[str, Any]:
        """For `restore`."""
        return self.best.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's."""
        self.best.restore(state)

    @property
    def _candidate(self) -> Path:
        return self.job.resume / "measured"

    def _move_candidate(self, folder: Path) -> None:
        for entry in self._candidate.iterdir():
            shutil.move(entry, folder / entry.name)


def evaluation_metrics(rewards: Rewards, responses: list[ScoredResponse]) -> dict[str, float]:
    """What an evaluation reports: means over the answers that have a reward, and the shares of those that have none or were cut."""
    told = {**rewards.by_source, **rewards.metrics}
    by_name = {"eval_reward": rewards.worth, **{f"eval_reward/{name}": values for name, values in told.items()}}
    known = {name: [v for v in values if v is not None and not math.isnan(v)] for name, values in by_name.items()}
    return {
        **{name: fmean(values) for name, values in known.items() if values},
        "eval_invalid_share": rewards.invalid_share,
        "eval_length": fmean(len(response.response_ids) for response in responses),
        "eval_truncated_share": fmean(response.finish_reason == "length" for response in responses),
    }
