"""What is checked before anything is submitted, beside the settings themselves: model, rewards, disk, servers."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from data_processing.errors import ConfigError
from flows.graph.nodes import Node, ancestors
from flows.graph.plan import Plan, has_work
from flows.services.health import answers, is_reachable
from flows.settings.config import PipelineConfig
from rlhf_core.config import BaseModelConfig, OnlineConfig, OnlineMethod, RewardModelConfig
from tasks.runtime.contract.config import ExecutorKind
from tasks.runtime.contract.disk import check_free_disk
from tasks.runtime.contract.home import Home


def check_before_start(config: PipelineConfig, plan: Plan, home: Home) -> None:
    """Raise `ConfigError` for what would make a stage of `plan` fail for sure. Cached stages need nothing."""
    if not has_work(plan):
        return
    check_what_runs(config, plan, home)
    check_servers(config, home)


def check_what_runs(config: PipelineConfig, plan: Plan, home: Home) -> None:
    """As `check_before_start`, but asks no server."""
    check_free_disk(home.root, config.runtime.min_free_disk_gib)
    for settings in (planned.node.settings for planned in plan.values() if planned.runs):
        if isinstance(settings, BaseModelConfig):
            _check_model(settings)
        if isinstance(settings, OnlineConfig):
            _check_rewards(settings)
    _check_scorers(plan)


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


def _check_rewards(online: OnlineConfig) -> None:
    from rlhf_core.rewards.python_function import load_function

    for source in online.rewards:
        if source.function is not None:
            load_function(source.function)
