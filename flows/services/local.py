"""The local services: Prefect server, MLflow server, Ray head, and a worker that runs the deployed flow. All on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from flows.services.environment import ROOT, SERVICE_VARIABLES, changed_environment, ray_authentication, service_environment
from flows.services.families import end_all, strays
from flows.services.health import answers, wait_until_answers
from flows.services.prefect_server import HEALTH, start_server
from flows.services.processes import LOOPBACK, ProcessRecord, Records, ServiceError, check_port_free, start_process, stop_process
from flows.services.ray_head import start_head, wait_until_ready
from flows.services.service_faults import service_faults
from flows.services.shown_later import show_waiting
from tasks.runtime.contract.home import Home

WORK_POOL = "local"
_GRACE_S = 10.0
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
    _end_orphans(records, missing, say)
    for name, port in asdict(ports).items():
        if name.split("_")[0] in missing:
            check_port_free(port, f"--{name.replace('_', '-')}-port")
    for name in (n for n in missing if n != "worker"):
        say(f"starting {name}")
        _START[name](home, ports)
    for name in ("prefect", "mlflow", "ray"):
        _wait(home, name, ports)
    _show_earlier_runs(home)
    if "worker" in missing:
        say("deploying the flow and starting its worker")
        _deploy(home)
        _start_worker(home)
    tell_faults(home, say)
    return addresses(home)


def tell_faults(home: Home, say: Callable[[str], None]) -> None:
    """Warn of parts of the Prefect server that fail: it answers, and schedules, for one, never fire.

    Each of its services has run once when the others are up.
    """
    prefect = Records(home.pids).running("prefect")
    if prefect and (faults := service_faults(prefect.log, at_least=1)):
        say(f"warning: the Prefect server runs, but {'; '.join(faults)} (alignflow doctor looks again; the log is {prefect.log})")


def down(home: Home, say: Callable[[str], None]) -> int:
    """End what we started in this home, the worker first so that its flows can stop their jobs; returns how many services."""
    records = Records(home.pids)
    by_rank = sorted(records.all(), key=lambda r: -_ORDER.index(r.name) if r.name in _ORDER else 0)
    ended = sum(_end(records, record, say) for record in by_rank)
    known = {record.mark for record in records.all()}
    if left := strays(home.root, known):
        say(f"ending {_counted(left)} of ours that no record names")
        end_all(lambda: strays(home.root, known), _GRACE_S)
    return ended


def _end(records: Records, record: ProcessRecord, say: Callable[[str], None]) -> bool:
    """End one process with its family, whether it lives or not; returns whether there was anything to end."""
    if record.has_live_owner:
        say(f"{record.name}: serves run process {record.owner_pid}, which ends it; left alone")
        return False
    left = record.orphans
    if record.process:
        say(f"stopping {record.name} (process {record.pid})")
    elif left:
        say(f"{record.name} is gone; ending {_counted(left)} that it left behind")
    is_something = record.process is not None or bool(left)
    stop_process(record, _STOP_GRACE_S.get(record.name, _GRACE_S))
    records.remove(record)
    return is_something


def _end_orphans(records: Records, names: Sequence[str], say: Callable[[str], None]) -> None:
    """Make room for services that are to be started: what earlier ones left behind may hold their ports."""
    for record in records.all():
        if record.name in names:
            _end(records, record, say)


def _counted(processes: Sequence[object]) -> str:
    return f"{len(processes)} process{'es' if len(processes) != 1 else ''}"


def status(home: Home) -> list[ServiceStatus]:
    """One entry a service, one a server that serves or served a run, and one a process of ours that no record names."""
    found = {record.name: record for record in Records(home.pids).all()}
    names = [*_ORDER, *(name for name in found if name not in _ORDER)]
    lines = [_status(home, name, found.get(name)) for name in names]
    left = strays(home.root, {record.mark for record in found.values()})
    return [*lines, *(ServiceStatus("of ours, unrecorded", "running (down ends it)", p.pid, "", None) for p in left)]


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
        *("--backend-store-uri", home.own_tracking_uri),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    # Its job consumers run scorers on the server, which nothing here asks for: seven processes with 1.3 GiB.
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"} | service_environment(home)
    _checked(home, "-m", "tasks.runtime.tracking.mlflow_database", str(home.root))
    _start(home, "mlflow", command, f"http://{LOOPBACK}:{ports.mlflow}", environment)


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


def _wait(home: Home, name: str, ports: Ports) -> None:
    record = next(r for r in Records(home.pids).all() if r.name == name)
    if name == "ray":
        wait_until_ready(home, record, lambda: start_head(home, "ray", ports.ray, ports.ray_dashboard))
    else:
        wait_until_answers(record, _HEALTH[name])


def _show_earlier_runs(home: Home) -> None:
    with changed_environment():
        os.environ.update(service_environment(home) | addresses(home))
        show_waiting(home)


def _deploy(home: Home) -> None:
    """Create the work pool and a deployment of each preset; they may be there already."""
    pool = ("-m", "prefect", "work-pool", "create", WORK_POOL, "--type", "process", "--overwrite")
    shipped = ("-c", "from flows.commands.deployments import deploy_shipped; deploy_shipped()")
    for arguments in (pool, shipped):
        _checked(home, *arguments)


def _checked(home: Home, *arguments: str) -> None:
    """Run Python with `arguments` as the services do, and wait; `ServiceError` with what it said where it fails."""
    environment = service_environment(home) | addresses(home)
    answer = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise ServiceError(f"{' '.join(arguments[1:])} failed:\n{answer.stdout[-2000:]}{answer.stderr[-2000:]}")


def _status(home: Home, name: str, record: ProcessRecord | None) -> ServiceStatus:
    if record is None:
        return ServiceStatus(name, "not started", None, os.environ.get(SERVICE_VARIABLES.get(name, ""), ""), None)
    if record.process is None:
        left = record.orphans
        pids = ", ".join(str(process.pid) for process in left)
        state = f"ended; left {_counted(left)} behind: {pids} (up and down end them)" if left else "ended"
        return ServiceStatus(name, state, None, record.url, record.log)
    if record.owner_pid and not record.has_live_owner:
        return ServiceStatus(
            name, "served a run that is gone (the next run takes it, down ends it)", record.pid, record.url, record.log
        )
    if name in _HEALTH and not answers(record.url.removesuffix("/api") + _HEALTH[name]):
        return ServiceStatus(name, "does not answer", record.pid, record.url, record.log)
    return ServiceStatus(name, "running", record.pid, record.url, record.log)


_HEALTH = {"prefect": HEALTH, "mlflow": "/health"}
_START: dict[str, Callable[[Home, Ports], None]] = {"prefect": _start_prefect, "mlflow": _start_mlflow, "ray": _start_ray}
