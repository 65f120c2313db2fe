"""Environments are tried once before anything is started, as rewards are: in a process of their own, on the first prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import TimeoutError as OverdueError
from typing import Any

from data_processing.config import DataConfig
from data_processing.errors import ConfigError
from data_processing.first_prompts import first_prompts
from flows.graph.nodes import Node
from flows.graph.plan import Plan
from rlhf_core.environments.host import EnvironmentFailedError, Host
from rlhf_core.settings.environment import EnvironmentSettings
from rlhf_core.settings.online import OnlineConfig

_PROMPTS = 2
_LIMIT_S = 60.0
_TURN = {"turn": {"role": "assistant", "content": "This is an answer."}}


def check_environments(plan: Plan) -> None:
    """Raise `ConfigError` for an environment of a node that runs which cannot be loaded, begun or asked, or does not answer."""
    for name, planned in plan.items():
        settings = planned.node.settings
        if planned.runs and isinstance(settings, OnlineConfig) and settings.environment.path is not None:
            _try(name, settings.environment, _prompts(planned.node, plan))


def _try(node: str, settings: EnvironmentSettings, prompts: list[dict[str, Any]]) -> None:
    assert settings.path is not None, "there is one"
    host, doing = Host(settings.path, settings.options), "loading it"
    try:
        host.ask(-1, "tools").result(_LIMIT_S)
        for number, row in enumerate(prompts):
            doing = f"reset with prompt {row['id']}"
            host.ask(number, "reset", _opening(row)).result(_LIMIT_S)
            doing = f"step after prompt {row['id']}"
            host.ask(number, "step", _TURN).result(_LIMIT_S)
    except (EnvironmentFailedError, OverdueError) as error:
        why = str(error) or f"no answer within {_LIMIT_S:g} s"
        raise ConfigError(
            f"{node}: environment.path='{settings.path}': {doing}: {why} (tried on {len(prompts)} prompts before the start; --no-check "
            "leaves this out)"
        ) from error
    finally:
        host.close()


def _opening(row: Mapping[str, Any]) -> dict[str, Any]:
    columns = json.loads(row["extra"]) if row.get("extra") else {}
    return {"prompt": row["prompt"], "label": row["label"], "columns": columns}


def _prompts(node: Node, plan: Plan) -> list[dict[str, Any]]:
    data = plan[node.inputs["data"]].node
    return first_prompts(data.settings, _PROMPTS, data.seed)[:_PROMPTS] if isinstance(data.settings, DataConfig) else []
