"""From an exception to an exit code and a message, in the worker; and from those back to an exception, in the flow."""

from __future__ import annotations

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


class StageFailedError(AlignflowError):
    """A stage used up its attempts for reasons that are not its own: killed workers, dead nodes, hangs."""


def failure_of(error: BaseException) -> Failure:
    """What a worker reports about the exception that ended its stage. Causes are looked through, also across Ray."""
    for cause in _causes(error):
        if isinstance(cause, AlignflowError):
            return Failure(exit_code=cause.exit_code, error=type(cause).__name__, message=str(cause))
        if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError" or _is_allocation_failure(cause):
            message = f"{type(cause).__name__}: {cause}. {_MEMORY_HINT}"
            return Failure(exit_code=OutOfMemoryError.exit_code, error="OutOfMemoryError", message=message)
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return Failure(exit_code=error.code, error="SystemExit", message=f"the stage exited with code {error.code}")
    return Failure(exit_code=1, error=type(error).__name__, message=f"{type(error).__name__}: {error}")


def error_of(exit_code: int, message: str) -> AlignflowError:
    """The exception that stands for a failed stage on the flow's side."""
    return _BY_CODE.get(exit_code, StageFailedError)(message)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = getattr(error, "cause", None) or error.__cause__


def _is_allocation_failure(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
