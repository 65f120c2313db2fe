"""From an exception to an exit code and a message, in the worker; and from those back to an exception, in the flow."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator

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
    *(ImportError, SyntaxError, NotImplementedError),
)


class StageFailedError(AlignflowError):
    """A stage used up its attempts for reasons that are not its own: killed workers, dead nodes, hangs."""


def failure_of(error: BaseException) -> Failure:
    """What a worker reports about the exception that ended its stage. Causes are looked through, also across Ray.

    An error that code raises over what it was given (`TypeError`, `KeyError`, ...) is final, with the line that raised it.
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
    if isinstance(raised, _REPEATS_ITSELF):
        message = f"{type(raised).__name__}: {raised}{_where(raised)}; it is not tried again, as the same would happen"
        return Failure(exit_code=ConfigError.exit_code, error=type(raised).__name__, message=message)
    return Failure(exit_code=1, error=type(error).__name__, message=f"{type(error).__name__}: {error}")


def error_of(exit_code: int, message: str) -> AlignflowError:
    """The exception that stands for a failed stage on the flow's side."""
    return _BY_CODE.get(exit_code, StageFailedError)(message)


def _raised(error: BaseException) -> BaseException:
    """What a worker's or an actor's code raised: Ray keeps an actor's error as the cause of its own."""
    kept = (getattr(cause, "cause", None) for cause in _causes(error))
    return next((cause for cause in kept if isinstance(cause, BaseException)), error)


def _where(error: BaseException) -> str:
    """The innermost line that belongs to no library, else the innermost; none for an error that came from another process."""
    libraries = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*libraries, "<"))] or frames
    return f" (line {own[-1].lineno} of {own[-1].filename}: {own[-1].line})" if own else ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = getattr(error, "cause", None) or error.__cause__


def _is_allocation_failure(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
