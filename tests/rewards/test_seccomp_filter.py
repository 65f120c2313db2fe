"""The filter of system calls does what its tables say, on each machine, for any arguments: it is interpreted here as the kernel does."""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_core.sandbox import syscalls
from rlhf_core.sandbox.confine import OWN_PID
from rlhf_core.sandbox.seccomp import build_filter

ALLOW, KILL = 0x7FFF0000, 0x80000000
ABSENT, REFUSED = 0x00050000 | errno.ENOSYS, 0x00050000 | errno.EPERM
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
FILTERS = {machine: build_filter(machine) for machine in syscalls.MACHINES}

machines = st.sampled_from(syscalls.MACHINES)
words = st.integers(0, 2**64 - 1)


def verdict(machine: str, number: int, *arguments: int, audit: int | None = None) -> int:
    """What the filter returns for a call."""
    call = struct.pack("=iIQ6Q", number, AUDIT[machine] if audit is None else audit, 0, *(arguments + (0,) * 6)[:6])
    steps, at, loaded = list(struct.iter_unpack("=HBBI", FILTERS[machine])), 0, 0
    while True:
        code, if_true, if_false, value = steps[at]
        at += 1
        if code == 0x06:
            return int(value)
        if code == 0x20:
            loaded = struct.unpack_from("=I", call, value)[0]
        elif code == 0x54:
            loaded &= value
        else:
            holds = loaded == value if code == 0x15 else loaded >= value
            at += if_true if holds else if_false


@given(machines, words, words, words)
def test_calls_of_the_tables_are_allowed_and_forbidden_whatever_their_arguments(machine: str, a: int, b: int, c: int) -> None:
    assert {verdict(machine, number, a, b, c) for number in syscalls.allowed(machine).values()} == {ALLOW}
    assert {verdict(machine, number, a, b, c) for number in syscalls.forbidden(machine).values()} == {KILL}


@given(machines, st.integers(0, 0x3FFF_FFFF), words)
def test_a_call_in_no_table_does_not_exist(machine: str, number: int, a: int) -> None:
    known = {**syscalls.allowed(machine), **syscalls.checked(machine), **syscalls.forbidden(machine)}.values()
    if number not in known:
        assert verdict(machine, number, a) == ABSENT


@given(machines, st.integers(0, 2**31 - 1), st.integers(0, 2**32 - 1))
def test_calls_of_another_architecture_end_the_process(machine: str, number: int, audit: int) -> None:
    if audit != AUDIT[machine]:
        assert verdict(machine, number, audit=audit) == KILL
    assert verdict(machine, number | 0x4000_0000) == KILL


@pytest.mark.parametrize("machine", syscalls.MACHINES)
def test_no_call_is_in_two_tables(machine: str) -> None:
    tables = [syscalls.allowed(machine), syscalls.checked(machine), syscalls.forbidden(machine)]
    numbers = [number for table in tables for number in table.values()]
    assert len(numbers) == len(set(numbers))


@pytest.mark.parametrize("machine", syscalls.MACHINES)
@given(words, words, words)
def test_checked_calls_depend_on_their_arguments(machine: str, a: int, b: int, c: int) -> None:
    number = syscalls.checked(machine)
    assert verdict(machine, number["clone"], a) == (ALLOW if a & 0x10000 else KILL)
    assert verdict(machine, number["openat"], a, b, c) == (REFUSED if c & 0o1003 == 0o1000 else ALLOW)
    assert verdict(machine, number["prlimit64"], a, b, c) == (REFUSED if c else ALLOW)
    assert verdict(machine, number["prlimit64"], a, b, 0) == ALLOW
    for name in ("kill", "tkill", "tgkill"):
        assert verdict(machine, number[name], a, b, c) == (ALLOW if a & 0xFFFF_FFFF == OWN_PID else KILL)
        assert verdict(machine, number[name], OWN_PID) == ALLOW


@pytest.mark.parametrize("machine", syscalls.MACHINES)
@given(st.integers(0, 50), st.integers(0, 2**32 - 1))
def test_pairs_of_sockets_are_streams_of_this_machine(machine: str, family: int, kind: int) -> None:
    assert verdict(machine, syscalls.checked(machine)["socket"], family, kind) == (REFUSED if family == 1 else KILL)
    allowed = family == 1 and kind & 0xF == 1
    assert verdict(machine, syscalls.checked(machine)["socketpair"], family, kind) == (ALLOW if allowed else KILL)


@pytest.mark.parametrize("machine", syscalls.MACHINES)
def test_controls_of_files_are_those_of_the_list(machine: str) -> None:
    number = syscalls.checked(machine)
    assert {verdict(machine, number["fcntl"], 0, command) for command in (0, 1, 2, 3, 4, 5, 6, 7, 1030)} == {ALLOW}
    assert {verdict(machine, number["fcntl"], 0, command) for command in (8, 10, 15, 1024, 1026, 1031)} == {REFUSED}
    assert {verdict(machine, number["ioctl"], 0, request) for request in (0x5401, 0x5451)} == {ALLOW}
    assert {verdict(machine, number["ioctl"], 0, request) for request in (0x5412, 0x8901, 0x40086602)} == {REFUSED}


def test_a_machine_that_is_not_known_has_no_filter() -> None:
    assert build_filter("s390x") == b""
