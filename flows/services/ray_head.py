"""A Ray head of our own: started for `alignflow up`, or for one run that has work to do and no cluster to do it on."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.services.environment import ROOT, changed_environment, ray_authentication, service_environment, use_own_ray
from flows.services.health import wait_until_answers
from flows.services.processes import LOOPBACK, ProcessRecord, Records, ServiceError, free_port, start_process, stop_process
from flows.services.run_processes import run_process_name, serving_this_run, taken_as_ours, taken_over
from tasks.runtime.contract.home import Home

OBJECT_STORE_BYTES = 1 << 30
_LOG = logging.getLogger("alignflow")
# Ray replaces a loopback address by one that other machines reach, and then listens on all of them, unless it is told that no
# other machine will join.
_ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# A head gives itself 30 s to start, and ends; on a machine that is very busy that is too little.
_TOO_SLOW = "timed out during startup"
_STARTS = 3
_STOP_GRACE_S = 1.0  # nothing of a run is left to save when its head ends, and a head asked to end takes many seconds


def start_head(home: Home, name: str, port: int, dashboard_port: int) -> ProcessRecord:
    """Start a head on loopback and record it as `name`; it may not answer yet. All other ports are picked by the system."""
    # Short, because Ray's sockets live below it and their paths are limited to 107 bytes.
    scratch = Path(tempfile.mkdtemp(prefix="af", dir="/tmp"))
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        f"--node-ip-address={LOOPBACK}",
        f"--port={port}",
        f"--dashboard-host={LOOPBACK}",
        f"--dashboard-port={dashboard_port}",
        f"--dashboard-agent-listen-port={free_port()}",
        f"--ray-client-server-port={free_port()}",
        *("--include-dashboard=true", "--min-worker-port=0", "--max-worker-port=0"),
        f"--num-cpus={os.cpu_count() or 1}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={scratch}",
    ]
    environment = service_environment(home) | ray_authentication(home) | _ALONE | {"RAY_TMPDIR": str(scratch)}
    record = start_process(
        name,
        command,
        environment,
        url=f"http://{LOOPBACK}:{dashboard_port}",
        log=home.root / "logs" / f"{name}.log",
        cwd=ROOT,
        scratch=scratch,
    )
    Records(home.pids).write(record)
    return record


@contextmanager
def ray_for_run(home: Home, needed: bool) -> Iterator[Callable[[], str | None]]:
    """A Ray to run jobs on, for as long as the block lasts: `RAY_ADDRESS` where it is set; else the head of a run that is
    gone, where one was left behind with its jobs; else a new head. None where none is `needed`.

    Yields a function that returns its address when it takes jobs, and from then on `RAY_ADDRESS` says it too. The head
    ends with the block; jobs that still run on it end too.
    """
    if not needed or os.environ.get("RAY_ADDRESS"):
        yield lambda: os.environ.get("RAY_ADDRESS")
        return
    head = taken_over(home, "ray-") or start_head(home, run_process_name("ray"), free_port(), free_port())
    with serving_this_run(home, head, grace_s=_STOP_GRACE_S), changed_environment():

        def again() -> ProcessRecord:
            return taken_as_ours(home, start_head(home, head.name, free_port(), free_port()))

        def wait() -> str:
            ready = wait_until_ready(home, head, again)
            use_own_ray(home, ready, os.environ)
            return ready.url

        yield wait


def wait_until_ready(home: Home, head: ProcessRecord, again: Callable[[], ProcessRecord]) -> ProcessRecord:
    """The head when it takes jobs; one that found this machine too slow is ended and started `again`, under its name.

    Raises `ServiceError` with the log of a head that ends otherwise, too often, or takes too long.
    """
    token = Path(ray_authentication(home)["RAY_AUTH_TOKEN_PATH"]).read_text(encoding="utf-8").strip()
    for left in reversed(range(_STARTS)):
        try:
            wait_until_answers(head, "/api/jobs/", headers={"Authorization": f"Bearer {token}"})
            break
        except ServiceError as error:
            if not left or _TOO_SLOW not in str(error):
                raise
            _LOG.warning("%s did not come up in the time that Ray allows it; starting it again (%d left)", head.name, left)
            stop_process(head, _STOP_GRACE_S)
            head = again()
    return head
