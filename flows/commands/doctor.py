"""Is this machine ready? One finding a check, with a fix for what is not. Changes nothing."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from data_processing.errors import ConfigError
from flows.running.check_servers import check_mlflow, check_prefect, check_ray
from flows.services.local import Ports
from flows.services.machine import available_memory_gib
from flows.services.processes import LOOPBACK, Records, port_holder
from flows.services.service_faults import service_faults
from flows.settings.config import PipelineConfig
from rlhf_core.precision import native_dtype
from tasks.runtime.contract.disk import free_disk_gib
from tasks.runtime.contract.home import Home

State = Literal["ok", "attention", "broken"]
_DISK_WANTED_GIB = 12.0
_MEMORY_WANTED_GIB = 8.0
_SHM_WANTED_GIB = 1.0
_IMPORT_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Finding:
    """What a check found. `broken` stops a run; `attention` makes one slower or smaller. `fix` is empty when all is well."""

    check: str
    state: State
    found: str
    fix: str = ""


def examine(home: Home) -> list[Finding]:
    """All findings, in the order a user would fix them."""
    return [finding for check in _CHECKS for finding in check(home)]


def _python(_: Home) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    right = (3, 11) <= sys.version_info[:2] <= (3, 12)
    yield Finding("python", "ok" if right else "broken", version, "" if right else "use Python 3.11 or 3.12")


def _libraries(_: Home) -> Iterator[Finding]:
    for name in ("torch", "transformers", "deepspeed", "ray", "prefect", "mlflow"):
        try:
            yield Finding(name, "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "broken", "not installed", "make venv")


def _imports(_: Home) -> Iterator[Finding]:
    """Imports that fail only when they are tried, each in a process of its own."""
    yield _import(
        "torch", "import torch; torch.ones(2) @ torch.ones(2)", "broken", "make venv installs a torch that fits this machine"
    )
    if _is_real("torchvision"):
        fix = "pip uninstall torchvision: text models need none, and a build for another torch breaks transformers and vLLM"
        yield _import("torchvision beside torch", "import torch, torchvision; torchvision.ops.nms", "broken", fix)
    else:
        yield Finding("torchvision beside torch", "ok", "not installed, not needed")
    yield _import(
        "vllm", "from vllm import LLM", "attention", "without it rollout.engine auto uses transformers, which is slower"
    )


def _compilers(_: Home) -> Iterator[Finding]:
    for name, fix in (("g++", "install it (Debian: apt-get install g++)"), ("ninja", "pip install ninja")):
        place = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
        yield Finding(
            name, "ok" if place else "broken", place or "not found", "" if place else f"DeepSpeed builds with it: {fix}"
        )


def _room(home: Home) -> Iterator[Finding]:
    yield _at_least(
        "disk", free_disk_gib(home.root), _DISK_WANTED_GIB, f"free some at {home.root}, or set ALIGNFLOW_HOME elsewhere"
    )
    yield _at_least(
        "memory", available_memory_gib(), _MEMORY_WANTED_GIB, "end other programs, or lower engine.micro_batch_tokens"
    )
    if Path("/dev/shm").is_dir():
        yield _at_least(
            "/dev/shm", free_disk_gib(Path("/dev/shm")), _SHM_WANTED_GIB, "containers: --shm-size=2g; else Ray spills to disk"
        )


def _precision(_: Home) -> Iterator[Finding]:
    dtype = native_dtype(on_gpu=False)
    slower = ", which this CPU computes faster than bf16" if dtype == "fp32" else ""
    yield Finding("precision on the CPU", "ok", f"dtype auto is {dtype}{slower}")


def _ports(home: Home) -> Iterator[Finding]:
    records = Records(home.pids)
    for name, port in asdict(Ports()).items():
        service = name.split("_")[0]
        if records.running(service):
            yield Finding(f"port of {name}", "ok", f"{service} is up")
        elif _is_free(port):
            yield Finding(f"port of {name}", "ok", f"{port} is free")
        else:
            option = f"--{name.replace('_', '-')}-port"
            yield Finding(
                f"port of {name}", "attention", f"{port} is held by {port_holder(port)}", f"alignflow up {option} with another"
            )


def _services_of_prefect(home: Home) -> Iterator[Finding]:
    """What the server does by itself, as making runs of schedules: it answers also where that fails."""
    record = Records(home.pids).running("prefect")
    if record is None:
        return
    faults = service_faults(record.log, at_least=2)
    fix = f"schedules may not fire; the log is {record.log}; after mending it: alignflow down, alignflow up"
    yield Finding(
        "services of Prefect", "attention" if faults else "ok", "; ".join(faults) or "none fails", fix if faults else ""
    )


def _servers(home: Home) -> Iterator[Finding]:
    yield _server("Prefect", "PREFECT_API_URL", check_prefect)
    yield _server("MLflow", "MLFLOW_TRACKING_URI", lambda: check_mlflow(home))
    yield _server("Ray", "RAY_ADDRESS", check_ray)


def _server(name: str, variable: str, check: Callable[[], None]) -> Finding:
    address = os.environ.get(variable)
    if address is None:
        return Finding(name, "ok", f"{variable} not set: a local one is used")
    try:
        check()
    except ConfigError as error:
        found, _, fix = str(error).partition("; ")
        return Finding(name, "broken", found, fix)
    return Finding(name, "ok", address.rpartition("@")[2])


def _import(check: str, code: str, state: State, fix: str) -> Finding:
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=_IMPORT_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding(check, state, f"no answer within {_IMPORT_TIMEOUT_S:g} s", fix)
    if done.returncode == 0:
        return Finding(check, "ok", "imports")
    return Finding(check, state, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200], fix)


def _at_least(check: str, have_gib: float, wanted_gib: float, fix: str) -> Finding:
    found = f"{have_gib:.1f} GiB free"
    if have_gib >= wanted_gib:
        return Finding(check, "ok", found)
    state: State = "broken" if check == "disk" and have_gib < PipelineConfig().runtime.min_free_disk_gib else "attention"
    return Finding(check, state, f"{found}, the quickstart wants {wanted_gib:g}", fix)


def _is_real(distribution: str) -> bool:
    """Whether a distribution holds code; the CPU lock installs some by name only."""
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return False
    return any(file.suffix == ".py" for file in files)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex((LOOPBACK, port)) != 0


_CHECKS: tuple[Callable[[Home], Iterator[Finding]], ...] = (
    _python,
    _libraries,
    _compilers,
    _imports,
    _room,
    _precision,
    _ports,
    _services_of_prefect,
    _servers,
)
