"""What is checked before anything is submitted, beside the settings themselves: model, rewards, disk; servers in `check_servers`."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from flows.graph.nodes import Node, ancestors
from flows.graph.plan import Plan, has_work, reserves
from flows.running.check_environments import check_environments
from flows.running.check_rewards import check_addresses, check_rewards
from flows.running.check_servers import check_servers, check_tracking_address
from flows.running.check_stages import check_adapters, check_devices, check_metrics, check_room, check_segments, check_tables
from flows.running.cluster import capacity_of_cluster
from flows.settings.config import PipelineConfig
from rlhf_core.settings.models import BaseModelConfig
from rlhf_core.settings.online import OnlineConfig
from rlhf_core.settings.supervised import RewardModelConfig
from tasks.runtime.contract.config import ExecutorKind
from tasks.runtime.contract.disk import check_free_disk
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.spec import write_json


def check_before_start(config: PipelineConfig, plan: Plan, home: Home) -> None:
    """Raise `ConfigError` for what would make a stage of `plan` fail for sure. Cached stages need nothing but a tracker's address."""
    check_tracking_address(home)
    if not has_work(plan):
        return
    check_what_runs(config, plan, home)
    check_servers(config, home)
    if config.runtime.executor is ExecutorKind.ray and (address := os.environ.get("RAY_ADDRESS")) and reserves(plan):
        check_room(plan, capacity_of_cluster(address, home))


def check_what_runs(config: PipelineConfig, plan: Plan, home: Home) -> None:
    """As `check_before_start`, but asks no server."""
    check_free_disk(home.root, config.runtime.min_free_disk_gib)
    check_tracking_address(home)
    check_tables(plan)
    check_metrics(plan)
    check_segments(plan)
    check_devices(config, plan)
    _check_models(plan, home)
    check_adapters(plan)
    check_addresses(plan, config.runtime.allowed_hosts)
    if config.runtime.check_rewards:
        check_rewards(plan, config.runtime.allowed_hosts)
        check_environments(plan)


def _check_models(plan: Plan, home: Home) -> None:
    """Take the local folders that models are made from through the gate; one that has passed is known by its key."""
    graph = {name: planned.node for name, planned in plan.items()}
    scorers = [name for name, planned in plan.items() if planned.runs and _trains_scorer(planned.node)]
    scored, passed = ancestors(graph, scorers), _Passed(home)
    for name, planned in plan.items():
        settings = planned.node.settings
        if not isinstance(settings, BaseModelConfig) or not (planned.runs or name in scored):
            continue
        scores = name in scored
        if (folder := Path(settings.path).expanduser()).is_dir() and not passed.knows(planned.key.key, scores):
            from rlhf_core.models.gate import examine

            examine(folder, settings, scores=scores)
            passed.add(planned.key.key, scores)


class _Passed:
    """Keys of models that came through the gate, so that a plan need not load transformers for what it has seen before."""

    def __init__(self, home: Home) -> None:
        self._place = home.models / "passed.json"

    def knows(self, key: str, scores: bool) -> bool:
        """Whether the model of that key has passed, as one to make scorers of where that is asked."""
        seen = self._read()
        return bool(seen.get(key, False) or (key in seen and not scores))

    def add(self, key: str, scores: bool) -> None:
        """Remember it; true where scorers can be made of it."""
        with suppress(OSError):  # in a home that is only looked at it is examined every time
            write_json(self._place, self._read() | {key: scores})

    def _read(self) -> dict[str, bool]:
        try:
            seen: dict[str, bool] = json.loads(self._place.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return seen


def _trains_scorer(node: Node) -> bool:
    settings = node.settings
    return isinstance(settings, RewardModelConfig) or (isinstance(settings, OnlineConfig) and settings.has_critic)
