"""What the C library does with memory that a process frees: gives it back, or keeps it for what comes next."""

from __future__ import annotations

import ctypes

# Names of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES, OLDER_BYTES = 1 << 30, 32 << 20


def keep_freed_memory() -> None:
    """Have this process keep up to 1 GiB of what it frees, and allocate what is smaller than that from there.

    For processes that need the same tensors round after round. By default glibc gives memory back above bounds that hang on which
    sizes were freed before, and each page that is asked for again is cleared again: a tenth and more of a small training step. In
    return such a process stays at its peak between steps, and that may be higher, as what is kept lies in pieces. Does nothing where
    the C library has no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Older glibc takes no more than 32 MiB for the first; where it takes neither, its own bounds are better than half of these.
    if mallopt is not None and (mallopt(M_MMAP_THRESHOLD, KEPT_BYTES) or mallopt(M_MMAP_THRESHOLD, OLDER_BYTES)):
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
