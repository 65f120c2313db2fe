"""A function called in a process of its own, with a limit on its time and memory, from whatever thread.

For libraries that compute with what a model wrote: arithmetic in C that no exception interrupts, and `eval`. The process is
no sandbox; but it has nothing of this one's memory and environment, ends by itself, and refuses by Python's audit events to
write files, start programs or open connections. `python -m rlhf_core.rewards.verifiers.apart LIBRARY MODULE:NAME SECONDS` is it.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

from data_processing.apart import import_path
from data_processing.errors import ConfigError
from rlhf_core.rewards.time_limit import TimeLimitError, time_limit
from rlhf_core.rewards.verifiers.verifier import OverTimeError

_START_S, _GRACE_S = 120.0, 1.0
_MEMORY_BYTES = 4 << 30
_KEPT = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")
_READY, _VALUE, _OVER, _FAILED = "ready", "value", "over", "failed"
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events, by their beginnings.
_REFUSED = (
    *("os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "os.kill", "subprocess.", "pty.", "socket.", "ctypes."),
    *(
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.mkdir",
        "os.link",
        "os.symlink",
        "os.truncate",
        "os.chmod",
        "os.chown",
        "shutil.",
    ),
)


class Apart:
    """Calls the function at `path` ("module:name") with JSON values, each time for at most `limit_s` seconds.

    The process starts with the first call, and anew after one that it did not survive. It imports `library` before anything is
    refused, which libraries may need to load.
    """

    def __init__(self, path: str, library: str, limit_s: float) -> None:
        self._path, self._library, self._limit_s = path, library, limit_s
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def __call__(self, *arguments: Any) -> Any:
        """What it returns, a JSON value.

        Raises `OverTimeError` where that takes too long or too much memory, `RuntimeError` where the function raises.
        """
        with self._lock:
            self._process = self._process or self._started()
            said = _answer_of(self._process, arguments)
            if said is None:
                self.close()
        if said is None or _OVER in said:
            raise OverTimeError
        if _FAILED in said:
            raise RuntimeError(f"'{self._path}' raised {said[_FAILED]}")
        return said[_VALUE]

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _started(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rlhf_core.rewards.verifiers.apart", self._library, self._path, str(self._limit_s)],
            env={"PYTHONPATH": import_path(), **{k: os.environ[k] for k in _KEPT if k in os.environ}},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        said = _heard(process)
        if said is None or _READY not in said:
            process.kill()
            process.communicate()
            why = (said or {}).get(_FAILED, f"it ended with code {process.returncode}")
            raise ConfigError(f"rewards: '{self._path}' cannot be called in a process of its own: {why}; see to what it imports")
        return process


def _answer_of(process: subprocess.Popen[str], arguments: tuple[Any, ...]) -> dict[str, Any] | None:
    """What the process says to a call, None where it is gone."""
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(arguments) + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        return None
    return _heard(process)


def _heard(process: subprocess.Popen[str]) -> dict[str, Any] | None:
    assert process.stdout is not None
    line = process.stdout.readline()
    said: dict[str, Any] | None = json.loads(line) if line.endswith("\n") else None
    return said


def main(library: str, path: str, limit_s: float) -> None:
    """Answer calls, a line each, until there are no more."""
    # Whatever prints must not be taken for an answer.
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    signal.setitimer(signal.ITIMER_REAL, _START_S)
    try:
        importlib.import_module(library)
        module, _, name = path.partition(":")
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # a library that does not import may raise anything
        _tell(told, {_FAILED: f"{type(error).__name__}: {error}"})
        return
    _confine()
    _tell(told, {_READY: True})
    signal.setitimer(signal.ITIMER_REAL, 0)
    for line in sys.stdin:
        # SIGALRM ends the process also amid a computation in C, and when nobody waits for it any more.
        signal.setitimer(signal.ITIMER_REAL, limit_s + _GRACE_S)
        _tell(told, _called(function, json.loads(line), limit_s))
        signal.setitimer(signal.ITIMER_REAL, 0)


def _called(function: Callable[..., Any], arguments: list[Any], limit_s: float) -> dict[str, Any]:
    try:
        with time_limit(limit_s):
            return {_VALUE: function(*arguments)}
    except (TimeLimitError, MemoryError):
        return {_OVER: True}
    except Exception as error:  # as above
        return {_FAILED: f"{type(error).__name__}: {error}"}


def _tell(told: TextIO, said: dict[str, Any]) -> None:
    told.write(json.dumps(said) + "\n")
    told.flush()


def _confine() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    sys.addaudithook(_refuse)


def _refuse(event: str, details: tuple[Any, ...]) -> None:
    if event.startswith(_REFUSED) or (event == "open" and isinstance(details[2], int) and details[2] & _WRITING):
        raise PermissionError(f"{event} is not for what a response holds")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
