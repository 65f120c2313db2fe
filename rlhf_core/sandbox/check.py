"""Whether this machine can confine tested code: found by trying, once, before anything is trained."""

from __future__ import annotations

import platform
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from data_processing.errors import ConfigError
from rlhf_core.sandbox.limits import Ending, Within
from rlhf_core.sandbox.processes import run_script

_SECRET = "not to be read"
_WORKS = "print(6 * 7)"
_READS = "print(open({path!r}).read())"
_CONNECTS = "import socket; socket.socket(); print('connected')"


def check_confinement(within: Within) -> tuple[str, ...]:
    """What does not hold here, in words; nothing where all does.

    Raises `ConfigError` where programs cannot be run at all, and where they cannot be confined and `within.is_strict`.
    """
    if sys.platform != "linux":
        raise ConfigError(
            f"rewards: kind 'code' runs programs on Linux only, and this is {sys.platform}; score on a Linux machine"
        )
    missing = () if _runs_strictly(within) else _missing(within)
    if missing and within.is_strict:
        raise ConfigError(
            f"rewards: kind 'code' with confine=true: this machine (Linux {platform.release()}, {platform.machine()}) does not keep "
            f"tested code from {' and '.join(missing)}; it takes Linux 5.13 with Landlock among its security modules (lsm=landlock,...) "
            "and seccomp, on x86_64 or aarch64. Use such a machine, or set confine: false where only code that you trust is run"
        )
    return missing


def _runs_strictly(within: Within) -> bool:
    strict = replace(within, is_strict=True)
    return _prints(_WORKS, strict, "42") and not _missing(strict)


def _missing(within: Within) -> tuple[str, ...]:
    """What a program can do that it should not."""
    lenient = replace(within, is_strict=False)
    if not _prints(_WORKS, lenient, "42"):
        raise ConfigError(
            f"rewards: kind 'code': a program that prints 42 did not do so with {within.limits}; raise memory_mib or time_s, or see "
            f"whether {sys.executable} starts here"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "secret")
        path.write_text(_SECRET)
        reads = _prints(_READS.format(path=str(path)), lenient, _SECRET)
    connects = run_script(_CONNECTS, "", lenient).ending != Ending.FORBIDDEN
    return ("reading other files",) * reads + ("the network and other processes",) * connects


def _prints(source: str, within: Within, text: str) -> bool:
    return run_script(source, "", within).output.decode(errors="replace").strip() == text
