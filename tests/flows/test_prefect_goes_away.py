"""A Prefect server of the user's that goes away while a run goes on: what came of the run counts, and the server is told later."""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from data_processing.errors import DataError
from flows.graph.selection import Selection
from flows.running import locally
from flows.running.locally import CancelledError, run_locally
from flows.running.prepared import Prepared, handed_over
from flows.services.processes import ServiceError
from flows.services.told_later import UntoldEnd, waiting_ends
from flows.settings.config import PipelineConfig
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.run_state import RunState
from tasks.runtime.keys.closure import Code

RESULT = {"run": "mine"}


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that answers until the flow begins."""
    with HTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/api"
        monkeypatch.setenv("PREFECT_API_URL", url)
        yield url
        server.shutdown()
        thread.join()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.open(tmp_path / "home")


GONE = httpx.ConnectError("All connection attempts failed")


def _run(
    home: Home, address: str, monkeypatch: pytest.MonkeyPatch, ends: BaseException = GONE, **came_of_it: object
) -> dict[str, Any]:
    """A run of which `came_of_it`, in a flow that `ends` so: Prefect does not take its end, unless something else is said."""
    config, selection = PipelineConfig(), Selection({}, frozenset(), frozenset())
    monkeypatch.setattr(locally, "prepare", lambda *given: Prepared(config, selection, home, {}, Code()))
    monkeypatch.setattr(locally, "responds", lambda url: False)

    async def flow() -> dict[str, Any]:
        prepared = handed_over()
        assert prepared
        if came_of_it:
            prepared.flow_run, prepared.server = str(uuid.uuid4()), address
        for name, value in came_of_it.items():
            setattr(prepared, name, value)
        raise ends

    return run_locally(config, selection, home, {}, lambda: flow)


def _told(home: Home) -> list[tuple[str, RunState]]:
    kept = [UntoldEnd.model_validate_json(path.read_text()) for path in waiting_ends(home)]
    return [(end.server, end.state) for end in kept]


def test_a_run_that_has_finished_is_finished(
    home: Home, address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "alignflow"):
        assert _run(home, address, monkeypatch, result=RESULT) == RESULT
    assert f"the Prefect server at {address} went away; what is done is kept" in caplog.text
    assert _told(home) == [(address, RunState.finished)]


def test_a_run_that_has_failed_says_why(home: Home, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="the stage's own words"):
        _run(home, address, monkeypatch, error=DataError("the stage's own words"))
    assert _told(home) == [(address, RunState.failed)]


def test_a_run_that_was_cancelled_is_cancelled(home: Home, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CancelledError):
        _run(home, address, monkeypatch, error=asyncio.CancelledError())


def test_a_run_that_was_cancelled_is_told_after_its_flow_has_ended(
    home: Home, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect calls it a crash when the flow ends, and another process may have told it before that."""
    with pytest.raises(CancelledError):
        _run(home, address, monkeypatch, ends=KeyboardInterrupt(), error=asyncio.CancelledError())
    assert _told(home) == [(address, RunState.cancelled)]


def test_a_run_that_never_began_says_who_went_away(home: Home, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ServiceError, match=f"the Prefect server at {address} went away before the run began .* start the run again"
    ):
        _run(home, address, monkeypatch)
    assert _told(home) == []
