"""A Ray head of a test's own: loopback, free ports, private folders, ended by its process id."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import requests

from flows.services.processes import free_port
from rlhf_core.cluster.machine_gpus import FOLDER_VARIABLE

_PORT_OPTIONS = (
    "--port",
    "--dashboard-port",
    "--dashboard-agent-listen-port",
    "--dashboard-agent-grpc-port",
    "--runtime-env-agent-port",
    "--metrics-export-port",
    "--node-manager-port",
    "--object-manager-port",
)


class RayHead:
    """A running head; `address` is what the Jobs API answers at. Its GPUs are there in name only: Ray counts them."""

    def __init__(self, gpus: int = 0, cpus: int = 2, more: Sequence[str] = (), **variables: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="afray", dir="/tmp"))
        ports = [free_port() for _ in _PORT_OPTIONS]
        self.address = f"http://127.0.0.1:{ports[1]}"
        self.gcs_address = f"127.0.0.1:{ports[0]}"
        options = [f"{name}={port}" for name, port in zip(_PORT_OPTIONS, ports, strict=True)]
        command = [
            *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats"),
            *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--include-dashboard=true"),
            *(f"--num-cpus={cpus}", f"--num-gpus={gpus}", "--object-store-memory=100000000", f"--temp-dir={self.folder}/t"),
            *options,
            *more,
        ]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        own = {"HOME": str(self.folder), "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
        own |= {FOLDER_VARIABLE: str(self.folder)}  # its GPUs are not those of other tests on this machine
        self._environment = environment | own | variables
        with (self.folder / "head.log").open("wb") as log:
            self.process = subprocess.Popen(
                command,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def wait_until_ready(self, limit_s: float = 180.0) -> None:
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            try:
                if requests.get(f"{self.address}/api/jobs/", timeout=2).ok:
                    return
            except requests.RequestException:
                pass
            assert self.process.poll() is None, (self.folder / "head.log").read_text()
            time.sleep(0.2)
        raise TimeoutError((self.folder / "head.log").read_text())

    def join(self, name: str, cpus: int, gpus: int = 0) -> subprocess.Popen[bytes]:
        """A second machine of the cluster, as far as Ray can tell: a raylet with resource `name`, in a folder of its own."""
        folder = self.folder / name
        folder.mkdir()
        # Two machines share this one: with Ray's default port taken, an agent lives on without the logs of its jobs.
        agent_port = free_port()
        command = [
            *(str(Path(sys.executable).with_name("ray")), "start", f"--address={self.gcs_address}", "--block"),
            *(
                "--node-ip-address=127.0.0.1",
                f"--dashboard-agent-listen-port={agent_port}",
                f"--num-cpus={cpus}",
                f"--num-gpus={gpus}",
                f'--resources={{"{name}": 1}}',
                "--object-store-memory=100000000",
            ),
        ]
        with (folder / "raylet.log").open("wb") as log:
            return subprocess.Popen(
                command, cwd=folder, env=self._environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def component(self, name: str) -> psutil.Process:
        """The process of this head whose command line names `name`, for example gcs_server."""
        return next(p for p in self._family() if any(name in word for word in p.cmdline()[:1]))

    def close(self) -> None:
        family = [*self._family(), psutil.Process(self.process.pid)]
        self.process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=10)
        for process in alive:
            process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


def end_raylet(raylet: subprocess.Popen[bytes]) -> None:
    """End what `RayHead.join` started, and all of its processes."""
    family = psutil.Process(raylet.pid).children(recursive=True)
    raylet.send_signal(signal.SIGTERM)
    for process in psutil.wait_procs(family, timeout=10)[1]:
        process.kill()
    raylet.wait()


@contextmanager
def running_head(gpus: int = 0, cpus: int = 2) -> Iterator[RayHead]:
    """A head that takes jobs, until the block ends."""
    head = RayHead(gpus=gpus, cpus=cpus)
    try:
        head.wait_until_ready()
        yield head
    finally:
        head.close()
