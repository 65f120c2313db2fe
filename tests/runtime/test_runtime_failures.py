"""What a worker reports about the error that ended its stage: what would happen again is final, what may not is infrastructure."""

from __future__ import annotations

import json
import socket
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError

from data_processing.errors import DataError
from rlhf_core.cluster.group import ActorFailedError
from tasks.runtime.contract import failures
from tasks.runtime.contract.failures import error_of, failure_of


def raised(code: str) -> BaseException:
    try:
        exec(compile(code, "/somewhere/of_mine.py", "exec"), {"socket": socket, "json": json})
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("1 + 'a'", "TypeError: unsupported operand"),
        ("{}['colour']", "KeyError: 'colour'"),
        ("[][3]", "IndexError: list index out of range"),
        ("None.rows", "AttributeError: 'NoneType'"),
        ("1 / 0", "ZeroDivisionError"),
        ("import no_such_module_here", "ModuleNotFoundError"),
        ("json.loads('{')", "JSONDecodeError"),
        ("b'\\xff'.decode()", "UnicodeDecodeError"),
        ("raise RuntimeError('a desk has no lamp')", "RuntimeError: a desk has no lamp"),
        ("open('/no/such/file')", "FileNotFoundError: [Errno 2] No such file or directory: '/no/such/file'"),
        ("open('/')", "IsADirectoryError"),
        ("def f(): f()\nf()", "RecursionError"),
    ],
)
def test_code_that_fails_over_what_it_is_given_is_not_run_again(code: str, said: str) -> None:
    failure = failure_of(raised(code))
    assert failure.exit_code == 10 and error_of(failure.exit_code, "").final
    assert failure.message.startswith(said)
    assert "(line 1 of /somewhere/of_mine.py: )" in failure.message
    assert "not tried again" in failure.message
    assert "\n" not in failure.message


@pytest.mark.parametrize(
    "code",
    [
        "raise RuntimeError('NCCL')",
        "raise RuntimeError('CUDA error: an illegal memory access was encountered')",
        "raise OSError('disk')",
        "raise ConnectionResetError()",
        "raise TimeoutError()",
        "raise socket.gaierror(1, 'no name')",
    ],
)
def test_what_the_machine_or_the_network_does_is_tried_again(code: str) -> None:
    assert not error_of(failure_of(raised(code)).exit_code, "").final


@pytest.mark.parametrize("error", [RuntimeError("no room"), FileNotFoundError("/tmp/af1/session")])
def test_errors_of_our_own_code_and_of_libraries_that_may_be_the_machines_are_tried_again(error: Exception) -> None:
    for place in (sysconfig.get_path("purelib") + "/ray/worker.py", str(Path(failures.__file__).parents[1] / "store" / "x.py")):
        try:
            exec(compile("raise error", place, "exec"), {"error": error})
        except Exception as caught:
            assert failure_of(caught).exit_code == 1


def from_actor(cause: Any, traceback: str = "Traceback") -> BaseException:
    error = ActorFailedError("policy (rank 0) in train failed")
    error.__cause__ = RayTaskError("train", traceback, cause)
    return error


def test_an_error_of_the_users_code_in_an_actor_is_final_with_its_line() -> None:
    written = 'Traceback:\n  File "/w/rlhf_core/cluster/launch.py", line 60, in run\n    f(job)\n  File "/home/me/s.py", line 7, in f\n    open(p)\n'
    failure = failure_of(from_actor(FileNotFoundError(2, "No such file", "p"), written))
    assert failure.exit_code == 10 and "(line 7 of /home/me/s.py: open(p))" in failure.message
    ours = written.replace("/home/me/s.py", str(Path(failures.__file__).parents[1] / "execution" / "start.py"))
    assert failure_of(from_actor(FileNotFoundError(2, "No such file", "p"), ours)).exit_code == 1


def test_an_error_in_an_actor_counts_as_it_does_here() -> None:

    assert failure_of(from_actor(KeyError("colour"))).exit_code == 10
    assert failure_of(from_actor(DataError("row 3"))).exit_code == 11
    assert failure_of(from_actor(RuntimeError("NCCL"))).exit_code == 1
    died = ActorFailedError("policy (rank 0) in train: the actor died")
    died.__cause__ = RayActorError()
    assert failure_of(died).exit_code == 1


def test_the_line_is_the_users_not_that_of_a_library(tmp_path: Path) -> None:
    message = failure_of(raised("json.loads('{')")).message
    assert "of_mine.py" in message and "decoder.py" not in message
