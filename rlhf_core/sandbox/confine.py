"""A process gives up, for good, what tested code must not have: limits, files, system calls. Runs in the child, before that code.

Nothing here needs a privilege, another program or a namespace. It is imported at each start of a child, so it imports little.
"""

from __future__ import annotations

import ctypes
import os
import resource
import stat
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Stands in a filter of system calls for the process id of whoever installs it.
OWN_PID = 0x7FED_C0DE

_SIGKILL = 9
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SECCOMP_SET_MODE_FILTER = 1
# The same on all machines.
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_RULE_PATH_BENEATH = 1

_WRITE_FILE, _READ_FILE, _READ_DIRECTORY, _REMOVE_FILE, _MAKE_FILE, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 8, 1 << 14
_OF_FILES = _WRITE_FILE | _READ_FILE | _TRUNCATE
_READ = _READ_FILE | _READ_DIRECTORY
# No folders: what lies deeper than a path may be long could not be counted, and links could lead elsewhere.
_CHANGE = _READ | _WRITE_FILE | _REMOVE_FILE | _MAKE_FILE | _TRUNCATE
# By version of Landlock's interface, how many kinds of access it knows: those are denied but where a rule allows them.
_ACCESSES = (0, 13, 14, 15, 15, 16)
_TCP = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11

_libc = ctypes.CDLL(None, use_errno=True)


class NotConfinedError(OSError):
    """The kernel refused to take something away."""


def landlock_version() -> int:
    """Version of Landlock's interface in this kernel, 0 where there is none or it is switched off."""
    return max(int(_libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1)), 0)


def die_with(parent: int) -> None:
    """End when the parent ends, also where that has happened already."""
    _done(_libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")
    if os.getppid() != parent:
        os._exit(1)


def limit(limits: Mapping[str, int]) -> None:
    """Set limits by name (`RLIMIT_AS`, ...), soft and hard, lower where the hard one is lower already."""
    for name, value in limits.items():
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        lower = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (lower, lower))


def give_up_privileges() -> None:
    """No program that this process could start would gain any."""
    _done(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")


def confine_files(readable: Sequence[str], writable: Sequence[str]) -> None:
    """Let files be read beneath the paths `readable` only, and changed beneath `writable` only; paths that do not exist are passed over.

    Where the kernel can, TCP, abstract sockets and signals to others go too. Raises `NotConfinedError` where it has no Landlock.
    """
    version = landlock_version()
    if not version:
        raise NotConfinedError("this kernel has no Landlock")
    handled = (1 << _ACCESSES[min(version, 5)]) - 1
    net, scoped = _TCP * (version >= 4), _ABSTRACT_SOCKETS_AND_SIGNALS * (version >= 6)
    asked = struct.pack("=QQQ", handled, net, scoped)[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = _done(_libc.syscall(_LANDLOCK_CREATE_RULESET, asked, ctypes.c_size_t(len(asked)), 0), "landlock_create_ruleset")
    for path in readable:
        _allow(rules, path, _READ & handled)
    for path in writable:
        _allow(rules, path, _CHANGE & handled)
    _done(_libc.syscall(_LANDLOCK_RESTRICT_SELF, rules, 0), "landlock_restrict_self")
    os.close(rules)


def confine_calls(filter_: bytes, machine: str) -> None:
    """Install a filter of system calls for all threads. Raises `NotConfinedError` where there is none for this machine."""
    if not filter_:
        raise NotConfinedError(f"the system calls of {machine} are not known here")
    own = filter_.replace(struct.pack("=I", OWN_PID), struct.pack("=I", os.getpid()))
    program = ctypes.create_string_buffer(own)
    asked = struct.pack("@HP", len(filter_) // 8, ctypes.addressof(program))
    _done(_libc.syscall(_SECCOMP[machine], _SECCOMP_SET_MODE_FILTER, 0, asked), "seccomp")


def _allow(rules: int, path: str, access: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    access = access if stat.S_ISDIR(os.fstat(place).st_mode) else access & _OF_FILES
    rule = struct.pack("=Qi", access, place)
    _done(_libc.syscall(_LANDLOCK_ADD_RULE, rules, _LANDLOCK_RULE_PATH_BENEATH, rule, 0), f"landlock_add_rule {path}")
    os.close(place)


def _done(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise NotConfinedError(number, f"{what}: {os.strerror(number)}")
    return result
