"""Registering a model in MLflow by reference: no weights are copied, the store's address and the lineage are tags.

Not a stage: it changes the registry, so it is done again where it is missing and left alone where it is there. What is to be
registered is written down first: a run that has finished does not fail because MLflow is away, a later command registers it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from data_processing.errors import AlignflowError, ConfigError
from tasks.runtime.contract.context import ArtifactRef
from tasks.runtime.contract.failures import StageFailedError
from tasks.runtime.contract.home import Home
from tasks.runtime.tracking.journal import Journal
from tasks.runtime.tracking.mlflow_sender import connect
from tasks.runtime.tracking.orders import Order, waiting_orders

CHALLENGER = "challenger"
_KEY_TAG = "alignflow_key"
_TAG_LIMIT = 5000
_NOT_IN_KEYS = re.compile(r"[^\w.\- :/]")
# What MLflow refuses in the name of a logged model, and takes in that of a registered one.
_NOT_IN_MODEL_NAMES = re.compile(r"[/:.%\"']")


@dataclass(frozen=True)
class RegisteredModel:
    """A version of a registered model; `existed`: it had been registered before.

    `is_challenger`: the alias points at it.
    """

    name: str
    version: str
    model_id: str | None
    existed: bool
    is_challenger: bool


def carry_out_orders(home: Home) -> dict[str, RegisteredModel | AlignflowError]:
    """Register what is to be registered, by run, the oldest first: the newest run has the last word on the challenger.

    What a tracker does not take now is kept; what can never be registered is not. Never raises.
    """
    done: dict[str, RegisteredModel | AlignflowError] = {}
    silent: dict[str, AlignflowError] = {}
    with FileLock(home.mlflow / "register.lock"):
        for path in waiting_orders(home):
            order = Order.model_validate_json(path.read_text(encoding="utf-8"))
            if order.uri in silent:
                done[order.run] = silent[order.uri]
                continue
            try:
                done[order.run] = _carry_out(home, order)
                path.unlink()
            except ConfigError as error:
                done[order.run] = error
                path.unlink()
            except AlignflowError as error:
                done[order.run] = silent[order.uri] = error
    return done


def _carry_out(home: Home, order: Order) -> RegisteredModel:
    progress = Journal(home.run(order.run) / "tracking").load_progress()
    return register_model(
        order.ref,
        name=order.name,
        home=home,
        source_run_id=order.source_run_id or (progress.run_ids.get(order.node) if progress else None),
        lineage=order.lineage,
        metrics=order.metrics,
        take_alias=order.decided,
        uri=order.uri,
    )


def register_model(
    ref: ArtifactRef,
    *,
    name: str,
    home: Home,
    source_run_id: str | None,
    lineage: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    alias: str = CHALLENGER,
    take_alias: bool = True,
    uri: str | None = None,
) -> RegisteredModel:
    """Make the `model` artifact `ref` a version of registered model `name` and point `alias` at it.

    The same artifact is registered once; without `take_alias` one that was there leaves the alias to a newer version. `lineage`
    becomes tags, `metrics` are logged on the model. Raises `ConfigError` for an artifact of another kind, `StageFailedError` where
    the tracker does not answer.
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
        takes = take_alias or not found or not _is_taken_by_newer(client, name, alias, version)
        if takes:
            client.set_registered_model_alias(name, alias, version.version)
    except (MlflowException, OSError) as error:
        raise StageFailedError(f"MLflow at {uri} did not register '{name}': {error}") from error
    return RegisteredModel(name, str(version.version), version.model_id, existed=found is not None, is_challenger=takes)


def _is_taken_by_newer(client: MlflowClient, name: str, alias: str, version: ModelVersion) -> bool:
    holder = client.get_registered_model(name).aliases.get(alias)
    return holder is not None and int(holder) > int(version.version)


def _version_of(client: MlflowClient, name: str, ref: ArtifactRef) -> ModelVersion | None:
    found = client.search_model_versions(f"name='{name}' and tags.{_KEY_TAG}='{ref.key}'")
    return next((version for version in found if version.tags.get("artifact_sha256") == ref.sha256), None)


def _register(client: MlflowClient, uri: str, name: str, source_run_id: str | None, tags: dict[str, str]) -> ModelVersion:
    # These two functions have no counterpart on the client and take the tracker from the process.
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    experiment = client.get_run(source_run_id).info.experiment_id if source_run_id else None
    model = mlflow.create_external_model(
        _NOT_IN_MODEL_NAMES.sub("_", name), source_run_id=source_run_id, tags=tags, experiment_id=experiment
    )
    return mlflow.register_model(f"models:/{model.model_id}", name, tags=tags)
