"""Python reward functions are called once before anything is started: what is wrong with one is not to be found hours later."""

from __future__ import annotations

import logging
from typing import Any

from data_processing.config import DataConfig
from data_processing.first_prompts import first_prompts
from data_processing.settings import Settings
from flows.graph.nodes import Node
from flows.graph.plan import Plan
from rlhf_core.rewards.trial import try_function
from rlhf_core.settings.online import OnlineConfig
from rlhf_core.settings.own_answers import IterativeConfig, SampleSettings
from rlhf_core.settings.rollout import RewardSource

_PROMPTS = 2
_LOG = logging.getLogger("alignflow")


def check_rewards(plan: Plan) -> None:
    """Raise `ConfigError` for a function of a node that runs which cannot be imported or called, does not return, or returns
    what is no reward. What may work later, such as a service that is not up yet, is a warning.
    """
    tried: set[tuple[str, str | None]] = set()
    for planned in plan.values():
        if not planned.runs:
            continue
        data_node = planned.node.inputs.get("data")
        for source in _rewards_of(planned.node.settings):
            if source.function is None or (source.function, data_node) in tried:
                continue
            tried.add((source.function, data_node))
            prompts = _prompts(plan[data_node].node) if data_node else []
            if later := try_function(source.function, prompts):
                _LOG.warning("warning: %s; it is called again in training", later)


def _rewards_of(settings: Settings) -> list[RewardSource]:
    if isinstance(settings, IterativeConfig):
        settings = settings.sample
    return settings.rewards if isinstance(settings, (OnlineConfig, SampleSettings)) else []


def _prompts(data: Node) -> list[dict[str, Any]]:
    settings = data.settings
    return first_prompts(settings, _PROMPTS, data.seed)[:_PROMPTS] if isinstance(settings, DataConfig) else []
