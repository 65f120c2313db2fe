"""From an exception to an exit code and a message, in the worker; and from those back to an exception, in the flow."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data_processing.errors import (
    AlignflowError,
    ConfigError,
    DataError,
    DivergedError,
    OutOfMemoryError,
    PreemptedError,
    SupersededError,
)
from tasks.runtime.contract.spec import Failure

_BY_CODE = {
    error.exit_code: error for error in (ConfigError, DataError, DivergedError, OutOfMemoryError, PreemptedError, SupersededError)
}
_MEMORY_HINT = (
    "Memory ran out. What lowers it: engine.micro_batch_tokens, max_length_tokens, samples_per_prompt, kv_cache_mib; "
    "a higher engine.zero_stage, engine.gradient_checkpointing or lora.rank > 0"
)


# What code raises that meets what it was not written for: the next attempt would meet the same.
_REPEATS_ITSELF = (
    *(TypeError, ValueError, LookupError, AttributeError, NameError, AssertionError, ArithmeticError),
    *(ImportError, SyntaxError, NotImplementedError, RecursionError),
)
# What does so where the code is the user's, whose functions and files are not the machine's.
_REPEATS_ITSELF_IN_OWN_CODE = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
# Of a device or a collective, however deep in somebody's code it was used.
_OF_THE_MACHINE = re.compile(r"CUDA|cuDNN|cuBLAS|NCCL|gloo|HIP error|device-side|connection|timed out|time-?out", re.IGNORECASE)
_LINE_OF_A_TRACEBACK = re.compile(r'File "([^"]+)", line (\d+), in .*\n(?:\s+(.*))?')
_OURS = Path(__file__).resolve().parents[3]
_ROOMS = tuple(f"{_OURS / room}/" for room in ("flows", "tasks", "evaluation", "rlhf_core", "data_processing"))


class _Line(NamedTuple):
    """A line of code that an error went through."""

    file: str
    number: int
    text: str


class StageFailedError(AlignflowError):
    """A stage used up its attempts for reasons that are not its own: killed workers, dead nodes, hangs."""


def failure_of(error: BaseException) -> Failure:
    """What a worker reports about the exception that ended its stage. Causes are looked through, also across Ray.

    An error that code raises over what it was given (`TypeError`, `KeyError`, ...) is final, with the line that raised it; and so
    is a bare `RuntimeError`, or a file that is not there, where that line is the user's own.
    """
    for cause in _causes(error):
        if isinstance(cause, AlignflowError):
            return Failure(exit_code=cause.exit_code, error=type(cause).__name__, message=str(cause))
        if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError" or _is_allocation_failure(cause):
            message = f"{type(cause).__name__}: {cause}. {_MEMORY_HINT}"
            return Failure(exit_code=OutOfMemoryError.exit_code, error="OutOfMemoryError", message=message)
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return Failure(exit_code=error.code, error="SystemExit", message=f"the stage exited with code {error.code}")
    raised = _raised(error)
    lines = _lines_of(error)
    if isinstance(raised, _REPEATS_ITSELF) or _repeats_itself_in_own_code(raised, lines):
        message = f"{type(raised).__name__}: {_line(raised)}{_where(lines)}; it is not tried again, as the same would happen"
        return Failure(exit_code=ConfigError.exit_code, error=type(raised).__name__, message=message)
    return Failure(exit_code=1, error=type(error).__name__, message=f"{type(error).__name__}: {error}")


def error_of(exit_code: int, message: str) -> AlignflowError:
    """The exception that stands for a failed stage on the flow's side."""
    return _BY_CODE.get(exit_code, StageFailedError)(message)


def _raised(error: BaseException) -> BaseException:
    """What a worker's or an actor's code raised: Ray keeps an actor's error as the cause of its own."""
    kept = (getattr(cause, "cause", None) for cause in _causes(error))
    return next((cause for cause in kept if isinstance(cause, BaseException)), error)


def _repeats_itself_in_own_code(error: BaseException, lines: list[_Line]) -> bool:
    """Whether the user's own code raised what it would raise again."""
    if not lines or lines[-1].file.startswith((*_libraries(), *_ROOMS, "<")):
        return False
    if type(error) is RuntimeError:
        return not _OF_THE_MACHINE.search(str(error))
    return isinstance(error, _REPEATS_ITSELF_IN_OWN_CODE)


def _lines_of(error: BaseException) -> list[_Line]:
    """The lines that what was raised went through, the innermost last; of an error in an actor, those that Ray has written down."""
    frames = traceback.extract_tb(_raised(error).__traceback__)
    if frames:
        return [_Line(frame.filename, frame.lineno or 0, frame.line or "") for frame in frames]
    written = next((text for cause in _causes(error) if isinstance(text := getattr(cause, "traceback_str", None), str)), "")
    return [_Line(file, int(number), text.strip()) for file, number, text in _LINE_OF_A_TRACEBACK.findall(written)]


def _where(lines: list[_Line]) -> str:
    """The innermost line that belongs to no library, else the innermost; none where nobody has kept one."""
    own = [line for line in lines if not line.file.startswith((*_libraries(), "<"))] or lines
    return f" (line {own[-1].number} of {own[-1].file}: {own[-1].text})" if own else ""


def _libraries() -> tuple[str, ...]:
    return tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = getattr(error, "cause", None) or error.__cause__


def _is_allocation_failure(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
