"""Asks environments in a process of their own, which may hang or die without taking the sampler with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from data_processing.apart import import_path, last_line


class EnvironmentFailedError(RuntimeError):
    """An environment raised, returned what is no reply, or its process died: the conversation is invalid."""


class Host:
    """Environments of the class at `path`, each made with `options`. A process that died is started again for whoever asks next."""

    def __init__(self, path: str, options: Mapping[str, Any]) -> None:
        self._command = [sys.executable, "-P", "-m", "rlhf_core.environments.worker", path, json.dumps(dict(options))]
        self._worker: _Worker | None = None

    def ask(self, conversation: int, op: str, given: Mapping[str, Any] | None = None) -> Future[Any]:
        """What environment number `conversation` answers; the future raises `EnvironmentFailedError`."""
        asked = {"conversation": conversation, "op": op, "given": given or {}}
        while True:
            if self._worker is None:
                self._worker = _Worker(self._command)
            if (future := self._worker.ask(asked)) is not None:
                return future
            self._worker = None

    def end(self, conversation: int) -> None:
        """Environment number `conversation` is needed no more; nothing where its process has gone already."""
        if self._worker is not None:
            self._worker.ask({"conversation": conversation, "op": "end", "given": {}})

    def close(self) -> None:
        """End the process."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None


class _Worker:
    """One process, and who waits for its answers."""

    def __init__(self, command: Sequence[str]) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        environment = {**os.environ, "PYTHONPATH": import_path()}
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[Any]] = {}
        self._count, self._is_over = 0, False
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, asked: Mapping[str, Any]) -> Future[Any] | None:
        """The answer to come; None where the process has ended."""
        assert self._process.stdin is not None
        with self._lock:
            if self._is_over:
                return None
            self._count += 1
            future = self._waiting[self._count] = Future()
            with suppress(OSError):  # it is just dying: its reader tells everyone
                self._process.stdin.write(json.dumps({"id": self._count, **asked}) + "\n")
                self._process.stdin.flush()
        return future

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            found = json.loads(line)
            with self._lock:
                future = self._waiting.pop(found["id"])
            if "error" in found:
                future.set_exception(EnvironmentFailedError(found["error"]))
            else:
                future.set_result(found["answer"])
        code = self._process.wait()
        self._errors.seek(0)
        last = last_line(self._errors.read())
        self._errors.close()
        with self._lock:
            self._is_over, left = True, list(self._waiting.values())
        for future in left:
            future.set_exception(EnvironmentFailedError(f"its process ended with code {code}: {last}"))
