"""Registering a model in MLflow by reference: no weights are copied, the store's address and the lineage are tags.

Not a stage: it changes the registry, so it is done again where it is missing and left alone where it is there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from data_processing.errors import ConfigError
from tasks.runtime.contract.context import ArtifactRef
from tasks.runtime.contract.failures import StageFailedError
from tasks.runtime.contract.home import Home
from tasks.runtime.tracking.mlflow_sender import connect

CHALLENGER = "challenger"
_KEY_TAG = "alignflow_key"
_TAG_LIMIT = 5000
_NOT_IN_KEYS = re.compile(r"[^\w.\- :/]")


@dataclass(frozen=True)
class RegisteredModel:
    """A version of a registered model; `existed`: it had been registered before, and only the alias was set."""

    name: str
    version: str
    model_id: str | None
    existed: bool


def register_model(
    ref: ArtifactRef,
    *,
    name: str,
    home: Home,
    source_run_id: str | None,
    lineage: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    alias: str = CHALLENGER,
    uri: str | None = None,
) -> RegisteredModel:
    """Make the `model` artifact `ref` a version of registered model `name` and point `alias` at it.

    The same artifact is registered once. `lineage` becomes tags, `metrics` are logged on the model. Raises
    `ConfigError` for an artifact of another kind, `StageFailedError` where the tracker does not answer.
    """
    if ref.kind != "model":
        raise ConfigError(f"register: artifact {ref.key[:12]} is of kind '{ref.kind}', expected 'model'; convert it first")
    uri = uri or home.tracking_uri
    tags = {_KEY_TAG: ref.key, "artifact_uri": ref.uri, "artifact_sha256": ref.sha256, "producer": ref.producer}
    # Nodes of sweeps are called ppo@kl_coef=0.02,seed=1, and MLflow refuses such keys.
    tags |= {f"lineage.{_NOT_IN_KEYS.sub(':', node)}": str(value)[:_TAG_LIMIT] for node, value in (lineage or {}).items()}
    try:
        client = connect(uri, home.mlflow)
        found = _version_of(client, name, ref)
        version = found or _register(client, uri, name, source_run_id, tags)
        for metric, value in (metrics or {}).items() if source_run_id and not found else ():
            client.log_metric(source_run_id, metric, value, model_id=version.model_id)
        client.set_registered_model_alias(name, alias, version.version)
    except (MlflowException, OSError) as error:
        raise StageFailedError(f"MLflow at {uri} did not register '{name}': {error}") from error
    return RegisteredModel(name, str(version.version), version.model_id, existed=found is not None)


def _version_of(client: MlflowClient, name: str, ref: ArtifactRef) -> ModelVersion | None:
    found = client.search_model_versions(f"name='{name}' and tags.{_KEY_TAG}='{ref.key}'")
    return next((version for version in found if version.tags.get("artifact_sha256") == ref.sha256), None)


def _register(client: MlflowClient, uri: str, name: str, source_run_id: str | None, tags: dict[str, str]) -> ModelVersion:
    # These two functions have no counterpart on the client and take the tracker from the process.
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    experiment = client.get_run(source_run_id).info.experiment_id if source_run_id else None
    model = mlflow.create_external_model(name, source_run_id=source_run_id, tags=tags, experiment_id=experiment)
    return mlflow.register_model(f"models:/{model.model_id}", name, tags=tags)
