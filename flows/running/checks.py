"""What is checked before anything is submitted, beside the settings themselves: model, rewards, disk, servers."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from data_processing.errors import ConfigError
from flows.graph.nodes import Node, ancestors
from flows.graph.plan import Plan, has_work
from flows.running.check_rewards import check_rewards
from flows.running.check_stages import check_adapters, check_devices, check_metrics, check_tables
from flows.services.health import answers, is_reachable, responds
from flows.services.machine import free_disk_gib
from flows.settings.config import PipelineConfig
from rlhf_core.config import BaseModelConfig, OnlineConfig, OnlineMethod, RewardModelConfig
from tasks.runtime.contract.config import ExecutorKind
from tasks.runtime.contract.home import Home


def check_before_start(config: PipelineConfig, plan: Plan, home: Home) -> None:
    """Raise `ConfigError` for what would make a stage of `plan` fail for sure. Cached stages need nothing."""
    if not has_work(plan):
        return
    check_what_runs(config, plan, home)
    check_servers(config, home)


def check_what_runs(config: PipelineConfig, plan: Plan, home: Home) -> None:
    """As `check_before_start`, but asks no server."""
    _check_disk(config, home)
    check_tracking(home)
    check_tables(plan)
    check_metrics(plan)
    check_devices(config, plan)
    check_adapters(plan)
    if config.runtime.check_rewards:
        check_rewards(plan)
    for settings in (planned.node.settings for planned in plan.values() if planned.runs):
        if isinstance(settings, BaseModelConfig):
            _check_model(settings)
    _check_scorers(plan)


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


def _check_disk(config: PipelineConfig, home: Home) -> None:
    free, wanted = free_disk_gib(home.root), config.runtime.min_free_disk_gib
    if free < wanted:
        raise ConfigError(
            f"runtime.min_free_disk_gib: {wanted:g} GiB wanted, {free:.1f} GiB free at {home.root}; free some, lower it, or set ALIGNFLOW_HOME"
        )


def _check_model(model: BaseModelConfig) -> None:
    folder = Path(model.path).expanduser()
    if folder.is_dir():
        from rlhf_core.models.load import check_model_folder

        check_model_folder(folder, trust_remote_code=model.trust_remote_code)


def _check_scorers(plan: Plan) -> None:
    """Reward model and critic are made of the base model, which need not have what it takes."""
    graph = {name: planned.node for name, planned in plan.items()}
    made = [name for name, planned in plan.items() if planned.runs and _trains_scorer(planned.node)]
    for node in (graph[name] for name in sorted(ancestors(graph, made))):
        if isinstance(node.settings, BaseModelConfig) and (folder := Path(node.settings.path).expanduser()).is_dir():
            from rlhf_core.models.load import check_has_scorer

            check_has_scorer(folder)


def _trains_scorer(node: Node) -> bool:
    return isinstance(node.settings, RewardModelConfig) or (
        isinstance(node.settings, OnlineConfig) and node.settings.method is OnlineMethod.ppo
    )
