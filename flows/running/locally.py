"""A run started on this machine: with the servers that it needs, and with none where everything is cached."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from data_processing.errors import AlignflowError
from flows.graph.plan import has_work
from flows.graph.selection import Selection
from flows.running.check_servers import check_prefect
from flows.running.prepared import Prepared, handing_over, prepare
from flows.running.progress import LOG
from flows.services.health import responds
from flows.services.prefect_server import prefect_for_run, send_what_is_left
from flows.services.processes import ServiceError
from flows.services.ray_head import ray_for_run
from flows.services.shown_later import ShownLater, show_waiting
from flows.services.told_later import UntoldEnd, tell_later
from flows.settings.config import PipelineConfig
from tasks.runtime.contract.config import ExecutorKind
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.run_state import RunState

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
    prepared = prepare(config, selection, home)
    if has_work(prepared.plan) or os.environ.get("PREFECT_API_URL"):
        return _in_prefect(prepared, parameters, load_flow)
    display = ShownLater(parameters)
    return _without_server(prepared.run(display, str(parameters.get("preset", ""))), home, display)


def _without_server(run: Coroutine[Any, Any, dict[str, Any]], home: Home, display: ShownLater) -> dict[str, Any]:
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


def _in_prefect(prepared: Prepared, parameters: Mapping[str, Any], load_flow: Callable[[], FlowFunction]) -> dict[str, Any]:
    """The flow. Its servers start together, and while they do this process imports what it needs."""
    home = prepared.home
    on_ray = prepared.config.runtime.executor is ExecutorKind.ray and has_work(prepared.plan)
    with _ending_in_order():
        try:
            with (
                prefect_for_run(home, prepared.was_missed) as wait_for_prefect,
                ray_for_run(home, on_ray) as wait_for_ray,
                _told_before_servers_end(prepared),
            ):
                return _flow(prepared, parameters, load_flow, (wait_for_prefect, wait_for_ray))
        except KeyboardInterrupt:
            raise _cancelled() from None


@contextmanager
def _told_before_servers_end(prepared: Prepared) -> Iterator[None]:
    """An interrupt in the block is told at once: to Prefect, while its server is there, or that the start is given up."""
    try:
        yield
    except KeyboardInterrupt:
        if prepared.flow_run:
            # Also where the pipeline has kept it for Prefect: another process may have told it by now, and Prefect called it a crash since.
            _tell_end(prepared)
        else:
            LOG.warning("cancelling: what was started for this run is ended")
        raise


def _flow(
    prepared: Prepared,
    parameters: Mapping[str, Any],
    load_flow: Callable[[], FlowFunction],
    servers: Sequence[Callable[[], object]],
) -> dict[str, Any]:
    """The flow, once the servers that are waited for are there. An interrupt is a `KeyboardInterrupt`, whoever heard of it first."""
    from httpx import HTTPError
    from prefect.exceptions import TerminationSignal

    flow = load_flow()
    try:
        for wait in servers:
            wait()
        with handing_over(prepared):
            result = asyncio.run(flow(**parameters))
    except TerminationSignal:
        raise KeyboardInterrupt from None
    except HTTPError as error:  # Prefect's client could not say something; what else goes wrong has names of its own
        return _without_prefect(prepared, os.environ["PREFECT_API_URL"], error)
    except AlignflowError:
        if prepared.missed:
            _tell_end(prepared)
        raise
    if prepared.missed:
        _tell_end(prepared)
    show_waiting(prepared.home)
    return result


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """Inside, SIGTERM interrupts as Ctrl-C does, once; while the flow runs Prefect has a handler of its own.

    Prefect passes the signal on when the flow has ended. Were there no handler by then, this process would be gone at once, and leave its
    servers behind.
    """
    was_told = False

    def interrupt(number: int, frame: object) -> None:
        nonlocal was_told
        if not was_told:
            was_told = True
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _without_prefect(prepared: Prepared, address: str, error: Exception) -> dict[str, Any]:
    """What came of the run, although the Prefect server at `address` did not take its end.

    Raises what the run did, and `ServiceError` for one that never began.
    """
    ended = prepared.error
    if prepared.result is None and ended is None:
        raise ServiceError(
            f"the Prefect server at {address} went away before the run began ({error}); see that it is up, and start the run again"
        ) from None
    if isinstance(ended, asyncio.CancelledError):
        raise _cancelled() from None
    LOG.warning("the Prefect server at %s went away; what is done is kept, and Prefect is told when it answers again", address)
    _tell_end(prepared)
    if ended:
        raise ended from None
    assert prepared.result
    return prepared.result


def _tell_end(prepared: Prepared) -> None:
    """Tell Prefect how the run ended that has begun, and its tasks; later, where no server answers now."""
    if prepared.server:
        error = prepared.error
        state = RunState.finished if error is None else RunState.failed if isinstance(error, Exception) else RunState.cancelled
        words = {RunState.finished: "finished while this server was away", RunState.failed: str(error)}
        end = UntoldEnd(
            flow_run=UUID(prepared.flow_run), server=prepared.server, state=state, message=words.get(state, state.value)
        )
        tell_later(prepared.home, end)
    send_what_is_left()
    if responds(f"{os.environ['PREFECT_API_URL'].rstrip('/')}/health"):
        show_waiting(prepared.home)


def _cancelled() -> CancelledError:
    return CancelledError("cancelled; what ran has been stopped, and the same command goes on from there")
