"""What a worker reports about the error that ended its stage: what would happen again is final, what may not is infrastructure."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError

from data_processing.errors import DataError
from rlhf_core.cluster.group import ActorFailedError
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
    ],
)
def test_code_that_fails_over_what_it_is_given_is_not_run_again(code: str, said: str) -> None:
    failure = failure_of(raised(code))
    assert failure.exit_code == 10 and error_of(failure.exit_code, "").final
    assert failure.message.startswith(said)
    assert "(line 1 of /somewhere/of_mine.py: )" in failure.message
    assert "\n" not in failure.message


@pytest.mark.parametrize(
    "code",
    [
        "raise RuntimeError('NCCL')",
        "raise OSError('disk')",
        "open('/no/such/file')",
        "raise ConnectionResetError()",
        "raise TimeoutError()",
        "raise socket.gaierror(1, 'no name')",
    ],
)
def test_what_the_machine_or_the_network_does_is_tried_again(code: str) -> None:
    assert not error_of(failure_of(raised(code)).exit_code, "").final


def test_an_error_in_an_actor_counts_as_it_does_here() -> None:
    def from_actor(cause: Any) -> BaseException:
        error = ActorFailedError("policy (rank 0) in train failed")
        error.__cause__ = RayTaskError("train", "Traceback", cause)
        return error

    assert failure_of(from_actor(KeyError("colour"))).exit_code == 10
    assert failure_of(from_actor(DataError("row 3"))).exit_code == 11
    assert failure_of(from_actor(RuntimeError("NCCL"))).exit_code == 1
    died = ActorFailedError("policy (rank 0) in train: the actor died")
    died.__cause__ = RayActorError()
    assert failure_of(died).exit_code == 1


def test_the_line_is_the_users_not_that_of_a_library(tmp_path: Path) -> None:
    message = failure_of(raised("json.loads('{')")).message
    assert "of_mine.py" in message and "decoder.py" not in message
