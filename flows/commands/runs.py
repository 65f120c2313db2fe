"""Commands about runs: which there are, what their stages print, and ending one."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from data_processing.errors import AlignflowError, ConfigError
from flows.commands.tables import console, table_with
from flows.commands.why import records_called
from flows.running.dead_runs import look_after
from flows.running.run_folder import RunFolder, find_run, run_folders
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.liveness import owner, worker_process
from tasks.runtime.contract.run_state import RunState, began_at, state_of
from tasks.runtime.contract.spec import LOG_FILE
from tasks.runtime.execution.attempts import WorkFolder
from tasks.runtime.store.records import NodeRecord, read_node

_POLL_S = 0.3
_CANCEL_LIMIT_S = 120.0


def show_runs(count: int) -> None:
    """`alignflow runs`."""
    home = Home.open(to_read=True)
    look_after(home)
    folders = run_folders(home)
    table = table_with("run", "state", "began", "took", "stages", "outcome")
    for folder in folders[:count]:
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(began_at(folder.path)))
        nodes = [record for path in (folder.path / "nodes").glob("*.json") if (record := read_node(home, folder.name, path.stem))]
        done = f"{sum(node.ref is not None for node in nodes)} done, {sum(bool(node.cached) for node in nodes)} cached"
        table.add_row(folder.name, _state(folder), began, _took(folder), done, _outcome(folder))
    console().print(table)
    if len(folders) > count:
        print(f"and {len(folders) - count} earlier (alignflow runs --count N)")
    if not folders:
        print(f"no runs in {home.runs} yet")


def show_log(run: str, stage: str, *, follow: bool) -> None:
    """`alignflow logs RUN STAGE [-f]`."""
    home = Home.open(to_read=True)
    folder = find_run(home, run)
    record = _one_node(home, folder, stage)
    for text in _log(home, folder, record, follow):
        sys.stdout.write(text)
        sys.stdout.flush()


def cancel_run(run: str) -> None:
    """`alignflow cancel RUN`; returns when it has ended.

    Raises `ConfigError` for one that runs on another machine, unless a Prefect worker runs it, `AlignflowError` for one that does not
    end in time.
    """
    home = Home.open()
    look_after(home)
    folder = find_run(home, run)
    state = state_of(folder.path)
    if state is None or state.is_over:
        print(f"run {folder.name} is over: {_state(folder)}")
        return
    process = worker_process(folder.process_folder)
    if not _cancelled_by_prefect(folder):
        if process is None:
            host, pid = owner(folder.process_folder) or ("an unknown machine", 0)
            raise ConfigError(
                f"cancel: run {folder.name} runs on {host} (process {pid}), and no Prefect worker runs it; cancel it there"
            )
        folder.write_status(RunState.cancelling)
        process.terminate()
    print(f"run {folder.name} is asked to end; stages that can save a checkpoint do")
    deadline = time.monotonic() + _CANCEL_LIMIT_S
    while folder.is_alive:
        if time.monotonic() > deadline:
            raise AlignflowError(
                f"cancel: run {folder.name} has not ended after {_CANCEL_LIMIT_S:g} s; see alignflow logs {folder.name}"
            )
        time.sleep(_POLL_S)
    look_after(home)
    print(f"run {folder.name} is {_state(folder)}; the same command goes on from there")


def _state(folder: RunFolder) -> str:
    return str(folder.read_status().get("status", "unknown"))


def _took(folder: RunFolder) -> str:
    status = folder.read_status()
    seconds = int(status.get("ended", time.time()) - status.get("began", began_at(folder.path)))
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _outcome(folder: RunFolder) -> str:
    if (verdict := folder.read_verdict()) is not None:
        return f"challenger: {verdict.get('challenger') or 'none'}"
    return str(folder.read_status().get("message", "")).partition("\n")[0]


def _one_node(home: Home, folder: RunFolder, stage: str) -> NodeRecord:
    found = records_called(home, folder.name, stage)
    if len(found) > 1:
        raise ConfigError(
            f"logs: '{stage}' is {len(found)} nodes of {folder.name}; name one: {', '.join(record.node for record in found)}"
        )
    return found[0]


def _log(home: Home, folder: RunFolder, record: NodeRecord, follow: bool) -> Iterator[str]:
    """What the node's attempts printed, the newest attempt's whole; with `follow` also what comes until there is nothing to wait for."""
    work, shown, offset = WorkFolder(home.work / f"{record.stage}-{record.key}"), 0, 0
    while True:
        is_over = not follow or _is_done(home, folder, record)  # before reading, so that the last words are read too
        newest = work.newest()
        if newest and newest.number != shown:
            shown, offset = newest.number, 0
            yield f"== {record.node}, attempt {shown}: {work.folder(shown) / LOG_FILE}\n"
        if shown:
            text, offset = _read_on(work.folder(shown) / LOG_FILE, offset)
            yield text
        if is_over:
            break
        time.sleep(_POLL_S)
    if not shown:
        made_by = f", it was made by {record.ref.producer}" if record.ref else ""
        raise ConfigError(f"logs: nothing was printed here by {record.node} of {folder.name}{made_by or ', it has not begun'}")


def _is_done(home: Home, folder: RunFolder, record: NodeRecord) -> bool:
    now = read_node(home, folder.name, record.node)
    return (now is not None and now.ref is not None) or not folder.is_alive


def _read_on(path: Path, offset: int) -> tuple[str, int]:
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            content = stream.read()
    except FileNotFoundError:
        return "", offset
    return content.decode(errors="replace"), offset + len(content)


def _cancelled_by_prefect(folder: RunFolder) -> bool:
    """Whether a Prefect worker runs it, which then ends it, wherever it is."""
    facts = folder.read_status()
    server, flow_run = facts.get("prefect_server"), facts.get("flow_run")
    if not server or not flow_run:
        return False
    from flows.services.health import responds

    if not responds(f"{server.rstrip('/')}/health"):
        return False
    from uuid import UUID

    from prefect import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.states import Cancelling

    with temporary_settings({PREFECT_API_URL: server}), get_client(sync_client=True) as client:
        if client.read_flow_run(UUID(flow_run)).deployment_id is None:
            return False
        client.set_flow_run_state(UUID(flow_run), Cancelling(message="alignflow cancel"))
    return True
