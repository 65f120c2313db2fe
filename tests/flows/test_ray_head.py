"""A head that found the machine too slow is started again; one that fails otherwise is not."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from flows.services.processes import LOOPBACK, ProcessRecord, ServiceError, free_port, start_process, stop_process
from flows.services.ray_head import wait_until_ready
from tasks.runtime.contract.home import Home

TOO_SLOW = "raise SystemExit('Exception: The current node timed out during startup. This could happen')"
BROKEN = "raise SystemExit('OSError: no space left on device')"
ANSWERS = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Jobs(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
HTTPServer(("127.0.0.1", int(sys.argv[1])), Jobs).serve_forever()
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.open(tmp_path / "home")


def _head(home: Home, code: str) -> ProcessRecord:
    port = free_port()
    command = [sys.executable, "-c", code, str(port)]
    log = home.root / f"ray-{port}.log"
    return start_process("ray", command, os.environ, url=f"http://{LOOPBACK}:{port}", log=log, cwd=home.root)


def test_a_head_that_was_too_slow_is_started_again(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    starts = [_head(home, TOO_SLOW)]

    def again() -> ProcessRecord:
        starts.append(_head(home, TOO_SLOW if len(starts) == 1 else ANSWERS))
        return starts[-1]

    try:
        assert wait_until_ready(home, starts[0], again) == starts[2]
    finally:
        stop_process(starts[-1], 0.5)
    assert "starting it again (2 left)" in caplog.text and "starting it again (1 left)" in caplog.text


@pytest.mark.parametrize(("code", "starts"), [(TOO_SLOW, 3), (BROKEN, 1)])
def test_a_head_is_not_started_for_ever_nor_where_that_cannot_help(home: Home, code: str, starts: int) -> None:
    begun = [_head(home, code)]

    def again() -> ProcessRecord:
        begun.append(_head(home, code))
        return begun[-1]

    with pytest.raises(ServiceError, match="ended while starting"):
        wait_until_ready(home, begun[0], again)
    assert len(begun) == starts
