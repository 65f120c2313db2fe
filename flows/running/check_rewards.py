"""Rewards are asked once before anything is started: what is wrong with one is not to be found hours later."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from data_processing.config import DataConfig
from data_processing.settings import Settings
from flows.graph.nodes import Node
from flows.graph.plan import Plan
from rlhf_core.addresses import check_url
from rlhf_core.settings.online import OnlineConfig
from rlhf_core.settings.own_answers import IterativeConfig, SampleSettings
from rlhf_core.settings.rewards.base import RewardSettings

_PROMPTS = 2
_LOG = logging.getLogger("alignflow")


def check_rewards(plan: Plan, allowed_hosts: Sequence[str]) -> None:
    """Raise `ConfigError` for a reward of a node that runs which cannot be loaded or asked, does not return, or says what is no
    reward. What may work later, such as a service that is not up yet, is a warning. Models are not loaded for this.
    """
    tried: set[tuple[str, str | None]] = set()
    for node, source in _rewards(plan):
        data = node.inputs.get("data")
        told = (json.dumps(source.model_dump(mode="json")), data)
        if source.computes or told in tried:
            continue
        tried.add(told)
        from rlhf_core.rewards.trial import ask, ask_apart  # takes a while to import, as what makes prompts does

        prompts = tried_prompts(plan[data].node) if data else []
        asked = ask_apart if source.may_hang else ask
        if later := asked(source, prompts, allowed_hosts):
            _LOG.warning("warning: %s; it is asked again in training", later)


def check_addresses(plan: Plan, allowed_hosts: Sequence[str]) -> None:
    """Raise `ConfigError` for a reward of a node that runs which asks a host that is not allowed."""
    for node, source in _rewards(plan):
        for url in source.urls:
            check_url(url, allowed_hosts, f"{node.name}: rewards: kind '{source.kind}': url")


def _rewards(plan: Plan) -> Iterator[tuple[Node, RewardSettings]]:
    for planned in plan.values():
        for source in _rewards_of(planned.node.settings) if planned.runs else ():
            yield planned.node, source


def _rewards_of(settings: Settings) -> Sequence[RewardSettings]:
    if isinstance(settings, IterativeConfig):
        settings = settings.sample
    return settings.rewards if isinstance(settings, (OnlineConfig, SampleSettings)) else []


def tried_prompts(data: Node) -> list[dict[str, Any]]:
    """The first prompts that a node gives: what rewards and environments are tried on."""
    if not isinstance(data.settings, DataConfig):
        return []
    from data_processing.first_prompts import first_prompts

    return first_prompts(data.settings, _PROMPTS, data.seed)[:_PROMPTS]
