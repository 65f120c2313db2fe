"""Runs whose process is gone: closed by whichever command looks next, in their folder at once, in MLflow and Prefect soon after.

`python -m flows.running.dead_runs HOME` is that soon after, in a process that the command does not wait for.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from flows.running.old_code import remove_old_code
from flows.running.run_folder import RunFolder
from flows.services.environment import enter
from flows.services.run_processes import living
from flows.services.shown_later import show_waiting, waits
from flows.services.told_later import UntoldEnd, tell_later, waiting_ends
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.liveness import HEARTBEAT_FILE
from tasks.runtime.contract.run_state import STATUS_FILE, read_facts, state_of
from tasks.runtime.tracking.background import start_in_background
from tasks.runtime.tracking.orders import waiting_orders
from tasks.runtime.tracking.tracker import is_anything_unsent, recover

LOG = logging.getLogger("alignflow")


def close_dead_runs(home: Home) -> list[str]:
    """Write down how dead runs ended, and keep it for Prefect; returns their names. A home that cannot be written is left alone."""
    closed = []
    with suppress(OSError):
        for path in sorted(home.runs.glob(f"*/{STATUS_FILE}")):
            folder = RunFolder(home, path.parent.name)
            state = state_of(folder.path)
            if state and not state.is_over and not folder.is_alive:
                _close(home, folder)
                closed.append(folder.name)
    return closed


def look_after(home: Home, *, also_unsent: bool = False) -> list[str]:
    """Close dead runs, remove old code, and have servers told how runs ended, by a process of its own; `also_unsent`: of all that waits.

    In a home that can only be read nothing is done.
    """
    if not home.writable:
        return []
    closed = close_dead_runs(home)
    with suppress(OSError):
        remove_old_code(home)
    for name in closed:
        LOG.warning("run %s was gone without an end; it is closed as %s", name, read_facts(home.runs / name)["status"])
    if closed or waiting_ends(home) or (also_unsent and (waits(home) or is_anything_unsent(home) or waiting_orders(home))):
        with suppress(OSError):
            start_in_background("flows.running.dead_runs", home)
    return closed


def _close(home: Home, folder: RunFolder) -> None:
    state = state_of(folder.path)
    assert state
    ended = _last_sign(folder)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ended))
    message = f"{state.when_dead.value}: the process of this run was gone without a word, last seen at {when}"
    facts = folder.read_status()
    if (server := facts.get("prefect_server")) and (flow_run := facts.get("flow_run")):
        end = UntoldEnd(flow_run=UUID(flow_run), server=server, state=state.when_dead, message=message)
        tell_later(home, end)
    folder.write_status(state.when_dead, message=message, ended=ended)


def _last_sign(folder: RunFolder) -> float:
    """Seconds since the epoch of the last heartbeat, or of the last word on how the run stands."""
    try:
        return (folder.process_folder / HEARTBEAT_FILE).stat().st_mtime
    except FileNotFoundError:
        return float(folder.read_status().get("at", time.time()))


def _tell_servers(home: Home) -> None:
    enter(home)
    if "PREFECT_API_URL" not in os.environ and (server := living(home, "prefect")):
        os.environ["PREFECT_API_URL"] = server.url
    if "PREFECT_API_URL" in os.environ:  # without one, Prefect's client would start a server
        show_waiting(home)
    recover(home)
    if waiting_orders(home):
        from tasks.register import carry_out_orders

        carry_out_orders(home)


if __name__ == "__main__":
    _tell_servers(Home.open(Path(sys.argv[1])))
