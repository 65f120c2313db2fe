"""From a failed stage to what the user reads: which node, what its exit code means, what to do, what was kept back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data_processing.errors import AlignflowError
from flows.running.run_folder import RunFolder
from tasks.runtime.contract.failures import StageFailedError

_MEANING = {
    10: ("a setting cannot work", "correct the setting named above"),
    11: ("bad data", "correct the rows or tables named above, or raise the tolerance that is named"),
    12: ("training diverged", "lower the stage's learning rate or raise its KL weight; the last good checkpoint is kept"),
    13: ("out of memory", "lower the settings named above, or runtime.max_parallel_stages"),
    14: ("stopped, with a checkpoint saved", "start the run again: it resumes"),
    15: ("a newer attempt owns this result", "start the run again: it takes the newer result"),
}
_INFRASTRUCTURE = ("the machinery failed, not the stage", "look at its log; starting the run again resumes it")


def explained(errors: Mapping[str, Exception], not_started: Sequence[str], folder: RunFolder) -> AlignflowError:
    """One error for a failed run: the first failure in full, the others by name. Keeps the first one's exit code."""
    node, first = next(iter(errors.items()))
    kind = type(first) if isinstance(first, AlignflowError) else StageFailedError
    meaning, fix = _MEANING.get(kind.exit_code, _INFRASTRUCTURE)
    lines = [f"stage '{node}' failed: {meaning} (exit code {kind.exit_code})", str(first) or repr(first), f"What to do: {fix}."]
    if others := list(errors)[1:]:
        lines.append(f"Failed too: {', '.join(others)}.")
    if not_started:
        lines.append(f"Not started, because they need it: {', '.join(not_started)}.")
    lines.append(f"Everything else is kept; the run is described in {folder.path}.")
    return kind("\n".join(lines))
