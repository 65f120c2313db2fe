"""Whether the worker process of an attempt is alive, whoever started it: by process id on this machine, by heartbeat elsewhere."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tasks.runtime.contract.spec import write_json

WORKER_FILE = "worker.json"
HEARTBEAT_FILE = "heartbeat"
HEARTBEAT_LIMIT_S = 15.0
BEAT_EVERY_S = 2.0


def announce(folder: Path, pid: int | None = None) -> None:
    """Record that process `pid` (default: this one) works on the attempt in `folder`."""
    pid = pid or os.getpid()
    write_json(folder / WORKER_FILE, {"pid": pid, "created": psutil.Process(pid).create_time(), "host": socket.gethostname()})
    beat(folder)


def retire(folder: Path) -> None:
    """Record that nobody works on the attempt in `folder` any more."""
    (folder / WORKER_FILE).unlink(missing_ok=True)


def beat(folder: Path) -> None:
    """Say that the worker is alive."""
    (folder / HEARTBEAT_FILE).touch()


@contextmanager
def beating(folder: Path) -> Iterator[None]:
    """Say so all through the block, whatever it does: fetching, hashing and uploading large artifacts take minutes too."""
    ended = threading.Event()

    def beat_until_ended() -> None:
        while not ended.wait(BEAT_EVERY_S):
            with suppress(OSError):  # the next one will do
                beat(folder)

    thread = threading.Thread(target=beat_until_ended, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def worker_process(folder: Path) -> psutil.Process | None:
    """The live worker process of the attempt, where it runs on this machine."""
    record = _record(folder)
    if record is None or record["host"] != socket.gethostname():
        return None
    return live_process(int(str(record["pid"])), float(str(record["created"])))


def owner(folder: Path) -> tuple[str, int] | None:
    """Host and process id of whoever announced itself in `folder`, alive or not; None where nobody did."""
    record = _record(folder)
    return (str(record["host"]), int(str(record["pid"]))) if record else None


def live_process(pid: int, created: float) -> psutil.Process | None:
    """The process of this machine with this id and start time (seconds since the epoch), unless it has ended."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - created) < 1.0
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def is_alive(folder: Path) -> bool:
    """Whether the attempt's worker is alive as far as can be known."""
    record = _record(folder)
    if record is None:
        return False
    if record["host"] == socket.gethostname():
        return worker_process(folder) is not None
    try:
        age_s = time.time() - (folder / HEARTBEAT_FILE).stat().st_mtime
    except FileNotFoundError:
        return False
    return age_s < HEARTBEAT_LIMIT_S


def was_announced(folder: Path) -> bool:
    """Whether a worker ever began this attempt."""
    return _record(folder) is not None


def _record(folder: Path) -> dict[str, object] | None:
    try:
        record: dict[str, object] = json.loads((folder / WORKER_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return record
