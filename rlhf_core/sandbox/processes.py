"""Tested code from outside: a fresh interpreter for each run, watched until it ends, and ended when it goes over its limits.

A confined interpreter cannot start another process, so the process is all there is to end. It dies with the thread that waits for it.
"""

from __future__ import annotations

import marshal
import os
import platform
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rlhf_core.sandbox.limits import Ending, Limits, Ran, Within
from rlhf_core.sandbox.modules import NOT_CONFINED, OUT_OF_MEMORY
from rlhf_core.sandbox.seccomp import build_filter
from rlhf_core.sandbox.usage import disk_bytes, threads

if TYPE_CHECKING:
    from rlhf_core.sandbox.child import Job

_LOOK_EVERY_S = 0.02
_ROOT = str(Path(__file__).parents[2])
_START = "import sys; sys.path.insert(0, sys.argv[1]); from rlhf_core.sandbox.child import main; main(int(sys.argv[2]))"
# Nothing of the parent's: -P, -s and -S with an environment of its own, and hashes that are the same in each run.
_PYTHON = (sys.executable, "-P", "-s", "-S", "-c", _START, _ROOT)
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def run_script(source: str, stdin: str, within: Within) -> Ran:
    """Run a program as a script with this text as its standard input."""
    with ExitStack() as stack:
        script = stack.enter_context(_started("script", source, within, stdin=stdin))
        return _watched(script, [script], within.limits)


def run_tests(source: str, tests: str, within: Within, entry_point: str = "") -> Ran:
    """Run tests against a program, each in an interpreter of its own; `rlhf_core.sandbox.asking` says what they report.

    How it ended is how the program did, unless the tests went over a limit.
    """
    with ExitStack() as stack:
        pipes = [os.pipe(), os.pipe()]
        ends = [end for pipe in pipes for end in pipe]
        try:
            program = stack.enter_context(_started("program", source, within, (pipes[0][0], pipes[1][1])))
            asker = stack.enter_context(_started("tests", tests, within, (pipes[1][0], pipes[0][1]), entry_point=entry_point))
        finally:
            for end in ends:
                os.close(end)
        ran = _watched(asker, [program, asker], within.limits)
        return Ran(_ended(program, ran.ending), ran.output)


@dataclass(frozen=True, slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    folder: str

    def kill(self) -> None:
        """End it, and where it was not confined what it started in its session's first process group."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)


@contextmanager
def _started(
    role: str, source: str, within: Within, pipes: Sequence[int] = (-1, -1), *, entry_point: str = "", stdin: str = ""
) -> Iterator[_Child]:
    """A child that is gone, with its folder, when the context ends."""
    with tempfile.TemporaryDirectory(prefix="alignflow-code-") as folder, ExitStack() as stack:
        machine = platform.machine()
        told: Job = {
            "role": role, "source": source, "entry_point": entry_point, "parent": os.getpid(), "folder": folder,
            "limits": within.limits.of_kernel(), "readable": [*_readable(), *within.packages], "packages": list(within.packages),
            "machine": machine, "filter": _filter(machine), "is_strict": within.is_strict, "read_from": pipes[0], "write_to": pipes[1],
        }  # fmt: skip
        job = stack.enter_context(_in_memory(marshal.dumps(cast("Any", told))))
        process = subprocess.Popen(
            [*_PYTHON, str(job)],
            stdin=stack.enter_context(_in_memory(stdin.encode(errors="replace"))),
            stdout=subprocess.DEVNULL if role == "program" else subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={**_ENVIRONMENT, "HOME": folder},
            pass_fds=[job, *(pipe for pipe in pipes if pipe >= 0)],
            start_new_session=True,
        )
        child = _Child(process, folder)
        try:
            yield child
        finally:
            child.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


@contextmanager
def _in_memory(content: bytes) -> Iterator[int]:
    """A file that is nowhere, to be read from its start."""
    place = os.memfd_create("alignflow")
    try:
        with os.fdopen(place, "wb", closefd=False) as file:
            file.write(content)
        os.lseek(place, 0, os.SEEK_SET)
        yield place
    finally:
        os.close(place)


def _watched(main: _Child, children: Sequence[_Child], limits: Limits) -> Ran:
    """Read what `main` writes until it ends, or one of the children goes over a limit."""
    pipe = main.process.stdout.fileno() if main.process.stdout else -1
    os.set_blocking(pipe, False)
    output, deadline, over, has_ended = bytearray(), time.monotonic() + limits.wall_s, None, False
    with _poll(main.process.pid) as events:
        events.register(pipe, select.POLLIN)
        while over is None and not has_ended:
            events.poll(_LOOK_EVERY_S * 1000)
            has_ended = main.process.poll() is not None
            if not _read(pipe, output, limits.output_bytes):
                events.modify(pipe, 0)
            over = _gone_over(children, len(output), deadline, limits)
    if over:
        for child in children:
            child.kill()
    return Ran(_ended(main, over), bytes(output))


@contextmanager
def _poll(pid: int) -> Iterator[select.poll]:
    """A poll that the end of the process wakes."""
    process = os.pidfd_open(pid)
    try:
        events = select.poll()
        events.register(process, select.POLLIN)
        yield events
    finally:
        os.close(process)


def _read(pipe: int, output: bytearray, most: int) -> bool:
    """Append what is there to read, up to just over `most` bytes in all; whether more may come."""
    try:
        while len(output) <= most:
            part = os.read(pipe, 65536)
            if not part:
                return False
            output += part
    except BlockingIOError:
        pass
    return True


def _gone_over(children: Sequence[_Child], written: int, deadline: float, limits: Limits) -> Ending | None:
    if written > limits.output_bytes:
        return Ending.TOO_MUCH
    if time.monotonic() > deadline:
        return Ending.TIME
    for child in children:
        disk = disk_bytes(child.folder, child.process.pid, limits.disk_bytes)
        if disk > limits.disk_bytes or threads(child.process.pid) > limits.threads:
            return Ending.TOO_MUCH
    return None


def _ended(child: _Child, over: Ending | None) -> Ending:
    """How a child ended; one that is left alone has a moment to end by itself."""
    if over in (Ending.TIME, Ending.TOO_MUCH):
        return over
    try:
        code = child.process.wait(1.0)
    except subprocess.TimeoutExpired:
        return Ending.TIME
    endings = {
        0: Ending.DONE, OUT_OF_MEMORY: Ending.MEMORY, NOT_CONFINED: Ending.NOT_CONFINED,
        -signal.SIGSYS: Ending.FORBIDDEN, -signal.SIGXCPU: Ending.TIME, -signal.SIGXFSZ: Ending.TOO_MUCH,
    }  # fmt: skip
    return endings.get(code, Ending.RAISED)


@cache
def _filter(machine: str) -> bytes:
    return build_filter(machine)


@cache
def _readable() -> tuple[str, ...]:
    """The standard library, shared libraries, time zones and a few devices; as far as they exist."""
    library = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")} | {str(Path(sys.base_prefix, "lib"))}
    shared = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/usr/share/zoneinfo")
    return (*sorted(library), *shared, "/dev/null", "/dev/zero", "/dev/urandom", _ROOT + "/rlhf_core/sandbox")
