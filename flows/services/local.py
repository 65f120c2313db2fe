"""The local services: Prefect server, MLflow server, Ray head, and a worker that runs the deployed flow. All on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from flows.services.environment import ROOT, SERVICE_VARIABLES, changed_environment, ray_authentication, service_environment
from flows.services.health import answers, wait_until_answers
from flows.services.prefect_server import HEALTH, start_server
from flows.services.processes import LOOPBACK, ProcessRecord, Records, ServiceError, check_port_free, start_process, stop_process
from flows.services.ray_head import start_head, wait_until_ready
from flows.services.shown_later import show_waiting
from tasks.runtime.contract.home import Home

WORK_POOL = "local"
_START_TIMEOUT_S = 120.0
_STOP_GRACE_S = {"worker": 60.0}
_ORDER = ("prefect", "mlflow", "ray", "worker")


@dataclass(frozen=True)
class Ports:
    """Loopback ports of the services."""

    prefect: int = 4200
    mlflow: int = 5000
    ray: int = 6379
    ray_dashboard: int = 8265


@dataclass(frozen=True)
class ServiceStatus:
    """One line of `alignflow status`."""

    name: str
    state: str
    pid: int | None
    url: str
    log: Path | None


def up(home: Home, ports: Ports, say: Callable[[str], None]) -> dict[str, str]:
    """Start what is not running and return the variables that point at it.

    Raises `ConfigError` for a port in use, before anything is started, and `ServiceError` with the log of a service
    that does not come up; what had started stays, for `alignflow down`.
    """
    records = Records(home.pids)
    missing = [name for name in _ORDER if records.running(name) is None]
    for name, port in asdict(ports).items():
        if name.split("_")[0] in missing:
            check_port_free(port, f"--{name.replace('_', '-')}-port")
    for name in (n for n in missing if n != "worker"):
        say(f"starting {name}")
        _START[name](home, ports)
    for name in ("prefect", "mlflow", "ray"):
        _wait(home, name)
    _show_earlier_runs(home)
    if "worker" in missing:
        say("deploying the flow and starting its worker")
        _deploy(home)
        _start_worker(home)
    return addresses(home)


def down(home: Home, say: Callable[[str], None]) -> int:
    """End every recorded process, the worker first so that its flows can stop their jobs; returns how many were running."""
    records = Records(home.pids)
    ended = 0
    by_rank = sorted(records.all(), key=lambda r: -_ORDER.index(r.name) if r.name in _ORDER else 0)
    for record in by_rank:
        if record.has_live_owner:
            say(f"{record.name}: serves run process {record.owner_pid}, which ends it; left alone")
            continue
        if record.process:
            say(f"stopping {record.name} (process {record.pid})")
            ended += 1
        stop_process(record, _STOP_GRACE_S.get(record.name, 10.0))
        records.remove(record)
    return ended


def status(home: Home) -> list[ServiceStatus]:
    """One entry a service, and one a Ray head that serves or served a run."""
    found = {record.name: record for record in Records(home.pids).all()}
    names = [*_ORDER, *(name for name in found if name not in _ORDER)]
    return [_status(home, name, found.get(name)) for name in names]


def addresses(home: Home) -> dict[str, str]:
    """Variables that point Prefect, MLflow and Ray at the running services."""
    running = {name: record.url for name in SERVICE_VARIABLES if (record := Records(home.pids).running(name))}
    variables = {SERVICE_VARIABLES[name]: url for name, url in running.items()}
    return variables | (ray_authentication(home) if "ray" in running else {})


def _start_prefect(home: Home, ports: Ports) -> None:
    Records(home.pids).write(start_server(home, "prefect", ports.prefect))


def _start_mlflow(home: Home, ports: Ports) -> None:
    folder = home.mlflow
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(ports.mlflow), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    _start(home, "mlflow", command, f"http://{LOOPBACK}:{ports.mlflow}", service_environment(home))


def _start_ray(home: Home, ports: Ports) -> None:
    start_head(home, "ray", ports.ray, ports.ray_dashboard)


def _start_worker(home: Home) -> None:
    name = "alignflow"
    command = [
        *(sys.executable, "-m", "prefect", "worker", "start", "--pool", WORK_POOL, "--type", "process", "--name", name),
    ]
    variables = addresses(home)
    record = _start(home, "worker", command, variables["PREFECT_API_URL"], service_environment(home) | variables)
    if record.process is None:
        raise ServiceError(f"the worker ended while starting; its log is {record.log}")


def _start(home: Home, name: str, command: list[str], url: str, environment: Mapping[str, str]) -> ProcessRecord:
    record = start_process(name, command, environment, url=url, log=home.root / "logs" / f"{name}.log", cwd=ROOT)
    Records(home.pids).write(record)
    return record


def _wait(home: Home, name: str) -> None:
    record = next(r for r in Records(home.pids).all() if r.name == name)
    if name == "ray":
        wait_until_ready(home, record)
    else:
        wait_until_answers(record, _HEALTH[name], _START_TIMEOUT_S)


def _show_earlier_runs(home: Home) -> None:
    with changed_environment():
        os.environ.update(service_environment(home) | addresses(home))
        show_waiting(home)


def _deploy(home: Home) -> None:
    """Create the work pool and a deployment of each preset; they may be there already."""
    pool = ("-m", "prefect", "work-pool", "create", WORK_POOL, "--type", "process", "--overwrite")
    shipped = ("-c", "from flows.commands.deployments import deploy_shipped; deploy_shipped()")
    for arguments in (pool, shipped):
        environment = service_environment(home) | addresses(home)
        answer = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        if answer.returncode:
            raise ServiceError(f"{' '.join(arguments[1:])} failed:\n{answer.stdout[-2000:]}{answer.stderr[-2000:]}")


def _status(home: Home, name: str, record: ProcessRecord | None) -> ServiceStatus:
    if record is None:
        return ServiceStatus(name, "not started", None, os.environ.get(SERVICE_VARIABLES.get(name, ""), ""), None)
    if record.process is None:
        return ServiceStatus(name, "ended", None, record.url, record.log)
    if name in _HEALTH and not answers(record.url.removesuffix("/api") + _HEALTH[name]):
        return ServiceStatus(name, "does not answer", record.pid, record.url, record.log)
    return ServiceStatus(name, "running", record.pid, record.url, record.log)


_HEALTH = {"prefect": HEALTH, "mlflow": "/health"}
_START: dict[str, Callable[[Home, Ports], None]] = {"prefect": _start_prefect, "mlflow": _start_mlflow, "ray": _start_ray}
