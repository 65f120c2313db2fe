"""Parts of libraries that nobody here uses and that cost every process seconds to import."""

from __future__ import annotations

import sys


def import_transformers() -> None:
    """Import transformers' generation without scikit-learn, where that has not been imported yet.

    It takes that in for one statistic of assisted generation, and waits 2 CPU-seconds for it (of 6 to load a model's code). Whoever
    imports scikit-learn later, as a reward function may, finds it as ever.
    """
    if "sklearn" in sys.modules or "transformers.generation.candidate_generator" in sys.modules:
        return
    # What stands there as None counts as not installed; transformers asks once and remembers.
    sys.modules["sklearn"] = None  # type: ignore[assignment]
    try:
        import transformers.generation.candidate_generator  # noqa: F401
    finally:
        del sys.modules["sklearn"]
