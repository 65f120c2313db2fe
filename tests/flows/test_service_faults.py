"""A Prefect server answers also where a part of it fails again and again: its log says so, and whoever starts or examines it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from flows.commands.doctor import examine
from flows.services.environment import ROOT, service_environment
from flows.services.health import wait_until_answers
from flows.services.local import tell_faults
from flows.services.prefect_server import HEALTH
from flows.services.processes import LOOPBACK, Records, free_port, start_process, stop_process
from flows.services.service_faults import service_faults
from tasks.runtime.contract.home import Home

# Breaks the scheduler's query when its module is imported, as another version of a library did.
BROKEN_SCHEDULER = """
import importlib.abc, importlib.util, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "prefect.server.services.scheduler":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def executed(module):
            execute(module)

            def broken(*args, **kwargs):
                raise RuntimeError("cannot evaluate the statement")

            module._get_select_deployments_to_schedule_query = broken

        spec.loader.exec_module = executed
        return spec

sys.meta_path.insert(0, Finder())
"""
LINE = "12:00:00.000 | ERROR   | docket.dependencies - ↩ [     6ms] {name}(){{{name}}}\nTraceback (most recent call last):\n  File x\n"


def log_of(folder: Path, *parts: str) -> Path:
    (folder / "prefect.log").write_text("--- prefect started at 2026-01-01 00:00:00\n" + "".join(parts))
    return folder / "prefect.log"


def failure(name: str, reason: str) -> str:
    return LINE.format(name=name) + f"{reason}\n"


def test_what_failed_before_the_last_start_is_over(tmp_path: Path) -> None:
    again = "--- prefect started at 2026-01-02 00:00:00\n"
    log = log_of(tmp_path, failure("schedule_deployments", "E: x") * 3, again, failure("schedule_deployments", "E: y"))
    assert service_faults(log, at_least=2) == []
    assert service_faults(log, at_least=1) == [
        "its service schedule_deployments failed 1 times since the server started, at last with E: y"
    ]
    assert service_faults(tmp_path / "absent", at_least=1) == []


def test_each_service_is_told_with_what_it_raised_last(tmp_path: Path) -> None:
    log = log_of(
        tmp_path, failure("late", "a.B: one"), failure("vacuum", "OSError: two"), failure("late", "a.C: three"), "a.D: no\n"
    )
    assert service_faults(log, at_least=2) == [
        "its service late failed 2 times since the server started, at last with a.C: three"
    ]


@pytest.mark.slow
def test_a_scheduler_that_fails_is_seen_by_the_doctor_and_told_by_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    home = Home.open(tmp_path / "home")
    (tmp_path / "sitecustomize.py").write_text(BROKEN_SCHEDULER)
    port = free_port()
    command = ["-m", "flows.services.prefect_launcher", "server", "start", "--host", LOOPBACK, "--port", str(port), "--no-ui"]
    environment = service_environment(home)
    record = start_process(
        "prefect",
        [sys.executable, *command],
        {
            **environment,
            "PYTHONPATH": f"{tmp_path}:{environment.get('PYTHONPATH', '')}",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1",
        },
        url=f"http://{LOOPBACK}:{port}/api",
        log=home.root / "logs" / "prefect.log",
        cwd=ROOT,
    )
    try:
        Records(home.pids).write(record)
        wait_until_answers(record, HEALTH)
        until = time.monotonic() + 60
        while not service_faults(record.log, at_least=2) and time.monotonic() < until:
            time.sleep(0.5)
        [finding] = [found for found in examine(home) if found.check == "services of Prefect"]
        assert finding.state == "attention"
        assert "its service schedule_deployments failed" in finding.found
        assert "RuntimeError: cannot evaluate the statement" in finding.found
        assert str(record.log) in finding.fix
        said: list[str] = []
        tell_faults(home, said.append)
        assert (
            [line for line in said if "its service schedule_deployments failed" in line and str(record.log) in line] == said != []
        )
    finally:
        stop_process(record)
