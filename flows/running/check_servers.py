"""Whether the servers that the user points at can be worked with: one line that names the variable for each that cannot."""

from __future__ import annotations

import os
from urllib.parse import urlsplit, urlunsplit

from data_processing.errors import ConfigError
from flows.services.health import http_status, responds
from flows.settings.config import PipelineConfig
from tasks.runtime.contract.config import ExecutorKind
from tasks.runtime.contract.home import Home

_LOGIN = (401, 403)


def check_servers(config: PipelineConfig, home: Home) -> None:
    """Raise `ConfigError` where the user points at an MLflow or a Ray that does not answer."""
    check_mlflow(home)
    if config.runtime.executor is ExecutorKind.ray:
        check_ray()


def check_prefect() -> None:
    """Raise `ConfigError` where the user points at a Prefect that does not answer."""
    address = os.environ.get("PREFECT_API_URL")
    if address and not responds(f"{address.rstrip('/')}/health"):
        raise ConfigError(f"PREFECT_API_URL: nothing answers at {address}; start that server, or unset the variable")


def check_tracking_address(home: Home) -> None:
    """Raise `ConfigError` for a tracking address that MLflow refuses; asks no server."""
    address = home.tracking_uri
    if urlsplit(address).scheme in ("", "file"):
        raise ConfigError(
            f"MLFLOW_TRACKING_URI: '{address}' is a file store, which MLflow does not take any more; use sqlite:///PATH or a "
            "server, or unset it"
        )


def check_mlflow(home: Home) -> None:
    """Raise `ConfigError` where MLflow does not answer, or refuses who asks."""
    check_tracking_address(home)
    parts = urlsplit(home.tracking_uri)
    if parts.scheme not in ("http", "https"):
        return
    shown = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")
    status = http_status(f"{shown}/api/2.0/mlflow/experiments/search?max_results=1")
    if status is None:
        raise ConfigError(
            f"MLFLOW_TRACKING_URI: nothing answers at {shown}; start that server, or unset the variable to track in {home.mlflow}"
        )
    if status in _LOGIN:
        _check_login(home, shown)


def check_ray() -> None:
    """Raise `ConfigError` unless `RAY_ADDRESS` is unset, or the http address of a Ray dashboard that answers."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"RAY_ADDRESS: got '{address}'; allowed is the http address of the cluster's dashboard, for example http://127.0.0.1:8265"
        )
    if not responds(address):
        raise ConfigError(
            f"RAY_ADDRESS: nothing listens at {address}; start that cluster, or unset the variable to run on this machine"
        )


def _check_login(home: Home, shown: str) -> None:
    """Ask as MLflow's client does, which knows every way to log in; it takes seconds to load."""
    from tasks.runtime.tracking.mlflow_sender import refusal_of

    if refusal := refusal_of(home.tracking_uri):
        raise ConfigError(
            f"MLFLOW_TRACKING_URI: {shown} refuses the login: {refusal}; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            "MLFLOW_TRACKING_TOKEN"
        )
