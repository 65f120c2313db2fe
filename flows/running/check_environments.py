"""Environments are tried once before anything is started, as rewards are: in a process of their own, on the first prompts."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import TimeoutError as OverdueError
from typing import Any

from data_processing.errors import ConfigError
from data_processing.turns import extra_of
from flows.graph.plan import Plan
from flows.running.check_rewards import tried_prompts
from rlhf_core.environments.host import EnvironmentFailedError, Host
from rlhf_core.settings.environment import EnvironmentSettings
from rlhf_core.settings.online import OnlineConfig

_LIMIT_S = 60.0
_TURN = {"turn": {"role": "assistant", "content": "This is an answer."}}


def check_environments(plan: Plan) -> None:
    """Raise `ConfigError` for an environment of a node that runs which cannot be loaded, begun or asked, or does not answer."""
    for name, planned in plan.items():
        settings = planned.node.settings
        if planned.runs and isinstance(settings, OnlineConfig) and settings.environment.is_given:
            _try(name, settings.environment, tried_prompts(plan[planned.node.inputs["data"]].node))


def _try(node: str, settings: EnvironmentSettings, prompts: list[dict[str, Any]]) -> None:
    host, doing = Host(*settings.hosted), "loading it"
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
            f"{node}: {settings.said}: {doing}: {why} (tried on {len(prompts)} prompts before the start; --no-check "
            "leaves this out)"
        ) from error
    finally:
        host.close()


def _opening(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"prompt": row["prompt"], "label": row["label"], "columns": extra_of(row)}
