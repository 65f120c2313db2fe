"""What is checked before anything is submitted, beside the settings themselves: model, rewards, disk, servers."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from data_processing.errors import ConfigError
from flows.graph.nodes import Node, ancestors
from flows.graph.plan import Plan, has_work
from flows.running.check_rewards import check_rewards
from flows.running.check_stages import check_adapters, check_devices, check_metrics, check_tables
from flows.services.health import answers, is_reachable, responds
from flows.settings.config import PipelineConfig
from rlhf_core.config import BaseModelConfig, OnlineConfig, OnlineMethod, RewardModelConfig
from tasks.runtime.contract.config import ExecutorKind
from tasks.runtime.contract.disk import check_free_disk
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.spec import write_json


def check_before_start(config: PipelineConfig, plan: Plan, home: Home) -> None:
    """Raise `ConfigError` for what would make a stage of `plan` fail for sure. Cached stages need nothing."""
    if not has_work(plan):
        return
    check_what_runs(config, plan, home)
    check_servers(config, home)


def check_what_runs(config: PipelineConfig, plan: Plan, home: Home) -> None:
    """As `check_before_start`, but asks no server."""
    check_free_disk(home.root, config.runtime.min_free_disk_gib)
    check_tracking(home)
    check_tables(plan)
    check_metrics(plan)
    check_devices(config, plan)
    _check_models(plan, home)
    check_adapters(plan)
    if config.runtime.check_rewards:
        check_rewards(plan)


def check_prefect() -> None:
    """Raise `ConfigError` where the user points at a Prefect that does not answer."""
    if (address := os.environ.get("PREFECT_API_URL")) and not responds(f"{address.rstrip('/')}/health"):
        raise ConfigError(f"PREFECT_API_URL: nothing answers at {address}; start that server, or unset the variable")


def check_tracking(home: Home) -> None:
    """Raise `ConfigError` for a tracking address that MLflow refuses; asks no server."""
    address = home.tracking_uri
    if urlsplit(address).scheme in ("", "file"):
        raise ConfigError(
            f"MLFLOW_TRACKING_URI: '{address}' is a file store, which MLflow does not take any more; use sqlite:///PATH or a "
            "server, or unset it"
        )


def check_servers(config: PipelineConfig, home: Home) -> None:
    """Raise `ConfigError` where the user points at an MLflow or a Ray that does not answer."""
    mlflow = home.tracking_uri
    if urlsplit(mlflow).scheme in ("http", "https") and not answers(f"{mlflow.rstrip('/')}/health"):
        raise ConfigError(
            f"MLFLOW_TRACKING_URI: nothing answers at {mlflow}/health; start that server, or unset the variable to track in {home.mlflow}"
        )
    ray = os.environ.get("RAY_ADDRESS")
    if config.runtime.executor is ExecutorKind.ray and ray:
        check_ray_address(ray)


def check_ray_address(address: str) -> None:
    """Raise `ConfigError` unless `address` is the http address of a Ray dashboard that answers."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.port:
        raise ConfigError(
            f"RAY_ADDRESS: got '{address}'; allowed is the http address of the cluster's dashboard, for example http://127.0.0.1:8265"
        )
    if not is_reachable(str(parts.hostname), parts.port):
        raise ConfigError(
            f"RAY_ADDRESS: nothing listens at {address}; start that cluster, or unset the variable to run on this machine"
        )


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
    return isinstance(node.settings, RewardModelConfig) or (
        isinstance(node.settings, OnlineConfig) and node.settings.method is OnlineMethod.ppo
    )
