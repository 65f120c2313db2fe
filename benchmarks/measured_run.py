"""Run a command and report wall seconds, CPU seconds and peak memory of its whole process tree.

    python benchmarks/measured_run.py --out measured.json -- alignflow run --preset quickstart

Memory is the proportional set size (PSS): pages shared between processes are counted once in the sum, so the figure is
what the tree really occupies. It is sampled, so short peaks between samples are missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil


@dataclass
class Measured:
    """What one run took. `cpu_s` counts processes that lived through at least one sample."""

    command: list[str]
    exit_code: int
    wall_s: float
    cpu_s: float
    peak_pss_gib: float
    peak_process_count: int


class TreeSampler(threading.Thread):
    """Samples memory and CPU time of a process and its descendants until told to stop."""

    def __init__(self, pid: int, interval_s: float) -> None:
        super().__init__(daemon=True)
        self.root = psutil.Process(pid)
        self.interval_s = interval_s
        self.stopped = threading.Event()
        self.peak_bytes = 0
        self.peak_processes = 0
        self.cpu_s: dict[tuple[int, float], float] = {}
        self.known: dict[int, psutil.Process] = {}

    def run(self) -> None:
        while not self.stopped.wait(self.interval_s):
            self.sample()

    def sample(self) -> None:
        # Descendants whose parent has died are reparented, so every process seen once stays in the list.
        for process in [self.root, *self._children()]:
            self.known.setdefault(process.pid, process)
        pss_bytes = 0
        alive = 0
        for process in list(self.known.values()):
            try:
                if not process.is_running():
                    continue
                times = process.cpu_times()
                self.cpu_s[process.pid, process.create_time()] = times.user + times.system
                pss_bytes += process.memory_full_info().pss
                alive += 1
            except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
                continue
        self.peak_bytes = max(self.peak_bytes, pss_bytes)
        self.peak_processes = max(self.peak_processes, alive)

    def _children(self) -> list[psutil.Process]:
        try:
            return self.root.children(recursive=True)
        except psutil.NoSuchProcess:
            return []


def measure(command: list[str], interval_s: float = 1.0) -> Measured:
    """Run `command` to its end with its output passed through, sampling its process tree every `interval_s` seconds."""
    start = time.monotonic()
    process = subprocess.Popen(command)
    sampler = TreeSampler(process.pid, interval_s)
    sampler.start()
    exit_code = process.wait()
    sampler.stopped.set()
    sampler.join()
    return Measured(
        command=command,
        exit_code=exit_code,
        wall_s=round(time.monotonic() - start, 1),
        cpu_s=round(sum(sampler.cpu_s.values()), 1),
        peak_pss_gib=round(sampler.peak_bytes / 2**30, 2),
        peak_process_count=sampler.peak_processes,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure wall time, CPU time and peak memory of a command's process tree")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--interval-s", type=float, default=1.0, help="seconds between samples")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the command, after --")
    arguments = parser.parse_args()
    command = [word for i, word in enumerate(arguments.command) if not (i == 0 and word == "--")]
    if not command:
        parser.error("no command given; put it after --")
    measured = measure(command, arguments.interval_s)
    text = json.dumps(asdict(measured), indent=2)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")
    print(text)
    sys.exit(measured.exit_code)


if __name__ == "__main__":
    main()
