"""What a fresh interpreter does that runs tested code: take its job, give up what that code must not have, run it.

Started as `rlhf_core.sandbox.processes` does; the modules it imports before the code are kept few, since each start pays for them.
"""

from __future__ import annotations

import marshal
import os
import sys

from rlhf_core.sandbox import confine
from rlhf_core.sandbox.modules import NOT_CONFINED, OUT_OF_MEMORY, RAISED, run_source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypedDict

    class Job(TypedDict):
        """What the parent tells a child: what to run as `role` says, and within what."""

        role: str
        source: str
        entry_point: str
        parent: int
        folder: str
        limits: dict[str, int]
        readable: list[str]
        packages: list[str]
        machine: str
        filter: bytes
        is_strict: bool
        read_from: int
        write_to: int


def main(place: int) -> None:
    """Do the job that lies, marshalled, in the file `place`; does not return."""
    with os.fdopen(place, "rb") as file:
        job: Job = marshal.loads(file.read())
    report_to = _set_report_aside() if job["role"] == "tests" else 1
    confine.die_with(job["parent"])
    try:
        _confine(job)
    except OSError as error:
        if job["is_strict"]:
            os.write(report_to, str(error).encode())
            os._exit(NOT_CONFINED)
    sys.path[:] = [*(path for path in sys.path if path not in sys.argv), *job["packages"]]
    sys.argv[:] = [""]
    code = _run(job, report_to)
    if job["role"] == "script":
        # As any script ends: its other threads and what it registered for its end come first.
        sys.exit(code)
    os._exit(code)


def _confine(job: Job) -> None:
    """Everything that can be taken away; raises `NotConfinedError` where a part of it cannot, after the other parts."""
    os.chdir(job["folder"])
    confine.limit(job["limits"])
    confine.give_up_privileges()
    try:
        confine.confine_files(job["readable"], [job["folder"]])
    finally:
        confine.confine_calls(job["filter"], job["machine"])


def _run(job: Job, report_to: int) -> int:
    try:
        if job["role"] == "script":
            run_source(job["source"], "__main__", {})
            return 0
        from rlhf_core.sandbox import answering, asking, wire

        pipes = wire.Wire(job["read_from"], job["write_to"])
        if job["role"] == "program":
            return answering.serve(job["source"], pipes)
        return asking.test(job["source"], job["entry_point"], pipes, report_to)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except MemoryError:
        return OUT_OF_MEMORY
    except BaseException:
        return RAISED


def _set_report_aside() -> int:
    """A copy of standard output for results; what is printed goes nowhere."""
    aside = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return aside
