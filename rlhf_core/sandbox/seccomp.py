"""The filter of system calls that tested code runs under, as the program (classic BPF) that seccomp(2) takes.

It is made once by the parent and installed by each child. A filter cannot be taken off again, and holds for every thread.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Iterator

from rlhf_core.sandbox import syscalls
from rlhf_core.sandbox.confine import OWN_PID

_LOAD, _AND, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF_0000, 0x8000_0000, 0x0005_0000
_ABSENT, _REFUSED = _ERRNO | errno.ENOSYS, _ERRNO | errno.EPERM
_ARCHITECTURES = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
# Calls of the 32-bit-pointer interface of x86_64 carry this bit: they would pass the filter under other numbers.
_X32 = 0x4000_0000

_CLONE_THREAD = 0x0001_0000
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPE = 1, 1, 0xF
_O_ACCMODE, _O_TRUNC = 0o3, 0o1000
# Duplicates, flags, locks and the size of a pipe; not the ones that choose who gets a signal.
_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032)
# What Python asks of a file: is it a terminal, how wide, how much is there, close on exec, do not block.
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _returned(action: int) -> bytes:
    return _step(_RETURN, action)


def _argument(number: int, *, high: bool = False) -> bytes:
    """Load half of an argument; both machines are little-endian."""
    return _step(_LOAD, _ARGUMENTS_AT + 8 * number + 4 * high)


def _one_of(values: tuple[int, ...], action: int, otherwise: int) -> bytes:
    """`action` where what is loaded is one of `values`."""
    tests = b"".join(_step(_JUMP_EQUAL, value, len(values) - i, 0) for i, value in enumerate(values))
    return tests + _returned(otherwise) + _returned(action)


def _masked(argument: int, mask: int, value: int, action: int, otherwise: int) -> bytes:
    """`action` where the argument's bits under `mask` are `value`."""
    return _argument(argument) + _step(_AND, mask) + _one_of((value,), action, otherwise)


def _checks() -> dict[str, bytes]:
    """By call, what becomes of it; each ends with a return."""
    # Without write access Landlock before 6.2 does not see that a file is emptied.
    only_truncates = {
        name: _masked(at, _O_ACCMODE | _O_TRUNC, _O_TRUNC, _REFUSED, _ALLOW) for name, at in (("open", 1), ("openat", 2))
    }
    to_itself = _argument(0) + _one_of((OWN_PID,), _ALLOW, _KILL_PROCESS)
    is_reading_a_limit = (
        _argument(2) + _step(_JUMP_EQUAL, 0, 1, 0) + _returned(_REFUSED)
        + _argument(2, high=True) + _one_of((0,), _ALLOW, _REFUSED)
    )  # fmt: skip
    # A pair of streams is a pipe, which event loops need; a pair of datagrams could write to a socket of somebody else.
    stream_pair = (
        _argument(0) + _step(_JUMP_EQUAL, _AF_UNIX, 1, 0) + _returned(_KILL_PROCESS)
        + _masked(1, _SOCK_TYPE, _SOCK_STREAM, _ALLOW, _KILL_PROCESS)
    )  # fmt: skip
    return {
        **only_truncates,
        "clone": _masked(0, _CLONE_THREAD, _CLONE_THREAD, _ALLOW, _KILL_PROCESS),
        # Looking up a user asks for one of this machine first; it is told that there are none.
        "socket": _argument(0) + _one_of((_AF_UNIX,), _REFUSED, _KILL_PROCESS),
        "socketpair": stream_pair,
        "kill": to_itself,
        "tgkill": to_itself,
        "tkill": to_itself,
        "prlimit64": is_reading_a_limit,
        "fcntl": _argument(1) + _one_of(_FCNTL, _ALLOW, _REFUSED),
        "ioctl": _argument(1) + _one_of(_IOCTL, _ALLOW, _REFUSED),
    }


def _rules(machine: str) -> Iterator[tuple[int, bytes]]:
    """Number of a call, and what becomes of it; the most frequent first."""
    checks = _checks()
    yield from ((number, _returned(_ALLOW)) for number in syscalls.allowed(machine).values())
    yield from ((number, checks[name]) for name, number in syscalls.checked(machine).items())
    yield from ((number, _returned(_KILL_PROCESS)) for number in syscalls.forbidden(machine).values())


def build_filter(machine: str = "") -> bytes:
    """The filter for this machine, or the one named; empty where its calls are not known."""
    machine = machine or platform.machine()
    if machine not in _ARCHITECTURES:
        return b""
    head = [
        _step(_LOAD, _ARCHITECTURE_AT),
        _step(_JUMP_EQUAL, _ARCHITECTURES[machine], 1, 0),
        _returned(_KILL_PROCESS),
        _step(_LOAD, _NUMBER_AT),
        _step(_JUMP_AT_LEAST, _X32, 0, 1),
        _returned(_KILL_PROCESS),
    ]
    body = [_step(_JUMP_EQUAL, number, 0, len(what) // 8) + what for number, what in _rules(machine)]
    return b"".join([*head, *body, _returned(_ABSENT)])
