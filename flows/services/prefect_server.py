"""A Prefect server for one run, for those who have none. It starts while the run is still importing, and again where it died."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from flows.services.environment import ROOT, changed_environment, service_environment
from flows.services.health import wait_until_answers
from flows.services.processes import LOOPBACK, ProcessRecord, ServiceError, free_port, start_process
from flows.services.run_processes import run_process_name, serving_this_run, taken_as_ours, taken_over
from tasks.runtime.contract.home import Home

HEALTH = "/api/health"
_STOP_GRACE_S = 5.0
_FLUSH_LIMIT_S = 5.0
_LOOK_EVERY_S = 1.0
_TELL_EVERY_S = 15.0
_RESTARTS = 3
_OPTIONS = ("--no-ui",)
_LOG = logging.getLogger("alignflow")


def start_server(home: Home, name: str, port: int, options: Sequence[str] = ()) -> ProcessRecord:
    """Start a server on loopback, with its database in the home; it may not answer yet. The record is not written."""
    launcher = (sys.executable, "-m", "flows.services.prefect_launcher")
    command = [*launcher, "server", "start", "--host", LOOPBACK, "--port", str(port), *options]
    log = home.root / "logs" / f"{name}.log"
    url = f"http://{LOOPBACK}:{port}/api"
    # Without the first pages ask port 4200, whatever port they came from; relative, so that a forwarded port works too.
    # Without the others `--watch` shows changes of state and no line of what stages say.
    own = {"PREFECT_SERVER_UI_API_URL": "/api"}
    own |= {"PREFECT_SERVER_LOGS_STREAM_OUT_ENABLED": "true", "PREFECT_SERVER_LOGS_STREAM_PUBLISHING_ENABLED": "true"}
    environment = service_environment(home) | own
    return start_process(name, command, environment, url=url, log=log, cwd=ROOT)


def _wait_for(starting: FileLock) -> None:
    while True:
        try:
            starting.acquire(timeout=_TELL_EVERY_S)
            return
        except Timeout:
            _LOG.warning("waiting for the Prefect server of another run in this home to start (%s)", starting.lock_file)


@contextmanager
def prefect_for_run(home: Home, when_it_died: Callable[[], None] = lambda: None) -> Iterator[Callable[[], None]]:
    """A server for as long as the block lasts, none where `PREFECT_API_URL` is set.

    Yields a function that returns when the server answers: call it before the flow, and import what the flow needs
    between the two, while the server does the same. It raises `ServiceError` with the log of a server that does not come up.
    One that dies later is started again where it was, which Prefect's client waits for, and `when_it_died` is called.
    """
    if os.environ.get("PREFECT_API_URL"):
        yield lambda: None
        return
    # The first server that starts makes the database: one at a time until it answers.
    starting = FileLock(home.prefect / "start.lock")
    _wait_for(starting)
    try:
        server = taken_over(home, "prefect-") or start_server(home, run_process_name("prefect"), free_port(), _OPTIONS)
        with (
            serving_this_run(home, server, _STOP_GRACE_S),
            changed_environment(),
            _kept_up(home, server, when_it_died) as keep_up,
        ):
            os.environ["PREFECT_API_URL"] = server.url

            def wait_until_ready() -> None:
                wait_until_answers(server, HEALTH)
                starting.release()
                keep_up()

            try:
                yield wait_until_ready
            finally:
                send_what_is_left()
    finally:
        starting.release(force=True)


@contextmanager
def _kept_up(home: Home, server: ProcessRecord, when_it_died: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Yields a function from whose call on, until the end of the block, a server that dies is started again."""
    over = threading.Event()

    def keep_up() -> None:
        current, left = server, _RESTARTS
        while left and not over.wait(_LOOK_EVERY_S):
            if current.process is None:
                left -= 1
                when_it_died()
                _LOG.warning("the Prefect server of this run died; it is started again, and its log is %s", server.log)
                port = urlsplit(server.url).port
                assert port
                with suppress(ServiceError):
                    current = taken_as_ours(home, start_server(home, server.name, port, _OPTIONS))

    keeper = threading.Thread(target=keep_up, name="prefect-keeper", daemon=True)
    try:
        yield keeper.start
    finally:
        over.set()
        if keeper.ident:
            keeper.join()


def send_what_is_left() -> None:
    """Logs and events are sent in the background; later, at the exit of the process, they would find no server and wait."""
    if "prefect" in sys.modules:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        APILogWorker.drain_all(timeout=_FLUSH_LIMIT_S)
        EventsWorker.drain_all(timeout=_FLUSH_LIMIT_S)
