"""A run started on this machine: with the servers that it needs, and with none where everything is cached."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from data_processing.errors import AlignflowError
from flows.graph.plan import Plan, has_work, make_plan
from flows.graph.selection import Selection
from flows.running.check_servers import check_prefect
from flows.running.code import frozen_code
from flows.running.pipeline import run_pipeline
from flows.services.prefect_server import prefect_for_run, send_what_is_left
from flows.services.ray_head import ray_for_run
from flows.services.shown_later import Unshown, show_waiting
from flows.settings.config import PipelineConfig
from tasks.runtime.contract.config import ExecutorKind
from tasks.runtime.contract.home import Home

FlowFunction = Callable[..., Coroutine[Any, Any, dict[str, Any]]]


class CancelledError(AlignflowError):
    """The user ended the run; the exit code is the shell's for an interrupted command."""

    exit_code = 130


def run_locally(
    config: PipelineConfig, selection: Selection, home: Home, parameters: Mapping[str, Any], load_flow: Callable[[], FlowFunction]
) -> dict[str, Any]:
    """Run `selection`; returns what `flows.running.pipeline.run_pipeline` does.

    Raises `ConfigError` where `PREFECT_API_URL` names a server that does not answer. `load_flow` imports the Prefect flow that takes `parameters`, which say the same as `config` and `selection`.
    """
    check_prefect()
    code = frozen_code(config, selection.graph, home)
    plan = make_plan(config, selection, home, code)
    if has_work(plan) or os.environ.get("PREFECT_API_URL"):
        return _in_prefect(plan, config, home, parameters, load_flow)
    preset = str(parameters.get("preset", ""))
    display = Unshown(parameters)
    run = run_pipeline(config, selection, plan, home, display, preset=preset, code=code)
    return _unshown(run, home, display)


def _unshown(run: Coroutine[Any, Any, dict[str, Any]], home: Home, display: Unshown) -> dict[str, Any]:
    """The run without a server."""
    try:
        result = asyncio.run(run)
    except KeyboardInterrupt:
        raise _cancelled() from None
    except Exception as error:
        display.keep(home, error)
        raise
    display.keep(home)
    return result


def _in_prefect(
    plan: Plan, config: PipelineConfig, home: Home, parameters: Mapping[str, Any], load_flow: Callable[[], FlowFunction]
) -> dict[str, Any]:
    """The flow. Its servers start together, and while they do this process imports what it needs."""
    on_ray = config.runtime.executor is ExecutorKind.ray and has_work(plan)
    with prefect_for_run(home) as wait_for_prefect, ray_for_run(home, on_ray) as wait_for_ray:
        from prefect.exceptions import TerminationSignal

        flow = load_flow()
        try:
            wait_for_prefect()
            wait_for_ray()
            result = asyncio.run(flow(**parameters))
        except (KeyboardInterrupt, TerminationSignal):
            send_what_is_left()
            show_waiting(home)
            raise _cancelled() from None
        show_waiting(home)
        return result


def _cancelled() -> CancelledError:
    return CancelledError("cancelled; what ran has been stopped, and the same command goes on from there")
