"""From a failed stage to what the user reads: which node, what its exit code means, what to do, what was kept back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data_processing.errors import AlignflowError
from flows.running.run_folder import RunFolder
from tasks.runtime.contract.failures import StageFailedError


def explained(errors: Mapping[str, Exception], not_started: Sequence[str], folder: RunFolder) -> AlignflowError:
    """One error for a failed run: the first failure in full, the others by name. Keeps the first one's exit code."""
    node, first = next(iter(errors.items()))
    kind = type(first) if isinstance(first, AlignflowError) else StageFailedError
    what = f"stage '{node}' failed: {kind.meaning} (exit code {kind.exit_code})"
    lines = [what, str(first) or repr(first), f"What to do: {kind.what_to_do}."]
    if others := list(errors)[1:]:
        lines.append(f"Failed too: {', '.join(others)}.")
    if not_started:
        lines.append(f"Not started, because they need it: {', '.join(not_started)}.")
    lines.append(f"Everything else is kept; the run is described in {folder.path}.")
    return kind("\n".join(lines))
